//! Whole models against values from outside: PyTorch's logits, hidden states and perplexities.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::gpu::{Options, Tier};
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme};
use lopper::model::{Checkpoint, Compute, Config, Pass, Role, TensorSpec, Weights};
use lopper::tensor::{DType, Packed};

use crate::machine::{device, gpu_trial};
use crate::models::{MapWeights, load, pass, speech_perplexity};
use crate::numbers::{Known, Within, assert_close};

/// A model and the file of its values.
const MODELS: &[(&str, &str)] = &[
    ("embedded:tiny-llama", "assets/golden/tiny-llama.safetensors"),
    ("embedded:nano-llama", "assets/golden/nano-llama.safetensors"),
    ("embedded:tiny-mixtral", "assets/golden/tiny-mixtral.safetensors"),
    ("assets/fixtures/llama3-rope", "assets/fixtures/llama3-rope/expected.safetensors"),
    ("assets/fixtures/llama3-rope/model.gguf", "assets/fixtures/llama3-rope/expected.safetensors"),
    ("assets/fixtures/biased", "assets/fixtures/biased/expected.safetensors"),
    ("assets/fixtures/biased/model.gguf", "assets/fixtures/biased/expected.safetensors"),
    ("assets/fixtures/linear-rope", "assets/fixtures/linear-rope/expected.safetensors"),
    ("assets/fixtures/litellama", "assets/fixtures/litellama/expected.safetensors"),
];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for &(model, values) in MODELS {
        // Random weights make activations that no trained model has; f16 rounds them more coarsely.
        let half_limit = if model.starts_with("embedded:") { 2e-3 } else { 1e-2 };
        let name = model.trim_start_matches("embedded:").trim_start_matches("assets/fixtures/");
        let cpu = move |activation, limit| agrees(&Device::Cpu, model, values, activation, limit);
        trials
            .push(Trial::test(format!("golden::cpu::f32::{name}"), move || cpu(DType::F32, 1e-5)));
        trials.push(Trial::test(format!("golden::cpu::f16::{name}"), move || {
            cpu(DType::F16, half_limit)
        }));
        for (tier, activation, limit) in [
            (Tier::Baseline, DType::F32, 1e-5),
            (Tier::F16, DType::F32, 1e-5),
            (Tier::F16, DType::F16, half_limit),
        ] {
            let name = format!("golden::gpu-{}::{}::{name}", tier.name(), activation.name());
            trials.push(gpu_trial(name, move || {
                let device = device(Options { tier, checked: true, ..Options::default() })?;
                if activation == DType::F16 && !device.capabilities().f16 {
                    return Ok(());
                }
                agrees(&device, model, values, activation, limit)
            }));
        }
    }
    trials.push(gpu_trial("golden::gpu-split::f32::tiny-llama".into(), || {
        // Bindings too small for the embedding, the head and a batch of logits: everything is split by rows.
        let options = Options { max_binding: Some(192 << 10), checked: true, ..Options::default() };
        agrees(&device(options)?, MODELS[0].0, MODELS[0].1, DType::F32, 1e-5)
    }));
    trials.push(Trial::test("golden::old_style_config", old_style_config));
    trials.push(Trial::test("golden::perplexity::dense", || {
        quality("dense", "dense", &tiny()?, |figure, dense| (figure - dense).abs() <= 0.05)
    }));
    for &(name, grid, bits, fits) in ROUNDED {
        trials
            .push(Trial::test(format!("golden::perplexity::rtn {bits} bits {name}"), move || {
                rounded(grid, bits, fits)
            }));
    }
    trials
}

