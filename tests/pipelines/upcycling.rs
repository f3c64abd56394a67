//! Models with experts made of models without: copies compute what their parent does, experts of several models with routers by
//! prompts, inputs and files of any format, what is refused.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::formats::gguf::Gguf;
use lopper::graph::Slot;
use lopper::model::{Checkpoint, Role, TensorSpec, Weights};
use lopper::recipe::mergekit_moe;
use lopper::stages::RecipeStage;
use lopper::tensor::DType;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::machine::on_each;
use crate::models::{
    Stored, checkpoint, load, logits, pass, read_folder, run_stage_on, write_model,
};
use crate::numbers::{Within, assert_close};
use crate::program::{NANO, lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("upcycling":
        drawn, several_models, by_embeddings, mixtures_files, any_format, refused, commands);
    trials.extend(on_each("upcycling::as_before", as_before));
    trials
}

fn stage(keys: &str) -> Result<RecipeStage, Failed> {
    Ok(toml::from_str(&format!("kind = \"upcycle\"\n{keys}"))?)
}

/// What a stage makes of a model.
fn upcycle(parent: &Checkpoint, keys: &str) -> Result<(TempDir, Checkpoint), Failed> {
    let folder = TempDir::new()?;
    let made = run_stage_on((&Device::Cpu, None), parent, parent, &*stage(keys)?, folder.path())?;
    Ok((folder, made))
}

const IDS: [u32; 24] = {
    let mut ids = [0; 24];
    let mut at = 0;
    while at < 24 {
        ids[at] = (97 * at as u32 + 300) % 1000;
        at += 1;
    }
    ids
};

/// Shares of a token's experts add up to 1, so that copies give what their parent does, whichever of them a token goes through.
fn as_before(device: &Device) -> Result<(), Failed> {
    let parent = Checkpoint::open(NANO)?;
    let wanted = logits(device, &parent, &IDS, 2)?;
    for keys in ["experts = 4", "experts = 3\nused = 1\ndeviation = 0.5", "experts = 2"] {
        let (_folder, made) = upcycle(&parent, keys)?;
        assert_eq!(made.config().family.name, "mixtral");
        let found = logits(device, &made, &IDS, 2)?;
        assert_close(keys, &found, &wanted, Within::Norm(1e-6));
    }
    // Of another family's blocks.
    let parent = Checkpoint::open("assets/families/qwen3")?;
    let (_folder, made) = upcycle(&parent, "experts = 3")?;
    assert_eq!(made.config().family.name, "qwen3_moe");
    let ids = IDS.map(|id| id % 280);
    let (found, wanted) = (logits(device, &made, &ids, 2)?, logits(device, &parent, &ids, 2)?);
    assert_close("qwen3", &found, &wanted, Within::Norm(1e-6));
    Ok(())
}

fn numbers(model: &Checkpoint, layer: usize, slot: Slot) -> Result<Vec<f32>, Failed> {
    let is = |spec: &&TensorSpec| (spec.layer, spec.slot) == (Some(layer), slot);
    let spec = model.specs().iter().find(is).ok_or("a tensor")?;
    Ok(model.load(spec)?.to_f32())
}

/// The root of the mean square.
fn deviation(values: impl Iterator<Item = f32>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0f64);
    for value in values {
        sum += f64::from(value).powi(2);
        count += 1.0;
    }
    (sum / count).sqrt()
}

