//! Block by block: a method is given a block's linear layers and the sums over their inputs, and gives new weights. So GPTQ,
//! SparseGPT and Wanda compress. Inputs are those that the compressed blocks before make of the text, or the parent's.
//!
//! Each compressed block is saved in the stage's folder before the next one begins: `blocks/00000.safetensors`, with what
//! the method says of it in `blocks/00000.json`. A run that was killed goes on at the first block that is not there, with the
//! same bytes in the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use crate::device::Tensor;
use crate::disk::{self, write_record};
use crate::error::{Error, Result};
use crate::formats::Source;
use crate::formats::safetensors::{NewTensor, Safetensors, write_file};
use crate::graph::Slot;
use crate::interrupt;
use crate::kernels::copy::cast::scaled;
use crate::kernels::matmul::backward;
use crate::methods::calibration::{Feed, Rows};
use crate::model::{Config, CopyOf, Pass, TensorSpec, WeightSource, Weights};
use crate::tensor::{DType, Packed, WeightFormat};
use crate::walk::stored::Stored;
use crate::walk::{BlockSums, Kind, Observer, Statistics, Step, Through, Walk};

/// A method that compresses the linear layers of a block.
pub trait Compressor {
    /// The sums over inputs that it takes; none: no text is needed.
    fn kinds(&self) -> &[Kind];

    /// The linear layers of a block in groups, by the slots of their inputs ([`Slot::input`]): where blocks are fed by
    /// compressed ones, the inputs of a group are observed with the groups before it replaced.
    fn groups(&self) -> &[&[Slot]];

    /// Whether outputs should be those of the dense model, whatever the blocks before made of the inputs: then
    /// [`Sums::cross`] says how the two go together, where blocks are fed by compressed ones.
    fn aims_at_model(&self) -> bool {
        false
    }

    /// What the walk's tokens count in squares and Gram matrices of a layer's inputs, by the roots ([`Statistics::with_roots`]);
    /// none: 1.
    fn roots(&self, _layer: usize) -> BTreeMap<Slot, &[f32]> {
        BTreeMap::new()
    }

    /// The format that it leaves a tensor in.
    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat>;

