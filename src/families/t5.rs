//! T5 in its later form (T5 v1.1 and FLAN-T5; Raffel et al. 2020, arXiv 1910.10683; Chung et al. 2022, arXiv 2210.11416): an encoder
//! and a decoder, scores of attention that are not scaled, with a bias by distance that all blocks of a stack share and no rotary
//! encoding, a gated GELU and a head of its own. The first form's feed-forward (ReLU, not gated) and its tied, scaled head are
//! refused by name.

use serde_json::{Map, Value, json};

use super::config::{Config, Encoder};
use super::json::Reader;
use super::names::{Dim, ENCODER_DECODER, Row};
use super::{Family, Graph, Keys, decoder};
use crate::error::{Error, Result};
use crate::formats::gguf::Value as Meta;
use crate::graph::{Activation, BlockShape, DistanceBuckets, Part, Slot, blocks};

/// The row of the table.
pub static FAMILY: Family = Family {
    json_names: &[
        ("hidden_size", "d_model"),
        ("intermediate_size", "d_ff"),
        ("num_attention_heads", "num_heads"),
        ("num_key_value_heads", ""),
        ("num_hidden_layers", "num_layers"),
        ("head_dim", "d_kv"),
        ("rms_norm_eps", "layer_norm_epsilon"),
        ("max_position_embeddings", "n_positions"),
        ("rope_theta", ""),
        ("rope_scaling", ""),
    ],
    decoder_layers_keys: Some(["num_decoder_layers", "decoder_block_count"]),
    names: &ENCODER_DECODER,
    rows: DECODER_ROWS,
    encoder_rows: ENCODER_ROWS,
    activation: Activation::GeluTanh,
    activation_key: ("feed_forward_proj", &["gated-gelu"]),
    tied: true,
    read_json,
    write_json,
    read_gguf,
    write_gguf,
    ..Family::plain("t5", "T5ForConditionalGeneration", blocks!(block))
};

const fn linear(slot: Slot, hf: &'static str, gguf: &'static str, rows: Dim, columns: Dim) -> Row {
    Row::linear(slot, hf, gguf, rows, columns).unbiased()
}

const QUERY: Row =
    linear(Slot::Query, "layer.0.SelfAttention.q", "attn_q", Dim::Query, Dim::Hidden);
const KEY: Row = linear(Slot::Key, "layer.0.SelfAttention.k", "attn_k", Dim::KeyValue, Dim::Hidden);
const VALUE: Row =
    linear(Slot::Value, "layer.0.SelfAttention.v", "attn_v", Dim::KeyValue, Dim::Hidden);
const OUTPUT: Row =
    linear(Slot::Output, "layer.0.SelfAttention.o", "attn_o", Dim::Hidden, Dim::Query);
const ATTENTION_NORM: Row =
    Row::norm(Slot::AttentionNorm, "layer.0.layer_norm", "attn_norm", Dim::Hidden);
const POSITION_BIAS: Row =
    Row::position_bias("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b");

const ENCODER_ROWS: &[Row] = &[
    ATTENTION_NORM,
    QUERY,
    KEY,
    VALUE,
    POSITION_BIAS,
    OUTPUT,
    Row::norm(Slot::FeedForwardNorm, "layer.1.layer_norm", "ffn_norm", Dim::Hidden),
    linear(Slot::Gate, "layer.1.DenseReluDense.wi_0", "ffn_gate", Dim::Intermediate, Dim::Hidden),
    linear(Slot::Up, "layer.1.DenseReluDense.wi_1", "ffn_up", Dim::Intermediate, Dim::Hidden),
    linear(Slot::Down, "layer.1.DenseReluDense.wo", "ffn_down", Dim::Hidden, Dim::Intermediate),
];

const DECODER_ROWS: &[Row] = &[
    Row::norm(Slot::SourceNorm, "encoder.final_layer_norm", "enc.output_norm", Dim::Hidden)
        .of_stack(),
    linear(Slot::CrossKey, "layer.1.EncDecAttention.k", "cross_attn_k", Dim::KeyValue, Dim::Hidden),
    linear(
        Slot::CrossValue,
        "layer.1.EncDecAttention.v",
        "cross_attn_v",
        Dim::KeyValue,
        Dim::Hidden,
    ),
    ATTENTION_NORM,
    QUERY,
    KEY,
    VALUE,
    POSITION_BIAS,
    OUTPUT,
    Row::norm(Slot::CrossNorm, "layer.1.layer_norm", "cross_attn_norm", Dim::Hidden),
    linear(Slot::CrossQuery, "layer.1.EncDecAttention.q", "cross_attn_q", Dim::Query, Dim::Hidden),
    linear(Slot::CrossOutput, "layer.1.EncDecAttention.o", "cross_attn_o", Dim::Hidden, Dim::Query),
    Row::norm(Slot::FeedForwardNorm, "layer.2.layer_norm", "ffn_norm", Dim::Hidden),
    linear(Slot::Gate, "layer.2.DenseReluDense.wi_0", "ffn_gate", Dim::Intermediate, Dim::Hidden),
    linear(Slot::Up, "layer.2.DenseReluDense.wi_1", "ffn_up", Dim::Intermediate, Dim::Hidden),
    linear(Slot::Down, "layer.2.DenseReluDense.wo", "ffn_down", Dim::Hidden, Dim::Intermediate),
];

