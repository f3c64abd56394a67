//! Measuring: how well a model predicts a text, whether a device computes what the reference says.

pub mod bench;
mod perplexity;
pub mod verify;

pub use perplexity::{Convention, Perplexity, perplexity};
