//! Models as others write them: keys that change arithmetic, tensors nobody reads, names with prefixes, odd types and parts. Each
//! computes what it should, or is refused by the name of what is at fault. And what is written says what it is.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::formats::Source;
use lopper::formats::gguf::{self, Array, GgmlType, Gguf, NewGgufTensor, Value as Meta};
use lopper::formats::safetensors::Safetensors;
use lopper::model::{Checkpoint, RopeScaling, Weights, export_gguf, export_hf, export_packed};
use lopper::tensor::DType;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::models::{Stored, checkpoint, logits, read_folder, write_model};
use crate::program::{NANO, read_json, runs};

pub fn trials() -> Vec<Trial> {
    suite!("reading":
        gguf_keys_of_arithmetic, gguf_tensors_nobody_reads, gguf_in_parts, gguf_heads_as_arrays, hf_tensors_nobody_reads,
        hf_names_with_prefixes, hf_rope_keys, hf_types, hf_biases_are_stated, written_config_is_the_tensors, own_folders,
        sizes_that_overflow, windows_need_a_key, exports_hold_every_value, small_values_are_held, gguf_says_what_it_is)
}

fn ids() -> Vec<u32> {
    (0..16).map(|i| 3 + i * 131 % 4000).collect()
}

fn bits(model: &Checkpoint) -> Result<Vec<u32>, Failed> {
    let logits = logits(&Device::Cpu, model, &ids(), 1)?;
    assert!(logits.iter().any(|value| *value != 0.0), "logits");
    Ok(logits.into_iter().map(f32::to_bits).collect())
}

/// nano-llama as a GGUF file: its metadata, and its tensors as bytes.
struct Parts {
    folder: TempDir,
    pairs: Vec<(String, Meta)>,
    tensors: Vec<(String, GgmlType, Vec<usize>, Vec<u8>)>,
}

impl Parts {
    fn new(model: &str) -> Result<Self, Failed> {
        let folder = TempDir::new()?;
        let path = folder.path().join("whole.gguf");
        let model = Checkpoint::open(model)?;
        if let Some(gguf) = model.gguf() {
            std::fs::copy(gguf.source().path(), &path)?;
        } else {
            export_gguf(&path, &model, &model, Some(&model.stored_tokenizer()?))?;
        }
        let gguf = Gguf::open(Source::open(&path)?)?;
        let tensor = |name: &str| {
            let found = gguf.tensor(name)?;
            Some((
                name.to_string(),
                gguf.tensor_type(name)?,
                found.shape.clone(),
                found.bytes().ok()?.into_owned(),
            ))
        };
        let tensors = gguf.names().filter_map(tensor).collect();
        Ok(Self { pairs: gguf.metadata().to_vec(), tensors, folder })
    }

    fn write(&self, name: &str, pairs: &[(String, Meta)]) -> Result<String, Failed> {
        self.part(name, pairs, 0..self.tensors.len())
    }

