//! Backward products, and gradients of whole models: against PyTorch's, and against differences of losses.

use std::collections::HashMap;
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;
use lopper::gpu::Options as GpuOptions;
use lopper::kernels::matmul::backward;
use lopper::kernels::matrix::Matrix;
use lopper::model::{
    Checkpoint, Compute, Config, Layers, Llama, Pass, TensorSpec, Wanted, Weights,
};
use lopper::tensor::{DType, Packed, WeightFormat};

use crate::machine::gpu_trial;

/// Gradients by the names of their tensors.
type Named = Vec<(String, Vec<f32>)>;

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        gpu_trial("gradients::of_few_tokens".into(), || {
            product_gradients(20, DType::F32)
        }),
        gpu_trial("gradients::of_many_tokens".into(), || {
            product_gradients(70, DType::F32)
        }),
        gpu_trial("gradients::in_f16".into(), || {
            product_gradients(70, DType::F16)
        }),
        Trial::test("gradients::differences::biased", differences),
        Trial::test("gradients::broken_layer_is_named", broken_layer),
        Trial::test("gradients::in_parts::cpu", || {
            parts(&Device::Cpu, DType::F32)
        }),
        gpu_trial("gradients::in_parts::gpu".into(), || {
            parts(&crate::machine::device(GpuOptions::default())?, DType::F32)
        }),
        gpu_trial("gradients::in_parts::f16".into(), || {
            let device = crate::machine::device(GpuOptions::default())?;
            match device.capabilities().f16 {
                true => parts(&device, DType::F16),
                false => Ok(()),
            }
        }),
    ];
    for model in ["tiny-llama", "nano-llama"] {
        trials.push(Trial::test(
            format!("gradients::golden::cpu::f32::{model}"),
            move || golden(&Device::Cpu, model, DType::F32, 1e-5),
        ));
        for (activation, limit) in [(DType::F32, 1e-5), (DType::F16, 2e-3)] {
            let name = format!("gradients::golden::gpu::{}::{model}", activation.name());
            trials.push(gpu_trial(name, move || {
                let device = crate::machine::device(GpuOptions::default())?;
                if activation == DType::F16 && !device.capabilities().f16 {
                    return Ok(());
                }
                golden(&device, model, activation, limit)
            }));
        }
    }
    // Logits of a few tokens at a time.
    trials.push(gpu_trial(
        "gradients::golden::split_head::nano-llama".into(),
        || {
            let device = crate::machine::device(GpuOptions {
                max_binding: Some(1 << 20),
                ..GpuOptions::default()
            })?;
            golden(&device, "nano-llama", DType::F32, 1e-5)
        },
    ));
    trials
}

fn gradients(
    device: &Device,
    weights: &dyn Weights,
    ids: &[u32],
    sequences: usize,
    activation: DType,
) -> Result<(f64, Named), Failed> {
    let model = Llama::load(device, weights, |_, _| Ok(()))?;
    let compute = Compute::with(activation);
    let mut found = Vec::new();
    let loss = model.gradients(&Pass { device, compute }, ids, sequences, &mut |gradient| {
        found.push((gradient.name, device.read(&gradient.values)?.to_f32()));
        Ok(())
    })?;
    Ok((loss, found))
}

