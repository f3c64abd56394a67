//! Losses over the vocabulary.

pub mod argmax;
pub mod divergence;
pub mod logsumexp;
