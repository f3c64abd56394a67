//! `lopper prune`: a recipe of one stage, or two.

use super::Global;
use super::compress::{Common, Measuring, execute_stage};
use super::output::Output;
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::stages::prune::Flags;
use crate::stages::quantize::{Flags as Quantize, Nearest};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: Flags,
    /// Quantize what is left to this type, as `lopper quantize --type` does
    #[arg(long, value_name = "TYPE", conflicts_with = "requantize")]
    then: Option<String>,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let Arguments { model, stage, then, measuring, common } = arguments;
    let Flags(mut prune) = stage.clone();
    let mut stages = Vec::new();
    if let Some(ty) = then {
        // What is quantized anyway is rounded once.
        if prune.keys().contains_key("requantize") {
            prune = prune.with("requantize", "f16").map_err(|error| Error::Argument {
                argument: "--then".into(),
                expected: "a type that the pruned model is quantized to".into(),
                found: error.to_string(),
            })?;
        }
        let quantize = Quantize(Nearest::of_type(ty).into()).explicit();
        stages.push(quantize.map_err(BadField::in_recipe)?.0);
    }
    stages.insert(0, prune);
    execute_stage(global, model, stages, measuring, common, output)
}
