//! BERT's encoder: values from outside, texts beside longer ones, gradients of each block, files, embeddings by the command, examples that
//! are like a question, and what is refused.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor};
use lopper::formats::Source;
use lopper::formats::gguf::Gguf;
use lopper::gpu::{Options, Tier};
use lopper::model::{
    BackwardOptions, Checkpoint, Compute, HiddenPart, Loss, Pass, WeightSource, Weights,
    block_gradients, export_hf, export_packed,
};
use lopper::tensor::DType;
use serde_json::{Value, json};

use crate::machine::{device, gpu_trial};
use crate::models::{checkpoint, load, pass};
use crate::numbers::{Known, Within, assert_close};
use crate::program::{NANO, lopper, read_json, succeeds};

pub const BERT: &str = "assets/fixtures/bert";

pub fn trials() -> Vec<Trial> {
    let mut trials =
        suite!("sentence_encoders": round_trip, gguf, pooling, wrong_files, commands, refused);
    for (name, limit, of_gradients) in [("f32", 1e-5, 1e-5), ("f16", 2e-3, 5e-3)] {
        let dtype = if name == "f16" { DType::F16 } else { DType::F32 };
        trials.push(Trial::test(format!("sentence_encoders::golden::cpu::{name}"), move || {
            golden(&Device::Cpu, dtype, limit)?;
            golden_gradients(&Device::Cpu, dtype, of_gradients)
        }));
        for tier in [Tier::Baseline, Tier::F16] {
            let on = move || {
                let device = device(Options { tier, checked: true, ..Options::default() })?;
                if dtype == DType::F16 && !device.capabilities().f16 {
                    return Ok(());
                }
                golden(&device, dtype, limit)?;
                golden_gradients(&device, dtype, of_gradients)
            };
            let at = format!("gpu-{}::{name}", tier.name());
            trials.push(gpu_trial(format!("sentence_encoders::golden::{at}"), on));
        }
    }
    trials
}

fn known() -> Result<Known, Failed> {
    Known::open(&format!("{BERT}/golden.safetensors"))
}

/// The texts of the outside values without what fills their rows.
fn texts(known: &Known) -> Result<Vec<Vec<u32>>, Failed> {
    let (ids, lengths) = (known.words("input_ids")?, known.words("lengths")?);
    let rows = ids.chunks_exact(known.shape("input_ids")?[1]).zip(lengths);
    Ok(rows.map(|(row, length)| row[..length as usize].to_vec()).collect())
}

fn embeddings(pass: &Pass<'_>, weights: &dyn Weights) -> Result<Vec<f32>, Failed> {
    let texts = texts(&known()?)?;
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    Ok(load(pass.device, weights)?.embeddings(pass, &texts, &mut |_, _| {})?)
}

/// Texts of several lengths side by side: what fills the shorter ones is seen by nobody.
fn golden(device: &Device, dtype: DType, limit: f64) -> Result<(), Failed> {
    let weights = Checkpoint::open(BERT)?;
    let pass = Pass { device, compute: Compute::with(dtype) };
    let found = embeddings(&pass, &weights)?;
    assert_close("embeddings", &found, &known()?.floats("embeddings")?, Within::Norm(limit));
    Ok(())
}

