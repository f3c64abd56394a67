//! Structured pruning: channels, heads or blocks taken out.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::KIND;
use crate::device::Device;
use crate::error::Result;
use crate::kernels::score::Reduction;
use crate::methods::BadField;
use crate::methods::calibration::Calibration;
use crate::methods::prune::llm_pruner::{PruneContext, prune};
use crate::methods::prune::memory::estimate;
use crate::methods::prune::score::Score;
use crate::methods::prune::{PruneSpec, left_specs, parameters};
use crate::methods::quantize::Scheme;
use crate::methods::quantize::rtn::rtn;
use crate::model::{
    Compute, Config, CopyOf, KeptChannels, Outline, PrunableDim, Pruned, TensorSpec, Weights,
    codes_survive, column_span, groups,
};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Stage, StageKind, keys, save, saved};
use crate::tensor::{Packed, WeightFormat};

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
    /// What the ratio is a share of
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub ratio_of: RatioOf,
    /// What is cut
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub scope: Scope,
    /// Which widths of blocks: ffn, kvgroup
    #[arg(long, value_delimiter = ',', default_values_t = default_widths())]
    #[serde(default = "default_widths")]
    pub widths: Vec<String>,
    /// How channels are scored: l1, l2, vectorize, param_first, param_second, param_mix, random
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

/// What becomes of matrices whose groups do not survive a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Requantize {
    /// Their own type again, where what is left is whole groups of it; else f16.
    #[default]
    Own,
    /// f16.
    F16,
}

impl Requantize {
    /// The format of what is left of a matrix in `format`, `columns` of them, when others go in runs of `span`; and whether it is
    /// rounded.
    fn left(self, format: WeightFormat, columns: usize, span: usize) -> (WeightFormat, bool) {
        if codes_survive(format, span) {
            return (format, false);
        }
        if format.ty.is_sparse() {
            // What is left of a pattern is none.
            return (WeightFormat::f16(), format.ty.has_scales());
        }
        let whole = columns.is_multiple_of(format.group_columns(columns));
        match self {
            Requantize::Own if whole => (format, true),
            _ => (WeightFormat::f16(), true),
        }
    }
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
    /// Checks the stage against a model of this configuration and these tensors.
    pub fn spec(&self, config: &Config, specs: &[TensorSpec]) -> Result<PruneSpec, BadField> {
        let ratio = self.ratio;
        if !(ratio > 0.0 && ratio < 1.0) {
            let expected = "more than 0 and less than 1";
            let found = match (1.0..100.0).contains(&ratio) {
                true => format!("{ratio}; {ratio} % is {}", ratio / 100.0),
                false => ratio.to_string(),
            };
            return Err(BadField::new("ratio", expected, found));
        }
        let Some(score) = Score::named(&self.score) else {
            let known = Score::ALL.map(Score::name).join(", ");
            return Err(BadField::new("score", known, &self.score));
        };
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
        let widths = self.cut_widths()?;
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
        let spec = PruneSpec {
            score,
            reduction: self.reduction.into(),
            widths,
            ratio,
            global,
            steps: self.steps,
            multiple: self.multiple,
            protected: (self.protect_first, self.protect_last),
            left: config.clone(),
        };
        spec.checked(self.ratio_of == RatioOf::Parameters, config, specs)
    }

    /// What a ratio becomes that the units of the widths cannot meet.
    fn unmet(&self, spec: &PruneSpec, model: &Outline) -> Option<String> {
        let (outcome, far) = spec.outcome(&model.config);
        let ratio = self.ratio;
        match self.ratio_of {
            RatioOf::Widths => {
                far.then(|| format!("a ratio of {ratio} cannot be met exactly: {outcome}"))
            }
            RatioOf::Parameters => {
                let count = |config: &Config| parameters(config, &model.specs) as f64;
                let share = 1.0 - count(&spec.left) / count(&model.config);
                ((share - ratio).abs() > ratio / 20.0).then(|| {
                    format!("a ratio of {ratio} of the parameters cannot be met, {share:.3} go: {outcome}")
                })
            }
        }
    }

