//! Mixtures of experts: files, both ways to route, experts that no token reaches, and what is refused. That the arithmetic is
//! right `golden` and `gradients` say.

use std::collections::HashMap;
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::data::read_text;
use lopper::device::Device;
use lopper::error::Result as Outcome;
use lopper::formats::gguf::{Gguf, NewGgufTensor, write};
use lopper::graph::Slot;
use lopper::methods::calibration::Rows;
use lopper::methods::prune::experts::{ExpertScore, FewerExperts, kept, uses};
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme};
use lopper::model::{
    BackwardOptions, Cache, Checkpoint, Decoder, Model, Role, Sampling, StreamedExperts,
    TensorSpec, WeightSource, Weights, export_gguf, export_hf, generate, gradients_later,
    tensor_specs,
};
use lopper::tensor::Packed;
use serde_json::{Value, json};

use crate::machine::{gpu_trial, on_each};
use crate::models::{
    MapWeights, checkpoint, load, pass, read_folder, speech_perplexity, write_model,
};
use crate::numbers::{Known, Within, assert_close};
use crate::program::{lopper, read_json, succeeds};

const MIXTRAL: &str = "embedded:tiny-mixtral";
const FOLDER: &str = "assets/tiny-mixtral";

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("experts":
        round_trip, older_names, wrong_files, four_bits, unreached, scores, fewer, commands, refused);
    trials.extend(on_each("experts::few_as_many", few_as_many));
    trials.extend(on_each("experts::batches", batches));
    trials.extend(on_each("experts::balance", balance));
    trials.extend(on_each("experts::streamed", streamed));
    trials.push(gpu_trial("experts::within_a_budget".into(), within_a_budget));
    trials
}

/// To GGUF, where experts stand in one tensor as llama.cpp wants them, and back: every byte and number is what it was.
fn round_trip() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let parent = Checkpoint::open(MIXTRAL)?;
    let tokenizer = parent.tokenizer()?;
    export_gguf(&path("m.gguf"), &parent, &parent, Some(tokenizer.stored()))?;
    let file = Gguf::open_set(&path("m.gguf"))?;
    let shape = |name: &str| file.tensor(name).map(|tensor| tensor.shape);
    assert_eq!(shape("blk.1.ffn_gate_exps.weight"), Some(vec![4, 192, 96]));
    assert_eq!(shape("blk.1.ffn_down_exps.weight"), Some(vec![4, 96, 192]));
    assert_eq!(shape("blk.1.ffn_up.0.weight"), None);
    assert_eq!(file.tensor("blk.1.ffn_gate_inp.weight").map(|t| t.ty.name()), Some("f32"));
    assert_eq!(file.str("general.architecture")?, Some("llama"));
    let number = |name: &str| file.u64(&format!("llama.{name}"));
    assert_eq!((number("expert_count")?, number("expert_used_count")?), (Some(4), Some(2)));
    let again = checkpoint(&path("m.gguf"))?;
    assert!(again.config().computes_as(parent.config()), "{:?}", again.config());
    std::fs::create_dir(path("hf"))?;
    export_hf(&path("hf"), again.config_json()?, &again, Some(tokenizer.stored()))?;
    let (config, mut back) = read_folder(&path("hf"))?;
    let (_, mut whole) = read_folder(Path::new(FOLDER))?;
    back.sort_by(|a, b| a.0.cmp(&b.0));
    whole.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(back.len(), 79);
    for (back, whole) in back.iter().zip(&whole) {
        // GGUF has vectors in f32.
        let vector = back.2.len() == 1;
        let same = back == whole || (vector && (&back.0, &back.2) == (&whole.0, &whole.2));
        assert!(same, "{} is not what it was", back.0);
    }
    assert_eq!(
        (&config["num_local_experts"], &config["num_experts_per_tok"]),
        (&json!(4), &json!(2))
    );
    assert_eq!(config["architectures"], json!(["MixtralForCausalLM"]));
    // And from GGUF to GGUF.
    export_gguf(&path("n.gguf"), &again, &again, Some(tokenizer.stored()))?;
    assert!(std::fs::read(path("m.gguf"))? == std::fs::read(path("n.gguf"))?, "a file changes");
    Ok(())
}

