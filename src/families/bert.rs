//! BERT's encoder (Devlin et al. 2019, arXiv 1810.04805): every token sees all others, places have learned embeddings, layer norms stand
//! behind each half of a block, the feed-forward has the exact GELU and no gate. What stands behind it reads a text as a whole: a
//! classifier, at the first token and through the pooler (a product and tanh), or nothing in a sentence encoder (Reimers and Gurevych
//! 2019, arXiv 1908.10084), whose embedding of a text is made of the states of its tokens.

use serde_json::json;

use super::config::{Config, Readout};
use super::gguf::{Keys, LAYER_EPSILON};
use super::json::Reader;
use super::names::{BERT, Dim, Row};
use super::{Family, Graph};
use crate::data::{Pooling, unnamed_label};
use crate::error::Result;
use crate::formats::gguf::{Array, Value as Meta};
use crate::graph::{Activation, BlockShape, Part, Slot, blocks};

/// The row of the table.
pub static FAMILY: Family = Family {
    json_names: &[
        ("rms_norm_eps", "layer_norm_eps"),
        ("num_key_value_heads", ""),
        ("head_dim", ""),
        ("rope_theta", ""),
        ("rope_scaling", ""),
    ],
    names: &BERT,
    rows: ROWS,
    activation: Activation::Gelu,
    activation_key: ("hidden_act", &["gelu"]),
    bidirectional: true,
    scored_at: Pooling::First,
    gguf_epsilon: LAYER_EPSILON,
    read_json,
    read_gguf,
    write_gguf,
    ..Family::plain("bert", "BertModel", blocks!(block))
};

const fn linear(slot: Slot, hf: &'static str, gguf: &'static str, rows: Dim, columns: Dim) -> Row {
    Row::linear(slot, hf, gguf, rows, columns).biased()
}

const ROWS: &[Row] = &[
    Row::table(Slot::Positions, "embeddings.position_embeddings", "position_embd", Dim::Positions),
    Row::table(
        Slot::TokenTypes,
        "embeddings.token_type_embeddings",
        "token_types",
        Dim::TokenTypes,
    ),
    Row::layer_norm(Slot::EmbeddingNorm, "embeddings.LayerNorm", "token_embd_norm").of_stack(),
    linear(Slot::Query, "attention.self.query", "attn_q", Dim::Query, Dim::Hidden),
    linear(Slot::Key, "attention.self.key", "attn_k", Dim::KeyValue, Dim::Hidden),
    linear(Slot::Value, "attention.self.value", "attn_v", Dim::KeyValue, Dim::Hidden),
    linear(Slot::Output, "attention.output.dense", "attn_output", Dim::Hidden, Dim::Query),
    Row::layer_norm(Slot::PostAttentionNorm, "attention.output.LayerNorm", "attn_output_norm"),
    // What is activated: nothing stands beside it.
    linear(Slot::Gate, "intermediate.dense", "ffn_up", Dim::Intermediate, Dim::Hidden),
    linear(Slot::Down, "output.dense", "ffn_down", Dim::Hidden, Dim::Intermediate),
    Row::layer_norm(Slot::PostFeedForwardNorm, "output.LayerNorm", "layer_output_norm"),
];

/// A block; the first one makes of word embeddings what goes into it.
fn block<G: Graph>(g: &mut G, x: G::Value, shape: &BlockShape) -> Result<G::Value> {
    let mut x = x;
    if shape.first {
        x = g.look_up(x, Slot::Positions)?;
        x = g.look_up(x, Slot::TokenTypes)?;
        x = g.layer_norm(x, Slot::EmbeddingNorm)?;
    }
    let query = g.linear(&x, Slot::Query)?;
    let key = g.linear(&x, Slot::Key)?;
    let value = g.linear(&x, Slot::Value)?;
    let mixed = g.attention_within(query, key, value, &shape.attention, Part::Source)?;
    let mixed = g.linear(&mixed, Slot::Output)?;
    let x = g.add(x, mixed)?;
    let x = g.layer_norm(x, Slot::PostAttentionNorm)?;
    let inner = g.linear(&x, Slot::Gate)?;
    let activated = g.activate(inner, shape.activation)?;
    let fed = g.linear(&activated, Slot::Down)?;
    let x = g.add(x, fed)?;
    g.layer_norm(x, Slot::PostFeedForwardNorm)
}

fn read_json(reader: &Reader<'_>, config: &mut Config) -> Result<()> {
    for key in ["is_decoder", "add_cross_attention"] {
        reader.only(key, &json!(false))?;
    }
    reader.only("position_embedding_type", &json!("absolute"))?;
    config.token_types = reader.size("type_vocab_size")?.unwrap_or(2);
    if reader.given("max_position_embeddings").is_none() {
        config.max_positions = 512;
    }
    if reader.given("layer_norm_eps").is_none() {
        config.rms_norm_eps = 1e-12;
    }
    config.tied = false;
    config.readout.get_or_insert(embedding(Pooling::Mean));
    Ok(())
}

/// What is read of a text where nobody says it: an embedding of length 1.
fn embedding(pooling: Pooling) -> Readout {
    Readout { pooling, labels: Vec::new(), normalized: true }
}

/// llama.cpp's numbers of how texts are pooled; the last one: by a head that scores labels.
const POOLINGS: [(u32, Pooling); 2] = [(1, Pooling::Mean), (2, Pooling::First)];
const BY_HEAD: u32 = 4;
const POOLING: &str = "pooling_type";
const CAUSAL: &str = "attention.causal";
const LABELS: &str = "classifier.output_labels";

fn read_gguf(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    if keys.flag(CAUSAL) != Some(false) {
        return Err(keys.wrong(CAUSAL, "false", "another value"));
    }
    config.tied = false;
    config.token_types = keys.rows("token_types.weight").unwrap_or(0);
    let labels = keys.texts(LABELS).map(<[String]>::to_vec);
    let pooling = keys.token(POOLING)?;
    let known = POOLINGS.iter().find(|(number, _)| Some(*number) == pooling);
    config.readout = Some(match (keys.rows("cls.output.weight"), pooling, known) {
        (Some(rows), Some(BY_HEAD), _) => {
            let labels = labels.unwrap_or_else(|| (0..rows).map(unnamed_label).collect());
            if labels.is_empty() {
                return Err(keys.wrong(LABELS, "a label or more", "none"));
            }
            Readout::scores(config.family.scored_at, &labels)
        }
        (_, None, _) => embedding(Pooling::Mean),
        (_, _, Some((_, pooling))) => embedding(*pooling),
        (_, Some(number), _) => {
            let expected = "1 (mean), 2 (first token), or 4 beside a head that scores labels";
            return Err(keys.wrong(POOLING, expected, number));
        }
    });
    Ok(())
}

fn write_gguf(config: &Config) -> Vec<(&'static str, Meta)> {
    let Some(readout) = &config.readout else { return Vec::new() };
    let own = POOLINGS.iter().find(|(_, pooling)| *pooling == readout.pooling);
    let mut pairs = vec![(CAUSAL, Meta::Bool(false))];
    match config.has_head() {
        true => {
            pairs.push((POOLING, Meta::U32(BY_HEAD)));
            pairs.push((LABELS, Meta::Array(Array::String(readout.labels.clone()))));
        }
        false => pairs.extend(own.map(|(number, _)| (POOLING, Meta::U32(*number)))),
    }
    pairs
}
