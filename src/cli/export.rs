//! `lopper export`: converts a model.

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use super::output::{Output, bytes};
use crate::error::{Error, Result};
use crate::model::{Checkpoint, Weights, export_gguf, export_hf, export_packed};
use crate::run::Target;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, a folder that compress wrote, or embedded:NAME
    model: String,
    /// gguf: a file for llama.cpp; hf: a folder in f16 for transformers; packed: a folder with codes as they are
    #[arg(long)]
    format: Format,
    /// The file or folder to write
    #[arg(long)]
    out: PathBuf,
    /// Replace an existing one
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Gguf,
    Hf,
    Packed,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let model = Checkpoint::open(&arguments.model)?;
    let target = Target {
        path: &arguments.out,
        force: arguments.force,
        folder: !matches!(arguments.format, Format::Gguf),
        model: model.path(),
    };
    target.check()?;
    if matches!(arguments.format, Format::Hf) {
        model.config().check_plain(model.path())?;
    }
    let tokenizer = model.has_tokenizer().then(|| model.stored_tokenizer()).transpose()?;
    let mut rounded = Vec::new();
    target.write(|path| {
        let folder = || std::fs::create_dir(path).map_err(Error::write(&arguments.out));
        match arguments.format {
            Format::Gguf => rounded = export_gguf(path, &model, &model, tokenizer.as_ref())?,
            Format::Hf => {
                folder()?;
                export_hf(path, model.config_json()?, &model, tokenizer.as_ref())?;
            }
            Format::Packed => {
                folder()?;
                export_packed(path, model.config_json()?, &model, tokenizer.as_ref())?;
            }
        }
        Ok(())
    })?;
    if let Some(first) = rounded.first() {
        let count = rounded.len();
        output.note(format!(
            "warning: no plain GGUF type holds {count} tensors ({first}, …) exactly; they are written as f16"
        ));
    }
    if tokenizer.is_none() {
        output.note("warning: the model has no tokenizer; none is written");
    }
    let size = folder_bytes(&arguments.out);
    output.json(&json!({"schema": 1, "model": arguments.model, "out": arguments.out, "bytes": size, "rounded": rounded}))?;
    output.line(format!("{}: {}", arguments.out.display(), bytes(size)));
    Ok(())
}

fn folder_bytes(path: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |about| about.len());
    };
    entries.flatten().map(|entry| folder_bytes(&entry.path())).sum()
}