/// A file with a tensor of each expert, as llama.cpp made them first.
fn older_names() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let parent = Checkpoint::open(MIXTRAL)?;
    export_gguf(&path("m.gguf"), &parent, &parent, Some(parent.tokenizer()?.stored()))?;
    let stacked = checkpoint(&path("m.gguf"))?;
    // Opened as a model, it has them apart.
    let file = stacked.gguf().ok_or("a GGUF file")?;
    let apart = file.names().map(|name| {
        let tensor = file.tensor(name).ok_or("a tensor of that name")?;
        let ty = file.tensor_type(name).ok_or("a tensor of that name")?;
        let bytes = tensor.bytes()?.into_owned();
        let data = Box::new(move || Ok(bytes.clone()));
        Ok(NewGgufTensor { name: name.into(), ty, shape: tensor.shape, data })
    });
    let apart = apart.collect::<Result<Vec<_>, Failed>>()?;
    assert!(apart.iter().any(|tensor| tensor.name == "blk.0.ffn_up.3.weight"));
    write(&path("old.gguf"), file.metadata(), apart)?;
    let old = checkpoint(&path("old.gguf"))?;
    assert_eq!(old.specs(), parent.specs());
    for spec in parent.specs() {
        assert!(old.load(spec)?.to_f32() == parent.load(spec)?.to_f32(), "{}", spec.name);
    }
    Ok(())
}

/// Each mistake says which tensor or key it is.
fn wrong_files() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let (config, tensors) = read_folder(Path::new(FOLDER))?;
    let refused = |config: &Value, without: &str, said: &[&str]| -> Result<(), Failed> {
        let Value::Object(config) = config else { return Err("an object".into()) };
        let mut left = tensors.clone();
        left.retain(|(name, ..)| name != without);
        write_model(folder.path(), config, &left)?;
        let error = checkpoint(folder.path()).err().ok_or("it was opened")?;
        let text = error.message().unwrap_or_default().to_string();
        assert!(said.iter().all(|said| text.contains(said)), "{text}");
        Ok(())
    };
    let with = |key: &str, value: Value| {
        let mut config = Value::Object(config.clone());
        config[key] = value;
        config
    };
    let whole = with("num_local_experts", json!(4));
    let down = "model.layers.2.block_sparse_moe.experts.3.w2.weight";
    refused(&whole, down, &[down, "no such tensor"])?;
    let router = "model.layers.0.block_sparse_moe.gate.weight";
    refused(&whole, router, &[router, "no such tensor"])?;
    refused(&with("num_local_experts", json!(3)), "", &["block_sparse_moe.gate", "[3, 96]"])?;
    refused(&with("num_local_experts", json!(5)), "", &["gate", "[5, 96]"])?;
    refused(&with("num_local_experts", Value::Null), "", &["num_local_experts", "found null"])?;
    refused(&with("num_local_experts", json!(100_000)), "", &["at most 1024"])?;
    refused(&with("num_experts_per_tok", json!(5)), "", &["num_experts_per_tok", "at most the 4"])?;
    refused(&with("num_experts_per_tok", json!(0)), "", &["num_experts_per_tok", "positive"])?;

    // A GGUF file that says five and has four.
    let parent = Checkpoint::open(MIXTRAL)?;
    let path = folder.path().join("m.gguf");
    export_gguf(&path, &parent, &parent, Some(parent.tokenizer()?.stored()))?;
    let mut bytes = std::fs::read(&path)?;
    let key = b"llama.expert_count";
    let at = bytes.windows(key.len()).position(|window| window == key).ok_or("the key")?;
    bytes[at + key.len() + 4] = 5;
    std::fs::write(&path, &bytes)?;
    let text = checkpoint(&path).err().ok_or("it was opened")?;
    let text = text.message().unwrap_or_default().to_string();
    assert!(text.contains("blk.0.ffn_gate_exps.weight") && text.contains("5 matrices"), "{text}");
    Ok(())
}

