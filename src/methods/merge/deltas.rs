//! What fine-tunes changed, added to what they began with: task arithmetic (Ilharco et al. 2023, arXiv 2212.04089), and what thins
//! changes out before or lets signs agree: TIES (Yadav et al. 2023, arXiv 2306.01708), DARE (Yu et al. 2024, arXiv 2311.03099) and
//! Breadcrumbs (Davari and Belilovsky 2024, arXiv 2312.06795).
//!
//! merged = base + λ mix, where mix = sum(w_i k_i (x_i - base)) over models i, and k_i is 0 where a change is dropped. With
//! elected signs (TIES, section 3) each value's sign is that of the sum, changes of the other sign are left out, and what is left
//! is divided by the weights of those that count: with equal weights the paper's disjoint mean.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::sums::{sums, values};
use crate::device::Random;

/// Which changes stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All.
    All,
    /// The share `density` with the largest magnitudes (TIES).
    Largest,
    /// Each with probability `density` (DARE).
    Random,
    /// Neither the share `gamma` of the largest, nor the smallest, so that the share `density` is left (Breadcrumbs).
    Middle,
}

/// What the changes that stay are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Rescale {
    /// 1 / density, so that means stay (DARE's paper)
    Density,
    /// What keeps the sum of their magnitudes (mergekit)
    L1,
    /// 1
    None,
}

/// Over what the largest changes are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Trim {
    /// Each tensor apart (mergekit)
    #[default]
    Tensor,
    /// All tensors of a model together (TIES's paper)
    Model,
}

/// A way to add changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deltas {
    /// Which stay.
    pub keep: Keep,
    /// What these are multiplied by.
    pub rescale: Rescale,
    /// Whether signs are elected.
    pub elect: bool,
    /// Whether the sum is divided by the weights.
    pub normalize: bool,
    /// Over what the largest are found.
    pub trim: Trim,
}

/// How one model's changes enter a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) weight: f64,
    pub(super) density: f64,
    pub(super) gamma: f64,
    /// What its draws begin with, of this tensor.
    pub(super) key: u64,
    /// With [`Trim::Model`] the smallest magnitude that stays.
    pub(super) threshold: Option<f32>,
}

/// The changes of a tensor that stay, and what they are multiplied by.
struct Kept {
    which: Which,
    factor: f64,
}

enum Which {
    All,
    None,
    Marked(Vec<bool>),
    From(f32),
    /// A key, the number of the first value here, the share that stays.
    Drawn(u64, u64, f64),
}

impl Kept {
    fn has(&self, place: usize, delta: f32) -> bool {
        match &self.which {
            Which::All => true,
            Which::None => false,
            Which::Marked(marks) => marks[place],
            Which::From(least) => delta.abs() >= *least,
            Which::Drawn(key, first, density) => uniform(*key, first + place as u64) < *density,
        }
    }
}

impl Deltas {
    /// Whether what becomes of a value depends on no other one, with thresholds of whole models or without.
    pub(super) fn is_local(&self, thresholds: bool) -> bool {
        let alone = match self.keep {
            Keep::All | Keep::Random => true,
            Keep::Largest => thresholds,
            Keep::Middle => false,
        };
        alone && (self.keep == Keep::All || self.rescale != Rescale::L1)
    }

    /// Values of the merged tensor from the number `first` on, of the base and those that came of it.
    pub(super) fn merge(
        &self,
        tensors: &[Vec<f32>],
        shares: &[Share],
        lambda: f64,
        first: usize,
    ) -> Vec<f32> {
        let (base, tuned) = (&tensors[0], &tensors[1..]);
        let parts: Vec<(&[f32], Kept, f64)> = tuned
            .iter()
            .zip(shares)
            .map(|(tuned, share)| {
                (tuned.as_slice(), self.kept(base, tuned, share, first), share.weight)
            })
            .collect();
        // A model's part of a value.
        let term = |(tuned, kept, weight): &(&[f32], Kept, f64), place: usize| {
            let (x, b) = (tuned[place], base[place]);
            match kept.has(place, x - b) {
                true => weight * (kept.factor * (f64::from(x) - f64::from(b))),
                false => 0.0,
            }
        };
        let whole: f64 = shares.iter().map(|share| share.weight).sum();
        values(base.len(), |place| {
            let sum: f64 = parts.iter().map(|part| term(part, place)).sum();
            let (mut mixed, mut divisor) = (sum, whole);
            if self.elect {
                let positive = sum >= 0.0;
                (mixed, divisor) = (0.0, 0.0);
                for part in &parts {
                    let term = term(part, place);
                    if term != 0.0 && (term > 0.0) == positive {
                        (mixed, divisor) = (mixed + term, divisor + part.2);
                    }
                }
            }
            // Nothing may be left to divide.
            if self.normalize && divisor != 0.0 {
                mixed /= divisor;
            }
            f64::from(base[place]) + lambda * mixed
        })
    }

