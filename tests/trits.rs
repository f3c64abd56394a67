//! Ternary products by lookup: the layouts they read, and that they give what multiplying the same integers gives.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::gpu::Options;
use lopper::kernels::copy::ternary::{indices, restore};
use lopper::kernels::matmul::Engine;
use lopper::kernels::matmul::product::{MatmulShape, ProductChoices, WeightForm};
use lopper::kernels::matmul::{Destination, Input, linear};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::weights;
use lopper::tensor::{DType, Packed, WeightFormat, weight_type};

use crate::cli::lopper;
use crate::machine::{gpu_trial, open};

pub fn trials() -> Vec<Trial> {
    vec![
        gpu_trial("trits::there_and_back".into(), there_and_back),
        gpu_trial("trits::exact_up_to_scales".into(), exact),
        gpu_trial("trits::a_ternary_model".into(), same_perplexity),
        Trial::test("trits::only_where_it_can", refused),
    ]
}

fn ternary(rows: usize, columns: usize, group: u32) -> Result<Packed, Failed> {
    let variant = weights::variant(weight_type("ternary").ok_or("a weight type")?);
    Ok(weights::random(
        &mut Random::new(61),
        &variant,
        rows,
        columns,
        group,
    ))
}

/// Every code comes back from the indices that a GPU made; 3, which stands for 0, as 1.
fn there_and_back() -> Result<(), Failed> {
    let device = Device::Gpu(open(Options::default())?);
    for (rows, columns) in [(33, 300), (64, 128), (5, 7)] {
        let mut packed = ternary(rows, columns, 128)?;
        // The first block of a row, 32 codes in two words.
        packed.codes[..2].fill(u32::MAX);
        let matrix = Matrix::upload(&device, &packed, "w")?;
        for each in [2, 3] {
            let (codes, shape) = (&matrix.chunks()[0].codes, (rows, columns));
            let made = indices(&device, codes, packed.format, shape, each)?;
            let words = device.read(&made)?.words;
            let back = restore(&words, packed.format, shape, each);
            for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |c| (row, c))) {
                let code = packed.code(row, column);
                let code = if code == 3 { 1 } else { code };
                if back.code(row, column) != code {
                    let place = format!("row {row}, column {column}");
                    return Err(format!("{each} of {rows}x{columns}: {place}").into());
                }
            }
        }
    }
    Ok(())
}

