//! `lopper export`: converts a model.

use std::path::PathBuf;

use serde_json::json;

use super::output::{Output, bytes};
use super::session::open_model;
use crate::disk::Target;
use crate::error::Result;
use crate::model::{Card, Checkpoint, ExportFormat, Weights, Wide};
use crate::plan::rounded;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, quantized by another tool or not, a .gguf file, a folder that compress wrote, or embedded:NAME
    model: String,
    /// What is written
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// The file or folder to write
    #[arg(long)]
    out: PathBuf,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let model = open_model(&arguments.model, output)?;
    let target = Target {
        path: &arguments.out,
        force: output.force(),
        folder: !matches!(arguments.format, ExportFormat::Gguf),
        model: model.path(),
    };
    target.check()?;
    if !matches!(arguments.format, ExportFormat::Gguf | ExportFormat::Packed) {
        model.config().check_plain(model.path())?;
    }
    arguments.format.check_held(&model)?;
    let tokenizer = model.has_tokenizer().then(|| model.stored_tokenizer()).transpose()?;
    let rounded = match arguments.format {
        ExportFormat::Gguf => rounded(ExportFormat::Gguf, &model, &model)?,
        _ => Vec::new(),
    };
    let mut wide = Wide::default();
    target.write(|path| {
        wide = arguments.format.write(path, &model, &model, tokenizer.as_ref())?;
        if !matches!(arguments.format, ExportFormat::Gguf) {
            card(arguments, &model)?.write(path)?;
        }
        model.unchanged()
    })?;
    // What its own reader said of the model is lost here too.
    let lost = model.notes();
    let mut warnings = Vec::new();
    if let Some(first) = rounded.first() {
        let count = rounded.len();
        warnings.push(format!(
            "no plain GGUF type holds {count} tensors ({first}, …) exactly; they are written as f16"
        ));
    }
    warnings.extend(wide.notes());
    if matches!(arguments.format, ExportFormat::Gguf) {
        warnings.extend(model.config().ignored_by_llama_cpp());
    }
    if tokenizer.is_none() {
        warnings.push("the model has no tokenizer; none is written".into());
    }
    for warning in &warnings {
        output.note(format!("warning: {warning}"));
    }
    let size = folder_bytes(&arguments.out);
    output.json(&json!({"schema": 1, "model": arguments.model, "out": arguments.out, "bytes": size, "rounded": rounded,
        "lost": lost, "warnings": warnings}))?;
    output.line(format!("{}: {}", arguments.out.display(), bytes(size)));
    Ok(())
}

/// The card of a folder: the same weights in another format.
fn card<'a>(arguments: &'a Arguments, model: &'a Checkpoint) -> Result<Card<'a>> {
    let mut quantized = false;
    for spec in model.specs() {
        quantized |= !model.format(spec)?.ty.is_plain();
    }
    let path = model.path();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    Ok(Card {
        config: model.config(),
        parent: model,
        merged: Vec::new(),
        formats: std::slice::from_ref(&arguments.format),
        relation: quantized.then_some("quantized"),
        tags: Vec::new(),
        text: format!(
            "# {name}\n\nConverted by Lopper {} from `{}` to {}.\n",
            env!("CARGO_PKG_VERSION"),
            arguments.model,
            arguments.format.name()
        ),
    })
}

fn folder_bytes(path: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |about| about.len());
    };
    entries.flatten().map(|entry| folder_bytes(&entry.path())).sum()
}
