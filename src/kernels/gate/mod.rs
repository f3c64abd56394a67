//! Gated activations.

pub mod silu;
