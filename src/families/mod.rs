//! Model families as data and one function each. A family is a file here and a row in [`FAMILIES`]: the tensors of its block,
//! its block function over a [`Graph`], and what it takes for granted where a configuration is silent.
//!
//! Nothing outside this folder names a family, or a tensor of a block: others ask a [`TensorSpec`] for its slot and its role.

mod bert;
mod config;
mod decoder;
mod gemma3;
mod gguf;
mod groups;
mod json;
mod llama;
mod mistral;
mod mixtral;
mod names;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod shapes;
mod t5;

pub use config::{BlockDims, Config, Encoder, Readout, input_place};
pub use gguf::{Origin, factor as gguf_factor, main_type, metadata};
pub use groups::{Axis, Group, Member, PrunableDim, Side, groups};
pub use names::{
    Role, TensorSpec, Unread, block_patterns, canonical, embedding_name, final_norm_name,
    head_name, is_of_block, is_of_score, layer_name, module_name, shared_slots, stored_name,
    tensor_specs, unread, without_layer,
};
pub use rope::{Rope, RopeScaling};
pub use shapes::{SHAPES, Shape};

use serde_json::{Map, Value};

use self::gguf::Keys;
use self::json::Reader;
use self::names::{DECODER, Names, Row};
use crate::data::Pooling;
use crate::error::Result;
use crate::formats::gguf::Value as Meta;
use crate::graph::{Activation, Blocks, Graph, Slot};

/// Every family. Where two share a GGUF architecture, the first whose mark is in the file is taken.
pub static FAMILIES: &[&Family] = &[
    &mixtral::FAMILY,
    &mistral::FAMILY,
    &llama::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen3_moe::FAMILY,
    &gemma3::FAMILY,
    &t5::FAMILY,
    &bert::FAMILY,
];

/// The family of a `model_type`.
pub fn by_name(name: &str) -> Option<&'static Family> {
    let mut families = FAMILIES.iter().copied();
    families.find(|family| family.name == name)
}

/// What makes a family: names, the block, and what its configurations take for granted.
pub struct Family {
    /// `model_type` in `config.json`.
    pub name: &'static str,
    /// The class that transformers opens it with, in `architectures`.
    pub class: &'static str,
    /// `general.architecture` in GGUF; empty: its files are neither read nor written.
    pub gguf: &'static str,
    /// The key for the epsilon of its norms, behind the architecture's name.
    pub gguf_epsilon: &'static str,
    /// A key, behind the architecture's name, without which (or with which 0) a GGUF file is of another family.
    pub gguf_mark: Option<&'static str>,
    /// The architecture in GGUF whose layers may differ in width.
    pub gguf_per_layer: Option<&'static str>,
    /// The keys of `config.json` for the number of a block's experts and of those of a token, if it has experts: names of each, the
    /// usual one first.
    pub experts_keys: Option<[&'static [&'static str]; 2]>,
    /// Families without experts that have its blocks but for those.
    pub dense: &'static [&'static str],
    /// What `config.json` calls sizes that it does not call as Llama does: (Llama's key, this family's). An empty name: it has no
    /// such key.
    pub json_names: &'static [(&'static str, &'static str)],
    /// The keys of `config.json` and of GGUF for the number of the decoder's blocks, of a family with an encoder: what other families
    /// call the number of blocks is that of the encoder's. Where they are missing, both have as many.
    pub decoder_layers_keys: Option<[&'static str; 2]>,
    /// What names begin with, and those of what stands outside blocks.
    pub names: &'static Names,
    /// The tensors of a block, in the order they are met; of the decoder, where there is an encoder.
    pub rows: &'static [Row],
    /// The tensors of a block of the encoder.
    pub encoder_rows: &'static [Row],
    /// The block function, for each kind of graph.
    pub blocks: Blocks,
    /// What gates the feed-forward.
    pub activation: Activation,
    /// The key that names it in `config.json`, and its names there, the usual one first.
    pub activation_key: (&'static str, &'static [&'static str]),
    /// The keys of `config.json` that say whether linear layers have biases. What no key speaks of has none in transformers,
    /// unless its row says so.
    pub bias_keys: &'static [(&'static str, &'static [Slot])],
    /// What Hugging Face's checkpoints leave out of a norm's weight.
    pub norm_offset: f32,
    /// Whether embeddings are multiplied by the root of the hidden width.
    pub scaled_embedding: bool,
    /// Columns of a head where the configuration does not say; `None`: hidden width / heads.
    pub head_dim: Option<usize>,
    /// Whether the head is the embedding where the configuration does not say.
    pub tied: bool,
    /// Whether all tokens of a text see each other, and have embeddings of their places instead of a rotary encoding.
    pub bidirectional: bool,
    /// Which token its head reads a text at, where that scores labels.
    pub scored_at: Pooling,
    /// Reads what only this family has in `config.json`.
    pub read_json: fn(&Reader<'_>, &mut Config) -> Result<()>,
    /// Writes it.
    pub write_json: fn(&Config, &mut Map<String, Value>),
    /// Reads what only this family has in GGUF.
    pub read_gguf: fn(&Keys<'_>, &mut Config) -> Result<()>,
    /// Writes it: keys behind the architecture's name.
    pub write_gguf: fn(&Config) -> Vec<(&'static str, Meta)>,
}

impl Family {
    /// A family like the plainest, for rows of the table to begin with.
    const fn plain(name: &'static str, class: &'static str, blocks: Blocks) -> Self {
        Self {
            name,
            class,
            gguf: name,
            gguf_epsilon: gguf::EPSILON,
            gguf_mark: None,
            gguf_per_layer: None,
            experts_keys: None,
            dense: &[],
            json_names: &[],
            decoder_layers_keys: None,
            names: &DECODER,
            rows: &[],
            encoder_rows: &[],
            blocks,
            activation: Activation::Silu,
            activation_key: ("hidden_act", &["silu", "swish"]),
            bias_keys: &[],
            norm_offset: 0.0,
            scaled_embedding: false,
            head_dim: None,
            tied: false,
            bidirectional: false,
            scored_at: Pooling::Last,
            read_json: |_, _| Ok(()),
            write_json: |_, _| {},
            read_gguf: |_, _| Ok(()),
            write_gguf: |_| Vec::new(),
        }
    }
}

impl Family {
    /// What `config.json` calls what Llama calls so; `None` if it has no such key.
    pub fn json_name(&self, key: &'static str) -> Option<&'static str> {
        let own = self.json_names.iter().find(|(known, _)| *known == key);
        own.map_or(Some(key), |(_, name)| Some(*name).filter(|name| !name.is_empty()))
    }

    /// The class that transformers opens it with where its head scores labels; `None`: it has none that this version reads.
    pub fn scoring_class(&self) -> Option<String> {
        let base = ["ForCausalLM", "Model"].iter().find_map(|end| self.class.strip_suffix(end));
        base.map(|base| format!("{base}{SCORING}"))
    }

    /// Gives keys that are Llama's this family's names, and takes those out that it has not.
    fn rename_json(&self, map: &mut Map<String, Value>) {
        for (known, own) in self.json_names {
            let value = map.remove(*known);
            if let (false, Some(value)) = (own.is_empty(), value) {
                map.insert((*own).into(), value);
            }
        }
    }
}

/// What transformers' classes end with whose head scores labels.
const SCORING: &str = "ForSequenceClassification";

/// The key that Llama and its kin have for all biases of attention.
const ATTENTION_BIAS: (&str, &[Slot]) =
    ("attention_bias", &[Slot::Query, Slot::Key, Slot::Value, Slot::Output]);

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
