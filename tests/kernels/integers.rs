//! Products in integers: what the rounding of activations loses, on real activations.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::gpu::Options;
use lopper::kernels::matmul::{Destination, Input, linear};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::quantize::activations::{Rounding, activations};
use lopper::kernels::weights;
use lopper::model::Checkpoint;
use lopper::tensor::{BLOCK, DType, WEIGHT_TYPES, WeightFormat, weight_type};

use crate::machine::device;
use crate::models::{load, pass};
use crate::numbers::{Known, relative_error};
use crate::program::{lopper, runs};

pub fn trials() -> Vec<Trial> {
    suite!("integers":
        rounding_of_activations, formats_by_label, the_cpu_has_none;
        gpu: a_model_in_every_precision, split_by_rows)
}

/// Squared error over squared size.
fn nmse(found: &[impl Copy + Into<f64>], exact: &[f32]) -> f64 {
    relative_error(found, exact).powi(2)
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
        let integer: f64 =
            (0..planes).map(|plane| byte(plane) * f64::powi(256.0, plane as i32)).sum();
        integer * f64::from(scales[2 * (token * blocks + block)])
    };
    let all = (0..tokens).flat_map(|token| (0..columns).map(move |column| (token, column)));
    Ok(all.map(|(token, column)| value(token, column)).collect())
}

/// The inputs of tiny-llama's blocks: one byte keeps within 2e-3, two lose less than storing in f16 does, three next to nothing;
/// blocks that share scales in pairs hardly lose more.
fn rounding_of_activations() -> Result<(), Failed> {
    let checkpoint = Checkpoint::open("embedded:tiny-llama")?;
    let llama = load(&Device::Cpu, &checkpoint)?;
    let columns = llama.config().hidden_size;
    let ids: Vec<u32> = (1..129).collect();
    let (states, _) = llama.trace(&pass(&Device::Cpu), &ids, 1, true)?;
    for (layer, state) in states.iter().enumerate() {
        let exact = state.to_f32();
        let shape = [exact.len() / columns, columns];
        let half = HostTensor::from_f32(DType::F16, &shape, &exact).to_f32();
        let lost = |bytes: u32, span: u32| -> Result<f64, Failed> {
            let rounding = Rounding { bytes, span };
            Ok(nmse(&rounded(state, columns, rounding)?, &exact))
        };
        let (one, two, three) = (lost(1, 1)?, lost(2, 1)?, lost(3, 1)?);
        let (one_in_pairs, two_in_pairs) = (lost(1, 2)?, lost(2, 2)?);
        let half = nmse(&half, &exact);
        // The embedding is f16 as stored, so that f16 loses nothing of it.
        let fine = one < 2e-3 && (layer == 0 || two < half) && three < 1e-13;
        let fine = fine && one_in_pairs < 3e-3 && (layer == 0 || two_in_pairs < half);
        let pairs = format!("in pairs {one_in_pairs}, {two_in_pairs}");
        assert!(fine, "layer {layer}: {one}, {two}, {three}; {pairs}; f16 {half}");
    }
    Ok(())
}

/// The logits that `lopper logits` writes.
fn logits(folder: &Path, flags: &str) -> Result<Vec<f32>, Failed> {
    let arguments = format!("logits q4/packed --out logits.safetensors --force {flags}");
    runs(folder, &arguments)?;
    let path = folder.join("logits.safetensors");
    Known::open(path.to_str().ok_or("a path")?)?.floats("logits")
}

/// A model in 4 bits, few tokens, so that its products are in integers: every call is checked, and the logits are those of
/// the CPU, which multiplies in floats.
fn a_model_in_every_precision() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let quantize = "quantize embedded:tiny-llama --bits 4 --group-size 32 --out q4";
    runs(&folder, quantize)?;
    let half = device(Options::default())?.capabilities().f16;
    for tokens in ["5", "5,9,2,77,31"] {
        let exact = logits(folder.path(), &format!("--tokens {tokens} --device cpu"))?;
        for (compute, limit) in [("f32", 1e-10), ("f16", 1e-5), ("i8", 2e-3)] {
            if compute == "f16" && !half {
                continue;
            }
            let flags = format!("--tokens {tokens} --device checked --compute {compute}");
            let found = logits(folder.path(), &flags)?;
            let error = nmse(&found, &exact);
            assert!(error < limit, "{flags}: {error}, not {limit}");
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
        let device = device(Options { max_binding, ..Options::default() })?;
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
    assert!(whole.0 == 1 && split.0 > 1, "{} and {} chunks", whole.0, split.0);
    assert!(whole.1 == split.1, "not the same");
    Ok(())
}

fn the_cpu_has_none() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let generate = "generate embedded:nano-llama --prompt The -n 1 --device cpu --compute i8";
    let run = lopper(&folder, generate)?;
    assert!(run.code != Some(0) && run.err.contains("--compute f32"), "{run}");
    Ok(())
}

/// Every format's label names it, and nothing else does.
fn formats_by_label() -> Result<(), Failed> {
    for ty in WEIGHT_TYPES.iter().copied() {
        let groups: &[u32] = if ty.has_scales() { &[0, 16, 32, 4096] } else { &[0] };
        for &group_size in groups {
            let format = WeightFormat::grouped(ty, group_size);
            assert_eq!(WeightFormat::from_label(&format.label()), Some(format));
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
        "q4_k-g32",
        "q4_k-row",
    ] {
        assert_eq!(WeightFormat::from_label(wrong), None, "{wrong}");
    }
    Ok(())
}