/// A block of either stack. It takes its part's tokens out of the residual stream and puts them back.
fn block<G: Graph>(g: &mut G, x: G::Value, shape: &BlockShape) -> Result<G::Value> {
    let part = shape.part.expect("a configuration of such a family has an encoder");
    if part == Part::Target
        && let Some(source) = g.take(&x, Part::Source)?
    {
        let source = g.norm(&source, Slot::SourceNorm)?;
        let key = g.linear(&source, Slot::CrossKey)?;
        let value = g.linear(&source, Slot::CrossValue)?;
        g.remember(key, value)?;
    }
    let Some(own) = g.take(&x, part)? else { return Ok(x) };
    let normed = g.norm(&own, Slot::AttentionNorm)?;
    let query = g.linear(&normed, Slot::Query)?;
    let key = g.linear(&normed, Slot::Key)?;
    let value = g.linear(&normed, Slot::Value)?;
    drop(normed);
    let mixed = g.attention_within(query, key, value, &shape.attention, part)?;
    let mixed = g.linear(&mixed, Slot::Output)?;
    let mut own = g.add(own, mixed)?;
    if part == Part::Target {
        let normed = g.norm(&own, Slot::CrossNorm)?;
        let query = g.linear(&normed, Slot::CrossQuery)?;
        drop(normed);
        let mixed = g.recall(query, &shape.attention)?;
        let mixed = g.linear(&mixed, Slot::CrossOutput)?;
        own = g.add(own, mixed)?;
    }
    let normed = g.norm(&own, Slot::FeedForwardNorm)?;
    let fed = decoder::feed_forward(g, normed, shape)?;
    let own = g.add(own, fed)?;
    g.put(x, part, own)
}

/// An encoder of so many blocks, with what transformers takes for granted of the rest.
pub(super) fn encoder(layers: usize) -> Encoder {
    Encoder { layers, buckets: DistanceBuckets { count: 32, far: 128 }, start: 0 }
}

const BUCKETS: &str = "relative_attention_num_buckets";
const FAR: &str = "relative_attention_max_distance";
const START: &str = "decoder_start_token_id";
const SCALED: &str = "scale_decoder_outputs";

fn read_json(reader: &Reader<'_>, config: &mut Config) -> Result<()> {
    if reader.given("feed_forward_proj").is_none() {
        return Err(reader.wrong("feed_forward_proj", "gated-gelu: T5 v1.1 or FLAN-T5"));
    }
    if config.tied || reader.given(SCALED).and_then(Value::as_bool) == Some(true) {
        let expected = "false: T5 v1.1 and FLAN-T5 have a head of their own, and do not scale what goes into it";
        return Err(
            reader.wrong(if config.tied { "tie_word_embeddings" } else { SCALED }, expected)
        );
    }
    reader.only("is_encoder_decoder", &json!(true))?;
    config.attention_scale = Some(1.0);
    if reader.given("n_positions").is_none() {
        config.max_positions = 512;
    }
    let start = match reader.given(START).or_else(|| reader.given("pad_token_id")) {
        None => 0,
        Some(value) => {
            let start = value.as_u64().and_then(|start| u32::try_from(start).ok());
            start.ok_or_else(|| reader.wrong(START, "a token"))?
        }
    };
    let (count, far) = (reader.size(BUCKETS)?, reader.size(FAR)?);
    if let Some(encoder) = &mut config.encoder {
        encoder.start = start;
        encoder.buckets.count = count.unwrap_or(encoder.buckets.count);
        encoder.buckets.far = far.unwrap_or(encoder.buckets.far);
    }
    Ok(())
}

fn write_json(config: &Config, map: &mut Map<String, Value>) {
    let Some(Encoder { buckets, start, .. }) = config.encoder else { return };
    for (key, value) in [
        (BUCKETS, json!(buckets.count)),
        (FAR, json!(buckets.far)),
        (START, json!(start)),
        ("dense_act_fn", json!("gelu_new")),
        ("is_encoder_decoder", json!(true)),
        ("is_gated_act", json!(true)),
    ] {
        map.insert(key.into(), value);
    }
}

const GGUF_BUCKETS: &str = "attention.relative_buckets_count";
/// The distance beyond which llama.cpp's T5 has one bucket; its files do not say.
const GGUF_FAR: usize = 128;

fn read_gguf(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    if config.tied {
        let what = "a T5 whose head is the embedding (no output.weight)".into();
        return Err(keys
            .unsupported(what, "this version reads T5 v1.1 and FLAN-T5, whose head is their own"));
    }
    // What older readers look for; the norms here have no mean.
    keys.optional_number("attention.layer_norm_epsilon")?;
    config.attention_scale = Some(1.0);
    let (count, start) = (keys.optional_size(GGUF_BUCKETS)?, keys.token(START)?);
    if let Some(encoder) = &mut config.encoder {
        encoder.buckets.count = count.unwrap_or(encoder.buckets.count);
        encoder.buckets.far = GGUF_FAR;
        encoder.start = start.unwrap_or(0);
    }
    Ok(())
}

fn write_gguf(config: &Config) -> Vec<(&'static str, Meta)> {
    let Some(Encoder { buckets, start, .. }) = config.encoder else { return Vec::new() };
    vec![
        ("decoder_block_count", Meta::U32(config.decoder_layers() as u32)),
        ("attention.layer_norm_epsilon", Meta::F32(config.rms_norm_eps as f32)),
        (GGUF_BUCKETS, Meta::U32(buckets.count as u32)),
        (START, Meta::U32(start)),
    ]
}

impl Config {
    /// An error if a GGUF file of this model would be read with other buckets of distances.
    pub(super) fn check_gguf_buckets(&self, path: &std::path::Path) -> Result<()> {
        match self.encoder {
            Some(encoder) if encoder.buckets.far != GGUF_FAR => Err(Error::Unsupported {
                path: path.into(),
                what: format!("a GGUF file of a T5 with {FAR} {}", encoder.buckets.far),
                why: format!(
                    "its architecture has no key for it and takes {GGUF_FAR}; use hf or packed"
                ),
            }),
            _ => Ok(()),
        }
    }
}
