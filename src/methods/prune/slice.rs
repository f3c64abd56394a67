//! SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024): the residual stream is turned into the basis of its principal components,
//! and the components with the least variance are left out of all matrices that read or write it.
//!
//! A norm without gains does not mind a rotation of the stream: Qᵗ x has the length of x (section 3.1). So gains go into the
//! linear layers that read what they multiply ([`Folded`]), everything that writes the stream is multiplied by Qᵗ, everything
//! that reads it by Q, and nothing has changed. Then columns of Q go ([`Sliced`]). The mean that the source's code subtracts
//! from each row of the embedding belongs to LayerNorm; RMSNorm has none, and there it changes the model. It is not done.
//!
//! The source divides by the square root of the mean over the parent's d columns when k are left, as the length of what was cut
//! is little. A norm over k columns does the same with gains of sqrt(d/k) and an epsilon times d/k:
//!
//! x / sqrt(|x|²/d + ε) = sqrt(d/k) x / sqrt(|x|²/k + ε d/k)
//!
//! Gains are one number there, rounded to eight bits, so that every float type holds it; what the rounding leaves (less than
//! 0.4 %) goes into the linear layers behind the norm.

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;

use super::left_specs;
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::families::module_name;
use crate::graph::{BlockWeights, Linear, Pass, Slot};
use crate::kernels::matmul::{Destination, Input, linear};
use crate::kernels::matrix::Matrix;
use crate::kernels::norm::rms::rms;
use crate::methods::BadField;
use crate::methods::calibration::{Feed, Rows};
use crate::methods::linalg::eigen;
use crate::methods::prune::score::AT_ONCE;
use crate::methods::transform::hadamard::Rotation;
use crate::model::{
    Config, CopyOf, Outline, Role, TensorSpec, WeightSource, Weights, block_counts, stored,
};
use crate::tensor::{DType, Packed, WeightFormat};
use crate::walk::{BlockSums, Kind, Observer, Statistics, Through, Walk};

/// What is added to the diagonal of second moments, of its mean. Every eigenvalue grows by that much, so the vectors and their
/// order are those without it; moments of fewer tokens than columns, which are singular, are no special case.
const DAMPING: f64 = 0.01;

/// Most values that go through a product at once.
const AT_ONCE_VALUES: usize = 1 << 24;

/// The columns of the residual stream that are left of `width` at a ratio: the whole part, rounded down to a multiple, as the
/// source does.
pub fn kept_width(width: usize, ratio: f64, multiple: usize) -> Result<usize, BadField> {
    if !(0.0..1.0).contains(&ratio) {
        let found = match (1.0..100.0).contains(&ratio) {
            true => format!("{ratio}; {ratio} % is {}", ratio / 100.0),
            false => ratio.to_string(),
        };
        return Err(BadField::new("ratio", "0 or more, and less than 1", found));
    }
    if multiple == 0 {
        return Err(BadField::new("multiple", "1 or more", 0));
    }
    // 0.7 times 10 is 7, whatever binary fractions make of it.
    let whole = ((1.0 - ratio) * width as f64 + 1e-9).floor() as usize;
    match whole / multiple * multiple {
        0 => {
            let expected = format!("at most the {whole} columns that a ratio of {ratio} leaves");
            Err(BadField::new("multiple", expected, multiple))
        }
        kept => Ok(kept),
    }
}

/// Why the residual stream of a model of these tensors cannot be rotated, if it cannot.
pub fn obstacle(config: &Config, specs: &[TensorSpec]) -> Option<String> {
    let after = |spec: &&TensorSpec| {
        matches!(spec.slot, Slot::PostAttentionNorm | Slot::PostFeedForwardNorm)
    };
    if config.shortcuts {
        return Some("its residual stream is in several bases already".into());
    }
    specs.iter().find(after).map(|spec| {
        format!(
            "{} multiplies columns of what is added to the residual stream, each by a gain of its own, after dividing by their \
             length: the gains cannot go into the product before it, and do not commute with a rotation",
            spec.name
        )
    })
}

/// An error if a model of these tensors cannot be rotated.
pub fn check(config: &Config, specs: &[TensorSpec]) -> Result<()> {
    match obstacle(config, specs) {
        None => Ok(()),
        Some(why) => Err(Error::Unsupported {
            path: "slicegpt".into(),
            what: format!("a model of the family {}", config.family.name),
            why,
        }),
    }
}

