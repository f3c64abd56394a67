//! Pruning: what matters least goes.

pub mod memory;
pub mod score;
