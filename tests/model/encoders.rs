//! Models with an encoder: values from outside, rows of several lengths, steps after a pass, files, and what is refused.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::data::BETWEEN;
use lopper::data::training::{Dataset, Examples};
use lopper::device::{Device, Random};
use lopper::formats::gguf::Gguf;
use lopper::gpu::{Options, Tier};
use lopper::graph::Slot;
use lopper::measure::quality::tasks::{Batching, Question, Request, score};
use lopper::model::{
    BackwardOptions, Cache, Checkpoint, Compute, Decoder, Ensemble, Pass, TensorSpec, WeightSource,
    Weights, export_gguf, export_hf, gradients, paired_row,
};
use lopper::tensor::{DType, Packed};
use lopper::walk::{Through, Walk};
use serde_json::{Value, json};

use crate::machine::{device, gpu_trial, on_each};
use crate::models::{MapWeights, checkpoint, load, pass, read_folder, write_model};
use crate::numbers::{Known, Within, assert_close};
use crate::program::{lopper, read_json, succeeds};

const T5: &str = "embedded:tiny-t5";
const FOLDER: &str = "assets/tiny-t5";
const GOLDEN: &str = "assets/golden/tiny-t5.safetensors";

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("encoders": round_trip, wrong_files, wrong_rows, differences,
        rows_to_learn, answers, commands, refused);
    trials.extend(on_each("encoders::padding", padding));
    trials.extend(on_each("encoders::steps", steps));
    trials.extend(on_each("encoders::parts", parts));
    trials.extend(on_each("encoders::walks", walks));
    for (name, limit, gradients) in [("f32", 1e-5, 3e-5), ("f16", 2e-3, 4e-3)] {
        let dtype = if name == "f16" { DType::F16 } else { DType::F32 };
        trials.push(Trial::test(format!("encoders::golden::cpu::{name}"), move || {
            golden(&Device::Cpu, dtype, limit)
        }));
        trials.push(Trial::test(format!("encoders::golden_gradients::cpu::{name}"), move || {
            golden_gradients(&Device::Cpu, dtype, gradients)
        }));
        for tier in [Tier::Baseline, Tier::F16] {
            let on = move |run: fn(&Device, DType, f64) -> Result<(), Failed>, limit| {
                let device = device(Options { tier, checked: true, ..Options::default() })?;
                match dtype == DType::F32 || device.capabilities().f16 {
                    true => run(&device, dtype, limit),
                    false => Ok(()),
                }
            };
            let at = format!("gpu-{}::{name}", tier.name());
            trials.push(gpu_trial(format!("encoders::golden::{at}"), move || on(golden, limit)));
            trials.push(gpu_trial(format!("encoders::golden_gradients::{at}"), move || {
                on(golden_gradients, gradients)
            }));
        }
    }
    trials
}

/// The rows of the outside values: sources, and labels whose last is foretold and not read.
fn golden_rows(known: &Known, model: &Checkpoint) -> Result<(Vec<u32>, usize, usize), Failed> {
    let (sources, labels) = (known.words("input_ids")?, known.words("labels")?);
    let (each, count) = (known.shape("input_ids")?[1], known.shape("labels")?[1]);
    let rows = sources.chunks_exact(each).zip(labels.chunks_exact(count));
    let ids =
        rows.flat_map(|(source, labels)| paired_row(model.config(), source, labels, each + 1));
    Ok((ids.collect(), each, count))
}

