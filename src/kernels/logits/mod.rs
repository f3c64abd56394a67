//! Logits, and tokens drawn by them.

pub mod accept;
pub mod combine;
pub mod draw;
mod noise;
pub mod penalize;
pub mod probabilities;
pub mod soft_cap;
pub mod soft_cap_grad;
