//! `lopper eval`: how good a model is.

use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use super::Global;
use super::output::Output;
use super::session::{compute, load_model, open_device, report_device};
use crate::data::read_text;
use crate::error::Result;
use crate::interrupt;
use crate::measure::{Convention, perplexity};
use crate::model::{Checkpoint, Pass, Weights};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// Measure perplexity on this text: a file, or embedded:heldout-2026, embedded:heldout-older, embedded:calibration
    #[arg(long, value_name = "FILE", required = true)]
    ppl: String,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    ctx: usize,
    /// Use the text's first tokens only
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Which tokens are scored: all but each window's first, or llama-perplexity's second halves
    #[arg(long, default_value = "lopper")]
    convention: ConventionName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ConventionName {
    Lopper,
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let tokenizer = checkpoint.tokenizer()?;
    let text = read_text(&arguments.ppl)?;
    let convention = match arguments.convention {
        ConventionName::Lopper => Convention::AllButFirst,
        ConventionName::LlamaCpp => Convention::SecondHalf,
    };
    // llama-perplexity cuts its windows from a text that begins with BOS, where the vocabulary asks for it.
    let mut tokens = tokenizer.encode(&text, convention == Convention::SecondHalf)?;
    tokens.truncate(arguments.max_tokens.unwrap_or(usize::MAX));
    if let Some(warning) = checkpoint.config().beyond_context(arguments.ctx) {
        output.note(format!("warning: {warning}"));
    }
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?;
    let tokens_at_once = [arguments.ctx];
    let model = load_model(
        global,
        &device,
        &checkpoint,
        compute,
        &tokens_at_once,
        output,
    )?;
    let pass = Pass {
        device: &device,
        compute,
    };
    let bos = tokenizer.bos.filter(|_| tokenizer.add_bos);
    let start = Instant::now();
    let progress = |done: usize, total: usize| {
        output.progress("evaluating", done, total);
        interrupt::check()
    };
    let figure = perplexity(
        &model,
        &pass,
        &tokens,
        arguments.ctx,
        convention,
        bos,
        progress,
    )?;
    let seconds = start.elapsed();
    let used = tokens.len() / arguments.ctx * arguments.ctx;
    let rate = used as f64 / seconds.as_secs_f64();
    output.json(&json!({
        "schema": 1, "model": arguments.model, "perplexity": figure, "text": arguments.ppl,
        "device": device.name(), "tokens_per_second": rate, "seconds": seconds.as_secs_f64(),
        "compute": pass.compute.name(),
    }))?;
    output.line(format!("{}: {figure}", arguments.model));
    output.line(format!(
        "{used} tokens in {:.2} s on {}: {rate:.0} tokens/s",
        seconds.as_secs_f64(),
        device.name()
    ));
    report_device(global, &device, output, seconds)
}
