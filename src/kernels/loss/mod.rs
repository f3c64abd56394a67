//! Losses over the vocabulary.

pub mod divergence;
pub mod logsumexp;
