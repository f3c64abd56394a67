//! `lopper quantize`: a recipe of one stage.

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;

use super::compress::{Common, execute};
use super::output::Output;
use super::{EngineChoice, Global};
use crate::error::{Error, Result};
use crate::methods::quantize::{level_type, prescribed_group_size};
use crate::recipe::{Evaluate, Export, Grid, Quantize, QuantizeMethod, Recipe, Stage};
use crate::tensor::{Scale, weight_type};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// Bits of a code, 1 to 8 (default 4, or what --grid prescribes)
    #[arg(long, conflicts_with = "ty")]
    bits: Option<u32>,
    /// A weight type instead: int4 (symmetric), uint4z (zero point), uint4m (float minimum), q4_0, q4_1, q5_0, q5_1, q8_0,
    /// ternary, nf4, fp4, fp8_e4m3, fp8_e5m2, mxfp4, nvfp4
    #[arg(long = "type", id = "ty", value_name = "TYPE")]
    ty: Option<String>,
    /// Columns that share a scale: a power of two from 16, or 0 for a whole row (default 32, or what --type prescribes)
    #[arg(long)]
    group_size: Option<u32>,
    /// How a group's range becomes a grid (default float-min, or what --type says)
    #[arg(long, value_parser = grid_names())]
    grid: Option<String>,
    /// How codes are found
    #[arg(long, default_value = "rtn")]
    method: Method,
    /// Quantize modules that match (* stands for anything; default: the linear layers of the blocks)
    #[arg(long)]
    include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    exclude: Vec<String>,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Method {
    Rtn,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let (bits, grid) = choose(arguments)?;
    let leveled = level_type(grid).is_some();
    // Ternary weights are looked up, in wider groups.
    let ternary = global.engine == EngineChoice::Lut && grid == Grid::Ternary;
    let least = if ternary { 128 } else { 32 };
    let group = arguments.group_size.unwrap_or(32);
    let narrow = (1..least).contains(&group);
    if global.engine.takes_planes() && (bits > 4 || (leveled && !ternary) || narrow) {
        return Err(Error::Argument {
            argument: "--engine lut / bitserial".into(),
            expected: "codes of 1 to 4 bits on an even grid, in groups of 32 or more (lut: or ternary, in groups of 128 or more)".into(),
            found: if narrow {
                format!("groups of {group}")
            } else {
                format!("{bits} bits, grid {}", grid.name())
            },
        });
    }
    let default_include = || vec!["model.layers.*".to_string()];
    let recipe = Recipe {
        model: arguments.model.clone(),
        seed: global.seed.unwrap_or(0),
        stage: vec![Stage::Quantize(Quantize {
            method: match arguments.method {
                Method::Rtn => QuantizeMethod::Rtn,
            },
            bits,
            group_size: arguments.group_size.unwrap_or_else(|| {
                let prescribed = level_type(grid).and_then(prescribed_group_size);
                prescribed.unwrap_or(32)
            }),
            grid,
            codebook: Vec::new(),
            include: if arguments.include.is_empty() {
                default_include()
            } else {
                arguments.include.clone()
            },
            exclude: arguments.exclude.clone(),
        })],
        evaluate: (!arguments.no_eval).then(|| Evaluate {
            text: arguments.ppl.clone(),
            ctx: arguments.ctx,
            max_tokens: Some(arguments.max_tokens),
        }),
        export: Export::default(),
    };
    execute(
        global,
        &recipe,
        &recipe.to_toml(),
        &arguments.common,
        output,
    )
}

fn grid_names() -> PossibleValuesParser {
    PossibleValuesParser::new(Grid::ALL.into_iter().chain(Grid::LEVELED).map(Grid::name))
}

fn choose(arguments: &Arguments) -> Result<(u32, Grid)> {
    let grids = || Grid::ALL.into_iter().chain(Grid::LEVELED);
    let asked = arguments.grid.as_deref();
    let asked = asked.and_then(|name| grids().find(|grid| grid.name() == name));
    let Some(name) = &arguments.ty else {
        let grid = asked.unwrap_or_default();
        let natural = level_type(grid).map_or(4, |ty| ty.bits);
        return Ok((arguments.bits.unwrap_or(natural), grid));
    };
    let wrong = |expected: String, found: String| Error::Argument {
        argument: "--type".into(),
        expected,
        found,
    };
    let row = match name.to_ascii_lowercase().as_str() {
        "q4_0" => weight_type("int4"),
        "q4_1" => weight_type("uint4m"),
        "q5_0" => weight_type("int5"),
        "q5_1" => weight_type("uint5m"),
        "q8_0" => weight_type("int8"),
        other => weight_type(other).filter(|row| row.has_scales()),
    };
    let row = row.ok_or_else(|| {
        let expected =
            "int1 to int8, uint1z to uint8z, uint1m to uint8m, q4_0, q4_1, q5_0, q5_1, q8_0, ternary, nf4, fp4, fp8_e4m3, fp8_e5m2, mxfp4 or nvfp4";
        wrong(expected.into(), name.clone())
    })?;
    let leveled = |grid: &Grid| level_type(*grid) == Some(row);
    let fits = |grid: &Grid| match row.scale {
        _ if !row.is_affine() => leveled(grid),
        Scale::ZeroPoint => *grid == Grid::ZeroPoint,
        Scale::Offset => *grid == Grid::FloatMin,
        _ => matches!(grid, Grid::SignedMax | Grid::AbsmaxSymmetric),
    };
    let natural = [Grid::SignedMax, Grid::ZeroPoint, Grid::FloatMin]
        .into_iter()
        .chain(Grid::LEVELED)
        .find(fits)
        .unwrap_or_default();
    match asked {
        Some(grid) if !fits(&grid) => Err(wrong(
            format!("a type that the grid {} makes", grid.name()),
            name.clone(),
        )),
        asked => Ok((row.bits, asked.unwrap_or(natural))),
    }
}
