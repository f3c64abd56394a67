//! One or several models that make the logits of one text, and their caches, which hold the same tokens.

use crate::data::BETWEEN;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::kernels::logits::combine::{Weighted, combine};
use crate::model::cache::{Cache, check};
use crate::model::finite::not_finite;
use crate::model::resident::{Model, embed_ids};

/// Models whose logits are combined: of some the average; an expert's, less an anti-expert's, added to that (proxy tuning, Liu et
/// al. 2024, arXiv 2401.08565). Most often it is one model.
#[derive(Clone, Debug)]
pub struct Ensemble<'m> {
    /// The base first.
    averaged: Vec<&'m Model>,
    steering: Option<Steering<'m>>,
    /// Tokens that all of them have.
    columns: usize,
}

/// What is added to a base's logits: alpha (expert - anti-expert).
#[derive(Clone, Copy, Debug)]
pub struct Steering<'m> {
    /// A model that was tuned.
    pub expert: &'m Model,
    /// The same before it was.
    pub anti_expert: &'m Model,
    /// How much of the difference; 1 in the paper.
    pub alpha: f32,
}

impl<'m> From<&'m Model> for Ensemble<'m> {
    fn from(model: &'m Model) -> Self {
        Self { averaged: vec![model], steering: None, columns: model.config().vocab_size }
    }
}

impl<'m> Ensemble<'m> {
    /// The same, and another model's logits in the average.
    #[must_use]
    pub fn averaged_with(mut self, other: &'m Model) -> Self {
        self.averaged.push(other);
        self.columns = self.columns.min(other.config().vocab_size);
        self
    }

    /// The same with the difference of two models added.
    #[must_use]
    pub fn steered(mut self, steering: Steering<'m>) -> Self {
        for model in [steering.expert, steering.anti_expert] {
            self.columns = self.columns.min(model.config().vocab_size);
        }
        self.steering = Some(steering);
        self
    }

    /// The same, of the first `columns` tokens alone.
    #[must_use]
    pub fn limited(mut self, columns: usize) -> Self {
        self.columns = self.columns.min(columns);
        self
    }

    /// Tokens that every model has: columns of the logits.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The first model.
    pub fn base(&self) -> &'m Model {
        self.averaged[0]
    }

    /// All models: those that are averaged, then expert and anti-expert.
    pub fn models(&self) -> impl Iterator<Item = &'m Model> + '_ {
        let steering = self.steering.iter().flat_map(|s| [s.expert, s.anti_expert]);
        self.averaged.iter().copied().chain(steering)
    }

    /// Tokens of a text that every model takes.
    pub fn context(&self) -> usize {
        let contexts = self.models().map(|model| model.config().max_positions);
        contexts.min().expect("there is a base")
    }

    /// The logits of each model, in the order of [`Ensemble::models`], f32 of (rows, the model's tokens), as one: f32 of (rows,
    /// [`Ensemble::columns`]).
    pub fn combine(&self, device: &Device, logits: Vec<Tensor>) -> Result<Tensor> {
        let columns = self.columns;
        let mut logits = logits.into_iter();
        let mut next = || logits.next().expect("logits of every model");
        let first = next();
        let share = 1.0 / self.averaged.len() as f32;
        let mut sum = (first, share);
        for _ in &self.averaged[1..] {
            let (left, factor) = sum;
            sum =
                (combine(device, Weighted(&left, factor), Weighted(&next(), share), columns)?, 1.0);
        }
        let (mut sum, _) = sum;
        if sum.len() / sum.shape()[0] > columns {
            // One model, cut to the tokens of another: two halves of a number are that number.
            sum = combine(device, Weighted(&sum, 0.5), Weighted(&sum, 0.5), columns)?;
        }
        let Some(steering) = &self.steering else { return Ok(sum) };
        // The difference first: of an expert with itself it is nothing, and the base stays as it is.
        let (expert, anti_expert) = (next(), next());
        let difference =
            combine(device, Weighted(&expert, 1.0), Weighted(&anti_expert, -1.0), columns)?;
        combine(device, Weighted(&sum, 1.0), Weighted(&difference, steering.alpha), columns)
    }

    /// A pass of every model over tokens on the device, u32 of (sequences * tokens), after those that the caches hold: logits of all.
    pub(in crate::model) fn logits(
        &self,
        pass: &Pass<'_>,
        ids: &Tensor,
        caches: &Caches,
    ) -> Result<Tensor> {
        let of = |(model, cache): (&'m Model, &Cache)| {
            let x = embed_ids(pass, model.config(), &model.embedding, ids)?;
            model.through(pass, &x, cache, &mut |_, _| Ok(()))?;
            model.head_weights()?.logits_of(pass, &x)
        };
        let logits = self.models().zip(&caches.0).map(of).collect::<Result<_>>()?;
        self.combine(pass.device, logits)
    }

    /// That every model has these tokens.
    pub fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        self.models().try_for_each(|model| model.config().foretells("generation"))?;
        // What stands between a source and its target is in no vocabulary.
        let encoder = self.base().config().encoder.is_some();
        let wrong =
            |token: &&u32| **token as usize >= self.columns && !(encoder && **token == BETWEEN);
        match tokens.iter().find(wrong) {
            None => Ok(()),
            Some(token) => Err(Error::Argument {
                argument: "token id".into(),
                expected: format!("less than {}, the tokens that every model has", self.columns),
                found: token.to_string(),
            }),
        }
    }

    /// Runs tokens again, whose `symptom` was not finite: the first model whose own logits are not says where that began.
    pub fn not_finite(&self, pass: &Pass<'_>, tokens: &[u32], symptom: impl Into<String>) -> Error {
        let finite = |model: &Model| -> Result<bool> {
            let (_, logits) = model.trace(pass, tokens, 1, false)?;
            Ok(logits.to_f32().iter().all(|logit| logit.is_finite()))
        };
        let several = self.models().nth(1).is_some();
        let broken = self.models().find(|model| several && !matches!(finite(model), Ok(true)));
        not_finite(broken.unwrap_or(self.base()).into(), pass, tokens, symptom)
    }
}

