//! The greedy soup (Wortsman et al. 2022, arXiv 2203.05482, recipe 1): fine-tunes of one model in the order of their own quality, each
//! taken into the mean if that is no worse for it, by the perplexity of a text that none of them has seen.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::average::mix;
use super::{Inputs, KIND, OWN, Plain};
use crate::error::Result;
use crate::interrupt;
use crate::methods::BadField;
use crate::methods::calibration::{Calibration, Rows};
use crate::methods::merge::{Merged, Mix, Own, Rule, alignments};
use crate::methods::prune::depth::rows_perplexity;
use crate::methods::prune::memory::forward_estimate;
use crate::model::{Checkpoint, Compute, Config, Model, Outline, WeightSource, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{Context, DETAILS, Needs, Planned, Stage, StageKind, keys, save};

/// A mean of those models that make it better. The one that the stage runs on is one of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Soup {
    /// How models are merged
    #[arg(skip)]
    #[serde(default)]
    method: String,
    /// The text that soups are tried on
    #[command(flatten)]
    #[serde(default)]
    calibration: Calibration,
    #[command(flatten)]
    #[serde(flatten)]
    inputs: Inputs,
}

/// What was tried so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tried {
    /// The perplexity of each model alone, the stage's own first.
    alone: Vec<f64>,
    /// Soups in order.
    soups: Vec<Spoon>,
}

/// A model that was added, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Spoon {
    model: usize,
    perplexity: f64,
    taken: bool,
}

/// In the stage's folder: what was tried so far.
const TRIED: &str = "tried.json";

impl OfMethod for Soup {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.calibration.fill(16, 256);
        self
    }
}

impl Tried {
    /// The models from the one with the lowest perplexity on.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.alone.len()).collect();
        order.sort_by(|a, b| self.alone[*a].total_cmp(&self.alone[*b]));
        order
    }

    /// The models of the soup.
    fn taken(&self) -> Vec<usize> {
        self.soups.iter().filter(|spoon| spoon.taken).map(|spoon| spoon.model).collect()
    }

    /// The perplexity of the soup.
    fn best(&self) -> f64 {
        let taken = self.soups.iter().rev().find(|spoon| spoon.taken);
        taken.map_or(f64::INFINITY, |spoon| spoon.perplexity)
    }
}

impl Soup {
    /// The mean of some of the models.
    fn mix(&self, taken: &[usize]) -> Mix {
        let weight = |model: usize| Own {
            weight: Some(f64::from(u8::from(taken.contains(&model))).into()),
            ..Own::default()
        };
        let further = 1..=self.inputs.with.len();
        Mix {
            all: weight(0),
            each: further.map(weight).collect(),
            format: self.inputs.dtype.map(Plain::format),
            ..mix(Rule::Linear { normalize: true })
        }
    }

    fn merged<'a, W: Weights>(
        &'a self,
        first: &'a dyn Weights,
        others: &'a [W],
    ) -> Result<Merged<'a>> {
        let with = &self.inputs.with;
        let wrong =
            |expected: &str, found: String| Err(BadField::new("with", expected, found).in_recipe());
        if with.is_empty() {
            return wrong("one further model or more", "none".into());
        }
        let numbers = |input: &&super::Input| {
            input.weight.is_some() || input.density.is_some() || input.gamma.is_some()
        };
        if let Some(input) = with.iter().find(numbers) {
            return wrong("models without numbers: a soup's are equal", input.model.clone());
        }
        let all: Vec<usize> = (0..=with.len()).collect();
        let aligned = self.inputs.vocabulary.is_some();
        Merged::new(self.inputs.named(first, others), self.mix(&all), aligned)
    }

    /// Finds what has not been tried yet, and saves each step.
    fn search(&self, merged: &Merged<'_>, rows: &Rows, context: &mut Context<'_>) -> Result<Tried> {
        let (pass, folder, budget) = (context.pass, context.folder, context.budget);
        let mut tried: Tried = context.saved(TRIED)?.unwrap_or_default();
        let models = self.inputs.with.len() + 1;
        let progress = &mut *context.progress;
        let mut measure = |taken: &[usize], done: usize| -> Result<f64> {
            interrupt::check()?;
            progress("trying soups", done, 2 * models - 1);
            let soup = merged.with(self.mix(taken));
            let outline = Outline::of(&soup)?;
            let need = forward_estimate(&outline, rows.samples, rows.length(), pass.compute);
            if !need.fits(budget)? {
                return rows_perplexity(WeightSource::Streamed(pass.device, &soup), &pass, rows);
            }
            let model = Model::load(pass.device, &soup, |_, _| interrupt::check())?;
            rows_perplexity(WeightSource::Resident(&model), &pass, rows)
        };
        for model in tried.alone.len()..models {
            tried.alone.push(measure(&[model], model)?);
            save(folder, TRIED, &tried)?;
        }
        for (place, model) in tried.order().into_iter().enumerate().skip(tried.soups.len()) {
            let mut taken = tried.taken();
            taken.push(model);
            let perplexity = match place {
                0 => tried.alone[model],
                _ => measure(&taken, models + place - 1)?,
            };
            let is_taken = perplexity <= tried.best();
            tried.soups.push(Spoon { model, perplexity, taken: is_taken });
            save(folder, TRIED, &tried)?;
        }
        Ok(tried)
    }

    /// What was tried, for the manifest.
    fn details(&self, tried: &Tried) -> Value {
        let name = |model: usize| match model.checked_sub(1) {
            None => OWN,
            Some(further) => self.inputs.with[further].model.as_str(),
        };
        let spoons = tried.soups.iter().map(|spoon| {
            json!({
                "model": name(spoon.model), "alone": tried.alone[spoon.model],
                "soup": spoon.perplexity, "taken": spoon.taken,
            })
        });
        json!({"ingredients": spoons.collect::<Vec<_>>(), "text": self.calibration.text})
    }
}

impl Stage for Soup {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs { calibration: Some(&self.calibration), ..Needs::default() }
    }

    fn others(&self) -> Vec<String> {
        self.inputs.models()
    }

    fn check_others(&self, parent: &Checkpoint, others: &[Checkpoint]) -> Result<Vec<String>> {
        let others: Vec<&Checkpoint> = others.iter().collect();
        Ok(alignments(parent, &others, self.inputs.vocabulary)?.1)
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        self.plan_beside(model, &[])
    }

    fn plan_beside(&self, model: &Outline, others: &[Outline]) -> Result<Planned> {
        let merged = self.merged(model, others)?;
        let outline = merged.outline(model);
        let (samples, length) = (self.calibration.samples(), self.calibration.length());
        let memory = forward_estimate(&outline, samples.max(1), length.max(2), Compute::F32);
        let words = format!("mean of those of {} that help", others.len() + 1);
        Ok(Planned {
            changes: outline.specs.iter().map(|s| (s.name.clone(), words.clone())).collect(),
            peak_device_bytes: memory.streamed,
            peak_host_bytes: merged.host_bytes()?,
            warnings: merged.warnings(),
            outline,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let others: Vec<&Checkpoint> = context.others.iter().collect();
        let (aligned, _) = alignments(context.parent, &others, self.inputs.vocabulary)?;
        let merged = self.merged(model, context.others)?.aligned(aligned);
        let rows = context.rows.expect("a stage that needs rows is given them");
        let tried = self.search(&merged, rows, context)?;
        save(context.folder, DETAILS, &self.details(&tried))?;
        context.write("merging", &merged.with(self.mix(&tried.taken())))
    }

    fn loses(&self) -> bool {
        false
    }
}
