//! A text cut into windows: which of its tokens are scored, and what a pass over some windows reads.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::data::{self, first_foretold};
use crate::device::Tensor;
use crate::error::{Error, Result};
use crate::model::{Cache, Head, Pass, WeightSource};
use crate::walk::{Through, Walk};

/// Which tokens of a window count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Convention {
    /// Every token of a window but its first.
    #[serde(rename = "lopper")]
    AllButFirst,
    /// llama-perplexity's: only the second half; the first half is context. Where the vocabulary asks for BOS, it replaces
    /// each window's first token.
    #[serde(rename = "llama.cpp")]
    SecondHalf,
    /// Of a model with an encoder: it reads a window's first half, with a token for a gap at its end; every token of the second half is
    /// scored but its first two, which give their places to the decoder's start and that token again.
    #[serde(rename = "prefix")]
    Prefix,
}

impl Convention {
    /// Lopper's own for a model.
    pub fn usual(with_encoder: bool) -> Self {
        if with_encoder { Convention::Prefix } else { Convention::AllButFirst }
    }

    /// The name in the command contract.
    pub fn name(self) -> &'static str {
        match self {
            Convention::AllButFirst => "lopper",
            Convention::SecondHalf => "llama.cpp",
            Convention::Prefix => "prefix",
        }
    }

    /// Positions of a window whose next token is scored.
    fn scored(self, ctx: usize) -> std::ops::Range<usize> {
        match self {
            Convention::AllButFirst => 0..ctx - 1,
            Convention::SecondHalf => ctx / 2..ctx - 1,
            Convention::Prefix => (first_foretold(ctx) - 1).min(ctx - 1)..ctx - 1,
        }
    }
}

/// Tokens of one pass at most. Windows are batched up to this.
const BATCH_TOKENS: usize = 2048;

/// The windows of a tokenized text, all of one length, with at least one scored token each.
#[derive(Clone, Debug)]
pub struct Windows<'a> {
    windows: Vec<&'a [u32]>,
    ctx: usize,
    convention: Convention,
    bos: Option<u32>,
}

impl<'a> Windows<'a> {
    /// Windows of `ctx` tokens. `bos` stands in for each window's first token under the llama.cpp convention.
    pub fn new(
        tokens: &'a [u32],
        ctx: usize,
        convention: Convention,
        bos: Option<u32>,
    ) -> Result<Self> {
        if ctx < 2 || convention.scored(ctx).is_empty() {
            return Err(Error::Argument {
                argument: "--ctx".into(),
                expected: "at least 2 tokens (4 under the llama.cpp convention, 6 with an encoder)"
                    .into(),
                found: ctx.to_string(),
            });
        }
        Self::check_length(tokens.len(), ctx, None)?;
        let windows = data::windows(tokens, ctx);
        Ok(Self { windows, ctx, convention, bos })
    }

    /// That `tokens` of a text, `max_tokens` at most, make a window.
    pub fn check_length(tokens: usize, ctx: usize, max_tokens: Option<usize>) -> Result<()> {
        if tokens >= ctx {
            return Ok(());
        }
        let limited = max_tokens.is_some_and(|most| most <= tokens);
        let advice = if tokens < 4 { String::new() } else { format!("; --ctx {tokens} would do") };
        Err(Error::Argument {
            argument: if limited { "--max-tokens" } else { "text" }.into(),
            expected: format!("at least one window of {ctx} tokens (--ctx)"),
            found: format!("{tokens} tokens{advice}"),
        })
    }

    /// Windows.
    pub fn count(&self) -> usize {
        self.windows.len()
    }

    /// Tokens of a window.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Which tokens count.
    pub fn convention(&self) -> Convention {
        self.convention
    }

    /// Tokens that are scored in each window.
    pub fn scored_each(&self) -> usize {
        self.convention.scored(self.ctx).len()
    }

    /// Bytes of the text that the scored tokens stand for. `ends` says for each token of the text where in its bytes the
    /// token ends, and never falls.
    pub fn scored_bytes(&self, ends: &[usize]) -> usize {
        let scored = self.convention.scored(self.ctx);
        let starts = (0..self.count()).map(|window| window * self.ctx);
        starts.map(|start| ends[start + scored.end] - ends[start + scored.start]).sum()
    }

