//! Gated activations.

pub mod silu;
pub mod silu_grad;
