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

use crate::machine::open;
use crate::numbers::relative_error;
use crate::program::{TINY, engines_agree, lopper, rows};

pub fn trials() -> Vec<Trial> {
    suite!("lut":
        only_where_it_can;
        gpu: planes_and_back, gives_what_multiplying_gives, counting_bits_is_exact, a_model_of_two_bits,
        bench_rows)
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
            assert!(back.codes == packed.codes, "{} of {rows}x{columns}", ty.name);
        }
    }
    Ok(())
}

/// A product by each engine, of a weight in one binding and in several: tables in f32 lose nothing but f32's own rounding,
/// tables of bytes at most a thousandth.
fn gives_what_multiplying_gives() -> Result<(), Failed> {
    let (rows, columns, tokens) = (300, 512, 3);
    for name in ["int1", "int2", "uint3m", "uint4z"] {
        let weight = weights::random(&mut Random::new(52), &variant(name)?, rows, columns, 64);
        let values = Random::new(53).values(tokens * columns, 2.0);
        let x = HostTensor::from_f32(DType::F32, &[tokens, columns], &values);
        let product =
            |engine: Engine, max_binding: Option<u64>, bytes: u32| -> Result<Vec<f32>, Failed> {
                let options = Options { max_binding, ..Options::default() };
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
            let error = relative_error(&found, &exact).powi(2);
            assert!(limit.contains(&error), "{name}: squared error {error:e} of squared size");
        }
    }
    Ok(())
}

/// Activations that are integers of a block's scale lose nothing when they become bits, so that counting gives the product
/// itself; others lose what eight bits lose.
fn counting_bits_is_exact() -> Result<(), Failed> {
    let (rows, columns, tokens) = (70, 300, 2);
    let weight = weights::random(&mut Random::new(54), &variant("int3")?, rows, columns, 32);
    let dense = weight.to_f32();
    let mut random = Random::new(55);
    let integers: Vec<f32> =
        (0..tokens * columns).map(|_| random.below(127) as f32 - 63.0).collect();
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
        let exact = |place: usize| -> f64 {
            let (x, w) = (&values[place / rows * columns..], &dense[place % rows * columns..]);
            let terms = x[..columns].iter().zip(&w[..columns]);
            terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        let exact: Vec<f64> = (0..tokens * rows).map(exact).collect();
        let error = relative_error(&found, &exact).powi(2);
        let lossless = bound < 1e-6;
        let fits = error <= bound && (lossless || error >= 1e-9);
        assert!(fits, "squared error {error:e} of squared size");
    }
    Ok(())
}

/// What `bench lut` reports: f16 once, then every engine for a width, one of them the quickest, and two for ternary
/// weights.
fn bench_rows() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let arguments = "bench lut --shape 64x128 --tokens 2 --bits 3 --html lut.html --json=-";
    let run = lopper(&folder, arguments)?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&run.out)?;
    let of = |weight: &str, key: &str| -> Vec<String> {
        let same = rows.iter().filter(|row| row["weight"] == weight);
        same.map(|row| row[key].to_string()).collect()
    };
    let engines = [r#""mul""#, r#""lut""#, r#""bitserial""#];
    let quickest = of("int3-g64", "quickest").iter().filter(|q| *q == "true").count();
    assert!(of("int3-g64", "engine") == engines && quickest == 1, "{run}");
    let timed = rows.iter().all(|row| row["us"].as_f64().is_some_and(|us| us > 0.0));
    let page = std::fs::read_to_string(folder.path().join("lut.html"))?;
    let ternary = of("ternary-g128", "engine") == engines[..2];
    assert!(rows.len() == 6 && timed && ternary, "{run}");
    assert!(page.contains("bitserial"), "{page}");
    Ok(())
}

/// tiny-llama in two bits, end to end.
fn a_model_of_two_bits() -> Result<(), Failed> {
    let quantize = format!("quantize {TINY} --bits 2 --group-size 64");
    engines_agree(&quantize, ["lut", "mul"], 1e-5)
}

fn only_where_it_can() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let table = "
        QUANTIZE --bits 5 => 1 to 4 bits
        QUANTIZE --type nf4 => 1 to 4 bits
        QUANTIZE --bits 2 --group-size 16 => groups of 32
        QUANTIZE --bits 2 --device cpu => a GPU
        bench lut --bits 5 => 1..=4
        bench lut --group-size 16 => 32 or more
        inspect embedded:tiny-llama --engine lut => runs a model
    ";
    let quantize = format!("quantize {TINY} --engine lut --out out --max-tokens 512");
    for (arguments, said) in rows(table) {
        lopper(&folder, &arguments.replace("QUANTIZE", &quantize))?.refused(2, said);
        assert!(!folder.path().join("out").exists(), "{arguments}");
    }
    Ok(())
}
