//! `lopper merge`: a recipe of one stage, or two, from flags or from mergekit's YAML.

use std::path::PathBuf;

use super::Global;
use super::compress::{Common, Measuring, execute_stage};
use super::output::Output;
use crate::disk;
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::recipe::mergekit;
use crate::stages::merge::Flags;
use crate::stages::quantize::{Flags as Quantize, Nearest};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The first model, or the one that the others began with: a Hugging Face folder, a .gguf file, or embedded:NAME
    #[arg(required_unless_present = "config")]
    model: Option<String>,
    /// Merge as this file of mergekit's says (YAML), which names the models too
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    config: Option<PathBuf>,
    #[command(flatten)]
    stage: Flags,
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
            if stage.given {
                return Err(Error::Argument {
                    argument: "--config".into(),
                    expected: "no flags of methods beside it: the file says all".into(),
                    found: "some".into(),
                });
            }
            mergekit::read(path, &disk::read_string(path, disk::SETTINGS)?)?
        }
        (None, model) => (model.clone().unwrap_or_default(), stage.stage.clone()),
    };
    let mut stages = vec![stage];
    if let Some(ty) = then {
        let quantize = Quantize(Nearest::of_type(ty).into()).explicit();
        stages.push(quantize.map_err(BadField::in_recipe)?.0);
    }
    execute_stage(global, &model, stages, measuring, common, output)
}
