//! Products in integers: what the rounding of activations loses, on real activations.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;
use lopper::gpu::Options;
use lopper::kernels::matmul::{Destination, Input, linear};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::quantize::activations::{Rounding, activations};
use lopper::kernels::weights;
use lopper::model::{Checkpoint, Compute, Llama, Pass};
use lopper::tensor::{BLOCK, DType, WEIGHT_TYPES, WeightFormat, weight_type};

use crate::cli::lopper;
use crate::machine::{device, gpu_trial};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("integers::rounding_of_activations", rounding),
        Trial::test("integers::formats_by_label", labels),
        gpu_trial("integers::a_model_in_every_precision".into(), model),
        gpu_trial("integers::split_by_rows".into(), split_by_rows),
        Trial::test("integers::the_cpu_has_none", cpu_has_none),
    ]
}

/// Squared error over squared size.
fn nmse(found: &[f64], exact: &[f32]) -> f64 {
    let pairs = found.iter().zip(exact);
    let error: f64 = pairs.map(|(a, b)| (a - f64::from(*b)).powi(2)).sum();
    error / exact.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()
}

/// What integers of `planes` bytes stand for: `kernels/quantize/activations` tells the layout.
fn rounded(x: &HostTensor, columns: usize, rounding: Rounding) -> Result<Vec<f64>, Failed> {
    let device = Device::Cpu;
    let (span, planes) = (rounding.span as usize * BLOCK, rounding.bytes as usize);
    let (tokens, blocks) = (x.to_f32().len() / columns, columns.div_ceil(span));
    let x = device.upload(x, "x")?;
    let integers = activations(&device, &x, 0..tokens, columns, rounding)?;
    let codes = device.read(&integers.codes)?;
    let scales = device.read(&integers.scales)?.to_f32();
    let bytes: &[i8] = bytemuck::cast_slice(&codes.words);
    let value = |token: usize, column: usize| {
        let (block, place) = (column / span, column % span);
        let byte = |plane: usize| {
            let piece = (token * planes + plane) * (span / 16) + place / 16;
            f64::from(bytes[16 * (piece * blocks + block) + place % 16])
        };
        let integer: f64 = (0..planes)
            .map(|plane| byte(plane) * f64::powi(256.0, plane as i32))
            .sum();
        integer * f64::from(scales[2 * (token * blocks + block)])
    };
    let all = (0..tokens).flat_map(|token| (0..columns).map(move |column| (token, column)));
    Ok(all.map(|(token, column)| value(token, column)).collect())
}

/// The inputs of tiny-llama's blocks: one byte keeps within 2e-3, two lose less than storing in f16 does, three next to nothing;
/// blocks that share scales in pairs hardly lose more.
fn rounding() -> Result<(), Failed> {
    let checkpoint = Checkpoint::open("embedded:tiny-llama")?;
    let llama = Llama::load(&Device::Cpu, &checkpoint, |_, _| Ok(()))?;
    let columns = llama.config().hidden_size;
    let ids: Vec<u32> = (1..129).collect();
    let pass = Pass {
        device: &Device::Cpu,
        compute: Compute::F32,
    };
    let (states, _) = llama.trace(&pass, &ids, 1, true)?;
    for (layer, state) in states.iter().enumerate() {
        let exact = state.to_f32();
        let shape = [exact.len() / columns, columns];
        let half = HostTensor::from_f32(DType::F16, &shape, &exact).to_f32();
        let half: Vec<f64> = half.into_iter().map(f64::from).collect();
        let lost = |bytes: u32, span: u32| -> Result<f64, Failed> {
            Ok(nmse(
                &rounded(state, columns, Rounding { bytes, span })?,
                &exact,
            ))
        };
        let (one, two, three) = (lost(1, 1)?, lost(2, 1)?, lost(3, 1)?);
        let (one_in_pairs, two_in_pairs) = (lost(1, 2)?, lost(2, 2)?);
        let half = nmse(&half, &exact);
        // The embedding is f16 as stored, so that f16 loses nothing of it.
        let fine = one < 2e-3 && (layer == 0 || two < half) && three < 1e-13;
        let fine = fine && one_in_pairs < 3e-3 && (layer == 0 || two_in_pairs < half);
        if !fine {
            return Err(format!("layer {layer}: {one}, {two}, {three}; in pairs {one_in_pairs}, {two_in_pairs}; f16 {half}").into());
        }
    }
    Ok(())
}

