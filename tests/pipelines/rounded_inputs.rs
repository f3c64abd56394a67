//! Inputs of linear layers that are rounded when a model runs: forward, backward, and in the folders that say so.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::graph::Slot;
use lopper::methods::calibration::Rows;
use lopper::model::{Checkpoint, ExportFormat, Role, WeightSource, Weights, input_place};
use lopper::stages::RecipeStage;
use lopper::tensor::InputType;
use lopper::walk::{Through, Walk};
use serde_json::{Value, json};

use crate::machine::on_each;
use crate::models::{checkpoint, load, logits, pass, read_folder, run_stage_on, write_model};
use crate::numbers::relative_error;
use crate::program::{NANO, lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("rounded_inputs":
        stored_scales, stored_scales_follow_their_blocks, folders, others_folders, refused, commands);
    trials.extend(on_each("rounded_inputs::on_their_grid", on_their_grid));
    trials.extend(on_each("rounded_inputs::training", training));
    trials
}

const TOKEN: &str = "kind = \"transform\"\nmethod = \"inputs\"";
const STORED: &str = "kind = \"transform\"\nmethod = \"inputs\"\ninput_scales = \"stored\"";
const FLOATS: &str = "inputs = \"fp8_e4m3\"";
const BYTES: &str = "kind = \"quantize\"\ntype = \"int8\"\ngroup_size = 0";

fn stage(text: &str) -> Result<RecipeStage, Failed> {
    Ok(toml::from_str(text)?)
}

/// Two rows of 24 tokens.
fn rows(model: &dyn Weights, seed: u64) -> Rows {
    let mut random = Random::new(seed);
    let vocabulary = model.config().vocab_size as u32;
    Rows { ids: (0..48).map(|_| random.below(vocabulary)).collect(), samples: 2 }
}

/// A model after stages, each on the one before it, in folders of its own.
fn after(name: &str, stages: &[&str], folder: &Path) -> Result<Checkpoint, Failed> {
    let parent = Checkpoint::open(name)?;
    let rows = rows(&parent, 201);
    let mut model: Option<Checkpoint> = None;
    for (index, text) in stages.iter().enumerate() {
        let place = folder.join(index.to_string());
        let weights = model.as_ref().unwrap_or(&parent);
        let next =
            run_stage_on((&Device::Cpu, Some(&rows)), &parent, weights, &*stage(text)?, &place)?;
        model = Some(next);
    }
    model.ok_or_else(|| "stages".into())
}

/// What each linear layer takes, token by token, with its place.
type Seen = Vec<(usize, Slot, Vec<f32>, usize)>;

fn seen(device: &Device, model: &Checkpoint, ids: &Rows) -> Result<Seen, Failed> {
    let source = WeightSource::Streamed(device, model);
    let mut walk = Walk::new(source, pass(device), &ids.ids, ids.samples, usize::MAX)?;
    let mut all = Vec::new();
    while let Some(mut step) = walk.next_block()? {
        let layer = step.layer();
        step.observe(Through::Parent, &mut |slot: Slot, input: &lopper::device::Tensor| {
            let columns = input.len() / input.shape()[0];
            all.push((layer, slot, device.read(input)?.to_f32(), columns));
            Ok(())
        })?;
        step.advance(Through::Parent, None)?;
    }
    Ok(all)
}

/// Whatever a family's block is, all that its quantized layers take is numbers of eight bits times a token's scale, and what goes into
/// weights that are no codes is as it was. Logits are near those without.
fn on_their_grid(device: &Device) -> Result<(), Failed> {
    for (name, floats) in [
        (NANO, false),
        (NANO, true),
        ("embedded:tiny-mixtral", false),
        ("embedded:tiny-t5", false),
        ("assets/families/gemma3", true),
    ] {
        let folder = tempfile::tempdir()?;
        let inputs = if floats { format!("{TOKEN}\n{FLOATS}") } else { TOKEN.into() };
        let plain = after(name, &[BYTES], &folder.path().join("plain"))?;
        let model = after(name, &[&inputs, BYTES], &folder.path().join("rounded"))?;
        let ids = rows(&model, 202);
        let largest = if floats { 448.0 } else { 127.0 };
        let mut steps = 0;
        for (layer, slot, values, columns) in seen(device, &model, &ids)? {
            let spec = model.specs().iter().find(|spec| {
                (spec.layer, spec.slot, spec.role) == (Some(layer), slot, Role::Linear)
            });
            let Some(spec) = spec.filter(|spec| model.format(spec).is_ok_and(|f| f.ty.bits <= 8))
            else {
                continue;
            };
            for line in values.chunks(columns) {
                let most = line.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let scale = f64::from(most) / largest;
                for value in line.iter().filter(|_| most > 0.0) {
                    let number = f64::from(value.abs()) / scale;
                    // Floats have eight steps from a power of two to the next, and none below 2^-9.
                    let step = match floats {
                        true => f64::powi(2.0, (number.log2().floor().max(-6.0) as i32) - 3),
                        false => 1.0,
                    };
                    let away = (number / step - (number / step).round()).abs();
                    assert!(away < 1e-3, "{name} {}: {number}", spec.name);
                    steps += 1;
                }
            }
        }
        assert!(steps > 10_000, "{name}: {steps} inputs");
        let error = relative_error(
            &logits(device, &model, &ids.ids, 2)?,
            &logits(device, &plain, &ids.ids, 2)?,
        );
        assert!(error > 1e-4 && error < if floats { 0.2 } else { 0.08 }, "{name}: {error}");
    }
    // Weights that are no codes take what comes.
    let folder = tempfile::tempdir()?;
    let dense = after(NANO, &[TOKEN], folder.path())?;
    let ids = rows(&dense, 203).ids;
    let parent = logits(device, &Checkpoint::open(NANO)?, &ids, 2)?;
    assert!(logits(device, &dense, &ids, 2)? == parent, "dense weights");
    Ok(())
}

