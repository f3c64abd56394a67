//! Which blocks a model can do without, or as one: by the cosine of a block's input and output (Men et al. 2024, ShortGPT, arXiv
//! 2403.03853, equation 1; Minitron, arXiv 2407.14679, section 2.2), by the loss without it, taken again after each that goes
//! (the same section; Kim et al. 2024, Shortened LLaMA, arXiv 2402.02834), or by merging neighbours (Yang et al. 2024, LaCo,
//! arXiv 2402.11187).

use serde::{Deserialize, Serialize};

use super::memory::forward_estimate;
use super::score::AT_ONCE;
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::families::module_name;
use crate::interrupt;
use crate::kernels::copy::cast::cast;
use crate::measure::{Convention, perplexity};
use crate::methods::calibration::Rows;
use crate::model::{
    Config, KeptChannels, Model, Outline, Pass, PrunableDim, Pruned, WeightSource, Weights,
};
use crate::tensor::DType;
use crate::walk::{Kind, Statistics, Through, Walk, cosines};

/// How the blocks that go are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DepthBy {
    /// Those that turn the residual stream the least, all at once.
    #[default]
    Cosine,
    /// The one without which the calibration's perplexity is lowest, again and again.
    Perplexity,
    /// Neighbours become one, those whose merging changes the last block's output the least, again and again.
    Merge,
}

/// A step on the way to fewer blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DepthStep {
    /// The blocks that went, by their numbers before it.
    pub gone: Vec<usize>,
    /// The block that they were merged into, if they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub into: Option<usize>,
    /// One less the cosine of its input and output, the perplexity without it, or one less the cosine of the last block's
    /// normalized output before and after the merging: by which of them it was chosen.
    pub cost: f64,
}

/// One less the mean cosine of each block's input and output.
pub fn cosine_scores(
    source: WeightSource<'_>,
    pass: &Pass<'_>,
    rows: &Rows,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<f32>> {
    let config = source.config();
    let mut walk = Walk::new(source, *pass, &rows.ids, rows.samples, AT_ONCE)?;
    let mut scores = Vec::new();
    while let Some(step) = walk.next_block()? {
        let layer = step.layer();
        progress(layer, config.layers());
        interrupt::check()?;
        let mut statistics = Statistics::new(pass.device, &[Kind::Cosine], rows.length());
        step.advance(Through::Parent, Some(&mut statistics))?;
        let sums = statistics.read(|slot| module_name(config, layer, slot))?;
        scores.push(1.0 - sums.mean_cosine().unwrap_or(0.0) as f32);
    }
    Ok(scores)
}

/// A model that is tried with fewer blocks: on the device as a whole where that fits, so that what several trials have in common
/// is copied there once.
pub struct Trials<'a> {
    weights: &'a dyn Weights,
    pass: Pass<'a>,
    resident: Option<Model>,
    rows: &'a Rows,
}

impl std::fmt::Debug for Trials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trials").field("rows", &self.rows.samples).finish_non_exhaustive()
    }
}

impl<'a> Trials<'a> {
    /// Of `weights`, by what they make of `rows`, within `budget` bytes of device memory.
    pub fn new(
        weights: &'a dyn Weights,
        pass: Pass<'a>,
        rows: &'a Rows,
        budget: Option<u64>,
    ) -> Result<Self> {
        let need =
            forward_estimate(&Outline::of(weights)?, rows.samples, rows.length(), pass.compute);
        let resident = match need.fits(budget)? {
            true => Some(Model::load(pass.device, weights, |_, _| interrupt::check())?),
            false => None,
        };
        Ok(Self { weights, pass, resident, rows })
    }

    /// What `of` finds of the model with only the blocks that are kept, whole or merged.
    fn with<T>(
        &self,
        kept: &KeptChannels,
        of: impl FnOnce(WeightSource<'_>) -> Result<T>,
    ) -> Result<T> {
        let device = self.pass.device;
        let pruned = Pruned::new(self.weights, device, kept.clone());
        let streamed = WeightSource::Streamed(device, &pruned);
        let Some(model) = &self.resident else {
            return of(streamed);
        };
        let mut blocks = Vec::new();
        for (place, layer) in kept.layers.iter().enumerate() {
            blocks.push(match kept.merged[place].is_empty() {
                true => model.blocks()[*layer].clone(),
                false => streamed.block(place)?.into_owned(),
            });
        }
        of(WeightSource::Resident(&model.with_blocks(pruned.config().clone(), blocks)))
    }

    /// The perplexity of the rows, in windows of a row each.
    pub fn perplexity(&self, kept: &KeptChannels) -> Result<f64> {
        self.with(kept, |source| rows_perplexity(source, &self.pass, self.rows))
    }

    /// What goes into the head, a microbatch at a time.
    fn outputs(&self, kept: &KeptChannels) -> Result<Vec<Tensor>> {
        self.with(kept, |source| {
            let rows = self.rows;
            let mut walk = Walk::new(source, self.pass, &rows.ids, rows.samples, AT_ONCE)?;
            while let Some(step) = walk.next_block()? {
                step.advance(Through::Parent, None)?;
            }
            let head = source.head()?;
            let normed = |stream: &Tensor| {
                let normed = head.norm(&self.pass, stream)?;
                cast(self.pass.device, &normed, DType::F32)
            };
            walk.streams().iter().map(normed).collect()
        })
    }
}

/// The perplexity of some rows, in windows of a row each.
pub fn rows_perplexity(source: WeightSource<'_>, pass: &Pass<'_>, rows: &Rows) -> Result<f64> {
    let check = |_: usize, _: usize| interrupt::check();
    let all = Convention::usual(source.config().encoder.is_some());
    Ok(perplexity(source, pass, &rows.ids, rows.length(), all, None, check)?.value)
}

/// What goes on the way from what `kept` keeps of a model to `layers` blocks.
#[derive(Clone, Copy, Debug)]
pub struct DepthSpec {
    /// How the blocks that go are found.
    pub by: DepthBy,
    /// The blocks that are left.
    pub layers: usize,
    /// The most that are merged into one at once.
    pub merge: usize,
    /// First and last blocks that stay as they are.
    pub protected: (usize, usize),
}

impl DepthSpec {
    /// Whether a block of so many may go or be merged.
    pub fn may_cut(&self, place: usize, layers: usize) -> bool {
        (self.protected.0..layers - self.protected.1).contains(&place)
    }

