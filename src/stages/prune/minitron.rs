//! `prune` by Minitron: channels, heads, columns of the stream and blocks by what a forward pass says of them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::KIND;
use super::channels::{PruneMethod, RatioOf, Scope, cut_widths, share, unmet};
use super::cut::{Cut, CutPlan, ROUNDS, Requantize, plan_cut, unrounded};
use crate::device::Device;
use crate::error::Result;
use crate::interrupt;
use crate::methods::BadField;
use crate::methods::calibration::{Calibration, Rows};
use crate::methods::prune::depth::{DepthBy, DepthSpec, DepthStep, Trials, rows_perplexity};
use crate::methods::prune::memory::forward_estimate;
use crate::methods::prune::minitron::Importance;
use crate::methods::prune::rounds::rounds;
use crate::methods::prune::search::{
    Candidate, Caps, Shape, Target, candidates, shortlist, within,
};
use crate::methods::prune::{Aim, PruneSpec};
use crate::model::{
    BlockDims, Compute, Config, Group, KeptChannels, Model, Outline, Pass, PrunableDim,
    WeightSource, Weights,
};
use crate::stages::method::OfMethod;
use crate::stages::{
    Context, DETAILS, Needs, Planned, Stage, StageKind, keys, save, without_encoder,
};

/// Structured pruning by importance from a forward pass (Minitron): to a share of widths, to a shape, or to a size, for which
/// shapes are tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Minitron {
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
    /// What the ratio is a share of
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub ratio_of: RatioOf,
    /// What is cut
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub scope: Scope,
    /// Which widths of blocks: ffn, kvgroup, head
    #[arg(long, value_delimiter = ',')]
    #[serde(default)]
    pub widths: Vec<String>,
    /// What is left instead: some of ffn=N, heads=N, kvgroups=N, hidden=N, layers=N, with commas
    #[arg(long, value_name = "SHAPE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_shape: Option<Shape>,
    /// The most that is left instead: parameters=1.5M, bytes=90M or flops=2G (a token's products). Shapes near it are tried
    #[arg(long, value_name = "SIZE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// For a size: the largest share of a width that goes
    #[arg(long, default_value_t = 0.4, value_parser = share)]
    #[serde(default = "most_width")]
    pub most_width: f64,
    /// For a size: the largest share of the blocks that goes
    #[arg(long, default_value_t = 0.2, value_parser = share)]
    #[serde(default = "most_depth")]
    pub most_depth: f64,
    /// For a size: shapes that are tried
    #[arg(long, default_value_t = 10)]
    #[serde(default = "default_candidates")]
    pub candidates: usize,
    /// For a size: rows of the calibration text, behind those of the statistics, on whose perplexity shapes are tried
    #[arg(long, default_value_t = 16)]
    #[serde(default = "default_held_out")]
    pub held_out: usize,
    /// How blocks are found that go: cosine, perplexity
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub depth_by: DepthBy,
    /// Rounds of scoring and cutting, with an even share each
    #[arg(long, default_value_t = 1)]
    #[serde(default = "one")]
    pub steps: usize,
    /// Widths that are left are multiples of this; heads and blocks are whole anyway
    #[arg(long, default_value_t = 32)]
    #[serde(default = "default_multiple")]
    pub multiple: usize,
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
    /// What importance is taken over
    #[command(flatten)]
    #[serde(default)]
    pub calibration: Calibration,
}

fn most_width() -> f64 {
    0.4
}

fn most_depth() -> f64 {
    0.2
}

fn default_candidates() -> usize {
    10
}

fn default_held_out() -> usize {
    16
}

fn one() -> usize {
    1
}

fn default_multiple() -> usize {
    32
}

/// What is asked of a model, checked against it.
struct Goal {
    /// What is cut; of a size, to the largest shape within it.
    spec: PruneSpec,
    /// The shapes within a size, the largest first.
    search: Vec<Candidate>,
}

/// A shape that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Tried {
    shape: Shape,
    parameters: u64,
    bytes: u64,
    flops_per_token: u64,
    /// The product over the widths of the share of squared importance that is kept.
    importance_kept: f64,
    /// That of the held-out rows.
    perplexity: f64,
}

