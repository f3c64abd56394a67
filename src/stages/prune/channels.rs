//! Structured pruning: channels, heads or blocks taken out.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::KIND;
use super::cut::{Cut, CutPlan, ROUNDS, Requantize, plan_cut, unrounded};
use crate::device::Device;
use crate::error::Result;
use crate::kernels::score::Reduction;
use crate::methods::BadField;
use crate::methods::calibration::Calibration;
use crate::methods::prune::llm_pruner::{PruneContext, prune};
use crate::methods::prune::memory::estimate;
use crate::methods::prune::score::Score;
use crate::methods::prune::{Aim, PruneSpec, parameters};
use crate::model::{
    Compute, Config, KeptChannels, Outline, PrunableDim, TensorSpec, Weights, groups,
};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Stage, StageKind, keys, save, without_encoder};

/// Structured pruning: what the scores say matters least goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// How what goes is found
    #[arg(skip)]
    #[serde(default)]
    pub method: PruneMethod,
    /// The share that goes, more than 0 and less than 1
    #[arg(long, value_parser = share)]
    pub ratio: f64,
    /// Whether the ratio is one of the recipe's model, whatever stages before this one took of it
    #[arg(skip)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_first: bool,
    /// What the ratio is a share of
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub ratio_of: RatioOf,
    /// What is cut
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub scope: Scope,
    /// Which widths of blocks: ffn, kvgroup (key-value heads with their query heads), head (query heads, as many of each
    /// key-value head); of minitron by default ffn, head
    #[arg(long, value_delimiter = ',', default_values_t = default_widths())]
    #[serde(default = "default_widths")]
    pub widths: Vec<String>,
    /// How channels are scored: l1, l2, vectorize, param_first, param_second, param_mix, random; how experts are: usage (their
    /// tokens), gate-norm (the sum over them of the share times the length of the result), reap (their mean of it), random
    #[arg(long, default_value_t = default_score())]
    #[serde(default = "default_score")]
    pub score: String,
    /// What is made of the scores that a group's tensors give one channel
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub reduction: ReductionName,
    /// Whether channels compete within their block or with those of all blocks
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub ranking: Ranking,
    /// Rounds of scoring and cutting, with an even share each
    #[arg(long, default_value_t = default_steps())]
    #[serde(default = "default_steps")]
    pub steps: usize,
    /// Widths that are left are multiples of this (of slicegpt 8); heads and blocks are whole anyway
    #[arg(long, default_value_t = default_multiple())]
    #[serde(default = "default_multiple")]
    pub multiple: usize,
    /// Let blocks differ in width: no Hugging Face folder is written then, and the GGUF file's architecture is deci
    #[arg(long)]
    #[serde(default)]
    pub non_uniform: bool,
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
    /// What gradients are taken over
    #[command(flatten)]
    #[serde(default)]
    pub calibration: Calibration,
}

/// How what is pruned is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PruneMethod {
    /// Dependency groups, scored by weights or by the loss (LLM-Pruner).
    #[default]
    LlmPruner,
    /// Importance from a forward pass (Minitron).
    Minitron,
    /// Whole blocks, by trials.
    Depth,
}

/// What a pruning ratio is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RatioOf {
    /// Every width that is cut.
    #[default]
    Widths,
    /// The model's parameters: the widths are cut by what comes nearest.
    Parameters,
}

/// What is pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Widths of blocks: feed-forward channels, key-value heads with their query heads.
    #[default]
    Block,
    /// Columns of the residual stream.
    Channel,
    /// Whole blocks.
    Layer,
}

/// Among which channels the least important are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ranking {
    /// Those of one block.
    #[default]
    Local,
    /// Those of one kind in all blocks.
    Global,
}

/// How scores of several tensors become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReductionName {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean.
    Mean,
    /// The largest.
    Max,
    /// Their product.
    Product,
    /// The first tensor's.
    First,
    /// The last tensor's.
    Last,
}

impl From<ReductionName> for Reduction {
    fn from(name: ReductionName) -> Self {
        match name {
            ReductionName::Sum => Reduction::Sum,
            ReductionName::Mean => Reduction::Mean,
            ReductionName::Max => Reduction::Max,
            ReductionName::Product => Reduction::Product,
            ReductionName::First => Reduction::First,
            ReductionName::Last => Reduction::Last,
        }
    }
}

