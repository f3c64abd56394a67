//! Weights without what masks or scores rule out, activations without what chance does.

pub mod dropout;
pub mod keep_groups;
pub mod keep_runs;
pub mod score_grad;
pub mod zero_weights;
