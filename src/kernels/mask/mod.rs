//! Weights without what masks rule out, activations without what chance does.

pub mod dropout;
pub mod zero_weights;
