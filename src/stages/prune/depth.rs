//! `prune` of whole blocks: left out, or merged with their neighbours.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::KIND;
use super::channels::{PruneMethod, share};
use super::cut::{Cut, CutPlan, ROUNDS, Requantize, plan_cut, unrounded};
use crate::device::Device;
use crate::error::Result;
use crate::methods::BadField;
use crate::methods::calibration::Calibration;
use crate::methods::prune::depth::{DepthBy, DepthSpec, DepthStep, Trials, unlike};
use crate::methods::prune::memory::forward_estimate;
use crate::model::{Compute, Config, KeptChannels, Outline, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{
    Context, DETAILS, Needs, Planned, Stage, StageKind, keys, save, without_encoder,
};

/// Depth pruning: blocks go, or become one, until so many are left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Depth {
    /// How what goes is found
    #[arg(skip)]
    #[serde(default)]
    pub method: PruneMethod,
    /// The share that goes, more than 0 and less than 1
    #[arg(long, value_parser = share)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Whether the ratio is one of the recipe's model, whatever stages before this one took of it
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_first: bool,
    /// Blocks that are left, instead of a ratio
    #[arg(long, value_name = "N")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// How blocks are found that go: cosine (of a block's input and output), perplexity (without it), or merge (neighbours
    /// become one)
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub depth_by: DepthBy,
    /// For merge: blocks that are merged into the one before them at once, at most; one alone is left out
    #[arg(long, default_value_t = 2)]
    #[serde(default = "two")]
    pub at_once: usize,
    /// First blocks that stay as they are
    #[arg(long, default_value_t)]
    #[serde(default)]
    pub protect_first: usize,
    /// Last blocks that stay as they are
    #[arg(long, default_value_t)]
    #[serde(default)]
    pub protect_last: usize,
    /// What becomes of quantized matrices that lose columns within groups that share a scale
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub requantize: Requantize,
    /// The text that blocks are tried on
    #[command(flatten)]
    #[serde(default)]
    pub calibration: Calibration,
}

fn two() -> usize {
    2
}

impl Depth {
    /// Checks the stage against a model of this outline.
    fn spec(&self, model: &Outline, first: &Config) -> Result<DepthSpec, BadField> {
        let why = "blocks of its two stacks are none of one row, and share the first one's bias of scores";
        without_encoder(&model.config, "method", "depth", why)?;
        let layers = model.config.layers();
        // Those that the ratio is of.
        let all = if self.of_first { first.layers() } else { layers };
        let left = match (self.ratio, self.layers) {
            (Some(ratio), None) if ratio > 0.0 && ratio < 1.0 => {
                let left = all - (all as f64 * ratio + 1e-9).floor() as usize;
                if left >= layers {
                    let expected = format!("enough to take out one of {layers} blocks");
                    return Err(BadField::new("ratio", expected, ratio));
                }
                left
            }
            (Some(ratio), None) => {
                return Err(BadField::new("ratio", "more than 0 and less than 1", ratio));
            }
            (None, Some(left)) if (1..layers).contains(&left) => left,
            (None, Some(left)) => {
                let expected = format!("1 to {}: the model has {layers}", layers - 1);
                return Err(BadField::new("layers", expected, left));
            }
            (Some(_), Some(left)) => {
                return Err(BadField::new("layers", "either a ratio or layers", left));
            }
            (None, None) => {
                return Err(BadField::new(
                    "layers",
                    "a ratio, or the blocks that are left",
                    "neither",
                ));
            }
        };
        let protected = (self.protect_first, self.protect_last);
        let stay = protected.0.saturating_add(protected.1);
        if stay > left {
            let expected = format!("at most the {left} blocks that are left, in all");
            let found = format!("{} + {}", protected.0, protected.1);
            return Err(BadField::new("protect_first", expected, found));
        }
        if self.at_once == 0 {
            return Err(BadField::new("at_once", "1 or more", 0));
        }
        if let (DepthBy::Merge, Some(found)) = (self.depth_by, unlike(&model.config, model)) {
            return Err(BadField::new("depth_by", "cosine or perplexity for this model", found));
        }
        Ok(DepthSpec { by: self.depth_by, layers: left, merge: self.at_once, protected })
    }
}

impl OfMethod for Depth {
    fn of_method(mut self, _name: &'static str) -> Self {
        self.method = PruneMethod::Depth;
        self.calibration.fill(16, 256);
        self
    }
}

impl Stage for Depth {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs { calibration: Some(&self.calibration), ..Needs::default() }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let spec = self.spec(model, &model.first).map_err(BadField::in_recipe)?;
        let mut left = model.config.clone();
        left.blocks.truncate(spec.layers);
        let CutPlan { mut outline, changes, mut warnings } =
            plan_cut(model, left, false, self.requantize);
        if spec.by == DepthBy::Merge {
            // Which blocks are merged only the run knows.
            let mut again = false;
            for (place, spec) in outline.specs.iter().enumerate() {
                if spec.layer().is_some() {
                    outline.copies[place] = None;
                    again |= !outline.formats[place].ty.is_plain();
                }
            }
            if again {
                warnings.push("quantized matrices of blocks that are merged are rounded again, by as much as the result says".into());
                outline.estimated = true;
            }
        }
        let (samples, length) = (self.calibration.samples(), self.calibration.length());
        let memory = forward_estimate(model, samples.max(1), length.max(2), Compute::F32);
        Ok(Planned {
            outline,
            changes,
            peak_device_bytes: memory.streamed,
            peak_host_bytes: 3 * 4 * model.largest(),
            warnings,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let spec = self
            .spec(&Outline::of(model)?, context.parent.config())
            .map_err(BadField::in_recipe)?;
        let rows = context.rows.expect("a stage that needs rows is given them");
        let saved: Option<(Vec<DepthStep>, KeptChannels)> = context.saved(STEPS)?;
        let (mut steps, kept) =
            saved.unwrap_or_else(|| (Vec::new(), KeptChannels::nothing(model.config())));
        let device = context.pass.device;
        let Context { folder, progress, .. } = context;
        let trials = Trials::new(model, context.pass, rows, context.budget)?;
        let mut after = |step: DepthStep, kept: &KeptChannels| {
            steps.push(step);
            save(folder, STEPS, &(&steps, kept))
        };
        let mut of_trials = |done: usize, total: usize| progress("trying blocks", done, total);
        let kept = spec.run(&trials, kept, &mut after, &mut of_trials)?;
        drop(trials);
        save(folder, ROUNDS, &(1, &kept))?;
        save(folder, DETAILS, &json!({"depth_by": self.depth_by, "steps": steps}))?;
        context.write("cutting", &Cut::new(model, device, kept, self.requantize))
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        device: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        unrounded(model, device, folder)
    }
}

/// The file in the stage's folder with the steps that are done, and what they left.
const STEPS: &str = "steps.json";
