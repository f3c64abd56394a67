//! The compression maths: a folder per verb, a file per method.

pub mod calibration;
pub mod prune;
pub mod quantize;
