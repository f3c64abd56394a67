//! Scales of input channels that are folded away: the columns of the products behind an input are multiplied by s, and what makes
//! the input divides by s. Nothing else is there to be computed, and the function is the same (AWQ, Lin et al. 2023, arXiv
//! 2306.00978, section 3.2; SmoothQuant, Xiao et al. 2022, arXiv 2211.10438, section 4).
//!
//! There are four places in a block ([`PLACES`]). All are exact in every family here: gains of norms are what columns are
//! multiplied by, whatever a checkpoint leaves out of them (Gemma's 1); attention's result is a sum of values, whose heads are
//! read by all query heads of their group, so that these share its scales; what is gated is multiplied, so that up's rows
//! divide. Norms of heads (Qwen 3) and norms behind the halves (Gemma 3) stand at none of these ways. What makes queries and keys
//! has rotary encodings and products of two activations behind it: it is no place.
//!
//! A norm's gain is stored in few bits sometimes: it is divided and rounded first, and what the rounding leaves of s goes into the
//! columns, whose own rounding is all that is left then.

use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Transformed;
use crate::error::Result;
use crate::graph::Slot;
use crate::model::{Config, Role, TensorSpec, Weights};
use crate::walk::BlockSums;

/// An input of products whose channels may be scaled.
#[derive(Debug)]
pub struct Place {
    /// What makes the input: a norm, whose gains are divided, or a linear layer, whose rows and bias are.
    pub from: Slot,
    /// The products that read it. The first stands for their input.
    pub behind: &'static [Slot],
}

/// All of a block.
pub static PLACES: [Place; 4] = [
    Place { from: Slot::AttentionNorm, behind: &[Slot::Query, Slot::Key, Slot::Value] },
    Place { from: Slot::Value, behind: &[Slot::Output] },
    Place { from: Slot::FeedForwardNorm, behind: &[Slot::Gate, Slot::Up] },
    Place { from: Slot::Up, behind: &[Slot::Down] },
];

/// Whether a tensor is divided or multiplied at a place.
pub fn is_scaled(spec: &TensorSpec) -> bool {
    PLACES.iter().any(|place| {
        place.from == spec.slot || (place.behind.contains(&spec.slot) && spec.role == Role::Linear)
    })
}

/// A place of one block of a model.
pub struct Found<'a> {
    model: &'a dyn Weights,
    /// Its row.
    pub place: &'static Place,
    /// The tensor that makes the input; its bias aside.
    pub from: &'a TensorSpec,
    /// Those that read it.
    pub behind: Vec<&'a TensorSpec>,
    /// For each column of these its channel: several query heads read one head of values.
    pub channels: Vec<usize>,
}

impl std::fmt::Debug for Found<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Found").field("from", &self.from.name).finish_non_exhaustive()
    }
}

/// The places of a block of a model.
pub fn places(model: &dyn Weights, layer: usize) -> Vec<Found<'_>> {
    let find = |slot: Slot| {
        let is = move |spec: &&TensorSpec| {
            (spec.layer, spec.slot) == (Some(layer), slot) && spec.role != Role::Bias
        };
        model.specs().iter().find(is)
    };
    let found = |place: &'static Place| {
        let from = find(place.from)?;
        let behind: Vec<&TensorSpec> = place.behind.iter().filter_map(|slot| find(*slot)).collect();
        let columns = behind.first()?.columns;
        let channels = channels(model.config(), (layer, place), columns);
        Some(Found { model, place, from, behind, channels })
    };
    PLACES.iter().filter_map(found).collect()
}

/// For each of so many columns of what is behind a place of a block its channel.
fn channels(config: &Config, (layer, place): (usize, &Place), columns: usize) -> Vec<usize> {
    if place.from != Slot::Value {
        return (0..columns).collect();
    }
    let (block, dim) = (&config.blocks[layer], config.head_dim);
    let each = block.heads / block.kv_heads;
    (0..columns).map(|column| column / dim / each * dim + column % dim).collect()
}