/// The cache of each model of an ensemble. All hold the same tokens, and the device counts them once.
#[derive(Debug)]
pub struct Caches(Vec<Cache>);

impl From<Cache> for Caches {
    fn from(cache: Cache) -> Self {
        Self(vec![cache])
    }
}

impl Caches {
    /// Empty caches of `sequences` sequences with `capacity` tokens each.
    pub fn new(
        ensemble: &Ensemble<'_>,
        pass: &Pass<'_>,
        sequences: usize,
        capacity: usize,
    ) -> Result<Self> {
        let mut caches: Vec<Cache> = Vec::new();
        for model in ensemble.models() {
            check(model.config(), pass.compute)?;
            let (config, compute) = (model.config(), pass.compute);
            let mut cache = Cache::new(pass.device, config, sequences, capacity, compute)?;
            if let Some(first) = caches.first() {
                cache.count_with(first);
            }
            caches.push(cache);
        }
        Ok(Self(caches))
    }

    /// Caches of a larger `capacity` that hold the first `length` tokens of what these hold of their one sequence.
    pub(super) fn grown(
        &self,
        ensemble: &Ensemble<'_>,
        pass: &Pass<'_>,
        capacity: usize,
        length: usize,
    ) -> Result<Self> {
        let grown = Self::new(ensemble, pass, 1, capacity)?;
        for (from, to) in self.0.iter().zip(&grown.0) {
            to.go_on_from(from);
        }
        grown.put(ensemble, pass, 0, (self, length))?;
        Ok(grown)
    }

    /// Copies the first `length` tokens of the one sequence of `from` to a sequence here. It is not counted.
    pub(super) fn put(
        &self,
        ensemble: &Ensemble<'_>,
        pass: &Pass<'_>,
        sequence: usize,
        (from, length): (&Self, usize),
    ) -> Result<()> {
        let mut sources = vec![(0, 0); self.lengths().len()];
        sources[sequence].1 = length;
        for ((model, from), to) in ensemble.models().zip(&from.0).zip(&self.0) {
            let Some(rows) = to.copies(pass.device, from, &sources)? else { continue };
            for layer in 0..model.config().layers() {
                to.copy(pass.device, layer, from, &rows)?;
            }
        }
        Ok(())
    }

    /// The first sequences of these, one for each of `lengths`, as [`Cache::leading`] gives them.
    pub(super) fn leading(&self, device: &Device, lengths: &[u32]) -> Result<Self> {
        let caches = self.0.iter().map(|cache| cache.leading(device, lengths));
        let mut caches = caches.collect::<Result<Vec<_>>>()?;
        if let Some((first, others)) = caches.split_first_mut() {
            others.iter_mut().for_each(|cache| cache.count_with(first));
        }
        Ok(Self(caches))
    }

    fn first(&self) -> &Cache {
        self.0.first().expect("there is a base")
    }

    /// Tokens that each sequence may hold.
    pub fn capacity(&self) -> usize {
        self.first().capacity()
    }

    /// Tokens that each sequence holds.
    pub fn lengths(&self) -> &[u32] {
        self.first().lengths()
    }

    /// Says how many tokens each sequence holds, as [`Cache::hold`] does: what is more is cut off.
    pub fn hold(&mut self, device: &Device, lengths: &[u32]) -> Result<()> {
        self.0.iter_mut().try_for_each(|cache| cache.hold(device, lengths))
    }

    /// Reads the next tokens of every sequence, and makes no logits of them.
    pub(in crate::model) fn read(
        &mut self,
        ensemble: &Ensemble<'_>,
        pass: &Pass<'_>,
        tokens: &[u32],
    ) -> Result<()> {
        let each = tokens.len() / self.lengths().len();
        for (model, cache) in ensemble.models().zip(&mut self.0) {
            let x = model.begin(pass, tokens, cache)?;
            model.through(pass, &x, cache, &mut |_, _| Ok(()))?;
        }
        self.0.iter_mut().try_for_each(|cache| cache.advance(pass.device, each))
    }

    /// Keys that none of so many new tokens sees more of.
    pub(in crate::model) fn bound(&self, tokens: usize) -> usize {
        self.first().bound(tokens)
    }

    /// Counts `tokens` new tokens in every sequence, which the device has counted itself.
    pub(in crate::model) fn count(&mut self, tokens: usize) {
        self.0.iter_mut().for_each(|cache| cache.count(tokens));
    }

    /// Where the device counts the tokens that each sequence holds, u32 (sequences).
    pub(in crate::model) fn past(&self) -> &Tensor {
        self.first().past()
    }

    /// The cache of the base.
    pub fn into_first(self) -> Cache {
        self.0.into_iter().next().expect("there is a base")
    }
}
