//! `residual/add`: adds a branch to the residual stream, residual += branch.
//!
//! The stream stays in f32 whatever the activations are: it sums every layer's output, and some models carry values in
//! it that f16 does not hold.

use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "residual/add",
    source: include_str!("../../../shaders/residual/add.wgsl"),
    bindings: &[
        binding("branch", Access::Read, Element::Activation),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || vec![Variant::BASELINE, Variant::typed(DType::F16, DType::F32)],
    cost: |args| elementwise::cost(args, 1.0, 1),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// Adds `branch` to `residual` in place.
pub fn add(device: &Device, branch: &Tensor, residual: &Tensor) -> Result<()> {
    let params = Params { count: branch.len() as u32 };
    device.call(&KERNEL, Variant::typed(branch.dtype(), DType::F32), &params, &[branch, residual])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let mut expected = Expected::default();
    for index in 0..args.tensors[0].len() {
        let value = args.tensors[0].get(index) + args.tensors[1].get(index);
        expected.push(value, storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let branch = args.tensors[0].to_f32();
    let mut residual = outputs.load(0, 0, branch.len());
    residual.iter_mut().zip(&branch).for_each(|(residual, branch)| *residual += branch);
    outputs.store(0, 0, &residual);
}

fn case(count: usize) -> Case {
    Case::new(format!("count={count}"), move |variant: &Variant| {
        let mut random = Random::new(8);
        let branch = random.values(count, 2.0);
        Params { count: count as u32 }.case(vec![
            HostTensor::from_f32(variant.activation, &[count], &branch),
            HostTensor::from_f32(DType::F32, &[count], &random.values(count, 100.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(elementwise::count(sizes))
}

fn cases() -> Vec<Case> {
    vec![
        case(1),
        case(1001),
        case(5).with(Poison::NegativeInfinity),
        case(5).with(Poison::NaN),
        case(2048 * 4096).bench(),
    ]
}