/// Activations that are integers of any scale lose nothing when they are rounded: every kernel by lookup, and multiplying
/// the same integers, give the product itself up to f32's rounding of what scales and their sums make. In one binding, and
/// in several; in every number of bytes.
fn exact() -> Result<(), Failed> {
    let (rows, columns, tokens) = (300, 520, 3);
    let weight = ternary(rows, columns, 128)?;
    let dense = weight.to_f32();
    let mut random = Random::new(62);
    let values: Vec<f32> = (0..tokens * columns)
        .map(|_| random.below(255) as f32 - 127.0)
        .collect();
    let mut truth = Vec::new();
    for x in values.chunks(columns) {
        for line in dense.chunks(columns) {
            let terms = x.iter().zip(line);
            truth.push(terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
        }
    }
    let off = |found: &[f32]| -> f64 {
        let errors = found.iter().zip(&truth);
        let errors: f64 = errors
            .map(|(a, b): (_, &f64)| (f64::from(*a) - b).powi(2))
            .sum();
        errors / truth.iter().map(|b| b.powi(2)).sum::<f64>()
    };
    for (bytes, max_binding) in [(1, None), (1, Some(32 << 10)), (2, None), (3, None)] {
        let asked = MatmulShape {
            activation: DType::F32,
            bytes,
            output: DType::F32,
            weight: weight.format,
            engine: Engine::Lut,
            rows,
            columns,
            tokens,
        };
        let product = |engine: Engine, kernel: Option<&str>| -> Result<Vec<f32>, Failed> {
            let options = Options {
                max_binding,
                ..Options::default()
            };
            let runner = open(options)?.keeping(ProductChoices::new(engine));
            if let Some(kernel) = kernel {
                // Of whole and of cut matrices.
                for rows in [64, 128, 256, 300] {
                    let asked = MatmulShape { rows, ..asked };
                    ProductChoices::of(&runner).learn([(asked.class(), kernel.to_string())].into());
                }
            }
            let device = Device::Gpu(runner);
            let x = HostTensor::from_f32(DType::F32, &[tokens, columns], &values);
            let matrix = Matrix::upload(&device, &weight, "w")?;
            if max_binding.is_some() == (matrix.chunks().len() == 1) {
                return Err("a matrix is cut where a binding is small".into());
            }
            let input = Input::new(device.upload(&x, "x")?, columns, bytes);
            let result = linear(&device, &input, &matrix, None, Destination::New(DType::F32))?;
            Ok(device.read(&result)?.to_f32())
        };
        let device = open(Options::default())?;
        let choices = asked.candidates(device.gpu().capabilities());
        if choices.len() != 4
            || choices
                .iter()
                .any(|choice| !matches!(choice.weight(), WeightForm::Ternary(_)))
        {
            return Err(format!("{choices:?}").into());
        }
        let multiplied = off(&product(Engine::Mul, None)?);
        for choice in choices {
            let found = off(&product(Engine::Lut, Some(&choice.label()))?);
            let fits = found < 1e-13 && multiplied < 1e-13;
            if !fits {
                let label = choice.label();
                return Err(format!("{label}: off {found:e}, multiplied {multiplied:e}").into());
            }
        }
    }
    Ok(())
}

/// tiny-llama in ternary weights, end to end.
fn same_perplexity() -> Result<(), Failed> {
    let perplexity = |engine: &str| -> Result<f64, Failed> {
        let folder = tempfile::tempdir()?;
        let arguments = format!(
            "quantize embedded:tiny-llama --type ternary --group-size 128 --engine {engine} --device gpu --max-tokens 512 --ctx 256 --out out --json=-"
        );
        let run = lopper(folder.path(), &arguments)?;
        if run.code != Some(0) {
            return Err(run.err.into());
        }
        let report: serde_json::Value = serde_json::from_str(&run.out)?;
        let found = report["stages"][0]["figures"]["perplexity"]["value"].as_f64();
        Ok(found.ok_or_else(|| report.to_string())?)
    };
    let (by_lookup, by_multiplying) = (perplexity("lut")?, perplexity("mul")?);
    if (by_lookup / by_multiplying - 1.0).abs() < 5e-5 && by_lookup != by_multiplying {
        Ok(())
    } else {
        Err(format!("{by_lookup} by lookup, {by_multiplying} by multiplying").into())
    }
}

fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let quantize = "quantize embedded:tiny-llama --type ternary --out out --max-tokens 512";
    for (flags, wanted) in [
        ("--engine lut", "groups of 128"),
        ("--engine lut --group-size 64", "groups of 64"),
        ("--engine bitserial --group-size 128", "1 to 4 bits"),
    ] {
        let run = lopper(folder.path(), &format!("{quantize} {flags}"))?;
        if run.code != Some(2) || !run.err.contains(wanted) || folder.path().join("out").exists() {
            return Err(format!("{flags}: {:?} {}", run.code, run.err).into());
        }
    }
    // Nor does the planner look such groups up.
    let small = WeightFormat::from_label("ternary-g64").ok_or("a format")?;
    let asked = MatmulShape {
        activation: DType::F32,
        bytes: 1,
        output: DType::F32,
        weight: small,
        engine: Engine::Lut,
        rows: 64,
        columns: 256,
        tokens: 1,
    };
    let choices = asked.candidates(lopper::gpu::Capabilities::default());
    if choices
        .iter()
        .any(|choice| matches!(choice.weight(), WeightForm::Ternary(_)))
    {
        return Err(format!("{choices:?}").into());
    }
    Ok(())
}
