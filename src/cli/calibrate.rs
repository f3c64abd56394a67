//! `lopper calibrate`: statistics of what goes through a model's blocks, for methods that take them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::Global;
use super::output::{Output, bytes, table};
use super::scores::calibration_rows;
use super::session::{calibration_compute, open_device, open_model, report_device};
use crate::disk::Target;
use crate::error::{Error, Result};
use crate::methods::calibration::Calibration;
use crate::model::{Pass, Weights};
use crate::run::{Calibrated, Calibrating, Estimate, Event, Place, calibrate};
use crate::walk::Kind;
use crate::walk::stored::{About, few_tokens, merge, read_about};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    #[arg(required_unless_present = "merge", conflicts_with = "merge")]
    model: Option<String>,
    /// Folder of the statistics; or an imatrix file of llama.cpp, NAME.gguf, which has squares only
    #[arg(long, value_name = "STATS")]
    out: PathBuf,
    /// What is summed over the tokens: squares, values, magnitudes, maxima, sequence_magnitudes (all of these for each input channel),
    /// gram (X^T X: channels x channels x 4 bytes for each input of a block), cosine (of the stream before and after a block); several
    /// with commas, or all [default: all but gram]. Rows are 128 of 256 tokens unless said otherwise
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    kinds: Vec<String>,
    #[command(flatten)]
    calibration: Calibration,
    /// Rows of token ids instead: a JSON array of arrays
    #[arg(long, value_name = "F.json", conflicts_with_all = ["calib", "offset", "samples", "length"])]
    token_file: Option<PathBuf>,
    /// Add up statistics that were taken of one model on several parts of a text
    #[arg(long, value_name = "STATS", num_args = 2.., conflicts_with_all = [
        "kinds", "calib", "offset", "samples", "length", "token_file", "resume", "dry_run", "keep_work",
    ])]
    merge: Vec<PathBuf>,
    /// Check all, say what it takes in bytes and operations, and stop
    #[arg(long)]
    dry_run: bool,
    /// Continue an interrupted run from its work folder, OUT.work; begin if there is none
    #[arg(long)]
    resume: bool,
    /// Leave the work folder when all is done
    #[arg(long)]
    keep_work: bool,
}

/// Rows and their length where the user says nothing: what SparseGPT, Wanda and GPTQ take are 128.
const ROWS: (usize, usize) = (128, 256);

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let Some(name) = &arguments.model else {
        return run_merge(arguments, output);
    };
    let imatrix = is_gguf(&arguments.out);
    let kinds = kinds(&arguments.kinds, imatrix)?;
    let model = open_model(name, output)?;
    let mut calibration = arguments.calibration.clone();
    calibration.fill(ROWS.0, ROWS.1.min(model.config().max_positions));
    let rows = calibration_rows(&calibration, arguments.token_file.as_deref(), &model)?;
    let (text, offset) = match &arguments.token_file {
        Some(file) => (file.display().to_string(), 0),
        None => (calibration.text.clone(), calibration.offset),
    };
    let what =
        Calibrating { model: &model, kinds: &kinds, rows: &rows, text: &text, offset, imatrix };
    let place = Place {
        out: &arguments.out,
        force: output.force(),
        resume: arguments.resume,
        keep_work: arguments.keep_work,
    };
    what.check(&place)?;
    let device = open_device(global, output)?;
    let pass = Pass { device: &device, compute: calibration_compute(global, &device)? };
    let budget = global.vram_budget.filter(|_| device.gpu().is_some());
    let estimate = what.estimate(&device, pass.compute)?;
    let residency = what.residency(&estimate, budget)?;
    if kinds.contains(&Kind::Gram)
        && let Some(text) = few_tokens(model.config(), rows.ids.len() as u64)
    {
        output.note(format!("warning: {text}"));
    }
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    if arguments.dry_run {
        output.json(&json!({
            "schema": 1, "model": name, "out": arguments.out, "kinds": names, "tokens": rows.ids.len(),
            "layers": residency.name(), "disk_bytes": estimate.disk_bytes, "block_bytes": estimate.block_bytes,
            "device_bytes": estimate.resident, "least_device_bytes": estimate.streamed,
            "gram_flops": estimate.gram_flops, "forward_flops": estimate.forward_flops,
        }))?;
        show_estimate(&estimate, &names, rows.ids.len(), output);
        return Ok(());
    }
    if estimate.disk_bytes > LARGE {
        output.note(format!("note: {} of statistics are written", bytes(estimate.disk_bytes)));
    }
    let start = Instant::now();
    let mut listen = |event: Event<'_>| {
        if let Event::Progress { step, done, total } = event {
            output.progress(step, done, total);
        }
    };
    let done = calibrate(&what, &pass, place, budget, &mut listen)?;
    let wall = start.elapsed();
    let tokens = rows.ids.len();
    // What was taken over from an earlier run was not computed in these seconds.
    let whole = done.taken_over == 0 && done.walk_seconds > 0.0;
    let rate = |operations: u64| whole.then(|| operations as f64 / done.walk_seconds / 1e12);
    let all = estimate.gram_flops + estimate.forward_flops;
    let peak = device.gpu().map(|gpu| gpu.memory().1);
    output.json(&json!({
        "schema": 1, "model": name, "model_sha256": done.about.model_sha256, "out": arguments.out, "kinds": names,
        "tokens": tokens, "samples": rows.samples, "device": device.name(), "compute": pass.compute.name(),
        "layers": residency.name(), "taken_over": done.taken_over,
        "seconds": done.load_seconds + done.walk_seconds + done.write_seconds, "load_seconds": done.load_seconds,
        "walk_seconds": done.walk_seconds, "write_seconds": done.write_seconds,
        "tokens_per_second": whole.then(|| tokens as f64 / done.walk_seconds),
        "gram_flops": estimate.gram_flops, "forward_flops": estimate.forward_flops, "tflops": rate(all),
        "disk_bytes": estimate.disk_bytes, "peak_vram": peak, "vram_budget": global.vram_budget,
    }))?;
    show(&done, &arguments.out, rate(all), peak, output);
    report_device(global, &device, output, wall)
}

