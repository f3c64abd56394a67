//! The compression maths: a folder per verb, a file per method.

pub mod quantize;