    fn part(
        &self,
        name: &str,
        pairs: &[(String, Meta)],
        range: std::ops::Range<usize>,
    ) -> Result<String, Failed> {
        let path = self.folder.path().join(name);
        let new = |(name, ty, shape, bytes): &(String, GgmlType, Vec<usize>, Vec<u8>)| {
            let bytes = bytes.clone();
            let data = Box::new(move || Ok(bytes.clone()));
            NewGgufTensor { name: name.clone(), ty: *ty, shape: shape.clone(), data }
        };
        gguf::write(&path, pairs, self.tensors[range].iter().map(new).collect())?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// With further keys, or others.
    fn with(&self, name: &str, further: &[(&str, Meta)]) -> Result<String, Failed> {
        let mut pairs = self.pairs.clone();
        pairs.retain(|(key, _)| further.iter().all(|(other, _)| key != other));
        pairs.extend(further.iter().map(|(key, value)| (key.to_string(), value.clone())));
        self.write(name, &pairs)
    }
}

fn says(model: &str, said: &[&str]) {
    let error = Checkpoint::open(model).map(drop).expect_err("a model that is refused");
    let text = error.to_string();
    let right = error.exit_code() == 2 && said.iter().all(|part| text.contains(part));
    assert!(right && text.lines().count() == 1, "{said:?}: {text}");
}

fn gguf_keys_of_arithmetic() -> Result<(), Failed> {
    let parts = Parts::new(NANO)?;
    let (four, kind) = (Meta::F32(4.0), |kind: &str| Meta::String(kind.into()));
    let (old, new, name) =
        ("llama.rope.scale_linear", "llama.rope.scaling.factor", "llama.rope.scaling.type");
    let linear = RopeScaling::Linear { factor: 4.0 };
    // As llama.cpp reads them.
    for (keys, wanted) in [
        (vec![(old, four.clone())], linear.clone()),
        (vec![(new, four.clone())], linear.clone()),
        (vec![(name, kind("linear")), (new, four.clone())], linear.clone()),
        (vec![(name, kind("linear")), (old, four.clone())], linear.clone()),
        (vec![(old, Meta::F32(2.0)), (new, four.clone())], linear),
        (vec![(name, kind("linear"))], RopeScaling::None),
        (vec![(name, kind("none")), (new, four.clone())], RopeScaling::None),
        (vec![(new, Meta::F32(0.0)), (old, four.clone())], RopeScaling::None),
    ] {
        let model = Checkpoint::open(&parts.with("m.gguf", &keys)?)?;
        assert_eq!(model.config().ropes[0].scaling, wanted, "{keys:?}");
        assert!(model.notes().is_empty(), "{:?}", model.notes());
        // And as it is written again.
        let again = parts.folder.path().join("again.gguf");
        export_gguf(&again, &model, &model, None)?;
        assert_eq!(checkpoint(&again)?.config().ropes, model.config().ropes);
    }
    for (key, value, said) in [
        (name, kind("yarn"), "yarn"),
        (new, Meta::F32(-1.0), "positive number"),
        ("llama.attention.causal", Meta::Bool(false), "llama.attention.causal = 0"),
        ("llama.logit_scale", Meta::F32(0.5), "llama.logit_scale = 0.5"),
        ("llama.attention.scale", Meta::F32(0.5), "llama.attention.scale = 0.5"),
        ("llama.rope.scaling.attn_factor", Meta::F32(1.2), "attn_factor"),
        ("llama.attention.clamp_kqv", Meta::F32(8.0), "clamp_kqv"),
        ("llama.use_parallel_residual", Meta::Bool(true), "use_parallel_residual"),
        ("llama.attention.value_length", Meta::U32(8), "value_length 8"),
    ] {
        says(
            &parts.with("m.gguf", &[(key, value)])?,
            &["m.gguf", said, "not supported"][..if said == "positive number" { 2 } else { 3 }],
        );
    }
    // Experts are read, and so is how many of them a token goes through.
    let experts = [("llama.expert_count", Meta::U32(4))];
    says(&parts.with("m.gguf", &experts)?, &["m.gguf", "llama.expert_used_count", "nothing"]);
    for (key, value) in [
        ("llama.attention.causal", Meta::Bool(true)),
        ("llama.attention.scale", Meta::F32(0.25)), // 1 / sqrt(16)
        ("llama.logit_scale", Meta::F32(1.0)),
        ("llama.expert_used_count", Meta::U32(0)),
        ("llama.tensor_data_layout", kind("Meta AI original pth")),
    ] {
        let model = Checkpoint::open(&parts.with("m.gguf", &[(key, value)])?)?;
        assert!(model.notes().is_empty(), "{key}: {:?}", model.notes());
    }
    let model = Checkpoint::open(&parts.with("m.gguf", &[("llama.swizzle", Meta::U32(1))])?)?;
    assert!(
        model.notes().len() == 1 && model.notes()[0].contains("llama.swizzle"),
        "{:?}",
        model.notes()
    );
    let said = runs(parts.folder.path(), "inspect m.gguf")?.err;
    assert!(said.contains("warning: ") && said.contains("llama.swizzle"), "{said}");
    Ok(())
}

fn gguf_tensors_nobody_reads() -> Result<(), Failed> {
    let mut parts = Parts::new(NANO)?;
    let plain = bits(&Checkpoint::open(&parts.write("m.gguf", &parts.pairs)?)?)?;
    let own = parts.tensors.len();
    let further = |name: &str, count: usize| {
        (name.to_string(), GgmlType::F32, vec![count], 1f32.to_le_bytes().repeat(count))
    };
    for name in [
        "blk.0.attn_q_norm.weight",
        "output_norm.bias",
        "blk.7.attn_norm.weight",
        "aux",
        "rope_factors_long.weight",
    ] {
        parts.tensors.truncate(own);
        parts.tensors.push(further(name, 16));
        says(&parts.write("m.gguf", &parts.pairs)?, &["m.gguf", name, "is not read"]);
    }
    parts.tensors.truncate(own);
    parts.tensors.push(further("blk.0.attn_rot_embd", 8));
    parts.tensors.push(further("rope_freqs.weight", 8));
    let model = Checkpoint::open(&parts.write("m.gguf", &parts.pairs)?)?;
    assert!(model.notes().is_empty() && bits(&model)? == plain, "{:?}", model.notes());
    // llama.cpp divides by the factors of both, and what is written says so once.
    let factor = [("llama.rope.scaling.factor", Meta::F32(4.0))];
    let model = Checkpoint::open(&parts.with("m.gguf", &factor)?)?;
    assert_eq!(model.config().ropes[0].scaling, RopeScaling::Divisors(vec![4.0; 8]));
    let again = parts.folder.path().join("again.gguf");
    export_gguf(&again, &model, &model, None)?;
    assert_eq!(bits(&checkpoint(&again)?)?, bits(&model)?);
    Ok(())
}

fn gguf_in_parts() -> Result<(), Failed> {
    let parts = Parts::new(NANO)?;
    let plain = bits(&Checkpoint::open(&parts.write("m.gguf", &parts.pairs)?)?)?;
    let all = parts.tensors.len();
    let split = |number: u16, count: u16, tensors: usize| {
        [
            ("split.no", Meta::U16(number)),
            ("split.count", Meta::U16(count)),
            ("split.tensors.count", Meta::I32(tensors as i32)),
        ]
        .map(|(key, value)| (key.to_string(), value))
    };
    let write = |number: u16, range, tensors| {
        let mut pairs = split(number, 3, tensors).to_vec();
        if number == 0 {
            pairs.extend(parts.pairs.clone());
        }
        parts.part(&format!("m-{:05}-of-00003.gguf", number + 1), &pairs, range)
    };
    let first = write(0, 0..5, all)?;
    let second = write(1, 5..9, all)?;
    says(&first, &["m-00003-of-00003.gguf", "part 3 of 3", "missing"]);
    write(2, 9..all, all)?;
    let model = Checkpoint::open(&first)?;
    assert!(bits(&model)? == plain && model.sources().len() == 3, "parts");
    let again = parts.folder.path().join("again.gguf");
    export_gguf(&again, &model, &model, None)?;
    assert_eq!(bits(&checkpoint(&again)?)?, plain);
    says(
        &second,
        &["m-00002-of-00003.gguf", "part 2 of 3", "give the first, m-00001-of-00003.gguf"],
    );
    let renamed = parts.folder.path().join("other.gguf");
    std::fs::copy(&first, &renamed)?;
    says(
        &renamed.to_string_lossy(),
        &["part 1 of 3", "under another name", "NAME-00001-of-00003.gguf"],
    );
    write(0, 0..5, all + 1)?;
    says(&first, &["split.tensors.count"]);
    write(0, 0..5, all)?;
    std::fs::copy(&second, parts.folder.path().join("m-00003-of-00003.gguf"))?;
    says(&first, &["m-00003-of-00003.gguf", "split.no", "expected 2 and 3"]);
    // A folder of them is no model by itself, and says which file to give.
    says(&parts.folder.path().to_string_lossy(), &["folder of GGUF files", "again.gguf"]);
    Ok(())
}

fn gguf_heads_as_arrays() -> Result<(), Failed> {
    let parts = Parts::new(NANO)?;
    let plain = Checkpoint::open(&parts.write("plain.gguf", &parts.pairs)?)?;
    let list = |values: [i32; 2]| Meta::Array(Array::I32(values.to_vec()));
    let arrays = [
        ("llama.attention.head_count", list([4, 4])),
        ("llama.attention.head_count_kv", list([2, 2])),
        ("llama.feed_forward_length", list([192, 192])),
    ];
    let model = Checkpoint::open(&parts.with("m.gguf", &arrays)?)?;
    assert!(
        model.config() == plain.config() && bits(&model)? == bits(&plain)?,
        "{:?}",
        model.config()
    );
    let uneven = [("llama.attention.head_count_kv", list([2, 4]))];
    says(&parts.with("m.gguf", &uneven)?, &["llama.attention.head_count_kv", "one for all layers"]);
    Ok(())
}

/// nano-llama's folder.
fn nano() -> Result<(Map<String, Value>, Vec<Stored>), Failed> {
    read_folder(Path::new("assets/nano-llama"))
}

fn vector(name: &str, count: usize) -> Stored {
    (name.into(), DType::F32, vec![count], 1f32.to_le_bytes().repeat(count))
}

fn hf_tensors_nobody_reads() -> Result<(), Failed> {
    let (config, tensors) = nano()?;
    let folder = TempDir::new()?;
    let path = folder.path().to_string_lossy().into_owned();
    let plain = bits(&Checkpoint::open(NANO)?)?;
    let with = |further: Stored| {
        let tensors: Vec<Stored> = tensors.iter().cloned().chain([further]).collect();
        write_model(folder.path(), &config, &tensors)
    };
    for name in [
        "model.norm.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.input_layernorm.bias",
        "lm_head.bias",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.layers.1.mlp.down_proj.weight_scale",
    ] {
        with(vector(name, 16))?;
        says(&path, &[name, "is not read"]);
    }
    for (name, noted) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", false),
        ("model.layers.2.mlp.up_proj.weight", true),
        ("vision.patch.weight", true),
    ] {
        with(vector(name, 8))?;
        let model = Checkpoint::open(&path)?;
        assert_eq!(
            model.notes().iter().any(|note| note.contains(name)),
            noted,
            "{:?}",
            model.notes()
        );
        assert_eq!(bits(&model)?, plain, "{name}");
    }
    // A tied head that is stored all the same, and one that is another matrix.
    let embedding = tensors.iter().find(|tensor| tensor.0 == "model.embed_tokens.weight");
    let (_, ty, shape, bytes) = embedding.ok_or("an embedding")?.clone();
    for other in [false, true] {
        let mut bytes = bytes.clone();
        bytes[0] ^= u8::from(other);
        with(("lm_head.weight".into(), ty, shape.clone(), bytes))?;
        let model = Checkpoint::open(&path)?;
        assert_eq!(model.notes().len(), usize::from(other), "{:?}", model.notes());
        assert_eq!(bits(&model)?, plain);
    }
    Ok(())
}

