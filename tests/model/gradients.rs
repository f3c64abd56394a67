//! Backward products, and gradients of whole models: against PyTorch's, and against differences of losses.

use std::collections::HashMap;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::error::Result as Outcome;
use lopper::gpu::Options as GpuOptions;
use lopper::kernels::matmul::backward;
use lopper::kernels::matrix::Matrix;
use lopper::model::{
    BackwardOptions, Checkpoint, Compute, Pass, TensorSpec, WeightSource, Weights,
};
use lopper::tensor::{DType, Packed};

use crate::machine::{device, gpu_trial, on_each};
use crate::models::{MapWeights, load};
use crate::numbers::{Known, Within, assert_close};

/// Gradients by the names of their tensors.
type Named = Vec<(String, Vec<f32>)>;

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("gradients::differences": biased);
    trials.extend(suite!("gradients": broken_layer_is_named));
    trials.extend(on_each("gradients::in_parts", |device| parts(device, DType::F32)));
    trials.extend([
        gpu_trial("gradients::of_few_tokens".into(), || product_gradients(20, DType::F32)),
        gpu_trial("gradients::of_many_tokens".into(), || product_gradients(70, DType::F32)),
        gpu_trial("gradients::in_f16".into(), || product_gradients(70, DType::F16)),
        gpu_trial("gradients::in_parts::f16".into(), || {
            let device = device(GpuOptions::default())?;
            match device.capabilities().f16 {
                true => parts(&device, DType::F16),
                false => Ok(()),
            }
        }),
    ]);

    for model in ["tiny-llama", "nano-llama", "tiny-mixtral"] {
        trials.push(Trial::test(format!("gradients::golden::cpu::f32::{model}"), move || {
            golden(&Device::Cpu, model, DType::F32, 1e-5)
        }));
        for (activation, limit) in [(DType::F32, 1e-5), (DType::F16, 2e-3)] {
            let name = format!("gradients::golden::gpu::{}::{model}", activation.name());
            trials.push(gpu_trial(name, move || {
                let device = device(GpuOptions::default())?;
                if activation == DType::F16 && !device.capabilities().f16 {
                    return Ok(());
                }
                golden(&device, model, activation, limit)
            }));
        }
    }
    // Logits of a few tokens at a time.
    trials.push(gpu_trial("gradients::golden::split_head::nano-llama".into(), || {
        let device = device(GpuOptions { max_binding: Some(1 << 20), ..GpuOptions::default() })?;
        golden(&device, "nano-llama", DType::F32, 1e-5)
    }));
    trials
}

fn norm(values: &[f32]) -> f64 {
    let squares = values.iter().map(|v| f64::from(*v).powi(2));
    squares.sum::<f64>().sqrt()
}

fn gradients(
    device: &Device,
    weights: &dyn Weights,
    ids: &[u32],
    sequences: usize,
    activation: DType,
) -> Result<(f64, Named), Failed> {
    let model = load(device, weights)?;
    let compute = Compute::with(activation);
    let mut found = Vec::new();
    let loss = model.gradients(&Pass { device, compute }, ids, sequences, &mut |gradient| {
        found.push((gradient.name, device.read(&gradient.values)?.to_f32()));
        Ok(())
    })?;
    Ok((loss, found))
}

/// Every gradient's norm, ten whole gradients (of a model with experts, without theirs, eight), and the loss, against values from
/// outside.
fn golden(device: &Device, model: &str, activation: DType, limit: f64) -> Result<(), Failed> {
    let known = Known::open(&format!("assets/golden/{model}.safetensors"))?;
    let within = Within::Norm(limit);
    let weights = Checkpoint::open(&format!("embedded:{model}"))?;
    let ids = known.words("input_ids")?;
    let (loss, found) = gradients(device, &weights, &ids, 2, activation)?;
    assert_close("loss", &[loss], &known.floats("loss")?, within);
    let mut whole = 0;
    for (name, values) in &found {
        let expected = known.floats(&format!("gradnorm.{name}"))?;
        assert_close(&format!("norm of {name}"), &[norm(values)], &expected, within);
        if let Ok(expected) = known.floats(&format!("grad.{name}")) {
            assert_close(name, values, &expected, within);
            whole += 1;
        }
    }
    let of_experts = weights.specs().iter().any(|spec| spec.slot.expert().is_some());
    let wanted = (weights.specs().len(), if of_experts { 8 } else { 10 });
    assert_eq!((found.len(), whole), wanted, "gradients, whole ones");
    Ok(())
}

