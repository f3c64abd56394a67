//! `lopper inspect`: what a model is.

use std::path::Path;

use serde_json::{Value, json};

use super::calibrate::described;
use super::output::{Output, bytes, table};
use super::session::open_model;
use crate::error::Result;
use crate::families::{Encoder, without_layer};
use crate::model::{BlockDims, Config, Group, Pooling, Readout, Weights, groups};
use crate::walk::stored::{FILE as STATISTICS, read_about};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME; or a folder of statistics
    model: String,
    /// Show which channels of which tensors can only be cut together
    #[arg(long)]
    groups: bool,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<()> {
    let path = Path::new(&arguments.model);
    if path.join(STATISTICS).is_file() {
        return inspect_statistics(path, output);
    }
    let model = open_model(&arguments.model, output)?;
    let config = model.config();
    let (stored, f16) = (model.total_stored_bytes(), 2 * model.parameters());
    let files = model.file_bytes();
    let tensors: Vec<_> = model
        .specs()
        .iter()
        .map(|spec| {
            json!({"name": spec.name, "shape": spec.shape(), "type": model.stored_type(spec),
                   "bytes": model.stored_bytes(spec)})
        })
        .collect();
    let found = if arguments.groups { groups(config, model.specs()) } else { Vec::new() };
    let mut facts = json!({
        "schema": 1, "model": arguments.model, "family": config.family.name, "container": model.container(),
        "parameters": model.parameters(), "bytes": stored, "file_bytes": files, "bytes_f16": f16,
        "hidden_size": config.hidden_size, "intermediate_size": stated(config, |w| w.intermediate_size),
        "layers": config.layers(),
        "heads": stated(config, |w| w.heads), "kv_heads": stated(config, |w| w.kv_heads), "head_dim": config.head_dim,
        "vocab_size": config.vocab_size, "max_positions": config.max_positions, "rope_theta": config.ropes.first().map(|rope| rope.theta),
        "rms_norm_eps": config.rms_norm_eps, "tied": config.tied, "tensors": tensors,
    });
    let warnings = match model.gguf() {
        Some(_) => config.ignored_by_llama_cpp(),
        None => Vec::new(),
    };
    if let Some((ty, scales)) = inputs(config) {
        facts["inputs"] = json!({"type": ty, "scales": scales});
    }
    if let Some(experts) = config.experts {
        facts["experts"] = json!(experts.count);
        facts["experts_used"] = json!(experts.used);
    }
    if let Some(readout) = &config.readout {
        facts["labels"] = json!(readout.labels);
        facts["pooling"] = json!(readout.pooling);
        facts["normalized"] = json!(readout.normalized);
    }
    if let Some(encoder) = config.encoder {
        facts["encoder_layers"] = json!(encoder.layers);
        facts["decoder_start"] = json!(encoder.start);
    }
    facts["warnings"] = json!(warnings);
    for warning in &warnings {
        output.note(format!("warning: {warning}"));
    }
    if arguments.groups {
        facts["groups"] = json!(found);
    }
    output.json(&facts)?;
    output.line(format!(
        "{}: {} ({}), {:.1} M parameters, files of {}, tensors {} as stored, {} in f16",
        arguments.model,
        config.family.name,
        model.container(),
        model.parameters() as f64 / 1e6,
        bytes(files),
        bytes(stored),
        bytes(f16),
    ));
    output.line(format!(
        "{} layers, hidden {}, feed-forward {}, heads {} / {} key-value of {}, vocabulary {}, {}, context {}",
        config.layers(),
        config.hidden_size,
        range(config, |w| w.intermediate_size),
        range(config, |w| w.heads),
        range(config, |w| w.kv_heads),
        config.head_dim,
        config.vocab_size,
        head(config),
        config.max_positions,
    ));
    if let Some(experts) = config.experts {
        output.line(format!(
            "{} experts in each layer, of which a token goes through {}",
            experts.count, experts.used
        ));
    }
    if let Some(Encoder { layers, buckets, start }) = config.encoder {
        output.line(format!(
            "{layers} layers are the encoder's, {} the decoder's, which begins with token {start}; scores have a bias by distance, of \
             {} buckets up to {}\n",
            config.decoder_layers(),
            buckets.count,
            buckets.far,
        ));
    }
    if let Some(rope) = config.ropes.first() {
        output.line(format!("rope theta {}, scaling {:?}", rope.theta, rope.scaling));
    }
    if let Some((ty, scales)) = inputs(config) {
        output.line(format!("inputs of quantized layers rounded to {ty}, scales by {scales}"));
    }
    output.line("");
    if arguments.groups {
        output.text(&group_table(&found));
        return Ok(());
    }
    let mut rows = vec![["tensor", "shape", "type", "bytes"].map(String::from).to_vec()];
    for spec in model.specs() {
        rows.push(vec![
            spec.name.clone(),
            format!("{:?}", spec.shape()),
            model.stored_type(spec),
            model.stored_bytes(spec).to_string(),
        ]);
    }
    output.text(&table(&rows));
    Ok(())
}