fn hf_names_with_prefixes() -> Result<(), Failed> {
    let (config, tensors) = nano()?;
    let folder = TempDir::new()?;
    let plain = bits(&Checkpoint::open(NANO)?)?;
    let names: [fn(&str) -> String; 5] = [
        |name| name.trim_start_matches("model.").into(),
        |name| format!("_orig_mod.{name}"),
        |name| format!("module._orig_mod.{name}"),
        |name| format!("language_model.{name}"),
        |name| name.replace("model.", "model.language_model."),
    ];
    for name in names {
        let renamed: Vec<Stored> = tensors
            .iter()
            .cloned()
            .map(|(old, ty, shape, bytes)| (name(&old), ty, shape, bytes))
            .collect();
        write_model(folder.path(), &config, &renamed)?;
        let model = checkpoint(folder.path())?;
        assert!(bits(&model)? == plain && model.notes().is_empty(), "{}", renamed[0].0);
    }
    Ok(())
}

fn hf_rope_keys() -> Result<(), Failed> {
    let (config, tensors) = nano()?;
    let folder = TempDir::new()?;
    let path = folder.path().to_string_lossy().into_owned();
    let with = |keys: Value| -> Result<(), Failed> {
        let mut config = config.clone();
        config.extend(keys.as_object().ok_or("an object")?.clone());
        write_model(folder.path(), &config, &tensors)
    };
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    // Where both are there transformers takes rope_scaling, and its base from outside.
    for (keys, theta, scaling) in [
        (
            json!({"rope_scaling": linear, "rope_theta": 5000.0}),
            5000.0,
            RopeScaling::Linear { factor: 4.0 },
        ),
        (json!({"rope_scaling": null}), 10_000.0, RopeScaling::None),
        (json!({"rope_scaling": {}}), 10_000.0, RopeScaling::None),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}),
            10_000.0,
            RopeScaling::Linear { factor: 2.0 },
        ),
        (json!({"rope_parameters": {"rope_theta": 7.0}}), 7.0, RopeScaling::None),
        (json!({"partial_rotary_factor": 1}), 10_000.0, RopeScaling::None),
    ] {
        with(keys.clone())?;
        let rope = checkpoint(folder.path())?.config().ropes[0].clone();
        assert!(rope.theta == theta && rope.scaling == scaling, "{keys}: {rope:?}");
    }
    for (keys, said) in [
        (json!({"rope_scaling": {"factor": 4.0}}), "rope_type"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}), "yarn"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (
            json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.25}}),
            "partial_rotary_factor",
        ),
        (json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
    ] {
        with(keys)?;
        says(&path, &["config.json", said]);
    }
    Ok(())
}

