//! `norm/rms_grad`: the gradient of [`norm/rms`](super::rms) at its input. With s = 1 / sqrt(mean(x^2) + epsilon) and
//! h = grad * gain, dx = s h - x s^3 mean(h x); it may be added to a gradient that stands there. Also s of each row, which
//! the gradient of the gain needs ([`norm/gain_grad`](super::gain_grad)).

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        epsilon: f32,
        /// 1: it is added to what stands in the result.
        accumulate: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "norm/rms_grad",
    source: include_str!("../../../shaders/norm/rms_grad.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("gain", Access::Read, Element::Is(DType::F32)),
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
        binding("scales", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        let subgroups = Variant { subgroups: true, ..Variant::BASELINE };
        vec![Variant::BASELINE, subgroups]
    },
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(10.0 * values, 16.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// From `x`, f32 (rows, columns), the gain and the gradient of the normalized rows, f32 of the same shape: the gradient of
/// `x`, in `onto` added to what stands there or else in a new tensor, and 1 / root of the mean square, f32 (rows).
pub fn rms_grad(
    device: &Device,
    (x, gain, epsilon): (&Tensor, &Tensor, f32),
    grad: &Tensor,
    onto: Option<Tensor>,
) -> Result<(Tensor, Tensor)> {
    let columns = gain.len();
    let rows = x.len() / columns;
    let scales = device.allocate(DType::F32, &[rows], "scales of a normalization")?;
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        epsilon,
        accumulate: u32::from(onto.is_some()),
    };
    let result = match onto {
        Some(tensor) => tensor,
        None => device.allocate(DType::F32, x.shape(), "a gradient")?,
    };
    device.call(
        &KERNEL,
        Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE },
        &params,
        &[x, gain, grad, &result, &scales],
    )?;
    Ok((result, scales))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (x, gain) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let (grad, before) = (args.tensors[2].to_f64(), args.tensors[3].to_f64());
    let (mut result, mut scales) = (Expected::default(), Expected::default());
    // As of the normalization: half the error of the sum of squares, 2 ulp of inverseSqrt.
    let (relative, sum) = (gamma(columns + 2) / 2.0 + 10.0 * U, gamma(columns + 3));
    for (row, line) in x.chunks_exact(columns).enumerate() {
        let mean = line.iter().map(|v| v * v).sum::<f64>() / columns as f64;
        let scale = 1.0 / (mean + f64::from(p.epsilon)).sqrt();
        scales.push(scale, relative * scale + storing(DType::F32, scale));
        let at = row * columns..(row + 1) * columns;
        let lines = grad[at.clone()].iter().zip(&gain).zip(line);
        let (mut pull, mut magnitude) = (0.0, 0.0);
        for ((grad, gain), x) in lines.clone() {
            pull += grad * gain * x;
            magnitude += (grad * gain * x).abs();
        }
        let square = scale * scale / columns as f64;
        let (pull, magnitude) = (pull * square, magnitude * square);
        for (((grad, gain), x), before) in lines.zip(&before[at]) {
            let old = if p.accumulate == 1 { *before } else { 0.0 };
            let (push, pulled) = (scale * grad * gain, scale * x * pull);
            let value = push - pulled + old;
            let bound = (relative + 4.0 * U) * push.abs()
                + (3.0 * relative + 8.0 * U) * pulled.abs()
                + sum * scale * x.abs() * magnitude
                + 2.0 * U * (push.abs() + pulled.abs() + old.abs());
            result.push(value, bound + storing(DType::F32, value));
        }
    }
    vec![result, scales]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (x, gain) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let grad = args.tensors[2].to_f32();
    let mut result =
        if p.accumulate == 1 { outputs.load(0, 0, x.len()) } else { vec![0.0; x.len()] };
    let lines =
        result.par_chunks_mut(columns).zip(x.par_chunks(columns).zip(grad.par_chunks(columns)));
    let scales: Vec<f32> = lines
        .map(|(result, (x, grad))| {
            let mean = x.iter().map(|v| v * v).sum::<f32>() / columns as f32;
            let scale = 1.0 / (mean + p.epsilon).sqrt();
            let terms = x.iter().zip(grad.iter().zip(&gain));
            let pull: f32 = terms.clone().map(|(x, (grad, gain))| grad * gain * x).sum();
            let pull = pull / columns as f32 * scale * scale;
            for (result, (x, (grad, gain))) in result.iter_mut().zip(terms) {
                *result += scale * (grad * gain - x * pull);
            }
            scale
        })
        .collect();
    outputs.store(0, 0, &result);
    outputs.store(1, 0, &scales);
}

fn case(rows: usize, columns: usize, epsilon: f32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},epsilon={epsilon:e}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(31);
        // Small values, so that a wrong epsilon shows.
        let x = random.values(rows * columns, 0.01);
        let grad = random.values(rows * columns, 1.0);
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            epsilon,
            accumulate: u32::from(note == ",accumulate"),
        };
        let host = |values: &[f32]| HostTensor::from_f32(DType::F32, &[rows, columns], values);
        params.case(vec![
            host(&x),
            HostTensor::from_f32(DType::F32, &[columns], &random.values(columns, 2.0)),
            host(&grad),
            host(&random.values(rows * columns, 100.0)),
            HostTensor::zeros(DType::F32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 40),
        sizes.between(1, 1, 1200),
        [1e-5, 1e-6, 1e-3][sizes.between(2, 0, 2)],
        ["", ",accumulate"][sizes.between(3, 0, 1)],
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 97, 1e-5, ""),
        case(2, 576, 1e-6, ",accumulate"),
        case(2, 4096, 1e-5, ""),
        case(5, 1, 1e-5, ""),
        case(2, 64, 1e-5, "").with(Poison::Zeros),
        case(2, 64, 1e-5, "").poisoned(2, Poison::Infinity),
        case(2, 64, 1e-5, "").with(Poison::NaN),
        case(1051, 4, 1e-5, ""),
        case(2048, 4096, 1e-5, "").bench(),
    ]
}
