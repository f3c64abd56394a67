//! Grids of a row's groups, on the host: by the scheme's rule, as `rtn` finds them, or by what the group loses. And the nearest
//! codes on them. A method that rounds column by column fits a group when it comes to it.
//!
//! A group's weights x become s L + m: L is a level (a code, less half of the codes where the type is symmetric; a float; an entry of
//! a table), s the scale, m the offset or -s times the zero point, 0 where the type has neither.

use half::f16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Grid, Scheme, hqq, levels};
use crate::error::{Error, Result};
use crate::kernels::quantize::minmax::zero_point;
use crate::kernels::quantize::nearest::Sorted;
use crate::kernels::quantize::round;
use crate::methods::BadField;
use crate::tensor::{Packed, Scale, WeightFormat, minifloat};

/// How a group's grid is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// From its extremes, as the grid says
    #[default]
    Rule,
    /// The one with the least squared error of several narrower ranges, whose best are improved by least squares for the codes
    /// that they give
    Search,
    /// Offsets by half-quadratic quantization (method hqq).
    #[serde(skip)]
    #[value(skip)]
    Hqq,
}

/// Finds grids in a format.
#[derive(Clone, Debug)]
pub struct Fitting {
    scheme: Scheme,
    format: WeightFormat,
    how: How,
    levels: Levels,
}

/// The levels of a type.
#[derive(Clone, Debug)]
enum Levels {
    /// Whole numbers from one to another.
    Even(f32, f32),
    /// Others, and in the middle between each and the next.
    Listed { levels: Vec<f32>, middles: Vec<f32>, sorted: Sorted },
}

impl Levels {
    fn new(format: WeightFormat) -> Self {
        let ty = format.ty;
        if ty.is_affine() {
            let last = ((1u32 << ty.bits) - 1) as f32;
            let low = match ty.scale {
                Scale::Symmetric | Scale::SuperSymmetric(_) => -((1u32 << (ty.bits - 1)) as f32),
                _ => 0.0,
            };
            return Levels::Even(low, low + last);
        }
        let sorted = Sorted::new(ty);
        let mut levels: Vec<f32> = sorted.values().collect();
        levels.dedup();
        let middles = levels.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect();
        Levels::Listed { levels, middles, sorted }
    }

    fn nearest(&self, value: f32) -> f32 {
        match self {
            Levels::Even(low, high) => whole(value.clamp(*low, *high)),
            Levels::Listed { levels, middles, .. } => {
                levels[middles.partition_point(|middle| *middle < value)]
            }
        }
    }

    fn range(&self) -> (f32, f32) {
        match self {
            Levels::Even(low, high) => (*low, *high),
            Levels::Listed { levels, .. } => (levels[0], levels[levels.len() - 1]),
        }
    }
}

/// A grid as it is stored, and what it is then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stored {
    pub bits: (u16, u16),
    pub scale: f32,
    pub offset: f32,
}

/// Shares of the range that are tried: all of it, down to two fifths.
const SHARES: usize = 9;
/// Where narrower ranges lie in the whole one: at its lower end, in the middle, at its upper end.
const ANCHORS: [f32; 3] = [0.0, 0.5, 1.0];
/// How many of the grids tried are improved.
const IMPROVED: usize = 4;
/// How often, at most.
const ROUNDS: usize = 4;
/// The best is tried again with steps of other sizes,
const FACTORS: [f32; 4] = [0.9, 0.95, 1.05, 1.1];
/// as often as that helps, at most.
const PERTURBED: usize = 2;

impl Fitting {
    /// Of a scheme.
    pub fn new(scheme: Scheme, how: How) -> Result<Self, BadField> {
        let format = scheme.format()?;
        if how == How::Hqq && format.ty.scale != Scale::Offset {
            let expected = "float-min (types uint1m to uint8m), whose offset is a real number, with method hqq";
            return Err(BadField::new("grid", expected, scheme.grid.name()));
        }
        if how == How::Rule && format.ty.super_block().is_some() {
            let expected = format!("search, as {} has no rule", format.ty.name);
            return Err(BadField::new("fit", expected, "rule"));
        }
        Ok(Self { scheme, format, how, levels: Levels::new(format) })
    }

    /// The format of the result.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Columns of a row whose grids are found together.
    pub fn span(&self, columns: usize) -> usize {
        self.format.columns_together(columns)
    }

