//! What the user asks for: a TOML file in strict types. Unknown keys are errors. No I/O but reading the text.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::toml_error;
use crate::error::Result;
use crate::model::ExportFormat;
use crate::stages::RecipeStage;

/// A model, what is done to it, how it is measured, what is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `MODEL` of the command line: a folder, a `.gguf` file, `embedded:NAME`. `--model` replaces it.
    pub model: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Steps in order. Each works on what the one before left.
    #[serde(default)]
    pub stage: Vec<RecipeStage>,
    /// Measured before and after; absent: not at all.
    pub evaluate: Option<Evaluate>,
    /// What is written.
    #[serde(default, skip_serializing_if = "is_default")]
    pub export: Export,
}

fn is_default(export: &Export) -> bool {
    *export == Export::default()
}

/// Measuring perplexity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// Measure perplexity on this text, before and after
    #[arg(id = "ppl", long = "ppl", value_name = "FILE", default_value_t = default_text())]
    #[serde(default = "default_text")]
    pub text: String,
    /// Tokens of an evaluation window
    #[arg(long, default_value_t = default_ctx())]
    #[serde(default = "default_ctx")]
    pub ctx: usize,
    /// Use the text's first tokens only (in a recipe: all, unless this is there)
    #[arg(long, default_value = "8192")]
    pub max_tokens: Option<usize>,
}

fn default_text() -> String {
    "embedded:heldout-2026".into()
}

fn default_ctx() -> usize {
    512
}

/// What is written beside recipe, plan and manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Formats; absent: that of the model's own files, and `packed` where it cannot hold the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formats: Option<Vec<ExportFormat>>,
}

/// The recipe that `compress` follows when none is given.
pub const EMBEDDED: &str = include_str!("../assets/recipes/quantize-4bit.toml");

impl Recipe {
    /// Reads a recipe's text. `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| toml_error(path, "a recipe", text, &error))
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is plain tables and values")
    }
}
