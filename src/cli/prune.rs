//! `lopper prune`: a recipe of one stage.

use super::Global;
use super::compress::{Common, Measuring, execute_stage};
use super::output::Output;
use crate::error::Result;
use crate::recipe::ExportFormat;
use crate::stages::prune::Prune;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: Prune,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let Arguments { model, stage, measuring, common } = arguments;
    let own = match stage.non_uniform {
        true => ExportFormat::Packed,
        false => ExportFormat::Hf,
    };
    let formats = vec![ExportFormat::Gguf, own];
    let stage = stage.clone().into();
    execute_stage(global, model, stage, measuring, formats, common, output)
}
