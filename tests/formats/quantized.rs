//! Folders that other tools quantized: read as their own readers read them, written so that they are read back, refused where
//! settings and tensors disagree.

use std::path::Path;

use half::{bf16, f16};
use libtest_mimic::{Failed, Trial};
use lopper::formats::safetensors::Safetensors;
use lopper::model::{Checkpoint, ExportFormat, Weights};
use lopper::tensor::{DType, WeightFormat};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::models::{Stored, checkpoint, read_folder, write_model};
use crate::program::{lopper, read_json, runs};

pub fn trials() -> Vec<Trial> {
    suite!("quantized":
        read_as_their_readers_do, dequantized_with_a_note, exports_are_read_back, settings_and_tensors_agree,
        unheld_weights_are_named, commands_take_and_write_them)
}

const FIXTURES: &str = "assets/fixtures/quantized";

/// A folder, its container, and what its `q_proj` and `down_proj` become.
const READ: &[(&str, &str, [&str; 2])] = &[
    ("gptq-4-g32", "gptq", ["uint4z-row", "uint4z-g32"]),
    ("gptq-3-sym-row", "gptq", ["int3-row", "int3-row"]),
    ("gptq-v2-mixed", "gptq", ["uint2z-g16", "uint8z-g32"]),
    ("gptq-order", "gptq", ["uint4z-row", "f16"]),
    ("awq-g32", "awq", ["uint4z-row", "uint4z-g32"]),
    ("ct-pack-4-asym", "compressed-tensors", ["uint4z-row", "uint4z-g32"]),
    ("ct-pack-3-f32", "compressed-tensors", ["f32", "f32"]),
    ("ct-mixed", "compressed-tensors", ["uint8z-row", "fp8_e4m3-g16"]),
    ("ct-fp8", "compressed-tensors", ["fp8_e4m3-row", "fp8_e4m3-row"]),
    ("ct-nvfp4", "compressed-tensors", ["nvfp4-g16", "nvfp4-g16"]),
    ("ct-mxfp4", "compressed-tensors", ["mxfp4-row", "mxfp4-g32"]),
    ("mlx-affine", "mlx", ["uint4m-row", "uint3m-row"]),
    ("mlx-mxfp4", "mlx", ["mxfp4-row", "fp8_e4m3-g32"]),
    ("mlx-nvfp4", "mlx", ["nvfp4-g16", "uint5m-g32"]),
    ("modelopt-nvfp4", "modelopt", ["nvfp4-g16", "nvfp4-g16"]),
];

fn open(name: &str) -> Result<Checkpoint, Failed> {
    checkpoint(&Path::new(FIXTURES).join(name))
}

/// The values of a reader, which rounds to its type what is held here.
fn read_as_their_readers_do() -> Result<(), Failed> {
    for (name, container, labels) in READ {
        let model = open(name)?;
        assert_eq!(model.container(), *container, "{name}");
        let expected = format!("{FIXTURES}/{name}/expected.safetensors");
        let expected = Safetensors::open(lopper::formats::Source::open(expected.as_ref())?)?;
        for (module, label) in ["self_attn.q_proj", "mlp.down_proj"].iter().zip(labels) {
            let tensor = format!("model.layers.0.{module}.weight");
            let spec = model.specs().iter().find(|spec| spec.name == tensor).ok_or("a weight")?;
            assert_eq!(model.format(spec)?.label(), *label, "{name} {module}");
            let packed = model.load(spec)?;
            assert_eq!(packed.format.label(), *label, "{name} {module}");
            let Some(theirs) = expected.get(&tensor) else { continue };
            let round: fn(f32) -> f32 = match theirs.ty.name() {
                "f16" => |value| f16::from_f32(value).to_f32(),
                "bf16" => |value| bf16::from_f32(value).to_f32(),
                _ => |value| value,
            };
            let theirs = theirs.to_packed()?.to_f32();
            for (index, (ours, theirs)) in packed.to_f32().iter().zip(&theirs).enumerate() {
                let ours = round(*ours);
                assert_eq!(ours, *theirs, "{name} {module}: element {index}");
            }
        }
        for spec in model.specs() {
            assert_eq!(model.load(spec)?.format, model.format(spec)?, "{name} {}", spec.name);
        }
    }
    Ok(())
}

