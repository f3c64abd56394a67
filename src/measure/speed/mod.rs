//! Speed: times of kernels and of whole models, the quickest kernel for a product, and what a device can do at most.

pub mod kernels;
pub mod model;
pub mod peaks;
pub mod tune;