/// Few tokens go to all experts without a look at which are theirs, many to their own: the same logits come of it.
fn few_as_many(device: &Device) -> Result<(), Failed> {
    let parent = Checkpoint::open(MIXTRAL)?;
    let scheme = Scheme { grid: Grid::ZeroPoint, bits: 4, group_size: 32, ty: None };
    let round = |spec: &TensorSpec, weight: Packed| match spec.role {
        Role::Linear => rtn(&Device::Cpu, &weight, scheme, &spec.name),
        _ => Ok(weight),
    };
    few_as_many_of(device, &parent, &[1, 3, 8, 9])?;
    few_as_many_of(device, &MapWeights(&parent, &round), &[2])
}

fn few_as_many_of(device: &Device, weights: &dyn Weights, steps: &[usize]) -> Result<(), Failed> {
    let model = load(device, weights)?;
    let pass = pass(device);
    let ids: Vec<u32> = (0..24).map(|id| 61 * id % 4000).collect();
    let logits = |step: usize| -> Result<Vec<f32>, Failed> {
        let mut cache = Cache::new(device, model.config(), 1, ids.len(), pass.compute)?;
        let mut all = Vec::new();
        for some in ids.chunks(step) {
            let normed = model.hidden(&pass, some, &cache)?;
            all.extend(device.read(&model.head(&pass, &normed, 0..some.len())?)?.to_f32());
            cache.advance(device, some.len())?;
        }
        Ok(all)
    };
    let many = logits(24)?;
    for step in steps {
        assert_close(&format!("{step} at once"), &logits(*step)?, &many, Within::Norm(1e-5));
    }
    Ok(())
}

/// The load-balancing loss and the gradients of the whole loss with it are those of transformers, however a pass is cut.
fn balance(device: &Device) -> Result<(), Failed> {
    let known = Known::open("assets/fixtures/balance/expected.safetensors")?;
    let (ids, factor) = (known.words("input_ids")?, known.floats("factor")?[0]);
    let weights = Checkpoint::open(MIXTRAL)?;
    let model = load(device, &weights)?;
    let (resident, streamed) =
        (WeightSource::Resident(&model), WeightSource::Streamed(device, &weights));
    let pass = pass(device);
    let number = |name: &str| -> Result<f64, Failed> { Ok(f64::from(known.floats(name)?[0])) };
    let (loss, of_experts) = (number("loss")?, number("balance")?);
    for (source, tokens, activation_budget) in [(resident, usize::MAX, 1 << 30), (streamed, 48, 0)]
    {
        let options =
            BackwardOptions { balance: factor, tokens, activation_budget, ..BackwardOptions::ALL };
        let mut sums: HashMap<String, Vec<f32>> = HashMap::new();
        let found =
            gradients_later(source, &pass, &ids, 2, options, &mut |_, _| {}, &mut |part| {
                let values = device.read(&part.values)?.to_f32();
                let sum = sums.entry(part.name).or_insert_with(|| vec![0.0; values.len()]);
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                Ok(())
            })?;
        let (all, balance) = found.finish_parts(device)?;
        let balance = balance.ok_or("a balance loss")?;
        assert!((balance - of_experts).abs() < 1e-5 * of_experts, "{balance} of {of_experts}");
        let whole = loss + f64::from(factor) * of_experts;
        assert!((all - whole).abs() < 1e-5 * whole, "{all} of {whole}");
        for name in known.names() {
            if let Some(tensor) = name.strip_prefix("grad.") {
                assert_close(&name, &sums[tensor], &known.floats(&name)?, Within::Norm(1e-5));
            } else if let Some(tensor) = name.strip_prefix("gradnorm.") {
                let squares = sums[tensor].iter().map(|value| f64::from(*value).powi(2));
                let (norm, known) = (squares.sum::<f64>().sqrt(), number(&name)?);
                assert!((norm - known).abs() < 1e-5 * known, "{name}: {norm} of {known}");
            }
        }
    }
    // Without it the routers' gradients are others.
    let router = "model.layers.2.block_sparse_moe.gate.weight";
    let options = BackwardOptions { tensor: &|name| name == router, ..BackwardOptions::ALL };
    let mut without = Vec::new();
    let pending =
        gradients_later(resident, &pass, &ids, 2, options, &mut |_, _| {}, &mut |part| {
            without = device.read(&part.values)?.to_f32();
            Ok(())
        })?;
    assert_eq!(pending.finish_parts(device)?.1, None);
    let with = known.floats(&format!("grad.{router}"))?;
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
    let apart = length(&mut with.iter().zip(&without).map(|(a, b)| a - b));
    assert!(apart > 0.1 * length(&mut with.iter().copied()), "{apart}");
    Ok(())
}