impl Found<'_> {
    /// How many channels there are.
    pub fn count(&self) -> usize {
        self.channels.iter().max().map_or(0, |last| last + 1)
    }

    /// What is known of each column, for each channel: that of its columns together.
    pub fn by_channel(&self, columns: &[f64], join: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let mut joined: Vec<Option<f64>> = vec![None; self.count()];
        for (channel, value) in self.channels.iter().zip(columns) {
            let before = joined[*channel];
            joined[*channel] = Some(before.map_or(*value, |before| join(before, *value)));
        }
        joined.into_iter().map(Option::unwrap_or_default).collect()
    }

    /// The block's sums of these inputs.
    pub fn slot(&self) -> Slot {
        self.place.behind[0]
    }

    /// The tokens that reached the input.
    pub fn tokens(&self, sums: &BlockSums) -> u64 {
        sums.input(self.slot()).map_or(0, |input| input.tokens)
    }

    /// Scales as the places can have them: positive numbers, and those that a norm's gain has room for in its type.
    pub fn settled(&self, scales: Vec<f64>) -> Result<Vec<f32>> {
        let fits = |scale: f64| {
            let scale = scale as f32;
            if scale.is_normal() && scale > 0.0 { scale } else { 1.0 }
        };
        let scales: Vec<f32> = scales.into_iter().map(fits).collect();
        if self.from.role != Role::Norm {
            return Ok(scales);
        }
        let (gains, format) = (self.model.load(self.from)?.to_f32(), self.model.format(self.from)?);
        // A gain that its type has no room for, or that is 0, keeps its scale of 1.
        let left = |(gain, scale): (&f32, &f32)| {
            let divided = match format.ty.name {
                "f16" => f16::from_f32(gain / scale).to_f32(),
                "bf16" => bf16::from_f32(gain / scale).to_f32(),
                _ => gain / scale,
            };
            fits(f64::from(gain / divided))
        };
        Ok(gains.iter().zip(&scales).map(left).collect())
    }
}

/// The scales of a block's channels, in the order of [`PLACES`]; `None` where all are 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scales(pub [Option<Vec<f32>>; 4]);

/// A model whose channels are scaled.
pub struct Scaled<'a> {
    model: &'a dyn Weights,
    scales: Vec<Scales>,
}

impl std::fmt::Debug for Scaled<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scaled").field("config", self.model.config()).finish_non_exhaustive()
    }
}

impl<'a> Scaled<'a> {
    /// `model` with the scales of each of its blocks; `None` unless there are as many as it has channels.
    pub fn new(model: &'a dyn Weights, scales: Vec<Scales>) -> Option<Self> {
        let fits = |(layer, Scales(scales)): (usize, &Scales)| {
            let counts: Vec<(Slot, usize)> = places(model, layer)
                .iter()
                .map(|found| (found.place.from, found.count()))
                .collect();
            PLACES.iter().zip(scales).all(|(place, scales)| match scales {
                Some(scales) => counts.contains(&(place.from, scales.len())),
                None => true,
            })
        };
        let all = scales.len() == model.config().layers() && scales.iter().enumerate().all(fits);
        all.then_some(Self { model, scales })
    }

    /// The scales of a block's place, if they are not 1.
    fn of(&self, layer: usize, is: impl Fn(&Place) -> bool) -> Option<(&'static Place, &[f32])> {
        let at = PLACES.iter().position(is)?;
        self.scales[layer].0[at].as_deref().map(|scales| (&PLACES[at], scales))
    }
}

impl Transformed for Scaled<'_> {
    fn parent(&self) -> &dyn Weights {
        self.model
    }

    fn may_change(&self, spec: &TensorSpec) -> bool {
        is_scaled(spec)
    }

    fn exact(&self, spec: &TensorSpec) -> Result<Option<Vec<f32>>> {
        let Some(layer) = spec.layer.filter(|_| is_scaled(spec)) else { return Ok(None) };
        let divided = self.of(layer, |place| place.from == spec.slot);
        let linear = spec.role == Role::Linear;
        let multiplied = self.of(layer, |place| linear && place.behind.contains(&spec.slot));
        if divided.is_none() && multiplied.is_none() {
            return Ok(None);
        }
        let factors: Option<Vec<f64>> = multiplied.map(|(place, scales)| {
            let channels = channels(self.config(), (layer, place), spec.columns);
            channels.into_iter().map(|channel| f64::from(scales[channel])).collect()
        });
        let mut values = self.model.load(spec)?.to_f32();
        let lines = values.par_chunks_mut(spec.columns.max(1)).enumerate();
        lines.for_each(|(row, line)| {
            for (column, value) in line.iter_mut().enumerate() {
                // A vector's values are channels, a matrix's rows.
                let channel = if linear { row } else { column };
                let mut exact = f64::from(*value);
                if let Some((_, scales)) = divided {
                    exact /= f64::from(scales[channel]);
                }
                if let Some(factors) = &factors {
                    exact *= factors[column];
                }
                *value = exact as f32;
            }
        });
        Ok(Some(values))
    }
}
