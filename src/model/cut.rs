//! What is left of a model: kept blocks and channels, and the smaller model that has only those.

use std::borrow::Cow;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::checkpoint::Weights;
use crate::device::{Device, HostTensor};
use crate::error::Result;
use crate::families::{Axis, BlockDims, Config, PrunableDim, TensorSpec, layer_name, tensor_specs};
use crate::kernels::copy::compact::compact;
use crate::tensor::{DType, Packed, WeightFormat};

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
        let whole = self.whole(spec).expect("what is left was there before");
        let weight = self.parent.load(whole)?;
        let kept = [Axis::Rows, Axis::Columns].map(|axis| self.kept(spec, whole, axis));
        if kept == [None, None] {
            return Ok(weight);
        }
        let [rows, columns] = kept;
        if let (Some(rows), None, true) = (&rows, &columns, weight.format.ty.has_scales()) {
            let rows: Vec<usize> = rows.iter().map(|row| *row as usize).collect();
            return Ok(weight.pick_rows(&rows));
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
        let format = cut_format(weight.format, true);
        Ok(stored(&values, format, rows.len(), columns.len()))
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        let whole = self.whole(spec).expect("what is left was there before");
        let format = self.parent.format(whole)?;
        let columns = self.kept(spec, whole, Axis::Columns).is_some();
        Ok(cut_format(format, columns))
    }
}

/// The format of what is left of a tensor. Rows keep their codes; where columns are cut, the groups of them that share a scale
/// do not survive, and what is left is dequantized.
pub fn cut_format(format: WeightFormat, columns_are_cut: bool) -> WeightFormat {
    if columns_are_cut && format.ty.has_scales() { WeightFormat::f16() } else { format }
}

/// Values in a format without scales.
fn stored(values: &[f32], format: WeightFormat, rows: usize, columns: usize) -> Packed {
    let narrow = |bits: fn(f32) -> u16| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| bits(*v).to_le_bytes()).collect();
        Packed::from_16bit(format, &bytes, rows, columns)
    };
    match format.ty.name {
        "f16" => narrow(|value| f16::from_f32(value).to_bits()),
        "bf16" => narrow(|value| bf16::from_f32(value).to_bits()),
        _ => Packed::from_f32(values, rows, columns),
    }
}
