//! Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama's block with a norm of every head's queries and keys.

use super::names::{Dim, Row};
use super::{ATTENTION_BIAS, Family, decoder, qwen2};
use crate::graph::{Slot, blocks};

/// The row of the table.
pub static FAMILY: Family = Family {
    rows: ROWS,
    bias_keys: &[ATTENTION_BIAS],
    head_dim: Some(128),
    read_json: qwen2::windows,
    ..Family::plain("qwen3", "Qwen3ForCausalLM", blocks!(decoder::pre_norm, true))
};

/// Tensors of a block.
pub const ROWS: &[Row] = &[
    Row::norm(Slot::AttentionNorm, "input_layernorm", "attn_norm", Dim::Hidden),
    Row::linear(Slot::Query, "self_attn.q_proj", "attn_q", Dim::Query, Dim::Hidden),
    Row::linear(Slot::Key, "self_attn.k_proj", "attn_k", Dim::KeyValue, Dim::Hidden),
    Row::linear(Slot::Value, "self_attn.v_proj", "attn_v", Dim::KeyValue, Dim::Hidden),
    Row::norm(Slot::QueryNorm, "self_attn.q_norm", "attn_q_norm", Dim::Head),
    Row::norm(Slot::KeyNorm, "self_attn.k_norm", "attn_k_norm", Dim::Head),
    Row::linear(Slot::Output, "self_attn.o_proj", "attn_output", Dim::Hidden, Dim::Query),
    Row::norm(Slot::FeedForwardNorm, "post_attention_layernorm", "ffn_norm", Dim::Hidden),
    Row::linear(Slot::Gate, "mlp.gate_proj", "ffn_gate", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Up, "mlp.up_proj", "ffn_up", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Down, "mlp.down_proj", "ffn_down", Dim::Hidden, Dim::Intermediate),
];