/// What the encoder makes of the sources, and the logits of each label, within a relative L2 error.
fn golden(device: &Device, dtype: DType, limit: f64) -> Result<(), Failed> {
    let (weights, known) = (Checkpoint::open(T5)?, Known::open(GOLDEN)?);
    let (ids, each, count) = golden_rows(&known, &weights)?;
    let pass = Pass { device, compute: Compute::with(dtype) };
    let (hidden, logits) = load(device, &weights)?.trace(&pass, &ids, 2, true)?;
    let config = weights.config();
    let rows = |values: &[f32], width: usize, from: usize, many: usize| -> Vec<f32> {
        let row = values.chunks_exact(values.len() / 2);
        row.flat_map(|row| &row[from * width..(from + many) * width]).copied().collect()
    };
    let found = rows(&logits.to_f32(), config.vocab_size, each + 1, count);
    assert_close("logits", &found, &known.floats("logits")?, Within::Norm(limit));
    // The stream behind the encoder's last block, normalized as the decoder's blocks do.
    let is_norm = |spec: &&TensorSpec| spec.slot == Slot::SourceNorm;
    let gain = weights.specs().iter().find(is_norm).ok_or("a norm behind the encoder")?;
    assert_eq!(gain.name, "encoder.final_layer_norm.weight");
    let gain = weights.load(gain)?.to_f32();
    let stream = rows(&hidden[config.layers() / 2].to_f32(), config.hidden_size, 0, each);
    let normed = stream.chunks_exact(gain.len()).flat_map(|line| {
        let squares: f64 = line.iter().map(|v| f64::from(*v).powi(2)).sum();
        let root = (squares / line.len() as f64 + 1e-6).sqrt();
        let normed = line.iter().zip(&gain).map(move |(v, g)| f64::from(*v) / root * f64::from(*g));
        normed.map(|v| v as f32).collect::<Vec<_>>()
    });
    let normed: Vec<f32> = normed.collect();
    assert_close("encoder", &normed, &known.floats("encoder")?, Within::Norm(limit));
    Ok(())
}

fn golden_gradients(device: &Device, dtype: DType, limit: f64) -> Result<(), Failed> {
    let (weights, known) = (Checkpoint::open(T5)?, Known::open(GOLDEN)?);
    let (ids, ..) = golden_rows(&known, &weights)?;
    let (model, mut found) = (load(device, &weights)?, 0);
    let pass = Pass { device, compute: Compute::with(dtype) };
    let loss = model.gradients(&pass, &ids, 2, &mut |gradient| {
        let values = device.read(&gradient.values)?.to_f32();
        let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let name = gradient.name;
        let expected = known.floats(&format!("gradnorm.{name}")).expect("each has a norm");
        assert_close(&format!("norm of {name}"), &[norm], &expected, Within::Norm(limit));
        found += 1;
        Ok(())
    })?;
    assert_close("loss", &[loss], &known.floats("loss")?, Within::Norm(limit));
    assert_eq!(found, weights.specs().len(), "gradients, each once");
    Ok(())
}

fn random_ids(count: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| 4 + random.below(3990)).collect()
}

/// Logits of one target token behind another.
fn target_logits(logits: &[f32], row: usize, place: usize, length: usize) -> &[f32] {
    let vocabulary = 4096;
    &logits[(row * length + place) * vocabulary..][..vocabulary]
}

/// A row gives the same beside a longer one, whose source it is filled up to.
fn padding(device: &Device) -> Result<(), Failed> {
    let weights = Checkpoint::open(T5)?;
    let (model, config) = (load(device, &weights)?, weights.config());
    let (short, long) = (random_ids(7, 1), random_ids(19, 2));
    let target = random_ids(3, 3);
    let alone = paired_row(config, &short, &target, 8);
    let (_, alone) = model.trace(&pass(device), &alone, 1, false)?;
    let both =
        [paired_row(config, &short, &target, 20), paired_row(config, &long, &target, 20)].concat();
    let (_, both) = model.trace(&pass(device), &both, 2, false)?;
    let (alone, both) = (alone.to_f32(), both.to_f32());
    for place in 0..4 {
        let found = target_logits(&both, 0, 20 + place, 24);
        let expected = target_logits(&alone, 0, 8 + place, 12);
        assert_close("a filled row", found, expected, Within::Norm(1e-5));
        let other = target_logits(&both, 1, 20 + place, 24);
        assert!(found.iter().zip(other).any(|(a, b)| (a - b).abs() > 0.1), "sources matter");
    }
    Ok(())
}

