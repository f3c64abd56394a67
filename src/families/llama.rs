//! Llama: TinyLlama, LiteLlama, SmolLM2, Llama 2 and 3.x differ in numbers only.

use super::names::{Dim, Row};
use super::{ATTENTION_BIAS, Family, decoder};
use crate::graph::{Slot, blocks};

/// The row of the table.
pub static FAMILY: Family = Family {
    gguf_per_layer: Some("deci"),
    rows: ROWS,
    bias_keys: &[ATTENTION_BIAS, ("mlp_bias", &[Slot::Gate, Slot::Up, Slot::Down])],
    ..Family::plain("llama", "LlamaForCausalLM", blocks!(decoder::pre_norm, false))
};

/// Tensors of a block.
pub const ROWS: &[Row] = &[
    Row::norm(Slot::AttentionNorm, "input_layernorm", "attn_norm", Dim::Hidden),
    Row::linear(Slot::Query, "self_attn.q_proj", "attn_q", Dim::Query, Dim::Hidden).interleaved(),
    Row::linear(Slot::Key, "self_attn.k_proj", "attn_k", Dim::KeyValue, Dim::Hidden).interleaved(),
    Row::linear(Slot::Value, "self_attn.v_proj", "attn_v", Dim::KeyValue, Dim::Hidden),
    Row::linear(Slot::Output, "self_attn.o_proj", "attn_output", Dim::Hidden, Dim::Query),
    Row::norm(Slot::FeedForwardNorm, "post_attention_layernorm", "ffn_norm", Dim::Hidden),
    Row::linear(Slot::Gate, "mlp.gate_proj", "ffn_gate", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Up, "mlp.up_proj", "ffn_up", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Down, "mlp.down_proj", "ffn_down", Dim::Hidden, Dim::Intermediate),
];
