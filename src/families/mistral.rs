//! Mistral 7B (Jiang et al. 2023, arXiv 2310.06825): Llama's block with attention to a window of tokens. GGUF has no
//! architecture of its own for it; the window's key is what tells it from a Llama, and llama.cpp does not read it.

use serde_json::json;

use super::{Family, decoder, llama};
use crate::formats::gguf::Value as Meta;
use crate::graph::blocks;

const WINDOW: &str = "attention.sliding_window";

/// The row of the table.
pub static FAMILY: Family = Family {
    gguf: "llama",
    gguf_mark: Some(WINDOW),
    rows: llama::ROWS,
    read_json: |reader, config| reader.windows(config, Some(4096), |_| true),
    write_json: |config, map| {
        map.insert("sliding_window".into(), json!(config.blocks[0].window));
    },
    read_gguf: |keys, config| {
        let window = keys.optional_size(WINDOW)?;
        config.blocks.iter_mut().for_each(|block| block.window = window);
        Ok(())
    },
    write_gguf: |config| {
        let window = config.blocks[0].window;
        let key = window.map(|window| (WINDOW, Meta::U32(window as u32)));
        key.into_iter().collect()
    },
    ..Family::plain("mistral", "MistralForCausalLM", blocks!(decoder::pre_norm, false))
};