/// The logits that `lopper logits` writes.
fn logits(folder: &Path, flags: &str) -> Result<Vec<f32>, Failed> {
    let arguments = format!("logits q4/packed --out logits.safetensors --force {flags}");
    let run = lopper(folder, &arguments)?;
    if run.code != Some(0) {
        return Err(format!("{flags}: {}", run.err).into());
    }
    let file = Safetensors::open(Source::open(&folder.join("logits.safetensors"))?)?;
    let tensor = file.get("logits").ok_or("a tensor of logits")?;
    let bytes = tensor.bytes.as_chunks::<4>().0;
    Ok(bytes.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// A model in 4 bits, few tokens, so that its products are in integers: every call is checked, and the logits are those of
/// the CPU, which multiplies in floats.
fn model() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let quantize = "quantize embedded:tiny-llama --bits 4 --group-size 32 --out q4";
    let run = lopper(folder.path(), quantize)?;
    if run.code != Some(0) {
        return Err(run.err.into());
    }
    let half = device(Options::default())?.capabilities().f16;
    for tokens in ["5", "5,9,2,77,31"] {
        let exact = logits(folder.path(), &format!("--tokens {tokens} --device cpu"))?;
        for (compute, limit) in [("f32", 1e-10), ("f16", 1e-5), ("i8", 2e-3)] {
            if compute == "f16" && !half {
                continue;
            }
            let flags = format!("--tokens {tokens} --device checked --compute {compute}");
            let found = logits(folder.path(), &flags)?;
            let found: Vec<f64> = found.into_iter().map(f64::from).collect();
            let error = nmse(&found, &exact);
            if !(error < limit && found.len() == exact.len()) {
                return Err(format!("{flags}: {error}, not {limit}").into());
            }
        }
    }
    Ok(())
}

/// A matrix beyond what one binding may be is split by rows, with the same result: in integers, in floats and where the
/// product is added to what stands there.
fn split_by_rows() -> Result<(), Failed> {
    const COLUMNS: usize = 160;
    let mut random = Random::new(31);
    let ty = weight_type("uint4m").ok_or("a type of the table")?;
    let packed = weights::random(&mut random, &weights::variant(ty), 900, COLUMNS, 32);
    let results = [None, Some(33 << 10)].map(|max_binding| -> Result<_, Failed> {
        let device = device(Options {
            max_binding,
            ..Options::default()
        })?;
        let matrix = Matrix::upload(&device, &packed, "w")?;
        let mut random = Random::new(37);
        let mut results = Vec::new();
        for tokens in [1, 3, 9] {
            let x = HostTensor::from_f32(
                DType::F32,
                &[tokens, COLUMNS],
                &random.values(tokens * COLUMNS, 1.0),
            );
            let old = random.values(tokens * 900, 1.0);
            let old = HostTensor::from_f32(DType::F32, &[tokens, 900], &old);
            let sums = device.upload(&old, "sums")?;
            let input = Input::new(device.upload(&x, "x")?, COLUMNS, 3);
            linear(&device, &input, &matrix, None, Destination::Add(&sums))?;
            results.push(device.read(&sums)?.to_f32());
        }
        Ok((matrix.chunks().len(), results))
    });
    let [whole, split] = results;
    let (whole, split) = (whole?, split?);
    if whole.0 != 1 || split.0 < 2 || whole.1 != split.1 {
        return Err(format!("{} and {} chunks, or not the same", whole.0, split.0).into());
    }
    Ok(())
}

fn cpu_has_none() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let generate = "generate embedded:nano-llama --prompt The -n 1 --device cpu --compute i8";
    let run = lopper(folder.path(), generate)?;
    if run.code == Some(0) || !run.err.contains("--compute f32") {
        return Err(format!("{:?}: {}", run.code, run.err).into());
    }
    Ok(())
}

/// Every format's label names it, and nothing else does.
fn labels() -> Result<(), Failed> {
    for ty in WEIGHT_TYPES.iter().copied() {
        let groups: &[u32] = if ty.has_scales() {
            &[0, 16, 32, 4096]
        } else {
            &[0]
        };
        for &group_size in groups {
            let format = WeightFormat { ty, group_size };
            if WeightFormat::from_label(&format.label()) != Some(format) {
                return Err(format!("{} names no format, or another", format.label()).into());
            }
        }
    }
    for wrong in [
        "",
        "int4",
        "int4-g",
        "int4-g0",
        "int4-g24",
        "int4-g032",
        "int4-g8",
        "f16-g32",
        "f16-row",
        "int9-g32",
    ] {
        if let Some(format) = WeightFormat::from_label(wrong) {
            return Err(format!("`{wrong}` names {}", format.label()).into());
        }
    }
    Ok(())
}
