//! LLM-Pruner (Ma et al. 2023, arXiv 2305.11627): dependency groups scored by weights or by the loss, the least important cut,
//! once or in several rounds that score again what is left.

use super::PruneSpec;
use super::memory::{Residency, choose_residency};
use super::rounds::rounds;
use super::score::{Score, sums};
use crate::error::Result;
use crate::interrupt;
use crate::kernels::score::Reduction;
use crate::methods::calibration::Rows;
use crate::model::{Group, KeptChannels, Model, Outline, Pass, WeightSource, Weights};

/// The device and data of a pruning run.
#[derive(Clone, Copy, Debug)]
pub struct PruneContext<'a> {
    /// Where and in what it computes.
    pub pass: Pass<'a>,
    /// Calibration tokens, where the score takes them.
    pub rows: Option<&'a Rows>,
    /// Seed of random scores.
    pub seed: u64,
    /// Bytes of device memory that may be used.
    pub budget: Option<u64>,
}

/// Cuts `parent` in the rounds of `spec` after the first `done`, which left `kept`, by `score`, whose values for the tensors of a
/// group are joined by `reduction`. Returns what is kept in the end. `after_round` is given the rounds done and what is kept so
/// far; `progress` what is done and to do, over all rounds.
pub fn prune(
    parent: &dyn Weights,
    start: (usize, KeptChannels),
    spec: &PruneSpec,
    (score, reduction): (Score, Reduction),
    context: PruneContext<'_>,
    after_round: &mut dyn FnMut(usize, &KeptChannels) -> Result<()>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<KeptChannels> {
    let device = context.pass.device;
    let mut scores = |weights: &dyn Weights, chosen: &[Group], step: usize| {
        let mut of_all = |done: usize, total: usize| {
            progress(step * total + done, spec.steps * total);
        };
        scored(weights, chosen, (score, reduction), context, &mut of_all)
    };
    rounds(parent, start, spec, device, &mut scores, after_round)
}

/// The scores of some groups of a model, by unit.
fn scored(
    weights: &dyn Weights,
    chosen: &[Group],
    (score, reduction): (Score, Reduction),
    context: PruneContext<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Vec<f32>>> {
    let device = context.pass.device;
    let scores = [score];
    let gradient_based = score.needs_gradient();
    let shape = context.rows.map(|rows| (rows.samples, rows.length()));
    let compute = context.pass.compute;
    let outline = Outline::of(weights)?;
    let residency = choose_residency(&outline, &scores, chosen, shape, compute, context.budget)?;
    let model = match residency {
        Residency::Resident if gradient_based => {
            Some(Model::load(device, weights, |_, _| interrupt::check())?)
        }
        _ => None,
    };
    let layers = match &model {
        Some(model) => WeightSource::Resident(model),
        None => WeightSource::Streamed(device, weights),
    };
    let sums = sums(layers, weights, &context.pass, &scores, chosen, context.rows, progress)?;
    drop(model);
    let of = |group: &Group| sums.unit_scores(device, score, group, reduction, context.seed);
    chosen.iter().map(of).collect()
}
