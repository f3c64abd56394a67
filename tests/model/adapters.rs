//! Low-rank adapters: PEFT's files, what they fit, and what merging makes of weights.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::error::Error;
use lopper::formats::peft::{CONFIG_FILE, WEIGHTS_FILE};
use lopper::formats::safetensors::{NewTensor, write_file};
use lopper::methods::quantize::{Scheme, rtn::rtn};
use lopper::methods::tune::merged::Merged;
use lopper::model::{
    AdapterConfig, Adapters, Checkpoint, Pair, Role, Synth, Targets, TensorSpec, Weights,
};
use lopper::tensor::{DType, Packed, WeightFormat, weight_type};
use serde_json::{Value, json};

use crate::models::{Stored, logits};
use crate::numbers::{Known, relative_error};

pub fn trials() -> Vec<Trial> {
    suite!("adapters":
        round_trip, opens_what_peft_wrote, narrow_matrices, fresh_ones, merges_into_dense, merges_into_quantized,
        no_room_in_a_pattern, foreign_settings, broken_settings, broken_matrices, other_models)
}

fn nano() -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open("embedded:nano-llama")?)
}

fn named(names: &[&str]) -> Targets {
    Targets::Named(names.iter().map(|name| name.to_string()).collect())
}

/// Adapters of a model that change it: B is as A.
fn trained(model: &dyn Weights, config: AdapterConfig, size: f32) -> Result<Adapters, Failed> {
    let mut adapters = Adapters::fresh(config, model.specs(), 3)?;
    let mut random = lopper::device::Random::new(4);
    for pair in &mut adapters.pairs {
        pair.b = random.values(pair.outputs * pair.rank, size);
    }
    Ok(adapters)
}

/// Settings with everything that can be set.
fn settings() -> AdapterConfig {
    AdapterConfig {
        dropout: 0.05,
        base_model: Some("nano".into()),
        rslora: true,
        rank_pattern: vec![("layers.1.self_attn.q_proj".into(), 2), ("down_proj".into(), 5)],
        alpha_pattern: vec![(r"model\.layers\.\d+\.mlp\.down_proj".into(), 7.5)],
        ..AdapterConfig::new(4, 16.0, named(&["q_proj", "mlp.down_proj"]))
    }
}

fn round_trip() -> Result<(), Failed> {
    let model = nano()?;
    let adapters = trained(&model, settings(), 0.1)?;
    let ranks: Vec<(&str, usize)> =
        adapters.pairs.iter().map(|pair| (pair.module.as_str(), pair.rank)).collect();
    assert_eq!(
        ranks,
        [
            ("model.layers.0.self_attn.q_proj", 4),
            ("model.layers.0.mlp.down_proj", 5),
            ("model.layers.1.self_attn.q_proj", 2),
            ("model.layers.1.mlp.down_proj", 5),
        ]
    );
    assert_eq!(adapters.config.scale_of("model.layers.0.self_attn.q_proj"), 16.0 / 2.0);
    assert_eq!(adapters.config.scale_of("model.layers.1.mlp.down_proj"), 7.5 / 5f64.sqrt());
    let folder = tempfile::tempdir()?;
    adapters.write(folder.path(), model.config())?;
    let files: Vec<_> =
        std::fs::read_dir(folder.path())?.flatten().map(|f| f.file_name()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    let again = Adapters::read(folder.path())?;
    again.check(model.config())?;
    assert_eq!(again.config, adapters.config);
    for pair in &adapters.pairs {
        assert_eq!(again.of(&pair.module), Some(pair));
    }
    let text = std::fs::read_to_string(folder.path().join(CONFIG_FILE))?;
    let json: Value = serde_json::from_str(&text)?;
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("r", json!(4)),
        ("lora_alpha", json!(16)),
        ("lora_dropout", json!(0.05)),
        ("use_rslora", json!(true)),
        ("base_model_name_or_path", json!("nano")),
        ("target_modules", json!(["q_proj", "mlp.down_proj"])),
        ("bias", json!("none")),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    // Written again over what stands there, without training in between.
    again.write(folder.path(), model.config())?;
    assert_eq!(Adapters::read(folder.path())?, again);
    Ok(())
}

/// A file that PEFT itself wrote, and the logits that PEFT has with it, in float64.
fn opens_what_peft_wrote() -> Result<(), Failed> {
    let folder = Path::new("assets/fixtures/peft");
    let adapters = Adapters::read(folder)?;
    let model = nano()?;
    adapters.check(model.config())?;
    let expected = Known::open("assets/fixtures/peft/expected.safetensors")?;
    let ids = expected.words("input_ids")?;
    let plain = logits(&Device::Cpu, &model, &ids, 1)?;
    let wide = Wide(&model);
    let merged = Merged::new(&wide, &adapters, &Device::Cpu)?;
    let found = logits(&Device::Cpu, &merged, &ids, 1)?;
    let wanted = expected.floats("logits")?;
    let error = relative_error(&found, &wanted);
    assert!(error < 1e-5, "{error}");
    assert!(relative_error(&plain, &wanted) > 0.1, "the adapters change something");
    Ok(())
}

/// A model in f32.
struct Wide<'a>(&'a dyn Weights);