/// Parts of gradients, sequence by sequence or some sequences at a time, from a model on the device or layer by layer, add
/// up to the whole, with activations kept for the way back or not; of a model with biases and one whose head is its
/// embedding.
fn parts(device: &Device, activation: DType) -> Result<(), Failed> {
    for model in ["assets/fixtures/biased", "embedded:nano-llama", "embedded:tiny-mixtral"] {
        let weights = Checkpoint::open(model)?;
        let mut random = Random::new(43);
        let vocabulary = weights.config().vocab_size as u32;
        let ids: Vec<u32> = (0..5 * 9).map(|_| random.below(vocabulary)).collect();
        let (loss, whole) = gradients(device, &weights, &ids, 5, activation)?;
        let held = load(device, &weights)?;
        let compute = Compute::with(activation);
        let pass = Pass { device, compute };
        let streamed = WeightSource::Streamed(device, &weights);
        // A block of nano-llama, but not two.
        let some = 1 << 19;
        for (layers, by_sequence, tokens, keep) in [
            (WeightSource::Resident(&held), true, usize::MAX, 0),
            (WeightSource::Resident(&held), true, usize::MAX, u64::MAX),
            (WeightSource::Resident(&held), false, 2 * 9, some),
            (WeightSource::Resident(&held), false, usize::MAX, 0),
            (WeightSource::Resident(&held), false, usize::MAX, some),
            (streamed, true, 2 * 9, u64::MAX),
            (streamed, false, usize::MAX, 0),
        ] {
            let wanted = BackwardOptions {
                by_sequence,
                tokens,
                activation_budget: keep,
                ..BackwardOptions::ALL
            };
            let what = format!("{model}, {layers:?}, {by_sequence}, {tokens}, {keep}");
            let mut sums: HashMap<String, (usize, Vec<f64>)> = HashMap::new();
            let again = lopper::model::gradients(
                layers,
                &pass,
                &ids,
                5,
                wanted,
                &mut |_, _| {},
                &mut |gradient| {
                    let values = device.read(&gradient.values)?.to_f32();
                    let fresh = || (0, vec![0.0; values.len()]);
                    let sum = sums.entry(gradient.name).or_insert_with(fresh);
                    assert_eq!(sum.0, gradient.part, "{what}: parts come in order");
                    sum.0 += 1;
                    let pairs = sum.1.iter_mut().zip(values);
                    pairs.for_each(|(sum, value)| *sum += f64::from(value));
                    Ok(())
                },
            )?;
            // Slopes of a router's logits are differences of its experts'.
            let of_experts = weights.config().experts.is_some();
            let bound = match activation {
                DType::F16 => 2e-3,
                _ if of_experts => 4e-6,
                _ => 2e-6,
            };
            let close = (again - loss).abs() <= bound * loss;
            assert!(close, "{what}: loss {again}, {loss} at once");
            assert_eq!(sums.len(), whole.len(), "{what}: gradients");
            for (name, values) in &whole {
                let (count, sum) = &sums[name];
                assert_eq!(*count, wanted.parts(5, 9), "{what}: parts of {name}");
                // The gradient of keys' biases is nearly zero.
                let limit = bound + 1e-7 / norm(values);
                assert_close(&format!("{what}: {name}"), sum, values, Within::Norm(limit));
            }
        }
    }
    Ok(())
}

/// A checkpoint with one tensor's values changed.
fn changed<'a>(
    name: &'a str,
    change: impl Fn(&mut [f32]) + 'a,
) -> impl Fn(&TensorSpec, Packed) -> Outcome<Packed> + 'a {
    move |spec, weight| {
        if spec.name != name {
            return Ok(weight);
        }
        let mut values = weight.to_f32();
        change(&mut values);
        Ok(Packed::from_f32(&values, weight.rows, weight.columns))
    }
}

