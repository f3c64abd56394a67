//! Training against PyTorch's: what steps do to the loss, and what is learned in a tensor's place.

use libtest_mimic::{Failed, Trial};
use lopper::data::training::{Batch, Dataset, Examples};
use lopper::device::{Device, HostTensor};
use lopper::formats::peft::Pair;
use lopper::gpu::Options as GpuOptions;
use lopper::graph::Parameter as Tensor;
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme};
use lopper::model::{
    Adapters, Checkpoint, Compute, Divergence, Model, Pass, Role, Taught, Teacher, Weights,
};
use lopper::tensor::{DType, Packed};
use lopper::train::dense::{Dense, Vector};
use lopper::train::lora::adapt;
use lopper::train::rounded::Rounded;
use lopper::train::scales::Scales;
use lopper::train::{AdamW, Learner, Parameter, StateBits, StepOptions, mean_loss};
use serde_json::Value;

use crate::machine::{device, gpu_trial, on_each};
use crate::numbers::{Within, assert_close};
use crate::program::NANO;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    trials.extend(on_each("learning::adamw", adamw));
    trials.extend(on_each("learning::lora", lora));
    trials.extend(on_each("learning::scales_learn", scales_learn));
    trials.extend(on_each("learning::rounded_numbers_learn", rounded_numbers_learn));
    trials.push(gpu_trial("learning::in_f16".into(), in_f16));
    trials.push(gpu_trial("learning::state_in_8_bits".into(), state_in_8_bits));
    trials
}

/// The losses and gradients' norms that PyTorch has.
fn known(what: &str) -> Result<(f64, f64, Vec<f64>, Vec<f64>), Failed> {
    let text = std::fs::read("assets/fixtures/training/losses.json")?;
    let all: Value = serde_json::from_slice(&text)?;
    let list = |key: &str| -> Vec<f64> {
        all[what][key].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let number = |key: &str| all[what][key].as_f64().ok_or("a number");
    Ok((number("rate")?, number("decay")?, list("losses"), list("norms")))
}

/// The rows that PyTorch had, four a step, in their order.
fn examples(steps: usize) -> Result<Vec<Batch>, Failed> {
    let tokenizer = Checkpoint::open(NANO)?.tokenizer()?;
    let dataset = Dataset { length: 64, held_out: 0.0, shuffle: false, ..Dataset::default() };
    let examples = Examples::read(&dataset, &tokenizer, 0)?;
    let mut position = examples.start();
    let mut batches = Vec::new();
    for _ in 0..steps {
        let (batch, next) = examples.batch(&position, 4)?;
        batches.push(batch);
        position = next;
    }
    Ok(batches)
}

/// The model with every tensor to be learned.
fn whole(pass: &Pass<'_>) -> Result<(Model, Vec<Box<dyn Parameter>>), Failed> {
    let weights = Checkpoint::open(NANO)?;
    let device = pass.device;
    let mut model = Model::load(device, &weights, |_, _| Ok(()))?;
    let mut parameters: Vec<Box<dyn Parameter>> = Vec::new();
    for spec in weights.specs() {
        let format = weights.format(spec)?;
        if let (Role::Norm, Some(Tensor::Vector(values))) = (spec.role, model.tensor(&spec.name)) {
            parameters.push(Box::new(Vector::new(&spec.name, values, format)));
            continue;
        }
        let values = weights.load(spec)?.to_f32();
        let shape = (spec.rows, spec.columns);
        let dtype = pass.compute.activation;
        let dense = Dense::new(device, &spec.name, &values, shape, dtype, format)?;
        model.set(&spec.name, dense.matrix(device)?);
        parameters.push(Box::new(dense));
    }
    Ok((model, parameters))
}

fn options(rate: f64, tokens: usize) -> StepOptions<'static> {
    StepOptions {
        rate,
        next_tokens: 1.0,
        teacher: None,
        hidden: None,
        balance: 0.0,
        tokens,
        activation_budget: 1 << 30,
        dropout_seed: None,
    }
}

/// Losses and norms of so many steps.
fn course(
    pass: &Pass<'_>,
    learner: &mut Learner,
    batches: &[Batch],
    options: StepOptions<'_>,
) -> Result<(Vec<f64>, Vec<f64>), Failed> {
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for batch in batches {
        let outcome = learner.step(pass, batch, options)?.finish(pass.device)?;
        assert!(outcome.finite, "{outcome:?}");
        losses.push(outcome.loss);
        norms.push(outcome.norm);
    }
    Ok((losses, norms))
}

