//! What is written and how large it is: formats by default, bytes as planned, blocks that stay as they are, warnings before work.

use std::path::Path;

use half::f16;
use libtest_mimic::{Failed, Trial};
use lopper::device::Random;
use lopper::formats::Source;
use lopper::formats::gguf::{self, GgmlType, Gguf, NewGgufTensor, Value as Meta};
use lopper::model::{Checkpoint, ExportFormat, TensorSpec};
use lopper::tensor::{Packed, WeightFormat};
use serde_json::Value;
use tempfile::TempDir;

use crate::models::MapWeights;
use crate::program::{NANO, Run, lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("cli::sizes": planned_bytes_are_written, own_formats, growth_is_said, blocks_stay, types_of_gguf, types_return, small_scales_are_told, padding_is_not_counted,
        stages_take_what_was_planned, what_llama_cpp_ignores)
}

/// nano-llama in Q4_1, as `q.gguf` in a new folder.
fn in_q4_1() -> Result<TempDir, Failed> {
    let folder = TempDir::new()?;
    succeeds(&folder, &format!("quantize {NANO} --type q4_1 --no-eval --formats gguf --out q"))?;
    std::fs::rename(folder.path().join("q/model.gguf"), folder.path().join("q.gguf"))?;
    Ok(folder)
}

fn open(folder: &TempDir, path: &str) -> Result<Gguf, Failed> {
    Ok(Gguf::open(Source::open(&folder.path().join(path))?)?)
}

/// Bytes of the files with weights below a path.
fn weight_bytes(path: &Path) -> Result<u64, Failed> {
    if path.is_file() {
        return Ok(path.metadata()?.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            sum += path.metadata()?.len();
        }
    }
    Ok(sum)
}

/// The dry run, the manifest and the disk agree to the byte, and both shares are of the parent's.
fn planned_bytes_are_written() -> Result<(), Failed> {
    let folder = in_q4_1()?;
    let all = "--formats gguf,hf,packed --no-eval --out o --force";
    let stored = [NANO, "q.gguf"].map(|model| -> Result<(u64, u64), Failed> {
        let about = succeeds(&folder, &format!("inspect {model} --json=-"))?.json()?;
        let number = |key: &str| about[key].as_u64().ok_or(format!("no {key}"));
        Ok((number("file_bytes")?, number("bytes_f16")?))
    });
    for (index, command) in [
        (0, format!("quantize {NANO} {all}")),
        (0, format!("quantize {NANO} --bits 3 --include * {all}")),
        (0, format!("prune {NANO} --ratio 0.5 --score l2 {all}")),
        (1, format!("quantize q.gguf --type q8_0 --group-size 32 {all}")),
        (1, format!("prune q.gguf --ratio 0.5 --score l2 {all}")),
        (1, format!("prune q.gguf --ratio 0.5 --score l2 --scope layer --then q4_0 {all}")),
    ] {
        let plan = succeeds(&folder, &format!("{command} --dry-run --json=-"))?.json()?;
        let run = succeeds(&folder, &command)?;
        let manifest = read_json(folder.path().join("o/manifest.json"))?;
        assert_eq!(plan["plan"]["exports"], manifest["exports"], "{command}: {run}");
        let (files, f16) = *stored[index].as_ref().map_err(|e| format!("{e:?}"))?;
        for export in manifest["exports"].as_array().ok_or("exports")? {
            let path = folder.path().join("o").join(export["path"].as_str().ok_or("a path")?);
            let bytes = weight_bytes(&path)?;
            assert_eq!(export["bytes"].as_u64(), Some(bytes), "{command}");
            for (share, whole) in [("of_stored", files), ("of_f16", f16)] {
                let share = export[share].as_f64().ok_or("a share")?;
                assert!((share - bytes as f64 / whole as f64).abs() < 1e-12, "{export}");
            }
            assert!(run.out.contains(&bytes.to_string()), "{bytes}: {run}");
        }
    }
    Ok(())
}

/// What was written, in the order of the manifest.
fn formats(folder: &TempDir, command: &str) -> Result<String, Failed> {
    succeeds(folder, &format!("{command} --no-eval --out o --force"))?;
    let manifest = read_json(folder.path().join("o/manifest.json"))?;
    let exports = manifest["exports"].as_array().ok_or("exports")?.clone();
    let names = exports.iter().filter_map(|export| export["path"].as_str());
    Ok(names.collect::<Vec<_>>().join(" "))
}

