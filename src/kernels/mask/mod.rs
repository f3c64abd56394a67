//! Weights without what masks rule out.

pub mod weights;
