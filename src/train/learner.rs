//! A model that learns.

use std::collections::HashMap;

use super::optimizer::{AdamW, Optimizer};
use super::parameter::{Learned, Parameter};
use crate::data::BETWEEN;
use crate::data::training::{Batch, Goal};
use crate::device::{Device, HostTensor, Reading, Tensor};
use crate::error::{Error, Result};
use crate::families::{Config, layer_name};
use crate::graph::{Pass, Sink};
use crate::interrupt;
use crate::kernels::copy::cast::cast_into;
use crate::kernels::loss::logsumexp::logsumexp;
use crate::kernels::residual::add::add;
use crate::model::{
    BackwardOptions, Cache, HiddenLoss, Loss, Model, PendingLoss, ScoreLoss, Teacher, WeightSource,
    block_gradients, gradients_later,
};

/// What a step is to make small, and how.
#[derive(Clone, Copy)]
pub struct StepOptions<'s> {
    /// The learning rate.
    pub rate: f64,
    /// The factor of the cross-entropy of next tokens.
    pub next_tokens: f32,
    /// A teacher to be near to.
    pub teacher: Option<Teacher<'s>>,
    /// A loss of hidden states.
    pub hidden: Option<&'s HiddenLoss<'s>>,
    /// The factor of the load-balancing loss of experts.
    pub balance: f32,
    /// Tokens that go through a layer at once.
    pub tokens: usize,
    /// Bytes of activations that may be kept.
    pub activation_budget: u64,
    /// Which inputs of adapters are left out.
    pub dropout_seed: Option<u64>,
}

/// A step on its way.
#[derive(Debug)]
pub struct Step {
    loss: PendingLoss,
    norm: Reading,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The mean loss before it, of all its parts.
    pub loss: f64,
    /// The load-balancing loss of experts, without its factor, where it is a part.
    pub balance: Option<f64>,
    /// The norm of all gradients before they were clipped.
    pub norm: f64,
    /// Whether all gradients are finite; otherwise nothing was changed.
    pub finite: bool,
}

impl Step {
    /// Waits for it.
    pub fn finish(self, device: &Device) -> Result<Outcome> {
        let (loss, balance) = self.loss.finish_parts(device)?;
        let state = device.finish(self.norm)?.to_f32();
        Ok(Outcome { loss, balance, norm: f64::from(state[0]), finite: state[2] != 0.0 })
    }
}

/// A model on its device, and what is learned of it.
#[derive(Debug)]
pub struct Learner {
    model: Model,
    parameters: Vec<Box<dyn Parameter>>,
    places: HashMap<String, usize>,
    optimizer: Optimizer,
    /// The factor of the loss, so that gradients in f16 do not underflow; `None` until the first step.
    scale: Option<f32>,
}

