//! `lopper quantize`: a recipe of one stage.

use super::compress::{Common, Measuring, execute_stage, of_flag};
use super::output::Output;
use super::{EngineChoice, Global};
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::methods::quantize::{Grid, level_type};
use crate::stages::quantize::{Flags, Target};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    #[command(flatten)]
    stage: Flags,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let stage = arguments.stage.clone().explicit();
    let stage = stage.map_err(BadField::in_recipe).map_err(of_flag)?;
    if let Some(target) = stage.target() {
        check_engine(global, &target)?;
    } else if global.engine.takes_planes() {
        return Err(Error::Argument {
            argument: "--engine lut / bitserial".into(),
            expected: "one type for all tensors".into(),
            found: "--method mix".into(),
        });
    }
    let Arguments { model, measuring, common, .. } = arguments;
    execute_stage(global, model, vec![stage.0], measuring, common, output)
}

/// An error if the engine that is asked for does not take what the stage makes.
fn check_engine(global: &Global, target: &Target) -> Result<()> {
    let scheme = target.scheme().map_err(BadField::in_recipe).map_err(of_flag)?;
    let format = target.format().map_err(BadField::in_recipe).map_err(of_flag)?;
    let grid = scheme.map(|scheme| scheme.grid);
    let leveled = grid.is_none_or(|grid| level_type(grid).is_some());
    // Ternary weights are looked up, in wider groups.
    let ternary = global.engine == EngineChoice::Lut && grid == Some(Grid::Ternary);
    let least = if ternary { 128 } else { 32 };
    let narrow = (1..least).contains(&format.group_size);
    let wide = format.ty.bits > 4 || (leveled && !ternary);
    if global.engine.takes_planes() && (wide || narrow || format.ty.is_sparse()) {
        return Err(Error::Argument {
            argument: "--engine lut / bitserial".into(),
            expected: "codes of 1 to 4 bits on an even grid, in groups of 32 or more (lut: or ternary, in groups of 128 or more)".into(),
            found: match grid {
                Some(grid) if !narrow && !format.ty.is_sparse() => {
                    format!("{} bits, grid {}", format.ty.bits, grid.name())
                }
                _ if !format.ty.is_sparse() => format!("groups of {}", format.group_size),
                _ => format.ty.name.into(),
            },
        });
    }
    Ok(())
}
