//! `norm/rms`: root-mean-square normalization (Zhang and Sennrich 2019).
//!
//! result[r, c] = x[r, c] / sqrt(mean_c(x[r, c]^2) + epsilon) * gain[c]

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        epsilon: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "norm/rms",
    source: include_str!("../../../shaders/norm/rms.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("gain", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants,
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Normalizes the rows of `x`, f32 of shape (rows, columns); the result has type `output`.
pub fn rms(
    device: &Device,
    x: &Tensor,
    gain: &Tensor,
    epsilon: f32,
    output: DType,
) -> Result<Tensor> {
    let columns = gain.len();
    let rows = x.len() / columns;
    let result = device.allocate(output, x.shape(), "normalized activations")?;
    let params = Params { rows: rows as u32, columns: columns as u32, epsilon };
    device.call(
        &KERNEL,
        Variant::typed(DType::F32, output).with_subgroups(device.capabilities().subgroups),
        &params,
        &[x, gain, &result],
    )?;
    Ok(result)
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for output in [DType::F32, DType::F16] {
        for subgroups in [false, true] {
            variants.push(Variant::typed(DType::F32, output).with_subgroups(subgroups));
        }
    }
    variants
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let values = f64::from(p.rows) * f64::from(p.columns);
    Cost::new(5.0 * values, 8.0 * values)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (x, gain) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let mut expected = Expected::default();
    // Half the relative error of the sum (a square root halves it), 2 ulp of inverseSqrt, three products.
    let relative = gamma(columns + 2) / 2.0 + 10.0 * U;
    for line in x.chunks_exact(columns) {
        let mean = line.iter().map(|v| v * v).sum::<f64>() / columns as f64;
        let scale = 1.0 / (mean + f64::from(p.epsilon)).sqrt();
        for (value, gain) in line.iter().zip(&gain) {
            let result = value * scale * gain;
            expected.push(result, relative * result.abs() + storing(args.variant.output, result));
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (mut x, gain) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    x.par_chunks_mut(columns).for_each(|line| {
        let mean = line.iter().map(|v| v * v).sum::<f32>() / columns as f32;
        let scale = 1.0 / (mean + p.epsilon).sqrt();
        for (value, gain) in line.iter_mut().zip(&gain) {
            *value = *value * scale * gain;
        }
    });
    outputs.store(0, 0, &x);
}

fn case(rows: usize, columns: usize, epsilon: f32) -> Case {
    let label = format!("rows={rows},columns={columns},epsilon={epsilon:e}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(2);
        // Small values, so that a wrong epsilon shows.
        let x = random.values(rows * columns, 0.01);
        let gain = random.values(columns, 2.0);
        let params = Params { rows: rows as u32, columns: columns as u32, epsilon };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &x),
            HostTensor::from_f32(DType::F32, &[columns], &gain),
            HostTensor::zeros(variant.output, &[rows, columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 40),
        sizes.between(1, 1, 1200),
        [1e-5, 1e-6, 1e-3][sizes.between(2, 0, 2)],
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 97, 1e-5),
        case(1, 576, 1e-6),
        case(2, 4096, 1e-5),
        case(5, 1, 1e-5),
        case(2, 64, 1e-5).with(Poison::Zeros),
        case(2, 64, 1e-5).with(Poison::Infinity),
        case(2, 64, 1e-5).with(Poison::NaN),
        case(1051, 4, 1e-5),
        case(2048, 4096, 1e-5).bench(),
    ]
}
