//! Quality: how well a model predicts a text and answers questions, and how far it is from its parent.

pub mod comparison;
mod divergence;
pub mod harness;
pub mod outcome;
mod perplexity;
pub mod predictions;
pub mod rewards;
pub mod statistics;
pub mod summary;
pub mod tasks;
mod windows;

pub use divergence::{
    DeltaP, Divergences, KlFigures, PerplexityChange, divergence, perplexity_change,
};
pub use perplexity::{BitsPerByte, LogitSource, Losses, Perplexity, losses, perplexity};
pub use windows::{Convention, Windows};
