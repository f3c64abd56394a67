//! From codes back to numbers.

pub mod rows;