/// The decoder goes on from a cache as a whole pass would: token by token, several at once, and in a cache of another type.
fn steps(device: &Device) -> Result<(), Failed> {
    let weights = Checkpoint::open(T5)?;
    let (model, config, pass) = (load(device, &weights)?, weights.config(), pass(device));
    let (sources, target) = ([random_ids(9, 4), random_ids(5, 5)], random_ids(6, 6));
    let (width, length) = (10, 17);
    let rows: Vec<Vec<u32>> =
        sources.iter().map(|source| paired_row(config, source, &target, width)).collect();
    let (_, whole) = model.trace(&pass, &rows.concat(), 2, false)?;
    let whole = whole.to_f32();
    for ends in [vec![10, 11, 12, 13, 17], vec![11, 14, 17], vec![16, 17]] {
        let mut cache = Cache::new(device, config, 2, length, pass.compute)?;
        let mut from = 0;
        for end in ends {
            let part: Vec<u32> = rows.iter().flat_map(|row| &row[from..end]).copied().collect();
            let normed = model.hidden(&pass, &part, &cache)?;
            cache.advance(device, end - from)?;
            let logits = device.read(&model.head(&pass, &normed, 0..2 * (end - from))?)?.to_f32();
            for (row, place) in
                [0, 1].into_iter().flat_map(|r| (from.max(width)..end).map(move |p| (r, p)))
            {
                let found = target_logits(&logits, row, place - from, end - from);
                let expected = target_logits(&whole, row, place, length);
                assert_close(&format!("place {place}"), found, expected, Within::Norm(1e-5));
            }
            from = end;
        }
    }
    // The likeliest tokens one after the other, beside passes over all so far.
    let source = &sources[0];
    let prompt = paired_row(config, source, &[], width);
    let mut cache = Cache::new(device, config, 1, width + 9, pass.compute)?;
    model.hidden(&pass, &prompt[..width], &cache)?;
    cache.advance(device, width)?;
    let mut chosen = Vec::new();
    Decoder::new(&model, pass, cache, &prompt[width..])?.run(6, &mut |step| {
        chosen.push(step[0].token);
        Ok(true)
    })?;
    let mut expected = Vec::new();
    for _ in 0..6 {
        let row = paired_row(config, source, &expected, width);
        let (_, logits) = model.trace(&pass, &row, 1, false)?;
        let logits = logits.to_f32();
        let last = target_logits(&logits, 0, row.len() - 1, row.len());
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b]));
        expected.push(best.ok_or("a token")? as u32);
    }
    assert_eq!(chosen[..6], expected);
    Ok(())
}

/// Gradients by microbatches, from a model on the device or layer by layer, add up to the whole, each part once.
fn parts(device: &Device) -> Result<(), Failed> {
    let weights = Checkpoint::open(T5)?;
    let (model, config, pass) = (load(device, &weights)?, weights.config(), pass(device));
    let row = |seed: u64| {
        let source = random_ids(3 + seed as usize, 10 + seed);
        paired_row(config, &source, &random_ids(5, 20 + seed), 8)
    };
    let ids: Vec<u32> = (0..2).flat_map(row).collect();
    let sum = |source: WeightSource<'_>, tokens: usize, budget: u64| {
        let options = BackwardOptions { tokens, activation_budget: budget, ..BackwardOptions::ALL };
        let mut sums: Vec<(String, Vec<f32>, Vec<usize>)> = Vec::new();
        let loss = gradients(source, &pass, &ids, 2, options, &mut |_, _| {}, &mut |gradient| {
            let values = device.read(&gradient.values)?.to_f32();
            match sums.iter_mut().find(|(name, ..)| *name == gradient.name) {
                None => sums.push((gradient.name, values, vec![gradient.part])),
                Some((_, sum, parts)) => {
                    assert!(!parts.contains(&gradient.part), "{} comes twice", gradient.name);
                    parts.push(gradient.part);
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
            }
            Ok(())
        })?;
        sums.sort_by(|a, b| a.0.cmp(&b.0));
        Ok::<_, Failed>((loss, sums))
    };
    let (loss, whole) = sum(WeightSource::Resident(&model), usize::MAX, u64::MAX)?;
    for (source, tokens, budget) in [
        // A block of the decoder, but not all.
        (WeightSource::Resident(&model), 14, 1 << 19),
        (WeightSource::Streamed(device, &weights), usize::MAX, 0),
    ] {
        let (again, found) = sum(source, tokens, budget)?;
        assert_close("loss", &[again], &[loss as f32], Within::Norm(1e-6));
        assert_eq!(found.len(), whole.len(), "gradients");
        for ((name, found, _), (_, expected, _)) in found.iter().zip(&whole) {
            assert_close(name, found, expected, Within::Norm(2e-5));
        }
    }
    let by_row = BackwardOptions { by_sequence: true, ..BackwardOptions::ALL };
    let refused = gradients(
        WeightSource::Resident(&model),
        &pass,
        &ids,
        2,
        by_row,
        &mut |_, _| {},
        &mut |_| Ok(()),
    );
    let text = refused.err().ok_or("gradients of single rows")?.to_string();
    assert!(text.contains("t5"), "{text}");
    Ok(())
}

