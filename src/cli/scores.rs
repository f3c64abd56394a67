//! `lopper scores`: how much channels matter, as safetensors.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::Global;
use super::output::{Output, bytes};
use super::session::{calibration_compute, open_device, open_model, report_device};
use crate::disk::Target;
use crate::error::{Error, Result};
use crate::formats::safetensors::{NewTensor, write_file};
use crate::interrupt;
use crate::kernels::score::Reduction;
use crate::methods::calibration::{Calibration, Rows};
use crate::methods::prune::memory::{Residency, choose_residency};
use crate::methods::prune::minitron::Importance;
use crate::methods::prune::score::{Score, input_norms, sums};
use crate::model::{
    Checkpoint, Config, Group, Model, Outline, Pass, PrunableDim, Role, WeightSource, Weights,
    groups, identity, tensor_specs,
};
use crate::tensor::DType;
use crate::walk::Kind;
use crate::walk::stored::Stored;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// l1, l2, vectorize, param_first, param_second, param_mix, random, all of these (all), wanda or minitron; several with
    /// commas
    #[arg(long, value_delimiter = ',', required = true)]
    score: Vec<String>,
    /// Which channels: ffn, kvgroup, head, hidden, layer
    #[arg(long, value_delimiter = ',', default_value = "ffn,kvgroup")]
    groups: Vec<String>,
    #[command(flatten)]
    calibration: Calibration,
    /// Rows of token ids instead: a JSON array of arrays
    #[arg(long, value_name = "F.json", conflicts_with = "calib")]
    token_file: Option<PathBuf>,
    /// Take wanda from statistics that `lopper calibrate` wrote, or from an imatrix file; no text is read then
    #[arg(long, value_name = "STATS", conflicts_with_all = ["calib", "offset", "samples", "length", "token_file"])]
    stats: Option<PathBuf>,
    /// The safetensors file to write: SCORE.ffn.L, SCORE.kvgroup.L, …; of wanda wanda.MODULE; of
    /// minitron minitron.ffn.L, .head.L, .hidden and .depth
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let asked = |name: &str| arguments.score.iter().any(|score| score == name);
    let (wanda, minitron) = (asked("wanda"), asked("minitron"));
    let scores = named_scores(&arguments.score)?;
    let widths = named_widths(&arguments.groups)?;
    let checkpoint = open_model(&arguments.model, output)?;
    let target = Target {
        path: &arguments.out,
        force: output.force(),
        folder: false,
        model: checkpoint.path(),
    };
    target.check()?;
    let mut stored_norms = None;
    if let Some(stats) = &arguments.stats {
        let stored = Stored::open(stats)?;
        if let Some(score) = scores.iter().find(|score| score.needs_gradient()) {
            return Err(Error::Argument {
                argument: "--stats".into(),
                expected: "wanda and scores of weights alone: statistics have no gradients".into(),
                found: score.name().into(),
            });
        }
        if minitron {
            return Err(Error::Argument {
                argument: "--stats".into(),
                expected: "wanda and scores of weights alone".into(),
                found: "minitron".into(),
            });
        }
        stored.check_model(checkpoint.path(), &identity(&checkpoint)?)?;
        stored.require(checkpoint.config(), &[Kind::Squares])?;
        stored_norms = wanda.then_some(stored);
    }
    let wanda = wanda && arguments.stats.is_none();
    let gradient_based = wanda || minitron || scores.iter().any(|score| score.needs_gradient());
    let rows = || {
        let file = arguments.token_file.as_deref();
        calibration_rows(&arguments.calibration, file, &checkpoint)
    };
    let rows = gradient_based.then(rows).transpose()?;
    let device = open_device(global, output)?;
    let compute = calibration_compute(global, &device)?;
    let pass = Pass { device: &device, compute };
    let chosen: Vec<Group> = groups(checkpoint.config(), checkpoint.specs())
        .into_iter()
        .filter(|group| widths.contains(&group.width))
        .collect();
    let residency = choose_residency(
        &Outline::of(&checkpoint)?,
        &scores,
        &chosen,
        rows.as_ref().map(|rows| (rows.samples, rows.length())),
        compute,
        global.vram_budget.filter(|_| device.gpu().is_some()),
    )?;
    let start = Instant::now();
    let model = match residency {
        Residency::Resident if gradient_based => {
            Some(Model::load(&device, &checkpoint, |done, total| {
                output.progress("loading", done, total);
                interrupt::check()
            })?)
        }
        _ => None,
    };
    // Scores of weights alone look at one tensor at a time.
    let (layers, residency) = match &model {
        Some(model) => (WeightSource::Resident(model), Residency::Resident),
        None => (WeightSource::Streamed(&device, &checkpoint), Residency::Streamed),
    };
    let seed = global.seed.unwrap_or(0);
    let begin = Instant::now();
    let mut progress = |done: usize, total: usize| output.progress("scoring", done, total);
    let sums = sums(layers, &checkpoint, &pass, &scores, &chosen, rows.as_ref(), &mut progress)?;
    let mut found: Vec<(String, Vec<f32>)> = Vec::new();
    for score in &scores {
        for group in &chosen {
            let units = sums.unit_scores(&device, *score, group, Reduction::Sum, seed)?;
            found.push((format!("{}.{group}", score.name()), units));
        }
    }
    if let (true, Some(rows)) = (wanda, &rows) {
        let norms = input_norms(layers, &pass, rows)?;
        found.extend(norms.into_iter().map(|(module, norms)| (format!("wanda.{module}"), norms)));
    }
    if let Some(stored) = &stored_norms {
        found.extend(norms_of(stored, checkpoint.config())?);
    }
    if let (true, Some(rows)) = (minitron, &rows) {
        let importance = Importance::of(layers, &pass, rows, &mut progress)?;
        for group in groups(checkpoint.config(), checkpoint.specs()) {
            let name = match group.width {
                PrunableDim::KvGroup => continue,
                PrunableDim::Layers => "depth".to_string(),
                _ => group.to_string(),
            };
            found.push((format!("minitron.{name}"), importance.units(&group)));
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let count = found.len();
    let mut tensors: Vec<NewTensor<'_>> = Vec::new();
    if let Some(rows) = &rows {
        let wide = rows.ids.iter().flat_map(|id| i64::from(*id).to_le_bytes());
        let shape = vec![rows.samples, rows.length()];
        tensors.push(tensor("input_ids".into(), DType::I64, shape, wide.collect()));
    }
    for (name, values) in found {
        let shape = vec![values.len()];
        let values = bytemuck::cast_slice(&values).to_vec();
        tensors.push(tensor(name, DType::F32, shape, values));
    }
    checkpoint.unchanged()?;
    target.write(|path| write_file(path, tensors))?;
    let tokens = rows.as_ref().map(|rows| rows.ids.len());
    let peak = device.gpu().map(|gpu| gpu.memory().1);
    output.json(&json!({
        "schema": 1, "model": arguments.model, "scores": arguments.score, "out": arguments.out,
        "tensors": count, "device": device.name(), "compute": compute.name(), "loss": sums.loss,
        "tokens": tokens, "seconds": seconds, "load_seconds": (begin - start).as_secs_f64(),
        "tokens_per_second": tokens.map(|tokens| tokens as f64 / seconds),
        "layers": residency.name(), "peak_vram": peak, "vram_budget": global.vram_budget,
    }))?;
    output.line(format!(
        "{}: {count} tensors of scores in {seconds:.2} s on {}, layers {}{}",
        arguments.out.display(),
        device.name(),
        residency.name(),
        peak.map_or_else(String::new, |peak| format!(", peak {}", bytes(peak))),
    ));
    if let (Some(loss), Some(tokens)) = (sums.loss, tokens) {
        output.line(format!(
            "mean loss {loss:.5} over {tokens} tokens, {:.0} tokens/s there and back",
            tokens as f64 / seconds
        ));
    }
    report_device(global, &device, output, start.elapsed())
}

fn tensor(name: String, dtype: DType, shape: Vec<usize>, bytes: Vec<u8>) -> NewTensor<'static> {
    NewTensor { name, dtype, shape, data: Box::new(move || Ok(bytes.clone())) }
}