fn hf_types() -> Result<(), Failed> {
    let (config, tensors) = nano()?;
    let folder = TempDir::new()?;
    let plain = bits(&Checkpoint::open(NANO)?)?;
    // Written by the header's own name: the writer has no type of 64 bits but integers.
    let mut wide = tensors.clone();
    for (_, ty, shape, bytes) in &mut wide {
        let count: usize = shape.iter().product();
        *bytes = (0..count).flat_map(|index| ty.get(bytes, index).to_le_bytes()).collect();
        *ty = DType::I64;
    }
    write_model(folder.path(), &config, &wide)?;
    let file = folder.path().join("model.safetensors");
    let renamed = |bytes: &[u8]| -> Vec<u8> {
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let text = String::from_utf8_lossy(&bytes[8..header]).replace("\"I64\"", "\"F64\"");
        [&bytes[..8], text.as_bytes(), &bytes[header..]].concat()
    };
    std::fs::write(&file, renamed(&std::fs::read(&file)?))?;
    let model = checkpoint(folder.path())?;
    assert_eq!(bits(&model)?, plain);
    assert!(model.stored_type(&model.specs()[0]) == "f64", "type");
    // A value that f32 makes infinite is named, not passed on.
    wide[0].3[..8].copy_from_slice(&1e300f64.to_le_bytes());
    write_model(folder.path(), &config, &wide)?;
    std::fs::write(&file, renamed(&std::fs::read(&file)?))?;
    let model = checkpoint(folder.path())?;
    let spec = model.specs().iter().find(|spec| spec.name == wide[0].0).ok_or("a tensor")?;
    let error = model.load(spec).map(drop).expect_err("a value beyond f32").to_string();
    assert!(error.contains(&wide[0].0) && error.contains("values that f32 holds"), "{error}");
    Ok(())
}