impl Weights for Wide<'_> {
    fn config(&self) -> &lopper::model::Config {
        self.0.config()
    }
    fn specs(&self) -> &[TensorSpec] {
        self.0.specs()
    }
    fn load(&self, spec: &TensorSpec) -> lopper::error::Result<Packed> {
        Ok(Packed::from_f32(&self.0.load(spec)?.to_f32(), spec.rows, spec.columns))
    }
    fn format(&self, _: &TensorSpec) -> lopper::error::Result<WeightFormat> {
        Ok(WeightFormat::f32())
    }
}

/// Files of a pair each, of one type and shape.
fn stored(folder: &Path, tensors: Vec<Stored>) -> Result<(), Failed> {
    let new = |(name, dtype, shape, bytes): Stored| NewTensor {
        name,
        dtype,
        shape,
        data: Box::new(move || Ok(bytes.clone())),
    };
    Ok(write_file(&folder.join(WEIGHTS_FILE), tensors.into_iter().map(new).collect())?)
}

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// A pair of nano-llama's first query projection, of rank 2: the matrices of a valid file.
fn q_pair() -> Vec<Stored> {
    let matrix = |name: &str, rows: usize, columns: usize| {
        let values = (0..rows * columns).map(|place| 0.01 * place as f32);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        (format!("{Q}.{name}.weight"), DType::F32, vec![rows, columns], bytes)
    };
    vec![matrix("lora_A", 2, 64), matrix("lora_B", 64, 2)]
}

fn q_settings() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
}

fn put_settings(folder: &Path, settings: &Value) -> Result<(), Failed> {
    Ok(std::fs::write(folder.join(CONFIG_FILE), settings.to_string())?)
}

fn narrow_matrices() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    put_settings(folder.path(), &q_settings())?;
    let values = [0.1f32, -2.5, 3e-5, 0.0, 1.0, 7.0, -0.3, 100.0];
    for dtype in [DType::F16, DType::Bf16] {
        let round = |value: f32| match dtype {
            DType::F16 => f16::from_f32(value).to_le_bytes(),
            _ => bf16::from_f32(value).to_le_bytes(),
        };
        let wide = |value: f32| match dtype {
            DType::F16 => f16::from_f32(value).to_f32(),
            _ => bf16::from_f32(value).to_f32(),
        };
        let of = |name: &str, shape: [usize; 2]| {
            let bytes = values.iter().flat_map(|v| round(*v)).collect();
            (format!("{Q}.{name}.weight"), dtype, shape.to_vec(), bytes)
        };
        stored(folder.path(), vec![of("lora_A", [2, 4]), of("lora_B", [4, 2])])?;
        let adapters = Adapters::read(folder.path())?;
        let wanted: Vec<f32> = values.into_iter().map(wide).collect();
        let Pair { a, b, rank, inputs, outputs, .. } = &adapters.pairs[0];
        assert_eq!((a, b, *rank, *inputs, *outputs), (&wanted, &wanted, 2, 4, 4));
    }
    Ok(())
}

