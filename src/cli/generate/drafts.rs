//! The flags of speculative decoding.

use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::ensemble::open_with_tokens;
use crate::cli::output::Output;
use crate::cli::session::load_model;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{
    Acceptance, Checkpoint, Compute, Draft, Model, Speculation, Weights, check_cache,
};
use crate::text::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct DraftArguments {
    /// Let this smaller model, with the same tokens, propose tokens that are then checked several at a time: the same text, or for
    /// drawn tokens the same distribution
    #[arg(long, value_name = "MODEL", conflicts_with = "lookup")]
    draft: Option<String>,
    /// Propose what followed the last few tokens earlier in the text
    #[arg(long)]
    lookup: bool,
    /// Propose so many tokens at a time at most; fewer where they are refused
    #[arg(long, value_name = "N", default_value_t = 8, allow_negative_numbers = true)]
    draft_tokens: i64,
}

/// What proposes tokens, if anything does, opened.
pub(super) struct Opened {
    draft: Option<Checkpoint>,
    lookup: bool,
    most: usize,
}

impl DraftArguments {
    /// Whether something is asked to propose tokens.
    pub(super) fn is_given(&self) -> bool {
        self.draft.is_some() || self.lookup
    }

    /// Opens a draft, which must have the tokens of the model.
    pub(super) fn open(&self, tokenizer: &Tokenizer, output: &Output) -> Result<Opened> {
        let most = usize::try_from(self.draft_tokens).ok().filter(|most| (1..=64).contains(most));
        let most = most.ok_or_else(|| Error::Argument {
            argument: "--draft-tokens".into(),
            expected: "a number from 1 to 64".into(),
            found: self.draft_tokens.to_string(),
        })?;
        if (self.draft.is_some() || self.lookup) && tokenizer.decoder_start.is_some() {
            return Err(Error::Argument {
                argument: "--draft, --lookup".into(),
                expected: "a model without an encoder: what is proposed goes on from the prompt's own text".into(),
                found: "one with an encoder".into(),
            });
        }
        let draft = self.draft.as_deref();
        let draft = draft.map(|name| open_with_tokens("--draft", name, tokenizer, output));
        Ok(Opened { draft: draft.transpose()?, lookup: self.lookup, most })
    }
}

impl Opened {
    /// Copies a draft to the device.
    pub(super) fn load(
        &self,
        global: &Global,
        device: &Device,
        compute: Compute,
        output: &Output,
    ) -> Result<Option<Model>> {
        let Some(draft) = &self.draft else { return Ok(None) };
        check_cache(draft.config(), compute)?;
        load_model(global, device, draft, compute, &[1], output).map(Some)
    }

    /// How tokens are proposed.
    pub(super) fn speculation<'m>(&self, model: Option<&'m Model>) -> Option<Speculation<'m>> {
        let draft = match (model, self.lookup) {
            (Some(model), _) => Draft::Model(model),
            (None, true) => Draft::Lookup,
            (None, false) => return None,
        };
        Some(Speculation { draft, most: self.most })
    }
}

/// What became of proposals, as JSON says it; none where nothing proposed.
pub(super) fn acceptance_json(acceptance: Acceptance) -> Value {
    let Acceptance { passes, drafted, accepted } = acceptance;
    if passes == 0 {
        return Value::Null;
    }
    json!({
        "passes": passes, "drafted": drafted, "accepted": accepted,
        "mean_accepted": accepted as f64 / passes as f64,
    })
}

/// The same for a person.
pub(super) fn acceptance_text(acceptance: Acceptance) -> Option<String> {
    let Acceptance { passes, drafted, accepted } = acceptance;
    let share = 100.0 * accepted as f64 / drafted.max(1) as f64;
    let mean = accepted as f64 / passes.max(1) as f64;
    (passes > 0).then(|| {
        format!(
            "{accepted} of {drafted} proposed tokens were accepted ({share:.0} %), {mean:.2} in each of {passes} passes"
        )
    })
}
