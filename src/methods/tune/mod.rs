//! Tuning: what training makes of weights.

pub mod merged;