    /// New weights for some linear layers of a block with these sums (empty if it takes none), in their order.
    fn compress(&self, layers: &[Layer<'_>], sums: &Sums) -> Result<Vec<Compressed>>;
}

/// What is known of the inputs of a block's linear layers.
#[derive(Debug, Default)]
pub struct Sums {
    /// Sums over the inputs X (tokens, input features) that the layers get.
    pub block: BlockSums,
    /// A^T X (input features, input features) of those and the inputs A that the dense model has there, by the slot of the
    /// input: outputs W A^T are to W (A^T X) what outputs W X^T are to W (X^T X). Not of experts, to which the dense model may
    /// send other tokens.
    pub cross: BTreeMap<Slot, Vec<f32>>,
}

/// A linear layer to be compressed.
#[derive(Debug)]
pub struct Layer<'a> {
    /// Its tensor.
    pub spec: &'a TensorSpec,
    /// Its weight.
    pub weight: Packed,
}

/// What became of a linear layer.
#[derive(Debug)]
pub struct Compressed {
    /// Its weight, in the format that [`Compressor::format`] says.
    pub weight: Packed,
    /// What is reported of it.
    pub report: Value,
}

/// Where sums come from.
pub enum Inputs<'a> {
    /// Nowhere: the method takes none.
    None,
    /// A walk with these tokens.
    Walk {
        /// The tokens.
        rows: &'a Rows,
        /// Where and in what it computes.
        pass: Pass<'a>,
        /// Who feeds the blocks.
        feed: Feed,
    },
    /// Sums that were taken before, of the parent's inputs.
    Stored(&'a Stored),
}

/// Tokens that go through a block at a time.
const TOKENS_AT_ONCE: usize = 4096;

/// Compresses the tensors `chosen` of a model, and saves what becomes of them in `folder`, where an earlier call may have
/// left something. The embedding and the head come last. `progress` is given the blocks done, and all.
pub fn compress(
    model: &dyn Weights,
    chosen: &[&TensorSpec],
    inputs: Inputs<'_>,
    method: &dyn Compressor,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let layers = model.config().layers();
    let blocks = Blocks::new(folder, method, chosen, layers)?;
    let of = |layer: usize| -> Vec<&TensorSpec> {
        chosen.iter().copied().filter(|spec| spec.layer.unwrap_or(layers) == layer).collect()
    };
    let run = Run { model, method, blocks };
    let open = |layer: &usize| !of(*layer).is_empty() && !run.blocks.has(*layer);
    let Some(last) = (0..=layers).rev().find(open) else { return Ok(()) };
    let Inputs::Walk { rows, pass, feed } = inputs else {
        for layer in (0..=last).filter(open) {
            interrupt::check()?;
            progress(layer, layers);
            let block = match inputs {
                Inputs::Stored(stored) => {
                    stored_sums(stored, model.config(), layer, method.kinds())?
                }
                _ => BlockSums::default(),
            };
            let sums = Sums { block, ..Sums::default() };
            let compressed = run.compress(&of(layer), &sums)?;
            run.blocks.save(layer, &compressed)?;
        }
        return Ok(());
    };
    let new_walk = || {
        let source = WeightSource::Streamed(pass.device, model);
        Walk::new(source, pass, &rows.ids, rows.samples, TOKENS_AT_ONCE)
    };
    let mut walk = new_walk()?;
    let length = walk.length();
    let through = feed.through();
    // The dense model's own way through the text, where it is asked for.
    let mut dense = match feed == Feed::Compressed && method.aims_at_model() {
        true => Some(new_walk()?),
        false => None,
    };
    while let Some(mut step) = walk.next_block()? {
        let layer = step.layer();
        if layer > last {
            return Ok(());
        }
        progress(layer, layers);
        let mut dense = match &mut dense {
            Some(dense) => dense.next_block()?,
            None => None,
        };
        let specs = of(layer);
        if specs.is_empty() || run.blocks.has(layer) {
            if feed == Feed::Compressed {
                for (spec, weight) in run.blocks.load(&specs)? {
                    step.replace(spec.slot, &weight)?;
                }
            }
            step.advance(through, None)?;
        } else if feed == Feed::Parent {
            let sums = run.observe(layer, &specs, (&pass, length), |observer| {
                step.advance(through, Some(observer))
            })?;
            run.blocks.save(layer, &run.compress(&specs, &sums)?)?;
        } else {
            let mut all = Vec::new();
            for group in run.grouped(&specs) {
                let sums = run.look(&group, (&pass, length), &mut step, dense.as_mut())?;
                let compressed = run.compress(&group, &sums)?;
                for (spec, new) in &compressed {
                    step.replace(spec.slot, &new.weight)?;
                }
                all.extend(compressed);
            }
            run.blocks.save(layer, &all)?;
            step.advance(through, None)?;
        }
        if let Some(dense) = dense {
            dense.advance(Through::Parent, None)?;
        }
    }
    let specs = of(layers);
    if !specs.is_empty() && !run.blocks.has(layers) {
        progress(layers, layers);
        let sums =
            run.observe(layers, &specs, (&pass, length), |observer| walk.observe_head(observer))?;
        run.blocks.save(layers, &run.compress(&specs, &sums)?)?;
    }
    Ok(())
}

struct Run<'a> {
    model: &'a dyn Weights,
    method: &'a dyn Compressor,
    blocks: Blocks<'a>,
}