/// Gradients of each block alone, the first with what makes its input of word embeddings.
fn golden_gradients(device: &Device, dtype: DType, limit: f64) -> Result<(), Failed> {
    let (weights, known) = (Checkpoint::open(BERT)?, known()?);
    let model = load(device, &weights)?;
    let pass = Pass { device, compute: Compute::with(dtype) };
    let upstream = known.floats("upstream")?;
    let width = weights.config().hidden_size;
    let upload = |values: &[f32]| {
        let host = HostTensor::from_f32(DType::F32, &[values.len() / width, width], values);
        device.upload(&host, "rows")
    };
    for layer in 0..weights.config().layers() {
        let input = upload(&known.floats(&format!("input.{layer}"))?)?;
        let loss = |_: usize, tokens: std::ops::Range<usize>, _: &lopper::device::Tensor| {
            let gradient = upload(&upstream[tokens.start * width..tokens.end * width])?;
            let losses = device.read_later(&gradient)?;
            Ok(Some(HiddenPart { losses, factor: 0.0, gradient }))
        };
        let none = Loss { scored: None, next_tokens: 0.0, teacher: None, scores: None };
        let options = BackwardOptions { loss: none, checks: false, ..BackwardOptions::ALL };
        let mut found = Vec::new();
        let source = WeightSource::Resident(&model);
        block_gradients(source, &pass, layer, (&input, 2), &loss, options, &mut |gradient| {
            let values = device.read(&gradient.values)?.to_f32();
            let expected = known.floats(&format!("grad.{}", gradient.name)).expect("each has one");
            // What all keys have in common changes nothing.
            let cancels = gradient.name.ends_with("key.bias");
            let limit = if cancels { f64::INFINITY } else { limit };
            assert_close(&gradient.name, &values, &expected, Within::Norm(limit));
            found.push(gradient.name);
            Ok(())
        })?;
        let own = weights.specs().iter().filter(|spec| spec.layer == Some(layer));
        let mut own: Vec<String> = own.map(|spec| spec.name.clone()).collect();
        own.sort();
        found.sort();
        assert_eq!(found, own, "gradients of block {layer}, each once");
    }
    Ok(())
}

fn round_trip() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let weights = Checkpoint::open(BERT)?;
    let expected = embeddings(&pass(&Device::Cpu), &weights)?;
    for kind in ["hf", "packed"] {
        let path = folder.path().join(kind);
        std::fs::create_dir_all(&path)?;
        match kind {
            "hf" => drop(export_hf(&path, weights.config_json()?, &weights, None)?),
            _ => export_packed(&path, weights.config_json()?, &weights, None)?,
        }
        let again = checkpoint(&path)?;
        assert_eq!(again.config(), weights.config());
        assert_eq!(embeddings(&pass(&Device::Cpu), &again)?, expected, "{kind}");
        assert_eq!(read_json(path.join("config.json"))?["architectures"], json!(["BertModel"]));
        let modules = read_json(path.join("modules.json"))?;
        assert_eq!(modules.as_array().map(Vec::len), Some(3), "as sentence-transformers opens it");
    }
    Ok(())
}

/// A GGUF file with llama.cpp's names and keys, its vocabulary too; what comes out of it again computes the same.
fn gguf() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    with_words(&folder.join("bert"), BERT)?;
    with_words(&folder.join("labels"), "assets/fixtures/bert-labels")?;
    for (model, read) in [
        ("bert", "embed {} --text Rainy --text taxes --json=-"),
        ("labels", "eval {} --task phrasebank:bank.txt --json=-"),
    ] {
        std::fs::write(
            folder.join("bank.txt"),
            "rainy day@positive\nTaxes taxes day@negative\nsunny@neutral\n",
        )?;
        succeeds(folder, &format!("export {model} --format gguf --out {model}.gguf"))?;
        succeeds(folder, &format!("export {model}.gguf --format hf --out {model}-again"))?;
        let own = checkpoint(&folder.join(model))?;
        let found = |name: &str| -> Result<Value, Failed> {
            let json = succeeds(folder, &read.replace("{}", name))?.json()?;
            Ok(match model {
                "bert" => json["embeddings"].clone(),
                _ => json["tasks"]["bank"].clone(),
            })
        };
        let expected = found(model)?;
        for name in [format!("{model}.gguf"), format!("{model}-again")] {
            let again = checkpoint(&folder.join(&name))?;
            assert!(again.config().computes_as(own.config()), "{:?}", again.config());
            assert_eq!(found(&name)?, expected, "{name}");
            let (one, two) = (own.tokenizer()?, again.tokenizer()?);
            assert_eq!(
                one.encode_within("SUNNY day, taxes", 9)?,
                two.encode_within("SUNNY day, taxes", 9)?
            );
        }
        let file = Gguf::open(Source::open(&folder.join(model).with_extension("gguf"))?)?;
        let text = |key: &str| file.get(key).and_then(|value| value.as_str());
        let number = |key: &str| file.get(key).and_then(|value| value.as_u64());
        assert_eq!(text("general.architecture"), Some("bert"));
        assert_eq!(text("tokenizer.ggml.model"), Some("bert"));
        assert_eq!(number("bert.pooling_type"), Some(if model == "bert" { 1 } else { 4 }));
        assert_eq!(number("tokenizer.ggml.token_type_count"), Some(2));
        assert_eq!(
            file.get("bert.attention.causal").and_then(|value| value.as_bool()),
            Some(false)
        );
        let names = [
            "token_embd_norm.bias",
            "position_embd.weight",
            "token_types.weight",
            "blk.1.attn_output_norm.bias",
            "blk.0.layer_output_norm.weight",
        ];
        let of_head = ["cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias"];
        assert!(names.iter().all(|name| file.tensor(name).is_some()), "{names:?}");
        assert!(of_head.iter().all(|name| file.tensor(name).is_some() == (model == "labels")));
    }
    Ok(())
}

