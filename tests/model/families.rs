//! Every family's block against PyTorch: random-weight models made with transformers (`assets/families/make.py`), with logits,
//! loss and the gradients of all parameters in float64; through Hugging Face folders and through GGUF.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::families::FAMILIES;
use lopper::gpu::{Options, Tier};
use lopper::model::{Checkpoint, Compute, Pass, Weights, export_gguf, export_hf, export_packed};
use lopper::tensor::DType;
use serde_json::{Map, Value};

use crate::machine::{device, gpu_trial, on_each};
use crate::models::load;
use crate::numbers::{Known, Within, assert_close};

/// Models of `assets/families`.
const MODELS: &[&str] = &["mistral", "qwen2", "qwen3", "qwen3-moe", "gemma3", "gemma3-capped"];

/// Sequences in each file of values.
const SEQUENCES: usize = 2;

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![Trial::test("families::each_has_a_fixture", each_has_a_fixture)];
    trials.extend(on_each("families::shares_as_they_are", shares_as_they_are));
    trials.push(Trial::test("families::dense_blocks_between", dense_blocks_between));
    for name in MODELS {
        let path = format!("assets/families/{name}");
        let cases = [
            ("f32", DType::F32, 1e-5),
            // Random weights make activations that no trained model has; f16 rounds them more coarsely.
            ("f16", DType::F16, 2e-3),
        ];
        for (label, activation, limit) in cases {
            let on_cpu = path.clone();
            trials.push(Trial::test(format!("families::cpu::{label}::{name}"), move || {
                logits_agree(&Device::Cpu, &on_cpu, &on_cpu, activation, limit)
            }));
            for tier in [Tier::Baseline, Tier::F16] {
                if tier == Tier::Baseline && activation == DType::F16 {
                    continue;
                }
                let on_gpu = path.clone();
                trials.push(gpu_trial(
                    format!("families::gpu-{}::{label}::{name}", tier.name()),
                    move || {
                        let device = checked(tier)?;
                        if activation == DType::F16 && !device.capabilities().f16 {
                            return Ok(());
                        }
                        logits_agree(&device, &on_gpu, &on_gpu, activation, limit)
                    },
                ));
            }
        }
        let (on_cpu, on_gpu) = (path.clone(), path.clone());
        trials.push(Trial::test(format!("families::gradients::cpu::{name}"), move || {
            gradients_agree(&Device::Cpu, &on_cpu)
        }));
        trials.push(gpu_trial(format!("families::gradients::gpu::{name}"), move || {
            gradients_agree(&checked(Tier::F16)?, &on_gpu)
        }));
        let round = path.clone();
        trials.push(Trial::test(format!("families::round_trips::{name}"), move || {
            round_trips(&round)
        }));
        trials
            .push(Trial::test(format!("families::old_config::{name}"), move || old_config(&path)));
    }
    trials
}

fn checked(tier: Tier) -> Result<Device, Failed> {
    device(Options { tier, checked: true, ..Options::default() })
}

/// A family without a model here would be claimed, not shown. The embedded models are of the plainest one, of experts and with an
/// encoder; `golden`, `gradients` and `encoders` look at them.
fn each_has_a_fixture() -> Result<(), Failed> {
    let mut shown = Vec::new();
    for name in ["nano-llama", "tiny-mixtral", "tiny-t5"] {
        shown.push(Checkpoint::open(&format!("embedded:{name}"))?.config().family.name);
    }
    // `sentence_encoders` looks at it.
    shown.push(Checkpoint::open("assets/fixtures/bert")?.config().family.name);
    for name in MODELS {
        let model = Checkpoint::open(&format!("assets/families/{name}"))?;
        shown.push(model.config().family.name);
    }
    for family in FAMILIES {
        assert!(shown.contains(&family.name), "{family:?} has no fixture");
    }
    Ok(())
}

fn values(fixture: &str) -> Result<Known, Failed> {
    Known::open(&format!("{fixture}/golden.safetensors"))
}

