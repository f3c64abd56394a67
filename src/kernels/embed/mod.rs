//! Embedding tables.

pub mod gather;
pub mod scatter;
