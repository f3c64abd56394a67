//! Gradients of a model's divergence from a teacher, against PyTorch's.

use std::collections::BTreeMap;
use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor};
use lopper::error::Error;
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;
use lopper::gpu::Options as GpuOptions;
use lopper::kernels::loss::divergence_grad::divergence_grad;
use lopper::model::{Checkpoint, Compute, Layers, Llama, Loss, Pass, Wanted, Weights, gradients};
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial};

const VOCABULARY: usize = 4096;
const SEQUENCES: usize = 2;
const LENGTH: usize = 48;

pub fn trials() -> Vec<Trial> {
    let name = |what: &str| format!("gradients::golden::distill::{what}");
    let gpu = |max_binding| {
        device(GpuOptions {
            max_binding,
            ..GpuOptions::default()
        })
    };
    vec![
        Trial::test(name("cpu"), || {
            golden(&Device::Cpu, DType::F32, usize::MAX, 1e-5)
        }),
        // A sequence at a time.
        gpu_trial(name("gpu"), move || {
            golden(&gpu(None)?, DType::F32, LENGTH, 1e-5)
        }),
        // Logits of a few tokens at a time.
        gpu_trial(name("split_head"), move || {
            golden(&gpu(Some(1 << 20))?, DType::F32, usize::MAX, 1e-5)
        }),
        gpu_trial(name("f16"), move || {
            let device = gpu(None)?;
            match device.capabilities().f16 {
                true => golden(&device, DType::F16, usize::MAX, 2e-3),
                false => Ok(()),
            }
        }),
        Trial::test(name("logits::cpu"), || of_logits(&Device::Cpu)),
        gpu_trial(name("logits::gpu"), move || of_logits(&gpu(None)?)),
        Trial::test("gradients::distill::bad_arguments", bad_arguments),
    ]
}

fn open(name: &str) -> Result<Safetensors, Failed> {
    let path = format!("assets/golden/{name}.safetensors");
    Ok(Safetensors::open(Source::open(Path::new(&path))?)?)
}

fn words(file: &Safetensors, name: &str) -> Result<Vec<u32>, Failed> {
    let tensor = file.get(name).ok_or_else(|| format!("no {name}"))?;
    let bytes = tensor.bytes.chunks_exact(4);
    Ok(bytes
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect())
}

fn floats(file: &Safetensors, name: &str) -> Result<Vec<f32>, Failed> {
    let words = words(file, name)?;
    Ok(words.into_iter().map(f32::from_bits).collect())
}

/// The length of a difference in lengths of what is expected.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::NAN;
    }
    let square = |v: f64| v * v;
    let pairs = found.iter().zip(expected);
    let off: f64 = pairs
        .map(|(a, b)| square(f64::from(*a) - f64::from(*b)))
        .sum();
    let total: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    (off / total).sqrt()
}

/// The loss and every gradient's norm, at two temperatures.
fn golden(device: &Device, activation: DType, tokens: usize, limit: f64) -> Result<(), Failed> {
    let file = open("distill")?;
    let ids = words(&file, "input_ids")?;
    let teacher = floats(&open("tiny-llama")?, "logits")?;
    let weights = Checkpoint::open("embedded:nano-llama")?;
    let model = Llama::load(device, &weights, |_, _| Ok(()))?;
    let compute = Compute::with(activation);
    let (mut wrong, mut worst) = (Vec::new(), 0.0f64);
    for temperature in [1.0, 2.0] {
        let logits = |tokens: std::ops::Range<usize>| {
            let values = &teacher[tokens.start * VOCABULARY..tokens.end * VOCABULARY];
            let host = HostTensor::from_f32(DType::F32, &[tokens.len(), VOCABULARY], values);
            device.upload(&host, "a teacher's logits")
        };
        let loss = Loss::Teacher {
            logits: &logits,
            temperature,
        };
        let mut sums = BTreeMap::<String, Vec<f32>>::new();
        let loss = gradients(
            Layers::Held(&model),
            &Pass { device, compute },
            &ids,
            SEQUENCES,
            Wanted {
                loss,
                tokens,
                ..Wanted::ALL
            },
            &mut |_, _| {},
            &mut |gradient| {
                let values = device.read(&gradient.values)?.to_f32();
                let sum = sums.entry(gradient.name).or_insert(vec![0.0; values.len()]);
                sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
                Ok(())
            },
        )?;
        let mut near = |what: &str, found: f64, known: &str| {
            let off = error(&[found as f32], &floats(&file, known)?);
            worst = worst.max(off);
            if off.is_nan() || off > limit {
                wrong.push(format!("T {temperature}, {what}: relative error {off:.3e}"));
            }
            Ok::<(), Failed>(())
        };
        near("loss", loss, &format!("forward_kl.T{temperature}"))?;
        if sums.len() != weights.specs().len() {
            return Err(format!("{} gradients", sums.len()).into());
        }
        for (name, values) in &sums {
            let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            near(
                name,
                square.sqrt(),
                &format!("gradnorm.T{temperature}.{name}"),
            )?;
        }
    }
    if std::env::var("LOPPER_SHOW_ERRORS").is_ok() {
        wrong.push(format!("worst {worst:.3e}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The gradient at the student's logits, of the first positions.
fn of_logits(device: &Device) -> Result<(), Failed> {
    let file = open("distill")?;
    let logits = |name: &str| {
        let values = floats(&open(name)?, "logits")?;
        let host = HostTensor::from_f32(DType::F32, &[SEQUENCES * LENGTH, VOCABULARY], &values);
        Ok::<_, Failed>(device.upload(&host, name)?)
    };
    let (teacher, student) = (logits("tiny-llama")?, logits("nano-llama")?);
    for temperature in [1.0f32, 2.0] {
        let weight = temperature * temperature / (SEQUENCES * LENGTH) as f32;
        let found = divergence_grad(device, &teacher, &student, temperature, weight, DType::F32)?;
        let found = device.read(&found)?.to_f32();
        let first = found.chunks_exact(LENGTH * VOCABULARY);
        let first: Vec<f32> = first
            .flat_map(|row| &row[..4 * VOCABULARY])
            .copied()
            .collect();
        let off = error(
            &first,
            &floats(&file, &format!("grad_logits.T{temperature}"))?,
        );
        assert!(off <= 2e-6, "T {temperature}: relative error {off:.3e}");
    }
    Ok(())
}

/// A temperature that divides nothing, and logits of another vocabulary.
fn bad_arguments() -> Result<(), Failed> {
    let device = &Device::Cpu;
    let model = Llama::load(device, &Checkpoint::open("embedded:nano-llama")?, |_, _| {
        Ok(())
    })?;
    let compute = Compute::with(DType::F32);
    for (temperature, width) in [(0.0, VOCABULARY), (f32::NAN, VOCABULARY), (1.0, 7)] {
        let logits = |tokens: std::ops::Range<usize>| {
            let host = HostTensor::zeros(DType::F32, &[tokens.len(), width]);
            device.upload(&host, "a teacher's logits")
        };
        let loss = Loss::Teacher {
            logits: &logits,
            temperature,
        };
        let found = gradients(
            Layers::Held(&model),
            &Pass { device, compute },
            &[1, 2, 3, 4],
            1,
            Wanted {
                loss,
                ..Wanted::ALL
            },
            &mut |_, _| {},
            &mut |_| Ok(()),
        );
        if !matches!(found, Err(Error::Argument { .. })) {
            return Err(format!("{temperature}, {width}: {found:?}").into());
        }
    }
    Ok(())
}