fn fresh_ones() -> Result<(), Failed> {
    let model = nano()?;
    let linear = model.specs().iter().filter(|spec| spec.role == Role::Linear).count();
    let all = Targets::Pattern(Targets::ALL_LINEAR.into());
    let fresh = |targets: Targets, seed| {
        Adapters::fresh(AdapterConfig::new(8, 16.0, targets), model.specs(), seed)
    };
    let adapters = fresh(all.clone(), 1)?;
    assert_eq!(adapters.pairs.len(), linear);
    adapters.check(model.config())?;
    let a: Vec<f64> =
        adapters.pairs.iter().flat_map(|pair| &pair.a).map(|v| 8.0 * f64::from(*v)).collect();
    let mean = a.iter().sum::<f64>() / a.len() as f64;
    let moment = |power: i32| a.iter().map(|v| v.powi(power)).sum::<f64>() / a.len() as f64;
    assert!(mean.abs() < 0.03 && (moment(2) - 1.0).abs() < 0.05, "{mean} {}", moment(2));
    assert!((moment(4) - 3.0).abs() < 0.3, "{}", moment(4));
    assert!(adapters.pairs.iter().all(|pair| pair.b.iter().all(|value| *value == 0.0)));
    assert!(fresh(all.clone(), 1)? == adapters && fresh(all, 2)? != adapters);
    // Nothing changes, to the bit.
    let merged = Merged::new(&model, &adapters, &Device::Cpu)?;
    for spec in model.specs() {
        assert!(merged.load(spec)? == model.load(spec)?, "{}", spec.name);
    }
    assert_eq!(merged.losses().len(), linear);
    assert!(merged.losses().values().all(|loss| loss.of_weight == 0.0 && loss.of_change == 0.0));

    let count = |targets: Targets| fresh(targets, 1).map(|adapters| adapters.pairs.len());
    assert_eq!(count(named(&["q_proj", "v_proj"]))?, 4);
    assert_eq!(count(named(&["layers.1.mlp.up_proj"]))?, 1);
    assert_eq!(count(Targets::Pattern(r".*\.0\..*_proj".into()))?, linear / 2);
    for targets in [
        named(&["q_proj", "proj"]),
        named(&["lm_head"]), // tied to the embedding
        named(&["embed_tokens"]),
        named(&["input_layernorm"]),
        named(&[""]),
        named(&[]),
        Targets::Pattern("q_proj".into()),
        Targets::Pattern("(".into()),
    ] {
        let error = count(targets.clone()).expect_err(&format!("{targets:?}"));
        assert!(error.to_string().contains("self_attn.q_proj"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    Ok(())
}

/// W + scale B A, written again: one value at a time.
fn exact(adapters: &Adapters, pair: &Pair, weight: &Packed) -> Vec<f64> {
    let scale = adapters.config.scale_of(&pair.module);
    let value = |place: usize| {
        let (row, column) = (place / weight.columns, place % weight.columns);
        let product: f64 = (0..pair.rank)
            .map(|k| {
                f64::from(pair.b[row * pair.rank + k]) * f64::from(pair.a[k * pair.inputs + column])
            })
            .sum();
        f64::from(weight.value(row, column)) + scale * product
    };
    (0..weight.rows * weight.columns).map(value).collect()
}

fn synth(format: WeightFormat) -> Result<Synth, Failed> {
    Ok(Synth::new("smollm2-135m", format, Some(1), 5)?)
}

fn merges_into_dense() -> Result<(), Failed> {
    for format in [WeightFormat::f32(), WeightFormat::f16(), WeightFormat::bf16()] {
        let model = synth(format)?;
        let config = AdapterConfig::new(4, 8.0, named(&["k_proj", "down_proj"]));
        let adapters = trained(&model, config, 0.05)?;
        let merged = Merged::new(&model, &adapters, &Device::Cpu)?;
        for spec in model.specs().iter().filter(|spec| spec.role == Role::Linear) {
            let (before, after) = (model.load(spec)?, merged.load(spec)?);
            assert_eq!((after.format, merged.format(spec)?), (format, format));
            let Some(pair) = adapters.of(spec.module()) else {
                assert!(before == after, "{}", spec.name);
                continue;
            };
            let wanted = exact(&adapters, pair, &before);
            let roundoff = match format.label().as_str() {
                "f32" => f64::powi(2.0, -24),
                "f16" => f64::powi(2.0, -11),
                _ => f64::powi(2.0, -8),
            };
            let stored = after.to_f32();
            for (found, wanted) in stored.iter().zip(&wanted) {
                // Half a step of the format, and of f16's smallest numbers.
                let limit = wanted.abs() * roundoff * 1.000_001 + f64::powi(2.0, -25);
                assert!((f64::from(*found) - wanted).abs() <= limit, "{found} for {wanted}");
            }
            let loss = merged.losses()[&spec.name];
            let error = relative_error(&stored, &wanted);
            assert!((loss.of_weight - error).abs() <= 1e-9 * error + 1e-12, "{loss:?}, {error}");
            assert!(loss.of_weight <= roundoff && loss.of_change > loss.of_weight, "{loss:?}");
            assert!(merged.copy_of(spec).is_none());
        }
        assert_eq!(merged.losses().len(), 2);
    }
    // What f16 does not hold is an error, and no infinity.
    let model = synth(WeightFormat::f16())?;
    let adapters = trained(&model, AdapterConfig::new(1, 1e6, named(&["k_proj"])), 1.0)?;
    let merged = Merged::new(&model, &adapters, &Device::Cpu)?;
    let spec =
        model.specs().iter().find(|spec| spec.module().ends_with("k_proj")).ok_or("k_proj")?;
    let error = merged.load(spec).expect_err("a weight beyond f16");
    assert!(error.to_string().contains(&spec.name) && error.to_string().contains("f16"), "{error}");
    Ok(())
}

fn merges_into_quantized() -> Result<(), Failed> {
    let mut lost = BTreeMap::new();
    for (ty, group_size) in
        [("int8", 32), ("uint4m", 64), ("int4", 32), ("nf4", 64), ("uint3z", 32)]
    {
        let format = WeightFormat { ty: weight_type(ty).ok_or("a type")?, group_size };
        let model = synth(format)?;
        let config = AdapterConfig::new(8, 16.0, named(&["k_proj"]));
        let adapters = trained(&model, config, 0.05)?;
        let merged = Merged::new(&model, &adapters, &Device::Cpu)?;
        let spec =
            model.specs().iter().find(|spec| spec.module().ends_with("k_proj")).ok_or("k_proj")?;
        let (before, after) = (model.load(spec)?, merged.load(spec)?);
        assert_eq!((after.format, before.format), (format, format));
        let wanted = exact(&adapters, &adapters.pairs[0], &before);
        let values: Vec<f32> = wanted.iter().map(|value| *value as f32).collect();
        let dense = Packed::from_f32(&values, after.rows, after.columns);
        let scheme = Scheme::of(format).ok_or("a scheme")?;
        let again = rtn(&Device::Cpu, &dense, scheme, &spec.name)?;
        let close = relative_error(&after.to_f32(), &again.to_f32());
        assert!(close < 1e-6, "{ty}: {close}");
        let loss = merged.losses()[&spec.name];
        let error = relative_error(&after.to_f32(), &wanted);
        assert!((loss.of_weight - error).abs() <= 1e-9 * error, "{ty}: {loss:?}, {error}");
        let change: f64 =
            wanted.iter().zip(before.to_f32()).map(|(w, b)| (w - f64::from(b)).powi(2)).sum();
        let whole: f64 = wanted.iter().map(|w| w * w).sum();
        let of_change = error * (whole / change).sqrt();
        assert!((loss.of_change - of_change).abs() <= 1e-9 * of_change, "{ty}: {loss:?}");
        lost.insert((1e6 * loss.of_weight) as u64, ty);
    }
    let order: Vec<_> = lost.into_values().collect();
    assert!(order[0] == "int8" && order[4] == "uint3z", "{order:?}");
    Ok(())
}

fn no_room_in_a_pattern() -> Result<(), Failed> {
    let format = WeightFormat { ty: weight_type("int4_2of4").ok_or("a type")?, group_size: 32 };
    struct Sparse<'a>(&'a dyn Weights, WeightFormat);
    impl Weights for Sparse<'_> {
        fn config(&self) -> &lopper::model::Config {
            self.0.config()
        }
        fn specs(&self) -> &[TensorSpec] {
            self.0.specs()
        }
        fn load(&self, spec: &TensorSpec) -> lopper::error::Result<Packed> {
            self.0.load(spec)
        }
        fn format(&self, _: &TensorSpec) -> lopper::error::Result<WeightFormat> {
            Ok(self.1)
        }
    }
    let model = nano()?;
    let adapters = trained(&model, AdapterConfig::new(2, 2.0, named(&["up_proj"])), 0.1)?;
    let Err(error @ Error::Unsupported { .. }) =
        Merged::new(&Sparse(&model, format), &adapters, &Device::Cpu).map(|_| ())
    else {
        return Err("merged into a pattern".into());
    };
    assert!(error.to_string().contains("up_proj") && error.to_string().contains("2:4"), "{error}");
    Ok(())
}

/// Reading a valid file with some keys set otherwise.
fn with_settings(keys: &[(&str, Value)]) -> Result<Result<Adapters, Error>, Failed> {
    let folder = tempfile::tempdir()?;
    stored(folder.path(), q_pair())?;
    let mut settings = q_settings();
    keys.iter().for_each(|(key, value)| settings[*key] = value.clone());
    put_settings(folder.path(), &settings)?;
    Ok(Adapters::read(folder.path()))
}

/// What an adapter can be beyond two matrices is refused by its key's name; what says nothing of that is taken.
fn foreign_settings() -> Result<(), Failed> {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("trainable_token_indices", json!([0, 1])),
        ("target_parameters", json!(["experts.down"])),
        ("alora_invocation_tokens", json!([5])),
        ("use_qalora", json!(true)),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("some_later_key", json!(1)),
    ] {
        match with_settings(&[(key, value.clone())])? {
            Err(error @ Error::Unsupported { .. }) => {
                let text = error.to_string();
                assert!(text.contains(key) && text.contains(CONFIG_FILE), "{text}");
                assert_eq!(error.exit_code(), 2);
            }
            other => return Err(format!("{key} {value}: {other:?}").into()),
        }
    }
    let fine = [
        ("use_dora", json!(false)),
        ("modules_to_save", json!(null)),
        ("modules_to_save", json!([])),
        ("init_lora_weights", json!("gaussian")),
        ("init_lora_weights", json!(true)),
        ("loftq_config", json!({})),
        ("runtime_config", json!({"ephemeral_gpu_offload": false})),
        ("some_later_key", json!({"on": false, "list": []})),
        ("qalora_group_size", json!(16)),
        ("peft_version", json!("0.21.0")),
        ("layers_to_transform", json!([0])),
    ];
    with_settings(&fine)??;
    Ok(())
}

