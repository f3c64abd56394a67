//! Gradients in parts, each of some tokens (microbatches, or sequences).

use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::copy::gather_rows::{Rows, rows};

/// The parts in which gradients of weights are handed out: those of some tokens each.
#[derive(Debug)]
pub struct TokenSplit {
    lists: Vec<Rows>,
    tokens: usize,
    first: usize,
}

impl TokenSplit {
    /// All tokens in one part, the `first`th.
    pub fn whole(first: usize) -> Self {
        let (lists, tokens) = (Vec::new(), 0);
        Self { lists, tokens, first }
    }

    /// `count` parts of so many tokens each, numbered from `first` on.
    pub fn even(device: &Device, count: usize, tokens: usize, first: usize) -> Result<Self> {
        if count == 1 {
            return Ok(Self::whole(first));
        }
        let list = |part: usize| {
            let pairs = (0..tokens).map(|t| ((part * tokens + t) as u32, t as u32));
            Rows::upload(device, &pairs.collect::<Vec<_>>())
        };
        let lists = (0..count).map(list).collect::<Result<_>>()?;
        Ok(Self { lists, tokens, first })
    }

    /// The number of the first part.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Parts.
    pub fn count(&self) -> usize {
        self.lists.len().max(1)
    }

    /// The tokens of a part, of `all`, (tokens, width): rows of whole words.
    pub fn part(&self, device: &Device, all: &Tensor, part: usize) -> Result<Tensor> {
        let Some(list) = self.lists.get(part) else {
            return Ok(all.clone());
        };
        let width = all.len() / (self.lists.len() * self.tokens);
        let some = device.allocate(all.dtype(), &[self.tokens, width], "a part")?;
        rows(device, all, &some, width, list)?;
        Ok(some)
    }
}
