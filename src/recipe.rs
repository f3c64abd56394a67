//! What the user asks for: a TOML file in strict types. Unknown keys are errors. No I/O but reading the text.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A model, what is done to it, how it is measured, what is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// `MODEL` of the command line: a folder, a `.gguf` file, `embedded:NAME`. `--model` replaces it.
    pub model: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// Steps in order. A weight that several match follows the last of them, from the parent's values.
    #[serde(default)]
    pub stage: Vec<Stage>,
    /// Measured before and after; absent: not at all.
    pub evaluate: Option<Evaluate>,
    /// What is written.
    #[serde(default)]
    pub export: Export,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Stage {
    /// Weights to low-bit codes.
    Quantize(Quantize),
}

/// Quantization of the weights whose names match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// How codes are found.
    #[serde(default)]
    pub method: QuantizeMethod,
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Columns that share a scale: a power of two from 16, or 0 for a whole row.
    #[serde(default = "default_group_size")]
    pub group_size: u32,
    /// How a group's range becomes a grid.
    #[serde(default)]
    pub grid: Grid,
    /// The entries of the grid `codebook`, 2 to 256 numbers; a group's largest magnitude falls on the largest of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codebook: Vec<f32>,
    /// Patterns of module names (`*` stands for anything). Norms and biases are never quantized.
    #[serde(default = "default_include")]
    pub include: Vec<String>,
    /// Patterns of module names to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// How codes are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizeMethod {
    /// Round to nearest.
    #[default]
    Rtn,
}

/// How a group's range becomes a grid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grid {
    /// Symmetric, scale = max|w| / (2^(bits-1) - 1).
    AbsmaxSymmetric,
    /// Symmetric, scale = w_extreme / -2^(bits-1): the value of largest magnitude falls on the lowest code, as in GGUF's
    /// symmetric types.
    SignedMax,
    /// scale = (max - min) / (2^bits - 1), integer zero point = round(-min / scale), not clamped to the code range.
    ZeroPoint,
    /// scale = (max - min) / (2^bits - 1), offset = min in f16, as in GGUF's types with a minimum.
    #[default]
    FloatMin,
    /// -1, 0, 1 times the group's mean magnitude (BitNet b1.58). 2 bits.
    Ternary,
    /// Quantiles of a normal distribution, times the largest magnitude (QLoRA). 4 bits.
    Nf4,
    /// E2M1 floats, the largest magnitude at 6. 4 bits.
    Fp4,
    /// E4M3 floats, the largest magnitude at 448. 8 bits.
    #[serde(rename = "fp8-e4m3")]
    Fp8E4m3,
    /// E5M2 floats, the largest magnitude at 448. 8 bits.
    #[serde(rename = "fp8-e5m2")]
    Fp8E5m2,
    /// E2M1 floats with a power of two as the scale of 32 (OCP Microscaling). 4 bits.
    Mxfp4,
    /// E2M1 floats with an E4M3 scale of 16, under one f32 scale of the tensor. 4 bits.
    Nvfp4,
    /// The entries of `codebook`. As many bits as they need.
    Codebook,
}

impl Grid {
    /// The grids of levels that are not evenly spaced, each of one width.
    pub const LEVELED: [Grid; 7] = [
        Grid::Ternary,
        Grid::Nf4,
        Grid::Fp4,
        Grid::Fp8E4m3,
        Grid::Fp8E5m2,
        Grid::Mxfp4,
        Grid::Nvfp4,
    ];

    /// Every evenly spaced grid, in the order of the command contract.
    pub const ALL: [Grid; 4] = [
        Grid::AbsmaxSymmetric,
        Grid::SignedMax,
        Grid::ZeroPoint,
        Grid::FloatMin,
    ];

    /// The name in recipes and flags.
    pub fn name(self) -> &'static str {
        match self {
            Grid::AbsmaxSymmetric => "absmax-symmetric",
            Grid::SignedMax => "signed-max",
            Grid::ZeroPoint => "zero-point",
            Grid::FloatMin => "float-min",
            Grid::Ternary => "ternary",
            Grid::Nf4 => "nf4",
            Grid::Fp4 => "fp4",
            Grid::Fp8E4m3 => "fp8-e4m3",
            Grid::Fp8E5m2 => "fp8-e5m2",
            Grid::Mxfp4 => "mxfp4",
            Grid::Nvfp4 => "nvfp4",
            Grid::Codebook => "codebook",
        }
    }
}

fn default_group_size() -> u32 {
    32
}

fn default_include() -> Vec<String> {
    // The linear layers of the blocks; the embedding and the head stay as they are unless they are named.
    vec!["model.layers.*".into()]
}

/// Measuring perplexity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluate {
    /// A text file, or `embedded:NAME`.
    pub text: String,
    /// Tokens of a window.
    #[serde(default = "default_ctx")]
    pub ctx: usize,
    /// Tokens of the text that are used, from its start; absent: all.
    pub max_tokens: Option<usize>,
}

fn default_ctx() -> usize {
    512
}

/// What is written beside recipe, plan and manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Formats.
    pub formats: Vec<ExportFormat>,
}

impl Default for Export {
    fn default() -> Self {
        Self {
            formats: vec![ExportFormat::Gguf, ExportFormat::Hf, ExportFormat::Packed],
        }
    }
}

/// A format a model is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// `model.gguf`
    Gguf,
    /// `hf/`: a Hugging Face folder, weights dequantized to f16.
    Hf,
    /// `packed/`: codes and scales as they are, which Lopper opens.
    Packed,
}

/// The recipe that `compress` follows when none is given.
pub const EMBEDDED: &str = include_str!("../assets/recipes/quantize-4bit.toml");

impl Recipe {
    /// Reads a recipe's text. `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| Error::Malformed {
            path: path.into(),
            what: "recipe".into(),
            offset: error.span().map(|span| span.start as u64),
            expected: "a recipe".into(),
            found: error.message().replace('\n', " "),
        })
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a recipe is plain tables and values")
    }
}