/// Experts that are copied when they are asked for give what they give on the device, however many may stay there: the same tokens,
/// the same logits of a text.
fn streamed(device: &Device) -> Result<(), Failed> {
    let parent = Checkpoint::open(MIXTRAL)?;
    let (whole, pass) = (load(device, &parent)?, pass(device));
    let prompt: Vec<u32> = (0..5).map(|id| (31 * id + 300) % 4000).collect();
    let tokens = |model: &Model| -> Result<Vec<u32>, Failed> {
        let greedy = Sampling::GREEDY;
        Ok(generate(model, &pass, &prompt, 8, greedy, |_| false, |_| Ok(true))?.tokens)
    };
    let wanted = tokens(&whole)?;
    let text: Vec<u32> = (0..20).map(|id| 61 * id % 4000).collect();
    let (_, logits) = whole.trace(&pass, &text, 1, false)?;
    // Of an expert three matrices of 96 x 192 in f16.
    let each = 3 * 96 * 192 * 2;
    let mut rates = Vec::new();
    for places in [0, 6, 16] {
        let experts = StreamedExperts::new(Checkpoint::open(MIXTRAL)?, places * each + each / 2)?;
        assert_eq!(experts.places() as u64, places);
        let model = Model::load_streaming(device, &parent, experts, |_, _| Ok(()))?;
        assert_eq!(tokens(&model)?, wanted, "{places} places");
        let uses = model.streamed_experts().ok_or("experts")?.uses();
        // Two experts of each of four blocks for a token alone, at most all for the prompt's first four at once.
        assert!((4 * 2 * 8 + 4 * 2..=4 * 2 * 8 + 4 * 4).contains(&uses.asked), "{uses:?}");
        assert_eq!(uses.copied, (uses.asked - uses.held) * each, "{uses:?}");
        rates.push(uses.held);
        let (_, found) = model.trace(&pass, &text, 1, false)?;
        assert_close("logits", &found.to_f32(), &logits.to_f32(), Within::Norm(1e-5));
        let all = model.streamed_experts().ok_or("experts")?.uses();
        // In the end all that stay are there once.
        assert!(places < 16 || all.copied <= 16 * each, "{all:?}");
    }
    assert!(rates[0] == 0 && rates[1] > 0 && rates[2] > rates[1], "{rates:?}");
    Ok(())
}

/// Commands with a budget that has no room for all experts: the same text and perplexity, and how often experts were there.
fn within_a_budget() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = |arguments: &str| -> Result<(Value, String), Failed> {
        let all = format!("{arguments} --device gpu --no-autotune --json=o.json");
        let run = lopper(folder.path(), &all)?;
        assert!(run.code == Some(0), "{arguments}: {run}");
        Ok((read_json(folder.path().join("o.json"))?, run.err))
    };
    let generated = "generate embedded:tiny-mixtral --prompt The -n 6";
    let (whole, _) = run(generated)?;
    let (some, said) = run(&format!("{generated} --vram-budget 4MiB"))?;
    assert_eq!(some["tokens"], whole["tokens"]);
    assert!(whole.get("experts").is_none());
    let number = |key: &str| some["experts"][key].as_u64().ok_or(format!("no {key}"));
    let (asked, held, places) = (number("asked")?, number("held")?, number("places")?);
    assert!((1..16).contains(&places) && held > 0 && held < asked, "{some}");
    assert!(said.contains("were on the device"), "{said}");
    let measured =
        "eval embedded:tiny-mixtral --ppl embedded:heldout-2026 --ctx 64 --max-tokens 128";
    let (whole, _) = run(measured)?;
    let (some, _) = run(&format!("{measured} --vram-budget 57MiB"))?;
    let value = |json: &Value| json["perplexity"]["value"].as_f64().ok_or("a number");
    let (whole, value) = (value(&whole)?, value(&some)?);
    assert!((whole - value).abs() < 1e-5 * whole, "{value} of {whole}");
    assert!(some["experts"]["asked"].as_u64() > Some(0), "{some}");
    let little = lopper(folder.path(), &format!("{generated} --device gpu --vram-budget 3MiB"))?;
    little.refused(3, "one expert at a time");
    Ok(())
}