impl Learner {
    /// A model, which has what the parameters stand for already.
    pub fn new(
        device: &Device,
        model: Model,
        parameters: Vec<Box<dyn Parameter>>,
        settings: AdamW,
    ) -> Result<Self> {
        let places = parameters.iter().enumerate().map(|(at, p)| (p.tensor().to_string(), at));
        let places = places.collect();
        let optimizer = Optimizer::new(device, settings, &all_learned(&parameters))?;
        Ok(Self { model, parameters, places, optimizer, scale: None })
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What is learned.
    pub fn parameters(&self) -> &[Box<dyn Parameter>] {
        &self.parameters
    }

    /// Numbers that are learned.
    pub fn count(&self) -> u64 {
        self.parameters.iter().map(|parameter| parameter.count()).sum()
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.optimizer.steps()
    }

    /// The factor of the loss: `Some` once a step was taken.
    pub fn scale(&self) -> Option<f32> {
        self.scale
    }

    /// Says that a step was not finite and changed nothing.
    pub fn lost(&mut self) {
        self.optimizer.lost();
    }

    /// Sets the factor of the loss.
    pub fn set_scale(&mut self, scale: Option<f32>) {
        self.scale = scale;
    }

    /// A step. All calls of it are made, none is waited for.
    pub fn step(
        &mut self,
        pass: &Pass<'_>,
        batch: &Batch,
        options: StepOptions<'_>,
    ) -> Result<Step> {
        let device = pass.device;
        let counted = batch.targets();
        let scale =
            *self.scale.get_or_insert_with(|| BackwardOptions::safe_scale(pass.compute, counted));
        let places = scored_places(batch);
        let (next_tokens, teacher) = (options.next_tokens, options.teacher);
        let loss = match &batch.goal {
            Goal::NextTokens => Loss { scored: Some(&places), next_tokens, teacher, scores: None },
            Goal::Preferences => Loss::scores(ScoreLoss::Preferences, &places),
            Goal::Labels(labels) => Loss::scores(ScoreLoss::Labels(labels), &places),
        };
        let wanted = BackwardOptions {
            loss,
            hidden: options.hidden,
            balance: options.balance,
            tensor: &|name| self.places.contains_key(name),
            by_sequence: false,
            tokens: options.tokens,
            activation_budget: options.activation_budget,
            scale: Some(scale),
            checks: false,
            outputs: false,
            dropout_seed: options.dropout_seed,
        };
        let source = WeightSource::Resident(&self.model);
        let (loss, sums) = self.collect(device, &mut |sink| {
            let (ids, sequences) = (&batch.ids, batch.sequences);
            gradients_later(source, pass, ids, sequences, wanted, &mut |_, _| {}, sink)
        })?;
        let gradients = in_order(&self.parameters, sums, &|_| true);
        let learned = all_learned(&self.parameters);
        let norm = self.optimizer.step(device, &learned, &gradients, options.rate, 1.0 / scale)?;
        drop(gradients);
        self.update(device)?;
        Ok(Step { loss, norm })
    }

    /// What a pass gives, and the gradients of what is learned, by parameter.
    fn collect(
        &self,
        device: &Device,
        run: &mut dyn FnMut(&mut Sink<'_>) -> Result<PendingLoss>,
    ) -> Result<(PendingLoss, Vec<Option<Vec<Tensor>>>)> {
        let mut sums: Vec<Option<Vec<Tensor>>> = self.parameters.iter().map(|_| None).collect();
        let loss = run(&mut |gradient| {
            let place = self.places[&gradient.name];
            let parts = self.parameters[place].gradients(device, gradient.values)?;
            match &sums[place] {
                None => sums[place] = Some(parts),
                Some(sums) => {
                    for (part, sum) in parts.iter().zip(sums) {
                        add(device, part, sum)?;
                    }
                }
            }
            Ok(())
        })?;
        Ok((loss, sums))
    }

    /// Whether something is learned of a block.
    pub fn learns_of(&self, layer: usize) -> bool {
        let config = self.model.config();
        self.parameters.iter().any(|parameter| is_of(&**parameter, config, layer))
    }

    /// A new optimizer of what is learned of a block.
    pub fn optimizer_of(
        &self,
        device: &Device,
        layer: usize,
        settings: AdamW,
    ) -> Result<Optimizer> {
        let config = self.model.config();
        let of_block = |parameter: &dyn Parameter| is_of(parameter, config, layer);
        Optimizer::new(device, settings, &learned_of(&self.parameters, &of_block))
    }

    /// A step of one block alone, whose input is `input`, f32 (tokens, hidden), of the batch's tokens, towards a `loss` of its
    /// output. `optimizer` is [`Learner::optimizer_of`] this block; with the rate, tokens at once and the seed of dropout.
    pub fn step_block(
        &mut self,
        pass: &Pass<'_>,
        optimizer: &mut Optimizer,
        layer: usize,
        (batch, input): (&Batch, &Tensor),
        loss: &HiddenLoss<'_>,
        (rate, tokens, seed): (f64, usize, u64),
    ) -> Result<Step> {
        let device = pass.device;
        let counted = batch.targets();
        let scale =
            *self.scale.get_or_insert_with(|| BackwardOptions::safe_scale(pass.compute, counted));
        let wanted = BackwardOptions {
            tensor: &|name| self.places.contains_key(name),
            tokens,
            scale: Some(scale),
            checks: false,
            dropout_seed: Some(seed),
            ..BackwardOptions::ALL
        };
        let source = WeightSource::Resident(&self.model);
        let (loss, sums) = self.collect(device, &mut |sink| {
            block_gradients(source, pass, layer, (input, batch.sequences), loss, wanted, sink)
        })?;
        let config = self.model.config().clone();
        let of_block = |parameter: &dyn Parameter| is_of(parameter, &config, layer);
        let gradients = in_order(&self.parameters, sums, &of_block);
        let learned = learned_of(&self.parameters, &of_block);
        let norm = optimizer.step(device, &learned, &gradients, rate, 1.0 / scale)?;
        drop(gradients);
        self.update_those(device, &of_block)?;
        Ok(Step { loss, norm })
    }

    /// Puts what is learned where the model computes with it.
    pub fn update(&mut self, device: &Device) -> Result<()> {
        self.update_those(device, &|_| true)
    }

    fn update_those(&mut self, device: &Device, of: &dyn Fn(&dyn Parameter) -> bool) -> Result<()> {
        for parameter in self.parameters.iter().filter(|parameter| of(&***parameter)) {
            if let Some(matrix) = parameter.update(device)? {
                self.model.set(parameter.tensor(), matrix);
            }
        }
        Ok(())
    }

    /// What has to be saved, by name: all that is learned, and to go on the optimizer's state.
    pub fn saved(&self, going_on: bool) -> Vec<(String, &Tensor)> {
        let learned = all_learned(&self.parameters).into_iter();
        let mut all: Vec<_> =
            learned.map(|learned| (format!("learned.{}", learned.name), &learned.values)).collect();
        if !going_on {
            return all;
        }
        let (_, state) = self.optimizer.state();
        all.extend(state.into_iter().enumerate().map(|(at, t)| (format!("optimizer.{at}"), t)));
        all
    }

    /// Goes on after so many steps, so many of them lost; the tensors of [`Learner::saved`] have been put back.
    pub fn resume(&mut self, device: &Device, steps: u64, lost: u64) -> Result<()> {
        self.optimizer.resume(steps, lost);
        for learned in all_learned(&self.parameters) {
            if let Some(copy) = &learned.copy {
                cast_into(device, &learned.values, copy)?;
            }
        }
        self.update(device)
    }
}

/// Of each token, whether the head is asked there: where the one behind it is scored as a target, or where a text is read.
pub(super) fn scored_places(batch: &Batch) -> Vec<bool> {
    if batch.goal != Goal::NextTokens {
        return batch.scored.clone();
    }
    let length = batch.length;
    let next = |at: usize| !(at + 1).is_multiple_of(length) && batch.scored[at + 1];
    (0..batch.ids.len()).map(next).collect()
}

fn all_learned(parameters: &[Box<dyn Parameter>]) -> Vec<&Learned> {
    learned_of(parameters, &|_| true)
}

/// What is learned of some parameters.
fn learned_of<'p>(
    parameters: &'p [Box<dyn Parameter>],
    of: &dyn Fn(&dyn Parameter) -> bool,
) -> Vec<&'p Learned> {
    let some = parameters.iter().filter(|parameter| of(&***parameter));
    some.flat_map(|parameter| parameter.learned()).collect()
}

