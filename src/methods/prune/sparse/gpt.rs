//! SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1): what a weight that goes would have given is made up for by
//! the weights behind it in its row ([`obs`]).

use rayon::prelude::*;

use super::{Pattern, count, drop_lowest};
use crate::error::Result;
use crate::methods::linalg::NotPositive;
use crate::methods::obs::{self, Columns, Gram};

/// How SparseGPT solves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// What is added to the diagonal of the Gram matrix, as a share of its mean.
    pub damping: f64,
    /// Columns that are masked at once, over all rows.
    pub block: usize,
    /// Which weights of a block of columns compete.
    pub pattern: Pattern,
    /// The share that goes.
    pub ratio: f64,
}

/// What SparseGPT leaves of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Solved {
    /// The weights, zeros where `kept` says so.
    pub weights: Vec<f32>,
    /// The mask.
    pub kept: Vec<bool>,
    /// The damping that made the Gram matrix positive definite: what was asked, or more.
    pub damping: f64,
}

/// Prunes a matrix. The inner error: its Gram matrix is not positive definite with a damping 10^5 times what was asked.
pub fn solve(
    weights: &[f32],
    columns: usize,
    gram: &[f64],
    options: Options,
) -> Result<Result<Solved, NotPositive>> {
    let n = columns;
    let factor = match Gram::of(gram, n).factored(options.damping, options.block)? {
        Ok(factor) => factor,
        Err(bad) => return Ok(Err(bad)),
    };
    let mut w: Vec<f64> = weights.iter().map(|value| f64::from(*value)).collect();
    // An input that is always 0 needs no weight.
    for dead in (0..n).filter(|i| gram[i * n + i] == 0.0) {
        w.iter_mut().skip(dead).step_by(n).for_each(|value| *value = 0.0);
    }
    let block = match options.pattern {
        Pattern::Groups { of, .. } => options.block.max(1).next_multiple_of(of),
        _ => options.block.max(1),
    };
    let mut kept = vec![true; weights.len()];
    let mut lines: Vec<&mut [bool]> = kept.chunks_mut(n.max(1)).collect();
    let Options { pattern, ratio, .. } = options;
    let masking = Masking { n, diagonal: &factor.diagonal, pattern, ratio };
    obs::solve(&masking, &mut w, &factor, block, &mut lines)?;
    let weights = w.iter().map(|value| *value as f32).collect();
    Ok(Ok(Solved { weights, kept, damping: factor.damping }))
}

/// Which weights of a matrix stay, as its columns are gone through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Masking<'a> {
    /// Columns of the matrix.
    pub n: usize,
    /// Of the factor of [`obs`].
    pub diagonal: &'a [f64],
    /// Which weights compete.
    pub pattern: Pattern,
    /// The share that goes.
    pub ratio: f64,
}

impl Masking<'_> {
    /// Chooses the mask of a run of columns of all rows, but that of groups, which is chosen group by group.
    pub fn begin<'r>(
        &self,
        w: &[f64],
        (start, width): (usize, usize),
        rows: impl ExactSizeIterator<Item = &'r mut [bool]>,
    ) {
        if matches!(self.pattern, Pattern::Groups { .. }) {
            return;
        }
        let mut stay = vec![true; rows.len() * width];
        choose(w, (self.n, start, width), self, &mut stay);
        for (row, stay) in rows.zip(stay.chunks(width)) {
            row[start..start + width].copy_from_slice(stay);
        }
    }

    /// Whether the weight of `column` stays, whose turn it is; the mask of its group is chosen with the group's first.
    pub fn keeps(&self, row: &mut [bool], weights: &[f64], column: usize) -> bool {
        if let Pattern::Groups { of, .. } = self.pattern
            && column.is_multiple_of(of)
        {
            self.group(weights, column, &mut row[column..column + of]);
        }
        row[column]
    }

    /// Which weights of some columns, whose turn is yet to come, would stay as they are now.
    pub fn likely(
        &self,
        row: &[bool],
        weights: &[f64],
        columns: std::ops::Range<usize>,
    ) -> Vec<bool> {
        let mut stay = row[columns.clone()].to_vec();
        if let Pattern::Groups { of, .. } = self.pattern {
            // Spans of whole groups, or parts of one.
            for first in (columns.start.next_multiple_of(of)..columns.end).step_by(of) {
                let mut group = vec![true; of];
                self.group(weights, first, &mut group);
                let end = columns.end.min(first + of);
                stay[first - columns.start..end - columns.start]
                    .copy_from_slice(&group[..end - first]);
            }
        }
        stay
    }

    fn group(&self, weights: &[f64], first: usize, stay: &mut [bool]) {
        let Pattern::Groups { keep, of } = self.pattern else { return };
        let score = |c: usize| saliency(weights[c], self.diagonal[c]);
        let scores: Vec<f64> = (first..first + of).map(score).collect();
        drop_lowest(&scores, of - keep, stay);
    }
}

/// Weights become 0, or stay as they are. Of a row is kept which stay.
impl<'a> Columns for Masking<'a> {
    type Row = &'a mut [bool];

    fn begin(&self, w: &[f64], start: usize, width: usize, rows: &mut [Self::Row]) {
        Masking::begin(self, w, (start, width), rows.iter_mut().map(|row| &mut **row));
    }

    fn replace(&self, row: &mut Self::Row, weights: &[f64], column: usize) -> f64 {
        if self.keeps(row, weights, column) { weights[column] } else { 0.0 }
    }
}

/// What it costs to lose a weight, if all behind it make up for it: w^2 / U_cc^2 (section 3.3 there), where U_cc is 1 / L_cc.
fn saliency(weight: f64, diagonal: f64) -> f64 {
    (weight * diagonal).powi(2)
}

/// The mask of a block of columns, but that of groups, which is chosen group by group.
fn choose(
    w: &[f64],
    (n, start, width): (usize, usize, usize),
    masking: &Masking<'_>,
    stay: &mut [bool],
) {
    let Masking { diagonal, pattern, ratio, .. } = *masking;
    let scores_of = |row: &[f64]| -> Vec<f64> {
        let places = start..start + width;
        places.map(|c| saliency(row[c], diagonal[c])).collect()
    };
    match pattern {
        Pattern::Groups { .. } => {}
        Pattern::Row => {
            let go = count(width, ratio);
            w.par_chunks(n).zip(stay.par_chunks_mut(width)).for_each(|(row, stay)| {
                drop_lowest(&scores_of(row), go, stay);
            });
        }
        Pattern::Tensor => {
            let scores: Vec<Vec<f64>> = w.par_chunks(n).map(scores_of).collect();
            drop_lowest(&scores.concat(), count(stay.len(), ratio), stay);
        }
    }
}
