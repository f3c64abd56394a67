//! `lopper generate`: continues a text.

use std::path::PathBuf;

use serde_json::json;

use super::Global;
use super::output::Output;
use super::session::{
    CacheArguments, compute, load_model, open_device, open_model, put_adapter, read_adapter,
    report_device,
};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Pass, Sampling, Weights, check_cache, generate};

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
    #[arg(long, allow_hyphen_values = true)]
    prompt: String,
    /// New tokens at most; the model's context is the other limit
    #[arg(short, default_value_t = 128)]
    n: usize,
    /// Put the prompt through the model's chat template, as a user's message
    #[arg(long)]
    chat: bool,
    /// Draw from softmax(logits / temperature) instead of taking the likeliest token (0)
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let sampling = match arguments.temperature {
        0.0 => Sampling::Greedy,
        temperature if temperature > 0.0 && temperature.is_finite() => {
            Sampling::Temperature { temperature, seed: global.seed.unwrap_or(0) }
        }
        temperature => {
            return Err(Error::Argument {
                argument: "--temperature".into(),
                expected: "0 or a positive number".into(),
                found: temperature.to_string(),
            });
        }
    };
    let checkpoint = open_model(&arguments.model, output)?;
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint)?;
    let tokenizer = checkpoint.tokenizer()?;
    let text = if arguments.chat {
        tokenizer.render_chat(&[("user", arguments.prompt.as_str())], true)?
    } else {
        arguments.prompt.clone()
    };
    let prompt = tokenizer.encode(&text, true)?;
    let context = checkpoint.config().max_positions;
    if prompt.is_empty() || prompt.len() > context {
        return Err(Error::Argument {
            argument: "--prompt".into(),
            expected: format!("1 to {context} tokens, the model's context"),
            found: format!("{} tokens", prompt.len()),
        });
    }
    let count = arguments.n.min(context - prompt.len());
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?.with_cache(arguments.cache.cache_type);
    check_cache(checkpoint.config(), compute)?;
    let tokens = [1, prompt.len()];
    let mut model = load_model(global, &device, &checkpoint, compute, &tokens, output)?;
    put_adapter(&device, &mut model, adapter.as_ref())?;
    let pass = Pass { device: &device, compute };
    // With the first token: a line that is open leaves no room to say that a long prompt is being read.
    let mut shown = arguments.chat;
    let mut show_prompt = || {
        if !std::mem::replace(&mut shown, true) {
            output.text(&arguments.prompt);
        }
    };
    output.progress("reading the prompt", 0, 0);
    let mut stream = tokenizer.decode_stream(true);
    let mut continuation = String::new();
    let start = std::time::Instant::now();
    let result = generate(
        &model,
        &pass,
        &prompt,
        count,
        sampling,
        |id| tokenizer.is_eos(id),
        |token| {
            show_prompt();
            let piece = stream.push(token)?;
            output.text(&piece);
            continuation.push_str(&piece);
            interrupt::check()
        },
    );
    show_prompt();
    let rest = stream.finish()?;
    continuation.push_str(&rest);
    output.line(&rest);
    let generation = result?;
    let rate = generation.tokens.len().saturating_sub(1) as f64 / generation.seconds.max(1e-9);
    output.json(&json!({
        "schema": 1, "model": arguments.model, "prompt": arguments.prompt, "text": continuation,
        "prompt_tokens": prompt, "tokens": generation.tokens, "device": device.name(), "cache_type": compute.cache_type().name,
        "prompt_seconds": generation.prompt_seconds, "tokens_per_second": rate,
    }))?;
    if global.verbose > 0 {
        output.note(format!(
            "{} prompt tokens in {:.3} s, then {rate:.1} tokens/s on {}",
            prompt.len(),
            generation.prompt_seconds,
            device.name(),
        ));
    }
    if count < arguments.n && generation.tokens.len() == count {
        output.note(format!("note: stopped at the model's context of {context} tokens"));
    }
    report_device(global, &device, output, start.elapsed())
}
