//! What is left of a model: kept blocks and channels, and the smaller model that has only those.

use std::borrow::Cow;

use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checkpoint::{CopyOf, Weights};
use crate::device::{Device, HostTensor};
use crate::error::{Error, Result};
use crate::families::{Axis, BlockDims, Config, PrunableDim, TensorSpec, layer_name, tensor_specs};
use crate::kernels::copy::compact::compact;
use crate::tensor::{DType, Packed, WHOLE_ROW, WeightFormat};

/// The blocks and channels of a model that are kept, each by its number in the whole model, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptChannels {
    /// Blocks.
    pub layers: Vec<usize>,
    /// Feed-forward channels of each kept block.
    pub feed_forward: Vec<Vec<usize>>,
    /// Key-value heads of each kept block; their query heads go with them.
    pub kv_groups: Vec<Vec<usize>>,
    /// Query heads of each kept block: as many of each key-value head that is kept, in its order.
    pub heads: Vec<Vec<usize>>,
    /// Columns of the residual stream.
    pub hidden: Vec<usize>,
    /// Of each kept block, the blocks that were merged into it: its weights are those of `layers` and so many times what each of
    /// these differs from them.
    pub merged: Vec<Vec<(usize, i64)>>,
}

impl KeptChannels {
    /// Everything is kept.
    pub fn nothing(config: &Config) -> Self {
        let all = |count: usize| (0..count).collect::<Vec<_>>();
        let blocks = config.blocks.iter();
        Self {
            layers: all(config.layers()),
            feed_forward: blocks.clone().map(|b| all(b.intermediate_size)).collect(),
            kv_groups: blocks.clone().map(|b| all(b.kv_heads)).collect(),
            heads: blocks.map(|b| all(b.heads)).collect(),
            hidden: all(config.hidden_size),
            merged: vec![Vec::new(); config.layers()],
        }
    }

    /// Keeps, of what is left of a width (of block `layer` of what is left), the units of these numbers only.
    pub fn keep(&mut self, width: PrunableDim, layer: Option<usize>, units: &[usize]) {
        let pick = |kept: &mut Vec<usize>| *kept = units.iter().map(|unit| kept[*unit]).collect();
        let layer = layer.unwrap_or(0);
        match width {
            PrunableDim::FeedForward => pick(&mut self.feed_forward[layer]),
            PrunableDim::KvGroup => {
                let before = &self.heads[layer];
                let each = before.len() / self.kv_groups[layer].len();
                let its = |unit: &usize| before[unit * each..(unit + 1) * each].to_vec();
                self.heads[layer] = units.iter().flat_map(its).collect();
                pick(&mut self.kv_groups[layer]);
            }
            PrunableDim::Head => pick(&mut self.heads[layer]),
            PrunableDim::Hidden => pick(&mut self.hidden),
            PrunableDim::Layers => {
                let block =
                    |lists: &[Vec<usize>]| units.iter().map(|u| lists[*u].clone()).collect();
                self.feed_forward = block(&self.feed_forward);
                self.kv_groups = block(&self.kv_groups);
                self.heads = block(&self.heads);
                self.merged = units.iter().map(|unit| self.merged[*unit].clone()).collect();
                pick(&mut self.layers);
            }
        }
    }

    /// Merges the `count` blocks behind block `layer` of what is left into it, by what each of them differs from it: W + (W1 - W) +
    /// (W2 - W) + … (Yang et al. 2024, LaCo, arXiv 2402.11187, equation 1). With one, that is the next block in its
    /// place: block `layer` goes.
    pub fn merge(&mut self, layer: usize, count: usize) {
        if count == 1 {
            // W + (W1 - W), and what else the next block is.
            let stay: Vec<usize> = (0..self.layers.len()).filter(|p| *p != layer).collect();
            return self.keep(PrunableDim::Layers, None, &stay);
        }
        let mut next = Self { merged: vec![Vec::new(); self.layers.len()], ..self.places() };
        next.merged[layer] = (layer + 1..=layer + count).map(|other| (other, 1)).collect();
        let stay: Vec<usize> = (0..self.layers.len())
            .filter(|place| !(layer + 1..=layer + count).contains(place))
            .collect();
        next.keep(PrunableDim::Layers, None, &stay);
        *self = self.then(&next);
    }

