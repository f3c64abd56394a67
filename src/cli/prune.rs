//! `lopper prune`: a recipe of one stage.

use super::Global;
use super::compress::{Common, execute};
use super::output::Output;
use super::scores::CalibrationArguments;
use crate::error::Result;
use crate::recipe::{
    Calibration, Evaluate, Export, ExportFormat, Prune, PruneMethod, Ranking, RatioOf, Recipe,
    ReductionName, Scope, Stage,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// How what goes is found
    #[arg(long, default_value = "llm-pruner")]
    method: PruneMethod,
    /// The share that goes, more than 0 and less than 1
    #[arg(long)]
    ratio: f64,
    /// What the ratio is a share of
    #[arg(long, default_value = "widths")]
    ratio_of: RatioOf,
    /// What is cut
    #[arg(long, default_value = "block")]
    scope: Scope,
    /// Which widths of blocks: ffn, kvgroup
    #[arg(long, value_delimiter = ',', default_value = "ffn,kvgroup")]
    widths: Vec<String>,
    /// How channels are scored: l1, l2, vectorize, param_first, param_second, param_mix, random
    #[arg(long, default_value = "param_first")]
    score: String,
    /// What is made of the scores that a group's tensors give one channel
    #[arg(long, default_value = "sum")]
    reduction: ReductionName,
    /// Whether channels compete within their block or with those of all blocks
    #[arg(long, default_value = "local")]
    ranking: Ranking,
    /// Rounds of scoring and cutting
    #[arg(long, default_value_t = 1)]
    steps: usize,
    /// Widths that are left are multiples of this; heads and blocks are whole anyway
    #[arg(long, default_value_t = 32)]
    multiple: usize,
    /// Let blocks differ in width: no Hugging Face folder is written then, and the GGUF file's architecture is deci
    #[arg(long)]
    non_uniform: bool,
    /// First blocks that stay as they are
    #[arg(long, default_value_t = 0)]
    protect_first: usize,
    /// Last blocks that stay as they are
    #[arg(long, default_value_t = 0)]
    protect_last: usize,
    #[command(flatten)]
    calibration: CalibrationArguments,
    /// Measure perplexity on this text, before and after
    #[arg(long, value_name = "FILE", default_value = "embedded:heldout-2026")]
    ppl: String,
    /// Tokens of an evaluation window
    #[arg(long, default_value_t = 512)]
    ctx: usize,
    /// Use the text's first tokens only
    #[arg(long, default_value_t = 8192)]
    max_tokens: usize,
    /// Measure nothing
    #[arg(long)]
    no_eval: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let own = if arguments.non_uniform {
        ExportFormat::Packed
    } else {
        ExportFormat::Hf
    };
    let CalibrationArguments {
        calib,
        offset,
        samples,
        length,
    } = &arguments.calibration;
    let recipe = Recipe {
        model: arguments.model.clone(),
        seed: global.seed.unwrap_or(0),
        stage: vec![Stage::Prune(Prune {
            method: arguments.method,
            ratio: arguments.ratio,
            ratio_of: arguments.ratio_of,
            scope: arguments.scope,
            widths: arguments.widths.clone(),
            score: arguments.score.clone(),
            reduction: arguments.reduction,
            ranking: arguments.ranking,
            steps: arguments.steps,
            multiple: arguments.multiple,
            non_uniform: arguments.non_uniform,
            protect_first: arguments.protect_first,
            protect_last: arguments.protect_last,
            calibration: Calibration {
                text: calib.clone(),
                offset: *offset,
                samples: *samples,
                length: *length,
            },
        })],
        evaluate: (!arguments.no_eval).then(|| Evaluate {
            text: arguments.ppl.clone(),
            ctx: arguments.ctx,
            max_tokens: Some(arguments.max_tokens),
        }),
        export: Export {
            formats: vec![ExportFormat::Gguf, own],
        },
    };
    let text = recipe.to_toml();
    execute(global, &recipe, &text, &arguments.common, output)
}
