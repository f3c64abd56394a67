//! Best-of-N: several texts are drawn for a prompt, and reward models say which is given.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::sampling::sampling_json;
use super::{Arguments, prompt};
use crate::cli::Global;
use crate::cli::output::Output;
use crate::cli::rewards::Rewards;
use crate::cli::session::{
    compute, load_model, open_device, open_language_model, put_adapter, read_adapter, report_device,
};
use crate::data::training::prompts;
use crate::disk::Target;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{Pass, Sampling, Weights, check_cache, generate_batch};
use crate::text::AnswerStream;

/// Texts that are drawn side by side.
const AT_ONCE: usize = 512;

#[derive(Debug, clap::Args)]
pub(super) struct BestArguments {
    /// Draw so many texts and give the one that --reward scores highest
    #[arg(long, value_name = "N", requires = "reward", value_parser = clap::value_parser!(u64).range(2..=4096))]
    best_of: Option<u64>,
    /// The reward model; several: the mean of their scores
    #[arg(long, value_name = "MODEL", requires = "best_of")]
    reward: Vec<String>,
    /// Instead of --prompt those of JSON lines with `prompt`, or of a task's questions
    #[arg(long, value_name = "FILE or TASK", requires = "best_of", conflicts_with = "prompt")]
    prompts: Option<String>,
    /// The first prompts only
    #[arg(long, value_name = "N", requires = "prompts", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Write every text with its score, as JSON lines that eval --candidates reads
    #[arg(long, value_name = "FILE.jsonl", requires = "best_of")]
    out: Option<PathBuf>,
}

impl BestArguments {
    pub(super) fn is_given(&self) -> bool {
        self.best_of.is_some()
    }
}

/// A prompt with what was drawn for it.
struct Drawn {
    prompt: String,
    texts: Vec<String>,
    scores: Vec<f64>,
}

