//! Cutting by scores: which units of each group stay, in rounds that score again what is left.

use super::PruneSpec;
use crate::device::{Device, HostTensor};
use crate::error::Result;
use crate::interrupt;
use crate::kernels::select::top_k::top_k;
use crate::model::{Config, Group, KeptChannels, PrunableDim, Pruned, Weights, groups};
use crate::tensor::DType;

/// What scores a round's groups: given what is left, those of its groups that are cut, and the round's number from 0, one score
/// for each unit of each.
pub type Scorer<'a> = dyn FnMut(&dyn Weights, &[Group], usize) -> Result<Vec<Vec<f32>>> + 'a;

/// Cuts `parent` in the rounds of `spec` after the first `done`, which left `kept`. Returns what is kept in the end.
/// `after_round` is given the rounds done and what is kept so far.
pub fn rounds(
    parent: &dyn Weights,
    (done, mut kept): (usize, KeptChannels),
    spec: &PruneSpec,
    device: &Device,
    score: &mut Scorer<'_>,
    after_round: &mut dyn FnMut(usize, &KeptChannels) -> Result<()>,
) -> Result<KeptChannels> {
    for step in done..spec.steps {
        interrupt::check()?;
        let weights = Pruned::new(parent, device, kept.clone());
        let config = weights.config();
        let chosen = spec.groups(config, groups(config, weights.specs()));
        let scores = score(&weights, &chosen, step)?;
        let aim = spec.after(parent.config(), step + 1);
        for (width, layer, units) in
            staying(device, spec, (parent.config(), &aim, step + 1), config, &chosen, scores)?
        {
            kept.keep(width, layer, &units);
        }
        after_round(step + 1, &kept)?;
    }
    Ok(kept)
}

/// The units that are kept of a width, of a block's where blocks have their own.
type Kept = (PrunableDim, Option<usize>, Vec<usize>);

/// The units to keep of each group of a model of configuration `config`, so that `aim` is left of `whole` after the round.
fn staying(
    device: &Device,
    spec: &PruneSpec,
    (whole, aim, round): (&Config, &Config, usize),
    config: &Config,
    chosen: &[Group],
    mut scores: Vec<Vec<f32>>,
) -> Result<Vec<Kept>> {
    for (group, units) in chosen.iter().zip(&mut scores) {
        if group.width == PrunableDim::Layers {
            // Protected blocks are above all others.
            let guarded = |layer: &usize| !spec.may_cut(config, *layer);
            for layer in (0..config.layers()).filter(guarded) {
                units[layer] = f32::INFINITY;
            }
        }
    }
    let mut kept = Vec::new();
    for width in &spec.widths {
        let its = || chosen.iter().zip(&scores).filter(|(group, _)| group.width == *width);
        let counts: Vec<usize> = match spec.global {
            false => its().map(|(group, _)| wanted(group, aim)).collect(),
            true => {
                let total = spec.total(*width, whole, round);
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
            let part = group.units / group.parts;
            let mut stay = Vec::new();
            for (index, units) in units.chunks(part).enumerate() {
                let its = largest(device, units, count / group.parts)?;
                stay.extend(its.into_iter().map(|place| index * part + place));
            }
            kept.push((*width, group.layer, stay));
        }
    }
    Ok(kept)
}

/// Units of a group that stay so that `aim` is left; as many query heads of each key-value head, whose own number changes later.
fn wanted(group: &Group, aim: &Config) -> usize {
    // Blocks that go after this round have the widths of those that stay.
    let layer = group.layer.map(|layer| layer.min(aim.layers() - 1));
    match group.width {
        PrunableDim::Head => {
            let block = aim.blocks[layer.unwrap_or(0)];
            block.heads / block.kv_heads * group.parts
        }
        width => width.units(aim, layer),
    }
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
