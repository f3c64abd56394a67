//! A model as its headers describe it: what plans are made from.

use std::collections::BTreeMap;

use super::checkpoint::{CopyOf, Weights};
use super::resident::block_counts;
use crate::error::{Error, Result};
use crate::families::{Config, Role, TensorSpec};
use crate::graph::Compute;
use crate::kernels::kv::CacheType;
use crate::tensor::{Packed, WeightFormat};

/// Configuration, tensors and their formats, without weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// The configuration.
    pub config: Config,
    /// The first model's, of which a plan's stages made this one.
    pub first: Config,
    /// The tensors, in the order a model meets them.
    pub specs: Vec<TensorSpec>,
    /// The format of each.
    pub formats: Vec<WeightFormat>,
    /// Of which tensor of the first model each is a copy, of rows perhaps that only the stage knows.
    pub copies: Vec<Option<CopyOf>>,
    /// Whether the sizes are estimates: what stays is known only when the stage has run.
    pub estimated: bool,
    /// Whether blocks compete for what stays: they will differ in width, and the sizes here are means.
    pub uneven: bool,
}

impl Outline {
    /// The outline of a model. Loads no weight.
    pub fn of(weights: &dyn Weights) -> Result<Self> {
        let specs = weights.specs();
        let formats = specs.iter().map(|spec| weights.format(spec));
        Ok(Self {
            config: weights.config().clone(),
            first: weights.config().clone(),
            specs: specs.to_vec(),
            formats: formats.collect::<Result<_>>()?,
            copies: specs.iter().map(|spec| weights.copy_of(spec)).collect(),
            estimated: false,
            uneven: false,
        })
    }

    /// Tensors with their formats.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorSpec, WeightFormat)> {
        self.specs.iter().zip(self.formats.iter().copied())
    }

    /// The tensor of a name, and its format.
    pub fn find(&self, name: &str) -> Option<(&TensorSpec, WeightFormat)> {
        self.tensors().find(|(spec, _)| spec.name == name)
    }

    /// Weights in all.
    pub fn parameters(&self) -> u64 {
        self.specs.iter().map(values).sum()
    }

    /// Bytes of the tensors in their formats, in memory.
    pub fn bytes(&self) -> u64 {
        self.tensors().map(|(spec, format)| format.bytes(spec.rows, spec.columns)).sum()
    }

    /// The same without the padding of rows, as reports count them.
    pub fn unpadded_bytes(&self) -> u64 {
        self.tensors().map(|(spec, format)| format.unpadded_bytes(spec.rows, spec.columns)).sum()
    }

    /// Weights of the largest tensor.
    pub fn largest(&self) -> u64 {
        self.specs.iter().map(values).max().unwrap_or(0)
    }

    /// Bytes of the largest expert's tensors; 0 without experts.
    pub fn bytes_of_an_expert(&self) -> u64 {
        let mut sums = BTreeMap::new();
        for (spec, format) in self.tensors() {
            if let Some(expert) = spec.slot.expert() {
                *sums.entry((spec.layer, expert)).or_insert(0) +=
                    format.bytes(spec.rows, spec.columns);
            }
        }
        sums.into_values().max().unwrap_or(0)
    }

    /// Bytes of the tensors of all experts.
    pub fn bytes_of_experts(&self) -> u64 {
        let experts = self.tensors().filter(|(spec, _)| spec.slot.expert().is_some());
        experts.map(|(spec, format)| format.bytes(spec.rows, spec.columns)).sum()
    }

    /// Device memory of a pass over windows of `ctx` tokens, in bytes: with all weights there, and with a block's at a time.
    pub fn evaluation_bytes(&self, ctx: usize) -> (u64, u64) {
        let work = self.pass_bytes(2048.max(ctx));
        let mut places = vec![0u64; self.config.layers()];
        let mut end = 0; // the embedding or the head: one at a time
        for (spec, format) in self.tensors() {
            let bytes = format.bytes(spec.rows, spec.columns);
            match spec.layer {
                Some(layer) => places[layer] += bytes,
                None => end = end.max(bytes),
            }
        }
        // A block's weights may still be in use when the next one's arrive.
        let block = 2 * places.iter().max().unwrap_or(&0);
        let streamed = block.max(end).saturating_add(work);
        (self.bytes().saturating_add(work), streamed)
    }

    /// Device memory of a pass over so many tokens beside the weights, in bytes.
    pub fn pass_bytes(&self, tokens: usize) -> u64 {
        let config = &self.config;
        let tokens = tokens as u64; // any number that the user typed
        let columns = |layer| block_counts(config, &self.specs, layer).columns;
        let widest = (0..config.layers()).map(columns).max().unwrap_or(0);
        // A block's results, and the streams before and after it.
        let columns = (widest + 3 * config.hidden_size) as u64;
        let logits = tokens.saturating_mul(4 * config.vocab_size as u64);
        tokens.saturating_mul(4 * columns).saturating_add(logits.min(256 << 20))
    }

    /// Device memory of the key-value cache of such a pass, which holds a layer at a time, in bytes; with what is decoded of it
    /// where its type is not that of activations.
    pub fn evaluation_cache_bytes(&self, ctx: usize, compute: Compute) -> Result<u64> {
        let config = &self.config;
        let width = config.widest().kv_heads * config.head_dim;
        let ty = compute.cache_type();
        let decoded = match ty == CacheType::plain(compute.activation) {
            true => 0,
            false => 2 * (width * compute.activation.size()) as u64,
        };
        let each = ty.bytes_per_token(width, config.head_dim)? + decoded;
        Ok((2048.max(ctx) as u64).saturating_mul(each))
    }

    /// Operations of the products with weights for one token: 2 for each weight of the linear layers and the head, of experts those
    /// of as many as a token uses.
    pub fn flops_per_token(&self) -> u64 {
        let used = self.config.experts.map_or(0, |experts| experts.used);
        let in_product = |spec: &&TensorSpec| match spec.role {
            Role::Linear => spec.slot.expert().is_none_or(|expert| expert < used),
            Role::Router | Role::Head | Role::Score => true,
            Role::Embedding => self.config.tied,
            Role::Norm | Role::Bias | Role::PositionBias | Role::Table => false,
        };
        2 * self.specs.iter().filter(in_product).map(values).sum::<u64>()
    }
}

/// An outline has everything of a model but values: what an export of it would write can be counted.
impl Weights for Outline {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        Err(Error::Tensor {
            path: "plan".into(),
            tensor: spec.name.clone(),
            expected: "values".into(),
            found: "an outline, which has none".into(),
        })
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.find(&spec.name) {
            Some((_, format)) => Ok(format),
            None => self.load(spec).map(|packed| packed.format),
        }
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        let place = self.specs.iter().position(|own| own.name == spec.name)?;
        self.copies[place].clone()
    }
}

fn values(spec: &TensorSpec) -> u64 {
    (spec.rows * spec.columns) as u64
}
