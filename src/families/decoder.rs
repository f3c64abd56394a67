//! Parts of a block that several families share.

use super::Graph;
use crate::error::Result;
use crate::graph::{BlockShape, Slot};

/// Attention over the normalized stream (consumed: nothing waits for it when the sum is made), up to the output projection; heads of queries and keys normalized first where the
/// family has norms for them (`head_norms`).
pub fn attention<G: Graph>(
    g: &mut G,
    normed: G::Value,
    shape: &BlockShape,
    head_norms: bool,
) -> Result<G::Value> {
    let mut query = g.linear(&normed, Slot::Query)?;
    let mut key = g.linear(&normed, Slot::Key)?;
    let value = g.linear(&normed, Slot::Value)?;
    if head_norms {
        query = g.norm(&query, Slot::QueryNorm)?;
        key = g.norm(&key, Slot::KeyNorm)?;
    }
    let query = g.rotary(query, shape.rope)?;
    let key = g.rotary(key, shape.rope)?;
    let mixed = g.attention(query, key, value, &shape.attention)?;
    g.linear(&mixed, Slot::Output)
}

/// The gated feed-forward (Shazeer 2020, arXiv 2002.05202) of the normalized stream.
pub fn feed_forward<G: Graph>(g: &mut G, normed: G::Value, shape: &BlockShape) -> Result<G::Value> {
    let gate = g.linear(&normed, Slot::Gate)?;
    let up = g.linear(&normed, Slot::Up)?;
    let gated = g.gate(gate, up, shape.activation)?;
    g.linear(&gated, Slot::Down)
}

/// A block that normalizes before each half (Xiong et al. 2020, arXiv 2002.04745).
pub fn pre_norm<G: Graph>(
    g: &mut G,
    x: G::Value,
    shape: &BlockShape,
    head_norms: bool,
) -> Result<G::Value> {
    let normed = g.norm(&x, Slot::AttentionNorm)?;
    let mixed = attention(g, normed, shape, head_norms)?;
    let x = residual(g, x, mixed, Slot::AttentionShortcut)?;
    let normed = g.norm(&x, Slot::FeedForwardNorm)?;
    let fed = feed_forward(g, normed, shape)?;
    residual(g, x, fed, Slot::FeedForwardShortcut)
}

/// The residual stream with the result of half a block, in that one's basis where the model has several (SliceGPT, Ashkboos et
/// al. 2024, arXiv 2401.15024, section 3.2).
pub fn residual<G: Graph>(
    g: &mut G,
    x: G::Value,
    half: G::Value,
    shortcut: Slot,
) -> Result<G::Value> {
    let x = g.shortcut(x, shortcut)?;
    g.add(x, half)
}
