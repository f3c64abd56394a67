//! Gradients of a model's divergence from a teacher, against PyTorch's.

use std::collections::BTreeMap;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor};
use lopper::error::Error;
use lopper::gpu::Options as GpuOptions;
use lopper::kernels::loss::distil::{Divergence, distil};
use lopper::model::{
    BackwardOptions, Checkpoint, Compute, Loss, Pass, Taught, WeightSource, Weights, gradients,
};
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial, on_each};
use crate::models::load;
use crate::numbers::{Known, Within, assert_close};

const VOCABULARY: usize = 4096;
const SEQUENCES: usize = 2;
const LENGTH: usize = 48;

pub fn trials() -> Vec<Trial> {
    let name = |what: &str| format!("gradients::golden::distill::{what}");
    let gpu = |max_binding| device(GpuOptions { max_binding, ..GpuOptions::default() });
    let mut trials = vec![
        Trial::test(name("cpu"), || golden(&Device::Cpu, DType::F32, usize::MAX, 1e-5)),
        // A sequence at a time.
        gpu_trial(name("gpu"), move || golden(&gpu(None)?, DType::F32, LENGTH, 1e-5)),
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
    ];
    trials.extend(on_each(&name("logits"), of_logits));
    trials.extend(suite!("gradients::distill": bad_arguments));
    trials
}

fn open(name: &str) -> Result<Known, Failed> {
    Known::open(&format!("assets/golden/{name}.safetensors"))
}

/// The loss and every gradient's norm, at two temperatures.
fn golden(device: &Device, activation: DType, tokens: usize, limit: f64) -> Result<(), Failed> {
    let file = open("distill")?;
    let ids = file.words("input_ids")?;
    let teacher = open("tiny-llama")?.floats("logits")?;
    let weights = Checkpoint::open("embedded:nano-llama")?;
    let model = load(device, &weights)?;
    let compute = Compute::with(activation);
    for temperature in [1.0, 2.0] {
        let logits = |tokens: &[u32]| {
            let row = |token: &u32| &teacher[*token as usize * VOCABULARY..][..VOCABULARY];
            let values: Vec<f32> = tokens.iter().flat_map(row).copied().collect();
            let host = HostTensor::from_f32(DType::F32, &[tokens.len(), VOCABULARY], &values);
            device.upload(&host, "a teacher's logits").map(Taught::Logits)
        };
        let loss = Loss::teacher(&logits, temperature);
        let mut sums = BTreeMap::<String, Vec<f32>>::new();
        let loss = gradients(
            WeightSource::Resident(&model),
            &Pass { device, compute },
            &ids,
            SEQUENCES,
            BackwardOptions { loss, tokens, ..BackwardOptions::ALL },
            &mut |_, _| {},
            &mut |gradient| {
                let values = device.read(&gradient.values)?.to_f32();
                let sum = sums.entry(gradient.name).or_insert(vec![0.0; values.len()]);
                sum.iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
                Ok(())
            },
        )?;
        let near = |what: &str, found: f64, known: &str| -> Result<(), Failed> {
            let what = format!("T {temperature}, {what}");
            assert_close(&what, &[found], &file.floats(known)?, Within::Norm(limit));
            Ok(())
        };
        near("loss", loss, &format!("forward_kl.T{temperature}"))?;
        assert_eq!(sums.len(), weights.specs().len(), "gradients");
        for (name, values) in &sums {
            let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
            let known = format!("gradnorm.T{temperature}.{name}");
            near(name, square.sqrt(), &known)?;
        }
    }
    Ok(())
}

/// The gradient at the student's logits, of the first positions.
fn of_logits(device: &Device) -> Result<(), Failed> {
    let file = open("distill")?;
    let logits = |name: &str| {
        let values = open(name)?.floats("logits")?;
        let host = HostTensor::from_f32(DType::F32, &[SEQUENCES * LENGTH, VOCABULARY], &values);
        Ok::<_, Failed>(device.upload(&host, name)?)
    };
    let (teacher, student) = (logits("tiny-llama")?, logits("nano-llama")?);
    for temperature in [1.0f32, 2.0] {
        let weight = temperature * temperature / (SEQUENCES * LENGTH) as f32;
        let rows = HostTensor::from_u32(&[SEQUENCES * LENGTH], &[1; SEQUENCES * LENGTH]);
        let rows = device.upload(&rows, "rows")?;
        let forward = Divergence::Forward;
        let (teacher, student) = (&teacher, &student);
        let (found, _) =
            distil(device, forward, teacher, student, &rows, temperature, weight, DType::F32)?;
        let found = device.read(&found)?.to_f32();
        let first = found.chunks_exact(LENGTH * VOCABULARY);
        let first: Vec<f32> = first.flat_map(|row| &row[..4 * VOCABULARY]).copied().collect();
        let known = file.floats(&format!("grad_logits.T{temperature}"))?;
        assert_close(&format!("T {temperature}"), &first, &known, Within::Norm(2e-6));
    }
    Ok(())
}

/// A temperature that divides nothing, and logits of another vocabulary.
fn bad_arguments() -> Result<(), Failed> {
    let device = &Device::Cpu;
    let model = load(device, &Checkpoint::open("embedded:nano-llama")?)?;
    let compute = Compute::with(DType::F32);
    for (temperature, width) in [(0.0, VOCABULARY), (f32::NAN, VOCABULARY), (1.0, 7)] {
        let logits = |tokens: &[u32]| {
            let host = HostTensor::zeros(DType::F32, &[tokens.len(), width]);
            device.upload(&host, "a teacher's logits").map(Taught::Logits)
        };
        let loss = Loss::teacher(&logits, temperature);
        let found = gradients(
            WeightSource::Resident(&model),
            &Pass { device, compute },
            &[1, 2, 3, 4],
            1,
            BackwardOptions { loss, ..BackwardOptions::ALL },
            &mut |_, _| {},
            &mut |_| Ok(()),
        );
        let refused = matches!(found, Err(Error::Argument { .. }));
        assert!(refused, "{temperature}, {width}: {found:?}");
    }
    Ok(())
}