    /// What is left, all of it kept.
    fn places(&self) -> Self {
        let all = |units: &Vec<usize>| (0..units.len()).collect::<Vec<_>>();
        let of_blocks = |lists: &[Vec<usize>]| lists.iter().map(all).collect();
        Self {
            layers: all(&self.layers),
            feed_forward: of_blocks(&self.feed_forward),
            kv_groups: of_blocks(&self.kv_groups),
            heads: of_blocks(&self.heads),
            hidden: all(&self.hidden),
            merged: vec![Vec::new(); self.layers.len()],
        }
    }

    /// The blocks of the whole model that the block of this place is made of, each with its share; its own is first.
    fn shares(&self, place: usize) -> Vec<(usize, i64)> {
        let others = self.merged.get(place).map_or(&[][..], Vec::as_slice);
        let own = 1 - others.iter().map(|(_, share)| share).sum::<i64>();
        let others = others.iter().copied();
        std::iter::once((self.layers[place], own)).chain(others).collect()
    }

    /// What is kept of the whole model where `next` was kept of what this left.
    pub fn then(&self, next: &KeptChannels) -> KeptChannels {
        let pick = |from: &[usize], places: &[usize]| places.iter().map(|p| from[*p]).collect();
        let of_blocks = |from: &[Vec<usize>], kept: &[Vec<usize>]| {
            let blocks = next.layers.iter().zip(kept);
            blocks.map(|(layer, kept)| pick(&from[*layer], kept)).collect()
        };
        KeptChannels {
            layers: pick(&self.layers, &next.layers),
            feed_forward: of_blocks(&self.feed_forward, &next.feed_forward),
            kv_groups: of_blocks(&self.kv_groups, &next.kv_groups),
            heads: of_blocks(&self.heads, &next.heads),
            hidden: pick(&self.hidden, &next.hidden),
            merged: (0..next.layers.len()).map(|place| self.merged_then(next, place)).collect(),
        }
    }

    /// The blocks of the whole model, but the first one, that block `place` of what `next` leaves is made of.
    fn merged_then(&self, next: &KeptChannels, place: usize) -> Vec<(usize, i64)> {
        let first = self.layers[next.layers[place]];
        let mut shares: Vec<(usize, i64)> = Vec::new();
        for (middle, times) in next.shares(place) {
            for (layer, share) in self.shares(middle).into_iter().filter(|(l, _)| *l != first) {
                match shares.iter_mut().find(|(known, _)| *known == layer) {
                    Some((_, sum)) => *sum += times * share,
                    None => shares.push((layer, times * share)),
                }
            }
        }
        shares.retain(|(_, share)| *share != 0);
        shares
    }

    /// What went of a model of configuration `whole`, by numbers in it: blocks, columns of the residual stream, and of each block
    /// that is left (`layer` in the whole model, `place` now) feed-forward channels, key-value heads and query heads.
    pub fn gone(&self, whole: &Config) -> Value {
        let gone = |count: usize, kept: &[usize]| {
            let mut gone = vec![true; count];
            kept.iter().for_each(|unit| gone[*unit] = false);
            let gone = (0..count).filter(|unit| gone[*unit]);
            json!({"of": count, "cut": gone.collect::<Vec<_>>()})
        };
        let blocks = self.layers.iter().enumerate().map(|(place, layer)| {
            let before = whole.blocks[*layer];
            let merged = self.merged.get(place).filter(|merged| !merged.is_empty());
            let merged = merged.map(|merged| json!(merged));
            let mut block = json!({
                "layer": layer, "place": place,
                "ffn": gone(before.intermediate_size, &self.feed_forward[place]),
                "kvgroup": gone(before.kv_heads, &self.kv_groups[place]),
                "head": gone(before.heads, &self.heads[place]),
            });
            if let Some(merged) = merged {
                block["merged"] = merged;
            }
            block
        });
        json!({
            "schema": 1, "layers": gone(whole.layers(), &self.layers),
            "hidden": gone(whole.hidden_size, &self.hidden), "blocks": blocks.collect::<Vec<_>>(),
        })
    }

