//! Normalizations.

pub mod rms;
