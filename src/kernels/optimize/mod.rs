//! Steps of an optimizer: the norm of a gradient, its clipping, and the change of the weights.

pub mod clip;
pub mod squares;
