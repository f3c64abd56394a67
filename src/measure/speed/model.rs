//! How fast a model runs: prompt tokens and generated tokens per second, as llama-bench counts them.

use std::time::{Duration, Instant};

use crate::device::Runner;
use crate::error::Result;
use crate::interrupt;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::model::{Cache, Decoder, Model, Pass};
use crate::tensor::DType;

/// A test in llama-bench's terms. Prompts are synthetic; tokenization is not timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Prompt tokens, processed in one pass.
    pub n_prompt: usize,
    /// Generated tokens, one pass each, the likeliest after the ones before.
    pub n_gen: usize,
    /// Tokens in the cache before.
    pub n_depth: usize,
    /// Sequences side by side: each has the prompt, the new tokens and the depth.
    pub sequences: usize,
    /// The prompts go forward and back, with every gradient; nothing is generated.
    pub backward: bool,
}

impl Test {
    /// llama-bench's name: `pp512`, `tg128`, `pp512 @ d1024`; of several sequences `tg128 x8`.
    /// Forward and backward passes: `bw10x64`.
    pub fn name(&self) -> String {
        if self.backward {
            return format!("bw{}x{}", self.sequences, self.n_prompt);
        }
        let test = match (self.n_prompt, self.n_gen) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, generated) => format!("tg{generated}"),
            (prompt, generated) => format!("pp{prompt}+tg{generated}"),
        };
        let depth = if self.n_depth > 0 { format!(" @ d{}", self.n_depth) } else { String::new() };
        let beside =
            if self.sequences > 1 { format!(" x{}", self.sequences) } else { String::new() };
        format!("{test}{depth}{beside}")
    }

    /// Tokens that are counted, those of all sequences.
    pub fn tokens(&self) -> usize {
        (self.n_prompt + self.n_gen) * self.sequences
    }
}

/// What a test came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Speed {
    /// Seconds of each run.
    pub seconds: Vec<f64>,
    /// Dispatches of a generated token; `None` where none was recorded.
    pub dispatches: Option<usize>,
}

/// Pipelines that are there.
fn pipelines(pass: &Pass<'_>) -> usize {
    pass.device.runner().map_or(0, Runner::pipelines)
}

/// How long after a model's first run, or a test's first run with shaders that are new to it, runs are not counted, on hardware: the first model on a machine runs at a third of its rate for some
/// seconds, other programs' models likewise, most likely as long as the driver has only its first pipelines of shaders that are new to it
/// (NVIDIA's; two seconds were too few).
const WARM_UP: Duration = Duration::from_secs(8);
/// They go on while the last one took less than this share of the one before, and at most this long.
const QUICKER: f64 = 0.95;
const LONGEST_WARM_UP: Duration = Duration::from_secs(20);

/// Whether runs are counted from now on, by when the model's first began and what a test's took.
fn is_warm(pass: &Pass<'_>, began: Instant, seconds: &[f64]) -> bool {
    let Some(last) = seconds.last() else { return false };
    if pass.device.gpu().is_none_or(|_| pass.device.capabilities().processor) {
        return true;
    }
    let still = seconds.len() < 2 || *last < QUICKER * seconds[seconds.len() - 2];
    let gone = began.elapsed();
    gone >= LONGEST_WARM_UP || (gone >= WARM_UP && !still)
}

