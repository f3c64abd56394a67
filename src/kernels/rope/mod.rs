//! Rotary position embedding.

pub mod rotate;