/// The norm whose result a linear layer reads, if it reads the residual stream.
fn norm_before(slot: Slot) -> Option<Slot> {
    match slot {
        Slot::Query | Slot::Key | Slot::Value => Some(Slot::AttentionNorm),
        Slot::Gate | Slot::Up => Some(Slot::FeedForwardNorm),
        Slot::Router | Slot::ExpertGate(_) | Slot::ExpertUp(_) => Some(Slot::FeedForwardNorm),
        Slot::Head => Some(Slot::FinalNorm),
        _ => None,
    }
}

/// Whether it is a norm of the residual stream.
pub fn is_norm(slot: Slot) -> bool {
    matches!(slot, Slot::AttentionNorm | Slot::FeedForwardNorm | Slot::FinalNorm)
}

/// A model whose norms of the residual stream have no gains: they are part of the linear layers that read what they multiply.
/// The head is a matrix of its own.
pub struct Folded<'a> {
    parent: &'a dyn Weights,
    config: Config,
    specs: Vec<TensorSpec>,
}

impl std::fmt::Debug for Folded<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folded").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<'a> Folded<'a> {
    /// `parent` so changed. An error if it cannot be.
    pub fn new(parent: &'a dyn Weights) -> Result<Self> {
        check(parent.config(), parent.specs())?;
        let config = Config { tied: false, ..parent.config().clone() };
        let mut folded = Self { parent, specs: left_specs(&config, parent.specs()), config };
        let there = |spec: &TensorSpec| folded.whole(spec).is_some();
        folded.specs = folded.specs.iter().filter(|spec| there(spec)).cloned().collect();
        Ok(folded)
    }

    /// The parent's tensor behind one of these: of a head that was the embedding, that.
    fn whole(&self, spec: &TensorSpec) -> Option<&'a TensorSpec> {
        let find = |name: &str| self.parent.specs().iter().find(|whole| whole.name == name);
        let embedding = || {
            let mut specs = self.parent.specs().iter();
            specs.find(|whole| spec.slot == Slot::Head && whole.slot == Slot::Embedding)
        };
        find(&spec.name).or_else(embedding)
    }

    /// The parent's tensor behind one of these, which has one.
    fn parent_spec(&self, spec: &TensorSpec) -> &'a TensorSpec {
        self.whole(spec).expect("what the parent does not have was left out")
    }

    /// The values of a tensor that is no norm, where the norms divide what they give by `factor`: folded in f64, rounded once.
    fn values(&self, spec: &TensorSpec, factor: f64) -> Result<Vec<f32>> {
        let mut values = self.parent.load(self.parent_spec(spec))?.to_f32();
        let norm = norm_before(spec.slot).filter(|_| spec.role != Role::Bias);
        let Some(norm) = norm else { return Ok(values) };
        let norm = |whole: &&TensorSpec| (whole.slot, whole.layer) == (norm, spec.layer);
        let norm = self.parent.specs().iter().find(norm).expect("a norm stands before its layers");
        let gains = self.parent.load(norm)?.to_f32();
        let gains: Vec<f64> = gains.iter().map(|gain| factor * f64::from(*gain)).collect();
        values.par_chunks_mut(spec.columns).for_each(|row| {
            for (value, gain) in row.iter_mut().zip(&gains) {
                *value = (f64::from(*value) * gain) as f32;
            }
        });
        Ok(values)
    }
}

impl Weights for Folded<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let (rows, columns) = (spec.rows, spec.columns);
        if is_norm(spec.slot) {
            return Ok(Packed::from_f32(&vec![1.0; columns], rows, columns));
        }
        if norm_before(spec.slot).is_none() || spec.role == Role::Bias {
            return self.parent.load(self.parent_spec(spec));
        }
        Ok(Packed::from_f32(&self.values(spec, 1.0)?, rows, columns))
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match norm_before(spec.slot).is_none() && !is_norm(spec.slot) || spec.role == Role::Bias {
            true => self.parent.format(self.parent_spec(spec)),
            false => Ok(WeightFormat::f32()),
        }
    }
}

/// Directions of the residual stream: the rows of Qᵗ that are kept, the most important ones first; or all of those of a rotation.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    width: usize,
    directions: Directions,
}

#[derive(Clone, Debug, PartialEq)]
enum Directions {
    /// One after the other. Devices multiply with them.
    Rows(Vec<f32>),
    /// A product with it takes few operations, on the host and in f64.
    Rotation(Box<Rotation>),
}

