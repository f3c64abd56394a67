//! Weights without what masks rule out.

pub mod zero_weights;
