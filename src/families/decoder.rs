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
    gated(g, normed, [Slot::Gate, Slot::Up, Slot::Down], shape)
}

/// A gated feed-forward of these weights.
fn gated<G: Graph>(
    g: &mut G,
    normed: G::Value,
    [gate, up, down]: [Slot; 3],
    shape: &BlockShape,
) -> Result<G::Value> {
    let gate = g.linear(&normed, gate)?;
    let up = g.linear(&normed, up)?;
    let gated = g.gate(gate, up, shape.activation)?;
    g.linear(&gated, down)
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

/// A block whose feed-forward is a mixture of experts (Shazeer et al. 2017, arXiv 1701.06538).
pub fn experts<G: Graph>(
    g: &mut G,
    x: G::Value,
    shape: &BlockShape,
    head_norms: bool,
) -> Result<G::Value> {
    let normed = g.norm(&x, Slot::AttentionNorm)?;
    let mixed = attention(g, normed, shape, head_norms)?;
    let x = residual(g, x, mixed, Slot::AttentionShortcut)?;
    let normed = g.norm(&x, Slot::FeedForwardNorm)?;
    let logits = g.linear(&normed, Slot::Router)?;
    let experts = shape.experts.expect("a configuration of such a family says how many there are");
    let routing = g.route(logits, experts)?;
    let mut results = Vec::new();
    for expert in 0..experts.count {
        let Some(own) = g.to_expert(&normed, &routing, expert)? else { continue };
        let slots = [Slot::ExpertGate(0), Slot::ExpertUp(0), Slot::ExpertDown(0)];
        let slots = slots.map(|slot| slot.of_expert(expert));
        results.push((expert, gated(g, own, slots, shape)?));
    }
    drop(normed);
    g.add_experts(x, routing, results)
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
