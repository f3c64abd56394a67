//! Attention with grouped key-value heads over a KV cache: causal, or of all keys, those of another text among them ([`Seen`]), with
//! sliding windows, soft caps of the scores, and biases of them by distance.

pub mod backward;
pub mod bias;
pub mod bias_grad;
pub mod cached;
pub mod causal;
pub mod coop;
pub mod delta;
mod examples;
pub mod group_sum;
pub mod key_value_grad;
pub mod key_value_grad_coop;
pub mod lse_delta;
pub mod merge;
pub mod query_grad;
pub mod query_grad_coop;
pub mod split;
pub mod step;
pub mod tiled;

use std::ops::Range;

use self::bias::Bias;
use super::activation::{soft_cap, soft_cap_reference};
use crate::device::{Field, Tensor, Variant};

/// The largest head that the shaders' workgroup memory holds.
pub const MAX_HEAD_DIM: usize = 256;

/// The window of a layer without one, in shaders: more than any cache holds, and no overflow in 32 bits with sign.
const NO_WINDOW: u32 = 1 << 30;

/// An attention layer: its heads and what becomes of their scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub query: usize,
    /// Key and value heads; divides the query heads. Fewer: grouped-query attention (GQA); 1: multi-query attention (MQA).
    pub kv: usize,
    /// Columns of one head, at most [`MAX_HEAD_DIM`].
    pub dim: usize,
    /// The factor of scores.
    pub scale: f32,
    /// Sliding window: a token at position p sees the keys at positions above p - window, up to its own, as in
    /// `transformers`. `None`: all up to its own.
    pub window: Option<usize>,
    /// Soft cap: a scaled score s becomes cap tanh(s / cap) (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f32>,
}

impl Attention {
    /// Scores over sqrt(dim), neither window nor soft cap.
    pub fn new(query: usize, kv: usize, dim: usize) -> Self {
        Self { query, kv, dim, scale: 1.0 / (dim as f32).sqrt(), window: None, soft_cap: None }
    }

    /// The same with a sliding window of so many keys.
    pub fn with_window(self, window: usize) -> Self {
        Self { window: Some(window), ..self }
    }

    /// The same with a soft cap.
    pub fn with_soft_cap(self, cap: f32) -> Self {
        Self { soft_cap: Some(cap), ..self }
    }

    /// The window as shaders take it: at least the token itself.
    fn window_word(&self) -> u32 {
        let window = self.window.unwrap_or(usize::MAX).max(1);
        window.min(NO_WINDOW as usize) as u32
    }

    /// The soft cap as shaders take it; 0: none.
    fn soft_cap_word(&self) -> f32 {
        self.soft_cap.unwrap_or(0.0)
    }

    /// Keys that a token sees, of so many.
    fn keys(&self, all: usize) -> usize {
        self.window.unwrap_or(all).min(all)
    }

    /// The part of a case's label that describes its scores.
    fn score_label(&self) -> String {
        let mut label = String::new();
        if let Some(window) = self.window {
            label += &format!(",window={window}");
        }
        if let Some(cap) = self.soft_cap {
            label += &format!(",soft_cap={cap}");
        }
        label
    }
}

/// The keys that tokens see, of caches of (sequences, capacity, kv_heads, head_dim), and what their scores have besides products.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// u32 (sequences): tokens that each sequence held before the new ones; where tokens see all keys, the place behind the last.
    pub ends: &'a Tensor,
    /// Whether a token sees no key behind its own place; otherwise all of its sequence, of which there is one at least, and no window.
    pub causal: bool,
    /// The place of the first key that anybody looks at.
    pub first: usize,
    /// The bias of scores by distance, where there is one.
    pub bias: Option<&'a Bias>,
}

impl<'a> Seen<'a> {
    /// What tokens see behind so many others of each sequence, u32 (sequences): these and those before themselves.
    pub fn causal(past: &'a Tensor) -> Self {
        Self { ends: past, causal: true, first: 0, bias: None }
    }

    /// All keys of each sequence, so many of them, u32 (sequences).
    pub fn all(ends: &'a Tensor) -> Self {
        Self { ends, causal: false, first: 0, bias: None }
    }

    /// The same with a bias of scores, if there is one.
    pub fn with_bias(self, bias: Option<&'a Bias>) -> Self {
        Self { bias, ..self }
    }

    /// Words of sequences with the bits of the bias behind them; without one, no more than the former.
    fn places(&self) -> &'a Tensor {
        self.bias.map_or(self.ends, Bias::places)
    }

    fn mask(&self) -> Mask {
        Mask {
            causal: u32::from(self.causal),
            first: self.first as u32,
            distances: self.bias.map_or(0, Bias::distances) as u32,
            ..Mask::CAUSAL
        }
    }
}

/// What kernels take of [`Seen`] beside tensors.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Mask {
    /// 1: a token sees no key behind its own place.
    causal: u32,
    /// The place of the first key that anybody looks at.
    first: u32,
    /// Distances that have a bias each, from -reach to reach; 0: none has.
    distances: u32,
    /// Where a bias' gradient is asked for: the buckets that its distances fall into, and the elements of a tile's part.
    buckets: u32,
    row: u32,
}

impl Field for Mask {
    fn wgsl(_: &str) -> String {
        ["causal", "first", "distances", "buckets", "row"].map(u32::wgsl).concat()
    }
}

impl Mask {
    /// All keys up to a token's own, no bias.
    const CAUSAL: Self = Self { causal: 1, first: 0, distances: 0, buckets: 0, row: 0 };

    /// The keys that token number `order` sees of a sequence that `end` is said of.
    fn keys(&self, end: u32, order: usize, window: u32) -> Range<usize> {
        let end = match self.causal {
            0 => end as usize,
            _ => end as usize + order + 1,
        };
        let first = self.first as usize;
        first.max(end - end.min(window as usize))..end.max(first)
    }

    /// The number of the distance from that token to the key at `place`: from -reach to reach, the outermost stand for all beyond.
    fn distance(&self, end: u32, order: usize, place: usize) -> usize {
        let own = match self.causal {
            0 => self.first as usize + order,
            _ => end as usize + order,
        };
        let reach = self.distances as isize / 2;
        ((place as isize - own as isize).clamp(-reach, reach) + reach) as usize
    }

    /// The bias of such a score, of the words that kernels read: those of so many sequences, then the biases' bits.
    fn bias(
        &self,
        (words, sequences): (&[u32], u32),
        head: usize,
        (end, order): (u32, usize),
        place: usize,
    ) -> f32 {
        if self.distances == 0 {
            return 0.0;
        }
        let distance = self.distance(end, order, place);
        let at = sequences as usize + head * self.distances as usize + distance;
        f32::from_bits(words[at])
    }
}

/// Whether a variant multiplies on matrix units.
fn on_matrix_units(variant: &Variant) -> bool {
    variant.constant("SUBGROUP") > 1
}

/// What multiplies the bound of a sum of products in f32: matrix units may cut off instead of rounding.
fn sum_slack(matrix_units: bool) -> f64 {
    if matrix_units { 2.0 } else { 1.0 }
}

/// A sum of products times the scale, off by `error`, as a score: its value and bound behind the soft cap, if there is one.
fn score_reference(scaled: f64, error: f64, soft_cap: f32) -> (f64, f64) {
    if soft_cap == 0.0 {
        (scaled, error)
    } else {
        soft_cap_reference(scaled, error, f64::from(soft_cap))
    }
}

/// The same in f32.
fn score(scaled: f32, cap: f32) -> f32 {
    if cap == 0.0 { scaled } else { soft_cap(scaled, cap) }
}
