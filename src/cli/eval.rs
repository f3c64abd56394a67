//! `lopper eval`: how good a model is.

use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use super::Global;
use super::eval_tasks::{TaskArguments, json_of, text_of};
use super::output::Output;
use super::session::{compute, load_model, open_device, report_device};
use crate::data::read_text;
use crate::error::Result;
use crate::interrupt;
use crate::measure::tasks::Setup;
use crate::measure::{Convention, perplexity};
use crate::model::{Checkpoint, Pass, Weights};

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("measured").args(["ppl", "task"]).required(true).multiple(true)))]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// Measure perplexity on this text: a file, or embedded:heldout-2026, embedded:heldout-older, embedded:calibration
    #[arg(long, value_name = "FILE")]
    ppl: Option<String>,
    /// Tokens of a window
    #[arg(long, default_value_t = 512)]
    ctx: usize,
    /// Use the text's first tokens only
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Which tokens are scored: all but each window's first, or llama-perplexity's second halves
    #[arg(long, default_value = "lopper")]
    convention: ConventionName,
    #[command(flatten)]
    tasks: TaskArguments,
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
    let tasks = arguments.tasks.read()?;
    let convention = match arguments.convention {
        ConventionName::Lopper => Convention::AllButFirst,
        ConventionName::LlamaCpp => Convention::SecondHalf,
    };
    // llama-perplexity cuts its windows from a text that begins with BOS, where the vocabulary asks for it.
    let with_bos = convention == Convention::SecondHalf;
    let tokens = match &arguments.ppl {
        None => None,
        Some(ppl) => {
            let mut tokens = tokenizer.encode(&read_text(ppl)?, with_bos)?;
            tokens.truncate(arguments.max_tokens.unwrap_or(usize::MAX));
            if let Some(warning) = checkpoint.config().beyond_context(arguments.ctx) {
                output.note(format!("warning: {warning}"));
            }
            Some(tokens)
        }
    };
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
    let mut json = json!({ "schema": 1, "model": arguments.model });
    if let Some(tokens) = tokens {
        let progress = |done: usize, total: usize| {
            output.progress("evaluating", done, total);
            interrupt::check()
        };
        let ctx = arguments.ctx;
        let figure = perplexity(&model, &pass, &tokens, ctx, convention, bos, progress)?;
        let seconds = start.elapsed().as_secs_f64();
        let used = tokens.len() / ctx * ctx;
        let rate = used as f64 / seconds;
        json["perplexity"] = json!(figure);
        json["text"] = json!(arguments.ppl);
        json["tokens_per_second"] = json!(rate);
        output.line(format!("{}: {figure}", arguments.model));
        let device = device.name();
        output.line(format!(
            "{used} tokens in {seconds:.2} s on {device}: {rate:.0} tokens/s"
        ));
    }
    if !tasks.is_empty() {
        let (model, pass, tokenizer) = (&model, &pass, &tokenizer);
        let setup = Setup {
            model,
            pass,
            tokenizer,
        };
        let began = Instant::now();
        let outcomes = arguments.tasks.evaluate(global, &setup, &tasks, output)?;
        let seconds = began.elapsed().as_secs_f64();
        let questions: usize = outcomes.iter().map(|task| task.outcomes.len()).sum();
        let rate = questions as f64 / seconds;
        json["tasks"] = json_of(&outcomes);
        json["task_options"] = arguments.tasks.json(global);
        json["questions_per_second"] = json!(rate);
        output.text(&text_of(&outcomes));
        let device = device.name();
        output.line(format!(
            "{questions} questions in {seconds:.2} s on {device}: {rate:.1} questions/s"
        ));
    }
    let seconds = start.elapsed();
    json["device"] = json!(device.name());
    json["seconds"] = json!(seconds.as_secs_f64());
    json["compute"] = json!(pass.compute.name());
    output.json(&json)?;
    report_device(global, &device, output, seconds)
}
