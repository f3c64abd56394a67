//! Mixtral (Jiang et al. 2024, arXiv 2401.04088): Llama's block with several feed-forwards, of which each token goes through a
//! few. GGUF has no architecture of its own for it; the number of experts tells it from a Llama.

use serde_json::json;

use super::names::{Dim, Row};
use super::{Family, decoder, llama};
use crate::graph::{Slot, blocks};

/// The row of the table.
pub static FAMILY: Family = Family {
    gguf: "llama",
    gguf_mark: Some("expert_count"),
    experts_keys: Some([&["num_local_experts"], &["num_experts_per_tok"]]),
    dense: &["llama", "mistral"],
    rows: ROWS,
    read_json: |reader, config| reader.windows(config, None, |_| true),
    write_json: |config, map| {
        map.insert("sliding_window".into(), json!(config.blocks[0].window));
    },
    ..Family::plain("mixtral", "MixtralForCausalLM", blocks!(decoder::experts, false))
};

const ROWS: &[Row] = &[
    llama::ROWS[0],
    llama::ROWS[1],
    llama::ROWS[2],
    llama::ROWS[3],
    llama::ROWS[4],
    llama::ROWS[5],
    Row::router("block_sparse_moe.gate", "ffn_gate_inp"),
    Row::expert(
        Slot::ExpertGate(0),
        "block_sparse_moe.experts.{}.w1",
        "ffn_gate.{}",
        Dim::Intermediate,
        Dim::Hidden,
    ),
    Row::expert(
        Slot::ExpertUp(0),
        "block_sparse_moe.experts.{}.w3",
        "ffn_up.{}",
        Dim::Intermediate,
        Dim::Hidden,
    ),
    Row::expert(
        Slot::ExpertDown(0),
        "block_sparse_moe.experts.{}.w2",
        "ffn_down.{}",
        Dim::Hidden,
        Dim::Intermediate,
    ),
];
