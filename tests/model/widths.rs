//! Models whose layers differ in width: run, written, read again.

use std::collections::BTreeSet;
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::error::{Error, Result as Outcome};
use lopper::formats::gguf::{self, Array, Gguf, Value as Meta};
use lopper::gpu::Options;
use lopper::model::{
    Cache, Checkpoint, Compute, Config, Llama, Pass, TensorSpec, Weights, Widths, export_gguf,
    export_hf, export_packed, tensor_specs,
};
use lopper::tensor::{DType, Packed, WeightFormat};
use serde_json::{Value, json};

use crate::machine::{device, gpu_trial};
use crate::program::lopper;

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("widths":
        gradients_are_the_same, gguf_and_back, packed_and_back, hf_of_one_width_only, a_parents_metadata,
        deci_of_one_width);
    trials.extend([
        Trial::test("widths::cut_is_zeroed::cpu", || cut_is_zeroed(&Device::Cpu)),
        gpu_trial("widths::cut_is_zeroed::gpu".into(), || {
            cut_is_zeroed(&device(Options::default())?)
        }),
    ]);
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
const EVEN: &[(usize, Part)] = &[
    (0, Part::Channels),
    (0, Part::Group),
    (1, Part::Channels),
    (1, Part::Group),
];

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
        Ok(Self {
            parent,
            parts,
            zeros,
            config,
            specs,
        })
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

const NANO: &str = "embedded:nano-llama";

fn ids() -> Vec<u32> {
    (0..24).map(|i| 3 + i * 131 % 4000).collect()
}

fn pass(device: &Device) -> Pass<'_> {
    Pass {
        device,
        compute: Compute::F32,
    }
}

fn logits(device: &Device, weights: &dyn Weights, sequences: usize) -> Result<Vec<f32>, Failed> {
    let model = Llama::load(device, weights, |_, _| Ok(()))?;
    let (_, logits) = model.trace(&pass(device), &ids(), sequences, false)?;
    Ok(logits.view().to_f32())
}

/// The largest difference, relative to the largest value.
fn close(what: &str, found: &[f32], wanted: &[f32]) -> Result<(), Failed> {
    let most = wanted
        .iter()
        .fold(0.0f32, |most, value| most.max(value.abs()));
    let pairs = found.iter().zip(wanted);
    let error = pairs.fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs())) / most;
    if found.len() == wanted.len() && error <= 1e-5 {
        return Ok(());
    }
    let (found, wanted) = (found.len(), wanted.len());
    Err(format!("{what}: error {error:e}; {found} values for {wanted}").into())
}

fn same_bits(found: &[f32], wanted: &[f32]) -> Result<(), Failed> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    if bits(found) == bits(wanted) && !wanted.is_empty() {
        return Ok(());
    }
    Err("logits are not the same bits".into())
}

pub fn expect(holds: bool, what: impl std::fmt::Debug) -> Result<(), Failed> {
    holds.then_some(()).ok_or(format!("{what:?}").into())
}

/// In rows of one pass, and in a cache that each layer has its own width of.
fn cut_is_zeroed(device: &Device) -> Result<(), Failed> {
    let (cut, zeroed) = (
        Cut::new(NANO, UNEVEN, false)?,
        Cut::new(NANO, UNEVEN, true)?,
    );
    expect(cut.config.uniform().is_none(), &cut.config)?;
    let widest = Widths {
        heads: 4,
        kv_heads: 2,
        intermediate_size: 192,
    };
    expect(cut.config.widest() == widest, cut.config.widest())?;
    let wanted = logits(device, &zeroed, 2)?;
    close("two rows", &logits(device, &cut, 2)?, &wanted)?;
    // Zeros change something: not every model passes.
    let whole = logits(device, &Checkpoint::open(NANO)?, 2)?;
    expect(close("", &whole, &wanted).is_err(), "nothing was cut")?;

    let wanted = logits(device, &zeroed, 1)?;
    let model = Llama::load(device, &cut, |_, _| Ok(()))?;
    let (ids, pass) = (ids(), pass(device));
    let mut cache = Cache::new(device, &cut.config, 1, ids.len(), DType::F32)?;
    let mut found = Vec::new();
    for part in [&ids[..10], &ids[10..11], &ids[11..]] {
        let normed = model.hidden(&pass, part, &cache)?;
        let logits = model.head(&pass, &normed, 0..part.len())?;
        found.extend(device.read(&logits)?.view().to_f32());
        cache.advance(device, part.len())?;
    }
    close("piece by piece", &found, &wanted)
}

