//! Backward products.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Matrix, Random};
use lopper::gpu::Options as GpuOptions;
use lopper::kernels::matmul::backward;
use lopper::tensor::{DType, Packed};

use crate::machine::gpu_trial;

pub fn trials() -> Vec<Trial> {
    vec![
        gpu_trial("gradients::of_few_tokens".into(), || {
            product_gradients(20, DType::F32)
        }),
        gpu_trial("gradients::of_many_tokens".into(), || {
            product_gradients(70, DType::F32)
        }),
        gpu_trial("gradients::in_f16".into(), || {
            product_gradients(70, DType::F16)
        }),
    ]
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
        let dx = device
            .read(&backward::input(&device, &dy, &matrix)?)?
            .to_f32();
        let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() < bound;
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
        backward::weight(&device, &dy, &input, &dw, false)?;
        backward::weight(&device, &dy, &input, &dw, true)?;
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