fn logits_agree(
    device: &Device,
    model: &str,
    fixture: &str,
    activation: DType,
    limit: f64,
) -> Result<(), Failed> {
    let known = values(fixture)?;
    let ids = known.words("input_ids")?;
    let compute = Compute::with(activation);
    let pass = Pass { device, compute };
    let model = load(device, &Checkpoint::open(model)?)?;
    let (_, logits) = model.trace(&pass, &ids, SEQUENCES, false)?;
    assert_close("logits", &logits.to_f32(), &known.floats("logits")?, Within::Norm(limit));
    Ok(())
}

fn gradients_agree(device: &Device, fixture: &str) -> Result<(), Failed> {
    let known = values(fixture)?;
    let ids = known.words("input_ids")?;
    let checkpoint = Checkpoint::open(fixture)?;
    let model = load(device, &checkpoint)?;
    let compute = Compute::F32;
    let pass = Pass { device, compute };
    let mut found = Vec::new();
    let loss = model.gradients(&pass, &ids, SEQUENCES, &mut |gradient| {
        let values = device.read(&gradient.values)?.to_f32();
        // Softmax takes no notice of what all keys have in common, so that the gradient of a key's bias is what position
        // encoding leaves of sums that cancel.
        let cancels = gradient.name.ends_with("k_proj.bias");
        assert_close(
            &gradient.name,
            &values,
            &known
                .floats(&format!("grad.{}", gradient.name))
                .expect("a gradient for every parameter"),
            Within::Norm(if cancels { 1e-4 } else { 1e-5 }),
        );
        found.push(gradient.name);
        Ok(())
    })?;
    let wanted = f64::from(known.floats("loss")?[0]);
    assert!(((loss - wanted) / wanted).abs() < 1e-5, "loss {loss}, PyTorch's is {wanted}");
    for spec in checkpoint.specs() {
        assert!(found.contains(&spec.name), "no gradient of {}", spec.name);
    }
    Ok(())
}

/// Written as GGUF, as a Hugging Face folder and as Lopper's own, and read again; from GGUF to a folder too. The same logits
/// come out each time, but for what f16 rounds: the weights are exact in it.
fn round_trips(fixture: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let parent = Checkpoint::open(fixture)?;
    let tokenizer = parent.tokenizer()?;
    let path = |name: &str| folder.path().join(name);
    let gguf = path("model.gguf");
    export_gguf(&gguf, &parent, &parent, Some(tokenizer.stored()))?;
    let again = Checkpoint::open(&gguf.to_string_lossy())?;
    for name in ["hf", "packed", "hf-of-gguf", "gguf-of-gguf"] {
        let target = path(name);
        let (from, config): (&Checkpoint, _) = match name {
            "hf" | "packed" => (&parent, parent.config_json()?),
            _ => (&again, again.config_json()?),
        };
        match name {
            "packed" => {
                std::fs::create_dir(&target)?;
                export_packed(&target, config, from, Some(tokenizer.stored()))?;
            }
            "gguf-of-gguf" => {
                export_gguf(&target.with_extension("gguf"), from, from, Some(tokenizer.stored()))?;
                let read = |path: &Path| Ok::<_, Failed>(std::fs::read(path)?);
                let twice = read(&target.with_extension("gguf"))?;
                assert!(read(&gguf)? == twice, "a GGUF file changes on the way through");
                continue;
            }
            _ => {
                std::fs::create_dir(&target)?;
                export_hf(&target, config, from, Some(tokenizer.stored()))?;
            }
        }
    }
    for name in ["model.gguf", "hf", "packed", "hf-of-gguf"] {
        let model = Checkpoint::open(&path(name).to_string_lossy())?;
        assert!(
            model.config().blocks == parent.config().blocks
                && model.config().ropes.len() == parent.config().ropes.len(),
            "{name}: {:?} of {:?}",
            model.config(),
            parent.config()
        );
        let text = path(name).to_string_lossy().into_owned();
        logits_agree(&Device::Cpu, &text, fixture, DType::F32, 1e-5)?;
    }
    Ok(())
}

