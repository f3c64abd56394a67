//! Activations, of gated units and alone.

pub mod activate;
pub mod activate_grad;
pub mod glu;
pub mod glu_grad;