/// The bias' gradient, and one in each stack, against differences of the loss.
fn differences() -> Result<(), Failed> {
    let parent = Checkpoint::open(T5)?;
    let row = |seed: u64| {
        paired_row(parent.config(), &random_ids(30, seed), &random_ids(12, seed + 1), 31)
    };
    let ids = [row(30), row(40)].concat();
    let loss = |name: &str, place: usize, by: f32| -> Result<f64, Failed> {
        let moved = |spec: &TensorSpec, weight: Packed| {
            if spec.name != name {
                return Ok(weight);
            }
            let mut values = weight.to_f32();
            values[place] += by;
            Ok(Packed::from_f32(&values, spec.rows, spec.columns))
        };
        let changed = MapWeights(&parent, &moved);
        let model = load(&Device::Cpu, &changed)?;
        let (_, logits) = model.trace(&pass(&Device::Cpu), &ids, 2, false)?;
        let logits = logits.to_f32();
        let mut sum = 0.0;
        for (row, place) in
            [0, 1].into_iter().flat_map(|row| (31..43).map(move |place| (row, place)))
        {
            let line = target_logits(&logits, row, place, 44);
            let most = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps = line.iter().map(|logit| f64::from(logit - most).exp());
            sum +=
                exps.sum::<f64>().ln() + f64::from(most - line[ids[row * 44 + place + 1] as usize]);
        }
        Ok(sum / 24.0)
    };
    let mut found = std::collections::HashMap::new();
    let model = load(&Device::Cpu, &parent)?;
    model.gradients(&pass(&Device::Cpu), &ids, 2, &mut |gradient| {
        found.insert(gradient.name, Device::Cpu.read(&gradient.values)?.to_f32());
        Ok(())
    })?;
    // The other tensors' norms stand in the outside values too; these have a rule of their own.
    for name in [
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.final_layer_norm.weight",
    ] {
        let gradient = &found[name];
        let place = (0..gradient.len())
            .max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()))
            .ok_or("a gradient")?;
        let step = 1.0 / 64.0;
        let slope =
            (loss(name, place, step)? - loss(name, place, -step)?) / (2.0 * f64::from(step));
        assert_close(name, &[slope], &[gradient[place]], Within::Norm(2e-3));
    }
    Ok(())
}

/// What a walk computes is what a pass does, of rows of text and of rows with sources of several lengths.
fn walks(device: &Device) -> Result<(), Failed> {
    let weights = Checkpoint::open(T5)?;
    let (model, config, pass) = (load(device, &weights)?, weights.config(), pass(device));
    let text = random_ids(4 * 16, 50);
    let row = |seed: u64| {
        paired_row(config, &random_ids(2 + seed as usize, seed), &random_ids(5, 60 + seed), 10)
    };
    let pairs: Vec<u32> = (0..4).flat_map(row).collect();
    for ids in [text, pairs] {
        let (hidden, _) = model.trace(&pass, &ids, 4, true)?;
        // Two microbatches, which share a cache.
        let mut walk = Walk::new(WeightSource::Streamed(device, &weights), pass, &ids, 4, 32)?;
        let mut layer = 0;
        while let Some(step) = walk.next_block()? {
            assert_eq!(step.microbatches(), 2);
            step.advance(Through::Parent, None)?;
            layer += 1;
            if layer < config.layers() {
                let streams = walk.streams().iter().map(|stream| device.read(stream));
                let streams: Vec<f32> =
                    streams.map(|s| Ok(s?.to_f32())).collect::<Result<Vec<_>, Failed>>()?.concat();
                let what = format!("stream before block {layer}");
                assert_close(&what, &streams, &hidden[layer].to_f32(), Within::Norm(1e-6));
            }
        }
    }
    Ok(())
}

