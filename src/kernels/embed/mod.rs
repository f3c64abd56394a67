//! Embedding tables.

pub mod gather;