impl Minitron {
    /// Checks the stage against a model of this outline.
    fn goal(&self, model: &Outline, first: &Config) -> Result<Goal, BadField> {
        let config = &model.config;
        let why = "tokens of its two stacks are no sequences of one length";
        without_encoder(config, "method", "minitron", why)?;
        if config.experts.is_some() {
            let expected = "llm-pruner, depth or a method of single weights: tokens of an expert are no sequences, of which it takes means";
            return Err(BadField::new("method", expected, "minitron"));
        }
        for (field, value) in [("steps", self.steps), ("multiple", self.multiple)] {
            if value == 0 {
                return Err(BadField::new(field, "1 or more", 0));
            }
        }
        if self.depth_by == DepthBy::Merge {
            let expected = "cosine or perplexity; blocks are merged by method depth";
            return Err(BadField::new("depth_by", expected, "merge"));
        }
        let protected = self.protect_first.saturating_add(self.protect_last);
        if protected >= config.layers() {
            return Err(BadField::new(
                "protect_first",
                format!("fewer than the model's {} layers in all", config.layers()),
                format!("{} + {}", self.protect_first, self.protect_last),
            ));
        }
        let base = PruneSpec {
            widths: Vec::new(),
            aim: Aim::Shape,
            global: false,
            steps: self.steps,
            multiple: self.multiple,
            protected: (self.protect_first, self.protect_last),
            left: config.clone(),
        };
        let goal = match (self.ratio, self.target_shape, self.target) {
            (Some(ratio), None, None) => {
                if !(ratio > 0.0 && ratio < 1.0) {
                    return Err(BadField::new("ratio", "more than 0 and less than 1", ratio));
                }
                let widths = cut_widths(self.scope, &self.widths)?;
                let spec = PruneSpec { widths, aim: Aim::Ratio(ratio), ..base };
                let of_parameters = self.ratio_of == RatioOf::Parameters;
                let spec = match self.of_first {
                    false => spec.checked(of_parameters, config, &model.specs)?,
                    true => spec.of_first(of_parameters, (first, config), &model.specs)?,
                };
                Goal { spec, search: Vec::new() }
            }
            (None, Some(shape), None) => {
                let left = shape.cut(config, self.multiple)?;
                if left == *config {
                    let whole = Shape::of(config).unwrap_or_default();
                    let expected = format!("less of something than {whole}");
                    return Err(BadField::new("target_shape", expected, shape));
                }
                Goal { spec: to_shape(base, config, left), search: Vec::new() }
            }
            (None, fixed, Some(target)) => {
                for (field, value) in [("candidates", self.candidates), ("held_out", self.held_out)]
                {
                    if value == 0 {
                        return Err(BadField::new(field, "1 or more", 0));
                    }
                }
                for (field, share) in
                    [("most_width", self.most_width), ("most_depth", self.most_depth)]
                {
                    if !(0.0..1.0).contains(&share) {
                        return Err(BadField::new(field, "a share from 0 to less than 1", share));
                    }
                }
                let caps = Caps {
                    width: self.most_width,
                    depth: self.most_depth,
                    multiple: self.multiple,
                    protected,
                };
                let cut = |left: Config| plan_cut(model, left, false, self.requantize).outline;
                let fixed = fixed.unwrap_or_default();
                let all = candidates(model, &fixed, &caps, target.of, &cut)?;
                let search = within(&all, &target, target.of.of(model))?.to_vec();
                let left = search[0].config.clone();
                Goal { spec: to_shape(base, config, left), search }
            }
            (None, None, None) => {
                let expected = "a ratio, target_shape or target";
                return Err(BadField::new("ratio", expected, "none of them"));
            }
            (Some(ratio), ..) => {
                let expected = "a ratio alone, or target_shape and target";
                return Err(BadField::new("ratio", expected, ratio));
            }
        };
        let layers = goal.spec.left.layers();
        if layers < protected {
            let expected = format!("layers of at least the {protected} that stay as they are");
            return Err(BadField::new("target_shape", expected, format!("layers={layers}")));
        }
        if protected > 0 && !goal.spec.widths.iter().all(|w| *w == PrunableDim::Layers) {
            let expected = "0, unless only blocks are cut: their widths stay alike";
            return Err(BadField::new("protect_first", expected, protected));
        }
        Ok(goal)
    }