fn dequantized_with_a_note() -> Result<(), Failed> {
    for (name, said) in [
        (
            "gptq-order",
            "1 tensors (model.layers.0.mlp.down_proj.weight) are dequantized to f16: the columns",
        ),
        ("ct-pack-3-f32", ", …) are dequantized to f32: f16 does not hold all scales"),
        ("modelopt-nvfp4", "7 tensors say how activations are rounded"),
    ] {
        let model = open(name)?;
        let notes = model.notes().join("\n");
        assert!(model.notes().len() == 1 && notes.contains(said), "{name}: {notes}");
    }
    for (name, ..) in READ.iter().filter(|row| row.0.starts_with("mlx") || row.0 == "awq-g32") {
        assert!(open(name)?.notes().is_empty(), "{name}");
    }
    Ok(())
}

fn values(model: &Checkpoint) -> Result<Vec<(String, Vec<f32>)>, Failed> {
    let values = model.specs().iter().map(|s| Ok((s.name.clone(), model.load(s)?.to_f32())));
    values.collect()
}

const GPTQ: ExportFormat = ExportFormat::Gptq;
const AWQ: ExportFormat = ExportFormat::Awq;
const CT: ExportFormat = ExportFormat::CompressedTensors;
const OPT: ExportFormat = ExportFormat::Modelopt;
const MLX: ExportFormat = ExportFormat::Mlx;
const PACKED: ExportFormat = ExportFormat::Packed;

/// From method to method, each time from what was written before; the values stay as they are.
fn exports_are_read_back() -> Result<(), Failed> {
    for (name, chain) in [
        ("gptq-4-g32", &[AWQ, PACKED, CT, GPTQ, GPTQ][..]),
        ("gptq-3-sym-row", &[GPTQ, MLX, MLX]),
        ("gptq-3-sym-row", &[CT, GPTQ, PACKED, MLX]),
        ("gptq-v2-mixed", &[GPTQ, CT, CT, GPTQ]),
        ("gptq-order", &[GPTQ, AWQ]),
        ("awq-g32", &[AWQ, GPTQ, CT]),
        ("ct-pack-4-asym", &[CT, AWQ, GPTQ]),
        ("ct-pack-3-f32", &[CT, MLX]),
        ("ct-mixed", &[CT, CT]),
        ("ct-fp8", &[CT, PACKED, CT]),
        ("ct-nvfp4", &[OPT, CT, CT, OPT]),
        ("modelopt-nvfp4", &[OPT, PACKED, OPT]),
        ("ct-mxfp4", &[MLX, PACKED]),
        ("mlx-affine", &[MLX, PACKED, MLX]),
        ("mlx-mxfp4", &[MLX, MLX]),
        ("mlx-nvfp4", &[MLX, PACKED, MLX]),
    ] {
        let folder = TempDir::new()?;
        let mut model = open(name)?;
        let before = values(&model)?;
        for (step, format) in chain.iter().enumerate() {
            let path = folder.path().join(step.to_string());
            format.write(&path, &model, &model, None)?;
            model = checkpoint(&path)?;
            let expected = if *format == PACKED { "lopper" } else { format.name() };
            let what = format!("{name}, step {step}: {expected}");
            // What has no codes left is no method's folder.
            assert!(model.container() == expected || name == "ct-pack-3-f32", "{what}");
            for ((tensor, before), (_, after)) in before.iter().zip(values(&model)?) {
                assert_eq!(*before, after, "{what}: {tensor}");
            }
        }
    }
    Ok(())
}

/// A fixture with changed settings and tensors.
struct Changed {
    settings: Value,
    tensors: Vec<Stored>,
}

