//! SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1): columns from the first to the last; what a weight that
//! goes would have given is made up for by the weights behind it in its row, by the inverse of the Gram matrix.

use rayon::prelude::*;

use super::{Pattern, count, drop_lowest};
use crate::methods::linalg::{NotPositive, Part, inverse_factor, product};

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

/// How often a matrix is tried, with ten times the damping each time, before it is given up.
pub(super) const ATTEMPTS: u32 = 6;

/// Gram matrix plus damping: `damping` of the mean of the diagonal. An input that is always 0 gets 1, so that nothing is divided by it.
pub fn damped(gram: &[f64], n: usize, damping: f64) -> Vec<f64> {
    let mut h = gram.to_vec();
    let mean = (0..n).map(|i| gram[i * n + i]).sum::<f64>() / n.max(1) as f64;
    for i in 0..n {
        let diagonal = &mut h[i * n + i];
        *diagonal += if *diagonal == 0.0 { 1.0 } else { damping * mean };
    }
    h
}

/// The factor of the damped Gram matrix's inverse, with more damping, tenfold each time, while it is not positive definite.
fn factored(gram: &[f64], n: usize, damping: f64) -> Result<(Vec<f64>, f64), NotPositive> {
    let mut damping = damping;
    let mut attempt = 1;
    loop {
        match inverse_factor(&damped(gram, n, damping), n) {
            Ok(factor) if factor.iter().all(|value| value.is_finite()) => {
                return Ok((factor, damping));
            }
            Err(error) if attempt == ATTEMPTS => return Err(error),
            Ok(_) if attempt == ATTEMPTS => return Err(NotPositive { pivot: 0 }),
            _ => (damping, attempt) = (10.0 * damping.max(1e-4), attempt + 1),
        }
    }
}

/// Prunes a matrix. An error where its Gram matrix is not positive definite with a damping 10^5 times what was asked.
pub fn solve(
    weights: &[f32],
    columns: usize,
    gram: &[f64],
    options: Options,
) -> Result<Solved, NotPositive> {
    let (n, rows) = (columns, weights.len() / columns.max(1));
    let (factor, damping) = factored(gram, n, options.damping)?;
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
    for start in (0..n).step_by(block) {
        let width = block.min(n - start);
        let mut stay = vec![true; rows * width];
        choose(&w, (n, start, width), &factor, &options, &mut stay);
        let mut errors = vec![0.0; rows * width];
        let lines = w.par_chunks_mut(n).zip(stay.par_chunks_mut(width));
        lines.zip(errors.par_chunks_mut(width)).for_each(|((row, stay), errors)| {
            for c in 0..width {
                let column = start + c;
                if let Pattern::Groups { keep, of } = options.pattern
                    && c % of == 0
                {
                    let score = |c: usize| saliency(row[start + c], factor[(start + c) * (n + 1)]);
                    let scores: Vec<f64> = (c..c + of).map(score).collect();
                    drop_lowest(&scores, of - keep, &mut stay[c..c + of]);
                }
                let line = &factor[column * n..(column + 1) * n];
                let value = row[column];
                let new = if stay[c] { value } else { 0.0 };
                let error = (value - new) / line[column];
                row[column] = new;
                errors[c] = error;
                if error != 0.0 {
                    let end = start + width;
                    for (w, u) in row[column + 1..end].iter_mut().zip(&line[column + 1..end]) {
                        *w -= error * u;
                    }
                }
            }
        });
        for (kept, stay) in kept.chunks_mut(n).zip(stay.chunks(width)) {
            kept[start..start + width].copy_from_slice(stay);
        }
        let behind = start + width;
        if behind < n {
            let rest = |at, size| Part { of: n, at, size };
            product(
                (&mut w, rest((0, behind), (rows, n - behind))),
                (&errors, Part { of: width, at: (0, 0), size: (rows, width) }),
                (&factor, rest((start, behind), (width, n - behind))),
                true,
            );
        }
    }
    Ok(Solved { weights: w.iter().map(|value| *value as f32).collect(), kept, damping })
}

/// What it costs to lose a weight, if all behind it make up for it: w^2 / U_cc^2 (section 3.3 there).
fn saliency(weight: f64, diagonal: f64) -> f64 {
    (weight / diagonal).powi(2)
}

/// The mask of a block of columns, but that of groups, which is chosen group by group.
fn choose(
    w: &[f64],
    (n, start, width): (usize, usize, usize),
    factor: &[f64],
    options: &Options,
    stay: &mut [bool],
) {
    let scores_of = |row: &[f64]| -> Vec<f64> {
        let places = start..start + width;
        places.map(|c| saliency(row[c], factor[c * (n + 1)])).collect()
    };
    match options.pattern {
        Pattern::Groups { .. } => {}
        Pattern::Row => {
            let go = count(width, options.ratio);
            w.par_chunks(n).zip(stay.par_chunks_mut(width)).for_each(|(row, stay)| {
                drop_lowest(&scores_of(row), go, stay);
            });
        }
        Pattern::Tensor => {
            let scores: Vec<Vec<f64>> = w.par_chunks(n).map(scores_of).collect();
            drop_lowest(&scores.concat(), count(stay.len(), options.ratio), stay);
        }
    }
}