fn broken_settings() -> Result<(), Failed> {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("peft_type", json!(null)),
        ("r", json!(0)),
        ("r", json!(-2)),
        ("r", json!(2.5)),
        ("r", json!("2")),
        ("r", json!(1u64 << 60)),
        ("lora_alpha", json!(null)),
        ("lora_alpha", json!(0)),
        ("lora_alpha", json!(-1.0)),
        ("lora_dropout", json!(1.0)),
        ("lora_dropout", json!("x")),
        ("use_rslora", json!(3)),
        ("target_modules", json!([1])),
        ("target_modules", json!({"a": 1})),
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!(["q_proj"])),
        ("rank_pattern", json!({"(q_proj": 2})),
        ("alpha_pattern", json!({"q_proj": "2"})),
        ("alpha_pattern", json!({"(?=q)q_proj": 2})),
    ] {
        match with_settings(&[(key, value.clone())])? {
            Err(error @ Error::Key { .. }) => {
                assert!(error.to_string().contains(key), "{error}");
            }
            other => return Err(format!("{key} {value}: {other:?}").into()),
        }
    }
    let folder = tempfile::tempdir()?;
    stored(folder.path(), q_pair())?;
    let read = || Adapters::read(folder.path());
    assert!(matches!(read(), Err(Error::Read { .. } | Error::Misplaced { .. })));
    for text in ["", "[]", "{", "nonsense", "{\"r\": 1e999}"] {
        std::fs::write(folder.path().join(CONFIG_FILE), text)?;
        let error = read().expect_err(text);
        assert!(error.to_string().contains(CONFIG_FILE) && error.exit_code() == 2, "{error}");
    }
    put_settings(folder.path(), &q_settings())?;
    read()?;
    std::fs::remove_file(folder.path().join(WEIGHTS_FILE))?;
    assert!(read().expect_err("no matrices").to_string().contains(WEIGHTS_FILE));
    std::fs::write(folder.path().join("adapter_model.bin"), b"PK")?;
    let error = read().expect_err("Python objects");
    assert!(error.to_string().contains("safe_serialization"), "{error}");
    Ok(())
}

