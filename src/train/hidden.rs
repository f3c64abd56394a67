//! Hidden states that are to be as a teacher's: which of its blocks each of the model's answers to.

use std::ops::Range;

use super::teacher::TeacherModel;
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::kernels::loss::hidden::hidden;
use crate::model::{Config, HiddenPart};

/// Pairs of blocks, of the model and of its teacher, after which the streams are to be alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs(Vec<(usize, usize)>);

impl Pairs {
    /// These, or where there are none every block of the model with the one of the teacher at the same share of its depth.
    ///
    /// Errors: a block that there is none of, one of the model that occurs twice, streams of other widths.
    pub fn new(given: &[(usize, usize)], model: &Config, teacher: &Config) -> Result<Self> {
        let (own, others) = (model.layers(), teacher.layers());
        let wrong = |expected: String, found: String| {
            Err(Error::Argument { argument: "hidden states of a teacher".into(), expected, found })
        };
        if model.hidden_size != teacher.hidden_size {
            let expected = format!("a stream as wide as the model's, {}", model.hidden_size);
            return wrong(expected, teacher.hidden_size.to_string());
        }
        if given.is_empty() {
            return Ok(Self((0..own).map(|layer| (layer, even(layer, own, others))).collect()));
        }
        for (place, (layer, of)) in given.iter().enumerate() {
            if *layer >= own || *of >= others {
                let expected = format!("blocks below {own} of the model and {others} of it");
                return wrong(expected, format!("{layer} and {of}"));
            }
            if given[..place].iter().any(|(before, _)| before == layer) {
                return wrong("each block of the model once".into(), format!("{layer} twice"));
            }
        }
        Ok(Self(given.to_vec()))
    }

    /// The pairs.
    pub fn pairs(&self) -> &[(usize, usize)] {
        &self.0
    }

    /// The teacher's block that one of the model's answers to.
    pub fn of(&self, layer: usize) -> Option<usize> {
        self.0.iter().find(|(own, _)| *own == layer).map(|(_, other)| *other)
    }

    /// The pair of one layer, if there is one.
    pub fn alone(&self, layer: usize) -> Self {
        Self(self.of(layer).map(|other| (layer, other)).into_iter().collect())
    }

    /// A layer's part of `weight` times the mean over pairs, and over those of the batch's tokens that count, of how far the
    /// streams are apart. `x`: the layer's output of some of the tokens, f32 (tokens, hidden).
    pub fn part(
        &self,
        device: &Device,
        teacher: &TeacherModel,
        weight: f32,
        counts: &[bool],
        (layer, tokens, x): (usize, Range<usize>, &Tensor),
    ) -> Result<Option<HiddenPart>> {
        let Some(other) = self.of(layer) else { return Ok(None) };
        let all = counts.iter().filter(|counts| **counts).count().max(1) * self.0.len();
        let parent = teacher.state(device, other, tokens.clone())?;
        let scored: Vec<u32> = counts[tokens].iter().map(|counts| u32::from(*counts)).collect();
        let scored = device.upload(&HostTensor::from_u32(&[scored.len()], &scored), "rows")?;
        let factor = weight / all as f32;
        let (gradient, losses) = hidden(device, &parent, x, &scored, factor)?;
        let losses = device.read_later(&losses)?;
        Ok(Some(HiddenPart { losses, factor: f64::from(factor), gradient }))
    }
}

/// The block of `others` behind which as large a share of all is over as behind `layer` of `own`, the last for the last.
fn even(layer: usize, own: usize, others: usize) -> usize {
    let done = (layer + 1) * others;
    // To the nearest; the first block at least.
    ((2 * done + own) / (2 * own)).max(1) - 1
}