fn own_formats() -> Result<(), Failed> {
    let folder = in_q4_1()?;
    succeeds(&folder, "export q.gguf --format packed --out own")?;
    for (command, written) in [
        ("quantize q.gguf --type q8_0", "model.gguf"),
        ("quantize q.gguf --bits 3", "model.gguf packed"),
        ("quantize q.gguf --bits 3 --formats packed", "packed"),
        ("quantize own --bits 3", "packed"),
        ("quantize embedded:nano-llama --type q8_0", "hf packed"),
        ("prune embedded:nano-llama --ratio 0.5 --score l2", "hf"),
        ("prune q.gguf --ratio 0.5 --score l2", "model.gguf"),
        (
            "prune embedded:nano-llama --ratio 0.5 --score l2 --ranking global --non-uniform",
            "model.gguf packed",
        ),
    ] {
        assert_eq!(formats(&folder, command)?, written, "{command}");
    }
    // A recipe without `export` or with little else is as good.
    let recipe = "model = \"q.gguf\"\n[[stage]]\nkind = \"quantize\"\ntype = \"Q4_0\"\n";
    std::fs::write(folder.path().join("r.toml"), recipe)?;
    succeeds(&folder, "compress r.toml --out r")?;
    assert!(folder.path().join("r/model.gguf").is_file() && !folder.path().join("r/hf").exists());
    assert_eq!(
        open(&folder, "r/model.gguf")?.tensor_type("blk.0.attn_q.weight"),
        Some(GgmlType::Q4_0)
    );
    std::fs::write(
        folder.path().join("e.toml"),
        format!("{recipe}[evaluate]\nctx = 64\nmax_tokens = 640\n"),
    )?;
    let measured = succeeds(&folder, "compress e.toml --out e --json=-")?.json()?;
    assert!(measured["parent"]["perplexity"]["value"].is_number(), "{measured}");
    for command in [
        "quantize q.gguf --type q4_0 --group-size 128",
        "quantize q.gguf --type Q8_0 --group-size 0",
    ] {
        let run = lopper(&folder, &format!("{command} --dry-run"))?;
        run.refused(2, "stage.group_size & expected 32 beside type");
    }
    Ok(())
}

fn growth_is_said() -> Result<(), Failed> {
    let folder = in_q4_1()?;
    let said = |command: &str| -> Result<Run, Failed> {
        succeeds(&folder, &format!("{command} --dry-run"))
    };
    for (command, words) in [
        (
            "quantize q.gguf --group-size 128 --grid zero-point",
            "GGUF's plain types cannot hold uint4z-g128: 14 tensors & model.gguf will take & x the parent's & --type q4_0",
        ),
        ("quantize q.gguf", "model.gguf will take & no less than the parent's & --type q4_0"),
        ("prune q.gguf --ratio 0.5 --requantize f16 --widths kvgroup,ffn", "kept in f16"),
        ("quantize q.gguf --type q8_0 --formats hf", "hf will take & no less & --type"),
    ] {
        let run = said(command)?;
        for word in words.split(" & ") {
            assert!(run.out.contains(word), "`{word}` is due: {run}");
        }
    }
    for command in [
        "quantize embedded:nano-llama --type q4_0 --formats gguf",
        "prune q.gguf --ratio 0.5 --widths kvgroup",
    ] {
        let run = said(command)?;
        assert!(!run.out.contains("warning: "), "{run}");
    }
    // Blocks of widths that GGUF's blocks do not fit are named when they are known.
    let uneven = "prune embedded:nano-llama --ratio 0.3 --ranking global --non-uniform --multiple 8 --widths ffn --score l2 --then q4_0 --no-eval --out u";
    let run = succeeds(&folder, uneven)?;
    let manifest = read_json(folder.path().join("u/manifest.json"))?;
    let warned =
        manifest["warnings"].as_array().ok_or("warnings")?.iter().filter_map(Value::as_str);
    let warned: Vec<&str> =
        warned.filter(|text| text.contains("--multiple 32) to avoid")).collect();
    let model = open(&folder, "u/model.gguf")?;
    let down = (0..2).map(|layer| format!("blk.{layer}.ffn_down.weight"));
    let in_f16 = down.filter(|name| model.tensor_type(name) == Some(GgmlType::F16)).count();
    assert!(in_f16 > 0 && warned.len() == 1, "{in_f16}: {run}");
    assert!(warned[0].contains(&format!("{in_f16} tensors (model.layers.")), "{warned:?}");
    assert!(run.err.contains(warned[0]), "{run}");
    Ok(())
}