impl Basis {
    /// Directions of a stream of so many columns, one after the other.
    pub fn new(width: usize, rows: Vec<f32>) -> Self {
        assert!(width > 0 && rows.len().is_multiple_of(width), "directions have one width");
        Self { width, directions: Directions::Rows(rows) }
    }

    /// The directions of a rotation, none of which goes.
    pub fn rotation(rotation: Rotation) -> Self {
        Self { width: rotation.width(), directions: Directions::Rotation(Box::new(rotation)) }
    }

    /// The first `kept` principal components of a stream with the second moments `moments`, (width, width), which are not
    /// centred. `what`: where the stream was looked at, for errors.
    pub fn principal(moments: &mut [f64], width: usize, kept: usize, what: &str) -> Result<Self> {
        let mean = (0..width).map(|at| moments[at * (width + 1)]).sum::<f64>() / width as f64;
        (0..width).for_each(|at| moments[at * (width + 1)] += DAMPING * mean);
        let vectors = eigen(moments, width, what)?.vectors;
        Ok(Self::new(width, vectors[..kept * width].iter().map(|value| *value as f32).collect()))
    }

    /// How many there are.
    pub fn kept(&self) -> usize {
        match &self.directions {
            Directions::Rows(rows) => rows.len() / self.width,
            Directions::Rotation(_) => self.width,
        }
    }

    /// Their values, one direction after the other.
    pub fn rows(&self) -> Cow<'_, [f32]> {
        match &self.directions {
            Directions::Rows(rows) => Cow::Borrowed(rows),
            Directions::Rotation(rotation) => Cow::Owned(rotation.rows()),
        }
    }

    /// What vectors of the stream are multiplied by to become coordinates.
    fn matrix(&self, device: &Device) -> Result<Matrix> {
        let packed = Packed::from_f32(&self.rows(), self.kept(), self.width);
        Matrix::upload(device, &packed, "directions of the residual stream")
    }

    /// What coordinates are multiplied by to become vectors of the stream.
    fn inverse(&self, device: &Device) -> Result<Matrix> {
        let rows = transposed(&self.rows(), self.kept(), self.width);
        let packed = Packed::from_f32(&rows, self.width, self.kept());
        Matrix::upload(device, &packed, "directions of the residual stream")
    }

    /// Vectors of the stream, (any number, width), in terms of the directions: (any number, kept).
    fn coordinates(&self, device: &Device, vectors: &[f32]) -> Result<Vec<f32>> {
        match &self.directions {
            Directions::Rows(_) => products(device, vectors, &self.matrix(device)?),
            Directions::Rotation(rotation) => {
                let mut turned = vectors.to_vec();
                rotation.apply_each(&mut turned);
                Ok(turned)
            }
        }
    }

    /// What of such vectors is along the directions.
    fn within(&self, device: &Device, vectors: &[f32]) -> Result<Vec<f32>> {
        products(device, &self.coordinates(device, vectors)?, &self.inverse(device)?)
    }
}

/// The product of vectors, (any number, columns), with a matrix of (rows, columns): (any number, rows).
pub fn products(device: &Device, vectors: &[f32], matrix: &Matrix) -> Result<Vec<f32>> {
    let columns = matrix.columns();
    let widest = (device.max_tensor_bytes() / 4).min(AT_ONCE_VALUES as u64) as usize;
    let at_once = (widest / columns.max(matrix.rows())).max(1) * columns;
    let mut products = Vec::with_capacity(vectors.len() / columns * matrix.rows());
    for some in vectors.chunks(at_once) {
        let x = HostTensor::from_f32(DType::F32, &[some.len() / columns, columns], some);
        let x = Input::new(device.upload(&x, "a weight to rotate")?, columns, 3);
        let result = linear(device, &x, matrix, None, Destination::New(DType::F32))?;
        products.extend(device.read(&result)?.to_f32());
    }
    Ok(products)
}

/// A matrix of (rows, columns), turned over.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut turned = vec![0.0; values.len()];
    turned.par_chunks_mut(rows.max(1)).enumerate().for_each(|(column, line)| {
        for (row, place) in line.iter_mut().enumerate() {
            *place = values[row * columns + column];
        }
    });
    turned
}