/// Of tensors that are whole in both.
fn gradients_are_the_same() -> Result<(), Failed> {
    let run = |weights: &Cut| -> Result<Vec<(String, Vec<f32>)>, Failed> {
        let model = Llama::load(&Device::Cpu, weights, |_, _| Ok(()))?;
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
        expect(name == other, (&name, &other))?;
        let spec = cut.specs.iter().find(|spec| spec.name == name);
        let spec = spec.ok_or_else(|| name.clone())?;
        expect(
            found.len() == spec.rows * spec.columns,
            (&name, found.len()),
        )?;
        if spec.shape() == cut.of_parent(spec).shape() {
            close(&name, &found, &wanted)?;
            compared += 1;
        }
    }
    // 2 blocks of 9, embedding and last norm, without the 3 of the first block's feed-forward and the 4 of attention.
    expect(compared == 20 - 7, compared)
}

fn open(path: &Path) -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(path.to_str().ok_or("a path")?)?)
}

fn key<'a>(gguf: &'a Gguf, name: &str) -> Option<&'a Meta> {
    gguf.get(name)
}

pub fn list(numbers: &[i32]) -> Meta {
    Meta::Array(Array::I32(numbers.to_vec()))
}

fn gguf_and_back() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let (cut, path) = (Cut::new(NANO, UNEVEN, false)?, folder.path().join("m.gguf"));
    let tokenizer = cut.parent.tokenizer()?;
    export_gguf(&path, &cut.parent, &cut, Some(&tokenizer))?;
    let again = open(&path)?;
    expect(again.config().blocks == cut.config.blocks, again.config())?;
    let wanted = logits(&Device::Cpu, &cut, 2)?;
    same_bits(&logits(&Device::Cpu, &again, 2)?, &wanted)?;
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
        expect(key(gguf, name) == Some(&value), (name, key(gguf, name)))?;
    }
    let stray = gguf
        .metadata()
        .iter()
        .find(|(key, _)| key.starts_with("llama."));
    expect(stray.is_none(), stray)?;

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
    expect(pairs == sorted(gguf), "other metadata")?;
    std::fs::create_dir(&packed)?;
    export_packed(&packed, again.config_json()?, &again, Some(&tokenizer))?;
    same_bits(&logits(&Device::Cpu, &open(&packed)?, 2)?, &wanted)?;

    let run = lopper(folder.path(), "inspect m.gguf --json=-")?;
    let report: Value = serde_json::from_str(&run.out)?;
    let widths = ["intermediate_size", "heads", "kv_heads", "layers"].map(|key| &report[key]);
    let wanted = [json!([160, 192]), json!([4, 2]), json!([2, 1]), json!(2)];
    expect(widths.into_iter().eq(&wanted), widths)?;
    let run = lopper(folder.path(), "inspect m.gguf")?;
    let said = "feed-forward 160 to 192, heads 2 to 4 / 1 to 2 key-value of 16";
    expect(run.out.contains(said), run.out)
}

fn packed_and_back() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let cut = Cut::new(NANO, UNEVEN, false)?;
    export_packed(folder.path(), cut.parent.config_json()?, &cut, None)?;
    let again = open(folder.path())?;
    expect(again.config() == &cut.config, again.config())?;
    let found = logits(&Device::Cpu, &again, 2)?;
    same_bits(&found, &logits(&Device::Cpu, &cut, 2)?)?;
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
        expect(json[key] == value, (key, &json[key]))?;
    }
    Ok(())
}

