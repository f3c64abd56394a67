//! Attention.

pub mod backward;
pub mod causal;
mod examples;
pub mod key_value_grad;
pub mod query_grad;
pub mod statistics;
pub mod tiled;
