//! Attention: causal, with grouped key-value heads over a KV cache, sliding windows and soft caps of the scores; and, with stored
//! weights ([`stored`]), in both directions, over the keys of another text, with a bias by distance.

pub mod backward;
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
pub mod mix;
pub mod mix_grad;
pub mod query_grad;
pub mod query_grad_coop;
pub mod split;
pub mod step;
pub mod stored;
pub mod tiled;
pub mod weights;
pub mod weights_grad;

use super::activation::{soft_cap, soft_cap_reference};
use crate::device::Variant;

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
