//! Continuing a text, token by token, with a key-value cache.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cache::Cache;
use super::decode::Decoder;
use super::finite::not_finite;
use super::resident::Model;
use crate::device::HostTensor;
use crate::error::{Error, Result};
use crate::graph::Pass;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The likeliest.
    Greedy,
    /// Drawn from softmax(logits / temperature), by a seeded generator.
    Temperature {
        /// Above 0.
        temperature: f64,
        /// The generator's seed.
        seed: u64,
    },
}

/// How a generation went.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens; an end-of-text token is not among them.
    pub tokens: Vec<u32>,
    /// Seconds until the first new token.
    pub prompt_seconds: f64,
    /// Seconds for the others.
    pub seconds: f64,
}

/// Continues `prompt` by at most `count` tokens. `arrived` is told of each and may stop the rest by an error; `ends`
/// says which tokens end the text.
pub fn generate(
    model: &Model,
    pass: &Pass<'_>,
    prompt: &[u32],
    count: usize,
    sampling: Sampling,
    ends: impl Fn(u32) -> bool,
    mut arrived: impl FnMut(u32) -> Result<()>,
) -> Result<Generation> {
    if prompt.is_empty() {
        return Err(Error::Argument {
            argument: "prompt".into(),
            expected: "at least one token".into(),
            found: "none".into(),
        });
    }
    let capacity = prompt.len() + count;
    let mut cache = Cache::new(pass.device, model.config(), 1, capacity, pass.compute)?;
    let mut random = match sampling {
        Sampling::Temperature { seed, .. } => ChaCha8Rng::seed_from_u64(seed),
        Sampling::Greedy => ChaCha8Rng::seed_from_u64(0),
    };
    let start = std::time::Instant::now();
    let mut generation = Generation { tokens: Vec::new(), prompt_seconds: 0.0, seconds: 0.0 };
    let broken = |tokens: &[u32]| {
        let read = [prompt, tokens].concat();
        let symptom = format!("logits of token {}", read.len());
        not_finite(model.into(), pass, &read, symptom)
    };
    // Takes a token; whether there is more to come.
    let mut take = |tokens: &mut Vec<u32>, token: u32| -> Result<bool> {
        if ends(token) {
            return Ok(false);
        }
        tokens.push(token);
        arrived(token)?;
        Ok(tokens.len() < count)
    };
    let mut input = prompt.to_vec();
    while generation.tokens.len() < count {
        let normed = model.hidden(pass, &input, &cache)?;
        let logits = model.head(pass, &normed, input.len() - 1..input.len())?;
        // Read back before the cache is written to; the other order would need a submit between.
        let logits = pass.device.read_later(&logits)?;
        cache.advance(pass.device, input.len())?;
        let Some(token) = choose(&pass.device.finish(logits)?, sampling, &mut random) else {
            return Err(broken(&generation.tokens));
        };
        if generation.prompt_seconds == 0.0 {
            generation.prompt_seconds = start.elapsed().as_secs_f64();
        }
        if !take(&mut generation.tokens, token)? {
            break;
        }
        if sampling == Sampling::Greedy {
            let tokens = &mut generation.tokens;
            let left = count - tokens.len();
            Decoder::new(model, *pass, cache, &[token])?.run(left, &mut |chosen| {
                if !chosen[0].lse.is_finite() {
                    return Err(broken(tokens));
                }
                take(tokens, chosen[0].token)
            })?;
            break;
        }
        input = vec![token];
    }
    generation.seconds = start.elapsed().as_secs_f64() - generation.prompt_seconds;
    Ok(generation)
}

/// The next token; `None` where a logit is not finite.
fn choose(logits: &HostTensor, sampling: Sampling, random: &mut ChaCha8Rng) -> Option<u32> {
    let logits = logits.view().to_f32();
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if !logit.is_finite() {
            return None;
        }
        if *logit > logits[best] {
            best = index;
        }
    }
    let Sampling::Temperature { temperature, .. } = sampling else {
        return Some(best as u32);
    };
    let maximum = f64::from(logits[best]);
    let weights: Vec<f64> =
        logits.iter().map(|l| ((f64::from(*l) - maximum) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut place = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
    for (index, weight) in weights.iter().enumerate() {
        place -= weight;
        if place < 0.0 {
            return Some(index as u32);
        }
    }
    Some(best as u32)
}
