//! Element types, weight formats and host storage. No device, no file format.

pub mod block;
mod dtype;
mod input;
mod line;
/// Floats of few bits.
pub mod minifloat;
mod packed;
mod super_block;
mod weight;

pub use dtype::DType;
pub use input::InputType;
pub use line::Line;
pub use packed::Packed;
pub use super_block::{SUPER_BLOCK, SUPER_WORDS, SuperBlock};
pub use weight::{
    BLOCK, Levels, Scale, Sparsity, WEIGHT_TYPES, WHOLE_ROW, WeightFormat, WeightType, codebook,
    weight_type,
};
