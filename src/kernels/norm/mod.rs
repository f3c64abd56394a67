//! Normalizations.

pub mod gain_grad;
pub mod rms;
pub mod rms_grad;
