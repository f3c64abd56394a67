//! LLM-Pruner (Ma et al. 2023, arXiv 2305.11627): dependency groups scored by weights or by the loss, the least important cut,
//! once or in several rounds that score again what is left.

use super::Order;
use super::memory::{Placement, place};
use super::score::sums;
use crate::device::{Device, HostTensor};
use crate::error::Result;
use crate::interrupt;
use crate::kernels::score::Reduction;
use crate::kernels::select::top_k::top_k;
use crate::methods::calibration::Rows;
use crate::model::{Config, Cut, Group, Model, Pass, Pruned, WeightSource, Weights, Width, groups};
use crate::recipe::{Ranking, ReductionName};
use crate::tensor::DType;

/// With what a model is pruned.
#[derive(Clone, Copy, Debug)]
pub struct Means<'a> {
    /// Where and in what it computes.
    pub pass: Pass<'a>,
    /// Calibration tokens, where the score takes them.
    pub rows: Option<&'a Rows>,
    /// Seed of random scores.
    pub seed: u64,
    /// Bytes of device memory that may be used.
    pub budget: Option<u64>,
}

/// What is left of `parent`, of which `cut` is kept so far, after an order for that. `progress` is told of what is done and to
/// do, over all rounds.
pub fn prune(
    parent: &dyn Weights,
    mut cut: Cut,
    order: &Order,
    means: Means<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Cut> {
    let device = means.pass.device;
    let begin = cut.config(parent.config());
    let steps = order.stage.steps;
    for step in 1..=steps {
        interrupt::check()?;
        let weights = Pruned::new(parent, device, cut.clone());
        let share = order.ratio * step as f64 / steps as f64;
        let aim = order.at(&begin, share);
        let mut told = |done: usize, total: usize| {
            progress((step - 1) * total + done, steps * total);
        };
        for (width, layer, units) in round(&weights, order, &aim, means, &mut told)? {
            cut.keep(width, layer, &units);
        }
    }
    Ok(cut)
}

/// The units that are kept of a width, of a block's where blocks have their own.
type Kept = (Width, Option<usize>, Vec<usize>);

/// What to keep of each group, so that about `aim` is left.
fn round(
    weights: &dyn Weights,
    order: &Order,
    aim: &Config,
    means: Means<'_>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Kept>> {
    let device = means.pass.device;
    let config = weights.config();
    let cuts = |group: &Group| {
        let may = group.layer.is_none_or(|layer| order.may_cut(config, layer));
        order.widths.contains(&group.width) && may
    };
    let all = groups(config, weights.specs());
    let chosen: Vec<Group> = all.into_iter().filter(cuts).collect();
    let scores = [order.score];
    let taught = order.score.needs_gradient();
    let shape = means.rows.map(|rows| (rows.samples, rows.length()));
    let compute = means.pass.compute;
    let placement = place(weights, &scores, &chosen, shape, compute, means.budget)?;
    let model = match placement {
        Placement::Held if taught => Some(Model::load(device, weights, |_, _| interrupt::check())?),
        _ => None,
    };
    let layers = match &model {
        Some(model) => WeightSource::Resident(model),
        None => WeightSource::Streamed(device, weights),
    };
    let sums = sums(
        layers,
        weights,
        &means.pass,
        &scores,
        &chosen,
        means.rows,
        progress,
    )?;
    drop(model);
    let reduction = reduction(order.stage.reduction);
    let mut found = Vec::new();
    for group in &chosen {
        let mut units = sums.units(device, order.score, group, reduction, means.seed)?;
        if group.width == Width::Layers {
            // Protected blocks are above all others.
            let guarded = |layer: &usize| !order.may_cut(config, *layer);
            for layer in (0..config.layers()).filter(guarded) {
                units[layer] = f32::INFINITY;
            }
        }
        found.push(units);
    }
    let mut kept = Vec::new();
    for width in &order.widths {
        let its = || {
            chosen
                .iter()
                .zip(&found)
                .filter(|(group, _)| group.width == *width)
        };
        let wanted = |group: &Group| width.units(aim, group.layer);
        let counts: Vec<usize> = match order.stage.ranking {
            Ranking::Local => its().map(|(group, _)| wanted(group)).collect(),
            Ranking::Global => {
                let total: usize = its().map(|(group, _)| wanted(group)).sum();
                let pool: Vec<f32> = its().flat_map(|(_, units)| units.clone()).collect();
                let mut stay = largest(device, &pool, total)?.into_iter().peekable();
                let mut end = 0;
                let count = |(group, units): (&Group, &Vec<f32>)| {
                    end += units.len();
                    let mut its = 0;
                    while stay.next_if(|place| *place < end).is_some() {
                        its += 1;
                    }
                    order.rounded(*width, its).min(group.units)
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
    Ok(places
        .filter(|(_, stays)| **stays == 1)
        .map(|(place, _)| place)
        .collect())
}

fn reduction(name: ReductionName) -> Reduction {
    match name {
        ReductionName::Sum => Reduction::Sum,
        ReductionName::Mean => Reduction::Mean,
        ReductionName::Max => Reduction::Max,
        ReductionName::Product => Reduction::Product,
        ReductionName::First => Reduction::First,
        ReductionName::Last => Reduction::Last,
    }
}
