//! Sparsity: single weights become zero, as many as a ratio says, or N of each M consecutive inputs stay. Scores of magnitude and of
//! Wanda (Sun et al. 2023, arXiv 2306.11695), SparseGPT's solver ([`gpt`]), and two improvements that need nothing but the
//! Gram matrix of the inputs: [`swaps`] of the mask and a [`refit`] of what stays.
//!
//! A matrix W is (rows, columns), output by input features, row by row; a mask says of each weight whether it stays. G = X^T X is
//! the (columns, columns) Gram matrix of the inputs X (tokens, columns). What a row loses, d, costs ||X d||^2 = d^T G d.

pub mod allocate;
pub mod gpt;
pub mod refit;
pub mod swaps;

use rayon::prelude::*;

use crate::methods::BadField;
use crate::tensor::{Packed, Scale, WeightFormat};

/// Among which weights of a matrix the least important are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// All of the matrix.
    Tensor,
    /// Those of a row.
    Row,
    /// Each `of` consecutive inputs of a row, of which `keep` stay.
    Groups {
        /// N of N:M.
        keep: usize,
        /// M of N:M.
        of: usize,
    },
}

impl Pattern {
    /// The groups that a text asks for: N:M, N from 1 and less than M.
    pub fn groups(text: &str) -> Option<Self> {
        let (keep, of) = text.split_once(':')?;
        let (keep, of) = (keep.parse().ok()?, of.parse().ok()?);
        (keep > 0 && keep < of).then_some(Self::Groups { keep, of })
    }

    /// The share of weights that goes, where so much was asked for: that of groups is their own.
    pub fn share(self, ratio: Option<f64>) -> Result<f64, BadField> {
        if let Self::Groups { keep, of } = self {
            let own = 1.0 - keep as f64 / of as f64;
            return match ratio {
                Some(ratio) if (ratio - own).abs() > 1e-3 => {
                    let expected = format!("none beside {keep}:{of}, of which {own:.3} go");
                    Err(BadField::new("ratio", expected, ratio))
                }
                _ => Ok(own),
            };
        }
        let expected = "more than 0 and less than 1";
        match ratio {
            Some(ratio) if ratio > 0.0 && ratio < 1.0 => Ok(ratio),
            None => Err(BadField::new("ratio", format!("{expected}, or a pattern N:M"), "none")),
            Some(ratio) => {
                let found = match (1.0..100.0).contains(&ratio) {
                    true => format!("{ratio}; {ratio} % is {}", ratio / 100.0),
                    false => ratio.to_string(),
                };
                Err(BadField::new("ratio", expected, found))
            }
        }
    }
}

/// How many of so many weights go: the whole part of the share.
pub fn count(of: usize, ratio: f64) -> usize {
    // 0.7 times 10 is 7, whatever binary fractions make of it.
    ((of as f64 * ratio + 1e-9).floor() as usize).min(of)
}

/// Wanda's scores |w| * ||x||_2 by the sum of squares of each input (2306.11695, equation 1); without sums |w|.
pub fn scores(weights: &[f32], columns: usize, squares: Option<&[f32]>) -> Vec<f32> {
    let Some(squares) = squares else {
        return weights.iter().map(|w| w.abs()).collect();
    };
    let norms: Vec<f32> = squares.iter().map(|sum| sum.max(0.0).sqrt()).collect();
    let mut scores = vec![0.0; weights.len()];
    let lines = scores.par_chunks_mut(columns.max(1)).zip(weights.par_chunks(columns.max(1)));
    lines.for_each(|(scores, weights)| {
        for ((score, w), norm) in scores.iter_mut().zip(weights).zip(&norms) {
            *score = w.abs() * norm;
        }
    });
    scores
}

/// The mask that takes the lowest scores, of equal ones the first. The ratio counts in [`Pattern::Tensor`] and [`Pattern::Row`].
pub fn keep_highest(scores: &[f32], columns: usize, pattern: Pattern, ratio: f64) -> Vec<bool> {
    let mut kept = vec![true; scores.len()];
    let run = match pattern {
        Pattern::Tensor => scores.len(),
        Pattern::Row => columns,
        Pattern::Groups { of, .. } => of,
    };
    let go = match pattern {
        Pattern::Groups { keep, of } => of - keep,
        _ => count(run, ratio),
    };
    let run = run.max(1);
    kept.par_chunks_mut(run).zip(scores.par_chunks(run)).for_each(|(kept, scores)| {
        drop_lowest(scores, go, kept);
    });
    kept
}

/// Takes the `go` lowest scores out of a mask, of equal ones the first.
fn drop_lowest<T: Copy + PartialOrd>(scores: &[T], go: usize, kept: &mut [bool]) {
    if go == 0 {
        return;
    }
    if go >= scores.len() {
        kept.fill(false);
        return;
    }
    // Scores are not negative and not NaN.
    let order = |a: &T, b: &T| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal);
    let mut sorted = scores.to_vec();
    let (below, threshold, _) = sorted.select_nth_unstable_by(go, order);
    let threshold = *threshold;
    let mut ties = go - below.iter().filter(|score| **score < threshold).count();
    for (score, kept) in scores.iter().zip(kept) {
        if *score < threshold {
            *kept = false;
        } else if *score == threshold && ties > 0 {
            (*kept, ties) = (false, ties - 1);
        }
    }
}

/// Zeros where the mask says so.
pub fn masked(weights: &[f32], kept: &[bool]) -> Vec<f32> {
    weights.iter().zip(kept).map(|(w, kept)| if *kept { *w } else { 0.0 }).collect()
}

/// The code that stands for 0 whatever its group's scale, if there is one.
pub fn zero_code(format: WeightFormat) -> Option<u32> {
    let ty = format.ty;
    if ty.sparsity.is_some() {
        // It has no place for zeros but its own.
        return None;
    }
    match ty.scale {
        Scale::None => Some(0),
        Scale::Symmetric => Some(1 << (ty.bits - 1)),
        Scale::SuperSymmetric(_) if ty.is_affine() => Some(1 << (ty.bits - 1)),
        Scale::Level | Scale::PowerOfTwo | Scale::TwoLevel | Scale::SuperSymmetric(_) => {
            (0..ty.codes()).find(|code| ty.level(*code) == 0.0)
        }
        Scale::ZeroPoint | Scale::Offset | Scale::SuperOffset(_) => None,
    }
}

/// A matrix with the codes of what stays, and those of 0.
pub fn with_zeros(weight: &Packed, kept: &[bool], zero: u32) -> Packed {
    let mut new = Packed::zeros(weight.format, weight.rows, weight.columns);
    new.scales.clone_from(&weight.scales);
    let words = weight.format.code_words_per_row(weight.columns);
    let lines = new.codes.chunks(words.max(1)).count();
    debug_assert_eq!(lines, weight.rows);
    for row in 0..weight.rows {
        for column in 0..weight.columns {
            let stays = kept[row * weight.columns + column];
            new.set_code(row, column, if stays { weight.code(row, column) } else { zero });
        }
    }
    new
}
