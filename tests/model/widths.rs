//! Models whose layers differ in width: run, written, read again; and files that state the widths wrongly.

use std::collections::BTreeSet;
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::error::{Error, Result as Outcome};
use lopper::formats::Source;
use lopper::formats::gguf::{self, Array, Gguf, Value as Meta};
use lopper::model::{
    BlockDims, Cache, Checkpoint, Compute, Config, TensorSpec, Weights, export_gguf, export_hf,
    export_packed, tensor_specs,
};
use lopper::tensor::{Packed, WeightFormat};
use serde_json::{Map, Value, json};

use crate::machine::on_each;
use crate::models::{load, pass};
use crate::numbers::{Within, assert_close, relative_error};
use crate::program::{NANO, lopper};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("widths":
        gradients_are_the_same, gguf_and_back, packed_and_back, hf_of_one_width_only, a_parents_metadata,
        deci_of_one_width, hostile_gguf, hostile_json);
    trials.extend(on_each("widths::cut_is_zeroed", cut_is_zeroed));
    trials
}

/// Columns of a head of nano-llama, which has 2 layers of 4 heads, 2 key and value heads and 192 channels.
const HEAD: usize = 16;

/// What is taken out of a layer.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// Every sixth channel of the feed-forward.
    Channels,
    /// The first key and value head, and the two query heads that read it.
    Group,
}

/// Channels of the first layer, and heads of the second.
const UNEVEN: &[(usize, Part)] = &[(0, Part::Channels), (1, Part::Group)];
/// Both of both layers.
const EVEN: &[(usize, Part)] =
    &[(0, Part::Channels), (0, Part::Group), (1, Part::Channels), (1, Part::Group)];

/// nano-llama without some parts, or with zeros in their places.
struct Cut {
    parent: Checkpoint,
    parts: &'static [(usize, Part)],
    zeros: bool,
    config: Config,
    specs: Vec<TensorSpec>,
}

impl Cut {
    fn new(parent: &str, parts: &'static [(usize, Part)], zeros: bool) -> Result<Self, Failed> {
        let parent = Checkpoint::open(parent)?;
        let mut config = parent.config().clone();
        for (layer, part) in parts.iter().filter(|_| !zeros) {
            let widths = &mut config.blocks[*layer];
            match part {
                Part::Channels => widths.intermediate_size -= 32,
                Part::Group => (widths.heads, widths.kv_heads) = (2, 1),
            }
        }
        let mut specs = tensor_specs(&config);
        specs.retain(|spec| parent.specs().iter().any(|known| known.name == spec.name));
        Ok(Self { parent, parts, zeros, config, specs })
    }

    /// Whether row or column `index` of a tensor stays.
    fn keeps(&self, name: &str, row: bool, index: usize) -> bool {
        self.parts.iter().all(|(layer, part)| {
            let Some(module) = name.strip_prefix(&format!("model.layers.{layer}.")) else {
                return true;
            };
            match (part, module, row) {
                (Part::Channels, "mlp.gate_proj.weight" | "mlp.up_proj.weight", true)
                | (Part::Channels, "mlp.down_proj.weight", false) => index % 6 != 3,
                (Part::Group, "self_attn.q_proj.weight", true)
                | (Part::Group, "self_attn.o_proj.weight", false) => index >= 2 * HEAD,
                (Part::Group, "self_attn.k_proj.weight" | "self_attn.v_proj.weight", true) => {
                    index >= HEAD
                }
                _ => true,
            }
        })
    }

    fn of_parent(&self, spec: &TensorSpec) -> &TensorSpec {
        let found = self.parent.specs().iter().find(|s| s.name == spec.name);
        found.expect("the parent has every tensor")
    }
}