fn hf_of_one_width_only() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let (uneven, even) = (Cut::new(NANO, UNEVEN, false)?, Cut::new(NANO, EVEN, false)?);
    let out = folder.path().join("hf");
    std::fs::create_dir(&out)?;
    let refused = export_hf(&out, uneven.parent.config_json()?, &uneven, None);
    let why = "a stock Llama configuration states one width for all; use gguf or packed";
    let Err(Error::Unsupported { why: found, .. }) = &refused else {
        return Err(format!("{refused:?}").into());
    };
    expect(found == why, found)?;
    expect(std::fs::read_dir(&out)?.next().is_none(), "written")?;

    // By command the model is named, not a place where the output would have been made.
    let tokenizer = uneven.parent.tokenizer()?;
    let path = folder.path().join("m.gguf");
    export_gguf(&path, &uneven.parent, &uneven, Some(&tokenizer))?;
    for command in [
        "export m.gguf --format hf --out made",
        "quantize m.gguf --bits 8 --no-eval --out made --device cpu",
    ] {
        let run = lopper(folder.path(), command)?;
        let said = run.code == Some(2) && run.err.contains(why) && run.err.contains("m.gguf:");
        expect(
            said && !folder.path().join("made").exists(),
            (command, run.err),
        )?;
    }

    // A shape that the parent's file does not have, of which the heads are half the stream.
    export_hf(&out, even.parent.config_json()?, &even, None)?;
    let again = open(&out)?;
    expect(again.config() == &even.config, again.config())?;
    let found = logits(&Device::Cpu, &again, 2)?;
    same_bits(&found, &logits(&Device::Cpu, &even, 2)?)?;
    let json = again.config_json()?;
    for (key, value) in [
        ("intermediate_size", 160),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 16),
    ] {
        expect(json[key] == value, (key, &json[key]))?;
    }
    // Written out where it was implied before.
    let mut parent = even.parent.config_json()?;
    parent.remove("head_dim");
    let json = even.config.updated_json(parent.clone());
    expect(json["head_dim"] == 16, &json)?;
    let json = even.parent.config().updated_json(parent);
    expect(!json.contains_key("head_dim"), json)
}

/// A GGUF parent's keys of sizes become the child's, others stay, and the architecture follows from the widths.
fn a_parents_metadata() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let paths = ["parent", "even", "uneven"].map(|name| folder.path().join(format!("{name}.gguf")));
    let nano = Checkpoint::open(NANO)?;
    export_gguf(&paths[0], &nano, &nano, Some(&nano.tokenizer()?))?;
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
        expect(again.config() == &cut.config, again.config())?;
        let found = logits(&Device::Cpu, &again, 2)?;
        same_bits(&found, &logits(&Device::Cpu, &cut, 2)?)?;
        let gguf = again.gguf().ok_or("a GGUF file")?;
        let get = |name: &str| key(gguf, &format!("{architecture}.{name}"));
        expect(get("own") == Some(&Meta::U64(7)), "another key")?;
        // llama.cpp takes the stream by the first layer's heads, which for the even one would be 32.
        let length = (parts == EVEN).then_some(&Meta::U32(16));
        expect(
            get("attention.value_length") == length,
            get("attention.value_length"),
        )?;
        expect(
            get("attention.key_length") == length,
            get("attention.key_length"),
        )?;
        let heads = if parts == EVEN {
            Meta::U32(2)
        } else {
            list(&[4, 2])
        };
        expect(
            get("attention.head_count") == Some(&heads),
            get("attention.head_count"),
        )?;
    }
    Ok(())
}

/// A file with other metadata, its tensors as they are.
fn rewrite(from: &Checkpoint, path: &Path, pairs: &[(String, Meta)]) -> Result<(), Failed> {
    let gguf = from.gguf().ok_or("a GGUF file")?;
    let tensors = gguf.names().filter_map(|name| {
        let tensor = gguf.tensor(name)?;
        let bytes = tensor.bytes.to_vec();
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
    export_gguf(&llama, &nano, &nano, Some(&nano.tokenizer()?))?;
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
        expect(found.config() == parent.config(), found.config())?;
        export_gguf(&back, &found, &found, None)?;
        // The same pairs; those that an export decides by itself come last.
        let again = open(&back)?;
        let sorted = |gguf: &Gguf| {
            let pairs = gguf.metadata().iter().map(|pair| format!("{pair:?}"));
            pairs.collect::<BTreeSet<_>>()
        };
        expect(again.gguf().map(sorted) == Some(sorted(gguf)), "metadata")?;
        let logits = |model: &Checkpoint| logits(&Device::Cpu, model, 1);
        same_bits(&logits(&again)?, &logits(&parent)?)?;
    }
    Ok(())
}