/// A model of one block in Q4_K and Q6_K, of random codes.
fn write_k_quants(folder: &TempDir) -> Result<(), Failed> {
    succeeds(folder, &format!("export {NANO} --format gguf --out n.gguf"))?;
    let mut metadata = open(folder, "n.gguf")?.metadata().to_vec();
    for (key, size) in [
        ("block_count", 1),
        ("embedding_length", 256),
        ("feed_forward_length", 512),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 64),
        ("attention.value_length", 64),
        ("rope.dimension_count", 64),
    ] {
        let key = format!("llama.{key}");
        metadata.retain(|(known, _)| *known != key);
        metadata.push((key, Meta::U32(size)));
    }
    let mut random = Random::new(3);
    let mut tensors = Vec::new();
    for (name, ty, shape) in [
        ("token_embd", GgmlType::Q6K, vec![4096, 256]),
        ("blk.0.attn_norm", GgmlType::F32, vec![256]),
        ("blk.0.attn_q", GgmlType::Q4K, vec![256, 256]),
        ("blk.0.attn_k", GgmlType::Q4K, vec![128, 256]),
        ("blk.0.attn_v", GgmlType::Q6K, vec![128, 256]),
        ("blk.0.attn_output", GgmlType::Q4K, vec![256, 256]),
        ("blk.0.ffn_norm", GgmlType::F32, vec![256]),
        ("blk.0.ffn_gate", GgmlType::Q4K, vec![512, 256]),
        ("blk.0.ffn_up", GgmlType::Q4K, vec![512, 256]),
        ("blk.0.ffn_down", GgmlType::Q6K, vec![256, 512]),
        ("output_norm", GgmlType::F32, vec![256]),
    ] {
        let count = ty.bytes_of(&shape).ok_or("whole blocks")? as usize;
        let mut bytes: Vec<u8> = (0..count).map(|_| random.below(256) as u8).collect();
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            // Scales of 0.001 as f16; norms of 1.
            match ty {
                GgmlType::Q4K => block[..4].copy_from_slice(&[0x19, 0x14, 0x19, 0x14]),
                GgmlType::Q6K => block[208..].copy_from_slice(&[0x19, 0x14]),
                _ => block.copy_from_slice(&1f32.to_le_bytes()),
            }
        }
        let data = Box::new(move || Ok(bytes.clone()));
        tensors.push(NewGgufTensor { name: format!("{name}.weight"), ty, shape, data });
    }
    Ok(gguf::write(&folder.path().join("k.gguf"), &metadata, tensors)?)
}

