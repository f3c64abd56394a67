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
    /// Channels or blocks taken out.
    Prune(Prune),
    /// Weights to low-bit codes.
    Quantize(Quantize),
}

/// Structured pruning: what the scores say matters least goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// How what goes is found.
    #[serde(default)]
    pub method: PruneMethod,
    /// The share that goes, more than 0 and less than 1.
    pub ratio: f64,
    /// What the ratio is a share of.
    #[serde(default)]
    pub ratio_of: RatioOf,
    /// What is cut.
    #[serde(default)]
    pub scope: Scope,
    /// Which widths of blocks are, with the scope `block`: `ffn`, `kvgroup`.
    #[serde(default = "default_widths")]
    pub widths: Vec<String>,
    /// How channels are scored: `l1`, `l2`, `vectorize`, `param_first`, `param_second`, `param_mix`, `random`.
    #[serde(default = "default_score")]
    pub score: String,
    /// What is made of the scores that a group's tensors give one channel.
    #[serde(default)]
    pub reduction: ReductionName,
    /// Whether channels compete within their block or with those of all blocks.
    #[serde(default)]
    pub ranking: Ranking,
    /// Rounds of scoring and cutting, with an even share each.
    #[serde(default = "one")]
    pub steps: usize,
    /// Widths that are left are multiples of this; heads and blocks are whole anyway.
    #[serde(default = "default_multiple")]
    pub multiple: usize,
    /// Let blocks differ in width, which a stock Llama cannot say: GGUF's deci and Lopper's packed folder can.
    #[serde(default)]
    pub non_uniform: bool,
    /// First blocks that stay as they are.
    #[serde(default)]
    pub protect_first: usize,
    /// Last blocks that stay as they are.
    #[serde(default)]
    pub protect_last: usize,
    /// What gradients are taken over.
    #[serde(default)]
    pub calibration: Calibration,
}

/// How what is pruned is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PruneMethod {
    /// Dependency groups, scored by weights or by the loss (LLM-Pruner).
    #[default]
    LlmPruner,
}

/// What a pruning ratio is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RatioOf {
    /// Every width that is cut.
    #[default]
    Widths,
    /// The model's parameters: the widths are cut by what comes nearest.
    Parameters,
}

/// What is pruned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Widths of blocks: feed-forward channels, key-value heads with their query heads.
    #[default]
    Block,
    /// Columns of the residual stream.
    Channel,
    /// Whole blocks.
    Layer,
}

/// Among which channels the least important are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Ranking {
    /// Those of one block.
    #[default]
    Local,
    /// Those of one kind in all blocks.
    Global,
}

/// How scores of several tensors become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ReductionName {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean.
    Mean,
    /// The largest.
    Max,
    /// Their product.
    Product,
    /// The first tensor's.
    First,
    /// The last tensor's.
    Last,
}

/// Tokens for calibration: consecutive rows of a text tokenized once, without special tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// A text file, or `embedded:NAME`.
    pub text: String,
    /// Its first token that is used.
    pub offset: usize,
    /// Rows.
    pub samples: usize,
    /// Tokens of a row.
    pub length: usize,
}

impl Default for Calibration {
    /// LLM-Pruner's 10 rows of 64 tokens.
    fn default() -> Self {
        Self {
            text: "embedded:calibration".into(),
            offset: 0,
            samples: 10,
            length: 64,
        }
    }
}

fn default_widths() -> Vec<String> {
    vec!["ffn".into(), "kvgroup".into()]
}

fn default_score() -> String {
    "param_first".into()
}

fn default_multiple() -> usize {
    32
}

fn one() -> usize {
    1
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
