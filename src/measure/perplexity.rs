//! Perplexity: exp of the mean negative log-likelihood per token, natural log, summed in f64.

use serde::Serialize;

use crate::data::windows;
use crate::device::{HostTensor, Reading, Tensor};
use crate::error::{Error, Result};
use crate::kernels::loss::logsumexp::logsumexp;
use crate::model::{Cache, Llama, Pass};

/// Which tokens of a window count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Convention {
    /// Every token of a window but its first.
    #[serde(rename = "lopper")]
    AllButFirst,
    /// llama-perplexity's: only the second half, behind a first half that is context. Where the vocabulary wants BOS, it
    /// stands in place of each window's first token.
    #[serde(rename = "llama.cpp")]
    SecondHalf,
}

impl Convention {
    /// The name in the command contract.
    pub fn name(self) -> &'static str {
        match self {
            Convention::AllButFirst => "lopper",
            Convention::SecondHalf => "llama.cpp",
        }
    }

    /// Positions of a window whose next token is scored.
    fn scored(self, ctx: usize) -> std::ops::Range<usize> {
        match self {
            Convention::AllButFirst => 0..ctx - 1,
            Convention::SecondHalf => ctx / 2..ctx - 1,
        }
    }
}

/// A perplexity with everything that it depends on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp(mean negative log-likelihood)
    pub value: f64,
    /// Standard error of the value: value * standard error of the mean.
    pub stderr: f64,
    /// Tokens of a window.
    pub ctx: usize,
    /// Tokens that were scored.
    pub tokens_scored: usize,
    /// Which tokens those are.
    pub convention: Convention,
}

impl std::fmt::Display for Perplexity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            value,
            stderr,
            ctx,
            tokens_scored,
            convention,
        } = self;
        let name = convention.name();
        write!(
            f,
            "perplexity {value:.4} ± {stderr:.4} ({tokens_scored} tokens scored, ctx {ctx}, convention {name})"
        )
    }
}

/// Tokens of one pass at most. Windows are batched up to this.
const BATCH_TOKENS: usize = 2048;

/// The perplexity of `model` on a tokenized text. `bos` stands in for each window's first token under the llama.cpp
/// convention. `progress` is told (windows done, windows) and may stop the rest by an error.
pub fn perplexity(
    model: &Llama,
    pass: &Pass<'_>,
    tokens: &[u32],
    ctx: usize,
    convention: Convention,
    bos: Option<u32>,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Perplexity> {
    let scored = convention.scored(ctx.max(2));
    if ctx < 2 || scored.is_empty() {
        let expected = "at least 2 tokens (4 under the llama.cpp convention)".into();
        return Err(Error::Argument {
            argument: "--ctx".into(),
            expected,
            found: ctx.to_string(),
        });
    }
    let windows = windows(tokens, ctx);
    if windows.is_empty() {
        return Err(Error::Argument {
            argument: "text".into(),
            expected: format!("at least one window of {ctx} tokens"),
            found: format!("{} tokens", tokens.len()),
        });
    }
    let mut losses = Losses::default();
    let mut pending: Option<Vec<PendingRows>> = None;
    let mut cache = None;
    let batch = (BATCH_TOKENS / ctx).max(1);
    let mut done = 0;
    for group in windows.chunks(batch) {
        progress(done, windows.len())?;
        let cache = match &mut cache {
            Some((size, cache)) if *size == group.len() => &*cache,
            slot => {
                let new = Cache::passing(
                    pass.device,
                    model.config(),
                    group.len(),
                    ctx,
                    pass.compute.activation,
                )?;
                &slot.insert((group.len(), new)).1
            }
        };
        let rows = record(model, pass, group, cache, convention, bos)?;
        // The rows of the pass before are fetched while this one runs.
        losses.add(pass, pending.replace(rows), ctx, &scored)?;
        done += group.len();
    }
    losses.add(pass, pending, ctx, &scored)?;
    progress(done, windows.len())?;
    losses.finish(ctx, convention)
}

/// Losses of consecutive rows of a pass, on their way back.
struct PendingRows {
    first: usize,
    lse: Reading,
    picked: Reading,
}

/// Records a pass over some windows and starts reading its losses back.
fn record(
    model: &Llama,
    pass: &Pass<'_>,
    group: &[&[u32]],
    cache: &Cache,
    convention: Convention,
    bos: Option<u32>,
) -> Result<Vec<PendingRows>> {
    let targets: Vec<u32> = group
        .iter()
        .flat_map(|window| {
            window[1..]
                .iter()
                .copied()
                .chain([window[window.len() - 1]])
        })
        .collect();
    let mut ids: Vec<u32> = group.concat();
    if let (Convention::SecondHalf, Some(bos)) = (convention, bos) {
        ids.chunks_exact_mut(group[0].len())
            .for_each(|window| window[0] = bos);
    }
    let normed: Tensor = model.hidden(pass, &ids, cache)?;
    let mut rows = Vec::new();
    let step = model.head_rows(pass.device);
    for first in (0..ids.len()).step_by(step) {
        let range = first..(first + step).min(ids.len());
        let logits = model.head(pass, &normed, range.clone())?;
        let wanted = HostTensor::from_u32(&[range.len()], &targets[range.clone()]);
        let wanted = pass.device.upload(&wanted, "targets")?;
        let (lse, picked) = logsumexp(pass.device, &logits, &wanted)?;
        rows.push(PendingRows {
            first,
            lse: pass.device.read_later(&lse)?,
            picked: pass.device.read_later(&picked)?,
        });
    }
    Ok(rows)
}

#[derive(Default)]
struct Losses {
    count: usize,
    sum: f64,
    squares: f64,
}

impl Losses {
    fn add(
        &mut self,
        pass: &Pass<'_>,
        rows: Option<Vec<PendingRows>>,
        ctx: usize,
        scored: &std::ops::Range<usize>,
    ) -> Result<()> {
        for PendingRows { first, lse, picked } in rows.into_iter().flatten() {
            let (lse, picked) = (pass.device.finish(lse)?, pass.device.finish(picked)?);
            for index in 0..lse.len() {
                if !scored.contains(&((first + index) % ctx)) {
                    continue;
                }
                let loss = lse.view().get(index) - picked.view().get(index);
                if !loss.is_finite() {
                    return Err(Error::Device {
                        during: "evaluation".into(),
                        reason: format!(
                            "the loss of token {} is {loss}; try --compute f32",
                            first + index
                        ),
                    });
                }
                self.count += 1;
                self.sum += loss;
                self.squares += loss * loss;
            }
        }
        Ok(())
    }

    fn finish(&self, ctx: usize, convention: Convention) -> Result<Perplexity> {
        let n = self.count as f64;
        let mean = self.sum / n;
        let variance = if self.count > 1 {
            (self.squares - n * mean * mean).max(0.0) / (n - 1.0)
        } else {
            0.0
        };
        let value = mean.exp();
        Ok(Perplexity {
            value,
            stderr: value * (variance / n).sqrt(),
            ctx,
            tokens_scored: self.count,
            convention,
        })
    }
}
