//! The compression maths: a folder per verb, a file per method.

pub mod prune;
pub mod quantize;