/// The speed of `repetitions` runs, after some that are not counted: one, or on hardware as many as it takes until they get no quicker
/// and some seconds are over since `began`, when the model's first test did, or since this one did, where it was the first with some shader.
/// A pass ends when its last token's logits have been read back, as a sampler needs them.
pub fn speed(
    model: &Model,
    pass: &Pass<'_>,
    test: Test,
    repetitions: usize,
    began: Instant,
) -> Result<Speed> {
    let (known, own) = (pipelines(pass), Instant::now());
    let began = || if pipelines(pass) > known { own } else { began };
    if test.backward {
        let seconds = backward(model, pass, test, repetitions, &began)?;
        return Ok(Speed { seconds, dispatches: None });
    }
    let capacity = test.n_depth + test.n_prompt + test.n_gen;
    let sequences = test.sequences;
    let mut cache = Cache::new(pass.device, model.config(), sequences, capacity, pass.compute)?;
    let (mut seconds, mut dispatches) = (Vec::new(), None);
    let mut warm = false;
    while seconds.len() < repetitions || !warm {
        cache.clear(pass.device)?;
        if test.n_depth > 0 {
            step(model, pass, &mut cache, &synthetic(model, sequences * test.n_depth, 0))?;
        }
        let start = Instant::now();
        if test.n_prompt > 0 {
            let prompts = synthetic(model, sequences * test.n_prompt, test.n_depth);
            step(model, pass, &mut cache, &prompts)?;
        }
        if test.n_gen > 0 {
            let next = synthetic(model, sequences, test.n_depth + test.n_prompt);
            let mut decoder = Decoder::new(model, *pass, cache, &next)?;
            decoder.run(test.n_gen, &mut |_| Ok(true))?;
            dispatches = decoder.dispatches();
            cache = decoder.into_cache();
        }
        seconds.push(start.elapsed().as_secs_f64());
        if !warm && is_warm(pass, began(), &seconds) {
            (seconds, warm) = (Vec::with_capacity(repetitions), true);
        }
    }
    Ok(Speed { seconds, dispatches })
}

/// Times forward and backward passes; a pass ends when the last gradient, the embedding's, has been computed.
fn backward(
    model: &Model,
    pass: &Pass<'_>,
    test: Test,
    repetitions: usize,
    began: &dyn Fn() -> Instant,
) -> Result<Vec<f64>> {
    let ids = synthetic(model, test.tokens(), 0);
    let (mut seconds, mut warm) = (Vec::new(), false);
    while seconds.len() < repetitions || !warm {
        let (start, mut last) = (Instant::now(), None);
        model.gradients(pass, &ids, test.sequences, &mut |gradient| {
            interrupt::check()?;
            last = Some(gradient.values);
            Ok(())
        })?;
        if let Some(last) = last {
            // One word of it: the whole would take longer to read back than to compute.
            let word = pass.device.allocate(DType::F32, &[1, 1], "a value")?;
            rows(pass.device, &last, &word, 1, &Rows::upload(pass.device, &[(0, 0)])?)?;
            pass.device.read(&word)?;
        }
        seconds.push(start.elapsed().as_secs_f64());
        if !warm && is_warm(pass, began(), &seconds) {
            (seconds, warm) = (Vec::with_capacity(repetitions), true);
        }
    }
    Ok(seconds)
}

/// One pass over `ids`, of every sequence as many, up to the logits of each one's last.
fn step(model: &Model, pass: &Pass<'_>, cache: &mut Cache, ids: &[u32]) -> Result<()> {
    interrupt::check()?;
    let normed = model.hidden(pass, ids, cache)?;
    let (sequences, length) = (cache.lengths().len(), ids.len() / cache.lengths().len());
    let last = |sequence: usize| (sequence + 1) * length - 1;
    let of_each: Vec<_> = (0..sequences)
        .map(|sequence| model.head(pass, &normed, last(sequence)..last(sequence) + 1))
        .map(|logits| pass.device.read_later(&logits?))
        .collect::<Result<_>>()?;
    cache.advance(pass.device, length)?;
    of_each.into_iter().try_for_each(|logits| pass.device.finish(logits).map(drop))
}

/// Token ids that are the same every time and differ from place to place.
fn synthetic(model: &Model, count: usize, start: usize) -> Vec<u32> {
    let vocabulary = model.config().vocab_size as u64;
    (start..start + count)
        .map(|place| ((place as u64 * 2_654_435_761) % vocabulary) as u32)
        .collect()
}