    /// The model on the device as a whole if it fits, for a pass over so many rows.
    fn load(
        &self,
        weights: &dyn Weights,
        rows: &Rows,
        (pass, budget): (Pass<'_>, Option<u64>),
    ) -> Result<Option<Model>> {
        let outline = Outline::of(weights)?;
        let need = forward_estimate(&outline, rows.samples, rows.length(), pass.compute);
        match need.fits(budget)? {
            true => Model::load(pass.device, weights, |_, _| interrupt::check()).map(Some),
            false => Ok(None),
        }
    }

    /// The importance of everything in a model; where `left` blocks stay and trials say which, `depth` ranks them by that.
    fn importance(
        &self,
        weights: &dyn Weights,
        rows: &Rows,
        left: usize,
        within: (Pass<'_>, Option<u64>),
        progress: &mut dyn FnMut(&str, usize, usize),
    ) -> Result<(Importance, Vec<usize>)> {
        let (pass, budget) = within;
        let model = self.load(weights, rows, within)?;
        let source = match &model {
            Some(model) => WeightSource::Resident(model),
            None => WeightSource::Streamed(pass.device, weights),
        };
        let mut of_walk = |done: usize, total: usize| progress("importance", done, total);
        let importance = Importance::of(source, &pass, rows, &mut of_walk)?;
        drop(model);
        let layers = weights.config().layers();
        let protected = (self.protect_first, self.protect_last);
        let spec = DepthSpec { by: self.depth_by, layers: left, merge: 1, protected };
        let mut order = Vec::new();
        match self.depth_by {
            DepthBy::Perplexity if left < layers => {
                let trials = Trials::new(weights, pass, rows, budget)?;
                let mut after = |step: DepthStep, _: &KeptChannels| {
                    order.extend(step.gone);
                    Ok(())
                };
                let mut of_trials = |done: usize, total: usize| progress("blocks", done, total);
                let whole = KeptChannels::nothing(weights.config());
                spec.run(&trials, whole, &mut after, &mut of_trials)?;
            }
            _ => {
                order = (0..layers).filter(|layer| spec.may_cut(*layer, layers)).collect();
                order.sort_by(|a, b| importance.depth[*a].total_cmp(&importance.depth[*b]));
                order.truncate(layers - left.min(layers));
            }
        }
        Ok((importance, order))
    }

    /// Tries the shapes of a search that keep most of the importance, and returns the one with the lowest perplexity on the rows
    /// that were held out. What was tried is saved as it is known.
    fn best(
        &self,
        model: &dyn Weights,
        goal: &Goal,
        target: &Target,
        (importance, order): (&Importance, &[usize]),
        held: &Rows,
        context: &mut Context<'_>,
    ) -> Result<PruneSpec> {
        let (outline, device) = (Outline::of(model)?, context.pass.device);
        let list = shortlist(&goal.search, target, self.candidates, &outline, importance, order);
        let mut tried: Vec<Tried> = context.saved(TRIED)?.unwrap_or_default();
        let spec = |candidate: &Candidate| {
            to_shape(goal.spec.clone(), &outline.config, candidate.config.clone())
        };
        for (place, (candidate, importance_kept)) in list.iter().enumerate().skip(tried.len()) {
            interrupt::check()?;
            (context.progress)("shapes", place, list.len());
            let once = PruneSpec { steps: 1, ..spec(candidate) };
            let start = (0, KeptChannels::nothing(&outline.config));
            let mut score = |_: &dyn Weights, chosen: &[Group], _: usize| {
                Ok(chosen.iter().map(|group| ranked(importance, order, group)).collect())
            };
            let kept = rounds(model, start, &once, device, &mut score, &mut |_, _| Ok(()))?;
            let cut = Cut::new(model, device, kept, self.requantize);
            let left = Outline::of(&cut)?;
            let resident = self.load(&cut, held, (context.pass, context.budget))?;
            let source = match &resident {
                Some(model) => WeightSource::Resident(model),
                None => WeightSource::Streamed(device, &cut),
            };
            tried.push(Tried {
                shape: Shape::of(&left.config).unwrap_or_default(),
                parameters: left.parameters(),
                bytes: left.unpadded_bytes(),
                flops_per_token: left.flops_per_token(),
                importance_kept: *importance_kept,
                perplexity: rows_perplexity(source, &context.pass, held)?,
            });
            save(context.folder, TRIED, &tried)?;
        }
        let better = |a: &usize, b: &usize| tried[*a].perplexity.total_cmp(&tried[*b].perplexity);
        let chosen = (0..tried.len()).min_by(better).unwrap_or(0);
        let details = json!({
            "candidates": tried, "chosen": chosen, "within": goal.search.len(),
            "target": target, "held_out_tokens": held.ids.len(),
        });
        save(context.folder, DETAILS, &details)?;
        Ok(spec(&list[chosen].0))
    }
}

/// The scores of a group's units, blocks in the order in which they go.
fn ranked(importance: &Importance, order: &[usize], group: &Group) -> Vec<f32> {
    let mut units = importance.units(group);
    if group.width == PrunableDim::Layers {
        let rank = |layer: usize| order.iter().position(|gone| *gone == layer);
        let ranks = (0..units.len()).map(|layer| rank(layer).unwrap_or(order.len()) as f32);
        units = ranks.collect();
    }
    units
}

/// A cut to a shape, of what is less in it.
fn to_shape(base: PruneSpec, whole: &Config, left: Config) -> PruneSpec {
    let (before, after) = (whole.blocks[0], left.blocks[0]);
    let each = |block: BlockDims| block.heads / block.kv_heads;
    let cut = [
        (PrunableDim::FeedForward, after.intermediate_size < before.intermediate_size),
        (PrunableDim::Head, each(after) < each(before)),
        (PrunableDim::KvGroup, after.kv_heads < before.kv_heads),
        (PrunableDim::Hidden, left.hidden_size < whole.hidden_size),
        (PrunableDim::Layers, left.layers() < whole.layers()),
    ];
    let widths = cut.into_iter().filter(|(_, less)| *less).map(|(width, _)| width).collect();
    PruneSpec { widths, aim: Aim::Shape, left, ..base }
}

/// The file in the stage's folder with the shapes that were tried so far.
const TRIED: &str = "tried.json";

impl OfMethod for Minitron {
    fn of_method(mut self, _name: &'static str) -> Self {
        self.method = PruneMethod::Minitron;
        self.calibration.fill(64, 256);
        if self.widths.is_empty() {
            self.widths = vec!["ffn".into(), "head".into()];
        }
        self
    }
}

impl Stage for Minitron {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        let held_out = if self.target.is_some() { self.held_out } else { 0 };
        Needs { calibration: Some(&self.calibration), held_out, ..Needs::default() }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let goal = self.goal(model, &model.first).map_err(BadField::in_recipe)?;
        let searches = !goal.search.is_empty();
        let CutPlan { outline, changes, mut warnings } =
            plan_cut(model, goal.spec.left.clone(), searches, self.requantize);
        if let Some(ratio) = self.ratio {
            warnings.splice(0..0, unmet(&goal.spec, (ratio, self.ratio_of), model));
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
        let goal = self
            .goal(&Outline::of(model)?, context.parent.config())
            .map_err(BadField::in_recipe)?;
        let all = context.rows.expect("a stage that needs rows is given them");
        let (rows, held) = all.hold_out(self.needs().held_out);
        let (whole, within) = (model.config(), (context.pass, context.budget));
        let mut first = None;
        let spec = match &self.target {
            None => goal.spec,
            Some(target) => {
                let fewest = goal.search.iter().map(|one| one.config.layers()).min();
                let left = fewest.unwrap_or(whole.layers());
                let found = self.importance(model, &rows, left, within, context.progress)?;
                let of = (&found.0, found.1.as_slice());
                let spec = self.best(model, &goal, target, of, &held, context)?;
                first = Some(found);
                spec
            }
        };
        let saved: Option<(usize, KeptChannels)> = context.saved(ROUNDS)?;
        let start = saved.unwrap_or_else(|| (0, KeptChannels::nothing(whole)));
        let Context { folder, progress, .. } = context;
        let mut score = |weights: &dyn Weights, chosen: &[Group], step: usize| {
            let known = first.take().filter(|_| step == 0);
            let (importance, order) = match known {
                Some(found) => found,
                None => {
                    let left = spec.after(whole, step + 1).layers();
                    self.importance(weights, &rows, left, within, *progress)?
                }
            };
            Ok(chosen.iter().map(|group| ranked(&importance, &order, group)).collect())
        };
        let mut after = |done: usize, kept: &KeptChannels| save(folder, ROUNDS, &(done, kept));
        let device = within.0.device;
        let kept = rounds(model, start, &spec, device, &mut score, &mut after)?;
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