fn wrong_rows() -> Result<(), Failed> {
    let model = load(&Device::Cpu, &Checkpoint::open(T5)?)?;
    let refused = |ids: &[u32], rows: usize, said: &str| {
        let error = model.trace(&pass(&Device::Cpu), ids, rows, false).err();
        let text = error.map_or("nothing was wrong".into(), |error| error.to_string());
        assert!(text.contains(said), "{text}");
    };
    refused(&[5], 1, "two or more");
    refused(&[BETWEEN, 3, 7], 1, "a source of one token");
    refused(&[5, BETWEEN, 6, BETWEEN, 3, 7], 1, "one source");
    refused(&[5, BETWEEN, 3, 7, 5, 6, BETWEEN, 3], 2, "begin at place 2");
    refused(&[5, BETWEEN, 3, 7, 5, 6, 7, 3], 2, "begin at place 2");
    refused(&[5000, BETWEEN, 3], 1, "4096");
    Ok(())
}

/// To GGUF under llama.cpp's names and back: every byte is what it was.
fn round_trip() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let parent = Checkpoint::open(T5)?;
    let tokenizer = parent.tokenizer()?;
    export_gguf(&path("m.gguf"), &parent, &parent, Some(tokenizer.stored()))?;
    let file = Gguf::open_set(&path("m.gguf"))?;
    assert_eq!(file.str("general.architecture")?, Some("t5"));
    for (key, value) in [
        ("block_count", 4),
        ("decoder_block_count", 4),
        ("embedding_length", 128),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
        ("attention.key_length", 32),
        ("attention.relative_buckets_count", 32),
        ("decoder_start_token_id", 3),
    ] {
        assert_eq!(file.u64(&format!("t5.{key}"))?, Some(value), "{key}");
    }
    assert!(file.metadata().iter().all(|(key, _)| !key.contains("rope")), "nothing is rotated");
    let shape = |name: &str| file.tensor(name).map(|tensor| tensor.shape);
    for (name, of) in [
        ("token_embd", vec![4096, 128]),
        ("enc.blk.0.attn_rel_b", vec![32, 4]),
        ("dec.blk.0.attn_rel_b", vec![32, 4]),
        ("enc.blk.3.attn_norm", vec![128]),
        ("enc.blk.3.attn_o", vec![128, 128]),
        ("enc.blk.3.ffn_gate", vec![256, 128]),
        ("enc.output_norm", vec![128]),
        ("dec.blk.3.cross_attn_norm", vec![128]),
        ("dec.blk.3.cross_attn_v", vec![128, 128]),
        ("dec.blk.3.ffn_down", vec![128, 256]),
        ("dec.output_norm", vec![128]),
        ("output", vec![4096, 128]),
    ] {
        assert_eq!(shape(&format!("{name}.weight")), Some(of), "{name}");
    }
    assert_eq!(shape("dec.blk.1.attn_rel_b.weight"), None, "blocks share the first one's");
    let again = checkpoint(&path("m.gguf"))?;
    assert!(again.config().computes_as(parent.config()), "{:?}", again.config());
    std::fs::create_dir(path("hf"))?;
    export_hf(&path("hf"), again.config_json()?, &again, Some(tokenizer.stored()))?;
    let (config, mut back) = read_folder(&path("hf"))?;
    let (whole_config, mut whole) = read_folder(Path::new(FOLDER))?;
    back.sort_by(|a, b| a.0.cmp(&b.0));
    whole.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(back.len(), whole.len());
    for (back, whole) in back.iter().zip(&whole) {
        // GGUF has vectors, and the biases of scores, in f32.
        let plain = back.2.len() == 1 || back.0.contains("relative_attention_bias");
        let same = back == whole || (plain && (&back.0, &back.2) == (&whole.0, &whole.2));
        assert!(same, "{} is not what it was", back.0);
    }
    for key in [
        "d_ff",
        "d_kv",
        "d_model",
        "num_heads",
        "num_layers",
        "num_decoder_layers",
        "model_type",
        "feed_forward_proj",
        "is_encoder_decoder",
        "layer_norm_epsilon",
        "vocab_size",
        "architectures",
        "relative_attention_num_buckets",
        "relative_attention_max_distance",
        "decoder_start_token_id",
        "tie_word_embeddings",
    ] {
        assert_eq!(config.get(key), whole_config.get(key), "{key}");
    }
    let foreign =
        ["hidden_size", "num_key_value_heads", "rope_theta", "head_dim", "num_hidden_layers"];
    assert!(foreign.iter().all(|key| !config.contains_key(*key)), "{config:?}");
    // And from GGUF to GGUF.
    export_gguf(&path("n.gguf"), &again, &again, Some(tokenizer.stored()))?;
    assert!(std::fs::read(path("m.gguf"))? == std::fs::read(path("n.gguf"))?, "a file changes");
    Ok(())
}

