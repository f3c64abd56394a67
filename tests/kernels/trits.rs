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

use crate::machine::open;
use crate::numbers::relative_error;
use crate::program::{TINY, engines_agree, lopper};

pub fn trials() -> Vec<Trial> {
    suite!("trits":
        only_where_it_can;
        gpu: there_and_back, exact_up_to_scales, a_ternary_model)
}

fn ternary(rows: usize, columns: usize, group: u32) -> Result<Packed, Failed> {
    let variant = weights::variant(weight_type("ternary").ok_or("a weight type")?);
    Ok(weights::random(&mut Random::new(61), &variant, rows, columns, group))
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
                let place = format!("{each} of {rows}x{columns}: row {row}, column {column}");
                assert_eq!(back.code(row, column), code, "{place}");
            }
        }
    }
    Ok(())
}

/// Activations that are integers of any scale lose nothing when they are rounded: every kernel by lookup, and multiplying
/// the same integers, give the product itself up to f32's rounding of what scales and their sums make. In one binding, and
/// in several; in every number of bytes.
fn exact_up_to_scales() -> Result<(), Failed> {
    let (rows, columns, tokens) = (300, 520, 3);
    let weight = ternary(rows, columns, 128)?;
    let dense = weight.to_f32();
    let mut random = Random::new(62);
    let values: Vec<f32> =
        (0..tokens * columns).map(|_| random.below(255) as f32 - 127.0).collect();
    let mut truth: Vec<f64> = Vec::new();
    for x in values.chunks(columns) {
        for line in dense.chunks(columns) {
            let terms = x.iter().zip(line);
            truth.push(terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum());
        }
    }
    // Squared error of squared size.
    let off = |found: &[f32]| relative_error(found, &truth).powi(2);
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
            let options = Options { max_binding, ..Options::default() };
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
            let cut = matrix.chunks().len() > 1;
            assert!(cut == max_binding.is_some(), "cut where a binding is small");
            let input = Input::new(device.upload(&x, "x")?, columns, bytes);
            let result = linear(&device, &input, &matrix, None, Destination::New(DType::F32))?;
            Ok(device.read(&result)?.to_f32())
        };
        let device = open(Options::default())?;
        let choices = asked.candidates(device.gpu().capabilities());
        let looked_up =
            choices.iter().all(|choice| matches!(choice.weight(), WeightForm::Ternary(_)));
        assert!(choices.len() == 4 && looked_up, "{choices:?}");
        let multiplied = off(&product(Engine::Mul, None)?);
        for choice in choices {
            let found = off(&product(Engine::Lut, Some(&choice.label()))?);
            let (fits, label) = (found < 1e-13 && multiplied < 1e-13, choice.label());
            assert!(fits, "{label}: off {found:e}, multiplied {multiplied:e}");
        }
    }
    Ok(())
}

/// tiny-llama in ternary weights, end to end.
fn a_ternary_model() -> Result<(), Failed> {
    let quantize = format!("quantize {TINY} --type ternary --group-size 128");
    engines_agree(&quantize, ["lut", "mul"], 5e-5)
}

fn only_where_it_can() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let quantize = "quantize embedded:tiny-llama --type ternary --out out --max-tokens 512";
    for (flags, wanted) in [
        ("--engine lut", "groups of 128"),
        ("--engine lut --group-size 64", "groups of 64"),
        ("--engine bitserial --group-size 128", "1 to 4 bits"),
    ] {
        let run = lopper(&folder, &format!("{quantize} {flags}"))?;
        run.refused(2, wanted);
        assert!(!folder.path().join("out").exists(), "{flags}");
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
    let looked_up = choices.iter().any(|choice| matches!(choice.weight(), WeightForm::Ternary(_)));
    assert!(!looked_up, "{choices:?}");
    Ok(())
}