impl Weights for Cut {
    fn config(&self) -> &Config {
        &self.config
    }
    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }
    fn load(&self, spec: &TensorSpec) -> Outcome<Packed> {
        let whole = self.parent.load(self.of_parent(spec))?;
        let kept = |row: bool, count: usize| -> Vec<usize> {
            let stays = |index: &usize| self.zeros || self.keeps(&spec.name, row, *index);
            (0..count).filter(stays).collect()
        };
        let (rows, columns) = (kept(true, whole.rows), kept(false, whole.columns));
        let mut packed = Packed::zeros(whole.format, rows.len(), columns.len());
        for (row, from) in rows.iter().enumerate() {
            for (column, at) in columns.iter().enumerate() {
                if self.keeps(&spec.name, true, *from) && self.keeps(&spec.name, false, *at) {
                    packed.set_code(row, column, whole.code(*from, *at));
                }
            }
        }
        Ok(packed)
    }
    fn format(&self, spec: &TensorSpec) -> Outcome<WeightFormat> {
        self.parent.format(self.of_parent(spec))
    }
}

fn ids() -> Vec<u32> {
    (0..24).map(|i| 3 + i * 131 % 4000).collect()
}

fn logits(device: &Device, weights: &dyn Weights, sequences: usize) -> Result<Vec<f32>, Failed> {
    crate::models::logits(device, weights, &ids(), sequences)
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_close(what, found, expected, Within::Largest(1e-5));
}

fn same_bits(found: &[f32], expected: &[f32]) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let same = bits(found) == bits(expected) && !expected.is_empty();
    assert!(same, "logits are not the same bits");
}

/// In rows of one pass, and in a cache that each layer has its own width of.
fn cut_is_zeroed(device: &Device) -> Result<(), Failed> {
    let (cut, zeroed) = (Cut::new(NANO, UNEVEN, false)?, Cut::new(NANO, UNEVEN, true)?);
    assert!(cut.config.uniform().is_none(), "{:?}", cut.config);
    let widest = BlockDims::new(4, 2, 192);
    assert_eq!(cut.config.widest(), widest);
    let wanted = logits(device, &zeroed, 2)?;
    close("two rows", &logits(device, &cut, 2)?, &wanted);
    // Zeros change something: not every model passes.
    let whole = logits(device, &Checkpoint::open(NANO)?, 2)?;
    assert!(relative_error(&whole, &wanted) > 1e-4, "nothing was cut");

    let wanted = logits(device, &zeroed, 1)?;
    let model = load(device, &cut)?;
    let (ids, pass) = (ids(), pass(device));
    let mut cache = Cache::new(device, &cut.config, 1, ids.len(), Compute::F32)?;
    let mut found = Vec::new();
    for part in [&ids[..10], &ids[10..11], &ids[11..]] {
        let normed = model.hidden(&pass, part, &cache)?;
        let logits = model.head(&pass, &normed, 0..part.len())?;
        found.extend(device.read(&logits)?.view().to_f32());
        cache.advance(device, part.len())?;
    }
    close("piece by piece", &found, &wanted);
    Ok(())
}

/// Of tensors that are whole in both.
fn gradients_are_the_same() -> Result<(), Failed> {
    let run = |weights: &Cut| -> Result<Vec<(String, Vec<f32>)>, Failed> {
        let model = load(&Device::Cpu, weights)?;
        let mut found = Vec::new();
        model.gradients(&pass(&Device::Cpu), &ids(), 2, &mut |gradient| {
            let values = Device::Cpu.read(&gradient.values)?.to_f32();
            found.push((gradient.name, values));
            Ok(())
        })?;
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    };
    let zeroed = Cut::new(NANO, UNEVEN, true)?;
    let cut = Cut::new(NANO, UNEVEN, false)?;
    let mut compared = 0;
    for ((name, found), (other, wanted)) in run(&cut)?.into_iter().zip(run(&zeroed)?) {
        assert_eq!(name, other);
        let spec = cut.specs.iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| name.clone())?;
        assert!(found.len() == spec.rows * spec.columns, "{:?}", (&name, found.len()));
        if spec.shape() == cut.of_parent(spec).shape() {
            close(&name, &found, &wanted);
            compared += 1;
        }
    }
    // 2 blocks of 9, embedding and last norm, without the 3 of the first block's feed-forward and the 4 of attention.
    assert_eq!(compared, 20 - 7);
    Ok(())
}