/// Routers and noise have their deviations, and are the same for the same seed; noise is another for every expert.
fn drawn() -> Result<(), Failed> {
    let parent = Checkpoint::open(NANO)?;
    let keys = "experts = 5\nnoise = 0.01\ndeviation = 0.1\ndtype = \"f32\"";
    let (_first, made) = upcycle(&parent, keys)?;
    let (_again, again) = upcycle(&parent, keys)?;
    for spec in made.specs() {
        assert!(made.load(spec)?.to_f32() == again.load(spec)?.to_f32(), "{}", spec.name);
    }
    for layer in 0..2 {
        let router = numbers(&made, layer, Slot::Router)?;
        let found = deviation(router.iter().copied());
        assert!((found - 0.1).abs() < 0.01, "{found} in {layer}");
        let own = numbers(&parent, layer, Slot::Up)?;
        let mut others: Vec<Vec<f32>> = Vec::new();
        for expert in 0..5 {
            let copy = numbers(&made, layer, Slot::ExpertUp(expert))?;
            let noise: Vec<f32> = copy.iter().zip(&own).map(|(copy, own)| copy - own).collect();
            let found = deviation(noise.iter().copied());
            assert!((found - 0.01).abs() < 2e-4, "{found} of {expert} in {layer}");
            for other in &others {
                let both = deviation(other.iter().zip(&noise).map(|(a, b)| a - b));
                assert!((both - 0.01 * 2f64.sqrt()).abs() < 4e-4, "{both} of {expert} in {layer}");
            }
            others.push(noise);
        }
    }
    assert_ne!(numbers(&made, 0, Slot::Router)?, numbers(&made, 1, Slot::Router)?);
    Ok(())
}

/// Folders with nano-llama in f32, all of whose matrices are changed a little, and the first `channels` of its feed-forward.
fn tuned(place: &Path, name: &str, seed: u64, channels: usize) -> Result<(), Failed> {
    let (mut config, tensors) = read_folder("assets/nano-llama".as_ref())?;
    config.insert("intermediate_size".into(), channels.into());
    let mut random = Random::new(seed);
    let change = |(name, ty, mut shape, bytes): Stored| -> Stored {
        assert_eq!(ty, DType::F16);
        let value = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32();
        let mut values: Vec<f32> = bytes.chunks_exact(2).map(value).collect();
        values.iter_mut().for_each(|value| *value += 0.02 * random.normal());
        if name.contains(".mlp.down_proj") {
            let rows = values.chunks_exact(shape[1]);
            values = rows.flat_map(|row| row[..channels].to_vec()).collect();
            shape[1] = channels;
        } else if name.contains(".mlp.") {
            values.truncate(channels * shape[1]);
            shape[0] = channels;
        }
        (name, DType::F32, shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
    };
    let tensors: Vec<Stored> = tensors.into_iter().map(change).collect();
    let folder = place.join(name);
    std::fs::create_dir(&folder)?;
    write_model(&folder, &config, &tensors)?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new("assets/nano-llama").join(file), folder.join(file))?;
    }
    Ok(())
}

/// Channels of nano-llama's feed-forward.
fn channels() -> Result<usize, Failed> {
    Ok(Checkpoint::open(NANO)?.config().blocks[0].intermediate_size)
}

const FOR_PROSE: [&str; 2] = ["Once upon a time", "She said that"];
const FOR_LAW: &str = "The Congress of the United States shall";