/// Of every tensor of a model with biases: the loss changes along the gradient as the gradient says.
fn biased() -> Result<(), Failed> {
    let parent = Checkpoint::open("assets/fixtures/biased")?;
    let vocabulary = parent.config().vocab_size as u32;
    let mut random = Random::new(41);
    let ids: Vec<u32> = (0..14).map(|_| random.below(vocabulary)).collect();
    let (_, found) = gradients(&Device::Cpu, &parent, &ids, 2, DType::F32)?;
    assert_eq!(found.len(), parent.specs().len(), "gradients");
    for (name, gradient) in found {
        let norm = norm(&gradient);
        // Softmax does not see what all keys have in common: the gradient of their bias is nearly zero.
        if norm < 1e-4 {
            continue;
        }
        let step = 4e-3 / norm.max(0.2);
        let loss = |sign: f64| {
            let map = changed(&name, |values| {
                for (value, g) in values.iter_mut().zip(&gradient) {
                    *value += (sign * step * f64::from(*g) / norm) as f32;
                }
            });
            let changed = MapWeights(&parent, &map);
            gradients(&Device::Cpu, &changed, &ids, 2, DType::F32).map(|(loss, _)| loss)
        };
        let slope = (loss(1.0)? - loss(-1.0)?) / (2.0 * step);
        let close = (slope - norm).abs() <= 0.02 * norm + 2e-4;
        assert!(close, "{name}: slope {slope:.5}, norm of the gradient {norm:.5}");
    }
    Ok(())
}

/// A weight that is no number is found out by its layer's name.
fn broken_layer_is_named() -> Result<(), Failed> {
    let parent = Checkpoint::open("embedded:nano-llama")?;
    let name = "model.layers.1.mlp.up_proj.weight";
    let map = changed(name, |values| values[5] = f32::NAN);
    let changed = MapWeights(&parent, &map);
    let refused = gradients(&Device::Cpu, &changed, &[1, 2, 3, 4], 1, DType::F32);
    let named = |error: &Failed| error.message().is_some_and(|m| m.contains("model.layers.1:"));
    assert!(refused.as_ref().is_err_and(named), "{refused:?}");
    Ok(())
}

/// The gradients of a product, of a weight in several bindings and in many small calls, against plain sums in f64.
fn product_gradients(tokens: usize, dtype: DType) -> Result<(), Failed> {
    let (rows, columns) = (608, 64);
    let weight = Packed::from_f32(&Random::new(21).values(rows * columns, 1.0), rows, columns);
    // With gradients in f16 the weight may be rounded: 2^-11 of it, of 608 sums of 0.3 on average.
    let dense = weight.to_f32();
    let bound = if dtype == DType::F16 { 1e-2 } else { 2e-4 };
    let mut random = Random::new(23);
    let mut values = |count: usize| -> Vec<f32> {
        let values = random.values(count, 1.0);
        HostTensor::from_f32(dtype, &[count], &values).to_f32()
    };
    let (grad, x) = (values(tokens * rows), values(tokens * columns));
    let gpu = |max_binding| device(GpuOptions { max_binding, ..GpuOptions::default() });
    let mut devices = vec![(Device::Cpu, true), (gpu(None)?, true)];
    if tokens < 64 {
        // Only a third of the weight fits a binding of this one.
        devices.push((gpu(Some(50 << 10))?, false));
    }
    for (device, whole) in devices {
        let matrix = Matrix::upload(&device, &weight, "w")?;
        let on_device = |values: &[f32], width: usize| {
            let host = HostTensor::from_f32(dtype, &[values.len() / width, width], values);
            device.upload(&host, "values")
        };
        let (dy, input) = (on_device(&grad, rows)?, on_device(&x, columns)?);
        let once = backward::input(&device, &dy, &matrix, None)?;
        let twice = backward::input(&device, &dy, &matrix, Some(once))?;
        let dx = device.read(&twice)?.to_f32();
        let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() < bound;
        let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
        for c in 0..columns {
            for t in 0..tokens {
                let terms = (0..rows).map(|r| product(grad[t * rows + r], dense[r * columns + c]));
                let close = near(dx[t * columns + c] / 2.0, terms.sum());
                assert!(close, "dX of token {t}, column {c}");
            }
        }
        if !whole {
            continue;
        }
        let dw = device.allocate(DType::F32, &[rows, columns], "dw")?;
        let mut turned = None;
        backward::weight(&device, &dy, &input, &mut turned, &dw, false)?;
        backward::weight(&device, &dy, &input, &mut turned, &dw, true)?;
        let dw = device.read(&dw)?.to_f32();
        for c in 0..columns {
            for r in 0..rows {
                let terms = (0..tokens).map(|t| product(grad[t * rows + r], x[t * columns + c]));
                let close = near(dw[r * columns + c], 2.0 * terms.sum::<f64>());
                assert!(close, "dW of row {r}, column {c}");
            }
        }
    }
    Ok(())
}