    /// The configuration of what is left of a model of configuration `whole`.
    pub fn config(&self, whole: &Config) -> Config {
        let block = |(place, layer): (usize, &usize)| BlockDims {
            heads: self.heads[place].len(),
            kv_heads: self.kv_groups[place].len(),
            intermediate_size: self.feed_forward[place].len(),
            ..whole.blocks[*layer]
        };
        Config {
            hidden_size: self.hidden.len(),
            blocks: self.layers.iter().enumerate().map(block).collect(),
            ..whole.clone()
        }
    }
}

/// A model without what was cut. Tensors are cut when they are asked for.
pub struct Pruned<'a> {
    parent: &'a dyn Weights,
    device: &'a Device,
    cut: KeptChannels,
    config: Config,
    specs: Vec<TensorSpec>,
}

impl std::fmt::Debug for Pruned<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pruned").field("cut", &self.cut).finish()
    }
}

impl<'a> Pruned<'a> {
    /// `parent` with only what `cut` keeps of it; `device` does the cutting.
    pub fn new(parent: &'a dyn Weights, device: &'a Device, cut: KeptChannels) -> Self {
        let config = cut.config(parent.config());
        let mut pruned = Self { parent, device, cut, specs: Vec::new(), config };
        pruned.specs = tensor_specs(&pruned.config);
        let there = |spec: &TensorSpec| pruned.whole(spec).is_some();
        let specs = pruned.specs.iter().filter(|spec| there(spec)).cloned();
        pruned.specs = specs.collect();
        pruned
    }

    /// The kept channels.
    pub fn cut(&self) -> &KeptChannels {
        &self.cut
    }