/// Blocks go from GGUF to GGUF byte for byte, types that are only read too: of tensors that nothing is done to, and of rows.
fn blocks_stay() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    write_k_quants(&folder)?;
    let before = open(&folder, "k.gguf")?;
    let same = |after: &Gguf, but: &[&str]| {
        for name in before.names() {
            let [was, is] = [&before, after].map(|file| file.tensor(name).expect("it is there"));
            let stays = was.ty == is.ty && was.bytes().expect("read") == is.bytes().expect("read");
            assert_eq!(stays, !but.iter().any(|part| name.contains(part)), "{name}");
        }
    };
    succeeds(&folder, "export k.gguf --format gguf --out a.gguf")?;
    same(&open(&folder, "a.gguf")?, &[]);
    let include = "--include model.layers.0.mlp.down_proj";
    succeeds(
        &folder,
        &format!("quantize k.gguf --type q4_0 {include} --formats packed,gguf --no-eval --out q"),
    )?;
    same(&open(&folder, "q/model.gguf")?, &["ffn_down"]);
    succeeds(&folder, "export q/packed --format gguf --out b.gguf")?;
    same(&open(&folder, "b.gguf")?, &["ffn_down"]);
    let logits = |model: &str| -> Result<Vec<u8>, Failed> {
        succeeds(&folder, &format!("logits {model} --tokens 1,2,3 --force --out l.safetensors"))?;
        Ok(std::fs::read(folder.path().join("l.safetensors"))?)
    };
    assert!(logits("q/packed")? == logits("b.gguf")?, "logits of the same weights");
    let prune = "prune k.gguf --ratio 0.5 --score l2 --no-eval --out";
    let again = succeeds(&folder, &format!("{prune} again"))?;
    assert!(again.err.contains("rounded to their own type again (q4_k)"), "{again}");
    let down = |file: &str| -> Result<_, Failed> {
        Ok(open(&folder, file)?.tensor("blk.0.ffn_down.weight").ok_or("there")?.ty)
    };
    assert_eq!(down("again/model.gguf")?, down("k.gguf")?, "a block of what is left of it");
    let run = succeeds(&folder, &format!("{prune} p --requantize f16"))?;
    for words in
        ["warning: columns were cut from blocks", "2 tensors", "ffn_down", "prune --then q4_0"]
    {
        let words = words.replace("ffn_down", "mlp.down_proj");
        assert!(run.err.contains(&words), "`{words}` is due: {run}");
    }
    let after = open(&folder, "p/model.gguf")?;
    let gone = read_json(folder.path().join("p/pruned.json"))?;
    let stay = |width: &str, units: usize| -> Result<Vec<usize>, Failed> {
        let cut = &gone["blocks"][0][width];
        assert_eq!(cut["of"], units);
        let cut: Vec<usize> = serde_json::from_value(cut["cut"].clone())?;
        Ok((0..units).filter(|unit| !cut.contains(unit)).collect())
    };
    let channels = stay("ffn", 512)?;
    let heads = stay("kvgroup", 2)?;
    assert!((channels.len(), heads.len()) == (256, 1), "{gone}");
    // Rows of a head stand together in either order.
    let rows = |per_head: usize| -> Vec<usize> {
        heads.iter().flat_map(|head| head * per_head..(head + 1) * per_head).collect()
    };
    for (name, rows) in [
        ("ffn_gate", channels.clone()),
        ("ffn_up", channels),
        ("attn_q", rows(128)),
        ("attn_k", rows(64)),
        ("attn_v", rows(64)),
    ] {
        let name = format!("blk.0.{name}.weight");
        let [was, is] = [&before, &after].map(|file| file.tensor(&name).expect("it is there"));
        let bytes = was.bytes()?;
        let line = bytes.len() / was.shape[0];
        let kept: Vec<u8> =
            rows.iter().flat_map(|row| bytes[row * line..][..line].to_vec()).collect();
        assert!(is.ty == was.ty && *is.bytes()? == kept, "{name}");
    }
    let [embedding, again] = [&before, &after].map(|file| file.tensor("token_embd.weight"));
    assert!(embedding.ok_or("there")?.bytes()? == again.ok_or("there")?.bytes()?, "the embedding");
    Ok(())
}

/// Types of blocks that GGUF has are written as such, and hold what the packed folder holds.
fn types_of_gguf() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for (name, ty) in
        [("iq4_nl", GgmlType::Iq4Nl), ("mxfp4", GgmlType::Mxfp4), ("nvfp4", GgmlType::Nvfp4)]
    {
        succeeds(
            &folder,
            &format!("quantize {NANO} --type {name} --no-eval --formats packed,gguf --out {name}"),
        )?;
        let logits = |model: &str| -> Result<Vec<u8>, Failed> {
            succeeds(&folder, &format!("logits {name}/{model} --tokens 1,2,3 --force --out l"))?;
            Ok(std::fs::read(folder.path().join("l"))?)
        };
        assert!(logits("packed")? == logits("model.gguf")?, "{name}: logits");
        let model = open(&folder, &format!("{name}/model.gguf"))?;
        let of_type = model.names().filter(|name| model.tensor_type(name) == Some(ty)).count();
        assert_eq!(of_type, 14, "{name}");
        let scales = model.names().filter(|name| name.ends_with(".scale")).count();
        assert_eq!(scales, if name == "nvfp4" { 14 } else { 0 }, "{name}");
        // Copied blocks keep what stands beside them.
        succeeds(
            &folder,
            &format!("export {name}/model.gguf --format gguf --force --out again.gguf"),
        )?;
        let again = open(&folder, "again.gguf")?;
        for name in model.names() {
            let [was, is] = [&model, &again].map(|file| file.tensor(name).expect("it is there"));
            assert!(was.bytes()? == is.bytes()?, "{name}");
        }
    }
    // Ternary codes share a scale among 256 columns: what is narrower is written in f16, and said.
    let run = succeeds(
        &folder,
        &format!("quantize {NANO} --type tq2_0 --no-eval --formats gguf --out t"),
    )?;
    assert!(run.err.contains("model.gguf as f16"), "{run}");
    Ok(())
}