impl Drawn {
    /// The place of the highest score, of several the first.
    fn best(&self) -> usize {
        let better = |best: usize, place: usize| {
            if self.scores[place] > self.scores[best] { place } else { best }
        };
        (1..self.scores.len()).fold(0, better)
    }
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let BestArguments { best_of, reward, prompts: many, limit, out } = &arguments.best;
    let count = best_of.unwrap_or(2) as usize;
    let sampling = arguments.sampling.sampling(global, output)?;
    refuse(arguments, &sampling)?;
    let checkpoint = open_language_model("MODEL", &arguments.model, output)?;
    let why = "texts are drawn side by side behind one prompt";
    checkpoint.config().without_encoder("--best-of", why)?;
    let target = out.as_ref().map(|path| Target {
        path,
        force: output.force(),
        folder: false,
        model: checkpoint.path(),
    });
    target.as_ref().map_or(Ok(()), Target::check)?;
    let names: Vec<&str> = reward.iter().map(String::as_str).collect();
    let rewards = Rewards::open("--reward", &names, output)?;
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint, false)?;
    let (tokenizer, of_rewards) = (checkpoint.tokenizer()?, rewards.tokenizer()?);
    let mut all = match many {
        Some(source) => prompts(source)?,
        None => vec![arguments.prompt.clone().unwrap_or_default()],
    };
    all.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
    let context = checkpoint.config().max_positions;
    let read = |text: &String| prompt(text, arguments.chat, context, &tokenizer);
    let read = all.iter().map(read).collect::<Result<Vec<_>>>()?;
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?.with_cache(arguments.cache.cache_type);
    check_cache(checkpoint.config(), compute)?;
    let mut model = load_model(global, &device, &checkpoint, compute, &[], output)?;
    put_adapter(&device, &mut model, &checkpoint, adapter.as_ref())?;
    let pass = Pass { device: &device, compute };
    let judging = Pass { compute: compute.with_cache(None), ..pass };
    let judges = rewards.load(global, &judging, output)?;
    let start = Instant::now();
    let mut drawn = Vec::with_capacity(all.len());
    let groups = all.chunks((AT_ONCE / count).max(1)).zip(read.chunks((AT_ONCE / count).max(1)));
    for (group, (texts, tokens)) in groups.enumerate() {
        interrupt::check()?;
        output.progress("drawing texts", drawn.len(), all.len());
        let rows: Vec<&[u32]> =
            tokens.iter().flat_map(|ids| std::iter::repeat_n(ids.as_slice(), count)).collect();
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let new = arguments.n.min(context.saturating_sub(longest));
        // Rows differ by 2^32, groups by one.
        let sampling = Sampling { seed: sampling.seed.wrapping_add(group as u64), ..sampling };
        let mut streams: Vec<_> = Vec::with_capacity(rows.len());
        for _ in &rows {
            let stops = arguments.sampling.stops()?;
            streams.push((AnswerStream::new(&tokenizer, stops), String::new()));
        }
        generate_batch(&model, &pass, &rows, new, sampling, |row, token| {
            interrupt::check()?;
            if tokenizer.is_eos(token) {
                return Ok(true);
            }
            let (stream, text) = &mut streams[row];
            text.push_str(&stream.push(token)?);
            Ok(stream.stopped())
        })?;
        let mut answers = Vec::with_capacity(rows.len());
        for (stream, text) in streams {
            answers.push(text + &stream.finish()?.0);
        }
        for (prompt, answers) in texts.iter().zip(answers.chunks_exact(count)) {
            let (prompt, texts) = (prompt.clone(), answers.to_vec());
            drawn.push(Drawn { prompt, texts, scores: Vec::new() });
        }
    }
    let reading = rewards.reading(&of_rewards)?;
    let mut whole = Vec::new();
    for one in &drawn {
        for text in &one.texts {
            whole.push(reading.whole(&format!("{}{text}", one.prompt))?.0);
        }
    }
    let texts: Vec<&[u32]> = whole.iter().map(Vec::as_slice).collect();
    let scores = judges.scores(&judging, &texts, output)?;
    for (one, scores) in drawn.iter_mut().zip(scores.chunks_exact(count)) {
        one.scores = scores.to_vec();
    }
    if let Some(target) = target {
        let line = |one: &Drawn| {
            let line =
                json!({"prompt": one.prompt, "completions": one.texts, "rewards": one.scores});
            format!("{line}\n")
        };
        let text: String = drawn.iter().map(line).collect();
        target.write(|path| std::fs::write(path, text).map_err(Error::write(path)))?;
    }
    for one in &drawn {
        output.line(format!("{}{}", one.prompt, one.texts[one.best()]));
    }
    let json_of = |one: &Drawn| -> Value {
        json!({
            "prompt": one.prompt, "text": one.texts[one.best()], "best": one.best(), "completions": one.texts,
            "rewards": one.scores,
        })
    };
    output.json(&json!({
        "schema": 1, "model": arguments.model, "reward_models": reward, "best_of": count, "device": device.name(),
        "sampling": sampling_json(&sampling), "seconds": start.elapsed().as_secs_f64(),
        "prompts": drawn.iter().map(json_of).collect::<Vec<_>>(),
    }))?;
    report_device(global, &device, output, start.elapsed())
}

/// Refuses what makes all texts the same, or makes them in another way.
fn refuse(arguments: &Arguments, sampling: &Sampling) -> Result<()> {
    let wrong = |argument: &str, expected: &str, found: &str| {
        let (argument, expected) = (argument.into(), expected.into());
        Err(Error::Argument { argument, expected, found: found.into() })
    };
    if sampling.is_greedy() {
        let expected = "more than 0 beside --best-of: texts that are drawn";
        return wrong("--temperature", expected, "0, which gives the same text each time");
    }
    if arguments.drafts.is_given() || !arguments.ensemble.is_empty() {
        return wrong("--best-of", "no draft, expert or ensemble beside it", "one of these");
    }
    Ok(())
}
