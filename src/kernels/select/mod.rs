//! Which scores stay: masks of 0 and 1.

pub mod threshold;
pub mod top_k;