fn hf_biases_are_stated() -> Result<(), Failed> {
    let (config, tensors) = read_folder(Path::new("assets/fixtures/biased"))?;
    let folder = TempDir::new()?;
    for (key, name) in [("attention_bias", "q_proj.bias"), ("mlp_bias", "gate_proj.bias")] {
        for value in [json!(false), json!(null)] {
            let mut config = config.clone();
            config.insert(key.into(), value);
            write_model(folder.path(), &config, &tensors)?;
            says(&folder.path().to_string_lossy(), &[name, key, "expected no bias"]);
        }
    }
    Ok(())
}

/// What transformers would drop, invent or misread is stated as the tensors have it.
fn written_config_is_the_tensors() -> Result<(), Failed> {
    let mut parts = Parts::new("assets/fixtures/biased/model.gguf")?;
    let out = TempDir::new()?;
    let export = |model: &str, name: &str| -> Result<(Value, Vec<String>), Failed> {
        let (model, folder) = (Checkpoint::open(model)?, out.path().join(name));
        std::fs::create_dir(&folder)?;
        export_hf(&folder, model.config_json()?, &model, None)?;
        let again = checkpoint(&folder)?;
        assert!(
            again.notes().is_empty() && again.config().computes_as(model.config()),
            "{:?}",
            again.notes()
        );
        let names = Safetensors::open_folder(&folder)?.names().map(String::from).collect();
        Ok((read_json(folder.join("config.json"))?, names))
    };
    let all =
        |names: &[String], part: &str| names.iter().filter(|name| name.ends_with(part)).count();
    let ids = [
        ("tokenizer.ggml.bos_token_id", Meta::U32(7)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(9)),
        ("tokenizer.ggml.padding_token_id", Meta::U32(4_000_000)),
    ];
    let (json, names) = export(&parts.with("m.gguf", &ids)?, "biased")?;
    for (key, value) in [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("bos_token_id", json!(7)),
        ("eos_token_id", json!(9)),
        ("pad_token_id", json!(null)),
        ("torch_dtype", json!("float16")),
        ("tie_word_embeddings", json!(true)),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    assert!(all(&names, "_proj.bias") == 14 && json.get("dtype").is_none(), "{names:?}");
    // With some biases only, the folder has the others that its configuration speaks of.
    parts.tensors.retain(|(name, ..)| {
        !name.ends_with("attn_output.bias") && !name.contains("ffn") || name.ends_with("weight")
    });
    let (json, names) = export(&parts.write("some.gguf", &parts.pairs)?, "some")?;
    assert!(json["attention_bias"] == true && json["mlp_bias"] == false, "{json}");
    assert_eq!((all(&names, "o_proj.bias"), all(&names, "_proj.bias")), (2, 8));
    parts.tensors.retain(|(name, ..)| !name.ends_with("bias"));
    let (json, names) = export(&parts.write("none.gguf", &parts.pairs)?, "none")?;
    assert!(json["attention_bias"] == false && all(&names, "bias") == 0, "{json}");
    // Of the two keys of the type one stays, whatever both said.
    let (mut config, tensors) = nano()?;
    config.extend([
        ("dtype".to_string(), json!("float32")),
        ("torch_dtype".into(), json!("bfloat16")),
    ]);
    let source = out.path().join("both");
    std::fs::create_dir(&source)?;
    write_model(&source, &config, &tensors)?;
    let (json, _) = export(&source.to_string_lossy(), "one")?;
    assert!(json["torch_dtype"] == "float16" && json.get("dtype").is_none(), "{json}");
    // A class of transformers without a word for a bias would drop it.
    let (config, mut tensors) = read_folder(Path::new("assets/families/mistral"))?;
    let width = config["hidden_size"].as_u64().ok_or("a width")? as usize;
    tensors.push(vector("model.layers.0.self_attn.o_proj.bias", width));
    write_model(&source, &config, &tensors)?;
    let model = checkpoint(&source);
    let refused = model.and_then(|model| {
        Ok(export_hf(&out.path().join("never"), model.config_json()?, &model, None)?)
    });
    let error =
        refused.expect_err("a bias that has no key").message().unwrap_or_default().to_string();
    assert!(error.contains("o_proj.bias") && error.contains("MistralForCausalLM"), "{error}");
    Ok(())
}

/// A folder that a run wrote opens, whichever of its formats are there.
fn own_folders() -> Result<(), Failed> {
    let nano = Checkpoint::open(NANO)?;
    let (plain, tokenizer) = (bits(&nano)?, nano.stored_tokenizer()?);
    let folder = TempDir::new()?;
    let out = folder.path().join("out");
    let name = out.to_string_lossy().into_owned();
    std::fs::create_dir(&out)?;
    std::fs::write(out.join("manifest.json"), "{}")?;
    says(&name, &["out", "no config.json", "manifest.json"]);
    export_gguf(&out.join("model.gguf"), &nano, &nano, Some(&tokenizer))?;
    let mut found = vec![Checkpoint::open(&name)?];
    for part in ["hf", "packed"] {
        std::fs::create_dir(out.join(part))?;
        match part {
            "hf" => {
                export_hf(&out.join(part), nano.config_json()?, &nano, Some(&tokenizer))?;
            }
            _ => export_packed(&out.join(part), nano.config_json()?, &nano, Some(&tokenizer))?,
        }
        found.push(Checkpoint::open(&name)?);
    }
    let kinds: Vec<&str> = found.iter().map(Checkpoint::container).collect();
    assert_eq!(kinds, ["gguf", "safetensors", "lopper"]);
    for model in found {
        assert!(bits(&model)? == plain && model.tokenizer().is_ok(), "{}", model.container());
    }
    Ok(())
}

/// Sizes whose products leave 64 bits, in a folder whose tensors are empty: refused by name, by every command.
fn sizes_that_overflow() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let format = json!({"type": "f32", "group_size": 0});
    let config = json!({
        "model_type": "llama", "hidden_size": 1 << 28, "num_hidden_layers": 1, "vocab_size": 1 << 28, "head_dim": 256,
        "intermediate_size": 1 << 28, "num_attention_heads": 1 << 28, "num_key_value_heads": 1,
        "quantization_config": {"quant_method": "lopper", "version": 2, "tensors": {"model.layers.0.self_attn.q_proj.weight": format}},
    });
    let tensor = (
        "model.layers.0.self_attn.q_proj.weight.codes".to_string(),
        DType::U32,
        vec![0, 0],
        vec![],
    );
    write_model(folder.path(), config.as_object().ok_or("an object")?, &[tensor])?;
    let name = folder.path().to_string_lossy().into_owned();
    says(&name, &["config.json", "sizes", "fewer than 281474976710656 weights"]);
    let run = crate::program::lopper(
        folder.path(),
        "logits . --tokens 1 --out x.safetensors --device cpu",
    )?;
    run.refused(2, "sizes");
    // And where GGUF's keys state them.
    let parts = Parts::new(NANO)?;
    let keys =
        [("llama.vocab_size", Meta::U32(1 << 28)), ("llama.embedding_length", Meta::U32(1 << 28))];
    says(&parts.with("m.gguf", &keys)?, &["sizes"]);
    Ok(())
}

