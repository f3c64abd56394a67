//! `lopper eval` and `lopper compare`: how good a model is, alone and beside its parent.

mod against_base;
pub(super) mod compare;
mod pair;
mod preferences;
mod task_files;
mod tasks;

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use self::pair::WindowArguments;
use self::preferences::PreferenceArguments;
use self::task_files::TaskFiles;
use self::tasks::{Answering, TaskArguments, json_of, text_of};
use super::Global;
use super::ensemble::EnsembleArguments;
use super::output::{Output, SAVE_EVERY};
use super::session::{
    CacheArguments, Loaded, compute, experts_json, load_for_windows, load_model, open_device,
    open_model, put_adapter, read_adapter, report_device, tell_experts,
};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::measure::quality::outcome::TaskOutcome;
use crate::measure::quality::tasks::Setup;
use crate::measure::{LogitSource, Losses, losses};
use crate::model::{Pass, Weights, check_cache};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("measured").args(["ppl", "task", "preferences", "candidates"]).required(true).multiple(true)))]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// Compare with this model, its parent: divergence, change of perplexity, answers to tasks
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// With the adapter in this folder beside its layers, as PEFT and `lopper tune` write it
    #[arg(long, value_name = "FOLDER", conflicts_with = "base")]
    lora: Option<PathBuf>,
    /// Measure perplexity on this text: a file, or embedded:heldout-2026, embedded:heldout-older, embedded:calibration
    #[arg(long, value_name = "FILE")]
    ppl: Option<String>,
    #[command(flatten)]
    preferences: PreferenceArguments,
    #[command(flatten)]
    cache: CacheArguments,
    #[command(flatten)]
    ensemble: EnsembleArguments,
    #[command(flatten)]
    windows: WindowArguments,
    #[command(flatten)]
    tasks: TaskArguments,
    #[command(flatten)]
    files: TaskFiles,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    if arguments.preferences.are_given() {
        return preferences::run(global, arguments, output);
    }
    let tasks = arguments.tasks.read()?;
    arguments.files.check(!tasks.is_empty(), output)?;
    let ctx = arguments.windows.ctx;
    let text = arguments.ppl.as_deref();
    let text = text.map(|source| arguments.windows.of(source));
    let answering =
        Answering { arguments: &arguments.tasks, tasks: &tasks, files: &arguments.files };
    if let Some(base) = &arguments.base {
        if !arguments.ensemble.is_empty() {
            return Err(Error::Argument {
                argument: "--expert, --ensemble".into(),
                expected: "a model measured by itself".into(),
                found: "--base".into(),
            });
        }
        let models = (arguments.model.as_str(), base.as_str(), arguments.cache.cache_type);
        return against_base::run(global, models, text.as_ref(), answering, output);
    }
    let checkpoint = open_model(&arguments.model, output)?;
    // Labels are answers to tasks, and to nothing else.
    let labels = checkpoint.config().readout.as_ref().map_or(0, |readout| readout.labels.len());
    if text.is_some() || labels == 1 {
        checkpoint.config().foretells("MODEL")?;
    }
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint, true)?;
    let tokenizer = checkpoint.tokenizer()?;
    let further = arguments.ensemble.open(&tokenizer, output)?;
    let alone = arguments.ensemble.is_empty();
    let tokenized = text.as_ref().map(|text| text.tokenize(&tokenizer));
    let tokenized = tokenized.transpose()?;
    let windows = match (&text, &tokenized) {
        (Some(text), Some(tokenized)) => Some((tokenized, tokenized.windows(text)?)),
        _ => None,
    };
    if let (Some(_), Some(warning)) = (&text, checkpoint.config().beyond_context(ctx)) {
        output.note(format!("warning: {warning}"));
    }
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?.with_cache(arguments.cache.cache_type);
    check_cache(checkpoint.config(), compute)?;
    let loaded = match tasks.is_empty() && adapter.is_none() && alone {
        true => load_for_windows(global, &device, &checkpoint, compute, (ctx, 1), output)?,
        // Tasks go back to the model again and again.
        false => {
            let mut model = load_model(global, &device, &checkpoint, compute, &[ctx], output)?;
            put_adapter(&device, &mut model, &checkpoint, adapter.as_ref())?;
            Loaded::Resident(Box::new(model))
        }
    };
    let others = further.load(global, &device, (&checkpoint, compute), output)?;
    let source = match &loaded {
        Loaded::Resident(model) if !alone => LogitSource::from(others.with(model)),
        loaded => LogitSource::from(loaded.source()),
    };
    let pass = Pass { device: &device, compute };
    let start = Instant::now();
    output.begin(json!({ "schema": 1, "model": arguments.model }), so_far);
    if let Some((tokenized, windows)) = &windows {
        let mut told = Instant::now();
        let progress = |losses: &Losses, done: usize, total: usize| {
            output.progress("evaluating", done, total);
            let pressed = interrupt::check();
            let any = !losses.values().is_empty();
            if any && (pressed.is_err() || told.elapsed() > SAVE_EVERY) {
                told = Instant::now();
                output.add(|json| json["perplexity"] = json!(losses.perplexity()))?;
            }
            pressed
        };
        let losses = losses(source, &pass, windows, progress)?;
        let figure = losses.perplexity();
        let bits = losses.bits_per_byte(windows.scored_bytes(&tokenized.ends));
        let seconds = start.elapsed().as_secs_f64();
        let used = windows.count() * ctx;
        let rate = used as f64 / seconds;
        output.add(|json| {
            json["perplexity"] = json!(figure);
            json["bits_per_byte"] = json!(bits);
            json["text"] = json!(arguments.ppl);
            json["tokens_per_second"] = json!(rate);
        })?;
        output.line(format!("{}: {figure}", arguments.model));
        if let Some(bits) = bits {
            output.line(bits.to_string());
        }
        let device = device.name();
        output.line(format!("{used} tokens in {seconds:.2} s on {device}: {rate:.0} tokens/s"));
    }
    if let (Loaded::Resident(model), false) = (&loaded, tasks.is_empty()) {
        let (models, pass, tokenizer) = (&others.with(model), &pass, &tokenizer);
        let encoder = arguments.tasks.encoder(global, &device, compute, output)?;
        let encoder = encoder.as_ref().map(|(model, tokenizer)| (model, tokenizer));
        let setup = Setup { models, pass, tokenizer, encoder };
        let began = Instant::now();
        let mut tell = |outcomes: &[TaskOutcome]| {
            arguments.files.write(global, &arguments.model, outcomes)?;
            output.add(|json| json["tasks"] = json_of(outcomes))
        };
        let outcomes = arguments.tasks.evaluate(global, &setup, &tasks, output, &mut tell)?;
        let seconds = began.elapsed().as_secs_f64();
        let questions: usize = outcomes.iter().map(|task| task.outcomes.len()).sum();
        let rate = questions as f64 / seconds;
        output.add(|json| {
            json["task_options"] = arguments.tasks.json(global);
            json["questions_per_second"] = json!(rate);
        })?;
        output.text(&text_of(&outcomes));
        let device = device.name();
        output.line(format!(
            "{questions} questions in {seconds:.2} s on {device}: {rate:.1} questions/s"
        ));
    }
    let seconds = start.elapsed();
    let mut json = output.finish();
    if !alone {
        json["ensemble"] = arguments.ensemble.json();
    }
    if let Loaded::Resident(model) = &loaded
        && let Some(experts) = experts_json(model)
    {
        json["experts"] = experts;
        tell_experts(model, output);
    }
    json["device"] = json!(device.name());
    json["seconds"] = json!(seconds.as_secs_f64());
    json["compute"] = json!(pass.compute.name());
    json["cache_type"] = json!(pass.compute.cache_type().name);
    output.json(&json)?;
    report_device(global, &device, output, seconds)
}

/// What was found before the rest was stopped.
fn so_far(found: &Value) -> String {
    let mut text = String::new();
    let number = |value: &Value| value.as_f64().map_or("-".into(), |value| format!("{value:.4}"));
    if let Some(figure) = found.get("perplexity") {
        let (value, error) = (number(&figure["value"]), number(&figure["stderr"]));
        let tokens = &figure["tokens_scored"];
        text += &format!("so far: perplexity {value} ± {error} ({tokens} tokens scored)\n");
    }
    for (name, task) in found["tasks"].as_object().into_iter().flatten() {
        let (acc, error, n) = (number(&task["acc"]), number(&task["acc_stderr"]), &task["n"]);
        text += &format!("so far: {name} acc {acc} ± {error} ({n} items)\n");
    }
    text
}
