//! The key-value cache.

pub mod append;