impl Run<'_> {
    /// The tensors by the method's groups; those that are in none together behind them.
    fn grouped<'s>(&self, specs: &[&'s TensorSpec]) -> Vec<Vec<&'s TensorSpec>> {
        let groups = self.method.groups();
        let place = |spec: &TensorSpec| {
            // Experts stand beside each other: one stands for all.
            let slot = spec.slot.input().of_expert(0);
            let found = groups.iter().position(|group| group.contains(&slot));
            found.unwrap_or(groups.len())
        };
        let grouped = (0..=groups.len())
            .map(|group| specs.iter().copied().filter(|spec| place(spec) == group).collect());
        grouped.filter(|group: &Vec<_>| !group.is_empty()).collect()
    }

    /// The sums over the inputs of these layers while `run` shows what goes through their block.
    fn observe(
        &self,
        layer: usize,
        specs: &[&TensorSpec],
        (pass, length): (&Pass<'_>, usize),
        run: impl FnOnce(&mut dyn Observer) -> Result<()>,
    ) -> Result<Sums> {
        let start = std::time::Instant::now();
        let slots = specs.iter().map(|spec| input_of(spec)).collect();
        let sums = Statistics::new(pass.device, self.method.kinds(), length)
            .with_roots(self.method.roots(layer));
        let mut observer = Only { slots, sums };
        run(&mut observer)?;
        let mut block = observer.sums.read(|slot| name_of(specs, slot))?;
        fill_unreached(specs.iter().copied(), self.method.kinds(), &mut block);
        tracing::debug!("{}: statistics in {:?}", specs[0].name, start.elapsed());
        Ok(Sums { block, ..Sums::default() })
    }

    /// The sums over the inputs of these layers as the block is now, beside what the dense model has there, if it is looked at.
    fn look(
        &self,
        specs: &[&TensorSpec],
        (pass, length): (&Pass<'_>, usize),
        step: &mut Step<'_, '_>,
        dense: Option<&mut Step<'_, '_>>,
    ) -> Result<Sums> {
        let Some(dense) = dense else {
            let through = Through::Replaced;
            let layer = step.layer();
            return self
                .observe(layer, specs, (pass, length), |observer| step.observe(through, observer));
        };
        let device = pass.device;
        let slots: BTreeSet<Slot> = specs.iter().map(|spec| input_of(spec)).collect();
        let seen: RefCell<BTreeMap<Slot, Tensor>> = RefCell::default();
        let mut keep = |slot: Slot, x: &Tensor| {
            // The dense model may send other tokens to an expert.
            if slots.contains(&slot) && slot.expert().is_none() {
                // The graph may use the memory again.
                seen.borrow_mut().insert(slot, scaled(device, x, 1.0, x.dtype())?);
            }
            Ok(())
        };
        let sums = Statistics::new(device, self.method.kinds(), length);
        let mut only = Only { slots: slots.clone(), sums };
        let mut cross: BTreeMap<Slot, Tensor> = BTreeMap::new();
        let mut pair = |slot: Slot, x: &Tensor| {
            only.input(slot, x)?;
            let Some(a) = seen.borrow_mut().remove(&slot) else { return Ok(()) };
            let tokens = x.shape()[0];
            let width = x.len() / tokens;
            let (a, x) = (a.reshaped(&[tokens, width]), x.reshaped(&[tokens, width]));
            let later = cross.get(&slot).cloned();
            let sum = match &later {
                Some(sum) => sum.clone(),
                None => device.allocate(DType::F32, &[width, width], "statistics")?,
            };
            backward::weight(device, &a, &x, &mut None, &sum, later.is_some())?;
            cross.insert(slot, sum);
            Ok(())
        };
        for index in 0..step.microbatches() {
            dense.observe_one(index, Through::Parent, &mut keep)?;
            step.observe_one(index, Through::Replaced, &mut pair)?;
        }
        let mut block = only.sums.read(|slot| name_of(specs, slot))?;
        fill_unreached(specs.iter().copied(), self.method.kinds(), &mut block);
        let mut read = BTreeMap::new();
        for (slot, sum) in cross {
            let values = device.read(&sum)?.to_f32();
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("products of the inputs of {}", name_of(specs, slot)),
                    found: value.to_string(),
                });
            }
            read.insert(slot, values);
        }
        Ok(Sums { block, cross: read })
    }

    fn compress<'s>(
        &self,
        specs: &[&'s TensorSpec],
        sums: &Sums,
    ) -> Result<Vec<(&'s TensorSpec, Compressed)>> {
        let load = |spec: &&'s TensorSpec| Ok(Layer { spec, weight: self.model.load(spec)? });
        let layers = specs.iter().map(load).collect::<Result<Vec<_>>>()?;
        let compressed = self.method.compress(&layers, sums)?;
        Ok(specs.iter().copied().zip(compressed).collect())
    }
}

