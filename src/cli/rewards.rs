//! Reward models, one or several whose scores are averaged.

use super::Global;
use super::output::Output;
use super::session::{load_model, open_model};
use crate::data::training::Reading;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Model, Pass, Weights};
use crate::text::Tokenizer;

/// Checkpoints of reward models, of one vocabulary.
pub(super) struct Rewards(Vec<Checkpoint>);

impl Rewards {
    /// Opens them, one at least; `argument` names them.
    pub(super) fn open(argument: &str, names: &[&str], output: &Output) -> Result<Self> {
        let mut models = Vec::with_capacity(names.len());
        for name in names {
            let model = open_model(name, output)?;
            model.config().rewards(argument)?;
            models.push(model);
        }
        let rewards = Self(models);
        let tokenizer = rewards.tokenizer()?;
        let kind = |model: &Checkpoint| model.config().family.scored_at;
        for (model, name) in rewards.0.iter().zip(names).skip(1) {
            if kind(model) != kind(&rewards.0[0]) {
                return Err(Error::Argument {
                    argument: argument.into(),
                    expected: format!(
                        "reward models that read texts at one place, as {} does",
                        names[0]
                    ),
                    found: (*name).into(),
                });
            }
            if let Some(token) = tokenizer.first_difference(&model.tokenizer()?) {
                return Err(Error::Argument {
                    argument: argument.into(),
                    expected: format!("reward models of one vocabulary, that of {}", names[0]),
                    found: format!("{name}, where token {token} is another"),
                });
            }
        }
        Ok(rewards)
    }

    /// How they read texts, by that tokenizer.
    pub(super) fn reading<'t>(&self, tokenizer: &'t Tokenizer) -> Result<Reading<'t>> {
        let config = self.0[0].config();
        let pooling = config.reads_out("reward model")?.pooling;
        let contexts = self.0.iter().map(|model| model.config().max_positions);
        // What is too long for a causal one is told, and not cut.
        let most = if pooling.sees_all() { contexts.min().unwrap_or(0) } else { usize::MAX };
        Ok(Reading { tokenizer, pooling, most })
    }

    /// The first one's tokenizer, which is that of all.
    pub(super) fn tokenizer(&self) -> Result<Tokenizer> {
        self.0[0].tokenizer()
    }

    /// Copies them to the device.
    pub(super) fn load(&self, global: &Global, pass: &Pass<'_>, output: &Output) -> Result<Judges> {
        let load = |model| load_model(global, pass.device, model, pass.compute, &[], output);
        self.0.iter().map(load).collect::<Result<_>>().map(Judges)
    }
}

/// Reward models on the device.
pub(super) struct Judges(Vec<Model>);

impl Judges {
    /// The mean of their scores of each text.
    pub(super) fn scores(
        &self,
        pass: &Pass<'_>,
        texts: &[&[u32]],
        output: &Output,
    ) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; texts.len()];
        for model in &self.0 {
            let scores = model.scores(pass, texts, &mut |done, all| {
                output.progress("scoring", done, all);
            })?;
            sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += f64::from(score));
        }
        sums.iter_mut().for_each(|sum| *sum /= self.0.len() as f64);
        Ok(sums)
    }
}