/// Three sequences at once, and nine, whose tokens the processor hands to their experts, go on as each alone.
fn batches(device: &Device) -> Result<(), Failed> {
    let model = load(device, &Checkpoint::open(MIXTRAL)?)?;
    let (pass, length, count) = (pass(device), 5, 6);
    let prompt = |sequence: u32| (0..length).map(move |id| (97 * sequence + 31 * id + 300) % 4000);
    let decoded = |sequences: u32| -> Result<Vec<Vec<u32>>, Failed> {
        let ids: Vec<u32> = (0..sequences).flat_map(prompt).collect();
        let (rows, length) = (sequences as usize, length as usize);
        let mut cache = Cache::new(device, model.config(), rows, length + count, pass.compute)?;
        let before: Vec<u32> =
            ids.chunks(length).flat_map(|row| &row[..length - 1]).copied().collect();
        let last: Vec<u32> = ids.chunks(length).map(|row| row[length - 1]).collect();
        model.hidden(&pass, &before, &cache)?;
        cache.advance(device, length - 1)?;
        let mut found = vec![Vec::new(); rows];
        Decoder::new(&model, pass, cache, &last)?.run(count, &mut |chosen| {
            found.iter_mut().zip(chosen).for_each(|(row, chosen)| row.push(chosen.token));
            Ok(true)
        })?;
        Ok(found)
    };
    let nine = decoded(9)?;
    assert_eq!(decoded(3)?, nine[..3], "three as nine");
    for sequence in [0, 8] {
        let ids: Vec<u32> = prompt(sequence).collect();
        let greedy = Sampling::GREEDY;
        let alone = generate(&model, &pass, &ids, count, greedy, |_| false, |_| Ok(true))?;
        assert_eq!(alone.tokens, nine[sequence as usize], "sequence {sequence}");
    }
    Ok(())
}

/// Rounded to 4 bits, experts too, within 8 % of its perplexity.
fn four_bits() -> Result<(), Failed> {
    let parent = Checkpoint::open(MIXTRAL)?;
    let scheme = Scheme { grid: Grid::ZeroPoint, bits: 4, group_size: 32, ty: None };
    let round = |spec: &TensorSpec, weight: Packed| match spec.role {
        Role::Linear => rtn(&Device::Cpu, &weight, scheme, &spec.name),
        _ => Ok(weight),
    };
    let pass = pass(&Device::Cpu);
    let dense = speech_perplexity(&pass, &parent, 4096)?;
    let rounded = speech_perplexity(&pass, &MapWeights(&parent, &round), 4096)?;
    assert!((46.0..47.0).contains(&dense), "{dense}");
    assert!(rounded > dense && rounded < 1.08 * dense, "{rounded} of {dense}");
    Ok(())
}

/// The rows of experts 0, 1 and 3 in every router are alike: of equal logits the first go first, so that no token goes to the last.
fn without_the_last(spec: &TensorSpec, weight: Packed) -> Outcome<Packed> {
    if spec.slot != Slot::Router {
        return Ok(weight);
    }
    let mut values = weight.to_f32();
    let first = values[..spec.columns].to_vec();
    for expert in [1, 3] {
        values[expert * spec.columns..][..spec.columns].copy_from_slice(&first);
    }
    Ok(Packed::from_f32(&values, spec.rows, spec.columns))
}

