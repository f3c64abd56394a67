//! Blockwise local distillation: each block alone learns to give, of what goes into its teacher's block, what comes out of that
//! one (as Bercovich et al. 2024, "Puzzle", arXiv 2411.19146, section 2.1, trains its alternatives, and FitNets before, Romero et
//! al. 2015, arXiv 1412.6550), before the model learns end to end. No error of the blocks below reaches a block, and each has an
//! optimizer of its own while its turn lasts.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::hidden::Pairs;
use super::learner::{Learner, Step, scored_places};
use super::optimizer::{AdamW, Optimizer};
use super::settings::Settings;
use super::teacher::TeacherModel;
use crate::data::training::Examples;
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::interrupt;

/// Steps whose outcome is on its way while the next is made.
const LATE: usize = 2;
/// In a row, steps that are not finite and change nothing, before it is given up.
const MOST_LOST: u64 = 24;

/// A training of one block after the other.
#[derive(Debug)]
pub struct Blockwise<'a> {
    /// How fast, and on how much at once.
    pub settings: &'a Settings,
    /// The rate where none is asked for.
    pub usual_rate: f64,
    /// Steps of each block.
    pub steps: u64,
    /// What is learned from: every block begins with the first rows.
    pub examples: &'a Examples,
    /// The teacher, which keeps the states of the pairs.
    pub teacher: &'a TeacherModel,
    /// A block of the teacher for each of the model.
    pub pairs: &'a Pairs,
    /// Where and in what it computes.
    pub pass: Pass<'a>,
    /// Of everything random.
    pub seed: u64,
}

/// What a block came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockTold {
    /// Its number, from 0.
    pub block: usize,
    /// How far its outputs were from the teacher's at first: the squared error over the teacher's square.
    pub first: f64,
    /// How far they were at the last step.
    pub last: f64,
}

impl Blockwise<'_> {
    /// Trains every block of which something is learned. `progress` is told of steps done, of all.
    pub fn run(
        &self,
        learner: &mut Learner,
        settings: AdamW,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<BlockTold>> {
        let layers = learner.model().config().layers();
        for layer in 0..layers {
            if self.pairs.of(layer).is_none() {
                return Err(Error::Argument {
                    argument: "blockwise distillation".into(),
                    expected: "a block of the teacher for each of the model".into(),
                    found: format!("none for block {layer}"),
                });
            }
        }
        let mut told = Vec::new();
        for layer in 0..layers {
            if !learner.learns_of(layer) {
                continue;
            }
            let optimizer = learner.optimizer_of(self.pass.device, layer, settings)?;
            let done = layer * self.steps as usize;
            let all = layers * self.steps as usize;
            told.push(self.block(learner, layer, optimizer, &mut |step| {
                progress(done + step as usize, all)
            })?);
        }
        Ok(told)
    }

    fn block(
        &self,
        learner: &mut Learner,
        layer: usize,
        mut optimizer: Optimizer,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<BlockTold> {
        let (pass, device) = (&self.pass, self.pass.device);
        let schedule = self.settings.schedule(self.steps, self.usual_rate);
        let alone = self.pairs.alone(layer);
        let mut position = self.examples.start();
        let mut pending: VecDeque<Step> = VecDeque::new();
        let (mut told, mut lost) = (BlockTold { block: layer, first: 0.0, last: 0.0 }, 0);
        let mut seen = false;
        for number in 0..self.steps {
            interrupt::check()?;
            progress(number)?;
            let (batch, next) = self.examples.batch(&position, self.settings.batch)?;
            position = next;
            self.teacher.read(pass, &batch.ids, batch.sequences, &[])?;
            let input = match layer.checked_sub(1).and_then(|below| self.pairs.of(below)) {
                Some(below) => self.teacher.state(device, below, 0..batch.ids.len())?,
                None => learner.model().embed(pass, &batch.ids)?,
            };
            let counts = scored_places(&batch);
            let loss = |layer: usize, tokens: std::ops::Range<usize>, x: &_| {
                alone.part(device, self.teacher, 1.0, &counts, (layer, tokens, x))
            };
            let seed = self.seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let step = learner.step_block(
                pass,
                &mut optimizer,
                layer,
                (&batch, &input),
                &loss,
                (schedule.rate(number), self.settings.tokens_at_once(), seed),
            )?;
            pending.push_back(step);
            let end = number + 1 == self.steps;
            while pending.len() > if end { 0 } else { LATE } {
                let Some(step) = pending.pop_front() else { break };
                let outcome = step.finish(device)?;
                if outcome.finite {
                    if !seen {
                        told.first = outcome.loss;
                    }
                    (told.last, seen, lost) = (outcome.loss, true, 0);
                    continue;
                }
                lost += 1;
                learner.set_scale(learner.scale().map(|scale| scale / 2.0));
                if lost > MOST_LOST || learner.scale().is_none_or(|scale| scale < 1.0) {
                    return Err(Error::Diverged {
                        step: number + 1,
                        loss: outcome.loss.to_string(),
                        before: format!("{:.4} of block {layer}", told.last),
                        kept: None,
                    });
                }
            }
        }
        // The end-to-end course has a factor of its own.
        learner.set_scale(None);
        Ok(told)
    }
}