/// What is written without a word.
const LARGE: u64 = 4 << 30;

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// The kinds of these names.
fn kinds(names: &[String], imatrix: bool) -> Result<Vec<Kind>> {
    let known = || {
        let names = Kind::ALL.map(Kind::name).join(", ");
        format!("{names}, or all")
    };
    let mut kinds = Vec::new();
    for name in names {
        match (name.as_str(), Kind::named(name)) {
            ("all", _) => kinds.extend(Kind::ALL),
            (_, Some(kind)) => kinds.push(kind),
            _ => {
                return Err(Error::Argument {
                    argument: "--kinds".into(),
                    expected: known(),
                    found: name.clone(),
                });
            }
        }
    }
    if imatrix {
        return match kinds[..] {
            [] | [Kind::Squares] => Ok(vec![Kind::Squares]),
            _ => Err(Error::Argument {
                argument: "--kinds".into(),
                expected: "squares: an imatrix (--out NAME.gguf) has no others".into(),
                found: names.join(","),
            }),
        };
    }
    if kinds.is_empty() {
        kinds.extend(Kind::ALL.into_iter().filter(|kind| *kind != Kind::Gram));
    }
    kinds.sort();
    kinds.dedup();
    Ok(kinds)
}

fn show_estimate(estimate: &Estimate, kinds: &[&str], tokens: usize, output: &Output) {
    output.line(format!("{} of {tokens} tokens", kinds.join(", ")));
    output.line(format!(
        "{} on the disk, {} of them in memory at once",
        bytes(estimate.disk_bytes),
        bytes(estimate.block_bytes)
    ));
    output.line(format!(
        "device memory {}, or {} with a block's weights at a time",
        bytes(estimate.resident),
        bytes(estimate.streamed)
    ));
    output.line(format!(
        "{:.1} GFLOP of products, {:.1} GFLOP of second moments",
        estimate.forward_flops as f64 / 1e9,
        estimate.gram_flops as f64 / 1e9
    ));
}

fn show(done: &Calibrated, out: &Path, rate: Option<f64>, peak: Option<u64>, output: &Output) {
    let about = &done.about;
    output.text(&described(about));
    if done.taken_over > 0 {
        let (blocks, all) = (done.taken_over, about.blocks);
        output.line(format!("{blocks} of {all} blocks were there from an earlier run"));
    }
    output.line(format!(
        "written to {}: {:.2} s of walking{}, {:.2} s of loading, {:.2} s of writing, layers {}{}",
        out.display(),
        done.walk_seconds,
        rate.map_or_else(String::new, |rate| format!(" ({:.1} GFLOP/s)", rate * 1e3)),
        done.load_seconds,
        done.write_seconds,
        done.residency.name(),
        peak.map_or_else(String::new, |peak| format!(", peak {}", bytes(peak))),
    ));
}

/// What statistics are of, as a person reads it.
pub(super) fn described(about: &About) -> String {
    let mut rows = vec![["text", "from token", "rows", "of tokens"].map(String::from).to_vec()];
    for part in &about.parts {
        rows.push(vec![
            part.text.clone(),
            part.offset.to_string(),
            part.samples.to_string(),
            part.length.to_string(),
        ]);
    }
    format!(
        "statistics of {}, sha256 {}\n{} of {} blocks, {} tokens in {} rows, activations in {} on {}\n\n{}\n",
        about.model,
        about.model_sha256,
        about.kinds.join(", "),
        about.blocks,
        about.tokens,
        about.sequences,
        about.compute,
        about.device,
        table(&rows),
    )
}

fn run_merge(arguments: &Arguments, output: &Output) -> Result<()> {
    let start = Instant::now();
    if is_gguf(&arguments.out) {
        return Err(Error::Argument {
            argument: "--out".into(),
            expected: "a folder: what is merged are folders of statistics (llama-imatrix --in-file merges imatrix files)"
                .into(),
            found: arguments.out.display().to_string(),
        });
    }
    for folder in &arguments.merge {
        read_about(folder)?;
    }
    let target = Target {
        path: &arguments.out,
        force: output.force(),
        folder: true,
        model: &arguments.merge[0],
    };
    target.check()?;
    let merged = target.write(|out| {
        std::fs::create_dir(out).map_err(Error::write(out))?;
        let mut progress = |done, total| output.progress("merging", done, total);
        merge(&arguments.merge, out, &mut progress)
    })?;
    for warning in &merged.warnings {
        output.note(format!("warning: {warning}"));
    }
    let about = &merged.about;
    output.json(&json!({
        "schema": 1, "model": about.model, "model_sha256": about.model_sha256, "merged": arguments.merge,
        "out": arguments.out, "kinds": about.kinds, "tokens": about.tokens, "samples": about.sequences,
        "seconds": start.elapsed().as_secs_f64(),
    }))?;
    output.text(&described(about));
    output.line(format!("written to {}", arguments.out.display()));
    Ok(())
}