/// Experts of two models and of the first one's own; routers from what the first one makes of prompts.
fn several_models() -> Result<(), Failed> {
    let place = TempDir::new()?;
    for (name, seed) in [("a", 71), ("b", 72)] {
        tuned(place.path(), name, seed, channels()?)?;
    }
    let parent = Checkpoint::open(NANO)?;
    let name = |model: &str| place.path().join(model).display().to_string();
    let keys = format!(
        "used = 1\ndtype = \"f32\"\n\
         [[expert]]\nmodel = {:?}\nprompts = {FOR_PROSE:?}\nnot = [{FOR_LAW:?}]\n\
         [[expert]]\nprompts = [{FOR_LAW:?}]\n\
         [[expert]]\nmodel = {:?}\nprompts = [{:?}]",
        name("a"),
        name("b"),
        FOR_PROSE[1],
    );
    let (_folder, made) = upcycle(&parent, &keys)?;
    let models = [
        checkpoint(&place.path().join("a"))?,
        checkpoint(Path::new(NANO))?,
        checkpoint(&place.path().join("b"))?,
    ];
    for layer in 0..2 {
        for (expert, model) in models.iter().enumerate() {
            let slots = [Slot::ExpertGate(0), Slot::ExpertUp(0), Slot::ExpertDown(0)];
            for slot in slots.map(|slot| slot.of_expert(expert)) {
                let own = numbers(model, layer, slot.of_no_expert())?;
                assert!(numbers(&made, layer, slot)? == own, "{slot:?} in {layer}");
            }
        }
        for slot in [Slot::Query, Slot::AttentionNorm, Slot::FeedForwardNorm] {
            assert!(numbers(&made, layer, slot)? == numbers(&parent, layer, slot)?, "{slot:?}");
        }
    }
    // The residual stream before each block, by a pass of the whole model.
    let tokenizer = parent.tokenizer()?;
    let model = load(&Device::Cpu, &parent)?;
    let width = parent.config().hidden_size;
    let last = |text: &str| -> Result<Vec<Vec<f32>>, Failed> {
        let ids = tokenizer.encode(text, false)?;
        let (states, _) = model.trace(&pass(&Device::Cpu), &ids, 1, true)?;
        let end = (ids.len() - 1) * width;
        Ok(states.iter().map(|state| state.to_f32()[end..].to_vec()).collect())
    };
    let (prose, law) = ([last(FOR_PROSE[0])?, last(FOR_PROSE[1])?], last(FOR_LAW)?);
    for layer in 0..2 {
        let pairs = prose[0][layer].iter().zip(&prose[1][layer]).zip(&law[layer]);
        let first = pairs.map(|((a, b), law)| (a + b) / 2.0 - law).collect::<Vec<f32>>();
        let rows = [first, law[layer].clone(), prose[1][layer].clone()];
        let rows = rows.iter().flat_map(|row| {
            let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
            row.iter().map(move |value| value / length)
        });
        let wanted: Vec<f32> = rows.collect();
        let found = numbers(&made, layer, Slot::Router)?;
        assert_close(&format!("router {layer}"), &found, &wanted, Within::Norm(1e-5));
    }
    Ok(())
}