fn open(path: &Path) -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(path.to_str().ok_or("a path")?)?)
}

fn list(numbers: &[i32]) -> Meta {
    Meta::Array(Array::I32(numbers.to_vec()))
}

fn gguf_and_back() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let (cut, path) = (Cut::new(NANO, UNEVEN, false)?, folder.path().join("m.gguf"));
    let tokenizer = cut.parent.tokenizer()?;
    export_gguf(&path, &cut.parent, &cut, Some(tokenizer.stored()))?;
    let again = open(&path)?;
    assert!(again.config().blocks == cut.config.blocks, "{:?}", again.config());
    let wanted = logits(&Device::Cpu, &cut, 2)?;
    same_bits(&logits(&Device::Cpu, &again, 2)?, &wanted);
    let gguf = again.gguf().ok_or("a GGUF file")?;
    for (name, value) in [
        ("general.architecture", Meta::String("deci".into())),
        ("deci.block_count", Meta::U32(2)),
        ("deci.attention.head_count", list(&[4, 2])),
        ("deci.attention.head_count_kv", list(&[2, 1])),
        ("deci.feed_forward_length", list(&[160, 192])),
        ("deci.attention.key_length", Meta::U32(16)),
        ("deci.attention.value_length", Meta::U32(16)),
        ("deci.rope.dimension_count", Meta::U32(16)),
        ("deci.vocab_size", Meta::U32(4096)),
    ] {
        assert!(gguf.get(name) == Some(&value), "{:?}", (name, gguf.get(name)));
    }
    let stray = gguf.metadata().iter().find(|(key, _)| key.starts_with("llama."));
    assert!(stray.is_none(), "{stray:?}");

    // Written again it is the same file but for the order of keys, and it goes into a packed folder.
    let (twice, packed) = (folder.path().join("n.gguf"), folder.path().join("packed"));
    export_gguf(&twice, &again, &again, None)?;
    let sorted = |gguf: &Gguf| {
        let mut pairs = gguf.metadata().to_vec();
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        pairs
    };
    let second = open(&twice)?;
    let pairs = sorted(second.gguf().ok_or("a GGUF file")?);
    assert!(pairs == sorted(gguf), "other metadata");
    std::fs::create_dir(&packed)?;
    export_packed(&packed, again.config_json()?, &again, Some(tokenizer.stored()))?;
    same_bits(&logits(&Device::Cpu, &open(&packed)?, 2)?, &wanted);

    let report = lopper(&folder, "inspect m.gguf --json=-")?.json()?;
    let widths = ["intermediate_size", "heads", "kv_heads", "layers"].map(|key| &report[key]);
    let wanted = [json!([160, 192]), json!([4, 2]), json!([2, 1]), json!(2)];
    assert!(widths.into_iter().eq(&wanted), "{widths:?}");
    let run = lopper(&folder, "inspect m.gguf")?;
    let said = "feed-forward 160 to 192, heads 2 to 4 / 1 to 2 key-value of 16";
    assert!(run.out.contains(said), "{:?}", run.out);
    Ok(())
}

fn packed_and_back() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let cut = Cut::new(NANO, UNEVEN, false)?;
    export_packed(folder.path(), cut.parent.config_json()?, &cut, None)?;
    let again = open(folder.path())?;
    assert_eq!(again.config(), &cut.config);
    let found = logits(&Device::Cpu, &again, 2)?;
    same_bits(&found, &logits(&Device::Cpu, &cut, 2)?);
    let json = again.config_json()?;
    for (key, value) in [
        ("num_hidden_layers", json!(2)),
        ("intermediate_size", json!([160, 192])),
        ("num_attention_heads", json!([4, 2])),
        ("num_key_value_heads", json!([2, 1])),
        ("head_dim", json!(16)),
        // What is no size stays the parent's.
        ("pad_token_id", json!(3)),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    Ok(())
}

