//! Shapes of published models, for benches: sizes without weights.

use serde_json::{Map, Value, json};

use super::{Family, llama, mixtral, t5};

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
    /// Blocks; of each stack, where there is an encoder.
    pub layers: usize,
    /// Query heads, key and value heads.
    heads: (usize, usize),
    /// Experts of a block, and those that a token goes to, of a family that has some.
    experts: (usize, usize),
    /// Columns of a head; 0: the width's share.
    head_dim: usize,
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
    experts: (0, 0),
    head_dim: 0,
    rope_theta: 10_000.0,
    tied: false,
    context: 2048,
};

/// The base one (Chung et al. 2022, arXiv 2210.11416). Layers are those of each stack.
const T5: Shape = Shape {
    family: &t5::FAMILY,
    vocab_size: 32_128,
    hidden_size: 768,
    intermediate_size: 2048,
    layers: 12,
    heads: (12, 12),
    head_dim: 64,
    context: 512,
    ..LLAMA
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
    Shape {
        name: "smollm2-1.7b",
        short: "smollm2-1.7b",
        vocab_size: 49_152,
        hidden_size: 2048,
        intermediate_size: 8192,
        layers: 24,
        heads: (32, 32),
        rope_theta: 130_000.0,
        tied: true,
        context: 8192,
        ..LLAMA
    },
    // Llama-3.1-Minitron-4B (Sreenivas et al. 2024, arXiv 2408.11796), in both forms.
    Shape {
        name: "minitron-4b-width",
        short: "minitron-width",
        vocab_size: 128_256,
        hidden_size: 3072,
        intermediate_size: 9216,
        layers: 32,
        heads: (32, 8),
        head_dim: 128,
        rope_theta: 500_000.0,
        context: 131_072,
        ..LLAMA
    },
    Shape {
        name: "minitron-4b-depth",
        short: "minitron-depth",
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 16,
        heads: (32, 8),
        rope_theta: 500_000.0,
        context: 131_072,
        ..LLAMA
    },
    // Jiang et al. 2024, arXiv 2401.04088, table 1.
    Shape {
        name: "mixtral-8x7b",
        short: "mixtral",
        family: &mixtral::FAMILY,
        vocab_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 32,
        heads: (32, 8),
        experts: (8, 2),
        rope_theta: 1_000_000.0,
        context: 32_768,
        ..LLAMA
    },
    // Reckoned: the sizes that its name and its tokenizer (GPT-2's) leave, not read from its config.json.
    Shape {
        name: "litellama-460m",
        short: "litellama",
        vocab_size: 50_304,
        hidden_size: 1024,
        intermediate_size: 4096,
        layers: 24,
        heads: (16, 16),
        tied: true,
        context: 1024,
        ..LLAMA
    },
    Shape { name: "flan-t5-base", short: "flan-t5", ..T5 },
    Shape {
        name: "flan-t5-large",
        short: "flan-t5-large",
        hidden_size: 1024,
        intermediate_size: 2816,
        layers: 24,
        heads: (16, 16),
        ..T5
    },
    Shape {
        name: "flan-t5-xl",
        short: "flan-t5-xl",
        hidden_size: 2048,
        intermediate_size: 5120,
        layers: 24,
        heads: (32, 32),
        ..T5
    },
];

impl Shape {
    /// Its `config.json`, with so many layers.
    pub fn config_json(&self, layers: usize) -> Map<String, Value> {
        let (heads, kv_heads) = self.heads;
        let value = json!({
            "architectures": [self.family.class], "model_type": self.family.name,
            "vocab_size": self.vocab_size, "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "head_dim": if self.head_dim == 0 { self.hidden_size / heads } else { self.head_dim }, "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5, "rope_theta": self.rope_theta, "tie_word_embeddings": self.tied,
            "attention_bias": false, "mlp_bias": false, "bos_token_id": 256, "eos_token_id": 257, "dtype": "float16",
        });
        let Value::Object(mut map) = value else { return Map::new() };
        let (key, names) = self.family.activation_key;
        map.insert(key.into(), json!(names[0]));
        if let Some([count, used]) = self.family.experts_keys {
            map.insert(count[0].into(), json!(self.experts.0));
            map.insert(used[0].into(), json!(self.experts.1));
        }
        if let Some([key, _]) = self.family.decoder_layers_keys {
            map.insert(key.into(), json!(layers));
            map.insert("is_encoder_decoder".into(), json!(true));
            map.insert("decoder_start_token_id".into(), json!(256));
        }
        self.family.rename_json(&mut map);
        map
    }
}
