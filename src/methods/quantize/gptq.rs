//! GPTQ (Frantar et al. 2022, arXiv 2210.17323, algorithm 1): columns are rounded one after the other, and what a column loses the
//! columns that are not rounded yet make up for ([`obs`]). A group's grid is found when its first column comes up, of its
//! weights as they are by then.

use super::fit::{Fitting, finite};
use super::levels::largest;
use crate::error::Result;
use crate::methods::linalg::NotPositive;
use crate::methods::obs::{self, Columns, factored};
use crate::tensor::Packed;

/// How GPTQ solves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// What is added to the diagonal of the Gram matrix, as a share of its mean.
    pub damping: f64,
    /// Columns that are gone through before the rest of the matrix makes up for them; spans of a grid are never cut.
    pub block: usize,
    /// The columns whose inputs are largest first, on grids that are all found before (GPTQ's activation order with static groups).
    /// Codes stand where they would without it.
    pub by_activation: bool,
}

/// What GPTQ makes of a matrix.
#[derive(Debug)]
pub struct Solved {
    /// The codes.
    pub packed: Packed,
    /// The damping that made the Gram matrix positive definite: what was asked, or more.
    pub damping: f64,
}

/// Rounds a matrix, given the Gram matrix of its inputs. The inner error: that is not positive definite with a damping 10^5 times
/// what was asked. `name` is the tensor's, for errors.
pub fn solve(
    weight: &Packed,
    gram: &[f64],
    fitting: &Fitting,
    options: Options,
    name: &str,
) -> Result<Result<Solved, NotPositive>> {
    let (rows, n) = (weight.rows, weight.columns);
    let values = weight.to_f32();
    finite(&values, n, name)?;
    let diagonal: Vec<f64> = (0..n).map(|i| gram[i * (n + 1)]).collect();
    let order = options.by_activation.then(|| {
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]).then(a.cmp(b)));
        order
    });
    let factor = match &order {
        None => factored(gram, n, options.damping),
        Some(order) => factored(&turned(gram, n, order), n, options.damping),
    };
    let (factor, damping) = match factor {
        Ok(found) => found,
        Err(bad) => return Ok(Err(bad)),
    };
    let importance: Vec<f32> = diagonal.iter().map(|value| *value as f32).collect();
    let place = |column: usize| order.as_ref().map_or(column, |order| order[column]);
    let mut w = Vec::with_capacity(values.len());
    let whole = largest(&values);
    let mut lines: Vec<Packed> = (0..rows).map(|_| fitting.line(n, whole)).collect();
    for (row, line) in values.chunks(n.max(1)).zip(&mut lines) {
        w.extend((0..n).map(|column| f64::from(row[place(column)])));
        if order.is_some() {
            let span = fitting.span(n);
            for first in (0..n).step_by(span) {
                let places = first..(first + span).min(n);
                fitting.fit(line, first, &row[places.clone()], Some(&importance[places]));
            }
        }
    }
    let span = fitting.span(n);
    let columns = Rounded { fitting, importance: &importance, order: order.as_deref() };
    let block = options.block.max(1).next_multiple_of(span);
    obs::solve(&columns, &mut w, n, &factor, block, &mut lines);
    let packed = fitting.joined(lines, (rows, n), name)?;
    Ok(Ok(Solved { packed, damping }))
}

/// A symmetric matrix with rows and columns in another order.
fn turned(gram: &[f64], n: usize, order: &[usize]) -> Vec<f64> {
    order.iter().flat_map(|i| order.iter().map(move |j| gram[i * n + j])).collect()
}

/// Weights become the nearest values of their grids. Of a row its grids and codes are kept.
struct Rounded<'a> {
    fitting: &'a Fitting,
    importance: &'a [f32],
    order: Option<&'a [usize]>,
}

impl Columns for Rounded<'_> {
    type Row = Packed;

    fn replace(&self, line: &mut Packed, weights: &[f64], column: usize) -> f64 {
        let n = weights.len();
        let span = self.fitting.span(n);
        let place = match self.order {
            Some(order) => order[column],
            None => {
                if column.is_multiple_of(span) {
                    let end = (column + span).min(n);
                    let values: Vec<f32> = weights[column..end].iter().map(|w| *w as f32).collect();
                    self.fitting.fit(line, column, &values, Some(&self.importance[column..end]));
                }
                column
            }
        };
        let format = self.fitting.format();
        let grid = line.grid(0, place / format.group_columns(n));
        let code = self.fitting.code(weights[column] as f32, grid);
        line.set_code(0, place, code);
        f64::from(format.ty.decode(code, grid.0, grid.1))
    }
}
