//! Products by lookup: the layout they read, and that they give what multiplying gives.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random, Variant};
use lopper::gpu::Options;
use lopper::kernels::copy::planes::{planes, restore, takes};
use lopper::kernels::matmul::Engine;
use lopper::kernels::matmul::product::ProductChoices;
use lopper::kernels::matmul::{Destination, Input, linear};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::weights;
use lopper::tensor::{DType, WEIGHT_TYPES, weight_type};

use crate::cli::lopper;
use crate::machine::{gpu_trial, open};

pub fn trials() -> Vec<Trial> {
    vec![
        gpu_trial("lut::planes_and_back".into(), planes_and_back),
        gpu_trial("lut::gives_what_multiplying_gives".into(), same_product),
        gpu_trial("lut::counting_bits_is_exact".into(), counted),
        gpu_trial("lut::a_model_of_two_bits".into(), same_perplexity),
        gpu_trial("lut::bench_rows".into(), bench_rows),
        Trial::test("lut::only_where_it_can", refused),
    ]
}

fn variant(name: &str) -> Result<Variant, Failed> {
    let ty = weight_type(name).ok_or("a weight type")?;
    Ok(weights::variant(ty))
}

/// Every code comes back from the planes that a GPU made.
fn planes_and_back() -> Result<(), Failed> {
    let device = Device::Gpu(open(Options::default())?);
    for ty in WEIGHT_TYPES.iter().copied().filter(|ty| takes(ty)) {
        for (rows, columns) in [(33, 300), (64, 128), (5, 7)] {
            let variant = weights::variant(ty);
            let packed = weights::random(&mut Random::new(51), &variant, rows, columns, 32);
            let matrix = Matrix::upload(&device, &packed, "w")?;
            let codes = &matrix.chunks()[0].codes;
            let planes = planes(&device, codes, packed.format, (rows, columns))?;
            let back = restore(&device.read(&planes)?.words, packed.format, rows, columns);
            if back.codes != packed.codes {
                return Err(format!("{} of {rows}x{columns}", ty.name).into());
            }
        }
    }
    Ok(())
}

/// A product by each engine, of a weight in one binding and in several: tables in f32 lose nothing but f32's own rounding,
/// tables of bytes at most a thousandth.
fn same_product() -> Result<(), Failed> {
    let (rows, columns, tokens) = (300, 512, 3);
    for name in ["int1", "int2", "uint3m", "uint4z"] {
        let weight = weights::random(&mut Random::new(52), &variant(name)?, rows, columns, 64);
        let values = Random::new(53).values(tokens * columns, 2.0);
        let x = HostTensor::from_f32(DType::F32, &[tokens, columns], &values);
        let product =
            |engine: Engine, max_binding: Option<u64>, bytes: u32| -> Result<Vec<f32>, Failed> {
                let options = Options {
                    max_binding,
                    ..Options::default()
                };
                let device = Device::Gpu(open(options)?.keeping(ProductChoices::new(engine)));
                let matrix = Matrix::upload(&device, &weight, "w")?;
                let input = Input::new(device.upload(&x, "x")?, columns, bytes);
                let destination = Destination::New(DType::F32);
                let result = linear(&device, &input, &matrix, None, destination)?;
                Ok(device.read(&result)?.to_f32())
            };
        let exact = product(Engine::Mul, None, 3)?;
        for (found, limit) in [
            (product(Engine::Lut, None, 3)?, 0.0..1e-12),
            // Cut in two or three; where padding makes the planes of a part too large, that part is multiplied.
            (product(Engine::Lut, Some(32 << 10), 3)?, 0.0..1e-12),
            // Tables of bytes lose something, but not much.
            (product(Engine::Lut, None, 1)?, 1e-9..1e-3),
        ] {
            let squares =
                |values: &[f32]| -> f64 { values.iter().map(|v| f64::from(*v).powi(2)).sum() };
            let errors: Vec<f32> = found.iter().zip(&exact).map(|(a, b)| a - b).collect();
            let error = squares(&errors) / squares(&exact);
            if found.len() != exact.len() || !limit.contains(&error) {
                return Err(format!("{name}: squared error {error:e} of squared size").into());
            }
        }
    }
    Ok(())
}

