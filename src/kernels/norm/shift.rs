//! `norm/shift`: each row plus a vector, as the bias of a layer norm is added.

use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "norm/shift",
    source: include_str!("../../../shaders/norm/shift.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("shift", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || vec![Variant::BASELINE],
    cost: |args| elementwise::cost(args, 1.0, 0),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// Writes the rows of `x`, f32, each plus `shift`, f32 (columns), to `result`, f32 of its shape.
pub fn shift(device: &Device, x: &Tensor, shift: &Tensor, result: &Tensor) -> Result<()> {
    let params = Params { count: x.len() as u32, columns: shift.len() as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[x, shift, result])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (x, shift) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let mut expected = Expected::default();
    for (index, value) in x.iter().enumerate() {
        let value = value + shift[index % p.columns as usize];
        expected.push(value, storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let (mut x, shift) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    for line in x.chunks_mut(shift.len()) {
        line.iter_mut().zip(&shift).for_each(|(value, shift)| *value += shift);
    }
    outputs.store(0, 0, &x);
}

fn case(rows: usize, columns: usize) -> Case {
    Case::new(format!("rows={rows},columns={columns}"), move |_: &Variant| {
        let mut random = Random::new(8);
        let x = random.values(rows * columns, 2.0);
        let params = Params { count: (rows * columns) as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &x),
            HostTensor::from_f32(DType::F32, &[columns], &random.values(columns, 1.0)),
            HostTensor::zeros(DType::F32, &[rows, columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 40), sizes.between(1, 1, 300))
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 97),
        case(1, 1),
        case(7, 64),
        case(5, 6).with(Poison::NegativeInfinity),
        case(5, 6).with(Poison::NaN),
        case(2048, 4096).bench(),
    ]
}