/// An expert that no token of the calibration reaches is rounded without inputs, and pruned by magnitude; each says so. Statistics
/// of it are zeros, in a folder and in an imatrix, and methods take them.
fn unreached() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let parent = Checkpoint::open(MIXTRAL)?;
    let tokenizer = parent.tokenizer()?;
    std::fs::create_dir(folder.path().join("m"))?;
    let weights = MapWeights(&parent, &without_the_last);
    let config = parent.config_json()?;
    export_hf(&folder.path().join("m"), config, &weights, Some(tokenizer.stored()))?;
    let calib = "--samples 2 --length 32 --no-eval --include model.layers.2.*";
    let three = "model.layers.2.block_sparse_moe.experts.3.w2.weight";
    let quantized = "quantize m --method gptq --bits 4";
    let run = succeeds(folder.path(), &format!("{quantized} {calib} --formats packed --out q"))?;
    assert!(run.err.contains(three) && run.err.contains("rounded without one"), "{run}");
    let tensors = read_json(folder.path().join("q/rounding.json"))?;
    let tensors = tensors["tensors"].as_array().ok_or("an array")?;
    let warned = |tensor: &&Value| tensor["warning"].is_string();
    let warned: Vec<&str> =
        tensors.iter().filter(warned).filter_map(|tensor| tensor["tensor"].as_str()).collect();
    assert_eq!(warned.len(), 3, "{warned:?}");
    assert!(warned.iter().all(|name| name.contains(".experts.3.")), "{warned:?}");
    // All but the router.
    assert_eq!(tensors.len(), 4 + 3 * 4);

    let pruned = "prune m --method wanda --ratio 0.5";
    let run = succeeds(folder.path(), &format!("{pruned} {calib} --formats packed --out w"))?;
    assert!(run.err.contains(three) && run.err.contains("by their magnitudes"), "{run}");
    let calibrated = "calibrate m --samples 2 --length 32 --kinds squares,gram";
    succeeds(folder.path(), &format!("{calibrated} --out s"))?;
    let with = format!(
        "{quantized} --stats s --no-eval --include model.layers.2.* --formats packed --out r"
    );
    let run = succeeds(folder.path(), &with)?;
    assert!(run.err.contains(three), "{run}");
    let codes =
        |name: &str| std::fs::read(folder.path().join(name).join("packed/model.safetensors"));
    assert!(codes("r")?.len() == codes("q")?.len(), "of the same tensors");
    let imatrix = "calibrate m --samples 2 --length 32 --out i.gguf";
    succeeds(folder.path(), imatrix)?;
    let with = "quantize m --method rtn --fit search --weighted --type q4_0 --stats i.gguf --no-eval --include model.layers.2.* --formats gguf --out k";
    let run = succeeds(folder.path(), with)?;
    assert!(run.err.contains(three), "{run}");
    let model = Checkpoint::open(&folder.path().join("k/model.gguf").to_string_lossy())?;
    assert_eq!(
        model.specs(),
        tensor_specs(model.config()).into_iter().filter(|s| !s.optional).collect::<Vec<_>>()
    );
    Ok(())
}

/// Of each layer and expert the tokens that went there, of 8 x 64 of the calibration text, and the mean of a share times the length
/// of a result: by NumPy, apart from this project's code.
const USES: [[(u64, f64); 4]; 4] = [
    [(196, 0.272), (453, 0.445), (166, 0.324), (209, 0.266)],
    [(20, 0.767), (420, 0.269), (92, 0.478), (492, 0.416)],
    [(370, 0.629), (100, 0.645), (492, 0.450), (62, 1.025)],
    [(507, 0.758), (125, 0.811), (133, 0.954), (259, 0.847)],
];