/// Quantized matrices that are cut keep their type: whole groups their codes too, others are rounded anew, and the error is told.
fn types_return() -> Result<(), Failed> {
    let folder = in_q4_1()?;
    let types = |path: &str| -> Result<Vec<GgmlType>, Failed> {
        let model = open(&folder, path)?;
        let names = model.names().filter(|name| name.starts_with("blk.") && !name.contains("norm"));
        Ok(names.filter_map(|name| model.tensor_type(name)).collect())
    };
    let error = |out: &str, stage: usize| -> Result<Option<f64>, Failed> {
        let manifest = read_json(folder.path().join(out).join("manifest.json"))?;
        Ok(manifest["stages"][stage]["figures"]["weight_error"].as_f64())
    };
    // Two query heads of 16 read a key-value head: 32 columns, a group.
    succeeds(
        &folder,
        "prune q.gguf --ratio 0.5 --widths kvgroup --score l2 --no-eval --out heads",
    )?;
    assert_eq!(types("heads/model.gguf")?, [GgmlType::Q4_1; 14]);
    assert_eq!(error("heads", 0)?, None);
    let run =
        succeeds(&folder, "prune q.gguf --ratio 0.5 --widths ffn --score l2 --no-eval --out ffn")?;
    assert_eq!(types("ffn/model.gguf")?, [GgmlType::Q4_1; 14]);
    let changed = error("ffn", 0)?.ok_or("an error")?;
    assert!(changed > 1e-6 && changed < 0.02, "{changed}");
    let told = run.out.contains("prune: weights changed by ")
        && run.err.contains("rounded to their own type again");
    assert!(told, "{run}");
    let then = "prune q.gguf --ratio 0.5 --score l2 --then Q4_0 --no-eval --out then";
    succeeds(&folder, then)?;
    assert_eq!(types("then/model.gguf")?, [GgmlType::Q4_0; 14]);
    assert!(error("then", 0)?.is_some_and(|rounding| rounding < 1e-6), "f16 between the two");
    assert!(error("then", 1)?.is_some_and(|error| error > 1e-4), "q4_0");
    Ok(())
}

/// Weights so small that f16 does not hold their groups' scales: the whole model's error stays small, and the tensor is named.
fn small_scales_are_told() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let parent = Checkpoint::open(NANO)?;
    let small = "model.layers.1.mlp.down_proj.weight";
    let map = |spec: &TensorSpec, packed: Packed| {
        if spec.name != small {
            return Ok(packed);
        }
        let values = packed.to_f32().into_iter();
        let bytes: Vec<u8> =
            values.flat_map(|value| f16::from_f32(value / 262_144.0).to_le_bytes()).collect();
        Ok(Packed::from_16bit(packed.format, &bytes, packed.rows, packed.columns))
    };
    let weights = MapWeights(&parent, &map);
    ExportFormat::Hf.write(&folder.path().join("m"), &parent, &weights, None)?;
    let run = succeeds(&folder, "quantize m --bits 4 --no-eval --formats packed --out q")?;
    let manifest = read_json(folder.path().join("q/manifest.json"))?;
    let warnings = manifest["warnings"].as_array().ok_or("warnings")?;
    let told: Vec<&str> = warnings.iter().filter_map(Value::as_str).collect();
    let told: Vec<&&str> = told.iter().filter(|text| text.contains("f16 (6.1e-5)")).collect();
    assert!(told.len() == 1 && told[0].starts_with(small), "{warnings:?}");
    assert!(run.err.contains(told[0]), "{}", run.err);
    assert!(manifest["stages"][0]["figures"]["weight_error"].as_f64().ok_or("an error")? < 0.02);
    Ok(())
}

/// Rows of 16 columns fill half of a block of codes in memory.
fn padding_is_not_counted() -> Result<(), Failed> {
    let bytes = |label: &str| {
        let format = WeightFormat::from_label(label).expect("a format");
        format.unpadded_bytes(150_001, 16) as usize / 150_001
    };
    assert_eq!(
        ["f16", "f32", "int4-g32", "uint4m-g32", "mxfp4-g32"].map(bytes),
        [32, 64, 10, 12, 9]
    );
    Ok(())
}

/// Bytes of the tensors of a safetensors file, and of all of it.
fn tensor_bytes(path: &Path) -> Result<(u64, u64), Failed> {
    let bytes = std::fs::read(path)?;
    let header = u64::from_le_bytes(bytes[..8].try_into()?);
    Ok((bytes.len() as u64 - 8 - header, bytes.len() as u64))
}

