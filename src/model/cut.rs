//! What is left of a model: kept blocks and channels, and the smaller model that has only those.

use std::borrow::Cow;

use half::{bf16, f16};
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
    /// Columns of the residual stream.
    pub hidden: Vec<usize>,
}

impl KeptChannels {
    /// Everything is kept.
    pub fn nothing(config: &Config) -> Self {
        let all = |count: usize| (0..count).collect::<Vec<_>>();
        let blocks = config.blocks.iter();
        Self {
            layers: all(config.layers()),
            feed_forward: blocks.clone().map(|b| all(b.intermediate_size)).collect(),
            kv_groups: blocks.map(|b| all(b.kv_heads)).collect(),
            hidden: all(config.hidden_size),
        }
    }

    /// Keeps, of what is left of a width (of block `layer` of what is left), the units of these numbers only.
    pub fn keep(&mut self, width: PrunableDim, layer: Option<usize>, units: &[usize]) {
        let pick = |kept: &mut Vec<usize>| *kept = units.iter().map(|unit| kept[*unit]).collect();
        let layer = layer.unwrap_or(0);
        match width {
            PrunableDim::FeedForward => pick(&mut self.feed_forward[layer]),
            PrunableDim::KvGroup => pick(&mut self.kv_groups[layer]),
            PrunableDim::Hidden => pick(&mut self.hidden),
            PrunableDim::Layers => {
                let block =
                    |lists: &[Vec<usize>]| units.iter().map(|u| lists[*u].clone()).collect();
                self.feed_forward = block(&self.feed_forward);
                self.kv_groups = block(&self.kv_groups);
                pick(&mut self.layers);
            }
        }
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
            hidden: pick(&self.hidden, &next.hidden),
        }
    }

    /// What went of a model of configuration `whole`, by numbers in it: blocks, columns of the residual stream, and of each block
    /// that is left (`layer` in the whole model, `place` now) feed-forward channels and key-value heads.
    pub fn gone(&self, whole: &Config) -> Value {
        let gone = |count: usize, kept: &[usize]| {
            let mut gone = vec![true; count];
            kept.iter().for_each(|unit| gone[*unit] = false);
            let gone = (0..count).filter(|unit| gone[*unit]);
            json!({"of": count, "cut": gone.collect::<Vec<_>>()})
        };
        let blocks = self.layers.iter().enumerate().map(|(place, layer)| {
            let before = whole.blocks[*layer];
            json!({
                "layer": layer, "place": place,
                "ffn": gone(before.intermediate_size, &self.feed_forward[place]),
                "kvgroup": gone(before.kv_heads, &self.kv_groups[place]),
            })
        });
        json!({
            "schema": 1, "layers": gone(whole.layers(), &self.layers),
            "hidden": gone(whole.hidden_size, &self.hidden), "blocks": blocks.collect::<Vec<_>>(),
        })
    }

    /// The configuration of what is left of a model of configuration `whole`.
    pub fn config(&self, whole: &Config) -> Config {
        let block = |(place, layer): (usize, &usize)| {
            let before = whole.blocks[*layer];
            let kv_heads = self.kv_groups[place].len();
            BlockDims {
                heads: before.heads / before.kv_heads * kv_heads,
                kv_heads,
                intermediate_size: self.feed_forward[place].len(),
                ..before
            }
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
                let whole = layer_name(self.cut.layers[place]);
                Cow::Owned(spec.name.replacen(&layer_name(place), &whole, 1))
            }
        };
        self.parent.specs().iter().find(|spec| spec.name == name)
    }

    /// Consecutive columns of a tensor here, one of what is left, that go or stay together.
    fn column_span(&self, spec: &TensorSpec, whole: &TensorSpec) -> usize {
        let place = spec.layer().map_or(0, |place| self.cut.layers[place]);
        column_span(self.parent.config(), whole, place)
    }

    /// Whether the codes of a tensor do not survive the cut, so that its values must be rounded anew.
    pub fn loses_groups(&self, spec: &TensorSpec) -> Result<bool> {
        let whole = self.whole(spec).expect("what is left was there before");
        let columns = self.kept(spec, whole, Axis::Columns).is_some();
        let format = self.parent.format(whole)?;
        Ok(columns && !codes_survive(format, self.column_span(spec, whole)))
    }

    /// A tensor with no more rounding than a cut needs: none, but values in f32 where the codes do not survive it.
    pub fn exact(&self, spec: &TensorSpec) -> Result<Packed> {
        let whole = self.whole(spec).expect("what is left was there before");
        let weight = self.parent.load(whole)?;
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
/// as a whole, or be whole rows, and so must the columns that a pattern of zeros looks at together. Rows can always go.
pub fn codes_survive(format: WeightFormat, span: usize) -> bool {
    let group = format.group_size;
    let scales =
        !format.ty.has_scales() || group == WHOLE_ROW || span.is_multiple_of(group as usize);
    scales && format.ty.sparsity.is_none_or(|pattern| span.is_multiple_of(pattern.of as usize))
}

/// Consecutive columns of a tensor of a model of this configuration that belong to one unit of their width, in block `layer`.
pub fn column_span(config: &Config, spec: &TensorSpec, layer: usize) -> usize {
    let units = spec.column_width.map_or(1, |width| width.units(config, Some(layer)));
    spec.columns / units.max(1)
}

/// The values of a tensor, rounded to a format without scales. An error if that makes one of them infinite.
pub fn stored(values: &[f32], format: WeightFormat, spec: &TensorSpec) -> Result<Packed> {
    let (rows, columns) = (spec.rows, spec.columns);
    let narrow = |bits: fn(f32) -> u16| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| bits(*v).to_le_bytes()).collect();
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
            path: "prune".into(),
            tensor: spec.name.clone(),
            expected: format!("values that {} holds", format.label()),
            found: values[row * columns + column].to_string(),
        }),
    }
}