    /// The parent's tensor that `spec`, one of what is left, comes from.
    pub fn whole(&self, spec: &TensorSpec) -> Option<&'a TensorSpec> {
        let name = match spec.layer() {
            None => Cow::Borrowed(spec.name.as_str()),
            Some(place) => {
                let layer = self.cut.layers[place];
                Cow::Owned(self.renamed(&spec.name, place, layer))
            }
        };
        self.parent.specs().iter().find(|spec| spec.name == name)
    }

    /// The name of the tensor of another layer of the parent that is what `name` is in its own.
    fn renamed(&self, name: &str, own: usize, other: usize) -> String {
        let parent = self.parent.config();
        name.replacen(&layer_name(parent, own), &layer_name(parent, other), 1)
    }

    /// Consecutive columns of a tensor here, one of what is left, that go or stay together; of a merged one, whose every value is
    /// new, 1.
    pub fn column_span(&self, spec: &TensorSpec, whole: &TensorSpec) -> usize {
        if self.merged(spec).is_some() {
            return 1;
        }
        let place = spec.layer().unwrap_or(0);
        let before = self.parent.config().blocks[self.cut.layers[place]];
        column_span(self.parent.config(), whole, (before, self.config.blocks[place]))
    }

    /// Whether the codes of a tensor do not survive the cut, so that its values must be rounded anew.
    pub fn loses_groups(&self, spec: &TensorSpec) -> Result<bool> {
        let whole = self.whole(spec).expect("what is left was there before");
        let columns = self.kept(spec, whole, Axis::Columns).is_some();
        let format = self.parent.format(whole)?;
        let merged = self.merged(spec).is_some() && !format.ty.is_plain();
        Ok(merged || columns && !codes_survive(format, self.column_span(spec, whole)))
    }

    /// The blocks that a tensor is made of, if it is of several.
    fn merged(&self, spec: &TensorSpec) -> Option<Vec<(usize, i64)>> {
        let shares = self.cut.shares(spec.layer()?);
        (shares.len() > 1).then_some(shares)
    }

    /// The parent's tensor behind `spec`, whole: of merged blocks the sum, in f32.
    fn weight(&self, spec: &TensorSpec, whole: &TensorSpec) -> Result<Packed> {
        let Some(shares) = self.merged(spec) else {
            return self.parent.load(whole);
        };
        let mut sum = vec![0f64; whole.rows * whole.columns];
        for (layer, share) in shares {
            let name = self.renamed(&whole.name, whole.layer().unwrap_or(0), layer);
            let found = self.parent.specs().iter().find(|spec| spec.name == name);
            let Some(its) = found.filter(|its| its.shape() == whole.shape()) else {
                return Err(Error::Tensor {
                    path: "merge".into(),
                    tensor: name,
                    expected: format!("{:?}, as {}", whole.shape(), whole.name),
                    found: found.map_or("nothing".into(), |its| format!("{:?}", its.shape())),
                });
            };
            let values = self.parent.load(its)?.to_f32();
            sum.iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += share as f64 * f64::from(value));
        }
        let values: Vec<f32> = sum.into_iter().map(|value| value as f32).collect();
        Ok(Packed::from_f32(&values, whole.rows, whole.columns))
    }

    /// A tensor with no more rounding than a cut needs: none, but values in f32 where the codes do not survive it.
    pub fn exact(&self, spec: &TensorSpec) -> Result<Packed> {
        let whole = self.whole(spec).expect("what is left was there before");
        let weight = self.weight(spec, whole)?;
        let [rows, columns] = [Axis::Rows, Axis::Columns].map(|axis| self.kept(spec, whole, axis));
        if rows.is_none() && columns.is_none() {
            return Ok(weight);
        }
        let span = self.column_span(spec, whole);
        let codes_stay = columns.is_none() || codes_survive(weight.format, span);
        if !weight.format.ty.is_plain() && codes_stay {
            let places = |kept: &[u32]| kept.iter().map(|c| *c as usize).collect::<Vec<_>>();
            let weight =
                rows.map_or_else(|| weight.clone(), |rows| weight.pick_rows(&places(&rows)));
            return Ok(match columns {
                Some(columns) => weight.pick_columns(&places(&columns)),
                None => weight,
            });
        }
        let all = |count: usize| (0..count as u32).collect::<Vec<_>>();
        let rows = rows.unwrap_or_else(|| all(weight.rows));
        let columns = columns.unwrap_or_else(|| all(weight.columns));
        let list = |list: &[u32]| {
            let list = HostTensor::from_u32(&[list.len()], list);
            self.device.upload(&list, "kept channels")
        };
        let mut values = Vec::with_capacity(rows.len() * columns.len());
        let kept_columns = list(&columns)?;
        // A dense matrix may be more than a binding holds where its codes are not.
        let fit = self.device.max_tensor_bytes() / (4 * weight.columns as u64);
        let mut left = rows.as_slice();
        while let Some(&first) = left.first() {
            let near = |row: &&u32| u64::from(**row - first) < fit.max(1);
            let (rows, rest) = left.split_at(left.iter().take_while(near).count());
            left = rest;
            let last = rows[rows.len() - 1];
            let slice = weight.slice_rows(first as usize, last as usize + 1);
            let dense =
                HostTensor::from_f32(DType::F32, &[slice.rows, slice.columns], &slice.to_f32());
            let dense = self.device.upload(&dense, &spec.name)?;
            let places: Vec<u32> = rows.iter().map(|row| row - first).collect();
            let shape = [rows.len(), columns.len()];
            let result = self.device.allocate(DType::F32, &shape, &spec.name)?;
            compact(self.device, &dense, (&list(&places)?, &kept_columns), &result)?;
            values.extend(self.device.read(&result)?.to_f32());
        }
        Ok(Packed::from_f32(&values, rows.len(), columns.len()))
    }

    /// The kept channels of a dimension of the parent's tensor behind `spec`; `None`: all.
    fn kept(&self, spec: &TensorSpec, whole: &TensorSpec, axis: Axis) -> Option<Vec<u32>> {
        let place = spec.layer().unwrap_or(0);
        let (width, channels) = match axis {
            Axis::Rows => (whole.row_width?, whole.rows),
            Axis::Columns => (whole.column_width?, whole.columns),
        };
        let kept = match width {
            PrunableDim::FeedForward => &self.cut.feed_forward[place],
            PrunableDim::KvGroup => &self.cut.kv_groups[place],
            PrunableDim::Head => &self.cut.heads[place],
            PrunableDim::Hidden => &self.cut.hidden,
            PrunableDim::Layers => return None,
        };
        let units = width.units(self.parent.config(), Some(self.cut.layers[place]));
        if kept.len() == units {
            return None;
        }
        let span = channels / units;
        let channels = |unit: &usize| (unit * span) as u32..((unit + 1) * span) as u32;
        Some(kept.iter().flat_map(channels).collect())
    }
}