/// Routers from embeddings are the same in every block.
fn by_embeddings() -> Result<(), Failed> {
    let parent = Checkpoint::open(NANO)?;
    let keys = format!(
        "gate = \"cheap-embed\"\ndtype = \"f32\"\n[[expert]]\nprompts = {FOR_PROSE:?}\n[[expert]]\nprompts = [{FOR_LAW:?}]"
    );
    let (_folder, made) = upcycle(&parent, &keys)?;
    let spec = parent.specs().iter().find(|spec| spec.role == Role::Embedding).ok_or("one")?;
    let (table, tokenizer) = (parent.load(spec)?.to_f32(), parent.tokenizer()?);
    let mut wanted = Vec::new();
    for texts in [&FOR_PROSE[..], &[FOR_LAW]] {
        let mut sum = vec![0.0f64; spec.columns];
        for text in texts {
            for id in tokenizer.encode(text, false)? {
                let row = &table[id as usize * spec.columns..][..spec.columns];
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        }
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        wanted.extend(sum.iter().map(|value| (value / length) as f32));
    }
    for layer in 0..2 {
        let found = numbers(&made, layer, Slot::Router)?;
        assert_close(&format!("router {layer}"), &found, &wanted, Within::Norm(1e-6));
    }
    Ok(())
}

/// mergekit-moe's files.
fn mixtures_files() -> Result<(), Failed> {
    let text = "base_model: m/base\ngate_mode: cheap_embed\ndtype: bfloat16\nexperts_per_token: 1\nexperts:\n  \
                - source_model: m/a\n    positive_prompts: [\"one\", \"two\"]\n    negative_prompts:\n      - three\n  \
                - source_model: m/base\n    positive_prompts: [four]\n    noise_scale: 0.5\n";
    let path = Path::new("moe.yaml");
    let (model, found) = mergekit_moe::read(path, text)?;
    assert_eq!(model, "m/base");
    let keys = "used = 1\ngate = \"cheap-embed\"\ndtype = \"bf16\"\n\
                [[expert]]\nmodel = \"m/a\"\nprompts = [\"one\", \"two\"]\nnot = [\"three\"]\n\
                [[expert]]\nprompts = [\"four\"]\nnoise = 0.5";
    assert_eq!(RecipeStage::from(found), stage(keys)?);
    let (_, found) = mergekit_moe::read(path, "base_model: b\nexperts: [{source_model: a}]\n")?;
    let hidden = "gate = \"hidden\"\n[[expert]]\nmodel = \"a\"";
    assert_eq!(RecipeStage::from(found), stage(hidden)?);
    for (line, said) in [
        ("gate_mode: best", "gate_mode"),
        ("architecture: deepseek", "architecture"),
        ("shared_experts: [{source_model: c}]", "shared_experts"),
        ("dtype: int8", "dtype"),
        ("router: new", "router"),
    ] {
        let text = format!("base_model: b\n{line}\nexperts: [{{source_model: a}}]\n");
        let error = mergekit_moe::read(path, &text).err().ok_or("it was read")?.to_string();
        assert!(error.contains(said), "{line}: {error}");
    }
    Ok(())
}

/// Of a quantized GGUF file experts keep their blocks, byte for byte, and the file has them in one tensor.
fn any_format() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    succeeds(
        folder,
        "quantize embedded:nano-llama --type q4_0 --no-eval --formats gguf,packed --out q",
    )?;
    succeeds(
        folder,
        "upcycle q/model.gguf --experts 3 --no-eval --formats gguf,packed,hf --out u",
    )?;
    let (before, after) = (
        Gguf::open_set(&folder.join("q/model.gguf"))?,
        Gguf::open_set(&folder.join("u/model.gguf"))?,
    );
    let bytes = |file: &Gguf, name: &str| -> Result<Vec<u8>, Failed> {
        let tensor = file.tensor(name).ok_or("a tensor")?;
        assert_eq!(tensor.ty.name(), "Q4_0", "{name}");
        Ok(tensor.bytes()?.into_owned())
    };
    for (layer, part) in [(0, "up"), (1, "down"), (1, "gate")] {
        let own = bytes(&before, &format!("blk.{layer}.ffn_{part}.weight"))?;
        let all = bytes(&after, &format!("blk.{layer}.ffn_{part}_exps.weight"))?;
        assert!(all == own.repeat(3), "{part} of {layer}");
    }
    let wanted = logits(&Device::Cpu, &checkpoint(&folder.join("q/model.gguf"))?, &IDS, 2)?;
    for name in ["u/model.gguf", "u/packed", "u/hf"] {
        let found = logits(&Device::Cpu, &checkpoint(&folder.join(name))?, &IDS, 2)?;
        // f16 rounds what four bits stand for.
        let limit = if name == "u/hf" { 1e-3 } else { 1e-6 };
        assert_close(name, &found, &wanted, Within::Norm(limit));
    }
    // With noise there are no codes to keep.
    succeeds(
        folder,
        "upcycle q/packed --experts 2 --noise 0.001 --no-eval --formats packed --out n",
    )?;
    let noisy = checkpoint(&folder.join("n/packed"))?;
    let format = |slot: Slot| -> Result<String, Failed> {
        let spec = noisy.specs().iter().find(|spec| spec.slot == slot).ok_or("a tensor")?;
        Ok(noisy.format(spec)?.label())
    };
    assert_eq!(format(Slot::ExpertUp(1))?, "f16");
    assert_ne!(format(Slot::Query)?, "f16");
    Ok(())
}