    /// A row without grids or codes. `whole`: the largest magnitude of the tensor.
    pub fn line(&self, columns: usize, whole: f32) -> Packed {
        let mut line = Packed::zeros(self.format, 1, columns);
        if self.format.ty.scale == Scale::TwoLevel {
            line.set_row_scale(0, levels::tensor_scale(whole));
        }
        line
    }

    /// Finds the grids of a span of columns from `first` on, of which these are the weights, and writes them into the row.
    /// `importance`: of each column, what its squared error counts.
    pub fn fit(&self, line: &mut Packed, first: usize, values: &[f32], importance: Option<&[f32]>) {
        if self.format.ty.super_block().is_some() {
            self.fit_super_block(line, first, values, importance);
            return;
        }
        let group = first / self.format.group_columns(line.columns);
        let whole = match self.format.ty.scale {
            Scale::TwoLevel => f32::from_bits(line.scales[0]),
            _ => 0.0,
        };
        let rule = self.rule(values, whole);
        let found = match self.how {
            How::Rule => rule,
            How::Search => {
                let (scale, offset) = self.decoded(rule, whole);
                let begin = self.stored(scale, offset, whole);
                self.search(values, importance, begin, whole).map_or(rule, |found| found.bits)
            }
            How::Hqq => {
                let (scale, offset) = hqq::fit(values, self.format.ty.bits);
                self.stored(scale, offset, whole).map_or(rule, |stored| stored.bits)
            }
        };
        line.set_group(0, group, found.0, found.1);
    }

    /// The code nearest to a value, given the group's [`Packed::grid`].
    pub fn code(&self, value: f32, grid: (f32, f32)) -> u32 {
        match &self.levels {
            Levels::Even(..) => round::code(value, self.format, grid),
            Levels::Listed { sorted, .. } => sorted.code(value, grid.0),
        }
    }

    /// The grid of the scheme's rule.
    fn rule(&self, values: &[f32], tensor_scale: f32) -> (u16, u16) {
        let bits = |value: f32| f16::from_f32(value).to_bits();
        let half = (1u32 << (self.scheme.bits - 1)) as f32;
        let factor = 1.0 / ((1u32 << self.scheme.bits) - 1) as f32;
        match self.scheme.grid {
            Grid::AbsmaxSymmetric => (bits(levels::largest(values) * (1.0 / (half - 1.0))), 0),
            Grid::SignedMax => {
                let extreme = values
                    .iter()
                    .fold(0.0f32, |most, v| if v.abs() > most.abs() { *v } else { most });
                (bits(extreme * (-1.0 / half)), 0)
            }
            Grid::ZeroPoint => {
                let (low, high) = extremes(values);
                let (scale, zero) = zero_point(low, high, factor);
                (bits(scale), bits(zero))
            }
            Grid::FloatMin => {
                let (low, high) = extremes(values);
                (bits((high - low) * factor), bits(low))
            }
            _ => (levels::group_scale(values, self.format, tensor_scale), 0),
        }
    }

    /// Scale and offset of a stored grid.
    fn decoded(&self, (scale, second): (u16, u16), tensor_scale: f32) -> (f32, f32) {
        let half = |bits: u16| f16::from_bits(bits).to_f32();
        match self.format.ty.scale {
            Scale::PowerOfTwo => (f32::powi(2.0, i32::from(scale) - 127), 0.0),
            Scale::TwoLevel => (tensor_scale * minifloat::decode(scale.into(), 4, 3), 0.0),
            Scale::ZeroPoint => (half(scale), -half(scale) * half(second)),
            _ => (half(scale), half(second)),
        }
    }

    /// A grid rounded as the type stores it; `None` where it cannot.
    #[inline(always)]
    fn stored(&self, scale: f32, offset: f32, tensor_scale: f32) -> Option<Stored> {
        let half = |value: f32| {
            let bits = minifloat::half_bits(value);
            (bits & 0x7c00 != 0x7c00).then(|| (bits, minifloat::half_value(bits)))
        };
        let found = match self.format.ty.scale {
            Scale::None => return None,
            Scale::Symmetric | Scale::Level => {
                let (bits, scale) = half(scale)?;
                Stored { bits: (bits, 0), scale, offset: 0.0 }
            }
            Scale::Offset => {
                let ((bits, scale), (second, offset)) = (half(scale)?, half(offset)?);
                Stored { bits: (bits, second), scale, offset }
            }
            Scale::ZeroPoint => {
                let (bits, scale) = half(scale)?;
                let zero = whole(-offset / scale);
                // f16 has every whole number up to there.
                if zero.is_nan() || zero.abs() > 2048.0 {
                    return None;
                }
                let (second, zero) = half(zero + 0.0)?;
                Stored { bits: (bits, second), scale, offset: -scale * zero }
            }
            Scale::PowerOfTwo => {
                let exponent = (scale.log2().round_ties_even() as i32).clamp(-126, 127);
                let scale = f32::powi(2.0, exponent);
                Stored { bits: ((exponent + 127) as u16, 0), scale, offset: 0.0 }
            }
            Scale::TwoLevel => {
                let code = minifloat::encode_magnitude(scale / tensor_scale, 4, 3);
                let scale = tensor_scale * minifloat::decode(code, 4, 3);
                Stored { bits: (code as u16, 0), scale, offset: 0.0 }
            }
            // Rounded later, together with the other groups' of the super-block.
            Scale::SuperOffset(_) if offset > 0.0 || scale < 0.0 => return None,
            Scale::SuperOffset(_) | Scale::SuperSymmetric(_) => {
                Stored { bits: (0, 0), scale, offset }
            }
        };
        (found.scale != 0.0 && found.scale.is_finite()).then_some(found)
    }

