//! The flags of how tokens are chosen, and of where a text ends.

use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::output::Output;
use crate::error::{Error, Result};
use crate::model::{Ending, Sampling};
use crate::text::StopStrings;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct SamplingArguments {
    /// Draw from softmax(logits / temperature) instead of taking the likeliest token (0)
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K likeliest tokens; 0: from all
    #[arg(long, value_name = "K", default_value_t = 0, allow_negative_numbers = true)]
    top_k: i64,
    /// Draw from the fewest likeliest tokens whose probabilities reach P together
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Draw from tokens that are at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f64,
    /// Divide the logits of tokens that the text has by R, or multiply those below zero
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// End the text before this string; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
}

impl SamplingArguments {
    /// How tokens are chosen.
    pub(in crate::cli) fn sampling(&self, global: &Global, output: &Output) -> Result<Sampling> {
        let top_k = usize::try_from(self.top_k).map_err(|_| Error::Argument {
            argument: "--top-k".into(),
            expected: "0 or a number of tokens".into(),
            found: self.top_k.to_string(),
        })?;
        let sampling = Sampling {
            temperature: self.temperature,
            top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: global.seed.unwrap_or(0),
        };
        sampling.check()?;
        let filters =
            [("--top-k", top_k > 0), ("--top-p", self.top_p < 1.0), ("--min-p", self.min_p > 0.0)];
        for (flag, _) in filters.iter().filter(|(_, given)| *given && sampling.is_greedy()) {
            output.note(format!(
                "note: {flag} changes nothing at --temperature 0, which takes the likeliest token"
            ));
        }
        Ok(sampling)
    }

    /// Where a text ends.
    pub(in crate::cli) fn stops(&self) -> Result<StopStrings> {
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::Argument {
                argument: "--stop".into(),
                expected: "a text".into(),
                found: "an empty one".into(),
            });
        }
        Ok(StopStrings::new(&self.stop))
    }
}

/// The values of JSON.
pub(super) fn sampling_json(sampling: &Sampling) -> Value {
    json!({
        "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p, "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty, "seed": sampling.seed,
    })
}

/// Why a text ended, as JSON says it.
pub(super) fn reason(ending: Ending, stops: &StopStrings) -> &'static str {
    match ending {
        _ if stops.found() => "stop_string",
        Ending::Token(_) => "end_of_text",
        Ending::Told => "interrupted",
        Ending::Count => "length",
    }
}
