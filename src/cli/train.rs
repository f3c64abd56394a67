//! `lopper tune` and `lopper distill`: recipes of one stage.

use super::Global;
use super::compress::{Common, Measuring, execute_stage};
use super::output::Output;
use crate::error::{Error, Result};
use crate::stages::train::{DistilFlags, TuneFlags};

#[derive(Debug, clap::Args)]
pub(super) struct Tune {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: TuneFlags,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct Distil {
    /// The student: a Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: DistilFlags,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

pub(super) fn tune(global: &Global, arguments: &Tune, output: &Output) -> Result<()> {
    let Tune { model, stage, measuring, common } = arguments;
    execute_stage(global, model, vec![stage.0.clone()], measuring, common, output)
}

pub(super) fn distil(global: &Global, arguments: &Distil, output: &Output) -> Result<()> {
    let Distil { model, stage, measuring, common } = arguments;
    if stage.0.needs().teacher.is_none() {
        return Err(Error::Argument {
            argument: "--teacher".into(),
            expected: "a model to learn from: in a command of one stage the student is no teacher"
                .into(),
            found: "none".into(),
        });
    }
    execute_stage(global, model, vec![stage.0.clone()], measuring, common, output)
}
