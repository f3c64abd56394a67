//! Gemma 3, text only (Gemma Team 2025, arXiv 2503.19786): norms before and after each half of a block, norms of queries and
//! keys, a tanh GELU gate, embeddings scaled by the root of the width, and five layers that attend to a window, with a rotary
//! base of their own, for each that attends to all.

use serde_json::{Map, Value, json};

use super::config::Config;
use super::json::{Reader, layer_types, shortest};
use super::names::{Dim, Row};
use super::rope::{Rope, RopeScaling};
use super::{ATTENTION_BIAS, Family, Graph, Keys, decoder};
use crate::error::Result;
use crate::formats::gguf::{Array, Value as Meta};
use crate::graph::{Activation, BlockShape, Slot, blocks};

/// The row of the table.
pub static FAMILY: Family = Family {
    gguf: "gemma3",
    rows: ROWS,
    bias_keys: &[ATTENTION_BIAS],
    activation: Activation::GeluTanh,
    activation_key: ("hidden_activation", &["gelu_pytorch_tanh", "gelu_new"]),
    norm_offset: 1.0,
    scaled_embedding: true,
    head_dim: Some(256),
    tied: true,
    read_json,
    write_json,
    read_gguf,
    write_gguf,
    ..Family::plain("gemma3_text", "Gemma3ForCausalLM", blocks!(block))
};

const ROWS: &[Row] = &[
    Row::norm(Slot::AttentionNorm, "input_layernorm", "attn_norm", Dim::Hidden),
    Row::linear(Slot::Query, "self_attn.q_proj", "attn_q", Dim::Query, Dim::Hidden),
    Row::linear(Slot::Key, "self_attn.k_proj", "attn_k", Dim::KeyValue, Dim::Hidden),
    Row::linear(Slot::Value, "self_attn.v_proj", "attn_v", Dim::KeyValue, Dim::Hidden),
    Row::norm(Slot::QueryNorm, "self_attn.q_norm", "attn_q_norm", Dim::Head),
    Row::norm(Slot::KeyNorm, "self_attn.k_norm", "attn_k_norm", Dim::Head),
    Row::linear(Slot::Output, "self_attn.o_proj", "attn_output", Dim::Hidden, Dim::Query),
    Row::norm(
        Slot::PostAttentionNorm,
        "post_attention_layernorm",
        "post_attention_norm",
        Dim::Hidden,
    ),
    Row::norm(Slot::FeedForwardNorm, "pre_feedforward_layernorm", "ffn_norm", Dim::Hidden),
    Row::linear(Slot::Gate, "mlp.gate_proj", "ffn_gate", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Up, "mlp.up_proj", "ffn_up", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Down, "mlp.down_proj", "ffn_down", Dim::Hidden, Dim::Intermediate),
    Row::norm(
        Slot::PostFeedForwardNorm,
        "post_feedforward_layernorm",
        "post_ffw_norm",
        Dim::Hidden,
    ),
];

fn block<G: Graph>(g: &mut G, x: G::Value, shape: &BlockShape) -> Result<G::Value> {
    let normed = g.norm(&x, Slot::AttentionNorm)?;
    let mixed = decoder::attention(g, normed, shape, true)?;
    let mixed = g.norm(&mixed, Slot::PostAttentionNorm)?;
    let x = decoder::residual(g, x, mixed, Slot::AttentionShortcut)?;
    let normed = g.norm(&x, Slot::FeedForwardNorm)?;
    let fed = decoder::feed_forward(g, normed, shape)?;
    let fed = g.norm(&fed, Slot::PostFeedForwardNorm)?;
    decoder::residual(g, x, fed, Slot::FeedForwardShortcut)
}

/// Every sixth layer attends to all tokens.
const PATTERN: usize = 6;
/// The rotary base of layers that attend to a window.
const LOCAL_THETA: f64 = 10_000.0;

/// Gives layers with a window the second rotary encoding.
fn local_ropes(config: &mut Config) {
    let blocks = config.blocks.iter_mut();
    blocks.for_each(|block| block.rope = usize::from(block.window.is_some()));
}

