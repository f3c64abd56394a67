//! `lopper chat`: a conversation over standard input and output, in the model's chat template.

use std::io::{BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::answer::Answer;
use super::drafts::{DraftArguments, acceptance_json, acceptance_text};
use super::sampling::{SamplingArguments, reason, sampling_json};
use crate::cli::Global;
use crate::cli::ensemble::EnsembleArguments;
use crate::cli::output::Output;
use crate::cli::session::{
    CacheArguments, compute, load_model, open_device, open_language_model, put_adapter,
    read_adapter, report_device,
};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Continuation, Generation, Pass, Weights, check_cache};
use crate::text::{StopStrings, Tokenizer};

/// Bytes of a line at most.
const MAX_LINE: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// A Hugging Face folder or a .gguf file with a chat template
    model: String,
    /// With the adapter in this folder beside its layers, as PEFT and `lopper tune` write it
    #[arg(long, value_name = "FOLDER")]
    lora: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheArguments,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Tokens of an answer at most; the model's context is the other limit
    #[arg(short, default_value_t = 512)]
    n: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    drafts: DraftArguments,
    #[command(flatten)]
    ensemble: EnsembleArguments,
}

pub(in crate::cli) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let sampling = arguments.sampling.sampling(global, output)?;
    let stops = arguments.sampling.stops()?;
    let checkpoint = open_language_model("MODEL", &arguments.model, output)?;
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint, false)?;
    let tokenizer = checkpoint.tokenizer()?;
    checkpoint
        .config()
        .without_encoder("MODEL", "a conversation goes on, and an encoder reads anew")?;
    let mut talk = Talk::new(&tokenizer, arguments.system.as_deref());
    // A template that is not there, or wrong, is told of before anything is loaded.
    talk.prompt("")?;
    let further = arguments.ensemble.open(&tokenizer, output)?;
    let drafts = arguments.drafts.open(&tokenizer, output)?;
    let context = further.context(checkpoint.config().max_positions);
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?.with_cache(arguments.cache.cache_type);
    check_cache(checkpoint.config(), compute)?;
    let mut model = load_model(global, &device, &checkpoint, compute, &[1], output)?;
    put_adapter(&device, &mut model, &checkpoint, adapter.as_ref())?;
    let others = further.load(global, &device, (&checkpoint, compute), output)?;
    let draft = drafts.load(global, &device, compute, output)?;
    let pass = Pass { device: &device, compute };
    let mut continuation = Continuation::new(others.with(&model), pass, sampling, context)
        .speculating(drafts.speculation(draft.as_ref()));
    let terminal = std::io::stdin().is_terminal() && !global.quiet;
    if terminal {
        output.note("/reset begins again, /exit ends; Ctrl-C stops an answer");
    }
    let start = std::time::Instant::now();
    let mut turns: Vec<Value> = Vec::new();
    while let Some(line) = next_line(terminal, output)? {
        match line.trim() {
            "" => continue,
            "/exit" => break,
            "/reset" => {
                talk.messages.truncate(talk.first);
                continue;
            }
            _ => {}
        }
        let prompt = talk.prompt(&line)?;
        if prompt.len() >= context {
            let tokens = prompt.len();
            let note = "the conversation has no room in the model's context";
            output.note(format!(
                "warning: {note}: {tokens} of {context} tokens; /reset begins again"
            ));
            continue;
        }
        let count = arguments.n.min(context - prompt.len());
        let mut answer = Answer::new(output, &tokenizer, stops.clone());
        interrupt::answer_begins();
        let generation = continuation.run(
            &prompt,
            count,
            |id| tokenizer.is_eos(id),
            |token| Ok(answer.push(token)? && !interrupt::answer_stopped()),
        );
        interrupt::answer_ends();
        let (text, stops) = answer.finish()?;
        let generation = generation?;
        tell(global, &generation, output);
        turns.push(turn_json(&line, &text, prompt.len(), &generation, &stops));
        talk.add(line, text);
    }
    output.json(&json!({
        "schema": 1, "model": arguments.model, "device": device.name(), "cache_type": compute.cache_type().name,
        "sampling": sampling_json(&sampling), "ensemble": arguments.ensemble.json(), "turns": turns,
    }))?;
    report_device(global, &device, output, start.elapsed())
}

/// A conversation so far: who said what.
struct Talk<'a> {
    tokenizer: &'a Tokenizer,
    messages: Vec<(&'static str, String)>,
    /// Messages that a reset keeps.
    first: usize,
}

impl<'a> Talk<'a> {
    fn new(tokenizer: &'a Tokenizer, system: Option<&str>) -> Self {
        let messages: Vec<_> =
            system.map(|text| ("system", text.to_string())).into_iter().collect();
        Self { tokenizer, first: messages.len(), messages }
    }

    /// The tokens of the conversation with a user's next message, up to where the model is to answer.
    fn prompt(&self, line: &str) -> Result<Vec<u32>> {
        let mut messages = self.messages.clone();
        messages.push(("user", line.into()));
        // A renderer a turn: Ctrl-C in a terminal ends its process too.
        self.tokenizer.encode(&self.tokenizer.render_chat(&messages, true)?, true)
    }

    fn add(&mut self, line: String, answer: String) {
        self.messages.push(("user", line));
        self.messages.push(("assistant", answer));
    }
}

/// The next line of standard input, without its end; none at the end.
fn next_line(terminal: bool, output: &Output) -> Result<Option<String>> {
    if terminal {
        output.text("> ");
    }
    interrupt::check()?;
    let place = || Path::new("standard input").to_path_buf();
    let mut line = String::new();
    let read = std::io::stdin().lock().take(MAX_LINE).read_line(&mut line);
    let read = read.map_err(|source| Error::Read { path: place(), source })?;
    if read as u64 == MAX_LINE && !line.ends_with('\n') {
        return Err(Error::Malformed {
            path: place(),
            what: "a line".into(),
            offset: None,
            expected: format!("less than {MAX_LINE} bytes"),
            found: "more".into(),
        });
    }
    let text = line.trim_end_matches(['\n', '\r']).to_string();
    Ok((read > 0).then_some(text))
}

/// With `-v`, how an answer went.
fn tell(global: &Global, generation: &Generation, output: &Output) {
    if global.verbose == 0 {
        return;
    }
    let Generation { tokens, reused, prompt_seconds, seconds, acceptance, .. } = generation;
    let rate = tokens.len().saturating_sub(1) as f64 / seconds.max(1e-9);
    output.note(format!(
        "first token after {prompt_seconds:.3} s ({reused} tokens were in the cache), then {rate:.1} tokens/s"
    ));
    if let Some(text) = acceptance_text(*acceptance) {
        output.note(text);
    }
}

fn turn_json(
    line: &str,
    text: &str,
    prompt_tokens: usize,
    generation: &Generation,
    stops: &StopStrings,
) -> Value {
    json!({
        "user": line, "assistant": text, "prompt_tokens": prompt_tokens, "reused_tokens": generation.reused,
        "tokens": generation.tokens, "stop_reason": reason(generation.ending, stops),
        "prompt_seconds": generation.prompt_seconds, "seconds": generation.seconds,
        "speculation": acceptance_json(generation.acceptance),
    })
}
