//! Steps of an optimizer: the norm of a gradient, its clipping, and the change of the weights.

pub mod adamw;
pub mod adamw_8bit;
pub mod clip;
pub mod sign;
pub mod squares;
mod step;

pub use step::AdamW;
