//! `lopper synth` (hidden): a model of a real shape with random weights, for benches and for trying memory limits.

use std::path::{Path, PathBuf};

use super::Global;
use super::output::Output;
use crate::disk::Target;
use crate::error::{Error, Result};
use crate::methods::quantize::prescribed_group_size;
use crate::model::{Synth, export_hf, export_packed};
use crate::tensor::{WHOLE_ROW, WeightFormat, weight_type};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// smollm2 (smollm2-135m), tinyllama (tinyllama-1.1b), llama8b (llama-3.1-8b), smollm2-1.7b, minitron-width or
    /// minitron-depth (minitron-4b-...), litellama (litellama-460m), mixtral (mixtral-8x7b), flan-t5 (flan-t5-base), flan-t5-large, flan-t5-xl
    shape: String,
    /// Weight type of the linear layers: f16, uint4m, nf4, ...
    #[arg(long = "type", value_name = "TYPE", default_value = "f16")]
    ty: String,
    /// Columns that share a scale (default 32, or what the type prescribes)
    #[arg(long)]
    group_size: Option<u32>,
    /// Only so many layers
    #[arg(long)]
    layers: Option<usize>,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let wrong = |argument: &str, expected: &str, found: String| Error::Argument {
        argument: argument.into(),
        expected: expected.into(),
        found,
    };
    let ty = weight_type(&arguments.ty).ok_or_else(|| {
        wrong("--type", "a weight type, such as f16, uint4m or nf4", arguments.ty.clone())
    })?;
    let group_size = match (ty.has_scales(), arguments.group_size) {
        (false, _) => WHOLE_ROW,
        (true, None) => prescribed_group_size(ty).unwrap_or(32),
        (true, Some(size)) if size == WHOLE_ROW || (size >= 16 && size.is_power_of_two()) => size,
        (true, Some(size)) => {
            let expected = "a power of two from 16, or 0 for a whole row";
            return Err(wrong("--group-size", expected, size.to_string()));
        }
    };
    if arguments.layers == Some(0) {
        return Err(wrong("--layers", "at least 1", "0".into()));
    }
    let format = WeightFormat { ty, group_size };
    let model = Synth::new(&arguments.shape, format, arguments.layers, global.seed.unwrap_or(0))?;
    let target = Target {
        path: &arguments.out,
        force: output.force(),
        folder: true,
        model: Path::new(&arguments.shape),
    };
    target.check()?;
    let tokenizer = model.tokenizer()?;
    target.write(|folder| {
        std::fs::create_dir(folder).map_err(Error::write(&arguments.out))?;
        let config = model.config_json().clone();
        if !ty.is_plain() {
            export_packed(folder, config, &model, Some(tokenizer.stored()))
        } else {
            export_hf(folder, config, &model, Some(tokenizer.stored())).map(drop)
        }
    })?;
    output.line(format!("written: {}", arguments.out.display()));
    Ok(())
}
