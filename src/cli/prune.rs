//! `lopper prune`: a recipe of one stage, or two.

use super::Global;
use super::compress::{Common, Measuring, execute_stage};
use super::output::Output;
use crate::error::Result;
use crate::methods::BadField;
use crate::stages::prune::{Prune, Requantize};
use crate::stages::quantize::Quantize;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: Prune,
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
    let mut prune = stage.clone();
    let mut stages = Vec::new();
    if let Some(ty) = then {
        // What is quantized anyway is rounded once.
        prune.requantize = Requantize::F16;
        let quantize = Quantize::of_type(ty).explicit();
        stages.push(quantize.map_err(BadField::in_recipe)?.into());
    }
    stages.insert(0, prune.into());
    execute_stage(global, model, stages, measuring, common, output)
}
