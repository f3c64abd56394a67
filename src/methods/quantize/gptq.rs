//! GPTQ (Frantar et al. 2022, arXiv 2210.17323, algorithm 1): columns are rounded one after the other, and what a column loses the
//! columns that are not rounded yet make up for ([`obs`]). A group's grid is found when its first column comes up, of its
//! weights as they are by then. Weights may become 0 on the way, what is left of a row making up for both (SparseGPT, Frantar and
//! Alistarh 2023, arXiv 2301.00774, section 3.5).

use std::ops::Range;

use rayon::prelude::*;

use super::fit::{Fitting, finite};
use super::levels::largest;
use crate::device::Device;
use crate::error::Result;
use crate::methods::linalg::NotPositive;
use crate::methods::obs::{self, Columns, Factor, Gram};
use crate::methods::prune::sparse::Pattern;
use crate::methods::prune::sparse::gpt::Masking;
use crate::tensor::{Packed, Scale, WeightType};

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
    /// Which weights become 0 beside; with `by_activation` none.
    pub sparse: Option<Sparse>,
}

/// Weights that become 0 while the others are rounded, chosen as SparseGPT does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sparse {
    /// Which weights compete.
    pub pattern: Pattern,
    /// The share that goes.
    pub ratio: f64,
}

impl Options {
    /// Columns that blocks never cut, for grids of `span`: whole groups of a pattern, too.
    fn uncut(self, span: usize) -> usize {
        match self.sparse.map(|sparse| sparse.pattern) {
            Some(Pattern::Groups { of, .. }) => {
                let span = span.max(1);
                let multiples = (1..=of).map(|times| times * span);
                multiples.clone().find(|columns| columns.is_multiple_of(of)).unwrap_or(span * of)
            }
            _ => span,
        }
    }
}

/// Whether 0 is a value of every grid of a type.
pub fn has_zero(ty: &WeightType) -> bool {
    match ty.scale {
        Scale::Offset | Scale::SuperOffset(_) => false,
        Scale::ZeroPoint => true,
        _ => (0..ty.codes().min(1 << 16)).any(|code| ty.decode(code, 1.0, 0.0) == 0.0),
    }
}

/// What GPTQ makes of a matrix.
#[derive(Debug)]
pub struct Solved {
    /// The codes.
    pub packed: Packed,
    /// ||X (W - W')^T||^2 / ||X W^T||^2 over the tokens whose Gram matrix was used.
    pub error: f64,
    /// The share of weights that were made 0.
    pub gone: f64,
}

/// What is known of the inputs of layers that share them.
#[derive(Debug)]
pub struct Prepared<'a> {
    /// Sums of squares, in the columns' own order.
    importance: Vec<f32>,
    /// The order in which columns are gone through, where it is not their own.
    order: Option<Vec<usize>>,
    gram: Gram<'a>,
    factor: Factor<'a>,
    block: usize,
    sparse: Option<Sparse>,
}

impl<'a> Prepared<'a> {
    /// From the Gram matrix of the inputs, f32 (n, n), for grids of `span` columns. The inner error: that is not positive definite with
    /// a damping 10^5 times what was asked.
    pub fn new(
        sums: &[f32],
        n: usize,
        span: usize,
        options: Options,
        device: &'a Device,
    ) -> Result<Result<Self, NotPositive>> {
        let importance: Vec<f32> = (0..n).map(|i| sums[i * (n + 1)]).collect();
        let order = options.by_activation.then(|| {
            let mut order: Vec<usize> = (0..n).collect();
            let of = |i: usize| importance[i];
            order.sort_by(|a, b| of(*b).total_cmp(&of(*a)).then(a.cmp(b)));
            order
        });
        let gram = Gram::new(sums, n, order.as_deref(), options.uncut(span), device)?;
        Self::with(gram, importance, order, span, options)
    }

    /// With a Gram matrix in this order, and sums of squares in the columns' own.
    pub fn with(
        gram: Gram<'a>,
        importance: Vec<f32>,
        order: Option<Vec<usize>>,
        span: usize,
        options: Options,
    ) -> Result<Result<Self, NotPositive>> {
        let block = gram.block(options.block, options.uncut(span));
        let factor = match gram.factored(options.damping, block)? {
            Ok(factor) => factor,
            Err(bad) => return Ok(Err(bad)),
        };
        assert!(
            options.sparse.is_none() || order.is_none(),
            "columns of a pattern keep their order"
        );
        Ok(Ok(Self { importance, order, gram, factor, block, sparse: options.sparse }))
    }

    /// Whether grids of `span` columns are never cut by its blocks.
    pub fn takes(&self, span: usize) -> bool {
        self.block.is_multiple_of(span.max(1))
    }

    /// The damping that made the Gram matrix positive definite: what was asked, or more.
    pub fn damping(&self) -> f64 {
        self.factor.damping
    }
}