/// Steps that are run here: a software adapter takes its time, and a wrong step shows in the next one.
fn steps(device: &Device) -> usize {
    if device.gpu().is_some() { 12 } else { 100 }
}

fn adamw(device: &Device) -> Result<(), Failed> {
    let pass = Pass { device, compute: Compute::F32 };
    let (rate, decay, losses, norms) = known("full")?;
    let (model, parameters) = whole(&pass)?;
    let settings = AdamW { decay, ..AdamW::default() };
    let mut learner = Learner::new(device, model, parameters, settings)?;
    let batches = examples(steps(device))?;
    // Two sequences at a time: gradients are sums of parts.
    let found = course(&pass, &mut learner, &batches, options(rate, 128))?;
    assert_close("losses", &found.0, &losses[..batches.len()], Within::Each(2e-4));
    assert_close("norms", &found.1, &norms[..batches.len()], Within::Each(1e-2));
    Ok(())
}

/// Products in f16, which must not show in the loss's second digit behind the point.
fn in_f16() -> Result<(), Failed> {
    let device = &device(GpuOptions::default())?;
    if !device.capabilities().f16 {
        return Ok(());
    }
    let pass = Pass { device, compute: Compute::F16 };
    let (rate, decay, losses, _) = known("full")?;
    let (model, parameters) = whole(&pass)?;
    let settings = AdamW { decay, ..AdamW::default() };
    let mut learner = Learner::new(device, model, parameters, settings)?;
    let batches = examples(8)?;
    let found = course(&pass, &mut learner, &batches, options(rate, usize::MAX))?;
    assert_close("losses", &found.0, &losses[..8], Within::Each(2e-3));
    Ok(())
}

/// Moments in 8 bits lead nearly the same way.
fn state_in_8_bits() -> Result<(), Failed> {
    let device = &device(GpuOptions::default())?;
    let pass = Pass { device, compute: Compute::F32 };
    let (rate, decay, losses, _) = known("full")?;
    let (model, parameters) = whole(&pass)?;
    let settings = AdamW { decay, state: StateBits::Eight, ..AdamW::default() };
    let mut learner = Learner::new(device, model, parameters, settings)?;
    let batches = examples(8)?;
    let found = course(&pass, &mut learner, &batches, options(rate, usize::MAX))?;
    assert_close("losses", &found.0, &losses[..8], Within::Each(1e-2));
    Ok(())
}

fn lora(device: &Device) -> Result<(), Failed> {
    let pass = Pass { device, compute: Compute::F32 };
    let (rate, _, losses, norms) = known("lora")?;
    let weights = Checkpoint::open(NANO)?;
    let mut model = Model::load(device, &weights, |_, _| Ok(()))?;
    let adapters = Adapters::read("assets/fixtures/peft".as_ref())?;
    let mut parameters = Vec::new();
    let begin = |pair: &Pair, model: &mut Model| adapt(device, model, &adapters, pair, 0.0);
    for pair in &adapters.pairs {
        parameters.extend(begin(pair, &mut model)?);
    }
    let mut learner = Learner::new(device, model, parameters, AdamW::default())?;
    let batches = examples(steps(device))?;
    // What is held out goes through the graph that computes, and gives the same loss as the one that records.
    let (loss, count) = mean_loss(learner.model(), &pass, &batches[..1])?;
    assert_eq!(count, 4 * 63);
    assert_close("loss", &[loss], &losses[..1], Within::Each(1e-5));
    let found = course(&pass, &mut learner, &batches, options(rate, usize::MAX))?;
    assert_close("losses", &found.0, &losses[..batches.len()], Within::Each(1e-3));
    assert_close("norms", &found.1, &norms[..batches.len()], Within::Each(2e-2));
    Ok(())
}

/// What is learned in the place of a tensor, by its name, its values and what they are rounded to.
type LearnTensor<'l> =
    dyn Fn(&str, &[f32], &Packed, &mut Model) -> Result<Box<dyn Parameter>, Failed> + 'l;

/// Losses, and tensors as they were at first and in the end.
type Learned = (Vec<f64>, Vec<(Packed, Packed)>);

