//! Columns from the first to the last: what a weight loses, those behind it in its row make up for, by the Gram matrix of the inputs
//! (the optimal brain surgeon, as SparseGPT, Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1, and GPTQ, Frantar et al. 2022,
//! arXiv 2210.17323, algorithm 1, walk through a matrix). What a weight becomes is theirs.
//!
//! Both state it with the Cholesky factor of the inverse. Here no large matrix is inverted: with H = L^T L, L lower triangular, and d
//! what the weights of a row have changed by, d H d^T is the sum over k of (d L^T)_k^2. Weights that are free make their own terms 0:
//! d_k = -sum_(j<k) d_j L_kj / L_kk. So a block of columns takes what all columns before it have changed by in one product, and within
//! it, where L is small, changes go on by the inverse of L^T. (LDLQ, Chee et al. 2023, arXiv 2307.13304, section 3, whose theorem 6
//! shows that this is GPTQ.)

use std::borrow::Cow;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::linalg::{
    self, NotPositive, inverse_transposed, product, reversed_cholesky, squared_outputs,
};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::Result;
use crate::interrupt;
use crate::kernels::matmul::part::{Part, copy, part};
use crate::tensor::DType;

/// How often a matrix is tried, with ten times the damping each time, before it is given up.
pub const ATTEMPTS: u32 = 6;

/// The narrowest matrix that a GPU is used for: below, the copies take longer than the processor's own products.
pub const DEVICE_COLUMNS: usize = 1024;

/// Columns that are gone through at once where the products are a device's: the blocks on the diagonal of the factor are the
/// processor's, in f64.
const DEVICE_BLOCK: usize = 128;
/// The widest block of that kind.
const WIDEST_BLOCK: usize = 1024;

/// The Gram matrix of a layer's inputs, in the order in which its columns are gone through.
#[derive(Debug)]
pub struct Gram<'a> {
    n: usize,
    diagonal: Vec<f64>,
    held: Held<'a>,
}

