//! Attention.

pub mod causal;
