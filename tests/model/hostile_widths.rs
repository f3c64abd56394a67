//! Files that state the widths of layers wrongly.

use libtest_mimic::{Failed, Trial};
use lopper::error::Result as Outcome;
use lopper::formats::Source;
use lopper::formats::gguf::{self, Array, Gguf, Value as Meta};
use lopper::model::{Config, Widths};
use serde_json::{Map, Value, json};

use crate::model::widths::{expect, list};

pub fn trials() -> Vec<Trial> {
    suite!("widths": hostile_gguf, hostile_json)
}

/// The configuration of a file of these keys alone, those of a sound one but for `change`.
fn read_gguf(architecture: &str, change: (&str, Meta)) -> Result<Outcome<Config>, Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("m.gguf");
    let mut pairs = vec![(
        "general.architecture".into(),
        Meta::String(architecture.into()),
    )];
    for (name, value) in [
        ("block_count", Meta::U32(3)),
        ("embedding_length", Meta::U32(64)),
        ("feed_forward_length", list(&[32, 64, 96])),
        ("attention.head_count", list(&[4, 2, 2])),
        ("attention.head_count_kv", list(&[2, 2, 1])),
        ("attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("vocab_size", Meta::U32(100)),
    ] {
        let value = if name == change.0 {
            change.1.clone()
        } else {
            value
        };
        pairs.push((format!("{architecture}.{name}"), value));
    }
    gguf::write(&path, &pairs, Vec::new())?;
    Ok(Config::from_gguf(&Gguf::open(Source::open(&path)?)?))
}

fn refused(read: Outcome<Config>, words: &[&str]) -> Result<(), Failed> {
    let said = read.map_err(|error| (error.exit_code(), error.to_string()));
    match said {
        Err((2, said)) if words.iter().all(|word| said.contains(word)) => Ok(()),
        other => Err(format!("{words:?}: {other:?}").into()),
    }
}

fn hostile_gguf() -> Result<(), Failed> {
    let sound = read_gguf("deci", ("", Meta::U8(0)))??;
    let blocks = [(4, 2, 32), (2, 2, 64), (2, 1, 96)];
    let blocks = blocks.map(|(heads, kv_heads, intermediate_size)| Widths {
        heads,
        kv_heads,
        intermediate_size,
    });
    expect(sound.blocks == blocks && sound.head_dim == 16, &sound)?;
    let (heads, kv, channels) = (
        "attention.head_count",
        "attention.head_count_kv",
        "feed_forward_length",
    );
    let texts = Meta::Array(Array::String(vec!["4".into(); 3]));
    for (key, value, words) in [
        (heads, list(&[4, 2]), ["3 layers", "2 of them"]),
        (heads, list(&[4, 2, 2, 2]), ["3 layers", "4 of them"]),
        (heads, list(&[]), ["3 layers", "0 of them"]),
        (heads, list(&[4, 0, 2]), ["layer 1", "has attention"]),
        (kv, list(&[2, 1, 0]), ["layer 2", "has attention"]),
        (channels, list(&[0, 1, 1]), ["layer 0", "feed-forward"]),
        (channels, Meta::U32(0), ["every layer", "feed-forward"]),
        (heads, list(&[4, -2, 2]), ["layer 1", "-2"]),
        (channels, list(&[1, 1, i32::MAX]), ["layer 2", "2147483647"]),
        (
            channels,
            Meta::Array(Array::U64(vec![u64::MAX; 3])),
            ["layer 0", "18446744073709551615"],
        ),
        (kv, texts, ["integers", "another type"]),
        (
            kv,
            Meta::Array(Array::F32(vec![1.0; 3])),
            ["integers", "another type"],
        ),
        (kv, Meta::String("2".into()), ["integer", "a string"]),
        (kv, Meta::I32(-1), ["integer", "I32(-1)"]),
        (kv, list(&[2, 2, 4]), ["divisor of 2", "in layer 2"]),
        ("block_count", Meta::U32(4), ["4 layers", "3 of them"]),
        (
            "block_count",
            Meta::U32(1 << 28),
            ["at most 10000", "268435456"],
        ),
        ("block_count", list(&[3, 3, 3]), ["integer", "an array"]),
    ] {
        // Where the number of layers is at fault, the first array is.
        let named = if words[1] == "3 of them" { heads } else { key };
        let key_and_path = [&format!("deci.{named}"), "m.gguf"];
        let read = || read_gguf("deci", (key, value.clone()));
        refused(read()?, &words)?;
        refused(read()?, &key_and_path)?;
    }
    // Architecture llama has one width.
    let read = read_gguf("llama", ("", Meta::U8(0)))?;
    refused(read, &["llama.attention.head_count", "integer", "an array"])?;
    refused(
        read_gguf("falcon", ("", Meta::U8(0)))?,
        &["architecture falcon"],
    )
}

fn hostile_json() -> Result<(), Failed> {
    let sound = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 100, "head_dim": 16,
        "intermediate_size": [32, 64, 96], "num_attention_heads": [4, 2, 2], "num_key_value_heads": [2, 2, 1],
        "quantization_config": {"quant_method": "lopper"},
    });
    let sound = sound.as_object().ok_or("an object")?;
    let read = |object: &Map<String, Value>| Config::from_json("config.json".as_ref(), object);
    let widths: Vec<usize> = read(sound)?
        .blocks
        .iter()
        .map(|b| b.intermediate_size)
        .collect();
    expect(widths == [32, 64, 96], widths)?;
    let (heads, kv, channels) = (
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
    );
    for (key, value, words) in [
        (heads, json!([4, 2]), ["3 layers", "2 of them"]),
        (channels, json!([]), ["3 layers", "0 of them"]),
        (heads, json!([4, 0, 2]), ["layer 1", "found 0"]),
        (heads, json!([4, -2, 2]), ["layer 1", "found -2"]),
        (channels, json!([4, 4, 2.5]), ["layer 2", "found 2.5"]),
        (kv, json!(["2", 2, 1]), ["layer 0", "found \"2\""]),
        (kv, json!([2, [2], 1]), ["layer 1", "found [2]"]),
        (
            channels,
            json!([1, 1, 1u64 << 40]),
            ["layer 2", "1099511627776"],
        ),
        (kv, json!([2, 2, 4]), ["divisor of 2", "in layer 2"]),
        (kv, json!("two"), ["positive integer", "\"two\""]),
        ("num_hidden_layers", json!(4), ["4 layers", "3 of them"]),
        (
            "num_hidden_layers",
            json!(1 << 28),
            ["at most 10000", "268435456"],
        ),
        ("num_hidden_layers", json!([3]), ["positive integer", "[3]"]),
        ("head_dim", json!(null), ["head_dim", "positive integer"]),
    ] {
        let mut object = sound.clone();
        object.insert(key.into(), value);
        refused(read(&object), &words)?;
        // Where the number of layers is at fault, the first array is.
        let named = if words[1] == "3 of them" { heads } else { key };
        refused(read(&object), &["config.json", named])?;
    }
    for other in [
        json!(null),
        json!({"quant_method": "gptq"}),
        json!("lopper"),
    ] {
        let mut object = sound.clone();
        object.insert("quantization_config".into(), other);
        refused(read(&object), &["config.json", heads, "only Lopper's"])?;
    }
    Ok(())
}