/// Gives inputs of these tensors that no token reached sums of zero.
pub fn fill_unreached<'s>(
    specs: impl Iterator<Item = &'s TensorSpec>,
    kinds: &[Kind],
    block: &mut BlockSums,
) {
    specs.for_each(|spec| block.fill_unreached(spec.slot, spec.columns, kinds));
}

/// The name of a tensor with this input.
fn name_of(specs: &[&TensorSpec], slot: Slot) -> String {
    let named = specs.iter().find(|spec| input_of(spec) == slot);
    named.map_or_else(|| format!("{slot:?}"), |spec| spec.name.clone())
}

/// The slot that stands for a weight's input: the head's for the table of a tied embedding, which is the head's weight too.
pub fn input_of(spec: &TensorSpec) -> Slot {
    match spec.slot {
        Slot::Embedding => Slot::Head,
        slot => slot.input(),
    }
}

/// The Gram matrix of a layer's inputs (columns, columns) as it was summed; its upper half counts.
pub fn gram_sums<'a>(spec: &TensorSpec, sums: &'a BlockSums) -> Result<&'a [f32]> {
    sum(spec, sums, Kind::Gram, spec.columns * spec.columns)
}

/// The Gram matrix of a layer's inputs in f64, symmetric to the bit.
pub fn gram(spec: &TensorSpec, sums: &BlockSums) -> Result<Vec<f64>> {
    let n = spec.columns;
    let sum = gram_sums(spec, sums)?;
    let line = |i: usize| (0..n).map(move |j| f64::from(sum[i.min(j) * n + i.max(j)]));
    Ok((0..n).into_par_iter().flat_map_iter(line).collect())
}

/// A sum over a layer's inputs, of so many numbers.
pub fn sum<'a>(
    spec: &TensorSpec,
    sums: &'a BlockSums,
    kind: Kind,
    count: usize,
) -> Result<&'a [f32]> {
    let found = sums.sum(input_of(spec), kind);
    found.filter(|sum| sum.len() == count).ok_or_else(|| Error::Tensor {
        path: "statistics".into(),
        tensor: spec.name.clone(),
        expected: format!("{count} sums of {}", kind.name()),
        found: found.map_or_else(|| "none".into(), |sum| sum.len().to_string()),
    })
}

/// The squares of a layer's inputs: the diagonal of their Gram matrix, where that is known.
pub fn squares(spec: &TensorSpec, sums: &BlockSums, gram: Option<&[f64]>) -> Result<Vec<f32>> {
    let n = spec.columns;
    match gram {
        Some(gram) => Ok((0..n).map(|i| gram[i * (n + 1)] as f32).collect()),
        None => sum(spec, sums, Kind::Squares, n).map(<[f32]>::to_vec),
    }
}

/// Statistics of some inputs only.
struct Only<'a> {
    slots: BTreeSet<Slot>,
    sums: Statistics<'a>,
}

impl Observer for Only<'_> {
    fn input(&mut self, slot: Slot, x: &Tensor) -> Result<()> {
        match self.slots.contains(&slot) {
            true => self.sums.input(slot, x),
            false => Ok(()),
        }
    }

    fn wants_output(&self) -> bool {
        self.sums.wants_output()
    }

    fn output(&mut self, before: &Tensor, after: &Tensor) -> Result<()> {
        self.sums.output(before, after)
    }
}

/// The compressed blocks in a stage's folder.
struct Blocks<'a> {
    folder: PathBuf,
    layers: usize,
    formats: HashMap<&'a str, WeightFormat>,
}

