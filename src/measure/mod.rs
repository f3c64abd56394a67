//! Measuring a model: how well it predicts a text.

mod perplexity;

pub use perplexity::{Convention, Perplexity, perplexity};