fn broken_matrices() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    put_settings(folder.path(), &q_settings())?;
    let read = |tensors: Vec<Stored>| -> Result<String, Failed> {
        stored(folder.path(), tensors)?;
        match Adapters::read(folder.path()) {
            Ok(_) => Err("was read".into()),
            Err(error) => {
                assert_eq!(error.exit_code(), 2, "{error}");
                Ok(error.to_string())
            }
        }
    };
    let [a, b] = <[Stored; 2]>::try_from(q_pair()).map_err(|_| "two")?;
    let renamed = |tensor: &Stored, name: &str| {
        (name.to_string(), tensor.1, tensor.2.clone(), tensor.3.clone())
    };
    let reshaped = |tensor: &Stored, shape: &[usize]| {
        (tensor.0.clone(), tensor.1, shape.to_vec(), tensor.3.clone())
    };
    let mut infinite = b.clone();
    infinite.3[12..16].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let integers = (b.0.clone(), DType::U32, b.2.clone(), b.3.clone());
    let dora = format!("{Q}.lora_magnitude_vector.weight");
    let embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
    let cases: Vec<(Vec<Stored>, Vec<&str>)> = vec![
        (vec![], vec!["none"]),
        (vec![a.clone()], vec!["lora_B", "no such tensor"]),
        (vec![b.clone()], vec!["lora_A", "no such tensor"]),
        (vec![reshaped(&a, &[4, 32]), b.clone()], vec!["lora_A", "[2, inputs]", "[4, 32]"]),
        (vec![reshaped(&a, &[128]), b.clone()], vec!["lora_A", "[128]"]),
        (vec![reshaped(&a, &[2, 64, 1]), b.clone()], vec!["lora_A", "[2, 64, 1]"]),
        (vec![a.clone(), reshaped(&b, &[32, 4])], vec!["lora_B", "[outputs, 2]", "[32, 4]"]),
        (vec![a.clone(), infinite], vec!["lora_B", "row 1, column 1", "inf"]),
        (vec![a.clone(), integers], vec!["lora_B", "u32"]),
        (vec![a.clone(), b.clone(), renamed(&b, &dora)], vec!["lora_magnitude_vector", "DoRA"]),
        (vec![a.clone(), b.clone(), renamed(&b, embedding)], vec!["lora_embedding_A", "embedding"]),
        (
            vec![a.clone(), b.clone(), renamed(&b, "base_model.model.lm_head.weight")],
            vec!["lm_head.weight", "beside"],
        ),
        (
            vec![a.clone(), renamed(&b, "model.layers.0.self_attn.q_proj.lora_B.weight")],
            vec!["base_model.model."],
        ),
        (vec![a.clone(), renamed(&b, &format!("{Q}.lora_B.other.weight"))], vec!["lora_B.other"]),
        (vec![renamed(&a, "base_model.model..lora_A.weight"), b.clone()], vec!["MODULE"]),
    ];
    for (tensors, parts) in cases {
        let text = read(tensors)?;
        for part in parts {
            assert!(text.contains(part), "{text} has no {part}");
        }
    }
    // The same module under two names.
    let bare = Q.replace("model.model.model.", "model.model.");
    let again = |tensor: &Stored| renamed(tensor, &tensor.0.replace(Q, &bare));
    let text = read(vec![a.clone(), b.clone(), again(&a), again(&b)])?;
    assert!(text.contains("one adapter for each module"), "{text}");
    // One alone is of the body, which is the model's.
    stored(folder.path(), vec![again(&a), again(&b)])?;
    assert_eq!(Adapters::read(folder.path())?.pairs[0].module, "model.layers.0.self_attn.q_proj");
    // Files cut off anywhere.
    stored(folder.path(), vec![a, b])?;
    let path = folder.path().join(WEIGHTS_FILE);
    let whole = std::fs::read(&path)?;
    for length in [0, 1, 7, 8, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length])?;
        assert!(Adapters::read(folder.path()).is_err(), "{length} bytes");
    }
    Ok(())
}