/// Weights that f16 would make infinite: a wider type holds them, in every format.
fn exports_hold_every_value() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let name = "model.layers.0.mlp.up_proj.weight";
    for (ty, stated) in [(DType::Bf16, "bfloat16"), (DType::F32, "float32")] {
        let (config, mut tensors) = nano()?;
        for (tensor, old, shape, bytes) in &mut tensors {
            let count: usize = shape.iter().product();
            let mut wide = vec![0; count * ty.size()];
            (0..count).for_each(|index| ty.set(&mut wide, index, old.get(bytes, index)));
            if tensor == name {
                ty.set(&mut wide, 5, 131_072.0);
            }
            (*old, *bytes) = (ty, wide);
        }
        let [source, hf, packed] =
            ["m", "hf", "q"].map(|part| folder.path().join(format!("{part}{stated}")));
        std::fs::create_dir(&source)?;
        write_model(&source, &config, &tensors)?;
        let model = checkpoint(&source)?;
        let plain = bits(&model)?;
        std::fs::create_dir(&hf)?;
        export_hf(&hf, model.config_json()?, &model, None)?;
        assert_eq!(read_json(hf.join("config.json"))?["dtype"], stated);
        assert_eq!(bits(&checkpoint(&hf)?)?, plain);
        // Codes whose values no type of GGUF holds but f32.
        std::fs::copy("assets/nano-llama/tokenizer.json", source.join("tokenizer.json"))?;
        let flags = "--bits 3 --grid signed-max --no-eval --device cpu";
        let (from, to) = (source.display(), packed.display());
        runs(folder.path(), &format!("quantize {from} {flags} --out {to}"))?;
        let said =
            runs(folder.path(), &format!("export {to} --format gguf --out {stated}.gguf"))?.err;
        assert!(said.contains(name) && said.contains("f32"), "{said}");
        let [codes, gguf] =
            [&packed, &folder.path().join(format!("{stated}.gguf"))].map(|path| checkpoint(path));
        let (codes, gguf) = (codes?, gguf?);
        let spec =
            |model: &Checkpoint| model.specs().iter().find(|spec| spec.name == name).cloned();
        let spec = spec(&codes).ok_or("a tensor")?;
        assert_eq!(gguf.load(&spec)?.to_f32(), codes.load(&spec)?.to_f32());
    }
    Ok(())
}

