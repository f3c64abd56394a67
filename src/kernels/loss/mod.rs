//! Losses over the vocabulary, and of hidden states.

pub mod argmax;
pub mod cross_entropy_grad;
pub mod distil;
pub mod distil_top;
pub mod divergence;
pub mod hidden;
pub mod logsumexp;
pub mod peaks;