    /// Which changes of a tensor stay.
    fn kept(&self, base: &[f32], tuned: &[f32], share: &Share, first: usize) -> Kept {
        let (count, density) = (base.len(), share.density);
        let magnitude = |place: usize| (tuned[place] - base[place]).abs();
        let largest = |count: usize| (0..count).into_par_iter().map(magnitude).collect();
        let which = match self.keep {
            _ if self.keep == Keep::All || density >= 1.0 => Which::All,
            _ if density <= 0.0 || count == 0 => Which::None,
            Keep::All => Which::All,
            Keep::Random => Which::Drawn(share.key, first as u64, density),
            Keep::Largest => match share.threshold {
                Some(least) => Which::From(least),
                None => {
                    let stay = ((density * count as f64) as usize).max(1);
                    Which::Marked(ranked(largest(count), count - stay, count))
                }
            },
            Keep::Middle => {
                let stay = (density * count as f64) as usize;
                let above = (share.gamma * count as f64) as usize;
                // Fewer of the largest go where too few would be left.
                let below = count.saturating_sub(stay + above);
                Which::Marked(ranked(largest(count), below, below + stay))
            }
        };
        let mut kept = Kept { which, factor: 1.0 };
        if matches!(kept.which, Which::All | Which::None) {
            return kept;
        }
        kept.factor = match self.rescale {
            Rescale::None => 1.0,
            Rescale::Density => 1.0 / density,
            Rescale::L1 => {
                let [before, after] = sums(count, |place| {
                    let whole = f64::from(magnitude(place));
                    let has = kept.has(place, tuned[place] - base[place]);
                    [whole, if has { whole } else { 0.0 }]
                });
                if before.min(after) < LEAST_NORM { 1.0 } else { before / after }
            }
        };
        kept
    }
}

/// Sums of magnitudes below this are not scaled to others.
const LEAST_NORM: f64 = 1e-7;

/// Which of some magnitudes have a rank from `from` to below `to`, the smallest first, equal ones by their places.
fn ranked(magnitudes: Vec<f32>, from: usize, to: usize) -> Vec<bool> {
    if from >= to {
        return vec![false; magnitudes.len()];
    }
    let mut sorted = magnitudes.clone();
    let mut of_rank = |rank: usize| *sorted.select_nth_unstable_by(rank, f32::total_cmp).1;
    let (low, high) = (of_rank(from), of_rank(to - 1));
    let below = |bound: f32| magnitudes.par_iter().filter(|value| **value < bound).count();
    // Ranks of the next values that are equal to a bound.
    let (mut of_low, mut of_high) = (below(low), below(high));
    let mut next = |value: f32| {
        let rank = if value == low { &mut of_low } else { &mut of_high };
        *rank += 1;
        *rank - 1
    };
    let within = |value: &f32| match *value {
        value if value < low || value > high => false,
        value if value == low || value == high => (from..to).contains(&next(value)),
        _ => true,
    };
    magnitudes.iter().map(within).collect()
}

/// What the draws of a model's tensor begin with.
pub(super) fn key(seed: u64, model: usize, tensor: &str) -> u64 {
    Random::seed_of(mixed(seed.wrapping_add(model as u64)), tensor)
}

/// A number in [0, 1) of 53 bits that follows from a key and a place alone (SplitMix64, Steele et al. 2014, as a counter).
fn uniform(key: u64, place: u64) -> f64 {
    let word = mixed(key.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (word >> 11) as f64 / (1u64 << 53) as f64
}

fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The smallest magnitude among the `stay` largest of many numbers that come in parts, in two passes over them: counted by the
/// upper halves of their bits, then those of the half in question by the lower ones.
pub(super) struct Largest {
    counts: Vec<u64>,
    /// The upper half in which it lies, and how many numbers of that half stay.
    upper: Option<(u32, u64)>,
}

impl Largest {
    /// Before the first pass.
    pub(super) fn new() -> Self {
        Self { counts: vec![0; 1 << 16], upper: None }
    }

    /// Counts magnitudes.
    pub(super) fn add(&mut self, magnitudes: impl Iterator<Item = f32>) {
        for magnitude in magnitudes {
            let bits = magnitude.to_bits();
            match self.upper {
                None => self.counts[(bits >> 16) as usize] += 1,
                Some((upper, _)) if bits >> 16 == upper => {
                    self.counts[(bits & 0xffff) as usize] += 1;
                }
                Some(_) => {}
            }
        }
    }

    /// Numbers of the first pass.
    pub(super) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Ends the first pass: so many stay.
    pub(super) fn narrow(&mut self, stay: u64) {
        self.upper = Some(self.place(stay));
        self.counts.fill(0);
    }

    /// Ends the second pass.
    pub(super) fn least(&self) -> f32 {
        let Some((upper, stay)) = self.upper else { return 0.0 };
        let (lower, _) = self.place(stay);
        f32::from_bits(upper << 16 | lower)
    }

    /// The bin, from the largest down, in which the number of this rank lies, and its rank there, from 1.
    fn place(&self, stay: u64) -> (u32, u64) {
        let mut left = stay.max(1);
        for (bin, count) in self.counts.iter().enumerate().rev() {
            if left <= *count {
                return (bin as u32, left);
            }
            left -= count;
        }
        (0, left)
    }
}