/// By their tensors' names.
type Gradients = Vec<(String, Vec<f32>)>;

/// The pass back begins with the forward pass that evaluation runs, and its gradients are near those of inputs that are not rounded.
fn training(device: &Device) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let plain = after(NANO, &[BYTES], &folder.path().join("plain"))?;
    let model = after(NANO, &[TOKEN, BYTES], &folder.path().join("rounded"))?;
    let ids = rows(&model, 204).ids;
    let pass = pass(device);
    let of = |weights: &Checkpoint| -> Result<(f64, Gradients), Failed> {
        let mut all = Vec::new();
        let loss = load(device, weights)?.gradients(&pass, &ids, 2, &mut |gradient| {
            all.push((gradient.name.clone(), device.read(&gradient.values)?.to_f32()));
            Ok(())
        })?;
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((loss, all))
    };
    let ((loss, gradients), (plain_loss, plain_gradients)) = (of(&model)?, of(&plain)?);
    let vocabulary = model.config().vocab_size;
    let logits = logits(device, &model, &ids, 2)?;
    let mut sum = 0.0;
    for (row, tokens) in ids.chunks(24).enumerate() {
        for (place, next) in tokens.iter().enumerate().skip(1) {
            let line = &logits[(row * 24 + place - 1) * vocabulary..][..vocabulary];
            let total: f64 = line.iter().map(|logit| f64::from(*logit).exp()).sum();
            sum += total.ln() - f64::from(line[*next as usize]);
        }
    }
    let mean = sum / 46.0;
    assert!((loss - mean).abs() < 1e-5 * mean, "{loss}, and by the logits {mean}");
    assert!(loss != plain_loss, "{loss}");
    assert_eq!(gradients.len(), plain_gradients.len());
    for ((name, found), (_, wanted)) in gradients.iter().zip(&plain_gradients) {
        let error = relative_error(found, wanted);
        assert!(error < 0.2, "{name}: {error}");
    }
    Ok(())
}

/// The largest magnitude of each input over the calibration, for each layer of the model before.
fn stored_scales() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let model = after(NANO, &[STORED], folder.path())?;
    let parent = Checkpoint::open(NANO)?;
    let mut largest = vec![[0.0f32; 4]; parent.config().layers()];
    for (layer, slot, values, _) in seen(&Device::Cpu, &parent, &rows(&parent, 201))? {
        let place = input_place(slot).ok_or("a layer of a plain block")?;
        let most = &mut largest[layer][place];
        *most = values.iter().fold(*most, |most, value| most.max(value.abs()));
    }
    for (block, largest) in model.config().blocks.iter().zip(&largest) {
        let wanted = largest.map(|most| InputType::Int8.scale(most));
        assert_eq!(block.input_scales, Some(wanted));
    }
    assert_eq!(model.config().input_type, Some(InputType::Int8));
    Ok(())
}

/// A block keeps its scales where others go.
fn stored_scales_follow_their_blocks() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let cut = "kind = \"prune\"\nmethod = \"depth\"\nlayers = 4";
    let (place, whole) = (folder.path().join("cut"), folder.path().join("whole"));
    let whole = after("embedded:tiny-llama", &[STORED], &whole)?;
    let left = after("embedded:tiny-llama", &[STORED, cut], &place)?;
    let left: Vec<_> = left.config().blocks.iter().map(|block| block.input_scales).collect();
    let all: Vec<_> = whole.config().blocks.iter().map(|block| block.input_scales).collect();
    assert_eq!((left.len(), all.len()), (4, 6));
    // In their order.
    let mut rest = all.iter();
    assert!(left.iter().all(|own| rest.any(|other| other == own)), "{left:?} of {all:?}");
    Ok(())
}

