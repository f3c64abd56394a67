//! `fresh`: every weight is drawn anew, in the model's own shape or a smaller one. The student of a new shape, and the control of
//! pruning: the same small shape, trained from scratch.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Context, Planned, Stage, StageKind, keys, parse};
use crate::device::{Device, Random};
use crate::error::Result;
use crate::methods::BadField;
use crate::methods::prune::left_specs;
use crate::model::{BlockDims, Config, Outline, Role, TensorSpec, Weights, stored};
use crate::stages::Needs;
use crate::tensor::{Packed, WeightFormat};

pub(super) const KIND: StageKind =
    StageKind { name: "fresh", result: "fresh", methods: &[], command: "", parse: parse::<Fresh> };

/// Weights as they are before any training. Tokenizer, vocabulary and the columns of a head stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fresh {
    /// Columns of the residual stream; absent here and below: as many as there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// Blocks: the first ones, with their windows and rotary encodings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Query heads of each block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Key and value heads of each block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Channels of each block's feed-forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn: Option<usize>,
}

/// The deviation of matrices, as GPT-2's.
const DEVIATION: f64 = 0.02;

impl Fresh {
    /// The configuration that is left of this one. No width may grow, so that whatever holds the model holds this too.
    fn shape(&self, model: &Config) -> Result<Config, BadField> {
        let widest = model.widest();
        let within = |field: &'static str, asked: Option<usize>, most: usize| match asked {
            Some(asked) if asked == 0 || asked > most => {
                Err(BadField::new(field, format!("1 to {most}, as many as the model has"), asked))
            }
            _ => Ok(asked),
        };
        let hidden = within("hidden", self.hidden, model.hidden_size)?;
        let layers = within("layers", self.layers, model.layers())?;
        let heads = within("heads", self.heads, widest.heads)?;
        let kv_heads = within("kv_heads", self.kv_heads, widest.kv_heads)?;
        let ffn = within("ffn", self.ffn, widest.intermediate_size)?;
        let mut config = model.clone();
        config.hidden_size = hidden.unwrap_or(model.hidden_size);
        config.blocks.truncate(layers.unwrap_or(model.layers()));
        // Bases of a stream that was rotated mean nothing to other weights.
        config.shortcuts = false;
        for (layer, block) in config.blocks.iter_mut().enumerate() {
            *block = BlockDims {
                heads: heads.unwrap_or(block.heads),
                kv_heads: kv_heads.unwrap_or(block.kv_heads),
                intermediate_size: ffn.unwrap_or(block.intermediate_size),
                ..*block
            };
            if !block.heads.is_multiple_of(block.kv_heads) {
                let field = if self.kv_heads.is_some() { "kv_heads" } else { "heads" };
                let expected = "query heads a multiple of the key and value heads";
                let found = format!("{} and {} in block {layer}", block.heads, block.kv_heads);
                return Err(BadField::new(field, expected, found));
            }
        }
        Ok(config)
    }

    /// The model that is left of one of this outline.
    fn outline(&self, model: &Outline) -> Result<Outline, BadField> {
        let config = self.shape(&model.config)?;
        let mut specs = left_specs(&config, &model.specs);
        specs.retain(|spec| model.find(&spec.name).is_some());
        let format = |spec: &TensorSpec| {
            let before = model.find(&spec.name).map(|(_, format)| format);
            before.filter(|format| format.ty.is_plain()).unwrap_or_else(WeightFormat::f16)
        };
        // What blocks that compete are left with is known only when they were cut, unless all of it is said here.
        let said = self.heads.is_some() && self.kv_heads.is_some() && self.ffn.is_some();
        Ok(Outline {
            formats: specs.iter().map(format).collect(),
            copies: vec![None; specs.len()],
            specs,
            config,
            estimated: model.estimated && !said,
            uneven: model.uneven && !said,
            first: model.first.clone(),
        })
    }
}

impl Stage for Fresh {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs::default()
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let outline = self.outline(model).map_err(BadField::in_recipe)?;
        let layers = outline.config.layers();
        let changes: HashMap<String, String> = outline
            .specs
            .iter()
            .map(|spec| {
                let text = match spec.role {
                    Role::Norm => "1".into(),
                    Role::Bias | Role::PositionBias => "0".into(),
                    _ => format!("drawn, deviation {:.4}", deviation(spec, layers)),
                };
                (spec.name.clone(), text)
            })
            .collect();
        Ok(Planned {
            peak_device_bytes: 0,
            peak_host_bytes: 8 * outline.largest(),
            changes,
            outline,
            warnings: Vec::new(),
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let outline = self.outline(&Outline::of(model)?).map_err(BadField::in_recipe)?;
        context.write("drawing weights", &Drawn { outline, seed: context.seed })
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        _: &'a Device,
        _: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        // Nothing of the model before is left that a rounding could be measured against.
        let outline = self.outline(&Outline::of(model)?).map_err(BadField::in_recipe)?;
        Ok(Some(Box::new(Drawn { outline, seed: 0 })))
    }

    fn keeps_channels(&self) -> bool {
        false
    }
}

/// The deviation of a matrix in a model of so many layers: what is added to the residual stream, twice a layer, is less, so that
/// the stream is not wider for more layers (Radford et al. 2019, GPT-2, section 2.3).
fn deviation(spec: &TensorSpec, layers: usize) -> f64 {
    match spec.slot.feeds_stream() {
        true => DEVIATION / (2.0 * layers as f64).sqrt(),
        false => DEVIATION,
    }
}

/// A model whose weights are drawn when they are asked for, the same ones every time.
struct Drawn {
    outline: Outline,
    seed: u64,
}

impl Weights for Drawn {
    fn config(&self) -> &Config {
        &self.outline.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.outline.specs
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        self.outline.format(spec)
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let mut values = vec![0.0; spec.rows * spec.columns];
        match spec.role {
            Role::Bias | Role::PositionBias => {}
            Role::Norm => values.fill(1.0),
            Role::Embedding
            | Role::Linear
            | Role::Router
            | Role::Head
            | Role::Score
            | Role::Table => {
                let deviation = deviation(spec, self.outline.config.layers()) as f32;
                let first = Random::seed_of(self.seed, &spec.name);
                values.par_chunks_mut(spec.columns).enumerate().for_each(|(row, line)| {
                    let mut random = Random::new(first.wrapping_add(row as u64));
                    line.fill_with(|| deviation * random.normal());
                });
            }
        }
        stored(&values, self.format(spec)?, spec)
    }
}
