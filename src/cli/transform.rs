//! `lopper transform`: a recipe of one stage, or two.

use super::Global;
use super::compress::{Common, Measuring, execute_stage};
use super::output::Output;
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::stages::quantize::{Flags as Quantize, Nearest};
use crate::stages::transform::Flags;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: Flags,
    /// Quantize the result to this type, as `lopper quantize --type` does; a method that looks for the least error of a type takes
    /// it for that, unless --type or --bits says otherwise
    #[arg(long, value_name = "TYPE")]
    then: Option<String>,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let Arguments { model, stage, then, measuring, common } = arguments;
    let Flags(mut transform) = stage.clone();
    let mut stages = Vec::new();
    if let Some(ty) = then {
        // Patterns stand beside a type in a method's keys.
        let keys = transform.keys();
        let open =
            ["bits", "type", "grid", "group_size"].iter().all(|key| !keys.contains_key(*key));
        if keys.contains_key("include") && open {
            transform = transform.with("type", ty).map_err(|error| Error::Argument {
                argument: "--then".into(),
                expected: "a type that the result is quantized to".into(),
                found: error.to_string(),
            })?;
        }
        let quantize = Quantize(Nearest::of_type(ty).into()).explicit();
        stages.push(quantize.map_err(BadField::in_recipe)?.0);
    }
    stages.insert(0, transform);
    execute_stage(global, model, stages, measuring, common, output)
}