/// What a text makes of experts, beside what NumPy finds; which ones stay by each score.
fn scores() -> Result<(), Failed> {
    let parent = Checkpoint::open(MIXTRAL)?;
    let (pass, config) = (pass(&Device::Cpu), parent.config());
    let mut ids = parent.tokenizer()?.encode(&read_text("embedded:calibration")?, false)?;
    ids.truncate(8 * 64);
    let rows = Rows { ids, samples: 8 };
    let source = || WeightSource::Streamed(&Device::Cpu, &parent);
    let mut blocks = Vec::new();
    let found = uses(source(), &pass, &rows, Vec::new(), &mut |known| {
        blocks.push(known.len());
        Ok(())
    })?;
    assert_eq!((blocks, found.len()), (vec![1, 2, 3, 4], 4));
    for (found, wanted) in found.iter().zip(&USES) {
        for (found, (tokens, mean)) in found.iter().zip(wanted) {
            let near = (found.norms / found.tokens as f64 - mean).abs() <= 1e-3;
            assert!(found.tokens == *tokens && near, "{found:?}: {tokens} tokens, {mean}");
        }
    }
    // A run that was stopped goes on with the same numbers.
    let again = uses(source(), &pass, &rows, found[..2].to_vec(), &mut |_| Ok(()))?;
    assert_eq!(again, found);
    let stay = |by: ExpertScore, count: usize| kept(config, &found, (by, count), 0);
    assert_eq!(stay(ExpertScore::Usage, 2), [[1, 3], [1, 3], [0, 2], [0, 3]]);
    assert_eq!(stay(ExpertScore::Usage, 3), [[0, 1, 3], [1, 2, 3], [0, 1, 2], [0, 2, 3]]);
    assert_eq!(stay(ExpertScore::GateNorm, 3), [[1, 2, 3], [1, 2, 3], [0, 1, 2], [0, 2, 3]]);
    assert_eq!(stay(ExpertScore::Reap, 2), [[1, 2], [0, 2], [1, 3], [2, 3]]);
    let luck = |seed: u64| kept(config, &[], (ExpertScore::Random, 2), seed);
    assert!(luck(1) == luck(1) && luck(1) != luck(2), "drawn by the seed");
    // The two that are used most, on 512 tokens: 1.9 times the perplexity of all.
    let perplexity = |weights: &dyn Weights| speech_perplexity(&pass, weights, 512);
    let fewer = FewerExperts::new(&parent, stay(ExpertScore::Usage, 2));
    let (all, fewer) = (perplexity(&parent)?, perplexity(&fewer)?);
    assert!(fewer > 1.5 * all && fewer < 2.5 * all, "{fewer}, of all {all}");
    Ok(())
}

/// Experts that stay keep their values, of a GGUF file their blocks; routers keep their rows.
fn fewer() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let prune = "--method experts --samples 2 --length 64 --no-eval";
    succeeds(
        folder,
        &format!(
            "prune embedded:tiny-mixtral {prune} --experts 2 --score reap --formats hf --out reap"
        ),
    )?;
    let report = read_json(folder.join("reap/experts.json"))?;
    let kept = |layer: usize| -> Vec<usize> {
        let kept = report["blocks"][layer]["kept"].as_array().into_iter().flatten();
        kept.filter_map(|expert| Some(expert.as_u64()? as usize)).collect()
    };
    let parent = Checkpoint::open(MIXTRAL)?;
    let hf = folder.join("reap/hf");
    let left = checkpoint(&hf)?;
    assert_eq!(left.config().experts.map(|experts| (experts.count, experts.used)), Some((2, 2)));
    for spec in left.specs() {
        let (layer, found) = (spec.layer.unwrap_or(0), left.load(spec)?.to_f32());
        let slot = match spec.slot.expert() {
            Some(expert) => spec.slot.of_expert(kept(layer)[expert]),
            None => spec.slot,
        };
        let is = |whole: &&TensorSpec| (whole.layer, whole.slot) == (spec.layer, slot);
        let whole = parent.specs().iter().find(is).ok_or("a tensor of the parent")?;
        let values = parent.load(whole)?.to_f32();
        let wanted = match spec.slot {
            Slot::Router => {
                let row = |expert: &usize| values[expert * spec.columns..][..spec.columns].to_vec();
                kept(layer).iter().flat_map(row).collect()
            }
            _ => values,
        };
        assert!(found == wanted, "{} of layer {layer}", spec.name);
    }
    // Of a file in blocks, the same blocks.
    succeeds(
        folder,
        "quantize embedded:tiny-mixtral --type q4_0 --no-eval --formats gguf --out q",
    )?;
    let command =
        format!("prune q/model.gguf {prune} --experts 3 --score usage --formats gguf --out b");
    succeeds(folder, &command)?;
    let open = |name: &str| checkpoint(&folder.join(name).join("model.gguf"));
    let (whole, left) = (open("q")?, open("b")?);
    let report = read_json(folder.join("b/experts.json"))?;
    let last = report["blocks"][3]["kept"][2].as_u64().ok_or("a number")?;
    let bytes = |model: &Checkpoint, name: &str| -> Result<Vec<u8>, Failed> {
        let tensor = model.gguf().and_then(|file| file.tensor(name)).ok_or("a tensor")?;
        assert_eq!(tensor.ty.name(), "Q4_0", "{name}");
        Ok(tensor.bytes()?.into_owned())
    };
    let (now, before) = ("blk.3.ffn_up.2.weight", format!("blk.3.ffn_up.{last}.weight"));
    assert!(bytes(&left, now)? == bytes(&whole, &before)?, "{now} was {before}");
    Ok(())
}