    fn cut_widths(&self) -> Result<Vec<PrunableDim>, BadField> {
        match self.scope {
            Scope::Channel => return Ok(vec![PrunableDim::Hidden]),
            Scope::Layer => return Ok(vec![PrunableDim::Layers]),
            Scope::Block => {}
        }
        let both = [PrunableDim::FeedForward, PrunableDim::KvGroup];
        let named = |name: &String| {
            let found = both.into_iter().find(|width| width.name() == name);
            found.ok_or_else(|| BadField::new("widths", "ffn, kvgroup", name))
        };
        let mut widths = self.widths.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        if widths.is_empty() {
            return Err(BadField::new("widths", "ffn, kvgroup or both", "none"));
        }
        // KeptChannels once, however often it is named.
        widths.sort();
        widths.dedup();
        Ok(widths)
    }
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
        let spec = self.spec(&model.config, &model.specs).map_err(BadField::in_recipe)?;
        let mut warnings = Vec::new();
        warnings.extend(self.unmet(&spec, model));
        let mut specs = left_specs(&spec.left, &model.specs);
        // A bias that some blocks only have is left in these only.
        specs.retain(|spec| model.find(&spec.name).is_some());
        let mut outline = Outline {
            specs,
            formats: Vec::new(),
            copies: Vec::new(),
            estimated: model.estimated || spec.global,
            config: spec.left,
        };
        let mut changes = HashMap::new();
        let mut dequantized = Vec::new();
        let mut requantized = Vec::new();
        for left in &outline.specs {
            let (whole, format) = model.find(&left.name).expect("these are left");
            let mut copy = model.copy_of(whole);
            let (mut cut, mut rounds) = (format, false);
            if left.columns < whole.columns {
                copy = None;
                let span = column_span(&model.config, whole, whole.layer().unwrap_or(0));
                (cut, rounds) = self.requantize.left(format, left.columns, span);
                if rounds {
                    let list = if cut == format { &mut requantized } else { &mut dequantized };
                    let bytes = [format, cut].map(|f| f.unpadded_bytes(left.rows, left.columns));
                    list.push((left.name.as_str(), format, bytes));
                }
            }
            if left.shape() != whole.shape() {
                let from = format!("cut from {:?}", whole.shape());
                let text = match (cut == format, rounds) {
                    (true, false) => from,
                    (true, true) => format!("{from}, requantized to {}", cut.label()),
                    (false, _) => format!("{from}, dequantized to {}", cut.label()),
                };
                changes.insert(left.name.clone(), text);
            }
            outline.formats.push(cut);
            outline.copies.push(copy);
        }
        if let Some((first, format, _)) = requantized.first() {
            warnings.push(format!(
                "groups of columns that share a scale do not survive a cut through them: {} quantized tensors ({first}, …) are rounded to their own type again ({}), by as much as the result says",
                requantized.len(),
                format.label(),
            ));
        }
        if let Some((first, ..)) = dequantized.first() {
            let sum =
                |index: usize| dequantized.iter().map(|(.., bytes)| bytes[index]).sum::<u64>();
            warnings.push(format!(
                "groups of columns that share a scale do not survive a cut through them: {} quantized tensors ({first}, …) are kept in f16, {} bytes instead of {}; quantize them again afterwards",
                dequantized.len(),
                sum(1),
                sum(0),
            ));
        }
        let all = groups(&model.config, &model.specs).into_iter();
        let chosen: Vec<_> = all.filter(|group| spec.widths.contains(&group.width)).collect();
        let tokens = self.needs().calibration;
        let tokens = tokens.map(|tokens| (tokens.samples().max(1), tokens.length().max(2)));
        let memory = estimate(model, &[spec.score], &chosen, tokens, Compute::F32);
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
        let spec = self.spec(model.config(), model.specs()).map_err(BadField::in_recipe)?;
        let saved: Option<(usize, KeptChannels)> = context.saved(ROUNDS)?;
        let start = saved.unwrap_or_else(|| (0, KeptChannels::nothing(model.config())));
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
            with,
            &mut |done, kept| save(folder, ROUNDS, &(done, kept)),
            &mut |done, total| progress("pruning", done, total),
        )?;
        let device = context.pass.device;
        let pruned = Pruned::new(model, device, kept);
        let cut = Cut { model, device, pruned, requantize: self.requantize };
        context.write("cutting", &cut)
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        device: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        let pruned = |kept| Exact(Pruned::new(model, device, kept));
        Ok(kept(folder)?.map(|kept| Box::new(pruned(kept)) as Box<dyn Weights + 'a>))
    }
}

/// What is kept of the model before it, by the folder of a stage that is done; `None` if that pruned nothing.
pub fn kept(folder: &Path) -> Result<Option<KeptChannels>> {
    let saved: Option<(usize, KeptChannels)> = saved(folder, ROUNDS)?;
    Ok(saved.map(|(_, kept)| kept))
}

/// What is left, with groups made anew where they did not survive.
struct Cut<'a> {
    model: &'a dyn Weights,
    device: &'a Device,
    pruned: Pruned<'a>,
    requantize: Requantize,
}

impl Weights for Cut<'_> {
    fn config(&self) -> &Config {
        self.pruned.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.pruned.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let format = self.format(spec)?;
        match Scheme::of(format).filter(|_| self.pruned.format(spec).is_ok_and(|f| f != format)) {
            Some(scheme) => rtn(self.device, &self.pruned.exact(spec)?, scheme, &spec.name),
            None => self.pruned.load(spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        let cut = self.pruned.format(spec)?;
        let whole = self.pruned.whole(spec).expect("what is left was there before");
        let own = self.model.format(whole)?;
        if cut == own {
            return Ok(cut);
        }
        let layer = spec.layer().map_or(0, |place| self.pruned.cut().layers[place]);
        let span = column_span(self.model.config(), whole, layer);
        Ok(self.requantize.left(own, spec.columns, span).0)
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        self.pruned.copy_of(spec)
    }
}

/// What is left, in f32 where groups did not survive.
struct Exact<'a>(Pruned<'a>);

impl Weights for Exact<'_> {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.0.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        match self.0.loses_groups(spec)? {
            true => self.0.exact(spec),
            false => self.0.load(spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.0.loses_groups(spec)? {
            true => Ok(WeightFormat::f32()),
            false => self.0.format(spec),
        }
    }
}

/// Rounds done, and the numbers of the blocks and channels that they kept.
const ROUNDS: &str = "kept.json";
