//! The weights that stay, solved for again: of all rows with a mask the one whose outputs are nearest to the dense row's.
//!
//! With S the columns that stay, (G_SS + c I) w'_S = (G w)_S + c w_S: least squares over the calibration's tokens, drawn towards the old
//! weights by c, a share of the mean of G's diagonal. One Cholesky factor of k^3 / 3 for each row, k columns that stay: rows
//! hardly ever have equal masks.

use rayon::prelude::*;

use crate::methods::linalg::{NotPositive, Part, cholesky, cholesky_solve, product};
use crate::methods::obs::ATTEMPTS;

/// Solves again. `weights` are the dense ones, `target` what the outputs should be: G w for the outputs of the dense weights on the
/// same inputs, (rows, columns). Returns the weights and the largest damping that a row took; an error where 10^5 times what was asked
/// is not enough for one.
pub fn refit(
    weights: &[f32],
    columns: usize,
    (gram, target): (&[f64], &[f64]),
    kept: &[bool],
    damping: f64,
) -> Result<(Vec<f32>, f64), NotPositive> {
    let n = columns.max(1);
    let mean = (0..n).map(|i| gram[i * n + i]).sum::<f64>() / n as f64;
    let mut solved = vec![0.0f32; weights.len()];
    let rows = solved.par_chunks_mut(n).zip(weights.par_chunks(n));
    let rows = rows.zip(kept.par_chunks(n)).zip(target.par_chunks(n));
    let most = rows
        .map_init(Vec::new, |factor, (((solved, w), kept), target)| {
            row(solved, w, (gram, target), kept, (damping, mean), factor)
        })
        .try_reduce(|| damping, |a, b| Ok(a.max(b)))?;
    Ok((solved, most))
}

/// What the outputs of weights on inputs with this Gram matrix are to the right-hand side of [`refit`]: W G.
pub fn outputs(weights: &[f32], columns: usize, gram: &[f64]) -> Vec<f64> {
    let w: Vec<f64> = weights.iter().map(|value| f64::from(*value)).collect();
    let rows = w.len() / columns.max(1);
    let of = |rows: usize| Part { of: columns, at: (0, 0), size: (rows, columns) };
    let mut result = vec![0.0; w.len()];
    product((&mut result, of(rows)), (&w, of(rows)), (gram, of(columns)), false);
    result
}

/// One row; the damping it took.
fn row(
    solved: &mut [f32],
    w: &[f32],
    (gram, target): (&[f64], &[f64]),
    kept: &[bool],
    (damping, mean): (f64, f64),
    factor: &mut Vec<f64>,
) -> Result<f64, NotPositive> {
    let n = w.len();
    let stay: Vec<usize> = (0..n).filter(|c| kept[*c]).collect();
    let k = stay.len();
    let (mut damping, mut attempt) = (damping, 1);
    loop {
        let more = damping * mean;
        factor.clear();
        for &i in &stay {
            let line = &gram[i * n..(i + 1) * n];
            factor.extend(stay.iter().map(|&j| line[j]));
        }
        for place in 0..k {
            let diagonal = &mut factor[place * (k + 1)];
            // An input that is always 0 leaves its weight as it is.
            *diagonal += if *diagonal == 0.0 { 1.0 } else { more };
        }
        let right = |&i: &usize| {
            let own = if gram[i * (n + 1)] == 0.0 { 1.0 } else { more };
            target[i] + own * f64::from(w[i])
        };
        let mut x: Vec<f64> = stay.iter().map(right).collect();
        let factored = cholesky(factor, k);
        if factored.is_ok() {
            cholesky_solve(factor, k, &mut x);
            if x.iter().all(|value| value.is_finite()) {
                for (&i, value) in stay.iter().zip(x) {
                    solved[i] = value as f32;
                }
                return Ok(damping);
            }
        }
        if attempt == ATTEMPTS {
            let pivot = factored.err().map_or(0, |bad| stay[bad.pivot]);
            return Err(NotPositive { pivot });
        }
        (damping, attempt) = (10.0 * damping.max(1e-4), attempt + 1);
    }
}