/// Every kind of pooling, in both styles of its settings, with and without length 1, out of states from outside; others by name.
fn pooling() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{BERT}/{file}"), folder.join(file))?;
    }
    std::fs::create_dir(folder.join("1_Pooling"))?;
    let module = |place: usize, path: &str, kind: &str| json!({"idx": place, "name": place.to_string(), "path": path, "type": format!("sentence_transformers.models.{kind}")});
    let write = |kinds: &[&str], settings: Value| {
        let mut list = vec![module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")];
        list.extend(kinds.iter().map(|kind| module(2, "2_Other", kind)));
        std::fs::write(folder.join("modules.json"), json!(list).to_string())?;
        std::fs::write(folder.join("1_Pooling/config.json"), settings.to_string())
    };
    let known = known()?;
    let (states, width) = (known.floats("hidden")?, 64);
    let rows = states.chunks_exact(known.shape("hidden")?[1] * width).zip(texts(&known)?);
    let rows: Vec<(&[f32], usize)> = rows.map(|(row, text)| (row, text.len())).collect();
    let old = |on: &str| json!({"word_embedding_dimension": 64, "pooling_mode_cls_token": on == "cls", "pooling_mode_mean_tokens": on == "mean", "pooling_mode_max_tokens": on == "max", "pooling_mode_mean_sqrt_len_tokens": on == "root"});
    let pass = pass(&Device::Cpu);
    for (kind, settings, normalize) in [
        ("cls", old("cls"), false),
        ("max", old("max"), true),
        ("mean", old("mean"), false),
        ("cls", json!({"embedding_dimension": 64, "pooling_mode": "cls"}), true),
    ] {
        write(if normalize { &["Normalize"] } else { &[] }, settings)?;
        let mut expected = Vec::new();
        for (row, tokens) in &rows {
            let column = |column: usize| (0..*tokens).map(move |token| row[token * width + column]);
            let pooled = (0..width).map(|at| match kind {
                "cls" => row[at],
                "max" => column(at).fold(f32::NEG_INFINITY, f32::max),
                _ => column(at).sum::<f32>() / *tokens as f32,
            });
            let pooled: Vec<f32> = pooled.collect();
            let length = pooled.iter().map(|value| value * value).sum::<f32>().sqrt();
            expected
                .extend(pooled.iter().map(|value| if normalize { value / length } else { *value }));
        }
        let weights = checkpoint(folder)?;
        assert_close(kind, &embeddings(&pass, &weights)?, &expected, Within::Norm(1e-5));
        let again = folder.join(format!("again-{kind}-{normalize}"));
        std::fs::create_dir(&again)?;
        export_hf(&again, weights.config_json()?, &weights, None)?;
        assert_eq!(checkpoint(&again)?.config(), weights.config(), "{kind}");
    }
    let both = json!({"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true});
    for (kinds, settings, said) in [
        (&[][..], old("root"), "mean_sqrt_len_tokens"),
        (&[], json!({"pooling_mode": "lasttoken"}), "lasttoken"),
        (&[], both, "cls_token and max_tokens"),
        (&[], json!({}), "settings of a pooling"),
        (&["Dense"], old("mean"), "the module Dense"),
    ] {
        write(kinds, settings)?;
        let error = Checkpoint::open(&folder.to_string_lossy()).err().ok_or(said)?.to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    std::fs::write(
        folder.join("modules.json"),
        json!([module(0, "", "Transformer"), module(1, "../x", "Pooling")]).to_string(),
    )?;
    let error = Checkpoint::open(&folder.to_string_lossy()).err().ok_or("outside")?.to_string();
    assert!(error.contains("a path within the model's folder"), "{error}");
    Ok(())
}

fn wrong_files() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let config = read_json(format!("{BERT}/config.json"))?;
    let model = folder.path().join("model.safetensors");
    std::fs::copy(format!("{BERT}/model.safetensors"), model)?;
    for (key, value, said) in [
        ("is_decoder", json!(true), "is_decoder"),
        ("position_embedding_type", json!("relative_key"), "absolute"),
        ("hidden_act", json!("relu"), "gelu"),
        ("max_position_embeddings", json!(16), "shape [16, 64]"),
        ("type_vocab_size", json!(3), "shape [3, 64]"),
        (
            "architectures",
            json!(["BertForSequenceClassification"]),
            "`pooler.dense.weight`: expected shape [64, 64], found no such tensor",
        ),
    ] {
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(folder.path().join("config.json"), config.to_string())?;
        let error = Checkpoint::open(&folder.path().to_string_lossy());
        let error = error.err().ok_or_else(|| key.to_string())?.to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
    Ok(())
}

/// A fixture with a WordPiece vocabulary.
pub fn with_words(folder: &Path, fixture: &str) -> Result<(), Failed> {
    std::fs::create_dir_all(folder)?;
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{fixture}/{file}"), folder.join(file))?;
    }
    let words =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "rain", "##y", "sun", "##ny", "day", "tax", "##es"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(word, id)| (word.to_string(), json!(id))).collect();
    let special = |name: &str, id: u32| json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [special("[PAD]", 0), special("[UNK]", 1), special("[CLS]", 2), special("[SEP]", 3)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [token("[CLS]"), json!({"Sequence": {"id": "A", "type_id": 0}}), token("[SEP]")],
            "pair": [token("[CLS]"), json!({"Sequence": {"id": "A", "type_id": 0}}), token("[SEP]"), json!({"Sequence": {"id": "B", "type_id": 1}})],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    Ok(())
}

/// Texts in, embeddings out, and the examples that are most like a question in front of it.
fn commands() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    with_words(&folder.join("bert"), BERT)?;
    // Longer than a truncation that the vocabulary's file asks for, and without the padding.
    std::fs::write(folder.join("texts.txt"), "Rainy day sunny DAY\ntaxes\nrainy day sunny day\n")?;
    let found = succeeds(folder, "embed bert --texts texts.txt --json=-")?.json()?;
    let weights = checkpoint(&folder.join("bert"))?;
    let ids: [&[u32]; 3] = [&[2, 4, 5, 8, 6, 7, 8, 3], &[2, 9, 10, 3], &[2, 4, 5, 8, 6, 7, 8, 3]];
    let expected =
        load(&Device::Cpu, &weights)?.embeddings(&pass(&Device::Cpu), &ids, &mut |_, _| {})?;
    let rows = found["embeddings"].as_array().ok_or("embeddings")?;
    let values: Vec<f32> = rows
        .iter()
        .flat_map(|row| row.as_array().into_iter().flatten())
        .filter_map(Value::as_f64)
        .map(|v| v as f32)
        .collect();
    assert_close("embeddings", &values, &expected, Within::Norm(1e-6));
    for row in expected.chunks_exact(64) {
        let length: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
        assert!((length - 1.0).abs() < 1e-6, "of length 1: {length}");
    }
    succeeds(folder, "embed bert --text rainy --text taxes --out e.safetensors")?;
    let stored = Known::open(&folder.join("e.safetensors").to_string_lossy())?;
    assert_eq!(stored.shape("embeddings")?, [2, 64]);
    succeeds(folder, "quantize bert --bits 4 --no-eval --formats packed --out q")?;
    let q = checkpoint(&folder.join("q/packed"))?;
    let plain = |name: &str| {
        q.specs().iter().any(|s| s.name == name && q.format(s).is_ok_and(|f| f.ty.is_plain()))
    };
    assert!(
        plain("embeddings.position_embeddings.weight")
            && !plain("encoder.layer.0.output.dense.weight")
    );
    succeeds(folder, "embed q/packed --text rainy")?;
    let lines = ["rainy day", "taxes taxes", "sunny day", "tax day"];
    let text: String = lines
        .iter()
        .map(|text| format!("{{\"text\": \"{text}\", \"label\": \"yes\"}}\n"))
        .collect();
    std::fs::write(folder.join("days.jsonl"), text)?;
    let shots =
        "--task headlines:days.jsonl --shots 1 --shot-selection embedding --shot-encoder bert";
    succeeds(folder, &format!("eval {NANO} {shots} --samples s.jsonl"))?;
    // Of each question the example whose embedding is nearest, by the embeddings that the command gives.
    let topics: Vec<String> =
        lines.iter().map(|text| format!("Headline: {text} Sarcastic:\n")).collect();
    std::fs::write(folder.join("topics.txt"), topics.concat())?;
    let found = succeeds(folder, "embed bert --texts topics.txt --json=-")?.json()?;
    let embedding = |place: usize| -> Vec<f64> {
        let row = found["embeddings"][place].as_array();
        row.into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let samples = std::fs::read_to_string(folder.join("s.jsonl"))?;
    for (place, sample) in samples.lines().enumerate() {
        let own = embedding(place);
        let cosine =
            |other: &usize| -> f64 { own.iter().zip(embedding(*other)).map(|(a, b)| a * b).sum() };
        let others = (0..lines.len()).filter(|other| *other != place);
        let nearest = others.max_by(|a, b| cosine(a).total_cmp(&cosine(b))).ok_or("another")?;
        for (other, text) in lines.iter().enumerate() {
            let shown = sample.contains(&format!("Headline: {text}"));
            assert_eq!(shown, other == place || other == nearest, "{text} for {place}: {sample}");
        }
    }
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    with_words(&folder.path().join("bert"), BERT)?;
    for (arguments, said) in [
        ("generate bert --prompt a", "one that embeds texts"),
        ("eval bert --ppl embedded:heldout-2026", "one that embeds texts"),
        ("eval bert --preferences headlines", "one that embeds texts"),
        ("logits bert --tokens 1,2 --out l.safetensors", "which embeds texts"),
        ("tune bert --data embedded:calibration --length 8 --out o", "embeds texts"),
        ("transform bert --method awq --then q4_0 --no-eval --out o", "a model without an encoder"),
        ("prune bert --method slicegpt --ratio 0.2 --no-eval --out o", "bert is not supported"),
        ("embed embedded:nano-llama --text a", "a sentence encoder"),
        (
            "eval embedded:nano-llama --task headlines --shot-encoder bert",
            "--shot-selection embedding",
        ),
        (
            "eval embedded:nano-llama --task headlines --shots 1 --shot-selection embedding --shot-encoder embedded:nano-llama",
            "a sentence encoder",
        ),
    ] {
        lopper(folder.path(), &format!("{arguments} --device cpu"))?.refused(2, said);
    }
    Ok(())
}
