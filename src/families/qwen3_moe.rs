//! Qwen3's mixtures of experts (Yang et al. 2025, arXiv 2505.09388): Qwen3's block with several narrow feed-forwards, of which each
//! token goes through a few.

use serde_json::{Value, json};

use super::names::{Dim, Row};
use super::{ATTENTION_BIAS, Family, decoder, qwen2, qwen3};
use crate::formats::gguf::Value as Meta;
use crate::graph::{Slot, blocks};

const WIDTH: &str = "expert_feed_forward_length";

/// The row of the table.
pub static FAMILY: Family = Family {
    gguf: "qwen3moe",
    experts_keys: Some([&["num_experts", "num_local_experts"], &["num_experts_per_tok"]]),
    dense: &["qwen3"],
    json_names: &[("intermediate_size", "moe_intermediate_size")],
    rows: ROWS,
    bias_keys: &[ATTENTION_BIAS],
    head_dim: Some(128),
    read_json: |reader, config| {
        // Blocks with one feed-forward between those with experts: no published model has them.
        reader.only("decoder_sparse_step", &json!(1))?;
        reader.only("mlp_only_layers", &json!([]))?;
        if let Some(experts) = &mut config.experts {
            experts.normalized = reader.given("norm_topk_prob") == Some(&Value::Bool(true));
        }
        qwen2::windows(reader, config)
    },
    write_json: |config, map| {
        let normalized = config.experts.is_none_or(|experts| experts.normalized);
        map.insert("norm_topk_prob".into(), json!(normalized));
        map.insert("decoder_sparse_step".into(), json!(1));
        map.insert("mlp_only_layers".into(), json!([]));
    },
    read_gguf: |keys, config| {
        if let Some(width) = keys.optional_size(WIDTH)? {
            config.blocks.iter_mut().for_each(|block| block.intermediate_size = width);
        }
        Ok(())
    },
    write_gguf: |config| vec![(WIDTH, Meta::U32(config.widest().intermediate_size as u32))],
    ..Family::plain("qwen3_moe", "Qwen3MoeForCausalLM", blocks!(decoder::experts, true))
};

const ROWS: &[Row] = &[
    qwen3::ROWS[0],
    qwen3::ROWS[1],
    qwen3::ROWS[2],
    qwen3::ROWS[3],
    qwen3::ROWS[4],
    qwen3::ROWS[5],
    qwen3::ROWS[6],
    qwen3::ROWS[7],
    Row::router("mlp.gate", "ffn_gate_inp"),
    Row::expert(
        Slot::ExpertGate(0),
        "mlp.experts.{}.gate_proj",
        "ffn_gate.{}",
        Dim::Intermediate,
        Dim::Hidden,
    ),
    Row::expert(
        Slot::ExpertUp(0),
        "mlp.experts.{}.up_proj",
        "ffn_up.{}",
        Dim::Intermediate,
        Dim::Hidden,
    ),
    Row::expert(
        Slot::ExpertDown(0),
        "mlp.experts.{}.down_proj",
        "ffn_down.{}",
        Dim::Hidden,
        Dim::Intermediate,
    ),
];