/// The folder of compressed blocks in a stage's.
const FOLDER: &str = "blocks";
/// Words of a tensor in a block's file.
const CODES: &str = "codes";
const SCALES: &str = "scales";

impl<'a> Blocks<'a> {
    /// Those of a method in a stage's folder.
    fn new(
        folder: &Path,
        method: &dyn Compressor,
        chosen: &[&'a TensorSpec],
        layers: usize,
    ) -> Result<Self> {
        let folder = folder.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
        let format = |spec: &&'a TensorSpec| Ok((spec.name.as_str(), method.format(spec)?));
        let formats = chosen.iter().map(format).collect::<Result<_>>()?;
        Ok(Self { folder, layers, formats })
    }

    fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("{layer:05}.safetensors"))
    }

    /// Whether a block is there. Its file has its name only when it is whole.
    fn has(&self, layer: usize) -> bool {
        self.path(layer).exists()
    }

    /// Saves a block, its report first.
    fn save(&self, layer: usize, compressed: &[(&TensorSpec, Compressed)]) -> Result<()> {
        let path = self.path(layer);
        let reports: Vec<&Value> = compressed.iter().map(|(_, new)| &new.report).collect();
        let reports = serde_json::to_string(&reports).expect("reports are plain values");
        write_record(&path.with_extension("json"), &reports)?;
        let mut tensors = Vec::new();
        for (spec, Compressed { weight, .. }) in compressed {
            debug_assert_eq!(Some(&weight.format), self.formats.get(spec.name.as_str()));
            let parts = [(CODES, &weight.codes), (SCALES, &weight.scales)];
            for (part, words) in parts.into_iter().filter(|(_, words)| !words.is_empty()) {
                let bytes = move || Ok(bytemuck::cast_slice(words).to_vec());
                tensors.push(NewTensor {
                    name: format!("{}.{part}", spec.name),
                    dtype: DType::U32,
                    shape: vec![words.len()],
                    data: Box::new(bytes),
                });
            }
        }
        write_file(&path, tensors)
    }

    /// The weights of these tensors of a block.
    fn load<'s>(&self, specs: &[&'s TensorSpec]) -> Result<Vec<(&'s TensorSpec, Packed)>> {
        let Some(first) = specs.first() else { return Ok(Vec::new()) };
        let path = self.path(first.layer.unwrap_or(self.layers));
        let file = Safetensors::open(Source::open(&path)?)?;
        let words = |spec: &TensorSpec, part: &str, count: usize| -> Result<Vec<u32>> {
            if count == 0 {
                return Ok(Vec::new());
            }
            let name = format!("{}.{part}", spec.name);
            let bytes = file.get(&name).map(|tensor| tensor.bytes()).transpose()?;
            let found = bytes.as_ref().map_or(0, |bytes| bytes.len() / 4);
            match bytes {
                Some(bytes) if found == count => Ok(bytemuck::pod_collect_to_vec(&bytes)),
                _ => Err(Error::Tensor {
                    path: path.clone(),
                    tensor: name,
                    expected: format!("{count} words"),
                    found: format!("{found}"),
                }),
            }
        };
        let load = |spec: &&'s TensorSpec| {
            let (rows, columns) = (spec.rows, spec.columns);
            let format = self.formats[spec.name.as_str()];
            let codes = words(spec, CODES, rows * format.code_words_per_row(columns))?;
            let scales = words(spec, SCALES, rows * format.scale_words_per_row(columns))?;
            Ok((*spec, Packed { format, rows, columns, codes, scales }))
        };
        specs.iter().map(load).collect()
    }
}