fn read_json(reader: &Reader<'_>, config: &mut Config) -> Result<()> {
    let pattern = reader.size("sliding_window_pattern")?.unwrap_or(PATTERN);
    reader.windows(config, Some(4096), |layer| (layer + 1) % pattern != 0)?;
    // transformers 5 has an object of rotary parameters for each kind of layer, 4 one for the global ones.
    let nested = reader.object("rope_parameters")?;
    let (global, local) = match &nested {
        Some(nested) if nested.given("full_attention").is_some() => {
            (nested.object("full_attention")?, nested.object("sliding_attention")?)
        }
        _ => (reader.object("rope_scaling")?, None),
    };
    // transformers 5 lets the older key go before the stretching in the newer one.
    let older = if nested.is_some() { reader.object("rope_scaling")? } else { None };
    let mut global = reader.rope(global.as_ref(), "rope_theta", 1e6)?;
    if let Some(older) = older {
        global = reader.rope(Some(&older), "rope_theta", global.theta)?;
    }
    let local = reader.rope(local.as_ref(), "rope_local_base_freq", LOCAL_THETA)?;
    config.ropes = vec![global, local];
    local_ropes(config);
    let scalar = reader.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    config.attention_scale = (scalar != config.head_dim as f64).then(|| 1.0 / scalar.sqrt());
    config.attention_soft_cap = reader.number("attn_logit_softcapping")?;
    config.logit_soft_cap = reader.number("final_logit_softcapping")?;
    Ok(())
}

fn write_json(config: &Config, map: &mut Map<String, Value>) {
    let scalar = config.attention_scale.map(|scale| (1.0 / (scale * scale)).round());
    let window = config.blocks.iter().find_map(|block| block.window);
    for (key, value) in [
        ("attn_logit_softcapping", json!(config.attention_soft_cap)),
        ("final_logit_softcapping", json!(config.logit_soft_cap)),
        ("layer_types", layer_types(config)),
        ("query_pre_attn_scalar", json!(scalar.unwrap_or(config.head_dim as f64))),
        ("rope_local_base_freq", json!(shortest(config.ropes[1].theta))),
        ("sliding_window", json!(window)),
    ] {
        map.insert(key.into(), value);
    }
}

const GGUF_WINDOW: &str = "attention.sliding_window";
const GGUF_PATTERN: &str = "attention.sliding_window_pattern";
const GGUF_LOCAL_THETA: &str = "rope.freq_base_swa";

fn usual(layer: usize) -> bool {
    !(layer + 1).is_multiple_of(PATTERN)
}

fn read_gguf(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    let window = keys.optional_size(GGUF_WINDOW)?;
    let flags = keys.flags(GGUF_PATTERN, config.layers())?;
    for (layer, block) in config.blocks.iter_mut().enumerate() {
        let slides = flags.as_ref().map_or(usual(layer), |flags| flags[layer]);
        block.window = window.filter(|_| slides);
    }
    let theta = keys.optional_number(GGUF_LOCAL_THETA)?;
    config.ropes.push(Rope { theta: theta.unwrap_or(LOCAL_THETA), scaling: RopeScaling::None });
    local_ropes(config);
    Ok(())
}

fn write_gguf(config: &Config) -> Vec<(&'static str, Meta)> {
    let mut pairs = Vec::new();
    let slides = || config.blocks.iter().map(|block| block.window.is_some());
    if let Some(window) = config.blocks.iter().find_map(|block| block.window) {
        pairs.push((GGUF_WINDOW, Meta::U32(window as u32)));
        if !slides().eq((0..config.layers()).map(usual)) {
            pairs.push((GGUF_PATTERN, Meta::Array(Array::Bool(slides().collect()))));
        }
    }
    if config.ropes[1].theta != LOCAL_THETA {
        pairs.push((GGUF_LOCAL_THETA, Meta::F32(config.ropes[1].theta as f32)));
    }
    pairs
}