/// What stages leave on the disk while a run is under way is what its plan said, headers and the padding of codes included.
fn stages_take_what_was_planned() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for (command, padded) in [
        // One f16 scale for 64 columns, three for 192: half a word of each row is padding.
        (
            format!("quantize {NANO} --bits 3 --group-size 64 --grid absmax-symmetric --include *"),
            true,
        ),
        (format!("quantize {NANO} --type q4_1"), false),
        (format!("prune {NANO} --ratio 0.5 --score l2 --scope layer --then q4_0"), false),
    ] {
        let command = format!("{command} --formats packed --no-eval --out o --force");
        let plan = succeeds(&folder, &format!("{command} --dry-run --json=-"))?.json()?;
        let plan = &plan["plan"];
        succeeds(&folder, &format!("{command} --keep-work"))?;
        let (mut payload, mut all) = (0, 0);
        for stage in std::fs::read_dir(folder.path().join("o.work"))? {
            let stage = stage?.path();
            for file in
                stage.is_dir().then(|| std::fs::read_dir(&stage)).transpose()?.into_iter().flatten()
            {
                let file = file?.path();
                if file.extension().is_some_and(|end| end == "safetensors") {
                    let (tensors, file) = tensor_bytes(&file)?;
                    (payload, all) = (payload + tensors, all + file);
                }
            }
        }
        assert_eq!(plan["work_bytes"].as_u64(), Some(all), "{command}");
        let stages = plan["stages"].as_array().ok_or("stages")?;
        let counted: u64 = stages.iter().filter_map(|stage| stage["output_bytes"].as_u64()).sum();
        let mut padding = 0;
        if padded {
            for tensor in plan["tensors"].as_array().ok_or("tensors")? {
                let quantized = tensor["decision"] != "keep";
                padding +=
                    if quantized { 2 * tensor["shape"][0].as_u64().ok_or("rows")? } else { 0 };
            }
            assert!(padding > 0, "{plan}");
        }
        assert_eq!(payload, counted + padding, "{command}");
        std::fs::remove_dir_all(folder.path().join("o.work"))?;
    }
    Ok(())
}

/// Soft caps and windows that a GGUF file states and llama.cpp does not read are told where one is looked at, planned or made, as
/// long as they do something.
fn what_llama_cpp_ignores() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let told = |run: &Run| run.err.contains("llama.cpp does not read from a GGUF file");
    let here = std::env::current_dir()?;
    let family = |name: &str| here.join("assets/families").join(name).display().to_string();
    for (name, words) in [
        ("mistral", vec!["architecture llama", "window of attention of 8 tokens"]),
        ("gemma3-capped", vec!["architecture gemma3", "soft cap of attention (0.5)"]),
        ("gemma3", vec![]),
        ("qwen2", vec![]),
    ] {
        let (model, gguf) = (family(name), format!("{name}.gguf"));
        let made =
            succeeds(&folder, &format!("export {model} --format gguf --out {gguf} --json=-"))?;
        let looked = succeeds(&folder, &format!("inspect {gguf} --json=-"))?;
        let quantize =
            format!("quantize {model} --type q8_0 --no-eval --formats gguf --out q-{name}");
        let planned = succeeds(&folder, &format!("{quantize} --dry-run --json=-"))?.json()?;
        let run = succeeds(&folder, &quantize)?;
        let manifest = read_json(folder.path().join(format!("q-{name}/manifest.json")))?;
        let lists = [
            &made.json()?["warnings"],
            &looked.json()?["warnings"],
            &planned["plan"]["warnings"],
            &manifest["warnings"],
        ]
        .map(Value::to_string);
        for list in &lists {
            assert!(words.iter().all(|word| list.contains(word)), "{name}: {list}");
            assert_eq!(list.contains("llama.cpp does not read"), !words.is_empty(), "{list}");
            assert!(!list.contains("soft cap of logits"), "gemma3 has a key for it: {list}");
        }
        assert!([&made, &looked, &run].iter().all(|run| told(run) != words.is_empty()), "{name}");
        // Other formats say nothing of llama.cpp.
        let hf = succeeds(&folder, &format!("export {model} --format hf --out {name}-hf"))?;
        assert!(!told(&hf), "{hf}");
    }
    // A window as long as the context does nothing.
    let copy = folder.path().join("wide");
    std::fs::create_dir(&copy)?;
    for file in std::fs::read_dir(family("mistral"))? {
        let file = file?;
        std::fs::copy(file.path(), copy.join(file.file_name()))?;
    }
    let mut config = read_json(copy.join("config.json"))?;
    config["sliding_window"] = 128.into();
    std::fs::write(copy.join("config.json"), config.to_string())?;
    let made = succeeds(&folder, "export wide --format gguf --out wide.gguf")?;
    assert!(!told(&made), "{made}");
    Ok(())
}