fn other_models() -> Result<(), Failed> {
    let model = nano()?;
    let adapters = trained(&model, AdapterConfig::new(2, 2.0, named(&["q_proj"])), 0.1)?;
    let folder = tempfile::tempdir()?;
    adapters.write(folder.path(), model.config())?;
    let adapters = Adapters::read(folder.path())?;
    let other = Checkpoint::open("embedded:tiny-llama")?;
    let width = other.config().hidden_size;
    let error = adapters.check(other.config()).expect_err("another width");
    let text = error.to_string();
    for part in [
        &folder.path().display().to_string(),
        "layers.0.self_attn.q_proj.lora_A.weight",
        &format!("expected shape [2, {width}]"),
        "found shape [2, 64]",
    ] {
        assert!(text.contains(part), "{text} has no {part}");
    }
    assert!(Merged::new(&other, &adapters, &Device::Cpu).is_err());
    // B alone of another shape, and modules that are none.
    let changed = |change: &dyn Fn(&mut Pair)| {
        let mut adapters = adapters.clone();
        change(&mut adapters.pairs[0]);
        adapters.check(model.config()).map_err(|error| error.to_string())
    };
    let Err(text) = changed(&|pair| pair.outputs = 32) else { return Err("another B".into()) };
    assert!(
        text.contains("lora_B") && text.contains("[64, 2]") && text.contains("[32, 2]"),
        "{text}"
    );
    for module in
        ["model.layers.2.self_attn.q_proj", "model.norm", "lm_head", "model.embed_tokens", "x"]
    {
        let Err(text) = changed(&|pair| pair.module = module.into()) else {
            return Err(module.into());
        };
        assert!(text.contains(module) && text.contains("llama of 2 layers"), "{text}");
    }
    Ok(())
}
