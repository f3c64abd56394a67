//! `norm/gain_grad`: the gradient of a normalization's gain, result[c] = sum_r grad[r, c] x[r, c] scales[r], with the scales
//! that [`norm/rms_grad`](super::rms_grad) leaves. Added in a fixed order; it may be added to a gradient that stands there.

use crate::kernels::prelude::*;

/// Columns of a workgroup, as in the shader.
const COLUMNS: u32 = 8;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// 1: it is added to what stands in the result.
        accumulate: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "norm/gain_grad",
    source: include_str!("../../../shaders/norm/gain_grad.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Read, Element::Is(DType::F32)),
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    groups: |args| fold(args.parameters::<Params>().columns.div_ceil(COLUMNS) as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(3.0 * values, 8.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds the gradient of the gain to `result`, f32 (columns), or writes it there: from the rows `x`, their scales and the
/// gradient of the normalized rows, f32 (rows, columns), (rows) and (rows, columns).
pub fn gain_grad(
    device: &Device,
    (x, scales): (&Tensor, &Tensor),
    grad: &Tensor,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let params = Params {
        rows: scales.len() as u32,
        columns: result.len() as u32,
        accumulate: u32::from(accumulate),
    };
    device.call(&KERNEL, Variant::BASELINE, &params, &[x, scales, grad, result])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns) = (p.rows as usize, p.columns as usize);
    let (x, scales) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let grad = args.tensors[2].to_f64();
    let mut expected = Expected::default();
    for column in 0..columns {
        let term = |row: usize| {
            let at = row * columns + column;
            grad[at] * x[at] * scales[row]
        };
        let before = if p.accumulate == 1 { args.tensors[3].get(column) } else { 0.0 };
        let value = (0..rows).map(term).sum::<f64>() + before;
        let magnitude = (0..rows).map(|row| term(row).abs()).sum::<f64>() + before.abs();
        expected.push(value, gamma(rows + 4) * magnitude + storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (x, scales) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let grad = args.tensors[2].to_f32();
    let mut sums = if p.accumulate == 1 { outputs.load(0, 0, columns) } else { vec![0.0; columns] };
    sums.par_iter_mut().with_min_len(64).enumerate().for_each(|(column, sum)| {
        for (row, scale) in scales.iter().enumerate() {
            let at = row * columns + column;
            *sum += grad[at] * (x[at] * scale);
        }
    });
    outputs.store(0, 0, &sums);
}

fn case(rows: usize, columns: usize, note: &'static str) -> Case {
    Case::new(format!("rows={rows},columns={columns}{note}"), move |_: &Variant| {
        let mut random = Random::new(32);
        let grad = random.values(rows * columns, 1.0);
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            accumulate: u32::from(note == ",accumulate"),
        };
        let mut host = |shape: &[usize]| {
            let values = random.values(shape.iter().product(), 2.0);
            HostTensor::from_f32(DType::F32, shape, &values)
        };
        params.case(vec![
            host(&[rows, columns]),
            host(&[rows]),
            HostTensor::from_f32(DType::F32, &[rows, columns], &grad),
            host(&[columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let note = ["", ",accumulate"][sizes.between(2, 0, 1)];
    case(sizes.between(0, 1, 200), sizes.between(1, 1, 300), note)
}

fn cases() -> Vec<Case> {
    vec![
        case(13, 97, ""),
        case(1, 1, ""),
        case(7, 64, ",accumulate"),
        case(1021, 33, ""),
        case(5, 40, "").poisoned(2, Poison::Zeros),
        case(5, 40, "").poisoned(2, Poison::Infinity),
        case(5, 40, "").poisoned(2, Poison::NaN),
        case(2048, 4096, "").bench(),
    ]
}