/// As llm-compressor says it, and read back to the same logits; other folders keep what they can.
fn folders() -> Result<(), Failed> {
    let floats = "kind = \"quantize\"\ntype = \"fp8_e4m3\"\ngroup_size = 0";
    for (inputs, weights, format, ty, strategy) in [
        (TOKEN.to_string(), BYTES, "int-quantized", "int", "token"),
        (STORED.into(), BYTES, "int-quantized", "int", "tensor"),
        (format!("{TOKEN}\n{FLOATS}"), floats, "float-quantized", "float", "token"),
        (format!("{STORED}\n{FLOATS}"), floats, "float-quantized", "float", "tensor"),
    ] {
        let folder = tempfile::tempdir()?;
        let model = after(NANO, &[&inputs, weights], &folder.path().join("stages"))?;
        let ids = rows(&model, 205).ids;
        let wanted = logits(&Device::Cpu, &model, &ids, 2)?;
        for export in [ExportFormat::CompressedTensors, ExportFormat::Packed] {
            let path = folder.path().join(export.name());
            export.write(&path, &model, &model, None)?;
            let again = checkpoint(&path)?;
            let what = format!("{format}, {strategy}, {}", export.name());
            assert!(again.notes().is_empty(), "{what}: {:?}", again.notes());
            assert_eq!(again.config().input_type, model.config().input_type, "{what}");
            assert_eq!(again.config().blocks, model.config().blocks, "{what}");
            assert!(logits(&Device::Cpu, &again, &ids, 2)? == wanted, "{what}");
        }
        let config = read_json(folder.path().join("compressed-tensors/config.json"))?;
        let stated = &config["quantization_config"];
        let group = &stated["config_groups"]["group_0"];
        let stored = strategy == "tensor";
        // Its head is the embedding: who reads the folder must not look for codes of it.
        assert_eq!(stated["ignore"], json!(["lm_head"]));
        assert_eq!(stated["format"], format);
        assert_eq!(group["weights"]["type"], ty);
        assert_eq!(group["weights"]["strategy"], "channel");
        let activations = &group["input_activations"];
        assert_eq!(
            [&activations["type"], &activations["strategy"], &activations["dynamic"]],
            [&json!(ty), &json!(strategy), &json!(!stored)]
        );
        let (_, tensors) = read_folder(&folder.path().join("compressed-tensors"))?;
        let scales = tensors.iter().filter(|tensor| tensor.0.ends_with(".input_scale")).count();
        assert_eq!(scales, if stored { 7 * model.config().layers() } else { 0 });
        if !stored {
            continue;
        }
        // What has no codes has no word for it either, and says so; nor has GGUF.
        let hf = folder.path().join("hf");
        let wide = ExportFormat::Hf.write(&hf, &model, &model, None)?;
        assert!(wide.notes().join("\n").contains("no word for inputs"), "{:?}", wide.notes());
        assert!(model.config().ignored_by_llama_cpp().join("\n").contains("inputs of layers"));
    }
    Ok(())
}