    /// Windows of one pass at a time.
    pub(super) fn groups(&self) -> impl Iterator<Item = &[&'a [u32]]> {
        self.windows.chunks((BATCH_TOKENS / self.ctx).max(1))
    }

    /// Input tokens and target tokens of a pass over a group of windows: (windows * ctx) each. The target of a window's last
    /// token is that token itself and is never scored.
    pub(super) fn inputs(&self, group: &[&[u32]]) -> (Vec<u32>, Vec<u32>) {
        let next = |window: &&[u32]| {
            let last = window[window.len() - 1];
            window[1..].iter().copied().chain([last]).collect::<Vec<_>>()
        };
        let targets = group.iter().flat_map(next).collect();
        let mut ids: Vec<u32> = group.concat();
        if let (Convention::SecondHalf, Some(bos)) = (self.convention, self.bos) {
            ids.chunks_exact_mut(self.ctx).for_each(|window| window[0] = bos);
        }
        (ids, targets)
    }

    /// The tokens of a window, as a model reads them.
    pub(super) fn ids(&self, window: usize) -> Vec<u32> {
        self.inputs(&self.windows[window..=window]).0
    }

    /// Whether the token after this place of a pass is scored.
    pub(super) fn counts(&self, place: usize) -> bool {
        self.convention.scored(self.ctx).contains(&(place % self.ctx))
    }
}

/// A model that passes over a text's groups of windows, in their order.
pub(super) struct Passing<'w> {
    source: WeightSource<'w>,
    /// Of a streamed model only while no block is on its way.
    head: Option<Head>,
    windows: &'w Windows<'w>,
    /// The next group.
    next: usize,
    /// The cache of a resident model, kept from one group to the next.
    cache: Option<(usize, Cache)>,
    /// Residual streams after the last block, of groups that a streamed model has been through already.
    ready: VecDeque<Tensor>,
}

impl<'w> Passing<'w> {
    pub(super) fn new(source: WeightSource<'w>, windows: &'w Windows<'w>) -> Self {
        Self { head: None, source, windows, next: 0, cache: None, ready: VecDeque::new() }
    }

    pub(super) fn head(&mut self) -> Result<&Head> {
        let head = match self.head.take() {
            Some(head) => head,
            None => self.source.head()?,
        };
        Ok(self.head.insert(head))
    }

    /// The head's input for the next group, whose tokens are `ids`.
    pub(super) fn hidden(&mut self, pass: &Pass<'_>, ids: &[u32]) -> Result<Tensor> {
        self.next += 1;
        let ctx = self.windows.ctx();
        let model = match self.source {
            WeightSource::Resident(model) => model,
            WeightSource::Streamed(..) => {
                if self.ready.is_empty() {
                    self.head = None;
                    self.ready = self.walk(pass)?.into();
                }
                let stream = self.ready.pop_front().expect("a group has a stream");
                return self.head()?.norm(pass, &stream);
            }
        };
        let sequences = ids.len() / ctx;
        let cache = match &mut self.cache {
            Some((size, cache)) if *size == sequences => &*cache,
            slot => {
                let config = model.config();
                let new = Cache::single_layer(pass.device, config, sequences, ctx, pass.compute)?;
                &slot.insert((sequences, new)).1
            }
        };
        model.hidden(pass, ids, cache)
    }

    /// Takes groups from the one that is asked for through all blocks: as many as a quarter of the memory that is left holds
    /// the streams of, so that blocks are copied to the device as seldom as can be.
    fn walk(&self, pass: &Pass<'_>) -> Result<Vec<Tensor>> {
        let first = self.next - 1;
        let width = self.source.config().hidden_size;
        let fit = pass.device.spare_bytes() / 4 / (4 * BATCH_TOKENS * width) as u64;
        let groups = self.windows.groups().skip(first).take(fit.max(1) as usize);
        let ids: Vec<Vec<u32>> = groups.map(|group| self.windows.inputs(group).0).collect();
        let ids = ids.concat();
        let sequences = ids.len() / self.windows.ctx();
        let mut walk = Walk::new(self.source, *pass, &ids, sequences, BATCH_TOKENS)?;
        while let Some(step) = walk.next_block()? {
            step.advance(Through::Parent, None)?;
        }
        Ok(walk.into_streams())
    }
}
