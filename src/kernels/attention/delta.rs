//! `attention/delta`: the dot product of attention's result and that result's gradient, of each token and head, beside the
//! log-sum-exp that the forward pass left there: what [`attention/lse_delta`](super::lse_delta) computes both of (Dao 2023,
//! FlashAttention-2, arXiv 2307.08691: D).

use super::backward::{dot, dot_reference};
use crate::kernels::prelude::*;

/// Rows of a workgroup, as in the shader.
const ROWS: usize = 32;

params! {
    struct Params {
        /// A head of a token each.
        rows: u32,
        head_dim: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/delta",
    source: include_str!("../../../shaders/attention/delta.wgsl"),
    bindings: &[
        binding("result", Access::Read, Element::Is(DType::F32)),
        binding("grad", Access::Read, Element::Activation),
        binding("lse_delta", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || vec![Variant::BASELINE, Variant::typed(DType::F16, DType::F32)],
    groups: |args| fold((args.parameters::<Params>().rows as usize).div_ceil(ROWS)),
    cost: |args| {
        let elements = args.tensors[0].len() as f64;
        Cost::new(2.0 * elements, (4 + args.variant.activation.size()) as f64 * elements)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Writes the products of `result`, f32, and `grad`, f32 or f16, both (tokens, heads, head_dim), to the second places of `lse_delta`,
/// f32 (tokens, heads, 2). A head is whole vectors of four.
pub fn delta(
    device: &Device,
    result: &Tensor,
    grad: &Tensor,
    lse_delta: &Tensor,
    head_dim: usize,
) -> Result<()> {
    let rows = (result.len() / head_dim) as u32;
    let params = Params { rows, head_dim: head_dim as u32 };
    let variant = Variant::typed(grad.dtype(), DType::F32);
    device.call(&KERNEL, variant, &params, &[result, grad, lse_delta])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.head_dim as usize;
    let [result, grad] = [0, 1].map(|binding| args.tensors[binding].to_f64());
    let mut expected = Expected::exact(args.tensors[2].to_f64());
    let rows = result.chunks_exact(columns).zip(grad.chunks_exact(columns));
    for (row, (result, grad)) in rows.enumerate() {
        let (value, magnitude) = dot_reference(result, grad);
        expected.values[2 * row + 1] = value;
        expected.bounds[2 * row + 1] = gamma(columns) * magnitude + storing(DType::F32, value);
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.head_dim as usize;
    let [result, grad] = [0, 1].map(|binding| args.tensors[binding].to_f32());
    let rows = result.chunks_exact(columns).zip(grad.chunks_exact(columns));
    for (row, (result, grad)) in rows.enumerate() {
        outputs.store(0, 2 * row + 1, &[dot(result, grad)]);
    }
}

fn case(tokens: usize, heads: usize, head_dim: usize) -> Case {
    Case::new(
        format!("tokens={tokens},heads={heads},head_dim={head_dim}"),
        move |variant: &Variant| {
            let mut random = Random::new(13);
            let shape = [tokens, heads, head_dim];
            let mut values = || random.values(shape.iter().product(), 2.0);
            let result = HostTensor::from_f32(DType::F32, &shape, &values());
            let grad = HostTensor::from_f32(variant.activation, &shape, &values());
            let known = random.values(tokens * heads * 2, 1.0);
            let params = Params { rows: (tokens * heads) as u32, head_dim: head_dim as u32 };
            params.case(vec![
                result,
                grad,
                HostTensor::from_f32(DType::F32, &[tokens, heads, 2], &known),
            ])
        },
    )
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 90), sizes.between(1, 1, 9), 4 * sizes.between(2, 1, 64))
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 9, 64),
        case(1, 1, 4),
        case(33, 1, 12),
        case(3, 2, 256),
        case(40, 3, 20).with(Poison::NaN),
        case(40, 3, 20).poisoned(1, Poison::Infinity),
        case(40, 3, 20).with(Poison::Zeros),
        case(4096, 32, 64).bench(),
    ]
}