/// Weights so small that f16 would lose a row of them, in a folder and in codes of a GGUF file: a wider type, foreseen by the plan
/// and told by the manifest, once.
fn small_values_are_held() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let name = "model.layers.1.mlp.down_proj.weight";
    for (ty, stated, factor) in [
        (DType::Bf16, "bfloat16", 1e-9),
        (DType::F32, "float32", 1e-9),
        (DType::F32, "float16", 1.0),
    ] {
        let (config, mut tensors) = nano()?;
        for (tensor, old, shape, bytes) in &mut tensors {
            let count: usize = shape.iter().product();
            let mut wide = vec![0; count * ty.size()];
            for index in 0..count {
                // One row of the matrix; values here and there that are nothing are no loss.
                let small = tensor == name && index / shape[shape.len() - 1] == 3;
                let factor = if small { factor } else { 1.0 };
                let value = if index % 97 == 5 { 1e-12 } else { factor * old.get(bytes, index) };
                ty.set(&mut wide, index, value);
            }
            (*old, *bytes) = (ty, wide);
        }
        let source = folder.path().join(format!("m{stated}"));
        std::fs::create_dir(&source)?;
        write_model(&source, &config, &tensors)?;
        std::fs::copy("assets/nano-llama/tokenizer.json", source.join("tokenizer.json"))?;
        let plain = bits(&checkpoint(&source)?)?;
        let (source, hf) = (source.display(), folder.path().join(format!("h{stated}")));
        let run = runs(
            folder.path(),
            &format!("export {source} --format hf --out {} --json=-", hf.display()),
        )?;
        let wide = stated != "float16";
        let told = |list: &Value| -> usize {
            let list = list.as_array().into_iter().flatten().filter_map(Value::as_str);
            list.filter(|text| text.contains(name) && text.contains("f16 does not hold")).count()
        };
        assert_eq!(told(&run.json()?["warnings"]), usize::from(wide), "{run}");
        assert_eq!(read_json(hf.join("config.json"))?["dtype"], stated);
        if wide {
            assert!(run.err.contains("f16 does not hold"), "{run}");
            assert_eq!(bits(&checkpoint(&hf)?)?, plain, "{stated}");
        }
        // A tensor that no stage changes, beside one that is quantized.
        let out = format!("o{stated}");
        let command = format!(
            "quantize {source} --bits 4 --include *layers.0.self_attn.q_proj* --formats hf --no-eval --device cpu --out {out}"
        );
        let plan = runs(folder.path(), &format!("{command} --dry-run --json=-"))?.json()?;
        runs(folder.path(), &command)?;
        let manifest = read_json(folder.path().join(&out).join("manifest.json"))?;
        assert_eq!(
            [&plan["plan"], &manifest].map(|of| told(&of["warnings"])),
            [usize::from(wide); 2]
        );
        assert_eq!(plan["plan"]["exports"], manifest["exports"], "{stated}");
    }
    Ok(())
}

