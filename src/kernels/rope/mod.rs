//! Rotary position embedding.

pub mod enter;
pub mod rotate;
