//! Backward products.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Matrix, Random};
use lopper::gpu::Options as GpuOptions;
use lopper::kernels::matmul::input_grad::input_grad;
use lopper::kernels::matmul::weight_grad::weight_grad;
use lopper::tensor::{DType, Packed};

use crate::machine::gpu_trial;

pub fn trials() -> Vec<Trial> {
    vec![gpu_trial(
        "gradients::of_a_product".into(),
        product_gradients,
    )]
}

/// The gradients of a product, of a weight in several bindings and in many small calls, against plain sums in f64.
fn product_gradients() -> Result<(), Failed> {
    let (rows, columns, tokens) = (600, 64, 20);
    let weight = Packed::from_f32(&Random::new(21).values(rows * columns, 1.0), rows, columns);
    let dense = weight.to_f32();
    let mut random = Random::new(23);
    let (grad, x) = (
        random.values(tokens * rows, 1.0),
        random.values(tokens * columns, 1.0),
    );
    let gpu = |max_binding| {
        crate::machine::device(GpuOptions {
            max_binding,
            ..GpuOptions::default()
        })
    };
    // Only a third of the weight fits a binding of the last.
    for (device, whole) in [
        (Device::Cpu, true),
        (gpu(None)?, true),
        (gpu(Some(50 << 10))?, false),
    ] {
        let matrix = Matrix::upload(&device, &weight, "w")?;
        let on_device = |values: &[f32], width: usize| {
            let host = HostTensor::from_f32(DType::F32, &[values.len() / width, width], values);
            device.upload(&host, "values")
        };
        let (dy, input) = (on_device(&grad, rows)?, on_device(&x, columns)?);
        let dx = device.read(&input_grad(&device, &dy, &matrix)?)?.to_f32();
        let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 2e-4;
        let product = |a: f32, b: f32| f64::from(a) * f64::from(b);
        for c in 0..columns {
            for t in 0..tokens {
                let terms = (0..rows).map(|r| product(grad[t * rows + r], dense[r * columns + c]));
                if !near(dx[t * columns + c], terms.sum()) {
                    return Err(format!("dX of token {t}, column {c}").into());
                }
            }
        }
        if !whole {
            continue;
        }
        let dw = device.allocate(DType::F32, &[rows, columns], "dw")?;
        weight_grad(&device, &dy, &input, &dw, false)?;
        weight_grad(&device, &dy, &input, &dw, true)?;
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