/// A model whose residual stream has fewer columns: its coordinates along the directions of a [`Basis`], or in each half of each
/// block along those of another one. Then two products a block take the stream from one basis to the next (section 3.2). The
/// head reads as many columns as everything else; the source leaves it whole unless told. Tensors are rotated when they are asked for, in f32 on the device, and then rounded to the parent's type, or to f16 where that has scales.
pub struct Sliced<'a> {
    folded: Folded<'a>,
    device: &'a Device,
    bases: Vec<Basis>,
    config: Config,
    specs: Vec<TensorSpec>,
}

impl std::fmt::Debug for Sliced<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sliced").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The configuration of what is left of `config` when `kept` columns of the stream are, in one basis or in several.
pub fn left(config: &Config, kept: usize, several: bool) -> Config {
    let factor = config.hidden_size as f64 / kept as f64;
    Config {
        hidden_size: kept,
        tied: false,
        shortcuts: several,
        rms_norm_eps: config.rms_norm_eps * factor,
        ..config.clone()
    }
}

/// The gain of all norms of the stream when `kept` of `width` columns are left, and what the linear layers behind them are to be
/// multiplied by.
fn gain(width: usize, kept: usize) -> (f32, f64) {
    let exact = (width as f64 / kept as f64).sqrt();
    let gain = bf16::from_f64(exact).to_f32();
    (gain, exact / f64::from(gain))
}

/// The format of what is left of a tensor in `format`, when it is rotated.
pub fn left_format(format: WeightFormat) -> WeightFormat {
    if format.ty.has_scales() { WeightFormat::f16() } else { format }
}

/// The format of a product that takes the stream from one basis to the next, in a block whose output layer was in `output`: of
/// numbers up to 1, of which bf16 has too few.
pub fn shortcut_format(output: WeightFormat) -> WeightFormat {
    if output == WeightFormat::f32() { output } else { WeightFormat::f16() }
}

/// Whether a tensor takes the stream from one basis to the next.
pub fn is_shortcut(spec: &TensorSpec) -> bool {
    matches!(spec.slot, Slot::AttentionShortcut | Slot::FeedForwardShortcut)
}

/// Whether a tensor is rotated: it reads or writes the residual stream, and is no norm.
pub fn is_rotated(spec: &TensorSpec) -> bool {
    let writes = spec.slot == Slot::Embedding || spec.slot.feeds_stream();
    is_shortcut(spec) || writes || (norm_before(spec.slot).is_some() && spec.role != Role::Bias)
}

impl<'a> Sliced<'a> {
    /// `parent` along the directions of `bases`: one, or those of the first block's two halves, of the second's, and so on, and
    /// at last that of the head. `device` multiplies with what has no quicker way. An error if the model cannot be rotated.
    pub fn new(parent: &'a dyn Weights, device: &'a Device, bases: Vec<Basis>) -> Result<Self> {
        let folded = Folded::new(parent)?;
        let all = 2 * folded.config.layers() + 1;
        assert!(bases.len() == 1 || bases.len() == all, "a basis, or one for each half of a block");
        let config = left(&folded.config, bases[0].kept(), bases.len() > 1);
        let mut specs = left_specs(&config, parent.specs());
        specs.retain(|spec| is_shortcut(spec) || folded.whole(spec).is_some());
        Ok(Self { folded, device, bases, config, specs })
    }

    /// The basis of the stream that a tensor reads or, if it does not read it, writes.
    fn basis(&self, spec: &TensorSpec) -> &Basis {
        let half = 2 * spec.layer.unwrap_or(self.config.layers());
        match spec.slot {
            _ if self.bases.len() == 1 => &self.bases[0],
            Slot::Embedding => &self.bases[0],
            Slot::Output | Slot::Gate | Slot::Up | Slot::FeedForwardShortcut => {
                &self.bases[half + 1]
            }
            Slot::Down => &self.bases[half + 2],
            _ => &self.bases[half],
        }
    }

    /// The parent's tensor behind one of these that is no product between two bases: of a head that was the embedding, that.
    pub fn whole(&self, spec: &TensorSpec) -> &TensorSpec {
        self.folded.parent_spec(spec)
    }