/// Commands that take a model take this one.
fn commands() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let shown = succeeds(folder, "inspect embedded:tiny-mixtral --groups")?.out;
    for text in ["mixtral", "experts", "1.8", "experts.3.w2", "kvgroup.0"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert!(!shown.contains("ffn.0"), "{shown}");
    let scores = "scores embedded:tiny-mixtral --score wanda,param_first --samples 2 --length 32 --groups kvgroup,hidden \
                  --out s.safetensors";
    succeeds(folder, scores)?;
    let tuned = "tune embedded:tiny-mixtral --method lora --rank 2 --steps 2 --batch 2 --length 32 --no-eval \
                 --formats packed --out t";
    succeeds(folder, tuned)?;
    let told = read_json(folder.join("t/training.json"))?;
    let text = told["loss"].as_str().ok_or("a text")?;
    assert!(text.ends_with(", 0.001 x balance of experts"), "{text}");
    let balance = told["steps"][1]["balance"].as_f64().ok_or("a number")?;
    assert!((1.9..2.6).contains(&balance), "{balance}");
    let dense = tuned.replace("mixtral", "llama").replace("--out t", "--balance 0.1 --out v");
    lopper(folder, &dense)?.refused(2, "balance & a model with experts");
    let pruned = "prune embedded:tiny-mixtral --widths kvgroup --ratio 0.5 --score l2 --no-eval --formats hf,gguf --out p";
    succeeds(folder, pruned)?;
    succeeds(folder, "generate p/model.gguf --prompt The -n 4")?;
    succeeds(folder, "generate p/hf --prompt The -n 4")?;
    let config = read_json(folder.join("p/hf/config.json"))?;
    assert_eq!(
        (&config["num_key_value_heads"], &config["num_local_experts"]),
        (&json!(1), &json!(4))
    );
    Ok(())
}

/// What is not done for experts says so.
fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (arguments, said) in [
        ("prune embedded:tiny-mixtral --ratio 0.2", "widths & channels of experts"),
        ("prune embedded:tiny-mixtral --method minitron --ratio 0.2", "method & minitron"),
        ("prune embedded:tiny-mixtral --method experts --experts 4", "experts & 1 to 3"),
        ("prune embedded:tiny-llama --method experts --experts 1", "method & llama"),
        ("quantize embedded:tiny-mixtral --method gptq --guided", "guided & experts"),
        ("prune embedded:tiny-mixtral --method slicegpt --ratio 0.2", "slicegpt & experts"),
    ] {
        lopper(folder.path(), &format!("{arguments} --out o"))?.refused(2, said);
    }
    let minitron = "scores embedded:tiny-mixtral --score minitron --samples 1 --length 16 --device cpu --out s.safetensors";
    lopper(folder.path(), minitron)?.refused(2, "minitron & mixtral");
    // Experts of several types in one layer have no place in one tensor.
    let mixed = "quantize embedded:tiny-mixtral --type q4_0 --include *experts.1.* --no-eval --device cpu --formats gguf --out o";
    lopper(folder.path(), mixed)?.refused(2, "ffn_gate_exps & one type");
    Ok(())
}