/// Each mistake, and each other form of T5, says which tensor or key it is.
fn wrong_files() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let (config, tensors) = read_folder(Path::new(FOLDER))?;
    let refused = |key: &str, value: Value, without: &str, said: &[&str]| -> Result<(), Failed> {
        let mut config = config.clone();
        config.insert(key.into(), value);
        let mut left = tensors.clone();
        left.retain(|(name, ..)| name != without);
        write_model(folder.path(), &config, &left)?;
        let text = match checkpoint(folder.path()) {
            Ok(_) => return Err(format!("{key} and {without}: it was opened").into()),
            Err(error) => error.message().unwrap_or_default().to_string(),
        };
        assert!(said.iter().all(|said| text.contains(said)), "{text}");
        Ok(())
    };
    refused("feed_forward_proj", json!("relu"), "", &["feed_forward_proj", "gated-gelu", "relu"])?;
    refused("feed_forward_proj", Value::Null, "", &["feed_forward_proj", "gated-gelu"])?;
    refused("tie_word_embeddings", json!(true), "", &["tie_word_embeddings", "head of their own"])?;
    refused("scale_decoder_outputs", json!(true), "", &["scale_decoder_outputs"])?;
    refused("is_encoder_decoder", json!(false), "", &["is_encoder_decoder"])?;
    refused("num_layers", json!(5), "", &["encoder.block.4", "no such tensor"])?;
    refused("num_decoder_layers", json!(5), "", &["decoder.block.4", "no such tensor"])?;
    refused(
        "relative_attention_num_buckets",
        json!(7),
        "",
        &["relative_attention_num_buckets", "7"],
    )?;
    refused(
        "relative_attention_num_buckets",
        json!(64),
        "",
        &["relative_attention_bias", "[64, 4]"],
    )?;
    refused(
        "relative_attention_max_distance",
        json!(16),
        "",
        &["relative_attention_max_distance"],
    )?;
    refused("decoder_start_token_id", json!(4096), "", &["decoder_start_token_id", "4096"])?;
    let name = "encoder.final_layer_norm.weight";
    refused("d_ff", json!(256), name, &[name, "no such tensor"])
}

