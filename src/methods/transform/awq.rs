//! AWQ (Lin et al. 2023, arXiv 2306.00978): channels with large activations are scaled up before weights are rounded, and so lose less
//! of what counts. s = a^alpha for the mean magnitude a of each channel (section 3.2, equation 5), over the root of its largest and
//! its smallest; or, as AutoAWQ's `duo_scaling` has it, a^alpha / w^(1 - alpha) with the mean magnitude w of the channel's weights,
//! each over the largest of its group.
//!
//! Alpha is found on a grid, by what the products behind a place lose when their weights are rounded as they will be: with dW =
//! Q(W s) / s - W and G = X^T X of their inputs the squared error of all outputs is tr(dW G dW^T), exactly; it is summed over the
//! products. To leave the place as it is, is always one of what is tried, so nothing is worse than that by this measure. (The
//! source runs the block again for each alpha and compares its results: that costs a pass through the text instead.)

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::scale::Found;
use crate::device::Device;
use crate::error::Result;
use crate::interrupt;
use crate::kernels::matrix::Matrix;
use crate::methods::prune::slice::products;
use crate::methods::quantize::fit::Fitting;
use crate::methods::sequential::sum;
use crate::model::{TensorSpec, Weights};
use crate::tensor::Packed;
use crate::walk::{BlockSums, Kind};

/// The sums that it takes.
pub const KINDS: [Kind; 2] = [Kind::Magnitudes, Kind::Gram];

/// How scales are looked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// Exponents that are tried: 0, 1/n and so on, below 1.
    pub alphas: usize,
    /// Whether magnitudes of weights divide.
    pub duo: bool,
    /// How weights will be rounded.
    pub fitting: Fitting,
}

/// What was found for a place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// The exponent; `None`: the channels stay as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The squared error of the outputs when nothing is scaled, over their squares.
    pub error_before: f64,
    /// The same with these scales.
    pub error_after: f64,
}

/// The smallest scale before they are brought to one size, as the source has it.
const LEAST: f64 = 1e-4;

/// A product behind a place that will be rounded.
struct Product<'a> {
    spec: &'a TensorSpec,
    weight: Vec<f32>,
}