    /// A tensor without rounding but that of f32.
    pub fn exact(&self, spec: &TensorSpec) -> Result<Packed> {
        let (basis, device) = (self.basis(spec), self.device);
        let (width, kept) = (basis.width, basis.kept());
        let (gain, rest) = gain(width, kept);
        let (rows, columns) = (spec.rows, spec.columns);
        if is_norm(spec.slot) {
            return Ok(Packed::from_f32(&vec![gain; columns], rows, columns));
        }
        if is_shortcut(spec) {
            let half = 2 * spec.layer.unwrap_or(0);
            let next = half + 1 + usize::from(spec.slot == Slot::FeedForwardShortcut);
            let values = basis.coordinates(device, &self.bases[next].rows())?;
            return Ok(Packed::from_f32(&values, rows, columns));
        }
        let whole = self.folded.parent_spec(spec);
        if !is_rotated(spec) {
            return self.folded.parent.load(whole);
        }
        let values =
            self.folded.values(&TensorSpec { columns: whole.columns, ..spec.clone() }, rest)?;
        let values = match spec.slot {
            slot if slot.feeds_stream() && spec.role != Role::Bias => {
                // Its columns are vectors of the stream.
                let turned = transposed(&values, whole.rows, whole.columns);
                transposed(&basis.coordinates(device, &turned)?, columns, rows)
            }
            Slot::Embedding if self.config.family.scaled_embedding => {
                // Scaled by the root of a smaller width.
                let factor = (width as f64 / kept as f64).sqrt();
                let values = basis.coordinates(device, &values)?;
                values.iter().map(|value| (f64::from(*value) * factor) as f32).collect()
            }
            _ => basis.coordinates(device, &values)?,
        };
        Ok(Packed::from_f32(&values, rows, columns))
    }
}

impl Weights for Sliced<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let (exact, format) = (self.exact(spec)?, self.format(spec)?);
        if exact.format == format {
            return Ok(exact);
        }
        stored(&exact.to_f32(), format, spec)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        let parent = self.folded.parent;
        if is_shortcut(spec) {
            let is = |whole: &&TensorSpec| {
                (whole.layer, whole.slot, whole.role) == (spec.layer, Slot::Output, Role::Linear)
            };
            let output = parent.specs().iter().find(is).expect("a block has an output layer");
            return parent.format(output).map(shortcut_format);
        }
        let format = parent.format(self.folded.parent_spec(spec))?;
        Ok(if is_rotated(spec) { left_format(format) } else { format })
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        let changed = is_rotated(spec) || is_norm(spec.slot);
        let whole = self.folded.whole(spec).filter(|_| !changed)?;
        self.folded.parent.copy_of(whole)
    }
}

/// The same without rounding but that of f32: what the rounding of a [`Sliced`] model is measured against.
#[derive(Debug)]
pub struct Exact<'a>(pub Sliced<'a>);

impl Weights for Exact<'_> {
    fn config(&self) -> &Config {
        &self.0.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.0.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        self.0.exact(spec)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match is_rotated(spec) || is_norm(spec.slot) {
            true => Ok(WeightFormat::f32()),
            false => self.0.format(spec),
        }
    }
}

/// Device memory of it all, in bytes, about, for a calibration of so many rows and tokens of a row: the model is streamed.
pub fn device_bytes(model: &Outline, (samples, length): (usize, usize)) -> u64 {
    let config = &model.config;
    let (width, tokens) = (config.hidden_size as u64, samples.saturating_mul(length) as u64);
    let at_once = tokens.min(AT_ONCE.max(length) as u64);
    let values = |spec: &TensorSpec| (spec.rows * spec.columns) as u64;
    let of = |layer: Option<usize>| model.specs.iter().filter(move |spec| spec.layer == layer);
    let blocks = (0..config.layers()).map(|layer| of(Some(layer)).map(values).sum::<u64>());
    let columns =
        (0..config.layers()).map(|layer| block_counts(config, &model.specs, layer).columns);
    let columns = columns.max().unwrap_or(0) as u64 + 3 * width;
    let ends = model.tensors().filter(|(spec, _)| spec.slot == Slot::Embedding);
    let embedding: u64 = ends.map(|(spec, format)| format.bytes(spec.rows, spec.columns)).sum();
    let streams = tokens.saturating_mul(4 * width);
    // A block's weights may still be in use when the next one's arrive; two sums, and the products that they are made of.
    let block = (8 * blocks.max().unwrap_or(0)).saturating_add(at_once.saturating_mul(4 * columns));
    let walk = block.saturating_add(4 * 4 * width * width);
    // Embedded rows, all together and cut into microbatches.
    let begin = embedding.saturating_add(streams);
    let rotate = 4 * width * width + 3 * 4 * (AT_ONCE_VALUES as u64).max(width * width);
    streams.saturating_add(walk.max(begin)).max(rotate)
}

