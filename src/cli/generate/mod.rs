//! `lopper generate` and `lopper chat`: continue a text, and a conversation.

mod answer;
mod best;
pub(super) mod chat;
mod drafts;
pub(super) mod sampling;

use std::path::PathBuf;

use serde_json::json;

use self::answer::Answer;
use self::best::BestArguments;
use self::drafts::{DraftArguments, acceptance_json, acceptance_text};
use self::sampling::{SamplingArguments, reason, sampling_json};
use super::Global;
use super::ensemble::EnsembleArguments;
use super::output::Output;
use super::session::{
    CacheArguments, compute, experts_json, load_model, open_device, open_language_model,
    put_adapter, read_adapter, report_device, tell_experts,
};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Continuation, Ending, Pass, Weights, check_cache, paired_row};
use crate::text::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// With the adapter in this folder beside its layers, as PEFT and `lopper tune` write it
    #[arg(long, value_name = "FOLDER")]
    lora: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArguments,
    /// The text to continue
    #[arg(long, allow_hyphen_values = true, required_unless_present = "prompts")]
    prompt: Option<String>,
    /// New tokens at most; the model's context is the other limit
    #[arg(short, default_value_t = 128)]
    n: usize,
    /// Put the prompt through the model's chat template, as a user's message
    #[arg(long)]
    chat: bool,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    drafts: DraftArguments,
    #[command(flatten)]
    ensemble: EnsembleArguments,
    #[command(flatten)]
    best: BestArguments,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let sampling = arguments.sampling.sampling(global, output)?;
    let stops = arguments.sampling.stops()?;
    if arguments.best.is_given() {
        return best::run(global, arguments, output);
    }
    let text = arguments.prompt.as_deref().unwrap_or_default();
    let checkpoint = open_language_model("MODEL", &arguments.model, output)?;
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint, false)?;
    let tokenizer = checkpoint.tokenizer()?;
    let further = arguments.ensemble.open(&tokenizer, output)?;
    let drafts = arguments.drafts.open(&tokenizer, output)?;
    let context = further.context(checkpoint.config().max_positions);
    let config = checkpoint.config();
    let read = prompt(text, arguments.chat, context, &tokenizer)?;
    // What an encoder reads takes nothing of the decoder's context.
    let (prompt, count) = match config.encoder {
        None => (read.clone(), arguments.n.min(context - read.len())),
        Some(_) => (paired_row(config, &read, &[], read.len() + 1), arguments.n.min(context)),
    };
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?.with_cache(arguments.cache.cache_type);
    check_cache(checkpoint.config(), compute)?;
    let tokens = [1, prompt.len()];
    let mut model = load_model(global, &device, &checkpoint, compute, &tokens, output)?;
    put_adapter(&device, &mut model, &checkpoint, adapter.as_ref())?;
    let others = further.load(global, &device, (&checkpoint, compute), output)?;
    let draft = drafts.load(global, &device, compute, output)?;
    let pass = Pass { device: &device, compute };
    // With the first token: a line that is open leaves no room to say that a long prompt is being read.
    let mut shown = arguments.chat || config.encoder.is_some();
    let mut show_prompt = || {
        if !std::mem::replace(&mut shown, true) {
            output.text(text);
        }
    };
    output.progress("reading the prompt", 0, 0);
    let mut answer = Answer::new(output, &tokenizer, stops);
    let start = std::time::Instant::now();
    let capacity = prompt.len() + count;
    let result = Continuation::new(others.with(&model), pass, sampling, capacity)
        .speculating(drafts.speculation(draft.as_ref()))
        .run(
            &prompt,
            count,
            |id| tokenizer.is_eos(id),
            |token| {
                show_prompt();
                let more = answer.push(token)?;
                interrupt::check()?;
                Ok(more)
            },
        );
    show_prompt();
    let (text, stops) = answer.finish()?;
    let generation = result?;
    let rate = generation.tokens.len().saturating_sub(1) as f64 / generation.seconds.max(1e-9);
    let mut json = json!({
        "schema": 1, "model": arguments.model, "prompt": arguments.prompt, "text": text,
        "prompt_tokens": read, "tokens": generation.tokens, "device": device.name(), "cache_type": compute.cache_type().name,
        "prompt_seconds": generation.prompt_seconds, "tokens_per_second": rate,
        "stop_reason": reason(generation.ending, &stops), "sampling": sampling_json(&sampling),
        "ensemble": arguments.ensemble.json(), "speculation": acceptance_json(generation.acceptance),
    });
    if let Some(experts) = experts_json(&model) {
        json["experts"] = experts;
    }
    output.json(&json)?;
    tell_experts(&model, output);
    if global.verbose > 0 {
        output.note(format!(
            "{} prompt tokens in {:.3} s, then {rate:.1} tokens/s on {}",
            read.len(),
            generation.prompt_seconds,
            device.name(),
        ));
        if let Some(text) = acceptance_text(generation.acceptance) {
            output.note(text);
        }
    }
    if count < arguments.n && generation.ending == Ending::Count {
        output.note(format!("note: stopped at the model's context of {context} tokens"));
    }
    report_device(global, &device, output, start.elapsed())
}

/// The prompt's tokens, as many as a context holds.
fn prompt(text: &str, chat: bool, context: usize, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = match chat {
        true => tokenizer.render_chat(&[("user", text)], true)?,
        false => text.to_string(),
    };
    let prompt = match tokenizer.decoder_start {
        None => tokenizer.encode(&text, true)?,
        Some(_) => tokenizer.encode_source(&text)?,
    };
    if prompt.is_empty() || prompt.len() > context {
        return Err(Error::Argument {
            argument: "--prompt".into(),
            expected: format!("1 to {context} tokens, the model's context"),
            found: format!("{} tokens", prompt.len()),
        });
    }
    Ok(prompt)
}
