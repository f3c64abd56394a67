//! Shapes of published models, for benches: sizes without weights.

use serde_json::{Map, Value, json};

use super::{Family, llama};

/// The shape of a published model.
#[derive(Debug)]
pub struct Shape {
    /// Its name in `lopper synth`.
    pub name: &'static str,
    /// A shorter one.
    pub short: &'static str,
    family: &'static Family,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads, key and value heads.
    heads: (usize, usize),
    rope_theta: f64,
    tied: bool,
    context: usize,
}

const LLAMA: Shape = Shape {
    name: "",
    short: "",
    family: &llama::FAMILY,
    vocab_size: 0,
    hidden_size: 0,
    intermediate_size: 0,
    layers: 0,
    heads: (0, 0),
    rope_theta: 10_000.0,
    tied: false,
    context: 2048,
};

/// The shapes, as the models' `config.json` has them.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "smollm2-135m",
        short: "smollm2",
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1536,
        layers: 30,
        heads: (9, 3),
        rope_theta: 100_000.0,
        tied: true,
        context: 8192,
        ..LLAMA
    },
    Shape {
        name: "tinyllama-1.1b",
        short: "tinyllama",
        vocab_size: 32_000,
        hidden_size: 2048,
        intermediate_size: 5632,
        layers: 22,
        heads: (32, 4),
        ..LLAMA
    },
    Shape {
        name: "llama-3.1-8b",
        short: "llama8b",
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 32,
        heads: (32, 8),
        rope_theta: 500_000.0,
        context: 131_072,
        ..LLAMA
    },
];

impl Shape {
    /// Its `config.json`, with so many layers.
    pub fn config_json(&self, layers: usize) -> Map<String, Value> {
        let (heads, kv_heads) = self.heads;
        let value = json!({
            "architectures": [self.family.class], "model_type": self.family.name, "hidden_act": "silu",
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": self.hidden_size / heads, "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5, "rope_theta": self.rope_theta, "tie_word_embeddings": self.tied,
            "attention_bias": false, "mlp_bias": false, "bos_token_id": 256, "eos_token_id": 257, "dtype": "float16",
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}