/// Second moments of the normalized stream where linear layers read it.
#[derive(Debug)]
struct Moments<'a>(Statistics<'a>);

impl Observer for Moments<'_> {
    fn input(&mut self, slot: Slot, x: &Tensor) -> Result<()> {
        match slot {
            Slot::Query | Slot::Gate => self.0.input(slot, x),
            _ => Ok(()),
        }
    }
}

const GRAM: [Kind; 1] = [Kind::Gram];

/// The second moments that were summed of an input, in f64, added to others.
fn add(sums: &BlockSums, slot: Slot, onto: &mut [f64]) {
    let found = sums.sum(slot, Kind::Gram).expect("they were asked for");
    onto.iter_mut().zip(found).for_each(|(sum, value)| *sum += f64::from(*value));
}

/// Where the calibration stands: blocks that were seen, and the sum of their second moments, (width, width).
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Blocks.
    pub blocks: usize,
    /// The sum.
    pub moments: Vec<f64>,
}

/// One basis for the whole network: that of the second moments of everything that linear layers read of the stream, normalized
/// and without gains, in each half of each block and before the head. A block's sums on the device are f32, all else is f64.
///
/// `start`: what an interrupted call saved with `save`, which is called after every block; `report` is told of blocks done and
/// of all.
pub fn whole_basis(
    folded: &Folded<'_>,
    (pass, rows): (Pass<'_>, &Rows),
    kept: usize,
    start: Option<Progress>,
    save: &mut dyn FnMut(&Progress) -> Result<()>,
    report: &mut dyn FnMut(usize, usize),
) -> Result<Basis> {
    let config = folded.config();
    let (layers, width) = (config.layers(), config.hidden_size);
    let mut progress =
        start.unwrap_or_else(|| Progress { blocks: 0, moments: vec![0.0; width * width] });
    let source = WeightSource::Streamed(pass.device, folded);
    let mut walk = Walk::new(source, pass, &rows.ids, rows.samples, AT_ONCE)?;
    while let Some(step) = walk.next_block()? {
        let layer = step.layer();
        report(layer, layers + 1);
        if layer < progress.blocks {
            step.advance(Through::Parent, None)?;
            continue;
        }
        let mut seen = Moments(Statistics::new(pass.device, &GRAM, rows.length()));
        step.advance(Through::Parent, Some(&mut seen))?;
        let sums = seen.0.read(|slot| module_name(config, layer, slot))?;
        add(&sums, Slot::Query, &mut progress.moments);
        add(&sums, Slot::Gate, &mut progress.moments);
        progress.blocks = layer + 1;
        save(&progress)?;
    }
    report(layers, layers + 1);
    let mut seen = Statistics::new(pass.device, &GRAM, rows.length());
    normalized(&walk, &pass, config, &mut seen)?;
    let sums = seen.read(|_| "the final norm".into())?;
    add(&sums, Slot::Query, &mut progress.moments);
    drop(walk);
    Basis::principal(&mut progress.moments, width, kept, "second moments of the residual stream")
}

/// Shows statistics the walk's streams, normalized, as the input of the queries.
fn normalized(
    walk: &Walk<'_>,
    pass: &Pass<'_>,
    config: &Config,
    seen: &mut Statistics<'_>,
) -> Result<()> {
    let width = config.hidden_size;
    let ones = HostTensor::from_f32(DType::F32, &[width], &vec![1.0; width]);
    let ones = pass.device.upload(&ones, "gains")?;
    for stream in walk.streams() {
        let epsilon = config.rms_norm_eps as f32;
        let normed = rms(pass.device, stream, &ones, epsilon, pass.compute.activation)?;
        seen.input(Slot::Query, &normed)?;
    }
    Ok(())
}

/// A basis for each half of each block, and one for the head: each that of the second moments of the stream where it is read,
/// normalized and without gains. With [`Feed::Compressed`] the stream that the first half leaves is looked at as a whole, cut to
/// its basis, taken through the second half, and so on, as the source does (section 3.3).
///
/// `known`: the first of them, as an interrupted call saved them with `save`, which is called for each with its number.
pub fn bases(
    folded: &Folded<'_>,
    (pass, rows): (Pass<'_>, &Rows),
    kept: usize,
    feed: Feed,
    known: Vec<Basis>,
    save: &mut dyn FnMut(usize, &Basis) -> Result<()>,
    report: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Basis>> {
    let config = folded.config();
    let (device, width, all) = (pass.device, config.hidden_size, 2 * config.layers() + 1);
    let source = WeightSource::Streamed(device, folded);
    let mut walk = Walk::new(source, pass, &rows.ids, rows.samples, AT_ONCE)?;
    let mut bases = known;
    let mut found = |seen: &Statistics<'_>, slot: Slot, place: usize| -> Result<Basis> {
        let what = format!("the residual stream before half {place} of the blocks");
        let mut moments = vec![0.0; width * width];
        add(&seen.read(|_| what.clone())?, slot, &mut moments);
        let basis = Basis::principal(&mut moments, width, kept, &what)?;
        save(place, &basis)?;
        Ok(basis)
    };
    for place in 0..all {
        report(place, all);
        if place % 2 == 0 {
            if bases.len() == place {
                let mut seen = Statistics::new(device, &GRAM, rows.length());
                normalized(&walk, &pass, config, &mut seen)?;
                bases.push(found(&seen, Slot::Query, place)?);
            }
            if feed == Feed::Compressed && place + 1 < all {
                let (there, back) = (bases[place].matrix(device)?, bases[place].inverse(device)?);
                walk.change(&mut |x| {
                    let new = Destination::New(DType::F32);
                    let x = linear(device, &Input::new(x.clone(), width, 3), &there, None, new)?;
                    linear(device, &Input::new(x, kept, 3), &back, None, new)
                })?;
            }
            continue;
        }
        let mut step = walk.next_block()?.expect("as many blocks as the configuration has");
        let mut seen = Moments(Statistics::new(device, &GRAM, rows.length()));
        let new = bases.len() == place;
        match feed {
            Feed::Parent => {
                step.advance(Through::Parent, if new { Some(&mut seen) } else { None })?;
                if new {
                    bases.push(found(&seen.0, Slot::Gate, place)?);
                }
            }
            Feed::Compressed => {
                if new {
                    step.observe(Through::Parent, &mut seen)?;
                    bases.push(found(&seen.0, Slot::Gate, place)?);
                }
                let cut = cut_attention(folded, &pass, step.layer(), step.block(), &bases[place])?;
                step.replace_all(cut);
                step.advance(Through::Replaced, None)?;
            }
        }
    }
    Ok(bases)
}

/// A block of a folded model whose stream, with attention's result, is cut to the directions of a basis before the feed-forward
/// reads it. Nothing is rotated: the streams of all blocks have the parent's columns.
fn cut_attention(
    folded: &Folded<'_>,
    pass: &Pass<'_>,
    layer: usize,
    block: &BlockWeights,
    basis: &Basis,
) -> Result<BlockWeights> {
    let (device, width) = (pass.device, basis.width);
    let mut cut = block.clone();
    let output = block.linear(Slot::Output);
    let its = |role: Role| {
        let is = move |spec: &&TensorSpec| {
            (spec.layer, spec.slot, spec.role) == (Some(layer), Slot::Output, role)
        };
        folded.specs().iter().find(is)
    };
    let spec = its(Role::Linear).expect("a block has an output layer");
    let values = transposed(&folded.load(spec)?.to_f32(), spec.rows, spec.columns);
    let values = transposed(&basis.within(device, &values)?, spec.columns, spec.rows);
    let weight = Packed::from_f32(&values, spec.rows, spec.columns);
    let weight = Matrix::upload(device, &weight, &output.name)?;
    let bias = match its(Role::Bias) {
        None => None,
        Some(bias) => {
            let values = basis.within(device, &folded.load(bias)?.to_f32())?;
            let values = HostTensor::from_f32(DType::F32, &[width], &values);
            Some(device.upload(&values, &output.name)?)
        }
    };
    cut.set_linear(
        Slot::Output,
        Linear { name: output.name.clone(), weight, bias, adapter: None, rounding: None },
    );
    let turned = transposed(&basis.rows(), basis.kept(), width);
    let projection = products(device, &turned, &basis.inverse(device)?)?;
    let name = module_name(folded.config(), layer, Slot::AttentionShortcut);
    let weight = Packed::from_f32(&projection, width, width);
    let weight = Matrix::upload(device, &weight, &name)?;
    cut.set_linear(
        Slot::AttentionShortcut,
        Linear { name, weight, bias: None, adapter: None, rounding: None },
    );
    Ok(cut)
}