/// The type of most matrices, and the number of weights where it was stated, follow what is written.
fn gguf_says_what_it_is() -> Result<(), Failed> {
    let parts = Parts::new(NANO)?;
    let label = ("general.size_label", Meta::String("358K".into()));
    parts.with("m.gguf", &[label.clone(), ("general.file_type", Meta::U32(1))])?;
    let folder = parts.folder.path();
    let stated = |name: &str| -> Result<(Option<Meta>, Option<Meta>), Failed> {
        let gguf = Gguf::open(Source::open(&folder.join(name))?)?;
        let get = |key: &str| gguf.get(key).cloned();
        Ok((get("general.file_type"), get("general.size_label")))
    };
    runs(folder, "quantize m.gguf --type q4_1 --no-eval --out q --device cpu")?;
    assert_eq!(stated("q/model.gguf")?, (Some(Meta::U32(3)), Some(label.1.clone())));
    // As a mixture calls itself, as long as it is one.
    parts.with("mixed.gguf", &[("general.file_type", Meta::U32(15))])?;
    runs(folder, "export mixed.gguf --format gguf --out e.gguf")?;
    assert_eq!(stated("e.gguf")?.0, Some(Meta::U32(15)));
    runs(
        folder,
        "prune m.gguf --ratio 0.5 --widths ffn --score l2 --no-eval --out p --device cpu",
    )?;
    let (_, size) = stated("p/model.gguf")?;
    let model = Checkpoint::open(&folder.join("p/model.gguf").to_string_lossy())?;
    let thousands = format!("{:.0}K", model.parameters() as f64 / 1e3);
    assert_eq!(size, Some(Meta::String(thousands)));
    Ok(())
}

/// A family whose architecture in GGUF has no key for attention to a window.
fn windows_need_a_key() -> Result<(), Failed> {
    let (mut config, tensors) = read_folder(Path::new("assets/families/qwen2"))?;
    config.extend([
        ("use_sliding_window".to_string(), json!(true)),
        ("sliding_window".into(), json!(8)),
        ("max_window_layers".into(), json!(0)),
    ]);
    config.remove("layer_types");
    let folder = TempDir::new()?;
    write_model(folder.path(), &config, &tensors)?;
    let model = checkpoint(folder.path())?;
    let error = model.config().architecture(Path::new("m")).expect_err("no key").to_string();
    assert!(error.contains("qwen2") && error.contains("window"), "{error}");
    Ok(())
}