    /// The grid with the least squared error that is found; `None` where none was tried. `rule`: the one to begin with.
    pub(super) fn search(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        rule: Option<Stored>,
        tensor_scale: f32,
    ) -> Option<Stored> {
        Arch::new().dispatch(Searching { fitting: self, values, importance, rule, tensor_scale })
    }

    /// Down from a grid with its error by least squares for the codes that it gives, as long as that helps.
    #[inline(always)]
    fn descend(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        (mut least, mut grid): (f32, Stored),
        tensor_scale: f32,
    ) -> (f32, Stored) {
        for _ in 0..ROUNDS {
            let next = self.improved(values, importance, &grid, self.is_shifted(), tensor_scale);
            let Some(next) = next else { break };
            let found = self.error(values, importance, next.scale, next.offset);
            if found >= least || found.is_nan() {
                break;
            }
            (least, grid) = (found, next);
        }
        (least, grid)
    }

    /// [`Fitting::search`] itself.
    #[inline(always)]
    fn searched(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        rule: Option<Stored>,
        tensor_scale: f32,
    ) -> Option<Stored> {
        let judged = |grid: Stored| (self.error(values, importance, grid.scale, grid.offset), grid);
        let shifted = self.is_shifted();
        let (first, last) = self.levels.range();
        let (low, high) = extremes(values);
        let (low, high) = match self.format.ty.scale {
            Scale::SuperOffset(_) => (low.min(0.0), high.max(0.0)),
            _ => (low, high),
        };
        let mut tried: Vec<(f32, Stored)> = rule.into_iter().map(judged).collect();
        for step in 0..SHARES {
            let share = 1.0 - 0.075 * step as f32;
            if shifted {
                let scale = share * (high - low) / (last - first);
                for anchor in ANCHORS {
                    let offset =
                        low - first * scale + anchor * ((high - low) - scale * (last - first));
                    tried.extend(self.stored(scale, offset, tensor_scale).map(judged));
                }
                continue;
            }
            let scale = share * low.abs().max(high.abs()) / first.abs().max(last.abs());
            tried.extend(self.stored(scale, 0.0, tensor_scale).map(judged));
            // Where one side has a level more, it is the larger side's.
            let may_turn =
                matches!(self.format.ty.scale, Scale::Symmetric | Scale::SuperSymmetric(_));
            if -first != last && may_turn {
                tried.extend(self.stored(-scale, 0.0, tensor_scale).map(judged));
            }
        }
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut best = *tried.first()?;
        for (place, begin) in tried.into_iter().take(IMPROVED).enumerate() {
            let end = self.descend(values, importance, begin, tensor_scale);
            if place == 0 || end.0 < best.0 {
                best = end;
            }
        }
        for _ in 0..PERTURBED {
            let (before, grid) = best;
            for factor in FACTORS {
                let scale = factor * grid.scale;
                for anchor in if shifted { &ANCHORS[..] } else { &ANCHORS[..1] } {
                    let shift = (grid.scale - scale) * (first + anchor * (last - first));
                    let offset = if shifted { grid.offset + shift } else { 0.0 };
                    let Some(end) = self.stored(scale, offset, tensor_scale).map(judged) else {
                        continue;
                    };
                    let end = self.descend(values, importance, end, tensor_scale);
                    if end.0 < best.0 {
                        best = end;
                    }
                }
            }
            if best.0 >= before {
                break;
            }
        }
        Some(best.1)
    }

