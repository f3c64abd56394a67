//! Attention.

pub mod causal;
pub mod tiled;