/// Activations that are integers of a block's scale lose nothing when they become bits, so that counting gives the product
/// itself; others lose what eight bits lose.
fn counted() -> Result<(), Failed> {
    let (rows, columns, tokens) = (70, 300, 2);
    let weight = weights::random(&mut Random::new(54), &variant("int3")?, rows, columns, 32);
    let dense = weight.to_f32();
    let mut random = Random::new(55);
    let integers: Vec<f32> = (0..tokens * columns)
        .map(|_| random.below(127) as f32 - 63.0)
        .collect();
    let others = random.values(tokens * columns, 2.0);
    let device =
        Device::Gpu(open(Options::default())?.keeping(ProductChoices::new(Engine::BitSerial)));
    let matrix = Matrix::upload(&device, &weight, "w")?;
    for (values, bound) in [(integers, 1e-12), (others, 2e-3)] {
        let x = HostTensor::from_f32(DType::F32, &[tokens, columns], &values);
        let input = Input::new(device.upload(&x, "x")?, columns, 3);
        let destination = Destination::New(DType::F32);
        let result = linear(&device, &input, &matrix, None, destination)?;
        let found = device.read(&result)?.to_f32();
        let (mut error, mut size) = (0.0, 0.0);
        for (place, found) in found.iter().enumerate() {
            let (x, w) = (
                &values[place / rows * columns..],
                &dense[place % rows * columns..],
            );
            let terms = x[..columns].iter().zip(&w[..columns]);
            let exact: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            error += (f64::from(*found) - exact).powi(2);
            size += exact.powi(2);
        }
        let nmse = error / size;
        let lossy = bound > 1e-6;
        if nmse.is_nan() || nmse > bound || (lossy && nmse < 1e-9) {
            return Err(format!("squared error {nmse:e} of squared size").into());
        }
    }
    Ok(())
}

/// What `bench lut` reports: f16 once, then every engine for every width, one of them the quickest, and two for ternary
/// weights.
fn bench_rows() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let arguments = "bench lut --shape 64x128 --tokens 2 --bits 1,3 --html lut.html --json=-";
    let run = lopper(folder.path(), arguments)?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&run.out)?;
    let of = |weight: &str, key: &str| -> Vec<String> {
        let same = rows.iter().filter(|row| row["weight"] == weight);
        same.map(|row| row[key].to_string()).collect()
    };
    let engines = [r#""mul""#, r#""lut""#, r#""bitserial""#];
    for weight in ["int1-g64", "int3-g64"] {
        let quickest = of(weight, "quickest")
            .iter()
            .filter(|q| *q == "true")
            .count();
        if of(weight, "engine") != engines || quickest != 1 {
            return Err(run.out.into());
        }
    }
    let timed = rows
        .iter()
        .all(|row| row["us"].as_f64().is_some_and(|us| us > 0.0));
    let page = std::fs::read_to_string(folder.path().join("lut.html"))?;
    let ternary = of("ternary-g128", "engine") == engines[..2];
    if rows.len() == 9 && timed && ternary && page.contains("bitserial") {
        Ok(())
    } else {
        Err(run.out.into())
    }
}

/// tiny-llama in two bits, end to end.
fn same_perplexity() -> Result<(), Failed> {
    let perplexity = |engine: &str| -> Result<f64, Failed> {
        let folder = tempfile::tempdir()?;
        let arguments = format!(
            "quantize embedded:tiny-llama --bits 2 --group-size 64 --engine {engine} --device gpu --max-tokens 512 --ctx 256 --out out --json=-"
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
    if (by_lookup / by_multiplying - 1.0).abs() < 1e-5 && by_lookup != by_multiplying {
        Ok(())
    } else {
        Err(format!("{by_lookup} by lookup, {by_multiplying} by multiplying").into())
    }
}

fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let quantize = "quantize embedded:tiny-llama --engine lut --out out --max-tokens 512";
    for (arguments, wanted) in [
        (format!("{quantize} --bits 5"), "1 to 4 bits"),
        (format!("{quantize} --type nf4"), "1 to 4 bits"),
        (
            format!("{quantize} --bits 2 --group-size 16"),
            "groups of 32",
        ),
        (format!("{quantize} --bits 2 --device cpu"), "a GPU"),
        ("bench lut --bits 5".into(), "1..=4"),
        ("bench lut --group-size 16".into(), "32 or more"),
        (
            "inspect embedded:tiny-llama --engine lut".into(),
            "runs a model",
        ),
    ] {
        let run = lopper(folder.path(), &arguments)?;
        if run.code != Some(2) || !run.err.contains(wanted) {
            return Err(format!("{arguments}: {:?} {}", run.code, run.err).into());
        }
        if folder.path().join("out").exists() {
            return Err(format!("{arguments} left something").into());
        }
    }
    Ok(())
}