/// What a method said of each tensor of a stage's folder, block by block.
pub fn reports(folder: &Path) -> Result<Vec<Value>> {
    let folder = folder.join(FOLDER);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(Error::read(&folder))? {
        let path = entry.map_err(Error::read(&folder))?.path();
        if path.extension().is_some_and(|end| end == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let text = disk::read_json(&path, disk::LIST)?;
        let reports: Vec<Value> =
            serde_json::from_slice(&text).map_err(|error| Error::Malformed {
                path,
                what: "report of a block".into(),
                offset: None,
                expected: "what this version writes".into(),
                found: error.to_string(),
            })?;
        all.extend(reports);
    }
    Ok(all)
}

/// Removes the compressed blocks from a stage's folder, once its result is written.
pub fn remove(folder: &Path) -> Result<()> {
    let folder = folder.join(FOLDER);
    std::fs::remove_dir_all(&folder).map_err(Error::write(&folder))
}

/// Stored sums of a block; behind the last one of the head's input, if there are any.
fn stored_sums(
    stored: &Stored,
    config: &Config,
    layer: usize,
    kinds: &[Kind],
) -> Result<BlockSums> {
    if layer < config.layers() {
        return stored.block(config, layer, kinds);
    }
    let head = stored.head(config, kinds)?;
    let inputs = head.into_iter().map(|input| (Slot::Head, input)).collect();
    Ok(BlockSums { inputs, ..BlockSums::default() })
}

/// Shows the sums of these blocks over the inputs that the parent makes; the head's input is the one behind the last.
pub fn survey(
    model: &dyn Weights,
    inputs: &Inputs<'_>,
    kinds: &[Kind],
    blocks: Range<usize>,
    see: &mut dyn FnMut(usize, &BlockSums) -> Result<()>,
) -> Result<()> {
    let layers = model.config().layers();
    let (rows, pass) = match inputs {
        Inputs::None => return Ok(()),
        Inputs::Stored(stored) => {
            return blocks.into_iter().try_for_each(|layer| {
                interrupt::check()?;
                see(layer, &stored_sums(stored, model.config(), layer, kinds)?)
            });
        }
        Inputs::Walk { rows, pass, .. } => (rows, *pass),
    };
    if blocks.is_empty() {
        return Ok(());
    }
    let source = WeightSource::Streamed(pass.device, model);
    let mut walk = Walk::new(source, pass, &rows.ids, rows.samples, TOKENS_AT_ONCE)?;
    let length = walk.length();
    while let Some(step) = walk.next_block()? {
        let layer = step.layer();
        if layer < blocks.start {
            step.advance(Through::Parent, None)?;
            continue;
        }
        let mut sums = Statistics::new(pass.device, kinds, length);
        step.advance(Through::Parent, Some(&mut sums))?;
        let mut block = sums.read(|slot| format!("{slot:?} of layer {layer}"))?;
        let specs = model.specs().iter().filter(|spec| spec.layer == Some(layer));
        fill_unreached(specs, kinds, &mut block);
        see(layer, &block)?;
        if layer + 1 == blocks.end {
            return Ok(());
        }
    }
    let mut sums = Statistics::new(pass.device, kinds, length);
    walk.observe_head(&mut sums)?;
    see(layers, &sums.read(|slot| format!("{slot:?}"))?)
}

/// A model with compressed tensors in place of the parent's.
pub struct Replaced<'a> {
    model: &'a dyn Weights,
    blocks: Blocks<'a>,
}

impl<'a> Replaced<'a> {
    /// Once [`compress`] is through.
    pub fn new(
        model: &'a dyn Weights,
        chosen: &[&'a TensorSpec],
        method: &dyn Compressor,
        folder: &Path,
    ) -> Result<Self> {
        let blocks = Blocks::new(folder, method, chosen, model.config().layers())?;
        Ok(Self { model, blocks })
    }
}

impl Weights for Replaced<'_> {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        if !self.blocks.formats.contains_key(spec.name.as_str()) {
            return self.model.load(spec);
        }
        let mut loaded = self.blocks.load(&[spec])?;
        Ok(loaded.remove(0).1)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.blocks.formats.get(spec.name.as_str()) {
            Some(format) => Ok(*format),
            None => self.model.format(spec),
        }
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        let replaced = self.blocks.formats.contains_key(spec.name.as_str());
        self.model.copy_of(spec).filter(|_| !replaced)
    }
}