fn hf_of_one_width_only() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let (uneven, even) = (Cut::new(NANO, UNEVEN, false)?, Cut::new(NANO, EVEN, false)?);
    let out = folder.path().join("hf");
    std::fs::create_dir(&out)?;
    let refused = export_hf(&out, uneven.parent.config_json()?, &uneven, None);
    let why = "a stock configuration states one width for all; use gguf or packed";
    assert!(
        matches!(&refused, Err(Error::Unsupported { why: found, .. }) if found == why),
        "{refused:?}"
    );
    assert!(std::fs::read_dir(&out)?.next().is_none(), "written");

    // By command the model is named, not a place where the output would have been made.
    let tokenizer = uneven.parent.tokenizer()?;
    let path = folder.path().join("m.gguf");
    export_gguf(&path, &uneven.parent, &uneven, Some(tokenizer.stored()))?;
    for command in [
        "export m.gguf --format hf --out made",
        "quantize m.gguf --bits 8 --no-eval --formats hf --out made --device cpu",
    ] {
        let run = lopper(&folder, command)?;
        run.refused(2, why);
        run.refused(2, "m.gguf:");
        assert!(!folder.path().join("made").exists(), "{command}");
    }

    // A shape that the parent's file does not have, of which the heads are half the stream.
    export_hf(&out, even.parent.config_json()?, &even, None)?;
    let again = open(&out)?;
    assert_eq!(again.config(), &even.config);
    let found = logits(&Device::Cpu, &again, 2)?;
    same_bits(&found, &logits(&Device::Cpu, &even, 2)?);
    let json = again.config_json()?;
    for (key, value) in [
        ("intermediate_size", 160),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 16),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    // Written out where it was implied before.
    let mut parent = even.parent.config_json()?;
    parent.remove("head_dim");
    let json = even.config.updated_json(parent.clone(), &even.specs);
    assert!(json["head_dim"] == 16, "{json:?}");
    let json = even.parent.config().updated_json(parent, even.parent.specs());
    assert!(!json.contains_key("head_dim"), "{json:?}");
    Ok(())
}

/// A GGUF parent's keys of sizes become the child's, others stay, and the architecture follows from the widths.
fn a_parents_metadata() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let paths = ["parent", "even", "uneven"].map(|name| folder.path().join(format!("{name}.gguf")));
    let nano = Checkpoint::open(NANO)?;
    export_gguf(&paths[0], &nano, &nano, Some(&nano.stored_tokenizer()?))?;
    // As files are whose heads make up the stream: without lengths of heads.
    let whole = open(&paths[0])?;
    let lean: Vec<_> = whole.gguf().ok_or("a GGUF file")?.metadata().to_vec();
    let lean: Vec<_> = lean
        .into_iter()
        .filter(|(key, _)| !key.ends_with("key_length") && !key.ends_with("value_length"))
        .chain([("llama.own".into(), Meta::U64(7))])
        .collect();
    rewrite(&whole, &paths[0], &lean)?;
    let name = paths[0].to_str().ok_or("a path")?;
    for (parts, path, architecture) in [(EVEN, &paths[1], "llama"), (UNEVEN, &paths[2], "deci")] {
        let cut = Cut::new(name, parts, false)?;
        export_gguf(path, &cut.parent, &cut, None)?;
        let again = open(path)?;
        assert_eq!(again.config(), &cut.config);
        let found = logits(&Device::Cpu, &again, 2)?;
        same_bits(&found, &logits(&Device::Cpu, &cut, 2)?);
        let gguf = again.gguf().ok_or("a GGUF file")?;
        let get = |name: &str| gguf.get(&format!("{architecture}.{name}"));
        assert!(get("own") == Some(&Meta::U64(7)), "another key");
        // llama.cpp takes the stream by the first layer's heads, which for the even one would be 32.
        let length = (parts == EVEN).then_some(&Meta::U32(16));
        assert_eq!(get("attention.value_length"), length);
        assert_eq!(get("attention.key_length"), length);
        let heads = if parts == EVEN { Meta::U32(2) } else { list(&[4, 2]) };
        assert_eq!(get("attention.head_count"), Some(&heads));
    }
    Ok(())
}

