//! x
pub mod compare;
pub mod device;
pub mod error;
pub mod formats;
pub mod gpu;
pub mod kernels;
pub mod tensor;