/// Where products with it are computed: in f64, or in f32 on a device, as the sources do.
#[derive(Debug)]
enum Held<'a> {
    Host(Cow<'a, [f64]>),
    Device(&'a Device, Tensor),
}

impl<'a> Gram<'a> {
    /// From sums in f32 (n, n), of which the upper half is read. `order`: the columns in the order in which they are gone
    /// through. On the device where it is a GPU, the matrix is wide enough, it fits a tensor there, and spans of `span` columns, which
    /// are never cut, are not too wide for blocks of it.
    pub fn new(
        sums: &[f32],
        n: usize,
        order: Option<&[usize]>,
        span: usize,
        device: &'a Device,
    ) -> Result<Self> {
        let fits = 4 * (n * n) as u64 <= device.max_tensor_bytes()
            && DEVICE_BLOCK.next_multiple_of(span.max(1)) <= WIDEST_BLOCK;
        match device.gpu().is_some() && n >= DEVICE_COLUMNS && fits {
            true => Self::on(device, sums, n, order),
            false => Ok(Self::host(sums, n, order)),
        }
    }

    /// On the processor.
    pub fn host(sums: &[f32], n: usize, order: Option<&[usize]>) -> Self {
        Self::of(turned(sums, n, order, f64::from), n)
    }

    /// On the processor, of sums in f64.
    pub fn of(values: impl Into<Cow<'a, [f64]>>, n: usize) -> Self {
        let values = values.into();
        let diagonal = (0..n).map(|i| values[i * (n + 1)]).collect();
        Self { n, diagonal, held: Held::Host(values) }
    }

    /// On a device.
    pub fn on(device: &'a Device, sums: &[f32], n: usize, order: Option<&[usize]>) -> Result<Self> {
        let values: Vec<u32> = turned(sums, n, order, f32::to_bits);
        let diagonal = (0..n).map(|i| f64::from(f32::from_bits(values[i * (n + 1)]))).collect();
        let held = device.upload_words(DType::F32, &[n, n], &values, "a Gram matrix")?;
        Ok(Self { n, diagonal, held: Held::Device(device, held) })
    }

    /// Columns that are gone through at once, where the caller wants `wanted` and never cuts spans of `span`.
    pub fn block(&self, wanted: usize, span: usize) -> usize {
        let least = match self.held {
            Held::Host(_) => wanted.max(1),
            Held::Device(..) => DEVICE_BLOCK,
        };
        least.next_multiple_of(span.max(1))
    }

    /// Its factor with `damping` of the mean of its diagonal added there, or tenfold more each time while it is not positive definite.
    /// An input that is always 0 gets 1, so that nothing is divided by it. `block`: columns that are to be gone through at once.
    pub fn factored(
        &self,
        damping: f64,
        block: usize,
    ) -> Result<std::result::Result<Factor<'a>, NotPositive>> {
        let mean = self.diagonal.iter().sum::<f64>() / self.n.max(1) as f64;
        let (mut damping, mut attempt) = (damping, 1);
        loop {
            let added: Vec<f64> = (self.diagonal.iter())
                .map(|value| if *value == 0.0 { 1.0 } else { damping * mean })
                .collect();
            let factor = match &self.held {
                Held::Host(values) => host_factor(values, &added),
                Held::Device(device, values) => device_factor(device, values, &added, block)?,
            };
            match factor {
                Ok((diagonal, lower)) => {
                    return Ok(Ok(Factor { n: self.n, damping, diagonal, lower }));
                }
                Err(bad) if attempt == ATTEMPTS => return Ok(Err(bad)),
                Err(_) => (damping, attempt) = (10.0 * damping.max(1e-4), attempt + 1),
            }
        }
    }

    /// ||X W^T||^2, of weights W (rows, n) in the order of its columns: of W - W' the squared error that W' makes.
    pub fn squared_outputs(&self, w: &[f64]) -> Result<f64> {
        let n = self.n;
        let (device, gram) = match &self.held {
            Held::Host(values) => return Ok(squared_outputs(w, n, values)),
            Held::Device(device, gram) => (device, gram),
        };
        let at_once = (device.max_tensor_bytes() / 8 / (4 * n as u64)).max(1) as usize;
        let mut sum = 0.0;
        for w in w.chunks(at_once * n) {
            interrupt::check()?;
            let x: Vec<f32> = w.par_iter().map(|w| *w as f32).collect();
            let rows = w.len() / n;
            let x = device.upload(&HostTensor::from_f32(DType::F32, &[rows, n], &x), "weights")?;
            let y = device.allocate(DType::F32, &[rows, n], "products")?;
            let from = |of| Part::from(of, n, (0, 0));
            part(device, (rows, n, n), (from(&x), from(gram), 1.0), None, from(&y))?;
            let y = device.read(&y)?.to_f32();
            // Rows one by one, so that the sum is the same on any number of threads.
            let lines: Vec<f64> = (w.par_chunks(n).zip(y.par_chunks(n)))
                .map(|(w, y)| w.iter().zip(y).map(|(w, y)| w * f64::from(*y)).sum())
                .collect();
            sum += lines.iter().sum::<f64>();
        }
        Ok(sum)
    }
}

/// A symmetric matrix by its upper half, with rows and columns in another order.
fn turned<T: Send>(
    sums: &[f32],
    n: usize,
    order: Option<&[usize]>,
    of: impl Fn(f32) -> T + Sync + Copy,
) -> Vec<T> {
    let place = move |i: usize| order.map_or(i, |order| order[i]);
    let line = |i: usize| {
        let i = place(i);
        (0..n).map(move |j| {
            let j = place(j);
            of(sums[i.min(j) * n + i.max(j)])
        })
    };
    (0..n).into_par_iter().flat_map_iter(line).collect()
}

