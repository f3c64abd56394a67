//! How fast a model runs: prompt tokens and generated tokens per second, as llama-bench counts them.

use std::time::Instant;

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
    /// Sequences of `n_prompt` tokens that go forward and back, with every gradient; 0: the prompt goes forward only.
    pub sequences: usize,
}

impl Test {
    /// llama-bench's name: `pp512`, `tg128`, `pp512 @ d1024`.
    /// Forward and backward passes: `bw10x64`.
    pub fn name(&self) -> String {
        if self.sequences > 0 {
            return format!("bw{}x{}", self.sequences, self.n_prompt);
        }
        let test = match (self.n_prompt, self.n_gen) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, generated) => format!("tg{generated}"),
            (prompt, generated) => format!("pp{prompt}+tg{generated}"),
        };
        if self.n_depth > 0 { format!("{test} @ d{}", self.n_depth) } else { test }
    }

    /// Tokens that are counted.
    pub fn tokens(&self) -> usize {
        self.n_prompt * self.sequences.max(1) + self.n_gen
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

/// The speed of `repetitions` runs, after one that is not counted. A pass ends when its last token's logits have
/// been read back, as a sampler needs them.
pub fn speed(model: &Model, pass: &Pass<'_>, test: Test, repetitions: usize) -> Result<Speed> {
    if test.sequences > 0 {
        let seconds = backward(model, pass, test, repetitions)?;
        return Ok(Speed { seconds, dispatches: None });
    }
    let capacity = test.n_depth + test.tokens();
    let mut cache = Cache::new(pass.device, model.config(), 1, capacity, pass.compute)?;
    let (mut seconds, mut dispatches) = (Vec::with_capacity(repetitions), None);
    for repetition in 0..=repetitions {
        cache.clear(pass.device)?;
        if test.n_depth > 0 {
            step(model, pass, &mut cache, &synthetic(model, test.n_depth, 0))?;
        }
        let start = Instant::now();
        if test.n_prompt > 0 {
            step(model, pass, &mut cache, &synthetic(model, test.n_prompt, test.n_depth))?;
        }
        if test.n_gen > 0 {
            let next = synthetic(model, 1, test.n_depth + test.n_prompt);
            let mut decoder = Decoder::new(model, *pass, cache, &next)?;
            decoder.run(test.n_gen, &mut |_| Ok(true))?;
            dispatches = decoder.dispatches();
            cache = decoder.into_cache();
        }
        if repetition > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(Speed { seconds, dispatches })
}

/// Times forward and backward passes; a pass ends when the last gradient, the embedding's, has been computed.
fn backward(model: &Model, pass: &Pass<'_>, test: Test, repetitions: usize) -> Result<Vec<f64>> {
    let ids = synthetic(model, test.tokens(), 0);
    let mut seconds = Vec::with_capacity(repetitions);
    for repetition in 0..=repetitions {
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
        if repetition > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
}

/// One pass over `ids`, up to the logits of the last.
fn step(model: &Model, pass: &Pass<'_>, cache: &mut Cache, ids: &[u32]) -> Result<()> {
    interrupt::check()?;
    let normed = model.hidden(pass, ids, cache)?;
    let logits = model.head(pass, &normed, ids.len() - 1..ids.len())?;
    let logits = pass.device.read_later(&logits)?;
    cache.advance(pass.device, ids.len())?;
    pass.device.finish(logits).map(drop)
}

/// Token ids that are the same every time and differ from place to place.
fn synthetic(model: &Model, count: usize, start: usize) -> Vec<u32> {
    let vocabulary = model.config().vocab_size as u64;
    (start..start + count)
        .map(|place| ((place as u64 * 2_654_435_761) % vocabulary) as u32)
        .collect()
}
