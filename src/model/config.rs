//! What a model is: sizes, head counts, position encoding. From `config.json` or from GGUF metadata.

use std::path::Path;

use super::rope::RopeScaling;
use crate::error::{Error, Result};
use crate::kernels::attention::MAX_HEAD_DIM;

/// What blocks of one model may have different numbers of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of the query heads.
    pub kv_heads: usize,
    /// Channels of the feed-forward.
    pub intermediate_size: usize,
}

impl Widths {
    /// From lists of one number a layer.
    pub(super) fn zip(
        heads: Vec<usize>,
        kv_heads: Vec<usize>,
        intermediate: Vec<usize>,
    ) -> Vec<Self> {
        let lists = heads.into_iter().zip(kv_heads).zip(intermediate);
        lists
            .map(|((heads, kv_heads), intermediate_size)| Self {
                heads,
                kv_heads,
                intermediate_size,
            })
            .collect()
    }
}

/// The shape of a model of the Llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Columns of the residual stream.
    pub hidden_size: usize,
    /// The widths of every block: as many as there are layers.
    pub blocks: Vec<Widths>,
    /// Columns of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context that the model was made for.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// Sizes above this are taken for damage: no model has them, and products of two still fit 64 bits.
pub(super) const MAX_SIZE: u64 = 1 << 28;
/// More layers than this are damage too.
pub(super) const MAX_LAYERS: usize = 10_000;

impl Config {
    /// What to tell somebody who asks for windows that the model was not made for.
    pub fn beyond_context(&self, ctx: usize) -> Option<String> {
        let context = self.max_positions;
        (ctx > context).then(|| {
            format!("windows of {ctx} tokens are longer than the model's context of {context}")
        })
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// The widths of every block, if all are alike.
    pub fn uniform(&self) -> Option<Widths> {
        let first = *self.blocks.first()?;
        self.blocks
            .iter()
            .all(|widths| *widths == first)
            .then_some(first)
    }

    /// The largest of each width, for buffers that serve all blocks.
    pub fn widest(&self) -> Widths {
        let most = |width: fn(&Widths) -> usize| self.blocks.iter().map(width).max().unwrap_or(0);
        Widths {
            heads: most(|widths| widths.heads),
            kv_heads: most(|widths| widths.kv_heads),
            intermediate_size: most(|widths| widths.intermediate_size),
        }
    }

    /// An error if a Hugging Face folder cannot state the widths; `path` is the model's.
    pub fn check_plain(&self, path: &Path) -> Result<()> {
        match self.uniform() {
            Some(_) => Ok(()),
            None => Err(Error::Unsupported {
                path: path.into(),
                what: "a Hugging Face folder of layers of several widths".into(),
                why: "a stock Llama configuration states one width for all; use gguf or packed"
                    .into(),
            }),
        }
    }

    /// The same, if it makes sense. `kv_heads`: the key that a wrong number of key and value heads is told by.
    pub(super) fn check(self, path: &Path, kv_heads: &str) -> Result<Self> {
        let wrong = |key: &str, expected: String, found: usize| {
            Err(Error::Key {
                path: path.into(),
                key: key.into(),
                expected,
                found: found.to_string(),
            })
        };
        let uneven = |widths: &Widths| !widths.heads.is_multiple_of(widths.kv_heads);
        if let Some(layer) = self.blocks.iter().position(uneven) {
            let widths = self.blocks[layer];
            let place = match self.uniform() {
                Some(_) => String::new(),
                None => format!(" in layer {layer}"),
            };
            let expected = format!("a divisor of {} query heads{place}", widths.heads);
            return wrong(kv_heads, expected, widths.kv_heads);
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > MAX_HEAD_DIM {
            return wrong(
                "head_dim",
                format!("an even number up to {MAX_HEAD_DIM}"),
                self.head_dim,
            );
        }
        if let RopeScaling::Divisors(divisors) = &self.rope_scaling
            && divisors.len() != self.head_dim / 2
        {
            return wrong(
                "rope_freqs.weight",
                format!("{} values", self.head_dim / 2),
                divisors.len(),
            );
        }
        Ok(self)
    }
}