/// What folders of other programs may say beside, and what is wrong with them.
fn others_folders() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let model = after(NANO, &[STORED, BYTES], &folder.path().join("stages"))?;
    let path = folder.path().join("ct");
    ExportFormat::CompressedTensors.write(&path, &model, &model, None)?;
    let (config, tensors) = read_folder(&path)?;
    let change = |change: &dyn Fn(&mut Value), scale: Option<f32>| -> Result<Checkpoint, Failed> {
        let place = tempfile::tempdir()?;
        let mut config = Value::Object(config.clone());
        change(&mut config["quantization_config"]["config_groups"]["group_0"]);
        // Only what the other program writes.
        config.as_object_mut().ok_or("an object")?.remove("input_rounding");
        let mut tensors = tensors.clone();
        let name = "model.layers.0.self_attn.k_proj.input_scale";
        match scale {
            Some(scale) => {
                let own = tensors.iter_mut().find(|tensor| tensor.0 == name).ok_or("a scale")?;
                own.3 = scale.to_le_bytes().to_vec();
            }
            None => tensors.retain(|tensor| tensor.0 != name),
        }
        let config = config.as_object().ok_or("an object")?.clone();
        write_model(place.path(), &config, &tensors)?;
        checkpoint(place.path())
    };
    // Of layers that are one product elsewhere the largest.
    let scales = change(&|_| {}, Some(9.0))?.config().blocks[0].input_scales;
    let own = model.config().blocks[0].input_scales.ok_or("scales")?;
    assert_eq!(scales, Some([9.0, own[1], own[2], own[3]]));
    for (scale, said) in [(None, "no such tensor"), (Some(0.0), "[0.0]"), (Some(f32::NAN), "NaN")] {
        let error =
            change(&|_| {}, scale).err().and_then(|error| error.message().map(String::from));
        let error = error.ok_or("refused")?;
        assert!(error.contains("k_proj.input_scale") && error.contains(said), "{error}");
    }
    // What is not done is said.
    for odd in [json!({"num_bits": 4}), json!({"symmetric": false}), json!({"strategy": "group"})] {
        let model = change(
            &|group| {
                for (key, value) in odd.as_object().into_iter().flatten() {
                    group["input_activations"][key] = value.clone();
                }
            },
            Some(1.0),
        )?;
        let notes = model.notes().join("\n");
        assert!(notes.contains("here they stay as they are"), "{odd}: {notes}");
        assert_eq!(model.config().input_type, None, "{odd}");
    }
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let on = "--no-eval --samples 2 --length 16 --device cpu --out out";
    for (arguments, said) in [
        ("embedded:tiny-mixtral --input-scales stored", "without experts"),
        ("embedded:tiny-t5 --input-scales stored", "without an encoder"),
        ("embedded:nano-llama --inputs int4", "int8"),
        ("embedded:nano-llama --alpha 0.5", "--alpha"),
    ] {
        let run = lopper(&folder, &format!("transform {arguments} --method inputs {on}"))?;
        assert!(run.code == Some(2) && run.err.contains(said), "{arguments}: {run}");
    }
    // A configuration that another hand wrote.
    let nano = after(NANO, &[STORED, BYTES], &folder.path().join("stages"))?;
    let path = folder.path().join("packed");
    ExportFormat::Packed.write(&path, &nano, &nano, None)?;
    let config = read_json(path.join("config.json"))?;
    for (key, value, said) in [
        ("type", json!("int4"), "int8 or fp8_e4m3"),
        ("scales", json!("row"), "\"token\""),
        ("scales", json!([[1.0, 1.0, 1.0, 1.0]]), "for each of 2 layers"),
        ("scales", json!([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0]]), "4 positive numbers"),
    ] {
        let mut config = config.clone();
        config["input_rounding"][key] = value;
        std::fs::write(path.join("config.json"), config.to_string())?;
        let error = Checkpoint::open(&path.to_string_lossy()).err().ok_or("refused")?.to_string();
        assert!(error.contains(said), "{key}: {error}");
    }
    Ok(())
}

const CALIBRATION: &str =
    "calibration = { text = \"embedded:calibration\", samples = 4, length = 32 }";

/// By the program: eight bits both, smoothed before, in a folder of compressed-tensors, which evaluates with a figure near the parent's.
fn commands() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let recipe = format!(
        "model = \"{NANO}\"\n[[stage]]\nkind = \"transform\"\nmethod = \"smooth\"\n{CALIBRATION}\n[[stage]]\n{STORED}\n{CALIBRATION}\n\
         [[stage]]\n{BYTES}\n[evaluate]\ntext = \"embedded:heldout-2026\"\nctx = 64\nmax_tokens = 256\n\
         [export]\nformats = [\"packed\", \"compressed-tensors\"]\n"
    );
    std::fs::write(folder.path().join("w8a8.toml"), recipe)?;
    succeeds(&folder, "compress w8a8.toml --out out --json=out.json")?;
    let report = read_json(folder.path().join("out/transform.json")).ok();
    assert!(report.is_none_or(|report| report["schema"] == 1));
    let eval = |model: &str| -> Result<f64, Failed> {
        let on = "--ppl embedded:heldout-2026 --ctx 64 --max-tokens 256 --json=e.json --force";
        succeeds(&folder, &format!("eval {model} {on}"))?;
        let value = read_json(folder.path().join("e.json"))?;
        Ok(value["perplexity"]["value"].as_f64().ok_or("a perplexity")?)
    };
    let (parent, packed) = (eval(NANO)?, eval("out/packed")?);
    let foreign = eval("out/compressed-tensors")?;
    assert!(packed != parent && (packed / parent - 1.0).abs() < 0.02, "{packed}, before {parent}");
    assert!((foreign / packed - 1.0).abs() < 1e-6, "{foreign}, {packed}");
    let run = succeeds(
        &folder,
        &format!("transform {NANO} --method inputs --then int8 --no-eval --out then"),
    )?;
    assert!(run.out.contains("then") || run.err.contains("then"), "{run}");
    Ok(())
}
