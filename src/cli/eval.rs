//! `lopper eval`: how good a model is.

use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use super::output::Output;
use super::pair::Text;
use super::session::{compute, load_model, open_device, report_device};
use super::{Global, eval_base};
use crate::error::Result;
use crate::interrupt;
use crate::measure::{Convention, losses};
use crate::model::{Checkpoint, Pass, Weights};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// Compare with this model, its parent: divergence, change of perplexity
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
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
pub(super) enum ConventionName {
    Lopper,
    #[value(name = "llama.cpp")]
    LlamaCpp,
}

impl From<ConventionName> for Convention {
    fn from(name: ConventionName) -> Self {
        match name {
            ConventionName::Lopper => Convention::AllButFirst,
            ConventionName::LlamaCpp => Convention::SecondHalf,
        }
    }
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let text = Text {
        source: &arguments.ppl,
        ctx: arguments.ctx,
        max_tokens: arguments.max_tokens,
        convention: arguments.convention.into(),
    };
    if let Some(base) = &arguments.base {
        return eval_base::run(global, &arguments.model, base, &text, output);
    }
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let cut = text.cut(&checkpoint.tokenizer()?)?;
    let windows = cut.windows(&text)?;
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
    let start = Instant::now();
    let progress = |done: usize, total: usize| {
        output.progress("evaluating", done, total);
        interrupt::check()
    };
    let losses = losses(&model, &pass, &windows, progress)?;
    let figure = losses.perplexity();
    let bits = losses.bits_per_byte(windows.scored_bytes(&cut.ends));
    let seconds = start.elapsed();
    let used = windows.count() * arguments.ctx;
    let rate = used as f64 / seconds.as_secs_f64();
    output.json(&json!({
        "schema": 1, "model": arguments.model, "perplexity": figure, "bits_per_byte": bits, "text": arguments.ppl,
        "device": device.name(), "tokens_per_second": rate, "seconds": seconds.as_secs_f64(),
        "compute": pass.compute.name(),
    }))?;
    output.line(format!("{}: {figure}", arguments.model));
    if let Some(bits) = bits {
        output.line(bits.to_string());
    }
    output.line(format!(
        "{used} tokens in {:.2} s on {}: {rate:.0} tokens/s",
        seconds.as_secs_f64(),
        device.name()
    ));
    report_device(global, &device, output, seconds)
}
