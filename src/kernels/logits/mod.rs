//! Logits.

pub mod soft_cap;
pub mod soft_cap_grad;