impl Changed {
    fn key(&mut self, pointer: &str, value: Value) {
        match pointer.rsplit_once('/') {
            Some((parent, key)) => self.settings.pointer_mut(parent).expect("a key")[key] = value,
            None => self.settings = value,
        }
    }

    fn part(&mut self, end: &str) -> &mut Stored {
        let named = self.tensors.iter_mut().find(|tensor| tensor.0.ends_with(end));
        named.expect("a tensor of that end")
    }
}

type Change = fn(&mut Changed);

/// Whatever settings and tensors say of each other is compared: file, tensor or key, expected and found are named.
fn settings_and_tensors_agree() -> Result<(), Failed> {
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "gptq-4-g32",
            |c| c.key("/bits", json!(8)),
            &["q_proj.qweight", "i32 of shape [8, 32]", "[4, 32]"],
        ),
        (
            "gptq-4-g32",
            |c| c.key("/bits", json!(5)),
            &["config.json", "quantization_config.bits", "2, 3, 4, 8", "5"],
        ),
        (
            "gptq-4-g32",
            |c| c.key("/group_size", json!(16)),
            &["q_proj.scales", "[2, 32]", "[1, 32]"],
        ),
        ("gptq-4-g32", |c| c.key("/group_size", json!(0)), &["group_size", "-1 for a row", "0"]),
        (
            "gptq-4-g32",
            |c| c.key("/checkpoint_format", json!("marlin")),
            &["checkpoint_format marlin"],
        ),
        ("gptq-4-g32", |c| c.key("/pack_dtype", json!("int8")), &["pack_dtype", "int32", "int8"]),
        (
            "gptq-4-g32",
            |c| c.key("/dynamic", json!({"+:(?=x)": {}})),
            &["dynamic.+:(?=x)", "regular expression"],
        ),
        (
            "gptq-4-g32",
            |c| c.key("/dynamic", json!({"-:.*q_proj": {}})),
            &["q_proj.weight", "no such tensor"],
        ),
        (
            "gptq-4-g32",
            |c| c.key("/quant_method", json!("quip")),
            &["quant_method quip", "gptq, awq, compressed-tensors"],
        ),
        (
            "gptq-4-g32",
            |c| c.part("v_proj.scales").0 = "x".into(),
            &["v_proj.scales", "f16 or bf16 or f32", "no such tensor"],
        ),
        ("gptq-4-g32", |c| c.part("v_proj.scales").1 = DType::I8, &["v_proj.scales"]),
        (
            "gptq-4-g32",
            |c| c.part("down_proj.g_idx").3[0] = 9,
            &["down_proj.g_idx", "groups below 2", "9"],
        ),
        (
            "gptq-4-g32",
            |c| c.part("down_proj.g_idx").3[3] = 0x80,
            &["down_proj.g_idx", "groups below 2"],
        ),
        (
            "gptq-4-g32",
            |c| c.part("down_proj.scales").3[1] = 0x7c,
            &["down_proj.weight", "finite values"],
        ),
        ("awq-g32", |c| c.key("/version", json!("gemv")), &["version gemv of AWQ", "gemm"]),
        ("awq-g32", |c| c.key("/bits", json!(3)), &["quantization_config.bits", "4", "3"]),
        (
            "awq-g32",
            |c| c.part("down_proj.qzeros").2 = vec![8],
            &["down_proj.qzeros", "[2, 4]", "[8]"],
        ),
        ("ct-pack-4-asym", |c| c.key("/format", json!("x")), &["taken"]),
        (
            "ct-pack-4-asym",
            |c| c.key("/config_groups/group_0/format", json!("marlin-24")),
            &["format", "pack-quantized", "marlin-24"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/config_groups/group_0/weights/num_bits", json!(9)),
            &["num_bits", "9"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/config_groups/group_0/weights/strategy", json!("token")),
            &["strategy", "token"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/config_groups/group_0/weights/symmetric", json!(true)),
            &["weight_zero_point"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/config_groups/group_0/targets", json!(["re:.*mlp.*"])),
            &["q_proj.weight_packed", "a group of config_groups"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/ignore", json!([])),
            &["up_proj.weight_packed", "no such tensor"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/quantization_status", json!("frozen")),
            &["quantization_status frozen"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/transform_config", json!({"config_groups": {"a": {}}})),
            &["transform_config"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.key("/sparsity_config", json!({"format": "sparse-24-bitmask"})),
            &["sparse-24-bitmask"],
        ),
        (
            "ct-pack-4-asym",
            |c| c.part("down_proj.weight_shape").3[0] = 33,
            &["down_proj.weight_shape", "[32, 64]", "33"],
        ),
        (
            "ct-mixed",
            |c| c.key("/config_groups/group_1/weights/block_structure", json!([0, 16])),
            &["block_structure"],
        ),
        (
            "ct-mixed",
            |c| c.key("/config_groups/group_1/weights/block_structure", json!([16, 32])),
            &["gate_proj.weight_scale", "[4, 1]"],
        ),
        (
            "ct-nvfp4",
            |c| c.part("down_proj.weight_global_scale").3.fill(0),
            &["weight_global_scale", "a positive number", "0"],
        ),
        ("mlx-affine", |c| c.key("/bits", json!(7)), &["quantization.bits", "7"]),
        (
            "mlx-affine",
            |c| c.key("/mode", json!("fp2")),
            &["quantization.mode", "affine, mxfp4", "fp2"],
        ),
        (
            "mlx-affine",
            |c| c.key("/model.embed_tokens", json!(3)),
            &["quantization.model.embed_tokens", "or false"],
        ),
        ("mlx-affine", |c| c.key("/model.embed_tokens", json!(false)), &["model.embed_tokens"]),
        (
            "mlx-affine",
            |c| c.part("up_proj.scales").0 = "x".into(),
            &["up_proj.scales", "no such tensor"],
        ),
        (
            "mlx-mxfp4",
            |c| c.key("/group_size", json!(64)),
            &["quantization.group_size", "32", "64"],
        ),
        (
            "modelopt-nvfp4",
            |c| c.key("/quantization/quant_algo", json!("W4A8_AWQ")),
            &["hf_quant_config.json", "quant_algo w4a8_awq"],
        ),
        (
            "modelopt-nvfp4",
            |c| c.key("/quantization/group_size", json!(32)),
            &["quantization.group_size", "16", "32"],
        ),
        (
            "modelopt-nvfp4",
            |c| c.part("up_proj.weight_scale_2").0 = "x".into(),
            &["up_proj.weight_scale_2", "no such tensor"],
        ),
        (
            "modelopt-nvfp4",
            |c| {
                c.part("up_proj.input_scale").0 =
                    "model.layers.0.mlp.up_proj.pre_quant_scale".into()
            },
            &["up_proj.pre_quant_scale", "change what the model computes"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, change, words) in cases {
        let source = Path::new(FIXTURES).join(name);
        let (mut config, tensors) = read_folder(&source)?;
        let sidecar = source.join("hf_quant_config.json");
        let key =
            ["quantization", "quantization_config"].into_iter().find(|k| config.contains_key(*k));
        let settings = match key {
            Some(key) => config[key].clone(),
            None => read_json(&sidecar)?,
        };
        let mut changed = Changed { settings, tensors };
        change(&mut changed);
        let folder = TempDir::new()?;
        match key {
            Some(key) => config[key] = changed.settings,
            None => {
                let text = changed.settings.to_string();
                std::fs::write(folder.path().join("hf_quant_config.json"), text)?;
            }
        }
        write_changed(folder.path(), &config, changed.tensors)?;
        let opened = Checkpoint::open(&folder.path().to_string_lossy());
        let read = opened
            .and_then(|model| model.specs().iter().try_for_each(|spec| model.load(spec).map(drop)));
        let text = match read {
            Ok(()) => "taken".to_string(),
            Err(error) if error.exit_code() == 2 => error.to_string(),
            Err(error) => format!("exit {}: {error}", error.exit_code()),
        };
        if !words.iter().all(|word| text.contains(word)) || text.lines().count() > 1 {
            wrong.push(format!("{name} {words:?}: {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Writes tensors whose type or shape was changed: their bytes follow.
fn write_changed(
    folder: &Path,
    config: &Map<String, Value>,
    mut tensors: Vec<Stored>,
) -> Result<(), Failed> {
    for (_, dtype, shape, bytes) in &mut tensors {
        bytes.resize(shape.iter().product::<usize>() * dtype.size(), 0);
    }
    write_model(folder, config, &tensors)
}

/// A weight that a method does not hold is named, with what it is and what holds it; nothing is written.
fn unheld_weights_are_named() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for (name, format, words) in [
        (
            "mlx-affine",
            GPTQ,
            &["model.embed_tokens.weight", "uint4m-row, which packed, mlx hold"][..],
        ),
        ("mlx-nvfp4", OPT, &["mlp.down_proj.weight", "uint5m-g32", "gguf"]),
        ("gptq-v2-mixed", AWQ, &["q_proj.weight", "uint2z-g16", "compressed-tensors"]),
        ("gptq-4-g32", MLX, &["weight", "smallest value f16 holds"]),
        ("modelopt-nvfp4", MLX, &["weight", "without a further one of the tensor"]),
    ] {
        let model = open(name)?;
        let path = folder.path().join(name);
        let error = format.write(&path, &model, &model, None).expect_err("a type that is not held");
        let text = error.to_string();
        let right = error.exit_code() == 2 && words.iter().all(|word| text.contains(word));
        assert!(right, "{name}: {text}");
    }
    Ok(())
}

/// Every command takes such folders, stages and exports write them.
fn commands_take_and_write_them() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let place = folder.path();
    let on = "--no-eval --device cpu";
    for flags in [
        format!(
            "quantize embedded:nano-llama --type int4 --group-size 64 --formats gptq,compressed-tensors {on} --out q"
        ),
        "export q/gptq --format awq --out awq".into(),
        "export awq --format mlx --out mlx".into(),
        "export mlx --format hf --out hf".into(),
        format!(
            "quantize embedded:nano-llama --type nvfp4 --formats compressed-tensors,modelopt {on} --out nv"
        ),
        "export nv/compressed-tensors --format modelopt --out nv2".into(),
        format!("quantize awq --type q4_1 {on} --out again"),
        "compress --model mlx --dry-run --device cpu".into(),
        "inspect mlx".into(),
        "logits mlx --tokens 1,2,3 --out a.safetensors --device cpu".into(),
        "logits q/gptq --tokens 1,2,3 --out b.safetensors --device cpu".into(),
    ] {
        runs(place, &flags)?;
    }
    assert_eq!(
        std::fs::read(place.join("a.safetensors"))?,
        std::fs::read(place.join("b.safetensors"))?
    );
    let format = |path: &str| -> Result<Vec<WeightFormat>, Failed> {
        let model = checkpoint(&place.join(path))?;
        Ok(model.specs().iter().map(|spec| model.format(spec)).collect::<Result<_, _>>()?)
    };
    assert_eq!(format("q/gptq")?, format("awq")?);
    assert!(
        place.join("awq/tokenizer.json").exists()
            && place.join("q/gptq/quantize_config.json").exists()
    );
    // What an artifact was made of is read as it is; a format that is not held is refused before any work.
    let config = read_json(place.join("again/hf/config.json"))?;
    assert!(config.get("quantization_config").is_none(), "{config}");
    let refused = lopper(
        place,
        &format!("quantize embedded:nano-llama --bits 4 --formats gptq {on} --out x"),
    )?;
    refused.refused(2, "model.layers.0.self_attn.q_proj.weight & uint4m-g32, which & mlx");
    assert!(!place.join("x").exists() && !place.join("x.work").exists());
    Ok(())
}