/// L with H = L^T L, of a damped Gram matrix H.
#[derive(Debug)]
pub struct Factor<'a> {
    n: usize,
    /// The damping that made H positive definite: what was asked, or more.
    pub damping: f64,
    /// L_kk: the inverse of what stands on the diagonal of the Cholesky factor of H's inverse.
    pub diagonal: Vec<f64>,
    lower: Lower<'a>,
}

#[derive(Debug)]
enum Lower<'a> {
    /// L_kj / L_kk at row j and column k: what a change of column j makes of column k.
    Host(Vec<f64>),
    /// Of the blocks on its diagonal, of so many columns, [`spread`], and the inverses of their transposes; and what stands left of
    /// them.
    Device { device: &'a Device, block: usize, blocks: Vec<(Vec<f64>, Tensor)>, left: Tensor },
}

type Found<T> = std::result::Result<(Vec<f64>, T), NotPositive>;

fn host_factor<'a>(gram: &[f64], added: &[f64]) -> Found<Lower<'a>> {
    let n = added.len();
    let mut h = gram.to_vec();
    for (i, added) in added.iter().enumerate() {
        h[i * (n + 1)] += added;
    }
    let lower = reversed_cholesky(h, n)?;
    let diagonal: Vec<f64> = (0..n).map(|i| lower[i * (n + 1)]).collect();
    let line = |j: usize| {
        let (lower, diagonal) = (&lower, &diagonal);
        (0..n).map(move |k| if k < j { 0.0 } else { lower[k * n + j] / diagonal[k] })
    };
    let shares = (0..n).into_par_iter().flat_map_iter(line).collect();
    Ok((diagonal, Lower::Host(shares)))
}

/// Block by block from the last column to the first. Rows of a block are known once those behind it are: H_Bi less the sum over
/// the rows m behind of L_mB^T L_mi is L_BB^T L_Bi.
fn device_factor<'a>(
    device: &'a Device,
    gram: &Tensor,
    added: &[f64],
    block: usize,
) -> Result<Found<Lower<'a>>> {
    let n = added.len();
    let left = device.allocate(DType::F32, &[n, n], "a factor")?;
    let panel = device.allocate(DType::F32, &[n, block], "a factor's block")?;
    let (mut diagonal, mut blocks) = (vec![0.0; n], Vec::new());
    for start in (0..n).step_by(block).rev() {
        interrupt::check()?;
        let width = block.min(n - start);
        let end = start + width;
        let behind = |column| Part::from(&left, n, (end, column)).transposed();
        let strip = |row| Part::from(&panel, width, (row, 0));
        part(
            device,
            (end, width, n - end),
            (behind(0), behind(start), -1.0),
            Some(Part::from(gram, n, (0, start))),
            strip(0),
        )?;
        let corner = device.allocate(DType::F32, &[width, width], "a factor's corner")?;
        copy(device, (width, width), strip(start), Part::from(&corner, width, (0, 0)))?;
        let mut corner: Vec<f64> =
            device.read(&corner)?.to_f32().into_iter().map(f64::from).collect();
        for (i, added) in added[start..end].iter().enumerate() {
            corner[i * (width + 1)] += added;
        }
        let own = match reversed_cholesky(corner, width) {
            Ok(own) => own,
            Err(bad) => return Ok(Err(NotPositive { pivot: start + bad.pivot })),
        };
        for i in 0..width {
            diagonal[start + i] = own[i * (width + 1)];
        }
        let inverse = inverse_transposed(&own, width);
        let values: Vec<f32> = inverse.iter().map(|value| *value as f32).collect();
        let values = HostTensor::from_f32(DType::F32, &[width, width], &values);
        let solver = device.upload(&values, "the inverse of a factor's corner")?;
        if start > 0 {
            let from = Part::from(&solver, width, (0, 0));
            let to = Part::from(&left, n, (start, 0));
            part(device, (width, start, width), (from, strip(0), 1.0), None, to)?;
        }
        blocks.push((spread(inverse, &diagonal[start..end]), solver));
    }
    blocks.reverse();
    Ok(Ok((diagonal, Lower::Device { device, block, blocks, left })))
}