/// A number; what a percentage would be as one is said.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match (text.parse(), percent) {
        (Ok(share), _) => Ok(share),
        (_, Some(percent)) => Err(format!("write {} for {percent} %", percent / 100.0)),
        (Err(_), None) => Err("a share is a number, more than 0 and less than 1".into()),
    }
}

fn default_widths() -> Vec<String> {
    vec!["ffn".into(), "kvgroup".into()]
}

fn default_score() -> String {
    "param_first".into()
}

fn default_steps() -> usize {
    1
}

fn default_multiple() -> usize {
    32
}

impl Prune {
    /// Checks the stage against a model of this configuration and these tensors, made of one of configuration `first`.
    pub fn spec(
        &self,
        config: &Config,
        specs: &[TensorSpec],
        first: &Config,
    ) -> Result<PruneSpec, BadField> {
        let ratio = self.ratio;
        if !(ratio > 0.0 && ratio < 1.0) {
            let expected = "more than 0 and less than 1";
            let found = match (1.0..100.0).contains(&ratio) {
                true => format!("{ratio}; {ratio} % is {}", ratio / 100.0),
                false => ratio.to_string(),
            };
            return Err(BadField::new("ratio", expected, found));
        }
        self.score()?;
        for (field, value) in [("steps", self.steps), ("multiple", self.multiple)] {
            if value == 0 {
                return Err(BadField::new(field, "1 or more", 0));
            }
        }
        let protected = self.protect_first.saturating_add(self.protect_last);
        if protected >= config.layers() {
            return Err(BadField::new(
                "protect_first",
                format!("fewer than the model's {} layers in all", config.layers()),
                format!("{} + {}", self.protect_first, self.protect_last),
            ));
        }
        let widths = cut_widths(self.scope, &self.widths)?;
        channels_of_experts_stay(&widths, config)?;
        if let Some(width) = widths.iter().find(|width| {
            matches!(width, PrunableDim::KvGroup | PrunableDim::Head | PrunableDim::Layers)
        }) {
            let why =
                "all blocks of a stack share the biases of its heads; --widths ffn cuts channels";
            without_encoder(config, "widths", width.name(), why)?;
        }
        let blocks = self.scope == Scope::Block;
        let global = self.ranking == Ranking::Global;
        if !blocks && global {
            return Err(BadField::new("ranking", "local, but for blocks", "global"));
        }
        if self.scope == Scope::Channel && protected > 0 {
            let expected = "0: the hidden width goes through every layer";
            return Err(BadField::new("protect_first", expected, protected));
        }
        if blocks && !self.non_uniform {
            let say = "or non_uniform, for which a stock Llama has no words (gguf's deci has)";
            if global {
                return Err(BadField::new("ranking", format!("local, {say}"), "global"));
            }
            if protected > 0 {
                return Err(BadField::new("protect_first", format!("0, {say}"), protected));
            }
        }
        if global && widths.contains(&PrunableDim::Head) {
            let expected = "local for query heads, of which each key-value head keeps as many";
            return Err(BadField::new("ranking", expected, "global"));
        }
        let spec = PruneSpec {
            widths,
            aim: Aim::Ratio(ratio),
            global,
            steps: self.steps,
            multiple: self.multiple,
            protected: (self.protect_first, self.protect_last),
            left: config.clone(),
        };
        let of_parameters = self.ratio_of == RatioOf::Parameters;
        if !self.of_first {
            return spec.checked(of_parameters, config, specs);
        }
        if global {
            return Err(BadField::new("of_first", "false where blocks compete", true));
        }
        spec.of_first(of_parameters, (first, config), specs)
    }

    fn score(&self) -> Result<Score, BadField> {
        Score::named(&self.score).ok_or_else(|| {
            let known = Score::ALL.map(Score::name).join(", ");
            BadField::new("score", known, &self.score)
        })
    }
}

/// What a ratio becomes that the units of the widths cannot meet.
pub(super) fn unmet(
    spec: &PruneSpec,
    (ratio, of): (f64, RatioOf),
    model: &Outline,
) -> Option<String> {
    // A ratio of another model became a shape of this one.
    if spec.aim == Aim::Shape {
        let nothing = spec.left == model.config;
        return nothing
            .then(|| format!("{ratio} of the recipe's model has gone before: nothing is cut"));
    }
    let (outcome, far) = spec.outcome(&model.config);
    match of {
        RatioOf::Widths => {
            far.then(|| format!("a ratio of {ratio} cannot be met exactly: {outcome}"))
        }
        RatioOf::Parameters => {
            let count = |config: &Config| parameters(config, &model.specs) as f64;
            let share = 1.0 - count(&spec.left) / count(&model.config);
            ((share - ratio).abs() > ratio / 20.0).then(|| {
                format!(
                    "a ratio of {ratio} of the parameters cannot be met, {share:.3} go: {outcome}"
                )
            })
        }
    }
}