/// Every gradient and norm of one, and the loss, against values from outside.
fn golden(device: &Device, model: &str, activation: DType, limit: f64) -> Result<(), Failed> {
    let path = format!("assets/golden/{model}.safetensors");
    let file = Safetensors::open(Source::open(Path::new(&path))?)?;
    let known = |name: &str| -> Option<Vec<f32>> {
        let bytes = file.get(name)?.bytes.chunks_exact(4);
        Some(
            bytes
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        )
    };
    let ids = file.get("input_ids").ok_or("input_ids")?;
    let ids: Vec<u32> = ids
        .bytes
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let weights = Checkpoint::open(&format!("embedded:{model}"))?;
    let (loss, found) = gradients(device, &weights, &ids, 2, activation)?;
    let (mut wrong, mut whole, mut worst) = (Vec::new(), 0, 0.0f64);
    let mut near = |what: String, found: &[f32], expected: &[f32]| {
        let square = |v: f64| v * v;
        let pairs = found.iter().zip(expected);
        let error: f64 = pairs
            .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
            .sum();
        let total: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
        let error = (error / total).sqrt();
        worst = worst.max(error);
        if found.len() != expected.len() || error.is_nan() || error > limit {
            wrong.push(format!("{what}: relative error {error:.3e} > {limit:.0e}"));
        }
    };
    near("loss".into(), &[loss as f32], &known("loss").ok_or("loss")?);
    for (name, values) in &found {
        let norm = values
            .iter()
            .map(|v| f64::from(*v) * f64::from(*v))
            .sum::<f64>()
            .sqrt();
        let expected =
            known(&format!("gradnorm.{name}")).ok_or_else(|| format!("{name} has no norm"))?;
        near(format!("norm of {name}"), &[norm as f32], &expected);
        if let Some(expected) = known(&format!("grad.{name}")) {
            near(name.clone(), values, &expected);
            whole += 1;
        }
    }
    let count = weights.specs().len();
    if found.len() != count || whole != 10 {
        wrong.push(format!(
            "{} gradients of {count}, {whole} whole ones",
            found.len()
        ));
    }
    if std::env::var("LOPPER_SHOW_ERRORS").is_ok() {
        wrong.push(format!("worst {worst:.3e}"));
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}

/// Parts of gradients, sequence by sequence or some sequences at a time, from a model on the device or layer by layer, add
/// up to the whole, with activations kept for the way back or not; of a model with biases and one whose head is its
/// embedding.
fn parts(device: &Device, activation: DType) -> Result<(), Failed> {
    for model in ["assets/fixtures/biased", "embedded:nano-llama"] {
        let weights = Checkpoint::open(model)?;
        let mut random = Random::new(43);
        let vocabulary = weights.config().vocab_size as u32;
        let ids: Vec<u32> = (0..5 * 9).map(|_| random.below(vocabulary)).collect();
        let (loss, whole) = gradients(device, &weights, &ids, 5, activation)?;
        let held = Llama::load(device, &weights, |_, _| Ok(()))?;
        let compute = Compute::with(activation);
        let pass = Pass { device, compute };
        let streamed = Layers::Streamed(device, &weights);
        // A block of nano-llama, but not two.
        let some = 1 << 19;
        for (layers, by_sequence, tokens, keep) in [
            (Layers::Held(&held), true, usize::MAX, 0),
            (Layers::Held(&held), true, usize::MAX, u64::MAX),
            (Layers::Held(&held), false, 2 * 9, some),
            (Layers::Held(&held), false, usize::MAX, 0),
            (Layers::Held(&held), false, usize::MAX, some),
            (streamed, true, 2 * 9, u64::MAX),
            (streamed, false, usize::MAX, 0),
        ] {
            let wanted = Wanted {
                by_sequence,
                tokens,
                keep,
                ..Wanted::ALL
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
            let bound = if activation == DType::F16 { 2e-3 } else { 2e-6 };
            if (again - loss).abs() > bound * loss {
                return Err(format!("{what}: loss {again}, {loss} at once").into());
            }
            if sums.len() != whole.len() {
                return Err(format!("{what}: {} gradients of {}", sums.len(), whole.len()).into());
            }
            for (name, values) in &whole {
                let (count, sum) = &sums[name];
                let square = |v: f64| v * v;
                let total: f64 = values.iter().map(|v| square(f64::from(*v))).sum();
                let pairs = sum.iter().zip(values);
                let error: f64 = pairs.map(|(a, b)| square(a - f64::from(*b))).sum();
                // The gradient of keys' biases is nearly zero.
                if *count != wanted.parts(5, 9) || error.sqrt() > bound * total.sqrt() + 1e-7 {
                    let error = error.sqrt() / total.sqrt();
                    return Err(format!("{what}: {name}, {count} parts, off by {error:.2e}").into());
                }
            }
        }
    }
    Ok(())
}

/// What becomes of a tensor's values.
type Change<'a> = Box<dyn Fn(&mut [f32]) + Sync + 'a>;

/// A checkpoint with one tensor changed.
struct Changed<'a> {
    parent: &'a Checkpoint,
    name: String,
    change: Change<'a>,
}

impl Weights for Changed<'_> {
    fn config(&self) -> &Config {
        self.parent.config()
    }
    fn specs(&self) -> &[TensorSpec] {
        self.parent.specs()
    }
    fn load(&self, spec: &TensorSpec) -> lopper::error::Result<Packed> {
        let weight = self.parent.load(spec)?;
        if spec.name != self.name {
            return Ok(weight);
        }
        let mut values = weight.to_f32();
        (self.change)(&mut values);
        Ok(Packed::from_f32(&values, weight.rows, weight.columns))
    }
    fn format(&self, spec: &TensorSpec) -> lopper::error::Result<WeightFormat> {
        self.parent.format(spec)
    }
}