/// Commands: the same perplexity, a folder for transformers, a run that goes on with training.
fn commands() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    succeeds(
        folder,
        "upcycle embedded:nano-llama --experts 3 --ctx 64 --max-tokens 256 --formats hf --out u",
    )?;
    let manifest = read_json(folder.join("u/manifest.json"))?;
    let perplexity = |figures: &Value| figures["perplexity"]["value"].as_f64().ok_or("a number");
    let (before, after) =
        (perplexity(&manifest["parent"])?, perplexity(&manifest["stages"][0]["figures"])?);
    assert!((before - after).abs() < 1e-5 * before, "{after} of {before}");
    let config = read_json(folder.join("u/hf/config.json"))?;
    for (key, value) in [
        ("model_type", json!("mixtral")),
        ("architectures", json!(["MixtralForCausalLM"])),
        ("num_local_experts", json!(3)),
        ("num_experts_per_tok", json!(2)),
        ("router_aux_loss_coef", json!(0.001)),
        ("sliding_window", Value::Null),
    ] {
        assert_eq!(config.get(key), Some(&value), "{key}");
    }
    assert!(config.get("mlp_bias").is_none() && config.get("attention_bias").is_none());
    let recipe = "model = \"embedded:nano-llama\"\n[[stage]]\nkind = \"upcycle\"\nexperts = 2\n\
                  [[stage]]\nkind = \"tune\"\nmethod = \"full\"\ndata = [\"embedded:calibration\"]\nlength = 16\nbatch = 2\nsteps = 2\n\
                  [export]\nformats = [\"gguf\"]\n";
    std::fs::write(folder.join("recipe.toml"), recipe)?;
    succeeds(folder, "compress recipe.toml --out t")?;
    let told = read_json(folder.join("t/training.json"))?;
    assert!(told["steps"][1]["balance"].is_f64(), "{told}");
    let model = checkpoint(&folder.join("t/model.gguf"))?;
    assert_eq!(model.config().experts.map(|experts| experts.count), Some(2));
    assert_ne!(numbers(&model, 0, Slot::ExpertUp(0))?, numbers(&model, 0, Slot::ExpertUp(1))?);
    Ok(())
}

fn refused() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    tuned(folder, "a", 73, channels()?)?;
    tuned(folder, "narrow", 74, 32)?;
    let both = format!("[{}, ", channels()?);
    for (arguments, said) in [
        ("upcycle embedded:tiny-mixtral", "a model without experts & mixtral"),
        ("upcycle embedded:tiny-t5", "a model without experts & t5"),
        ("upcycle embedded:nano-llama --experts 0", "--experts & 1 to 1024"),
        ("upcycle embedded:nano-llama --experts 2 --used 3", "--used & 1 to the 2 experts"),
        ("upcycle embedded:nano-llama --noise=-0.5", "--noise & 0 or more"),
        ("upcycle embedded:nano-llama --noise nan", "--noise & a finite number"),
        ("upcycle embedded:nano-llama --gate hidden", "--expert & a prompt of every expert"),
        ("upcycle embedded:nano-llama --expert a --expert a@x --gate hidden", "expert 0"),
        ("upcycle embedded:nano-llama --experts 2 --expert a", "cannot be used with"),
        ("upcycle embedded:nano-llama --expert embedded:tiny-llama --used 1", "llama of 2 blocks"),
        (
            "upcycle embedded:nano-llama --expert a --expert narrow",
            &format!("narrow & model.layers.0.mlp.gate_proj.weight & shape {both} & [32, "),
        ),
    ] {
        lopper(folder, &format!("{arguments} --no-eval --device cpu --out o"))?.refused(2, said);
    }
    let biased = std::env::current_dir()?.join("assets/fixtures/biased");
    lopper(folder, &format!("upcycle {} --no-eval --device cpu --out o", biased.display()))?
        .refused(2, "mlp.gate_proj.bias & without biases");
    Ok(())
}
