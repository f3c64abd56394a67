//! `lopper upcycle`: a recipe of one stage, or two, from flags or from mergekit-moe's YAML.

use std::path::PathBuf;

use super::Global;
use super::compress::{Common, Measuring, execute_stage};
use super::output::Output;
use crate::disk;
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::recipe::mergekit_moe;
use crate::stages::quantize::{Flags as Quantize, Nearest};
use crate::stages::upcycle::Upcycle;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The model that gives all but the feed-forwards, and those where no others are named: a Hugging Face folder, a .gguf file, or
    /// embedded:NAME
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Assemble as this file of mergekit-moe's says (YAML), which names the models too
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    config: Option<PathBuf>,
    #[command(flatten)]
    stage: Upcycle,
    /// Quantize the result to this type, as `lopper quantize --type` does
    #[arg(long, value_name = "TYPE")]
    then: Option<String>,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let Arguments { model, config, stage, then, measuring, common } = arguments;
    let (model, stage) = match (config, model) {
        (Some(path), _) => {
            if *stage != Upcycle::default() {
                return Err(Error::Argument {
                    argument: "--config".into(),
                    expected: "no flags of experts beside it: the file says all".into(),
                    found: "some".into(),
                });
            }
            mergekit_moe::read(path, &disk::read_string(path, disk::SETTINGS)?)?
        }
        (None, model) => (model.clone().unwrap_or_default(), stage.clone()),
    };
    let mut stages = vec![stage.into()];
    if let Some(ty) = then {
        let quantize = Quantize(Nearest::of_type(ty).into()).explicit();
        stages.push(quantize.map_err(BadField::in_recipe)?.0);
    }
    execute_stage(global, &model, stages, measuring, common, output)
}