/// The loss of a model whose blocks' matrices are learned as `learn` says, from the model as it was, before and after a few
/// steps, and the tensors in the end.
fn from_itself(
    device: &Device,
    scheme: Scheme,
    rate: f64,
    learn: &LearnTensor<'_>,
) -> Result<Learned, Failed> {
    let pass = Pass { device, compute: Compute::F32 };
    let weights = Checkpoint::open(NANO)?;
    let teacher = Model::load(device, &weights, |_, _| Ok(()))?;
    let mut model = Model::load(device, &weights, |_, _| Ok(()))?;
    let (mut parameters, mut rounded) = (Vec::new(), Vec::new());
    let layers = weights.specs().iter().filter(|spec| spec.role == Role::Linear);
    let layers: Vec<_> = layers.collect();
    for spec in &layers {
        let values = weights.load(spec)?;
        let packed = rtn(device, &values, scheme, &spec.name)?;
        parameters.push(learn(&spec.name, &values.to_f32(), &packed, &mut model)?);
        rounded.push(packed);
    }
    let mut learner = Learner::new(device, model, parameters, AdamW::default())?;
    learner.update(device)?;
    let batch = &examples(1)?[0];
    let cache = lopper::model::Cache::single_layer(device, teacher.config(), 4, 64, Compute::F32)?;
    let normed = teacher.hidden(&pass, &batch.ids, &cache)?;
    let logits = device.read(&teacher.head(&pass, &normed, 0..256)?)?.to_f32();
    let width = logits.len() / 256;
    let says = |tokens: &[u32]| {
        let row = |token: &u32| &logits[*token as usize * width..][..width];
        let values: Vec<f32> = tokens.iter().flat_map(row).copied().collect();
        let host = HostTensor::from_f32(DType::F32, &[tokens.len(), width], &values);
        device.upload(&host, "a teacher's logits").map(Taught::Logits)
    };
    let divergence = Divergence::Forward;
    let teacher = Some(Teacher { says: &says, divergence, temperature: 1.0, weight: 1.0 });
    let options = StepOptions { next_tokens: 0.0, teacher, ..options(rate, usize::MAX) };
    let batches = vec![batch.clone(); 6];
    let (losses, _) = course(&pass, &mut learner, &batches, options)?;
    let mut pairs = Vec::new();
    for ((spec, parameter), before) in layers.iter().zip(learner.parameters()).zip(rounded) {
        pairs.push((before, parameter.packed(device, spec)?));
    }
    Ok((losses, pairs))
}

/// Codes stay, scales change, and the model comes nearer to what it was.
fn scales_learn(device: &Device) -> Result<(), Failed> {
    for grid in [Grid::FloatMin, Grid::SignedMax] {
        let scheme = Scheme { grid, bits: 3, group_size: 32, ty: None };
        let (losses, pairs) = from_itself(device, scheme, 1e-3, &|name, _, packed, model| {
            let matrix = lopper::kernels::matrix::Matrix::upload(device, packed, name)?;
            model.set(name, matrix.clone());
            Ok(Box::new(Scales::new(device, name, packed, matrix)?))
        })?;
        assert!(losses[5] < 0.8 * losses[0], "{grid:?}: {losses:?}");
        for (before, after) in pairs {
            assert!(before.codes == after.codes, "{grid:?}: codes stay");
            assert!(before.scales != after.scales, "{grid:?}: scales change");
        }
    }
    Ok(())
}

/// Numbers are learned through their rounding: codes change too.
fn rounded_numbers_learn(device: &Device) -> Result<(), Failed> {
    for (grid, bits, rate) in [(Grid::SignedMax, 2, 2e-3), (Grid::Ternary, 2, 2e-3)] {
        let scheme = Scheme { grid, bits, group_size: 32, ty: None };
        let (losses, pairs) = from_itself(device, scheme, rate, &|name, values, packed, _| {
            Ok(Box::new(Rounded::new(device, name, values, packed)?))
        })?;
        assert!(losses[5] < 0.7 * losses[0], "{grid:?}: {losses:?}");
        let changed = pairs.iter().filter(|(before, after)| before.codes != after.codes).count();
        assert_eq!(changed, pairs.len(), "{grid:?}: codes change");
    }
    Ok(())
}
