//! Losses over the vocabulary.

pub mod argmax;
pub mod logsumexp;
