//! LLM-Pruner (Ma et al. 2023, arXiv 2305.11627): dependency groups scored by weights or by the loss, the least important cut,
//! once or in several rounds that score again what is left.

use super::PruneSpec;
use super::memory::{Residency, choose_residency};
use super::score::sums;
use crate::device::{Device, HostTensor};
use crate::error::Result;
use crate::interrupt;
use crate::kernels::select::top_k::top_k;
use crate::methods::calibration::Rows;
use crate::model::{
    Config, Group, KeptChannels, Model, Outline, Pass, PrunableDim, Pruned, WeightSource, Weights,
    groups,
};
use crate::tensor::DType;

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

/// Cuts `parent` in the rounds of `spec` after the first `done`, which left `kept`. Returns what is kept in the end. `after_round`
/// is given the rounds done and what is kept so far; `progress` what is done and to do, over all rounds.
pub fn prune(
    parent: &dyn Weights,
    (done, mut kept): (usize, KeptChannels),
    spec: &PruneSpec,
    context: PruneContext<'_>,
    after_round: &mut dyn FnMut(usize, &KeptChannels) -> Result<()>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<KeptChannels> {
    let steps = spec.steps;
    for step in done + 1..=steps {
        interrupt::check()?;
        let weights = Pruned::new(parent, context.pass.device, kept.clone());
        let share = spec.ratio * step as f64 / steps as f64;
        let mut of_all = |done: usize, total: usize| {
            progress((step - 1) * total + done, steps * total);
        };
        for (width, layer, units) in
            round(&weights, spec, (parent.config(), share), context, &mut of_all)?
        {
            kept.keep(width, layer, &units);
        }
        after_round(step, &kept)?;
    }
    Ok(kept)
}

/// The units that are kept of a width, of a block's where blocks have their own.
type Kept = (PrunableDim, Option<usize>, Vec<usize>);

/// The channels to keep of each group, so that of the whole model this share of each width goes.
fn round(
    weights: &dyn Weights,
    spec: &PruneSpec,
    (whole, share): (&Config, f64),
    context: PruneContext<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Kept>> {
    let device = context.pass.device;
    let config = weights.config();
    let cuts = |group: &Group| {
        let may = group.layer.is_none_or(|layer| spec.may_cut(config, layer));
        spec.widths.contains(&group.width) && may
    };
    let all = groups(config, weights.specs());
    let chosen: Vec<Group> = all.into_iter().filter(cuts).collect();
    let scores = [spec.score];
    let gradient_based = spec.score.needs_gradient();
    let shape = context.rows.map(|rows| (rows.samples, rows.length()));
    let compute = context.pass.compute;
    let outline = Outline::of(weights)?;
    let residency = choose_residency(&outline, &scores, &chosen, shape, compute, context.budget)?;
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
    let sums = sums(layers, weights, &context.pass, &scores, &chosen, context.rows, progress)?;
    drop(model);
    let mut found = Vec::new();
    for group in &chosen {
        let mut units =
            sums.unit_scores(device, spec.score, group, spec.reduction, context.seed)?;
        if group.width == PrunableDim::Layers {
            // Protected blocks are above all others.
            let guarded = |layer: &usize| !spec.may_cut(config, *layer);
            for layer in (0..config.layers()).filter(guarded) {
                units[layer] = f32::INFINITY;
            }
        }
        found.push(units);
    }
    let aim = spec.at(whole, share);
    let mut kept = Vec::new();
    for width in &spec.widths {
        let its = || chosen.iter().zip(&found).filter(|(group, _)| group.width == *width);
        let wanted = |group: &Group| width.units(&aim, group.layer);
        let counts: Vec<usize> = match spec.global {
            false => its().map(|(group, _)| wanted(group)).collect(),
            true => {
                let total = spec.total(*width, whole, share);
                let pool: Vec<f32> = its().flat_map(|(_, units)| units.clone()).collect();
                let mut stay = largest(device, &pool, total)?.into_iter().peekable();
                let mut end = 0;
                let count = |(group, units): (&Group, &Vec<f32>)| {
                    end += units.len();
                    let mut its = 0;
                    while stay.next_if(|place| *place < end).is_some() {
                        its += 1;
                    }
                    spec.rounded(*width, its).min(group.units)
                };
                its().map(count).collect()
            }
        };
        for ((group, units), count) in its().zip(counts) {
            kept.push((*width, group.layer, largest(device, units, count)?));
        }
    }
    Ok(kept)
}

/// The places of the largest `count` scores, in order.
fn largest(device: &Device, scores: &[f32], count: usize) -> Result<Vec<usize>> {
    let scores = HostTensor::from_f32(DType::F32, &[scores.len()], scores);
    let scores = device.upload(&scores, "scores")?;
    let (mask, _) = top_k(device, &scores, count)?;
    let mask = device.read(&mask)?;
    let mask = mask.view();
    let places = mask.u32s().iter().enumerate();
    Ok(places.filter(|(_, stays)| **stays == 1).map(|(place, _)| place).collect())
}