/// An error if channels of experts are to be cut.
fn channels_of_experts_stay(widths: &[PrunableDim], config: &Config) -> Result<(), BadField> {
    match config.experts {
        Some(_) if widths.contains(&PrunableDim::FeedForward) => {
            let expected = format!(
                "kvgroup or head: channels of experts, which a {} has, are not cut by this version",
                config.family.name
            );
            Err(BadField::new("widths", expected, PrunableDim::FeedForward.name()))
        }
        _ => Ok(()),
    }
}

/// The widths that a scope, and the names of those of blocks, stand for: in order, and once, however often one is named.
pub(super) fn cut_widths(scope: Scope, names: &[String]) -> Result<Vec<PrunableDim>, BadField> {
    match scope {
        Scope::Channel => return Ok(vec![PrunableDim::Hidden]),
        Scope::Layer => return Ok(vec![PrunableDim::Layers]),
        Scope::Block => {}
    }
    let all = [PrunableDim::FeedForward, PrunableDim::KvGroup, PrunableDim::Head];
    let known = || all.map(PrunableDim::name).join(", ");
    let named = |name: &String| {
        let found = all.into_iter().find(|width| width.name() == name);
        found.ok_or_else(|| BadField::new("widths", known(), name))
    };
    let mut widths = names.iter().map(named).collect::<Result<Vec<_>, _>>()?;
    if widths.is_empty() {
        return Err(BadField::new("widths", format!("some of {}", known()), "none"));
    }
    widths.sort();
    widths.dedup();
    Ok(widths)
}

impl OfMethod for Prune {
    fn of_method(mut self, _name: &'static str) -> Self {
        self.method = PruneMethod::LlmPruner;
        self.calibration.fill(10, 64);
        self
    }
}

impl Stage for Prune {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        let gradients = Score::named(&self.score).is_some_and(Score::needs_gradient);
        let calibration = gradients.then_some(&self.calibration);
        Needs { calibration, gradients, ..Needs::default() }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let spec = self.spec(&model.config, &model.specs, &model.first);
        let spec = spec.map_err(BadField::in_recipe)?;
        let unmet = unmet(&spec, (self.ratio, self.ratio_of), model);
        let score = self.score().map_err(BadField::in_recipe)?;
        let CutPlan { mut outline, changes, mut warnings } =
            plan_cut(model, spec.left.clone(), spec.global, self.requantize);
        outline.uneven |= spec.global;
        warnings.splice(0..0, unmet);
        let chosen = spec.groups(&model.config, groups(&model.config, &model.specs));
        let tokens = self.needs().calibration;
        let tokens = tokens.map(|tokens| (tokens.samples().max(1), tokens.length().max(2)));
        let memory = estimate(model, &[score], &chosen, tokens, Compute::F32);
        Ok(Planned {
            outline,
            changes,
            peak_device_bytes: memory.streamed,
            peak_host_bytes: 3 * 4 * model.largest(),
            warnings,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        // The plan may have had to guess the sizes.
        let spec = self.spec(model.config(), model.specs(), context.parent.config());
        let spec = spec.map_err(BadField::in_recipe)?;
        let saved: Option<(usize, KeptChannels)> = context.saved(ROUNDS)?;
        let start = saved.unwrap_or_else(|| (0, KeptChannels::nothing(model.config())));
        let score = self.score().map_err(BadField::in_recipe)?;
        let with = PruneContext {
            pass: context.pass,
            rows: context.rows,
            seed: context.seed,
            budget: context.budget,
        };
        let Context { folder, progress, .. } = context;
        let kept = prune(
            model,
            start,
            &spec,
            (score, self.reduction.into()),
            with,
            &mut |done, kept| save(folder, ROUNDS, &(done, kept)),
            &mut |done, total| progress("pruning", done, total),
        )?;
        let cut = Cut::new(model, context.pass.device, kept, self.requantize);
        context.write("cutting", &cut)
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