/// What the statistics of a folder are of.
fn inspect_statistics(folder: &Path, output: &Output) -> Result<()> {
    let about = read_about(folder)?;
    let mut facts = json!({"schema": 1, "statistics": folder});
    if let (Some(facts), Value::Object(all)) = (facts.as_object_mut(), json!(about)) {
        facts.extend(all.into_iter().filter(|(key, _)| key != "schema" && key != "written_by"));
    }
    output.json(&facts)?;
    output.text(&described(&about));
    Ok(())
}

/// A width of every layer for JSON: a number, or where layers differ one for each.
/// What the inputs of its quantized layers become, and what they have a scale for.
fn inputs(config: &Config) -> Option<(&'static str, &'static str)> {
    let stored = config.blocks.iter().all(|block| block.input_scales.is_some());
    config.input_type.map(|ty| (ty.name(), if stored { "layer" } else { "token" }))
}

fn stated(config: &Config, width: fn(&BlockDims) -> usize) -> Value {
    match &config.uniform() {
        Some(widths) => json!(width(widths)),
        None => json!(config.blocks.iter().map(width).collect::<Vec<_>>()),
    }
}

/// The head in words.
fn head(config: &Config) -> String {
    match &config.readout {
        Some(Readout { labels, pooling, normalized }) if labels.is_empty() => {
            let of = match pooling {
                Pooling::Mean => "the mean of its tokens",
                Pooling::Max => "the largest of its tokens",
                Pooling::First => "its first token",
                Pooling::Last => "its last token",
            };
            let length = if *normalized { ", of length 1" } else { "" };
            format!("no head: a text's embedding is {of}{length}")
        }
        Some(readout) => format!("a head that scores {}", readout.labels.join(", ")),
        None if config.tied => "tied head".into(),
        None => "own head".into(),
    }
}

/// A width of every layer in a sentence: a number, or the least and the most.
fn range(config: &Config, width: fn(&BlockDims) -> usize) -> String {
    let least = config.blocks.iter().map(width).min().unwrap_or(0);
    let most = width(&config.widest());
    if least == most {
        return most.to_string();
    }
    format!("{least} to {most}")
}

/// Each group, and below it a line for each part that a tensor has in it. What the same tensors of all blocks have is one line.
fn group_table(groups: &[Group]) -> String {
    let head = ["group, with its tensors", "axis", "channels of a unit", "which it"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for group in groups {
        let mut seen: Vec<(String, usize)> = Vec::new();
        let mut lines: Vec<Vec<String>> = Vec::new();
        for member in &group.members {
            let tensor = match group.layer {
                None => without_layer(&member.tensor),
                Some(_) => member.tensor.clone(),
            };
            if let Some((_, count)) = seen.iter_mut().find(|(name, _)| *name == tensor) {
                *count += 1;
                continue;
            }
            seen.push((tensor.clone(), 1));
            let word = |value: Value| value.as_str().unwrap_or_default().to_string();
            lines.push(vec![
                format!("  {tensor}"),
                word(json!(member.axis)),
                member.span.to_string(),
                word(json!(member.side)),
            ]);
        }
        if group.members.is_empty() {
            lines.push(vec!["  all tensors of a block".into()]);
        }
        rows.push(vec![format!("{group}: {} units", group.units)]);
        rows.extend(lines);
    }
    table(&rows)
}
