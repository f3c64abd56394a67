//! Whether a model's weights stay on the device while it is scored, or come layer by layer: decided from headers alone.

use super::score::{AT_ONCE, Score};
use crate::error::{Error, Result};
use crate::model::{Compute, Group, Outline, TensorSpec};

/// Where weights are while a model is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// All on the device, all the time.
    Resident,
    /// A layer's at a time.
    Streamed,
}

impl Residency {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Residency::Resident => "held",
            Residency::Streamed => "streamed",
        }
    }
}

/// Bytes of device memory that scoring takes at most, about, with weights resident and with weights streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// With all weights on the device.
    pub resident: u64,
    /// With those of one layer, or the head, at a time.
    pub streamed: u64,
    /// Without any weights.
    pub work: u64,
}

/// What scoring `groups` by `scores` needs. `calibration`: sequences and the length of each.
pub fn estimate(
    model: &Outline,
    scores: &[Score],
    groups: &[Group],
    calibration: Option<(usize, usize)>,
    compute: Compute,
) -> MemoryEstimate {
    let config = &model.config;
    let values = |spec: &TensorSpec| (spec.rows * spec.columns) as u64;
    let all_layers = groups.iter().any(|group| group.members.is_empty());
    let members = || groups.iter().flat_map(|group| &group.members);
    let scored = |spec: &TensorSpec| {
        members().any(|m| m.tensor == spec.name) || (all_layers && spec.layer().is_some())
    };
    // The largest scored tensor of the blocks, and of what stands before and after them.
    let (mut resident, mut largest, mut largest_end) = (0, 0, 0);
    // Of blocks, and of what stands before and behind them.
    let mut places = vec![(0u64, 0u64); config.layers() + 1];
    for (spec, format) in model.tensors() {
        let bytes = format.bytes(spec.rows, spec.columns);
        resident += bytes;
        let place = &mut places[spec.layer().unwrap_or(config.layers())];
        place.0 += bytes;
        if scored(spec) {
            place.1 += values(spec);
            match spec.layer() {
                Some(_) => largest = largest.max(values(spec)),
                None => largest_end = largest_end.max(values(spec)),
            }
        }
    }
    // A layer's weights may still be in use when the next one's arrive.
    let ends = places[config.layers()].0;
    let blocks = places[..config.layers()].iter().map(|place| 2 * place.0);
    let block = blocks.max().unwrap_or(0);
    let Some((sequences, length)) = calibration else {
        // A tensor as it is, and as f32.
        let one = 8 * largest.max(largest_end);
        return MemoryEstimate { resident: one, streamed: one, work: one };
    };
    let (tokens, length) = counted(sequences, length);
    let at_once = tokens.min((AT_ONCE as u64 / length).max(1) * length);
    let widest = config.widest();
    let heads = (widest.heads + 2 * widest.kv_heads) * config.head_dim;
    // f32 values, their gradients and what products take of them, of the widest of a block.
    let wide = (12 * config.hidden_size + 4 * heads + 10 * widest.intermediate_size) as u64;
    let element = compute.activation.size() as u64;
    let logits = (at_once * config.vocab_size as u64 * (8 + element)).min(3 * (256 << 20));
    let kept = 4 * tokens * (config.hidden_size * (config.layers() + 3)) as u64;
    let sums = scores.iter().any(|s| s.needs_sequences()) as u64 + 1;
    // A gradient, its parts on their way, the weight in f32, the same turned: of the largest tensor.
    let single = |largest: u64| 4 * largest * (3 + sums);
    let layer = places[..config.layers()].iter().map(|place| place.1).max();
    let several = if at_once < tokens { 4 * sums * layer.unwrap_or(0) } else { 0 };
    let wide = 4 * at_once * wide;
    let work = kept + wide + logits + single(largest.max(largest_end)) + several;
    // Logits are gone when the blocks are run back.
    let head = ends + wide + logits + single(largest_end);
    let streamed = kept + several + head.max(block + wide + single(largest));
    MemoryEstimate { resident: resident + work, streamed, work }
}

impl MemoryEstimate {
    /// Whether all weights fit within `budget`; an error if even one layer's do not.
    pub fn fits(&self, budget: Option<u64>) -> Result<bool> {
        match budget {
            Some(budget) if self.streamed > budget => Err(Error::OutOfMemory {
                what: "a pass over the calibration text, with one layer's weights at a time".into(),
                bytes: self.streamed,
                used: 0,
                budget,
            }),
            Some(budget) => Ok(self.resident <= budget),
            None => Ok(true),
        }
    }
}

/// Tokens in all and of a row, as far as they matter: no memory holds activations of more, and sums of bytes stay numbers.
fn counted(sequences: usize, length: usize) -> (u64, u64) {
    const MOST: u64 = 1 << 36;
    ((sequences as u64).saturating_mul(length as u64).min(MOST), (length as u64).clamp(1, MOST))
}

/// What a pass forward over `sequences` rows of `length` tokens needs that takes statistics of what goes through blocks.
pub fn forward_estimate(
    model: &Outline,
    sequences: usize,
    length: usize,
    compute: Compute,
) -> MemoryEstimate {
    let config = &model.config;
    let (tokens, length) = counted(sequences, length);
    let at_once = tokens.min((AT_ONCE as u64 / length).max(1) * length);
    let widest = config.widest();
    let heads = (2 * widest.heads + 2 * widest.kv_heads) * config.head_dim;
    let element = compute.activation.size() as u64;
    let wide = (4 * config.hidden_size + heads + 3 * widest.intermediate_size) as u64;
    let logits = (at_once * config.vocab_size as u64 * 4).min(256 << 20);
    let work = 4 * tokens * config.hidden_size as u64 + at_once * wide * element.max(4) + logits;
    let mut places = vec![0u64; config.layers() + 1];
    for (spec, format) in model.tensors() {
        let place = spec.layer().unwrap_or(config.layers());
        places[place] += format.bytes(spec.rows, spec.columns);
    }
    let ends = places[config.layers()];
    // A layer's weights may still be in use when the next one's arrive.
    let block = places[..config.layers()].iter().map(|place| 2 * place).max().unwrap_or(0);
    let resident = places.iter().sum::<u64>() + work;
    MemoryEstimate { resident, streamed: block.max(ends) + work, work }
}

/// Where weights go so that scoring keeps within `budget`; an error if nothing does.
pub fn choose_residency(
    model: &Outline,
    scores: &[Score],
    groups: &[Group],
    calibration: Option<(usize, usize)>,
    compute: Compute,
    budget: Option<u64>,
) -> Result<Residency> {
    let need = estimate(model, scores, groups, calibration, compute);
    match budget {
        Some(budget) if need.resident > budget => {
            if need.streamed <= budget {
                return Ok(Residency::Streamed);
            }
            Err(Error::OutOfMemory {
                what: "scores, with one layer's weights at a time".into(),
                bytes: need.streamed,
                used: 0,
                budget,
            })
        }
        _ => Ok(Residency::Resident),
    }
}