/// Logits and every hidden state, each within a relative L2 error of `limit`.
fn agrees(
    device: &Device,
    model: &str,
    values: &str,
    activation: DType,
    limit: f64,
) -> Result<(), Failed> {
    let weights = Checkpoint::open(model)?;
    let known = Known::open(values)?;
    let (ids, sequences) = (known.words("input_ids")?, known.shape("input_ids")?[0]);
    let compute = Compute::with(activation);
    let pass = Pass { device, compute };
    let (hidden, logits) = load(device, &weights)?.trace(&pass, &ids, sequences, true)?;
    assert_eq!(hidden.len(), weights.config().layers() + 1, "hidden states");
    let states = (0..).zip(&hidden).map(|(index, state)| (format!("hidden.{index}"), state));
    for (name, state) in states.chain([("logits".to_string(), &logits)]) {
        assert_close(&name, &state.to_f32(), &known.floats(&name)?, Within::Norm(limit));
    }
    Ok(())
}

/// The same folder with `rope_theta` and `rope_scaling` at the top level, as transformers 4 wrote them.
fn old_style_config() -> Result<(), Failed> {
    let read = |name: &str| -> Result<Config, Failed> {
        let path = Path::new("assets/fixtures/llama3-rope").join(name);
        Ok(Config::from_json(&path, &serde_json::from_slice(&std::fs::read(&path)?)?)?)
    };
    let (new, old) = (read("config.json")?, read("config-old.json")?);
    assert!(new == old, "{new:?} is not {old:?}");
    Ok(())
}

fn tiny() -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open("embedded:tiny-llama")?)
}

/// The perplexity of the first 8192 tokens of the 2026 speech, ctx 256, beside the entry of `quality.json`.
fn quality(
    what: &str,
    entry: &str,
    weights: &dyn Weights,
    fits: impl Fn(f64, f64) -> bool,
) -> Result<(), Failed> {
    let known: serde_json::Value =
        serde_json::from_slice(&std::fs::read("assets/golden/quality.json")?)?;
    let known = known[entry].as_f64().ok_or("the entry is in quality.json")?;
    let figure = speech_perplexity(&pass(&Device::Cpu), weights, 8192)?;
    assert!(fits(figure, known), "{what}: {figure}; the outside figure for {entry} is {known:.4}");
    Ok(())
}

/// Whether a figure is as good as an outside implementation's.
type Fits = fn(f64, f64) -> bool;

/// (grid, bits, whether the perplexity fits). The outside figures of the grids of GGUF's types stand in the golden README:
/// 60.84 and 71.5 for a float minimum, 61.5 and 74.7 for the signed maximum.
const ROUNDED: &[(&str, Grid, u32, Fits)] = &[
    ("zero-point", Grid::ZeroPoint, 4, |figure, known| (figure - known).abs() <= 0.3),
    ("zero-point", Grid::ZeroPoint, 3, |figure, known| (figure - known).abs() <= 0.6),
    ("absmax-symmetric", Grid::AbsmaxSymmetric, 4, |figure, known| (figure - known).abs() <= 0.3),
    ("absmax-symmetric", Grid::AbsmaxSymmetric, 3, |figure, known| (figure - known).abs() <= 1.5),
    ("float-min", Grid::FloatMin, 4, |figure, _| (60.0..=61.0).contains(&figure)),
    ("float-min", Grid::FloatMin, 3, |figure, _| (71.0..=72.0).contains(&figure)),
    ("signed-max", Grid::SignedMax, 4, |figure, _| (61.0..=61.8).contains(&figure)),
    ("signed-max", Grid::SignedMax, 3, |figure, _| (74.0..=75.2).contains(&figure)),
];

fn rounded(grid: Grid, bits: u32, fits: Fits) -> Result<(), Failed> {
    let symmetric = matches!(grid, Grid::AbsmaxSymmetric | Grid::SignedMax);
    let entry = format!("rtn w{bits} g32 {}", if symmetric { "sym" } else { "asym" });
    let scheme = Scheme { grid, bits, group_size: 32, ty: None };
    // Every linear layer of the blocks is quantized as it is loaded.
    let round = |spec: &TensorSpec, weight: Packed| match spec.role {
        Role::Linear => rtn(&Device::Cpu, &weight, scheme, &spec.name),
        _ => Ok(weight),
    };
    let what = format!("{bits} bits {}", grid.name());
    quality(&what, &entry, &MapWeights(&tiny()?, &round), fits)
}
