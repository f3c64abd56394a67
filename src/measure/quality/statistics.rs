//! Means with their errors, quantiles, and bootstrap intervals.
//!
//! Intervals are percentile intervals of the bootstrap (Efron 1979), with the levels expanded as Hesterberg recommends
//! (*What Teachers Should Know About the Bootstrap*, 2015, section 5.3): a sample of n spreads too little by sqrt((n-1)/n),
//! and a normal quantile takes the place of Student's t. Percentiles, and not an estimate plus or minus something, because
//! they follow a quantity through any rising function: the interval of a mean loss is that of the perplexity.

use serde::{Deserialize, Serialize};

use crate::device::Random;

/// The mean, and its standard error: the sample's standard deviation (divisor n - 1) over sqrt(n). One value tells nothing of its
/// error: NaN, which is null in JSON and [`n/a`](with_error) in print.
pub fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let variance = if values.len() > 1 { squares / (n - 1.0) } else { f64::NAN };
    (mean, (variance / n).sqrt())
}

/// `24.75 ± 0.60`, or with an error that is not known `24.75 ± n/a`.
pub fn with_error(value: f64, error: f64, digits: usize) -> String {
    format!("{value:.digits$} ± {}", number(error, digits))
}

/// A number with so many decimals, `n/a` where there is none.
pub fn number(value: f64, digits: usize) -> String {
    if value.is_nan() { "n/a".into() } else { format!("{value:.digits$}") }
}

/// Reads a figure back whose null stands for NaN.
pub(super) fn nan_from_null<'de, D: serde::Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(f64::NAN))
}

/// The covariance of the means of two paired samples: the sample covariance (divisor n - 1) over n.
pub fn covariance_of_means(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let products: f64 = a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum();
    if a.len() > 1 { products / (n - 1.0) / n } else { 0.0 }
}

/// The value below which this fraction of a sorted sample lies, interpolated linearly between neighbours, as
/// llama-perplexity and numpy do.
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let place = fraction.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(sorted.len() - 1);
    (1.0 - part) * sorted[below] + part * sorted[above]
}

/// Where a quantity lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// The interval of a rising function of the quantity.
    pub fn map(self, rising: impl Fn(f64) -> f64) -> Self {
        Self { low: rising(self.low), high: rising(self.high) }
    }
}

/// The confidence of every interval.
pub const LEVEL: f64 = 0.95;

/// Units below which no interval is given: the tails of so small a sample's bootstrap say nothing.
pub const LEAST_UNITS: usize = 8;

/// How resampling is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Samples drawn, with replacement.
    pub resamples: usize,
    /// The seed of the draws.
    pub seed: u64,
}

impl Bootstrap {
    /// The one that commands use. 4000 draws fix an interval's end to a few percent of its width.
    pub fn seeded(seed: u64) -> Self {
        Self { resamples: 4000, seed }
    }

    /// The interval of a statistic of independent units, in strata of these sizes that are drawn each for itself (the items
    /// of each task). `statistic` sees the drawn indices of every stratum; a draw for which it has no value is left out.
    /// None where a stratum has fewer than [`LEAST_UNITS`] units.
    pub fn interval(
        &self,
        strata: &[usize],
        mut statistic: impl FnMut(&[Vec<usize>]) -> Option<f64>,
    ) -> Option<Interval> {
        let least = strata.iter().copied().min().filter(|n| *n >= LEAST_UNITS)?;
        let mut random = Random::new(self.seed);
        let mut drawn: Vec<Vec<usize>> = strata.iter().map(|n| vec![0; *n]).collect();
        let mut found = Vec::with_capacity(self.resamples);
        for _ in 0..self.resamples {
            for indices in &mut drawn {
                let n = indices.len() as u32;
                indices.iter_mut().for_each(|index| *index = random.below(n) as usize);
            }
            found.extend(statistic(&drawn));
        }
        if found.is_empty() {
            return None;
        }
        found.sort_by(f64::total_cmp);
        let tail = expanded_tail(least);
        Some(Interval { low: quantile(&found, tail), high: quantile(&found, 1.0 - tail) })
    }

    /// The interval of the mean of independent values, of paired differences for instance.
    pub fn mean(&self, values: &[f64]) -> Option<Interval> {
        let mean = |drawn: &[Vec<usize>]| {
            Some(drawn[0].iter().map(|index| values[*index]).sum::<f64>() / values.len() as f64)
        };
        self.interval(&[values.len()], mean)
    }
}

/// The share of a bootstrap distribution that is cut off at either end, for a sample of n.
fn expanded_tail(n: usize) -> f64 {
    let n = n as f64;
    normal_below(-(n / (n - 1.0)).sqrt() * student_quantile(n - 1.0))
}

/// Student's t at 1 - (1 - [`LEVEL`]) / 2, by its expansion around the normal quantile (Abramowitz and Stegun 26.7.5): off
/// by less than 1e-3 from 7 degrees of freedom on.
fn student_quantile(freedom: f64) -> f64 {
    const Z: f64 = 1.959_963_984_540_054;
    let z = |power: i32| Z.powi(power);
    let terms = [
        (z(3) + Z) / 4.0,
        (5.0 * z(5) + 16.0 * z(3) + 3.0 * Z) / 96.0,
        (3.0 * z(7) + 19.0 * z(5) + 17.0 * z(3) - 15.0 * Z) / 384.0,
        (79.0 * z(9) + 776.0 * z(7) + 1482.0 * z(5) - 1920.0 * z(3) - 945.0 * Z) / 92_160.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) / freedom) + Z
}

/// The standard normal distribution's mass below x, to 7.5e-8 (Abramowitz and Stegun 26.2.17).
fn normal_below(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let inner = 1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429);
    let series = t * (0.319_381_530 + t * (-0.356_563_782 + t * inner));
    let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let above = density * series;
    if x < 0.0 { above } else { 1.0 - above }
}
