//! Gated units.

pub mod glu;
pub mod glu_grad;