/// Of a block on L's diagonal, by (L^T)^-1: at row k and column j what a change of column k by 1 makes the free columns j behind it
/// change by.
fn spread(mut solver: Vec<f64>, diagonal: &[f64]) -> Vec<f64> {
    let width = diagonal.len().max(1);
    solver.par_chunks_mut(width).zip(diagonal).for_each(|(line, own)| {
        line.iter_mut().for_each(|value| *value *= own);
    });
    solver
}

/// Which weights become what.
pub trait Columns: Sync {
    /// What is kept of a row while its weights are gone through.
    type Row: Send;

    /// Called before each run of columns from `start`, `width` of them, with their weights as they are by then.
    fn begin(&self, _w: &[f64], _start: usize, _width: usize, _rows: &mut [Self::Row]) {}

    /// The new value of the weight of `column`, given its row, with the weights from there to the end of the run of columns as they
    /// are by then.
    fn replace(&self, row: &mut Self::Row, weights: &[f64], column: usize) -> f64;
}

/// Goes through a matrix w (rows, n), `block` columns at a time. `rows`: one of each row.
pub fn solve<C: Columns>(
    columns: &C,
    w: &mut [f64],
    factor: &Factor<'_>,
    block: usize,
    rows: &mut [C::Row],
) -> Result<()> {
    let (n, count) = (factor.n, rows.len());
    let mut changes = Changes::new(factor, count)?;
    // Where the time goes: to what is due, the rows, what is kept.
    let mut taken = [Duration::ZERO; 3];
    for start in (0..n).step_by(block) {
        let mut since = Instant::now();
        let mut lap =
            |of: usize| taken[of] += std::mem::replace(&mut since, Instant::now()).elapsed();
        interrupt::check()?;
        let width = block.min(n - start);
        let of = |row: &[f64]| row[start..start + width].to_vec();
        let before: Vec<f64> = w.par_chunks(n).flat_map_iter(of).collect();
        let spread = factor.spread(start, width);
        let behind = |at: usize| &spread[at * width + at..(at + 1) * width];
        if start > 0 {
            let due = changes.due(factor, (start, width), &spread)?;
            w.par_chunks_mut(n).zip(due.par_chunks(width)).for_each(|(row, due)| {
                row[start..start + width].iter_mut().zip(due).for_each(|(w, due)| *w -= due);
            });
        }
        lap(0);
        columns.begin(w, start, width, rows);
        let lines = w.par_chunks_mut(n).zip(rows.par_iter_mut());
        let mut changed = vec![0.0; count * width];
        let lines = lines.zip(before.par_chunks(width)).zip(changed.par_chunks_mut(width));
        lines.for_each(|(((row, state), before), changed)| {
            for at in 0..width {
                let column = start + at;
                let new = columns.replace(state, row, column);
                let change = new - row[column];
                if change != 0.0 {
                    let behind = row[column..start + width].iter_mut().zip(behind(at));
                    behind.for_each(|(w, share)| *w += change * share);
                }
                row[column] = new;
                changed[at] = new - before[at];
            }
        });
        lap(1);
        changes.keep(factor, &changed, (start, width))?;
        lap(2);
    }
    let [due, rows, kept] = taken;
    tracing::debug!("{count} rows of {n}: due in {due:?}, rows in {rows:?}, kept in {kept:?}");
    Ok(())
}

impl Factor<'_> {
    /// [`spread`] of a block of columns.
    fn spread(&self, start: usize, width: usize) -> Cow<'_, [f64]> {
        match &self.lower {
            Lower::Host(shares) => {
                let diagonal = &self.diagonal[start..start + width];
                let place = |k: usize, j: usize| match j <= k {
                    true => shares[(start + j) * self.n + start + k] * diagonal[k],
                    false => 0.0,
                };
                let own: Vec<f64> =
                    (0..width).flat_map(|k| (0..width).map(move |j| place(k, j))).collect();
                Cow::Owned(spread(inverse_transposed(&own, width), diagonal))
            }
            Lower::Device { block, blocks, .. } => {
                assert_eq!(start % block, 0, "blocks are those of the factor");
                Cow::Borrowed(&blocks[start / block].0)
            }
        }
    }
}