/// The gradients of what is learned of some parameters, in its order.
fn in_order(
    parameters: &[Box<dyn Parameter>],
    sums: Vec<Option<Vec<Tensor>>>,
    of: &dyn Fn(&dyn Parameter) -> bool,
) -> Vec<Option<Tensor>> {
    let mut gradients = Vec::new();
    for (parameter, sums) in parameters.iter().zip(sums).filter(|(p, _)| of(&***p)) {
        match sums {
            Some(sums) => gradients.extend(sums.into_iter().map(Some)),
            None => gradients.extend(parameter.learned().iter().map(|_| None)),
        }
    }
    gradients
}

/// Whether a parameter is of a block.
fn is_of(parameter: &dyn Parameter, config: &Config, layer: usize) -> bool {
    let rest = parameter.tensor().strip_prefix(&layer_name(config, layer));
    rest.is_some_and(|rest| rest.starts_with('.'))
}

/// How good a model is on what it does not learn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOut {
    /// The mean loss, in nats.
    pub loss: f64,
    /// What it is the mean of: tokens that are to be foretold, pairs of texts, or texts.
    pub count: usize,
    /// Of pairs, the share whose preferred text has the higher score; of texts with labels, that whose label has the highest.
    pub accuracy: Option<f64>,
}

/// The mean loss of some batches, of what they teach.
pub fn held_out(model: &Model, pass: &Pass<'_>, batches: &[Batch]) -> Result<HeldOut> {
    if batches.iter().all(|batch| batch.goal == Goal::NextTokens) {
        let (loss, count) = mean_loss(model, pass, batches)?;
        return Ok(HeldOut { loss, count, accuracy: None });
    }
    let pooling = model.config().reads_out("held-out texts")?.pooling;
    let (mut loss, mut right, mut count) = (0.0, 0, 0);
    for batch in batches {
        let rows =
            batch.ids.chunks_exact(batch.length).zip(batch.scored.chunks_exact(batch.length));
        // Where all tokens see each other what fills a row is marked; elsewhere a text is read at its last token.
        let read = |(ids, scored): (&'_ [u32], &[bool])| {
            let end = match pooling.sees_all() {
                true => ids.iter().position(|id| *id == BETWEEN),
                false => scored.iter().position(|read| *read).map(|last| last + 1),
            };
            ids[..end.unwrap_or(batch.length)].to_vec()
        };
        let texts: Vec<Vec<u32>> = rows.map(read).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let scores = model.scores(pass, &texts, &mut |_, _| {})?;
        // Two scores are those of two choices, of which the first is right.
        let (choices, answers) = match &batch.goal {
            Goal::Labels(labels) => (scores.len() / texts.len().max(1), labels.clone()),
            _ => (2, vec![0; texts.len() / 2]),
        };
        for (scores, answer) in scores.chunks_exact(choices).zip(answers) {
            let score = |choice: usize| f64::from(scores[choice]);
            let most = (0..choices).map(score).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = (0..choices).map(|choice| (score(choice) - most).exp()).sum();
            let own = score(answer as usize);
            loss += most + sum.ln() - own;
            let others = (0..choices).filter(|choice| *choice != answer as usize);
            right += usize::from(others.map(score).all(|other| own > other));
            count += 1;
        }
    }
    let all = count.max(1) as f64;
    Ok(HeldOut { loss: loss / all, count, accuracy: Some(right as f64 / all) })
}

