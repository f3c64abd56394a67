//! Measuring: how well a model predicts a text and answers questions, how far it is from its parent, whether a device
//! computes what the reference says.

pub mod bench;
pub mod comparison;
mod divergence;
pub mod equivalent;
pub mod harness;
pub mod mutate;
pub mod outcome;
pub mod page;
pub mod peaks;
mod perplexity;
pub mod predictions;
pub mod speed;
pub mod statistics;
pub mod summary;
pub mod tasks;
pub mod tune;
pub mod verify;
mod windows;

pub use divergence::{
    DeltaP, Divergences, KlFigures, PerplexityChange, divergence, perplexity_change,
};
pub use perplexity::{BitsPerByte, Losses, Perplexity, losses, perplexity};
pub use windows::{Convention, Windows};
