//! x
pub mod error;
pub mod formats;
pub mod tensor;
