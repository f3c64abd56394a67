//! Losses over the vocabulary.

pub mod logsumexp;