/// Rounds a matrix, given what is known of its inputs. `name` is the tensor's, for errors.
pub fn solve(
    weight: &Packed,
    inputs: &Prepared<'_>,
    fitting: &Fitting,
    name: &str,
) -> Result<Solved> {
    let (rows, n) = (weight.rows, weight.columns);
    let values = weight.to_f32();
    finite(&values, n, name)?;
    let Prepared { importance, order, gram, factor, block, sparse } = inputs;
    let place = |column: usize| order.as_ref().map_or(column, |order| order[column]);
    let whole = largest(&values);
    let span = fitting.span(n);
    let mut lines: Vec<Packed> = (0..rows).map(|_| fitting.line(n, whole)).collect();
    if order.is_some() {
        values.par_chunks(n.max(1)).zip(lines.par_iter_mut()).for_each(|(row, line)| {
            for first in (0..n).step_by(span) {
                let places = first..(first + span).min(n);
                fitting.fit(line, first, &row[places.clone()], Some(&importance[places]));
            }
        });
    }
    let of = |row: &[f32]| -> Vec<f64> { (0..n).map(|c| f64::from(row[place(c)])).collect() };
    let mut w: Vec<f64> = values.par_chunks(n.max(1)).flat_map_iter(of).collect();
    let squares = gram.squared_outputs(&w)?;
    let rounded = Rounded { fitting, importance, order: order.as_deref() };
    let mut gone = 0;
    match *sparse {
        None => obs::solve(&rounded, &mut w, factor, *block, &mut lines)?,
        Some(Sparse { pattern, ratio }) => {
            let masking = Masking { n, diagonal: &factor.diagonal, pattern, ratio };
            let mut of_rows: Vec<_> = lines.into_iter().map(|line| (vec![true; n], line)).collect();
            obs::solve(&Both { masking, rounded }, &mut w, factor, *block, &mut of_rows)?;
            let mut back = Vec::with_capacity(rows);
            for (stay, line) in of_rows {
                gone += stay.iter().filter(|stay| !**stay).count();
                back.push(line);
            }
            lines = back;
        }
    }
    let lines_of = values.par_chunks(n.max(1)).zip(w.par_chunks_mut(n.max(1)));
    lines_of.for_each(|(row, w)| {
        w.iter_mut().enumerate().for_each(|(c, w)| *w = f64::from(row[place(c)]) - *w);
    });
    let away = gram.squared_outputs(&w)?;
    let error = if squares > 0.0 { away / squares } else { 0.0 };
    let gone = gone as f64 / (rows * n).max(1) as f64;
    Ok(Solved { packed: fitting.joined(lines, (rows, n), name)?, error, gone })
}

/// Weights become the nearest values of their grids. Of a row its grids and codes are kept.
struct Rounded<'a> {
    fitting: &'a Fitting,
    importance: &'a [f32],
    order: Option<&'a [usize]>,
}

impl Rounded<'_> {
    /// The place of a column in its row, whose grid is there afterwards. `stay`: which of some columns count for a grid, if not all.
    fn place(
        &self,
        line: &mut Packed,
        weights: &[f64],
        column: usize,
        stay: &dyn Fn(Range<usize>) -> Option<Vec<bool>>,
    ) -> usize {
        let n = weights.len();
        let span = self.fitting.span(n);
        if let Some(order) = self.order {
            return order[column];
        }
        if column.is_multiple_of(span) {
            let places = column..(column + span).min(n);
            let mut values: Vec<f32> = weights[places.clone()].iter().map(|w| *w as f32).collect();
            let mut importance = self.importance[places.clone()].to_vec();
            for (at, _) in
                stay(places).into_iter().flatten().enumerate().filter(|(_, stays)| !stays)
            {
                (values[at], importance[at]) = (0.0, 0.0);
            }
            self.fitting.fit(line, column, &values, Some(&importance));
        }
        column
    }

    /// The value of the grid that is nearest to a weight, whose code is kept.
    fn put(&self, line: &mut Packed, place: usize, weight: f64) -> f64 {
        let format = self.fitting.format();
        let grid = line.grid(0, place / format.group_columns(line.columns));
        let code = self.fitting.code(weight as f32, grid);
        line.set_code(0, place, code);
        f64::from(format.ty.decode(code, grid.0, grid.1))
    }
}

impl Columns for Rounded<'_> {
    type Row = Packed;

    fn replace(&self, line: &mut Packed, weights: &[f64], column: usize) -> f64 {
        let place = self.place(line, weights, column, &|_| None);
        self.put(line, place, weights[column])
    }
}

/// Weights become 0 or the nearest values of their grids, which are found of those that stay. Of a row is kept which stay, and its
/// grids and codes.
struct Both<'a> {
    masking: Masking<'a>,
    rounded: Rounded<'a>,
}

impl Columns for Both<'_> {
    type Row = (Vec<bool>, Packed);

    fn begin(&self, w: &[f64], start: usize, width: usize, rows: &mut [Self::Row]) {
        self.masking.begin(w, (start, width), rows.iter_mut().map(|(stay, _)| &mut stay[..]));
    }

    fn replace(&self, (stay, line): &mut Self::Row, weights: &[f64], column: usize) -> f64 {
        let stays = self.masking.keeps(stay, weights, column);
        let likely = |columns| Some(self.masking.likely(stay, weights, columns));
        let place = self.rounded.place(line, weights, column, &likely);
        self.rounded.put(line, place, if stays { weights[column] } else { 0.0 })
    }
}