    /// Takes blocks out, or merges them, from `kept` on. `after` is told of each step, its number, and what is kept after it;
    /// `progress` of trials done and to do.
    pub fn run(
        &self,
        trials: &Trials<'_>,
        kept: KeptChannels,
        after: &mut dyn FnMut(DepthStep, &KeptChannels) -> Result<()>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<KeptChannels> {
        match self.by {
            DepthBy::Cosine => self.by_cosine(trials, kept, after, progress),
            DepthBy::Perplexity => self.greedy(trials, kept, after, progress, None),
            DepthBy::Merge => {
                let whole = trials.outputs(&KeptChannels::nothing(trials.weights.config()))?;
                self.greedy(trials, kept, after, progress, Some(&whole))
            }
        }
    }

    fn by_cosine(
        &self,
        trials: &Trials<'_>,
        mut kept: KeptChannels,
        after: &mut dyn FnMut(DepthStep, &KeptChannels) -> Result<()>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<KeptChannels> {
        let layers = kept.layers.len();
        let scores = trials
            .with(&kept, |source| cosine_scores(source, &trials.pass, trials.rows, progress))?;
        let mut order: Vec<usize> = (0..layers).filter(|p| self.may_cut(*p, layers)).collect();
        // The sort is stable: of equals the first goes.
        order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
        order.truncate(layers.saturating_sub(self.layers));
        let stay: Vec<usize> = (0..layers).filter(|place| !order.contains(place)).collect();
        let numbers = kept.layers.clone();
        kept.keep(PrunableDim::Layers, None, &stay);
        for place in order {
            let cost = f64::from(scores[place]);
            after(DepthStep { gone: vec![numbers[place]], into: None, cost }, &kept)?;
        }
        Ok(kept)
    }

    /// The best of all single steps, again and again: by the perplexity, or by how near the last block's output comes to `whole`.
    fn greedy(
        &self,
        trials: &Trials<'_>,
        mut kept: KeptChannels,
        after: &mut dyn FnMut(DepthStep, &KeptChannels) -> Result<()>,
        progress: &mut dyn FnMut(usize, usize),
        whole: Option<&[Tensor]>,
    ) -> Result<KeptChannels> {
        while kept.layers.len() > self.layers {
            let layers = kept.layers.len();
            let count = match whole {
                Some(_) => self.merge.min(layers - self.layers),
                None => 1,
            };
            // A block takes in those behind it; one alone is left out.
            let together = |place: usize| place..place + count + usize::from(count > 1);
            let may = |place: &usize| {
                let mut all = together(*place);
                all.end <= layers && all.all(|place| self.may_cut(place, layers))
            };
            let places: Vec<usize> = (0..layers).filter(may).collect();
            let mut best: Option<(f64, usize, KeptChannels)> = None;
            for (done, place) in places.iter().enumerate() {
                interrupt::check()?;
                progress(done, places.len());
                let mut trial = kept.clone();
                trial.merge(*place, count);
                let cost = match whole {
                    None => trials.perplexity(&trial)?,
                    Some(whole) => {
                        1.0 - mean_cosine(trials.pass.device, whole, &trials.outputs(&trial)?)?
                    }
                };
                if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                    best = Some((cost, *place, trial));
                }
            }
            let Some((cost, place, trial)) = best else {
                break;
            };
            let (into, gone) = match count {
                1 => (None, place..place + 1),
                _ => (Some(kept.layers[place]), place + 1..place + 1 + count),
            };
            let gone = gone.map(|place| kept.layers[place]).collect();
            kept = trial;
            after(DepthStep { gone, into, cost }, &kept)?;
        }
        Ok(kept)
    }
}

/// The mean cosine of rows of some tensors with those of others.
fn mean_cosine(device: &Device, a: &[Tensor], b: &[Tensor]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for (a, b) in a.iter().zip(b) {
        sum += cosines(device, a, b)?;
        count += a.shape()[0];
    }
    Ok(sum / count as f64)
}

/// Why blocks of a model cannot be merged with each other, if they cannot: their widths or tensors differ.
pub fn unlike(config: &Config, weights: &Outline) -> Option<String> {
    if config.uniform().is_none() {
        return Some("blocks of several widths".into());
    }
    let of = |layer: usize| {
        let specs = weights.specs.iter().filter(move |spec| spec.layer() == Some(layer));
        specs.map(|spec| spec.slot).collect::<Vec<_>>()
    };
    let odd = (1..config.layers()).find(|layer| of(*layer) != of(0))?;
    Some(format!("other tensors in block {odd} than in block 0"))
}
