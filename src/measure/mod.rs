//! Measuring: how good a model is, how fast it and its kernels run, and whether a device computes what the reference says.

pub mod quality;
pub mod speed;
pub mod trust;

pub use quality::{
    BitsPerByte, Convention, DeltaP, Divergences, KlFigures, LogitSource, Losses, Perplexity,
    PerplexityChange, Windows, divergence, losses, perplexity, perplexity_change,
};