/// Of every tensor of a model with biases: the loss changes along the gradient as the gradient says.
fn differences() -> Result<(), Failed> {
    let parent = Checkpoint::open("assets/fixtures/biased")?;
    let vocabulary = parent.config().vocab_size as u32;
    let mut random = Random::new(41);
    let ids: Vec<u32> = (0..14).map(|_| random.below(vocabulary)).collect();
    let (_, found) = gradients(&Device::Cpu, &parent, &ids, 2, DType::F32)?;
    if found.len() != parent.specs().len() {
        return Err(format!("{} gradients of {}", found.len(), parent.specs().len()).into());
    }
    for (name, gradient) in found {
        let norm = gradient
            .iter()
            .map(|v| f64::from(*v).powi(2))
            .sum::<f64>()
            .sqrt();
        // Softmax does not see what all keys have in common: the gradient of their bias is nearly zero.
        if norm < 1e-4 {
            continue;
        }
        let step = 4e-3 / norm.max(0.2);
        let loss = |sign: f64| {
            let gradient = &gradient;
            let change = move |values: &mut [f32]| {
                for (value, g) in values.iter_mut().zip(gradient) {
                    *value += (sign * step * f64::from(*g) / norm) as f32;
                }
            };
            let changed = Changed {
                parent: &parent,
                name: name.clone(),
                change: Box::new(change),
            };
            gradients(&Device::Cpu, &changed, &ids, 2, DType::F32).map(|(loss, _)| loss)
        };
        let slope = (loss(1.0)? - loss(-1.0)?) / (2.0 * step);
        if (slope - norm).abs() > 0.02 * norm + 2e-4 {
            return Err(format!("{name}: slope {slope:.5}, norm of the gradient {norm:.5}").into());
        }
    }
    Ok(())
}

/// A weight that is no number is found out by its layer's name.
fn broken_layer() -> Result<(), Failed> {
    let parent = Checkpoint::open("embedded:nano-llama")?;
    let changed = Changed {
        parent: &parent,
        name: "model.layers.1.mlp.up_proj.weight".into(),
        change: Box::new(|values| values[5] = f32::NAN),
    };
    match gradients(&Device::Cpu, &changed, &[1, 2, 3, 4], 1, DType::F32) {
        Err(error)
            if error
                .message()
                .is_some_and(|m| m.contains("model.layers.1:")) =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}").into()),
    }
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
    let gpu = |max_binding| {
        crate::machine::device(GpuOptions {
            max_binding,
            ..GpuOptions::default()
        })
    };
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
                if !near(dx[t * columns + c] / 2.0, terms.sum()) {
                    return Err(format!("dX of token {t}, column {c}").into());
                }
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
                if !near(dw[r * columns + c], 2.0 * terms.sum::<f64>()) {
                    return Err(format!("dW of row {r}, column {c}").into());
                }
            }
        }
    }
    Ok(())
}
