//! The residual stream.

pub mod add;