impl Search {
    /// The scales of a place, where `rounded` says which of the products behind it will be rounded; none, and what is lost then,
    /// where nothing better is found. `None` if none of them is rounded.
    pub fn find(
        &self,
        device: &Device,
        model: &dyn Weights,
        found: &Found<'_>,
        rounded: &dyn Fn(&TensorSpec) -> bool,
        sums: &BlockSums,
    ) -> Result<Option<(Option<Vec<f32>>, Loss)>> {
        let chosen = found.behind.iter().copied().filter(|spec| rounded(spec));
        let load = |spec| Ok(Product { spec, weight: model.load(spec)?.to_f32() });
        let behind: Vec<Product<'_>> = chosen.map(load).collect::<Result<_>>()?;
        let Some(first) = behind.first().map(|product| product.spec) else { return Ok(None) };
        let width = first.columns;
        // Products with it read whole rows: both its halves are there.
        let gram = sum(first, sums, Kind::Gram, width * width)?;
        let gram = Matrix::upload(device, &Packed::from_f32(gram, width, width), "inputs")?;
        let squares = |weights: &[f32]| -> Result<f64> {
            let pairs = products(device, weights, &gram)?;
            Ok(pairs.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
        };
        let mut whole = 0.0;
        for product in &behind {
            whole += squares(&product.weight)?;
        }
        let lost = |scales: Option<&[f32]>| -> Result<f64> {
            let mut lost = 0.0;
            for product in &behind {
                interrupt::check()?;
                lost += squares(&self.away(product, found, scales)?)?;
            }
            Ok(lost)
        };
        let before = lost(None)?;
        let relative = |lost: f64| if whole > 0.0 { lost / whole } else { 0.0 };
        let mut best = (before, None, None);
        let tokens = found.tokens(sums).max(1) as f64;
        let means = sum(first, sums, Kind::Magnitudes, width)?.iter();
        let means: Vec<f64> = means.map(|sum| f64::from(*sum) / tokens).collect();
        let means = found.by_channel(&means, |a, b| a + b);
        let weights = self.duo.then(|| self.magnitudes(&behind, found));
        for step in 0..self.alphas {
            // Without weights an exponent of 0 is what was measured already.
            let alpha = step as f64 / self.alphas as f64;
            if step == 0 && !self.duo {
                continue;
            }
            let scales = found.settled(scales(&means, weights.as_deref(), alpha))?;
            let lost = lost(Some(&scales))?;
            if lost < best.0 {
                best = (lost, Some(alpha), Some(scales));
            }
        }
        let (after, alpha, scales) = best;
        let loss = Loss { alpha, error_before: relative(before), error_after: relative(after) };
        Ok(Some((scales, loss)))
    }

    /// Q(W s) / s - W.
    fn away(
        &self,
        product: &Product<'_>,
        found: &Found<'_>,
        scales: Option<&[f32]>,
    ) -> Result<Vec<f32>> {
        let (rows, columns) = (product.spec.rows, product.spec.columns);
        let by_column: Option<Vec<f32>> =
            scales.map(|scales| found.channels.iter().map(|channel| scales[*channel]).collect());
        let mut values = product.weight.clone();
        if let Some(scales) = &by_column {
            values.par_chunks_mut(columns.max(1)).for_each(|line| {
                line.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale);
            });
        }
        let packed = Packed::from_f32(&values, rows, columns);
        let mut away = self.fitting.round(&packed, None, &product.spec.name)?.to_f32();
        let lines =
            away.par_chunks_mut(columns.max(1)).zip(product.weight.par_chunks(columns.max(1)));
        lines.for_each(|(away, weight)| {
            if let Some(scales) = &by_column {
                away.iter_mut().zip(scales).for_each(|(value, scale)| *value /= scale);
            }
            away.iter_mut().zip(weight).for_each(|(value, weight)| *value -= weight);
        });
        Ok(away)
    }

    /// Of each channel the mean magnitude of its weights, each over the largest of its group.
    fn magnitudes(&self, behind: &[Product<'_>], found: &Found<'_>) -> Vec<f64> {
        let width = found.channels.len();
        let group = self.fitting.format().group_columns(width);
        let (mut sums, mut rows) = (vec![0.0; width], 0);
        for row in behind.iter().flat_map(|product| product.weight.chunks_exact(width)) {
            rows += 1;
            for (values, sums) in row.chunks(group).zip(sums.chunks_mut(group)) {
                let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                for (value, sum) in values.iter().zip(sums) {
                    *sum += f64::from(value.abs()) / (f64::from(largest) + 1e-6);
                }
            }
        }
        let means: Vec<f64> = sums.iter().map(|sum| sum / f64::from(rows)).collect();
        let each = width as f64 / found.count() as f64;
        found.by_channel(&means, |a, b| a + b).iter().map(|sum| sum / each).collect()
    }
}

/// The scales of channels of these magnitudes, and of these weights where they count. Channels that nothing came through keep 1.
fn scales(means: &[f64], weights: Option<&[f64]>, alpha: f64) -> Vec<f64> {
    let scale = |(channel, mean): (usize, &f64)| {
        if *mean <= 0.0 {
            return None;
        }
        let weight = weights.map_or(1.0, |weights| weights[channel].max(LEAST));
        Some((mean.powf(alpha) / weight.powf(1.0 - alpha)).max(LEAST))
    };
    let found: Vec<Option<f64>> = means.iter().enumerate().map(scale).collect();
    let live = || found.iter().flatten().copied();
    let (most, least) = (live().fold(0.0, f64::max), live().fold(f64::INFINITY, f64::min));
    let size = (most * least).sqrt();
    found.iter().map(|scale| scale.map_or(1.0, |scale| scale / size)).collect()
}