/// A copy of a fixture with other values in its configuration.
fn configured(fixture: &str, change: &[(&str, Value)]) -> Result<tempfile::TempDir, Failed> {
    let folder = tempfile::tempdir()?;
    for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(Path::new(fixture).join(file), folder.path().join(file))?;
    }
    let text = std::fs::read(Path::new(fixture).join("config.json"))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&text)?;
    config.extend(change.iter().map(|(key, value)| ((*key).to_string(), value.clone())));
    std::fs::write(folder.path().join("config.json"), serde_json::to_string(&config)?)?;
    Ok(folder)
}

/// Where shares of experts do not add up to 1, an expert that a token does not go to has a part in its gradient all the same. A folder
/// says so; GGUF has no word for it.
fn shares_as_they_are(device: &Device) -> Result<(), Failed> {
    const FIXTURE: &str = "assets/families/qwen3-moe";
    let folder = configured(FIXTURE, &[("norm_topk_prob", Value::Bool(false))])?;
    let (known, parent) = (values(FIXTURE)?, Checkpoint::open(&folder.path().to_string_lossy())?);
    let (ids, pass) = (known.words("input_ids")?, Pass { device, compute: Compute::F32 });
    let model = load(device, &parent)?;
    let (_, logits) = model.trace(&pass, &ids, SEQUENCES, false)?;
    let wanted = known.floats("shares-as-they-are.logits")?;
    assert_close("logits", &logits.to_f32(), &wanted, Within::Norm(1e-5));
    let mut seen = 0;
    let loss = model.gradients(&pass, &ids, SEQUENCES, &mut |gradient| {
        let name = format!("shares-as-they-are.grad.{}", gradient.name);
        if let Ok(wanted) = known.floats(&name) {
            let values = device.read(&gradient.values)?.to_f32();
            assert_close(&name, &values, &wanted, Within::Norm(1e-5));
            seen += 1;
        }
        Ok(())
    })?;
    // Norms, of heads too, and routers.
    assert_eq!(seen, 2 * 5 + 1);
    let wanted = f64::from(known.floats("shares-as-they-are.loss")?[0]);
    assert!(((loss - wanted) / wanted).abs() < 1e-5, "loss {loss}, PyTorch's is {wanted}");

    let target = folder.path().join("hf");
    std::fs::create_dir(&target)?;
    export_hf(&target, parent.config_json()?, &parent, None)?;
    assert_eq!(Checkpoint::open(&target.to_string_lossy())?.config(), parent.config());
    let gguf = export_gguf(&folder.path().join("m.gguf"), &parent, &parent, None);
    let error = gguf.err().ok_or("it was written")?.to_string();
    assert!(error.contains("do not add up to 1"), "{error}");
    Ok(())
}

/// Blocks with one feed-forward between those with experts are refused by their key.
fn dense_blocks_between() -> Result<(), Failed> {
    for (key, value) in
        [("decoder_sparse_step", Value::from(2)), ("mlp_only_layers", Value::from(vec![1]))]
    {
        let folder = configured("assets/families/qwen3-moe", &[(key, value)])?;
        let error = Checkpoint::open(&folder.path().to_string_lossy()).err();
        let text = error.ok_or("it was opened")?.to_string();
        assert!(text.contains(key), "{text}");
    }
    Ok(())
}

/// The keys of transformers 4 say the same.
fn old_config(fixture: &str) -> Result<(), Failed> {
    let path = Path::new(fixture).join("config-old.json");
    let object: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path)?)?;
    let old = lopper::model::Config::from_json(&path, &object)?;
    let new = Checkpoint::open(fixture)?;
    assert_eq!(&old, new.config(), "config-old.json");
    Ok(())
}
