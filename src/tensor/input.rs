//! What inputs of linear layers are rounded to when a model runs, where it asks for that: eight bits, as weights are, so that products of
//! both need no wider numbers.

use serde::{Deserialize, Serialize};

use super::minifloat::decode;

/// The numbers that inputs become, times a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
pub enum InputType {
    /// Integers from -128 to 127.
    #[serde(rename = "int8")]
    #[value(name = "int8")]
    Int8,
    /// Floats of four exponent and three mantissa bits, up to 448 (OCP Microscaling Formats 1.0, 5.3.1).
    #[serde(rename = "fp8_e4m3")]
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
}

impl InputType {
    /// Every one.
    pub const ALL: [InputType; 2] = [InputType::Int8, InputType::Fp8E4m3];

    /// Its name in flags and configurations, that of a weight's type with the same numbers.
    pub fn name(self) -> &'static str {
        match self {
            InputType::Int8 => "int8",
            InputType::Fp8E4m3 => "fp8_e4m3",
        }
    }

    /// The one of a name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// What the largest magnitude becomes, where the scale is its own.
    pub fn largest(self) -> f32 {
        match self {
            InputType::Int8 => 127.0,
            InputType::Fp8E4m3 => 448.0,
        }
    }

    /// The largest of some finite magnitudes becomes [`InputType::largest`] times this scale, rounded twice: a product with a constant, so
    /// that every device has the same.
    pub fn scale(self, largest: f32) -> f32 {
        largest * self.share()
    }

    /// What a largest magnitude is multiplied by to be a scale.
    pub fn share(self) -> f32 {
        1.0 / self.largest()
    }

    /// The value nearest to a finite `value` of those that the numbers times `scale` are; of two the lower one.
    pub fn nearest(self, value: f32, scale: f32) -> f32 {
        if scale == 0.0 {
            return 0.0;
        }
        let quotient = value / scale;
        let (near, [least, most]) = match self {
            InputType::Int8 => {
                (quotient.clamp(-128.0, 127.0).round_ties_even() as i32, [-128, 127])
            }
            InputType::Fp8E4m3 => {
                let place = place(quotient.abs());
                (if quotient < 0.0 { -place } else { place }, [-126, 126])
            }
        };
        let number = |place: i32| match self {
            InputType::Int8 => place as f32,
            InputType::Fp8E4m3 => {
                decode(place.unsigned_abs(), 4, 3).copysign(if place < 0 { -1.0 } else { 1.0 })
            }
        };
        let candidates = (-1..=1).map(|step| number((near + step).clamp(least, most)) * scale);
        let nearer = |best: f32, next: f32| {
            if (value - next).abs() < (value - best).abs() { next } else { best }
        };
        candidates.reduce(nearer).unwrap_or(0.0)
    }
}

/// The code of an E4M3 next to a magnitude.
fn place(magnitude: f32) -> i32 {
    let magnitude = magnitude.min(448.0);
    // Steps of a binade, at least of the lowest.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * f32::powi(2.0, 3 - exponent)).round_ties_even() as i32;
    (steps + 8 * (exponent + 6)).min(126)
}
