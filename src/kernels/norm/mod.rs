//! Normalizations.

pub mod center;
pub mod gain_grad;
pub mod rms;
pub mod rms_grad;
pub mod shift;
