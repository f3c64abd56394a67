//! What the user asks for: a TOML file in strict types. Unknown keys are errors. No I/O but reading the text.

pub mod mergekit;
pub mod mergekit_moe;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::toml_error;
use crate::error::{Error, Result};
use crate::model::ExportFormat;
use crate::stages::{RecipeStage, listed, unfold};

/// A model, what is done to it, how it is measured, what is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `MODEL` of the command line: a folder, a `.gguf` file, `embedded:NAME`. `--model` replaces it.
    pub model: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Steps in order. Each works on what the one before left. Stages that are repeated stand here round by round.
    #[serde(default, deserialize_with = "listed")]
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

/// Many recipes that differ in a few values, each result measured beside the parent: a comparison of methods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// `MODEL` of the command line. `--model` replaces it.
    pub model: String,
    /// Seed of everything random; each draw has its own, this one and those after it.
    #[serde(default)]
    pub seed: u64,
    /// How often each case that calibrates, or is random, is run: each time on the rows of the text behind the last ones.
    #[serde(default = "one")]
    pub draws: usize,
    /// What each result is measured on.
    pub text: Vec<Evaluate>,
    /// What is compared.
    pub case: Vec<Case>,
}

/// Recipes of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name in tables.
    pub name: String,
    /// What its recipes differ in; absent: there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vary: Option<Vary>,
    /// Steps in order, as in a recipe. What varies need not be there.
    pub stage: Vec<toml::Table>,
}

/// A key of a stage that takes several values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vary {
    /// Which stage, from 1.
    #[serde(default = "one")]
    pub stage: usize,
    /// The key.
    pub key: String,
    /// Its values in order.
    pub values: Vec<toml::Value>,
}

/// A recipe of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The case's name.
    pub case: String,
    /// The value of the key that varies.
    pub value: Option<String>,
    /// Which draw, from 0.
    pub draw: usize,
    /// What is run.
    pub recipe: Recipe,
}

fn one() -> usize {
    1
}

impl Sweep {
    /// Reads a sweep's text. `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| toml_error(path, "a sweep", text, &error))
    }

    /// Its recipes in order: cases, their values, draws. `path` is for messages.
    pub fn points(&self, path: &Path) -> Result<Vec<Point>> {
        let wrong = |key: String, expected: &str, found: String| Error::Key {
            path: path.into(),
            key,
            expected: expected.into(),
            found,
        };
        for (key, count) in
            [("draws", self.draws), ("text", self.text.len()), ("case", self.case.len())]
        {
            if count == 0 {
                return Err(wrong(key.into(), "one or more", "none".into()));
            }
        }
        let mut points: Vec<Point> = Vec::new();
        for case in &self.case {
            let key = |key: &str| format!("case.{}.{key}", case.name);
            if points.iter().any(|point| point.case == case.name) {
                return Err(wrong(key("name"), "a name of its own", case.name.clone()));
            }
            let values = match &case.vary {
                None => vec![None],
                Some(vary) if vary.stage == 0 || vary.stage > case.stage.len() => {
                    let expected = format!("1 to {}, the case's stages", case.stage.len());
                    return Err(wrong(key("vary.stage"), &expected, vary.stage.to_string()));
                }
                Some(vary) => vary.values.iter().map(Some).collect(),
            };
            for value in values {
                let mut tables = case.stage.clone();
                if let (Some(value), Some(vary)) = (value, &case.vary) {
                    tables[vary.stage - 1].insert(vary.key.clone(), value.clone());
                }
                for draw in 0..self.draws {
                    let bad = |found| wrong(key("stage"), "a recipe's stage", found);
                    let mut stage = Vec::new();
                    for table in &tables {
                        for one in unfold(table.clone()).map_err(bad)? {
                            let drawn = one.drawn(draw);
                            stage.push(drawn.map_err(|error| bad(error.message().into()))?);
                        }
                    }
                    // Without a text and a seed every draw would be the same.
                    if draw > 0 && !stage.iter().any(|stage| stage.is_drawn()) {
                        break;
                    }
                    points.push(Point {
                        case: case.name.clone(),
                        value: value.map(plain),
                        draw,
                        recipe: Recipe {
                            model: self.model.clone(),
                            seed: self.seed.wrapping_add(draw as u64),
                            stage,
                            evaluate: None,
                            export: Export { formats: Some(vec![ExportFormat::Packed]) },
                        },
                    });
                }
            }
        }
        Ok(points)
    }
}

/// A value as tables show it.
fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
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
