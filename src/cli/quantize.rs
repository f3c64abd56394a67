//! `lopper quantize`: a recipe of one stage.

use super::compress::{Common, Measuring, execute_stage, of_flag};
use super::output::Output;
use super::{EngineChoice, Global};
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::methods::quantize::{Grid, level_type};
use crate::stages::quantize::Quantize;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: Quantize,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let stage = arguments.stage.clone().explicit();
    let stage = stage.map_err(BadField::in_recipe).map_err(of_flag)?;
    let scheme = stage.scheme().map_err(BadField::in_recipe).map_err(of_flag)?;
    let leveled = level_type(scheme.grid).is_some();
    // Ternary weights are looked up, in wider groups.
    let ternary = global.engine == EngineChoice::Lut && scheme.grid == Grid::Ternary;
    let least = if ternary { 128 } else { 32 };
    let narrow = (1..least).contains(&scheme.group_size);
    if global.engine.takes_planes() && (scheme.bits > 4 || (leveled && !ternary) || narrow) {
        return Err(Error::Argument {
            argument: "--engine lut / bitserial".into(),
            expected: "codes of 1 to 4 bits on an even grid, in groups of 32 or more (lut: or ternary, in groups of 128 or more)".into(),
            found: if narrow {
                format!("groups of {}", scheme.group_size)
            } else {
                format!("{} bits, grid {}", scheme.bits, scheme.grid.name())
            },
        });
    }
    let Arguments { model, measuring, common, .. } = arguments;
    execute_stage(global, model, vec![stage.into()], measuring, common, output)
}