/// A file with other metadata, its tensors as they are.
fn rewrite(from: &Checkpoint, path: &Path, pairs: &[(String, Meta)]) -> Result<(), Failed> {
    let gguf = from.gguf().ok_or("a GGUF file")?;
    let tensors = gguf.names().filter_map(|name| {
        let tensor = gguf.tensor(name)?;
        let bytes = tensor.bytes().ok()?.into_owned();
        Some(gguf::NewGgufTensor {
            name: name.into(),
            ty: gguf.tensor_type(name)?,
            shape: tensor.shape,
            data: Box::new(move || Ok(bytes.clone())),
        })
    });
    Ok(gguf::write(path, pairs, tensors.collect())?)
}

/// Numbers or arrays, it is the same model; what is written of it is `llama`.
fn deci_of_one_width() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let [llama, deci, back] = ["llama", "deci", "back"].map(|n| folder.path().join(n));
    let nano = Checkpoint::open(NANO)?;
    export_gguf(&llama, &nano, &nano, Some(&nano.stored_tokenizer()?))?;
    let parent = open(&llama)?;
    let gguf = parent.gguf().ok_or("a GGUF file")?;
    for arrays in [false, true] {
        let pair = |(key, value): &(String, Meta)| {
            let value = match (key.as_str(), value) {
                ("general.architecture", _) => Meta::String("deci".into()),
                ("llama.attention.head_count" | "llama.feed_forward_length", Meta::U32(n))
                    if arrays =>
                {
                    Meta::Array(Array::U32(vec![*n; 2]))
                }
                _ => value.clone(),
            };
            (key.replace("llama.", "deci."), value)
        };
        let pairs: Vec<_> = gguf.metadata().iter().map(pair).collect();
        rewrite(&parent, &deci, &pairs)?;
        let found = open(&deci)?;
        assert_eq!(found.config(), parent.config());
        export_gguf(&back, &found, &found, None)?;
        // The same pairs; those that an export decides by itself come last.
        let again = open(&back)?;
        let sorted = |gguf: &Gguf| {
            let pairs = gguf.metadata().iter().map(|pair| format!("{pair:?}"));
            pairs.collect::<BTreeSet<_>>()
        };
        assert!(again.gguf().map(sorted) == Some(sorted(gguf)), "metadata");
        let logits = |model: &Checkpoint| logits(&Device::Cpu, model, 1);
        same_bits(&logits(&again)?, &logits(&parent)?);
    }
    Ok(())
}

/// The configuration of a file of these keys alone, those of a sound one but for `change`.
fn read_gguf(architecture: &str, change: (&str, Meta)) -> Result<Outcome<Config>, Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("m.gguf");
    let mut pairs = vec![("general.architecture".into(), Meta::String(architecture.into()))];
    for (name, value) in [
        ("block_count", Meta::U32(3)),
        ("embedding_length", Meta::U32(64)),
        ("feed_forward_length", list(&[32, 64, 96])),
        ("attention.head_count", list(&[4, 2, 2])),
        ("attention.head_count_kv", list(&[2, 2, 1])),
        ("attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("vocab_size", Meta::U32(100)),
    ] {
        let value = if name == change.0 { change.1.clone() } else { value };
        pairs.push((format!("{architecture}.{name}"), value));
    }
    gguf::write(&path, &pairs, Vec::new())?;
    Ok(Config::from_gguf(&Gguf::open(Source::open(&path)?)?).map(|(config, _)| config))
}

fn refused(read: Outcome<Config>, words: &[&str]) {
    let error = read.expect_err("a wrong file");
    let said = error.to_string();
    let right = error.exit_code() == 2 && words.iter().all(|word| said.contains(word));
    assert!(right, "{words:?}: {said}");
}