/// The mean cross-entropy of next tokens, in nats, over the tokens of some batches that are to be foretold, and how many those
/// are.
pub fn mean_loss(model: &Model, pass: &Pass<'_>, batches: &[Batch]) -> Result<(f64, usize)> {
    let device = pass.device;
    let (mut sum, mut count) = (0.0, 0);
    let mut pending: Vec<(Vec<bool>, Reading, Reading)> = Vec::new();
    let mut take = |pending: &mut Vec<(Vec<bool>, Reading, Reading)>| -> Result<()> {
        for (scored, lse, picked) in pending.drain(..) {
            let (lse, picked) = (device.finish(lse)?.to_f32(), device.finish(picked)?.to_f32());
            for ((lse, picked), scored) in lse.into_iter().zip(picked).zip(scored) {
                if scored {
                    sum += f64::from(lse) - f64::from(picked);
                    count += 1;
                }
            }
        }
        Ok(())
    };
    for batch in batches {
        interrupt::check()?;
        let length = batch.length;
        let places = scored_places(batch);
        let cache =
            Cache::single_layer(device, model.config(), batch.sequences, length, pass.compute)?;
        let normed = model.hidden(pass, &batch.ids, &cache)?;
        let mut rows = Vec::new();
        let step = model.head_rows(device);
        for first in (0..batch.ids.len()).step_by(step) {
            let range = first..(first + step).min(batch.ids.len());
            let scored = places[range.clone()].to_vec();
            let targets = range.clone().map(|token| match places[token] {
                true => batch.ids[token + 1],
                false => 0,
            });
            let targets: Vec<u32> = targets.collect();
            let targets = HostTensor::from_u32(&[targets.len()], &targets);
            let targets = device.upload(&targets, "targets")?;
            let logits = model.head(pass, &normed, range)?;
            let (lse, picked) = logsumexp(device, &logits, &targets)?;
            rows.push((scored, device.read_later(&lse)?, device.read_later(&picked)?));
        }
        take(&mut pending)?;
        pending = rows;
    }
    take(&mut pending)?;
    if count == 0 {
        return Err(Error::Argument {
            argument: "held-out text".into(),
            expected: "a token that is to be foretold".into(),
            found: "none".into(),
        });
    }
    Ok((sum / count as f64, count))
}