/// Examples are rows of a source and a target that begins at one place in all of them; of a text, halves around a gap.
fn rows_to_learn() -> Result<(), Failed> {
    let tokenizer = Checkpoint::open(T5)?.tokenizer()?;
    let (start, gap) = (tokenizer.decoder_start, tokenizer.gap());
    assert_eq!((start, gap), (Some(3), Some(3996)));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("pairs.jsonl");
    let lines = [
        json!({"prompt": "One and one", "completion": " two"}),
        json!({"prompt": "A longer prompt than that", "completion": " and a longer answer"}),
    ];
    std::fs::write(&file, lines.each_ref().map(|line| format!("{line}\n")).concat())?;
    let (length, held_out) = (24, 0.0);
    let data = vec![file.to_string_lossy().into_owned()];
    let shuffle = false;
    let dataset = Dataset { data, length, held_out, shuffle, ..Dataset::default() };
    let rows = Examples::read(&dataset, &tokenizer, 0)?.rows(0..2);
    let place = rows.ids[..length].iter().rposition(|id| *id == BETWEEN).ok_or("a gap")? + 1;
    for (line, (ids, scored)) in
        lines.iter().zip(rows.ids.chunks(length).zip(rows.scored.chunks(length)))
    {
        let text = |key: &str| line[key].as_str().unwrap_or_default();
        let source = tokenizer.encode(text("prompt"), false)?;
        let mut target = tokenizer.encode(text("completion"), false)?;
        target.push(2);
        assert_eq!(ids[..source.len()], source);
        assert!(ids[source.len()..place].iter().all(|id| *id == BETWEEN));
        assert_eq!((ids[place], &ids[place + 1..][..target.len()]), (3, &target[..]));
        let first = place + 1..place + 1 + target.len();
        assert!((0..length).all(|at| scored[at] == first.contains(&at)), "{scored:?}");
    }
    // One token less than the second prompt, what parts it from its response, and that.
    let long = tokenizer.encode(lines[1]["prompt"].as_str().unwrap_or_default(), false)?;
    let short = Dataset { length: long.len() + (length - place), pack: false, ..dataset };
    let error = Examples::read(&short, &tokenizer, 0).err().ok_or("a row too short")?.to_string();
    assert!(error.contains("line 2") && error.contains("a prompt of at most"), "{error}");
    // It loses its beginning where it may.
    let packed = Dataset { pack: true, ..short.clone() };
    let rows = Examples::read(&packed, &tokenizer, 0)?.rows(1..2);
    assert_eq!(rows.ids[..long.len() - 1], long[1..]);
    assert_eq!((rows.ids[long.len() - 1], rows.ids[long.len()]), (BETWEEN, 3));
    std::fs::write(&file, "{\"text\": \"One text alone\"}\n")?;
    let error = Examples::read(&short, &tokenizer, 0).err().ok_or("no pair")?.to_string();
    assert!(error.contains("a prompt and its response"), "{error}");
    let text = Dataset { data: vec!["embedded:calibration".into()], length, ..short };
    let rows = Examples::read(&text, &tokenizer, 0)?.rows(0..2);
    for (ids, scored) in rows.ids.chunks(length).zip(rows.scored.chunks(length)) {
        assert_eq!((ids[11], ids[13]), (3996, 3996));
        assert!((0..length).all(|at| scored[at] == (at >= 14)), "{scored:?}");
    }
    Ok(())
}

/// Answers are scored as a pass over each alone says, whatever stands beside them.
fn answers() -> Result<(), Failed> {
    let weights = Checkpoint::open(T5)?;
    let (device, config) = (Device::Cpu, weights.config());
    let (model, pass) = (load(&device, &weights)?, pass(&device));
    let request = |seed: u64, context: usize, continuation: usize| Request {
        context: random_ids(context, seed),
        continuation: random_ids(continuation, seed + 1),
    };
    let alike =
        |context: &Request, last: u32| Request { continuation: vec![last], ..context.clone() };
    let first = request(70, 9, 1);
    let questions = [
        Question { requests: vec![first.clone(), alike(&first, 77)], family: 0 },
        Question { requests: vec![request(80, 4, 3), request(90, 12, 2)], family: 1 },
    ];
    let batching = Batching { batch: None, share: true };
    let models = Ensemble::from(&model);
    let found = score(&models, &pass, &questions, batching, &mut |_, _| Ok(()))?;
    for (question, found) in questions.iter().zip(&found) {
        for (request, found) in question.requests.iter().zip(found) {
            let width = request.context.len() + 1;
            let row = paired_row(config, &request.context, &request.continuation, width);
            let (_, logits) = model.trace(&pass, &row, 1, false)?;
            let logits = logits.to_f32();
            let mut sum = 0.0;
            for (place, token) in (width..).zip(&request.continuation) {
                let line = target_logits(&logits, 0, place, row.len());
                let most = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f64 = line.iter().map(|logit| f64::from(logit - most).exp()).sum();
                sum += f64::from(line[*token as usize] - most) - total.ln();
            }
            assert!((found.log_likelihood - sum).abs() < 1e-4 * sum.abs(), "{found:?}, {sum}");
        }
    }
    Ok(())
}