/// What the weights of the columns gone through have changed by, (rows, n).
enum Changes {
    Host(Vec<f64>),
    Device(Tensor),
}

impl Changes {
    fn new(factor: &Factor<'_>, rows: usize) -> Result<Self> {
        let n = factor.n;
        match &factor.lower {
            Lower::Host(_) => Ok(Self::Host(vec![0.0; rows * n])),
            Lower::Device { device, .. } => {
                Ok(Self::Device(device.allocate(DType::F32, &[rows, n], "changes")?))
            }
        }
    }

    /// What the free weights of a block's columns make up for with those before them, (rows, width): the sums d L^T over the columns
    /// before, times the inverse of the transpose of L's block there.
    fn due(
        &self,
        factor: &Factor<'_>,
        (start, width): (usize, usize),
        spread: &[f64],
    ) -> Result<Vec<f64>> {
        let n = factor.n;
        match (self, &factor.lower) {
            (Changes::Host(changes), Lower::Host(shares)) => {
                let rows = changes.len() / n;
                let whole = |of, at, size| linalg::Part { of, at, size };
                let (mut sums, size) = (vec![0.0; rows * width], (rows, width));
                product(
                    (&mut sums, whole(width, (0, 0), size)),
                    (changes, whole(n, (0, 0), (rows, start))),
                    (shares, whole(n, (0, start), (start, width))),
                    false,
                );
                let mut due = vec![0.0; rows * width];
                product(
                    (&mut due, whole(width, (0, 0), size)),
                    (&sums, whole(width, (0, 0), size)),
                    (spread, whole(width, (0, 0), (width, width))),
                    false,
                );
                Ok(due)
            }
            (Changes::Device(changes), Lower::Device { device, block, blocks, left }) => {
                let rows = changes.len() / n;
                let new = || device.allocate(DType::F32, &[rows, width], "sums of changes");
                let (sums, due) = (new()?, new()?);
                let (a, b) = (Part::from(changes, n, (0, 0)), Part::from(left, n, (start, 0)));
                let [of_sums, of_due] = [&sums, &due].map(|of| Part::from(of, width, (0, 0)));
                part(device, (rows, width, start), (a, b, 1.0), None, of_sums)?;
                let inverse = Part::from(&blocks[start / block].1, width, (0, 0)).transposed();
                part(device, (rows, width, width), (of_sums, inverse, 1.0), None, of_due)?;
                Ok(device.read(&due)?.to_f32().into_par_iter().map(f64::from).collect())
            }
            _ => unreachable!("changes are where their factor is"),
        }
    }

    /// Keeps what columns have changed by.
    fn keep(
        &mut self,
        factor: &Factor<'_>,
        changed: &[f64],
        (start, width): (usize, usize),
    ) -> Result<()> {
        let n = factor.n;
        match (self, &factor.lower) {
            (Changes::Host(changes), _) => {
                let lines = changes.par_chunks_mut(n).zip(changed.par_chunks(width));
                lines.for_each(|(line, changed)| {
                    line[start..start + width].copy_from_slice(changed);
                });
            }
            (Changes::Device(changes), Lower::Device { device, .. }) => {
                let rows = changed.len() / width;
                let changed: Vec<f32> = changed.par_iter().map(|value| *value as f32).collect();
                let changed = HostTensor::from_f32(DType::F32, &[rows, width], &changed);
                let changed = device.upload(&changed, "changes of a block")?;
                let from = Part::from(&changed, width, (0, 0));
                copy(device, (rows, width), from, Part::from(changes, n, (0, start)))?;
            }
            _ => unreachable!("changes are where their factor is"),
        }
        Ok(())
    }
}
