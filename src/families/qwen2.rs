//! Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv 2407.10671): Llama's block with biases of queries, keys and values.

use serde_json::Value;

use super::config::Config;
use super::json::Reader;
use super::names::{Dim, Row};
use super::{Family, decoder};
use crate::error::Result;
use crate::graph::{Slot, blocks};

/// The row of the table.
pub static FAMILY: Family = Family {
    rows: ROWS,
    read_json: windows,
    ..Family::plain("qwen2", "Qwen2ForCausalLM", blocks!(decoder::pre_norm, false))
};

const ROWS: &[Row] = &[
    Row::norm(Slot::AttentionNorm, "input_layernorm", "attn_norm", Dim::Hidden),
    Row::linear(Slot::Query, "self_attn.q_proj", "attn_q", Dim::Query, Dim::Hidden).biased(),
    Row::linear(Slot::Key, "self_attn.k_proj", "attn_k", Dim::KeyValue, Dim::Hidden).biased(),
    Row::linear(Slot::Value, "self_attn.v_proj", "attn_v", Dim::KeyValue, Dim::Hidden).biased(),
    Row::linear(Slot::Output, "self_attn.o_proj", "attn_output", Dim::Hidden, Dim::Query),
    Row::norm(Slot::FeedForwardNorm, "post_attention_layernorm", "ffn_norm", Dim::Hidden),
    Row::linear(Slot::Gate, "mlp.gate_proj", "ffn_gate", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Up, "mlp.up_proj", "ffn_up", Dim::Intermediate, Dim::Hidden),
    Row::linear(Slot::Down, "mlp.down_proj", "ffn_down", Dim::Hidden, Dim::Intermediate),
];

/// Attention to a window where `use_sliding_window` asks for it: in the layers from `max_window_layers` on, if none are named.
pub fn windows(reader: &Reader<'_>, config: &mut Config) -> Result<()> {
    if reader.given("use_sliding_window") != Some(&Value::Bool(true)) {
        return Ok(());
    }
    let first = reader.given("max_window_layers").and_then(Value::as_u64);
    let first = first.unwrap_or(28);
    reader.windows(config, Some(4096), |layer| layer as u64 >= first)
}
