//! Rotary position encoding (Su et al. 2021, arXiv 2104.09864): the frequencies of a model, stretched for longer contexts or
//! not.

use std::path::Path;

use crate::error::{Error, Result};

/// One rotary encoding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by a factor (position interpolation).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// `original_context / low_freq_factor` is the longest wavelength that is not divided fully.
        low_freq_factor: f64,
        /// `original_context / high_freq_factor` is the longest wavelength that is kept.
        high_freq_factor: f64,
        /// `original_max_position_embeddings`
        original_context: f64,
    },
    /// One divisor per frequency, as GGUF's `rope_freqs.weight` stores the Llama 3 rule.
    Divisors(Vec<f32>),
}

impl Rope {
    /// The angle per position of each pair of a head's columns, `head_dim / 2` values, scaling applied.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        match &self.scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Divisors(divisors) => plain
                .zip(divisors)
                .map(|(frequency, divisor)| frequency / f64::from(*divisor))
                .collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                plain
                    .map(|frequency| {
                        let turns = original_context * frequency / std::f64::consts::TAU;
                        let blend = ((turns - low_freq_factor)
                            / (high_freq_factor - low_freq_factor))
                            .clamp(0.0, 1.0);
                        (1.0 - blend) * frequency / factor + blend * frequency
                    })
                    .collect()
            }
        }
    }

    /// Cosine and sine of every pair at positions `[0, positions)`: (positions, head_dim / 2, 2). Computed in f64 on the
    /// CPU: WGSL promises nothing of sine and cosine beyond one turn.
    pub fn table(&self, head_dim: usize, positions: usize) -> Vec<f32> {
        let frequencies = self.frequencies(head_dim);
        let angle = |position: usize, frequency: &f64| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            [cos as f32, sin as f32]
        };
        (0..positions)
            .flat_map(|position| frequencies.iter().flat_map(move |f| angle(position, f)))
            .collect()
    }

    /// The scaling as a rule with parameters. GGUF stores Llama 3's as one divisor per frequency; the rule that made
    /// them is found again from the parameters that Meta's models use, and checked.
    pub(super) fn portable_scaling(&self, head_dim: usize, path: &Path) -> Result<RopeScaling> {
        let RopeScaling::Divisors(divisors) = &self.scaling else {
            return Ok(self.scaling.clone());
        };
        let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
        let rule = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let theta = self.theta;
        let scaling = rule.clone();
        let ruled = Self { theta, scaling }.frequencies(head_dim);
        let pairs = ruled.iter().zip(self.frequencies(head_dim));
        if pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-5 * b) {
            return Ok(rule);
        }
        Err(Error::Unsupported {
            path: path.into(),
            what: "rope_freqs.weight that follows no known rule".into(),
            why: "config.json has no place for one divisor per frequency; export as GGUF".into(),
        })
    }

    /// One divisor per rotary frequency, where the scaling is one that GGUF stores so.
    pub fn divisors(&self, head_dim: usize) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::Divisors(divisors) => Some(divisors.clone()),
            RopeScaling::Llama3 { .. } => {
                let theta = self.theta;
                let scaling = RopeScaling::None;
                let plain = Self { theta, scaling }.frequencies(head_dim);
                let scaled = self.frequencies(head_dim);
                let ratio = |(plain, scaled): (f64, f64)| (plain / scaled) as f32;
                Some(plain.into_iter().zip(scaled).map(ratio).collect())
            }
            RopeScaling::None | RopeScaling::Linear { .. } => None,
        }
    }
}