impl Weights for Pruned<'_> {
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
        let whole = self.whole(spec).expect("what is left was there before");
        match self.loses_groups(spec)? {
            true => Ok(WeightFormat::f16()),
            false => self.parent.format(whole),
        }
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        let whole = self.whole(spec)?;
        let mut copy = self.parent.copy_of(whole)?;
        if self.merged(spec).is_some() {
            return None;
        }
        if self.kept(spec, whole, Axis::Columns).is_some() {
            return None;
        }
        if let Some(rows) = self.kept(spec, whole, Axis::Rows) {
            let row = |row: &u32| match &copy.rows {
                Some(rows) => rows[*row as usize],
                None => *row as usize,
            };
            copy.rows = Some(rows.iter().map(row).collect());
        }
        Some(copy)
    }
}

/// Whether what is left of a matrix keeps its codes when columns go in runs of `span`: groups that share a scale must go or stay
/// as a whole, or be whole rows, and so must super-blocks and the columns that a pattern of zeros looks at together. Rows can
/// always go.
pub fn codes_survive(format: WeightFormat, span: usize) -> bool {
    let scales = !format.ty.has_scales()
        || format.group_size == WHOLE_ROW
        || span.is_multiple_of(format.columns_together(span));
    scales && format.ty.sparsity.is_none_or(|pattern| span.is_multiple_of(pattern.of as usize))
}

/// Consecutive columns of a tensor of a model of this configuration that go or stay together, where its block becomes another.
/// Query heads go one by one, or, where as many as before read each key-value head that is left, with that.
pub fn column_span(
    config: &Config,
    spec: &TensorSpec,
    (before, after): (BlockDims, BlockDims),
) -> usize {
    let units = match spec.column_width {
        None => return spec.columns,
        Some(PrunableDim::FeedForward) => before.intermediate_size,
        Some(PrunableDim::Hidden) => config.hidden_size,
        Some(PrunableDim::Layers) => return spec.columns,
        Some(PrunableDim::KvGroup) => before.kv_heads,
        Some(PrunableDim::Head) => {
            let together = before.heads * after.kv_heads == after.heads * before.kv_heads;
            if together { before.kv_heads } else { before.heads }
        }
    };
    spec.columns / units.max(1)
}

/// The values of a tensor, rounded to a format without scales. An error if that makes one of them infinite.
pub fn stored(values: &[f32], format: WeightFormat, spec: &TensorSpec) -> Result<Packed> {
    let (rows, columns) = (spec.rows, spec.columns);
    let narrow = |bits: fn(f32) -> u16| {
        let mut bytes = vec![0u8; 2 * values.len()];
        bytes.par_chunks_mut(2 << 16).zip(values.par_chunks(1 << 16)).for_each(|(line, values)| {
            for (place, value) in line.chunks_exact_mut(2).zip(values) {
                place.copy_from_slice(&bits(*value).to_le_bytes());
            }
        });
        Packed::from_16bit(format, &bytes, rows, columns)
    };
    let packed = match format.ty.name {
        "f16" => narrow(|value| f16::from_f32(value).to_bits()),
        "bf16" => narrow(|value| bf16::from_f32(value).to_bits()),
        _ => Packed::from_f32(values, rows, columns),
    };
    match packed.first_non_finite() {
        None => Ok(packed),
        Some((row, column)) => Err(Error::Tensor {
            path: "the result".into(),
            tensor: spec.name.clone(),
            expected: format!("values that {} holds", format.label()),
            found: values[row * columns + column].to_string(),
        }),
    }
}
