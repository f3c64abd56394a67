//! Columns from the first to the last: what a weight loses, those behind it in its row make up for, by the inverse of the Gram
//! matrix of the inputs (the optimal brain surgeon, as SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1,
//! and GPTQ, Frantar et al. 2022, arXiv 2210.17323, algorithm 1, walk through a matrix). What a weight becomes is theirs.

use rayon::prelude::*;

use super::linalg::{NotPositive, Part, inverse_factor, product};

/// How often a matrix is tried, with ten times the damping each time, before it is given up.
pub const ATTEMPTS: u32 = 6;

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

/// The factor of the damped Gram matrix's inverse ([`inverse_factor`]), with more damping, tenfold each time, while it is not
/// positive definite; and the damping that was enough.
pub fn factored(gram: &[f64], n: usize, damping: f64) -> Result<(Vec<f64>, f64), NotPositive> {
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

/// Which weights become what.
pub trait Columns: Sync {
    /// What is kept of a row while its weights are gone through.
    type Row: Send;

    /// Called before each run of columns from `start`, `width` of them, with all weights as they are by then.
    fn begin(&self, _w: &[f64], _start: usize, _width: usize, _rows: &mut [Self::Row]) {}

    /// The new value of the weight of `column`, given its row as it is by then.
    fn replace(&self, row: &mut Self::Row, weights: &[f64], column: usize) -> f64;
}

/// Goes through a matrix w (rows, n), `block` columns at a time, by the factor U (n, n) of [`factored`]: a weight in column c that
/// loses e takes e / U_cc times U's row c from those behind it. `rows`: one of each row.
pub fn solve<C: Columns>(
    columns: &C,
    w: &mut [f64],
    n: usize,
    factor: &[f64],
    block: usize,
    rows: &mut [C::Row],
) {
    let count = rows.len();
    for start in (0..n).step_by(block.max(1)) {
        let width = block.max(1).min(n - start);
        columns.begin(w, start, width, rows);
        let mut errors = vec![0.0; count * width];
        let lines = w.par_chunks_mut(n).zip(rows.par_iter_mut());
        lines.zip(errors.par_chunks_mut(width)).for_each(|((row, state), errors)| {
            let end = start + width;
            for column in start..end {
                let line = &factor[column * n..(column + 1) * n];
                let new = columns.replace(state, row, column);
                let error = (row[column] - new) / line[column];
                row[column] = new;
                errors[column - start] = error;
                if error != 0.0 {
                    for (w, u) in row[column + 1..end].iter_mut().zip(&line[column + 1..end]) {
                        *w -= error * u;
                    }
                }
            }
        });
        let behind = start + width;
        if behind < n {
            let rest = |at, size| Part { of: n, at, size };
            product(
                (w, rest((0, behind), (count, n - behind))),
                (&errors, Part { of: width, at: (0, 0), size: (count, width) }),
                (factor, rest((start, behind), (width, n - behind))),
                true,
            );
        }
    }
}
