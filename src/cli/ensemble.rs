//! Other models beside the one that a command names: experts, models that are averaged, drafts. All must have its tokens.

use super::Global;
use super::output::Output;
use super::session::{load_model, open_language_model};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Compute, Ensemble, Model, Steering, Weights, check_cache};
use crate::text::Tokenizer;

/// Which models' logits are combined.
#[derive(Debug, clap::Args)]
pub(super) struct EnsembleArguments {
    /// Add what this model, which was tuned, knows more than --anti-expert to the logits (proxy tuning)
    #[arg(long, value_name = "MODEL", requires = "anti_expert")]
    expert: Option<String>,
    /// The expert before it was tuned
    #[arg(long, value_name = "MODEL", requires = "expert")]
    anti_expert: Option<String>,
    /// How much of the difference is added: logits + alpha (expert - anti-expert)
    #[arg(long, default_value_t = 1.0, requires = "expert", allow_negative_numbers = true)]
    alpha: f64,
    /// Average the logits, or scores of texts, with this model's; may be given several times
    #[arg(long, value_name = "MODEL")]
    ensemble: Vec<String>,
}

/// Checkpoints of further models, by the flags that named them.
pub(super) struct Further {
    models: Vec<(&'static str, Checkpoint)>,
    alpha: f64,
}

/// Further models on the device.
pub(super) struct Loaded {
    averaged: Vec<Model>,
    steering: Option<(Model, Model, f32)>,
}

impl EnsembleArguments {
    /// Opens the models, which must have the tokens of a base.
    pub(super) fn open(&self, base: &Tokenizer, output: &Output) -> Result<Further> {
        if !self.alpha.is_finite() {
            return Err(Error::Argument {
                argument: "--alpha".into(),
                expected: "a number".into(),
                found: self.alpha.to_string(),
            });
        }
        if !self.is_empty() && base.decoder_start.is_some() {
            return Err(Error::Argument {
                argument: "--expert, --ensemble".into(),
                expected: "a model without an encoder: logits are of one text's next tokens".into(),
                found: "one with an encoder".into(),
            });
        }
        let averaged = self.ensemble.iter().map(|name| ("--ensemble", name));
        let steering =
            [("--expert", &self.expert), ("--anti-expert", &self.anti_expert)].into_iter();
        let steering = steering.filter_map(|(flag, name)| Some((flag, name.as_ref()?)));
        let mut models = Vec::new();
        for (flag, name) in averaged.chain(steering) {
            models.push((flag, open_with_tokens(flag, name, base, output)?));
        }
        Ok(Further { models, alpha: self.alpha })
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.expert.is_none() && self.ensemble.is_empty()
    }

    /// The models that are averaged with the one that the command names.
    pub(super) fn averaged(&self) -> &[String] {
        &self.ensemble
    }

    /// The models that a result depends on, as JSON says them.
    pub(super) fn json(&self) -> serde_json::Value {
        let alpha = self.expert.as_ref().map(|_| self.alpha);
        serde_json::json!({
            "expert": self.expert, "anti_expert": self.anti_expert, "alpha": alpha, "averaged": self.ensemble,
        })
    }
}

/// Opens a model that a flag names, and checks that its tokens are those of a base as far as both have them.
pub(super) fn open_with_tokens(
    flag: &str,
    name: &str,
    base: &Tokenizer,
    output: &Output,
) -> Result<Checkpoint> {
    let checkpoint = open_language_model(flag, name, output)?;
    let why = "it goes on from another model's text";
    checkpoint.config().without_encoder(flag, why)?;
    let tokenizer = checkpoint.tokenizer()?;
    if let Some(token) = base.first_conflict(&tokenizer) {
        let shown = |tokenizer: &Tokenizer| format!("{:?}", tokenizer.token(token));
        return Err(Error::Argument {
            argument: flag.into(),
            expected: format!("a model with the same tokens: token {token} is {}", shown(base)),
            found: format!("{} in {name}", shown(&tokenizer)),
        });
    }
    Ok(checkpoint)
}

impl Further {
    /// The least context of these models and another.
    pub(super) fn context(&self, other: usize) -> usize {
        let contexts = self.models.iter().map(|(_, model)| model.config().max_positions);
        contexts.fold(other, usize::min)
    }

    /// Copies the models to the device. Tokens that not all have, as padding makes them, are left out, and said.
    pub(super) fn load(
        &self,
        global: &Global,
        device: &Device,
        (base, compute): (&Checkpoint, Compute),
        output: &Output,
    ) -> Result<Loaded> {
        let mut loaded = Loaded { averaged: Vec::new(), steering: None };
        let (mut expert, own) = (None, base.config().vocab_size);
        for (flag, checkpoint) in &self.models {
            let vocabulary = checkpoint.config().vocab_size;
            if vocabulary != own {
                output.note(format!(
                    "note: {flag} has {vocabulary} tokens, the model {own}: only those that all have are used"
                ));
            }
            check_cache(checkpoint.config(), compute)?;
            let model = load_model(global, device, checkpoint, compute, &[], output)?;
            match (*flag, expert.take()) {
                ("--expert", _) => expert = Some(model),
                ("--anti-expert", Some(expert)) => {
                    loaded.steering = Some((expert, model, self.alpha as f32));
                }
                _ => loaded.averaged.push(model),
            }
        }
        Ok(loaded)
    }
}

impl Loaded {
    /// These models with a base.
    pub(super) fn with<'m>(&'m self, base: &'m Model) -> Ensemble<'m> {
        let all = self.averaged.iter().fold(Ensemble::from(base), Ensemble::averaged_with);
        match &self.steering {
            None => all,
            Some((expert, anti_expert, alpha)) => {
                all.steered(Steering { expert, anti_expert, alpha: *alpha })
            }
        }
    }
}
