//! Inputs of linear layers, rounded to eight bits when the model runs: with weights in eight bits what other programs call W8A8. Weights stay as
//! they are; a layer's inputs are rounded once its weight is codes, by this stage's parent or by a `quantize` stage behind it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::scaled::Observed;
use super::{KIND, REPORT};
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::methods::calibration::Feed;
use crate::methods::sequential::{sum, survey};
use crate::model::{Config, CopyOf, Outline, Role, TensorSpec, Weights, input_place};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Report, Stage, StageKind, keys, save, saved};
use crate::tensor::{InputType, Packed, WeightFormat};
use crate::walk::Kind;

/// Inputs that are rounded when the model runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// What becomes of the weights
    #[arg(skip)]
    #[serde(default)]
    method: String,
    /// What inputs become [default: int8]
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<InputType>,
    /// Whose largest magnitude makes the scale: each token's own as it comes, or a layer's over the calibration, stored [default: token]
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input_scales: Option<InputScales>,
    #[command(flatten)]
    #[serde(flatten)]
    observed: Observed,
}

/// Where the scales of inputs come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum InputScales {
    /// Each token's own, found when it comes (dynamic).
    #[default]
    Token,
    /// One for each layer, from a calibration (static).
    Stored,
}

/// The sums that stored scales are made of.
const KINDS: [Kind; 1] = [Kind::Maxima];

impl OfMethod for Inputs {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.observed.calibration.fill(128, 256);
        self
    }
}

/// In the stage's folder, the scales of a block.
fn file(layer: usize) -> String {
    format!("inputs-{layer:05}.json")
}

impl Inputs {
    fn ty(&self) -> InputType {
        self.inputs.unwrap_or(InputType::Int8)
    }

    fn stored(&self) -> bool {
        self.input_scales == Some(InputScales::Stored)
    }

    /// The configuration of the result, but for stored scales.
    fn config(&self, model: &Config) -> Config {
        let mut config = model.clone();
        config.input_type = Some(self.ty());
        config.blocks.iter_mut().for_each(|block| block.input_scales = None);
        config
    }

    /// The scales of the blocks that are in a folder.
    fn scales(folder: &Path) -> Result<Vec<[f32; 4]>> {
        let mut all = Vec::new();
        while let Some(scales) = saved(folder, &file(all.len()))? {
            all.push(scales);
        }
        Ok(all)
    }
}

impl Stage for Inputs {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        let mut keys = keys(self);
        if !self.stored() {
            // It reads no text.
            keys.remove("calibration");
        }
        keys
    }

    fn needs(&self) -> Needs<'_> {
        match self.stored() {
            true => self.observed.needs(&KINDS),
            false => Needs::default(),
        }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        if !self.stored() && self.observed.stats.is_some() {
            let expected = "input_scales = stored beside it: each token's own need none";
            return Err(BadField::new("stats", expected, "them").in_recipe());
        }
        if self.stored() {
            let why = "the inputs of its layers have stored scales in plain decoders only; each token's own (token) work everywhere";
            model.config.without_encoder("input_scales", why)?;
            if model.config.experts.is_some() {
                let expected = format!("a model without experts: {why}");
                return Err(BadField::new("input_scales", expected, "stored").in_recipe());
            }
        }
        let mut outline = model.clone();
        outline.config = self.config(&model.config);
        let whose = if self.stored() { "stored scales" } else { "each token's scale" };
        let words = format!("inputs to {} by {whose}, once it is codes", self.ty().name());
        let linear = outline.specs.iter().filter(|spec| is_rounded(spec));
        let changes = linear.map(|spec| (spec.name.clone(), words.clone())).collect();
        let blocks = model.config.layers().max(1) as u64;
        let hidden = 4 * model.config.hidden_size as u64;
        let tokens = if self.stored() { self.observed.tokens() } else { 0 };
        Ok(Planned {
            warnings: Vec::new(),
            peak_device_bytes: 2 * model.bytes() / blocks + tokens.saturating_mul(hidden),
            peak_host_bytes: 8 * model.largest(),
            outline,
            changes,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let mut config = self.config(model.config());
        if self.stored() {
            let (folder, layers) = (context.folder, config.layers());
            let done = Self::scales(folder)?.len();
            let inputs = context.inputs(Feed::Parent);
            let progress = &mut *context.progress;
            survey(model, &inputs, &KINDS, done..layers, &mut |layer, sums| {
                progress("calibrating", layer, layers);
                let mut scales = [0.0f32; 4];
                let linear = model.specs().iter().filter(|spec| spec.layer == Some(layer));
                for spec in linear.filter(|spec| is_rounded(spec)) {
                    let Some(place) = input_place(spec.slot) else { continue };
                    let maxima = sum(spec, sums, Kind::Maxima, spec.columns)?;
                    let largest = maxima.iter().fold(0.0f32, |most, value| most.max(*value));
                    if !(largest.is_finite() && largest > 0.0) {
                        return Err(Error::Tensor {
                            path: "calibration".into(),
                            tensor: spec.name.clone(),
                            expected: "inputs other than 0, and finite".into(),
                            found: format!("a largest magnitude of {largest}"),
                        });
                    }
                    scales[place] = scales[place].max(self.ty().scale(largest));
                }
                // Of a block without such a layer.
                scales.iter_mut().filter(|scale| **scale == 0.0).for_each(|scale| *scale = 1.0);
                save(folder, &file(layer), &scales)
            })?;
            // As they were saved, so that a run that was stopped goes on with the same numbers.
            for (block, scales) in config.blocks.iter_mut().zip(Self::scales(folder)?) {
                block.input_scales = Some(scales);
            }
        }
        context.write("writing", &Configured { model, config })
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let scales = Self::scales(folder)?;
        let places = ["query", "output", "gate", "down"];
        let of = |(layer, scales): (usize, &[f32; 4])| {
            let each: Map<String, Value> = places
                .iter()
                .zip(scales)
                .map(|(place, scale)| ((*place).into(), json!(scale)))
                .collect();
            json!({"layer": layer, "scales": each})
        };
        let blocks: Vec<Value> = scales.iter().enumerate().map(of).collect();
        let method = json!({"name": self.method, "inputs": self.ty().name()});
        let value = json!({"schema": 1, "method": method, "blocks": blocks});
        Ok(Some(Report::new(REPORT, value)))
    }
}

/// Whether a tensor is the weight of a layer whose inputs are rounded once it is codes.
fn is_rounded(spec: &TensorSpec) -> bool {
    spec.layer.is_some() && spec.role == Role::Linear
}

/// A model with another configuration, whose tensors are the same.
struct Configured<'a> {
    model: &'a dyn Weights,
    config: Config,
}

impl Weights for Configured<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        self.model.load(spec)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        self.model.format(spec)
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        self.model.copy_of(spec)
    }
}