/// Every command that takes one: what it writes opens again.
fn commands() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let shown = succeeds(folder, "inspect embedded:tiny-t5 --groups")?.out;
    for text in ["t5", "4 layers are the encoder's", "ffn.7", "hidden"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert!(!shown.contains("kvgroup"), "{shown}");
    let generated = lopper(folder, "generate embedded:tiny-t5 --prompt The -n 5 --json=-")?;
    let generated = generated.json()?;
    assert_eq!(generated["tokens"].as_array().map(Vec::len), Some(5), "{generated}");
    let prompt = generated["prompt_tokens"].as_array().ok_or("tokens")?;
    assert!(prompt.iter().all(|token| token.as_u64() < Some(4096)), "{generated}");
    let logits = "logits embedded:tiny-t5 --tokens 5,6,7 --target 8,9 --out l.safetensors";
    succeeds(folder, logits)?;
    let logits = Known::open(&folder.join("l.safetensors").to_string_lossy())?;
    assert_eq!(logits.shape("logits")?, [1, 3, 4096]);
    assert_eq!(logits.words("input_ids")?, [3, 8, 9]);
    let rounded =
        "quantize embedded:tiny-t5 --method hqq --bits 4 --no-eval --formats packed,gguf --out q";
    succeeds(folder, rounded)?;
    std::fs::write(
        folder.join("pairs.jsonl"),
        "{\"prompt\": \"One\", \"completion\": \" two\"}\n{\"prompt\": \"Two\", \"completion\": \" one\"}\n",
    )?;
    let tuned = |model: &str, method: &str, out: &str| {
        let data = "--data pairs.jsonl --held-out 0 --steps 1 --batch 2 --length 16 --rate 0.01";
        let rest = "--no-eval --formats packed";
        succeeds(folder, &format!("tune {model} --method {method} {data} {rest} --out {out}"))
    };
    // Low-rank factors beside rounded weights, and every weight.
    tuned("q/packed", "lora", "t")?;
    tuned("embedded:tiny-t5", "full", "u")?;
    let (before, after) = (Checkpoint::open(T5)?, checkpoint(&folder.join("u/packed"))?);
    let specs = before
        .specs()
        .iter()
        .filter(|spec| matches!(spec.slot, Slot::PositionBias | Slot::SourceNorm));
    let mut changed = 0;
    for spec in specs {
        assert!(before.load(spec)?.to_f32() != after.load(spec)?.to_f32(), "{}", spec.name);
        changed += 1;
    }
    assert_eq!(changed, 3, "what a stack shares is learned");
    let pruned =
        "prune embedded:tiny-t5 --widths ffn --ratio 0.5 --score l2 --no-eval --formats hf --out p";
    succeeds(folder, pruned)?;
    let card = std::fs::read_to_string(folder.join("p/README.md"))?;
    assert!(card.contains("\"text2text-generation\""), "{card}");
    let config = read_json(folder.join("p/hf/config.json"))?;
    assert_eq!((&config["d_ff"], &config["num_decoder_layers"]), (&json!(128), &json!(4)));
    for model in ["q/model.gguf", "p/hf", "u/packed"] {
        succeeds(folder, &format!("eval {model} --task headlines --limit 2"))?;
    }
    Ok(())
}

/// What is not done with an encoder says so, and why.
fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (arguments, said) in [
        ("prune embedded:tiny-t5 --ratio 0.2 --out o", "widths & t5 & --widths ffn"),
        ("prune embedded:tiny-t5 --method depth --layers 4 --out o", "method & depth & t5"),
        ("prune embedded:tiny-t5 --method minitron --ratio 0.2 --out o", "method & minitron & t5"),
        ("prune embedded:tiny-t5 --method slicegpt --ratio 0.2 --out o", "method & slicegpt & t5"),
        ("quantize embedded:tiny-t5 --method gptq --guided --out o", "guided & t5"),
        ("transform embedded:tiny-t5 --method rotate --out o", "rotate & t5"),
        ("chat embedded:tiny-t5", "encoder & t5"),
        ("generate embedded:tiny-t5 --prompt a --lookup", "--lookup & encoder"),
        (
            "generate embedded:tiny-t5 --prompt a --ensemble embedded:tiny-t5",
            "--ensemble & encoder",
        ),
        ("generate embedded:tiny-llama --prompt a --draft embedded:tiny-t5", "--draft & t5"),
        ("logits embedded:tiny-llama --tokens 1 --target 2 --out l", "--target & llama"),
        (
            "eval embedded:tiny-t5 --ppl embedded:heldout-2026 --convention llama.cpp",
            "--convention",
        ),
        ("bench model embedded:tiny-t5", "bench model & t5"),
    ] {
        lopper(folder.path(), &format!("{arguments} --device cpu"))?.refused(2, said);
    }
    Ok(())
}
