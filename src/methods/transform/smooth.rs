//! SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): what is hard to round in activations is moved into weights, for products whose
//! inputs are rounded too, to 8 bits. s = max|x|^alpha / max|w|^(1 - alpha) for each channel (section 4, equation 4); activations are
//! divided by it. It is not looked for: alpha is 0.5, or what models with larger outliers want.

use serde::{Deserialize, Serialize};

use super::scale::Found;
use crate::error::Result;
use crate::methods::BadField;
use crate::methods::sequential::sum;
use crate::model::Weights;
use crate::walk::{BlockSums, Kind};

/// The sums that it takes.
pub const KINDS: [Kind; 1] = [Kind::Maxima];

/// How far a place was smoothed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Smoothed {
    /// The largest activation over the mean of the channels' largest, before.
    pub peak_before: f64,
    /// The same afterwards.
    pub peak_after: f64,
}

/// The smallest magnitude that counts, as in the source's code.
const LEAST: f64 = 1e-5;

/// An error unless an exponent is from 0 to 1.
pub fn check(alpha: f64) -> Result<f64, BadField> {
    match (0.0..=1.0).contains(&alpha) {
        true => Ok(alpha),
        false => Err(BadField::new("alpha", "0 to 1", alpha)),
    }
}

/// The scales of a place.
pub fn find(
    model: &dyn Weights,
    found: &Found<'_>,
    alpha: f64,
    sums: &BlockSums,
) -> Result<(Vec<f32>, Smoothed)> {
    let first = found.behind[0];
    let width = first.columns;
    let largest = sum(first, sums, Kind::Maxima, width)?.iter().map(|value| f64::from(*value));
    let inputs = found.by_channel(&largest.collect::<Vec<f64>>(), f64::max);
    let mut weights = vec![0.0f64; width];
    for spec in &found.behind {
        let values = model.load(spec)?.to_f32();
        for row in values.chunks_exact(width) {
            for (most, value) in weights.iter_mut().zip(row) {
                *most = most.max(f64::from(value.abs()));
            }
        }
    }
    let weights = found.by_channel(&weights, f64::max);
    let scale = |(x, w): (&f64, &f64)| match *x > 0.0 {
        true => (x.powf(alpha) / w.max(LEAST).powf(1.0 - alpha)).max(LEAST),
        // Nothing comes through.
        false => 1.0,
    };
    let scales = found.settled(inputs.iter().zip(&weights).map(scale).collect())?;
    let after: Vec<f64> = inputs.iter().zip(&scales).map(|(x, s)| x / f64::from(*s)).collect();
    let smoothed = Smoothed { peak_before: peak(&inputs), peak_after: peak(&after) };
    Ok((scales, smoothed))
}

/// The largest of some numbers over their mean.
fn peak(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    if mean > 0.0 { values.iter().fold(0.0f64, |most, value| most.max(*value)) / mean } else { 0.0 }
}