    /// Whether grids have an offset.
    fn is_shifted(&self) -> bool {
        matches!(self.format.ty.scale, Scale::Offset | Scale::ZeroPoint | Scale::SuperOffset(_))
    }

    /// The weighted squared error of weights at the nearest points of a grid.
    #[inline(always)]
    pub(super) fn error(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        scale: f32,
        offset: f32,
    ) -> f32 {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        match &self.levels {
            Levels::Even(low, high) => {
                let nearest = even(*low, *high);
                squares(values, importance, (scale, offset, inverse), nearest)
            }
            Levels::Listed { .. } => {
                let nearest = |value: f32| self.levels.nearest(value);
                squares(values, importance, (scale, offset, inverse), nearest)
            }
        }
    }

    /// The level nearest to a weight on a grid.
    pub(super) fn level(&self, value: f32, scale: f32, offset: f32) -> f32 {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        self.levels.nearest((value - offset) * inverse)
    }

    /// The grid with the least squared error for the levels that a grid gives.
    #[inline(always)]
    fn improved(
        &self,
        values: &[f32],
        importance: Option<&[f32]>,
        grid: &Stored,
        shifted: bool,
        tensor_scale: f32,
    ) -> Option<Stored> {
        let place = (grid.offset, 1.0 / grid.scale);
        let sums = match &self.levels {
            Levels::Even(low, high) => moments(values, importance, place, even(*low, *high)),
            Levels::Listed { .. } => {
                moments(values, importance, place, |value| self.levels.nearest(value))
            }
        };
        let [w, wl, wll, wx, wlx] = sums;
        if !shifted {
            return self.stored((wlx / wll) as f32, 0.0, tensor_scale);
        }
        let scale = (w * wlx - wl * wx) / (w * wll - wl * wl);
        let offset = (wx - scale * wl) / w;
        if matches!(self.format.ty.scale, Scale::SuperOffset(_)) && offset > 0.0 {
            return self.stored((wlx / wll) as f32, 0.0, tensor_scale);
        }
        let found = self.stored(scale as f32, offset as f32, tensor_scale)?;
        if self.format.ty.scale != Scale::ZeroPoint {
            return Some(found);
        }
        // For this zero point the scale again.
        let zero = f64::from(minifloat::half_value(found.bits.1));
        let scale = (wlx - zero * wx) / (wll - 2.0 * zero * wl + zero * zero * w);
        self.stored(scale as f32, (-scale * zero) as f32, tensor_scale)
    }

    /// A matrix with each group's grid fitted and every weight at the nearest code. `importance`: of each column, what its
    /// squared error counts. `name` is the tensor's, for errors.
    pub fn round(&self, weight: &Packed, importance: Option<&[f32]>, name: &str) -> Result<Packed> {
        let values = weight.to_f32();
        finite(&values, weight.columns, name)?;
        let (columns, whole) = (weight.columns, levels::largest(&values));
        let span = self.span(columns);
        let line = |values: &[f32]| {
            let mut line = self.line(columns, whole);
            for (index, values) in values.chunks(span).enumerate() {
                let places = index * span..index * span + values.len();
                let importance = importance.map(|importance| &importance[places]);
                self.fit(&mut line, index * span, values, importance);
            }
            for (column, value) in values.iter().enumerate() {
                let code =
                    self.code(*value, line.grid(0, column / self.format.group_columns(columns)));
                line.set_code(0, column, code);
            }
            line
        };
        let lines = values.par_chunks(columns.max(1)).map(line).collect();
        self.joined(lines, (weight.rows, columns), name)
    }

    /// The matrix of these rows. An error where a scale is none.
    pub(super) fn joined(
        &self,
        lines: Vec<Packed>,
        (rows, columns): (usize, usize),
        name: &str,
    ) -> Result<Packed> {
        let mut packed =
            Packed { format: self.format, rows, columns, codes: vec![], scales: vec![] };
        for line in lines {
            packed.codes.extend(line.codes);
            packed.scales.extend(line.scales);
        }
        match packed.first_non_finite() {
            None => Ok(packed),
            Some((row, column)) => Err(Error::Tensor {
                path: "quantize".into(),
                tensor: name.into(),
                expected: "values whose scales f16 holds".into(),
                found: format!("others at row {row}, column {column}"),
            }),
        }
    }
}

/// The search for a group's grid: a type of its own, so that all of it ends up in the function that has the machine's vectors. One
/// call of it is some hundred sums over the group.
struct Searching<'a> {
    fitting: &'a Fitting,
    values: &'a [f32],
    importance: Option<&'a [f32]>,
    rule: Option<Stored>,
    tensor_scale: f32,
}