/// Wanda's norms, by statistics that were taken before.
fn norms_of(stored: &Stored, config: &Config) -> Result<Vec<(String, Vec<f32>)>> {
    let mut found = Vec::new();
    for layer in 0..config.layers() {
        let sums = stored.block(config, layer, &[Kind::Squares])?;
        let specs = tensor_specs(config).into_iter();
        for spec in specs.filter(|spec| (spec.layer, spec.role) == (Some(layer), Role::Linear)) {
            if let Some(squares) = sums.sum(spec.slot, Kind::Squares) {
                let norms = squares.iter().map(|square| square.sqrt()).collect();
                found.push((format!("wanda.{}", spec.module()), norms));
            }
        }
    }
    Ok(found)
}

/// The rows of a text, or of a file of token ids.
pub(super) fn calibration_rows(
    calibration: &Calibration,
    token_file: Option<&Path>,
    checkpoint: &Checkpoint,
) -> Result<Rows> {
    let rows = match token_file {
        Some(path) => Rows::of_file(path)?,
        None => Rows::of_text(calibration, &checkpoint.tokenizer()?)?,
    };
    let rows = rows.within(checkpoint.config().max_positions)?;
    let vocabulary = checkpoint.config().vocab_size;
    match rows.ids.iter().find(|id| **id as usize >= vocabulary) {
        None => Ok(rows),
        Some(id) => Err(Error::Argument {
            argument: "token id".into(),
            expected: format!("less than the vocabulary's {vocabulary}"),
            found: id.to_string(),
        }),
    }
}

fn named_scores(names: &[String]) -> Result<Vec<Score>> {
    let mut scores = Vec::new();
    for name in names.iter().filter(|name| !["wanda", "minitron"].contains(&name.as_str())) {
        match (name.as_str(), Score::named(name)) {
            ("all", _) => scores.extend(Score::ALL),
            (_, Some(score)) => scores.push(score),
            _ => {
                let known = Score::ALL.map(Score::name).join(", ");
                return Err(Error::Argument {
                    argument: "--score".into(),
                    expected: format!("{known}, all, wanda or minitron"),
                    found: name.clone(),
                });
            }
        }
    }
    scores.sort();
    scores.dedup();
    Ok(scores)
}

fn named_widths(names: &[String]) -> Result<Vec<PrunableDim>> {
    let all = [
        PrunableDim::FeedForward,
        PrunableDim::KvGroup,
        PrunableDim::Head,
        PrunableDim::Hidden,
        PrunableDim::Layers,
    ];
    let named = |name: &String| {
        let found = all.into_iter().find(|width| width.name() == name);
        found.ok_or_else(|| Error::Argument {
            argument: "--groups".into(),
            expected: all.map(PrunableDim::name).join(", "),
            found: name.clone(),
        })
    };
    names.iter().map(named).collect()
}
