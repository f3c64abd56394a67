//! Measuring: how well a model predicts a text and answers questions, whether a device computes what the reference says.

pub mod bench;
pub mod equivalent;
pub mod mutate;
pub mod outcome;
pub mod page;
pub mod peaks;
mod perplexity;
pub mod speed;
pub mod tasks;
pub mod verify;

pub use perplexity::{Convention, Perplexity, perplexity};
pub mod tune;