impl WithSimd for Searching<'_> {
    type Output = Option<Stored>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<Stored> {
        let Self { fitting, values, importance, rule, tensor_scale } = self;
        fitting.searched(values, importance, rule, tensor_scale)
    }
}

/// The nearest whole number, of two the even one, of a value that is small: added to this one, f32 keeps no fraction. The
/// function of that name is a call into a library on processors that cannot be taken to have an instruction for it.
#[inline(always)]
fn whole(value: f32) -> f32 {
    const NO_FRACTION: f32 = 1.5 * (1 << 23) as f32;
    (value + NO_FRACTION) - NO_FRACTION
}

/// The whole number from `low` to `high` that is nearest.
#[inline(always)]
fn even(low: f32, high: f32) -> impl Fn(f32) -> f32 {
    #[inline(always)]
    move |value: f32| whole(value.clamp(low, high))
}

/// Numbers that the processor computes with side by side: sums of eight are added up in the same order on any.
type Eight = [f32; 8];

/// Shows what weights count (1 without importance) and the weights, eight at a time; behind the last stand zeros that count 0.
#[inline(always)]
fn by_eights(values: &[f32], importance: Option<&[f32]>, mut see: impl FnMut(&Eight, &Eight)) {
    let (full, rest) = values.as_chunks::<8>();
    // Loops, not `for_each`: what is not inlined is not computed side by side.
    match importance {
        None => {
            for x in full {
                see(&[1.0; 8], x);
            }
        }
        Some(importance) => {
            for (w, x) in importance.as_chunks::<8>().0.iter().zip(full) {
                see(w, x);
            }
        }
    }
    if !rest.is_empty() {
        let (mut w, mut x) = ([0.0; 8], [0.0; 8]);
        x[..rest.len()].copy_from_slice(rest);
        match importance {
            None => w[..rest.len()].fill(1.0),
            Some(all) => w[..rest.len()].copy_from_slice(&all[values.len() - rest.len()..]),
        }
        see(&w, &x);
    }
}

/// The sums of w, w L, w L^2, w x and w L x over weights x that count w, of which L is the level nearest on a grid.
#[inline(always)]
fn moments(
    values: &[f32],
    importance: Option<&[f32]>,
    (offset, inverse): (f32, f32),
    nearest: impl Fn(f32) -> f32,
) -> [f64; 5] {
    let mut sums = [[0.0f32; 8]; 5];
    by_eights(
        values,
        importance,
        #[inline(always)]
        |w, x| {
            let (mut level, mut wl, mut wx) = ([0.0; 8], [0.0; 8], [0.0; 8]);
            for lane in 0..8 {
                level[lane] = nearest((x[lane] - offset) * inverse);
                wl[lane] = w[lane] * level[lane];
                wx[lane] = w[lane] * x[lane];
            }
            for lane in 0..8 {
                sums[0][lane] += w[lane];
                sums[1][lane] += wl[lane];
                sums[2][lane] += wl[lane] * level[lane];
                sums[3][lane] += wx[lane];
                sums[4][lane] += wx[lane] * level[lane];
            }
        },
    );
    sums.map(|sums| sums.into_iter().map(f64::from).sum())
}

/// The weighted squared error of weights on a grid.
#[inline(always)]
fn squares(
    values: &[f32],
    importance: Option<&[f32]>,
    (scale, offset, inverse): (f32, f32, f32),
    nearest: impl Fn(f32) -> f32,
) -> f32 {
    let mut sums = [0.0f32; 8];
    by_eights(
        values,
        importance,
        #[inline(always)]
        |w, x| {
            for lane in 0..8 {
                let value = x[lane];
                let away = value - (scale * nearest((value - offset) * inverse) + offset);
                sums[lane] += w[lane] * (away * away);
            }
        },
    );
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// The lowest and the highest of some weights.
pub(super) fn extremes(values: &[f32]) -> (f32, f32) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    (low, values.iter().copied().fold(f32::NEG_INFINITY, f32::max))
}

/// An error if a weight is not finite.
pub(super) fn finite(values: &[f32], columns: usize, name: &str) -> Result<()> {
    let Some(place) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let (row, column) = (place / columns.max(1), place % columns.max(1));
    Err(Error::Tensor {
        path: "quantize".into(),
        tensor: name.into(),
        expected: "finite weights".into(),
        found: format!("{} at row {row}, column {column}", values[place]),
    })
}