fn hostile_gguf() -> Result<(), Failed> {
    let sound = read_gguf("deci", ("", Meta::U8(0)))??;
    let blocks = [(4, 2, 32), (2, 2, 64), (2, 1, 96)];
    let blocks =
        blocks.map(|(heads, kv_heads, channels)| BlockDims::new(heads, kv_heads, channels));
    assert!(sound.blocks == blocks && sound.head_dim == 16, "{sound:?}");
    let (heads, kv, channels) =
        ("attention.head_count", "attention.head_count_kv", "feed_forward_length");
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
        (channels, Meta::Array(Array::U64(vec![u64::MAX; 3])), ["layer 0", "18446744073709551615"]),
        (kv, texts, ["integers", "another type"]),
        (kv, Meta::Array(Array::F32(vec![1.0; 3])), ["integers", "another type"]),
        (kv, Meta::String("2".into()), ["integer", "a string"]),
        (kv, Meta::I32(-1), ["integer", "I32(-1)"]),
        (kv, list(&[2, 2, 4]), ["divisor of 2", "in layer 2"]),
        ("block_count", Meta::U32(4), ["4 layers", "3 of them"]),
        ("block_count", Meta::U32(1 << 28), ["at most 10000", "268435456"]),
        ("block_count", list(&[3, 3, 3]), ["integer", "an array"]),
    ] {
        // Where the number of layers is at fault, the first array is.
        let named = if words[1] == "3 of them" { heads } else { key };
        let key_and_path = [&format!("deci.{named}"), "m.gguf"];
        let read = || read_gguf("deci", (key, value.clone()));
        refused(read()?, &words);
        refused(read()?, &key_and_path);
    }
    // Architecture llama has one width, which may stand there once for each layer.
    let read = read_gguf("llama", ("", Meta::U8(0)))?;
    refused(read, &["llama.attention.head_count", "several numbers", "one for all layers"]);
    let read = read_gguf("falcon", ("", Meta::U8(0)))?;
    refused(read, &["architecture falcon"]);
    Ok(())
}

fn hostile_json() -> Result<(), Failed> {
    let sound = json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 100, "head_dim": 16,
        "intermediate_size": [32, 64, 96], "num_attention_heads": [4, 2, 2], "num_key_value_heads": [2, 2, 1],
        "quantization_config": {"quant_method": "lopper"},
    });
    let sound = sound.as_object().ok_or("an object")?;
    let read = |object: &Map<String, Value>| Config::from_json("config.json".as_ref(), object);
    let widths: Vec<usize> = read(sound)?.blocks.iter().map(|b| b.intermediate_size).collect();
    assert_eq!(widths, [32, 64, 96]);
    let (heads, kv, channels) = ("num_attention_heads", "num_key_value_heads", "intermediate_size");
    for (key, value, words) in [
        (heads, json!([4, 2]), ["3 layers", "2 of them"]),
        (channels, json!([]), ["3 layers", "0 of them"]),
        (heads, json!([4, 0, 2]), ["layer 1", "found 0"]),
        (heads, json!([4, -2, 2]), ["layer 1", "found -2"]),
        (channels, json!([4, 4, 2.5]), ["layer 2", "found 2.5"]),
        (kv, json!(["2", 2, 1]), ["layer 0", "found \"2\""]),
        (kv, json!([2, [2], 1]), ["layer 1", "found [2]"]),
        (channels, json!([1, 1, 1u64 << 40]), ["layer 2", "1099511627776"]),
        (kv, json!([2, 2, 4]), ["divisor of 2", "in layer 2"]),
        (kv, json!("two"), ["positive integer", "\"two\""]),
        ("num_hidden_layers", json!(4), ["4 layers", "3 of them"]),
        ("num_hidden_layers", json!(1 << 28), ["at most 10000", "268435456"]),
        ("num_hidden_layers", json!([3]), ["positive integer", "[3]"]),
        ("head_dim", json!(null), ["head_dim", "positive integer"]),
    ] {
        let mut object = sound.clone();
        object.insert(key.into(), value);
        refused(read(&object), &words);
        // Where the number of layers is at fault, the first array is.
        let named = if words[1] == "3 of them" { heads } else { key };
        refused(read(&object), &["config.json", named]);
    }
    for other in [json!(null), json!({"quant_method": "gptq"}), json!("lopper")] {
        let mut object = sound.clone();
        object.insert("quantization_config".into(), other);
        refused(read(&object), &["config.json", heads, "only Lopper's"]);
    }
    Ok(())
}
