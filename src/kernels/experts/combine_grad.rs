//! `experts/combine_grad`: the gradients of [`experts/combine`](super::combine) at an expert's result and at its shares.
//!
//! result[row of t] = share[t] grad[t], share_grad[t] = grad[t] · branch[row of t]

use super::{Share, random_shares, random_tokens};
use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        width: u32,
        experts: u32,
        expert: u32,
        /// 1: rows are those of listed tokens; 0: of all tokens, in order.
        listed: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/combine_grad",
    source: include_str!("../../../shaders/experts/combine_grad.wgsl"),
    bindings: &[
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("branch", Access::Read, Element::Is(DType::F32)),
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("token_of", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
        binding("share_grad", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        let subgroups = Variant { subgroups: true, ..Variant::BASELINE };
        vec![Variant::BASELINE, subgroups]
    },
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.rows) * f64::from(p.width);
        Cost::new(3.0 * values, 12.0 * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// From `grad`, the gradient of the sum of experts, f32 (tokens, width), and what an expert made of its tokens, f32 (rows, width):
/// the gradient of that. The gradient of the shares of these tokens goes to `share_grad`, f32 (tokens, experts). The tokens of the
/// rows are listed, u32 (rows); without a list rows are tokens.
pub fn combine_grad(
    device: &Device,
    grad: &Tensor,
    branch: &Tensor,
    share: Share<'_>,
    tokens: Option<&Tensor>,
    share_grad: &Tensor,
) -> Result<Tensor> {
    let width = grad.len() / grad.shape()[0];
    let rows = branch.len() / width;
    let result = device.allocate(DType::F32, &[rows, width], "a gradient")?;
    let params = Params {
        rows: rows as u32,
        width: width as u32,
        experts: share.experts() as u32,
        expert: share.expert as u32,
        listed: u32::from(tokens.is_some()),
    };
    let tokens = match tokens {
        Some(tokens) => tokens.clone(),
        None => device.allocate(DType::U32, &[1], "an unused list")?,
    };
    device.call(
        &KERNEL,
        Variant::BASELINE.with_subgroups(device.capabilities().subgroups),
        &params,
        &[grad, branch, share.shares, &tokens, &result, share_grad],
    )?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, width) = (p.rows as usize, p.width as usize);
    let mut results = Expected::default();
    let mut of_shares = Expected::exact(args.tensors[5].to_f64());
    for row in 0..rows {
        let token = if p.listed == 1 { args.tensors[3].u32s()[row] as usize } else { row };
        let place = token * p.experts as usize + p.expert as usize;
        let share = args.tensors[2].get(place);
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for column in 0..width {
            if share == 0.0 {
                results.push(0.0, 0.0);
                continue;
            }
            let slope = args.tensors[0].get(token * width + column);
            let product = slope * args.tensors[1].get(row * width + column);
            (sum, magnitude) = (sum + product, magnitude + product.abs());
            let value = share * slope;
            results.push(value, storing(DType::F32, value));
        }
        let bound = if share == 0.0 { 0.0 } else { storing(DType::F32, sum) };
        of_shares.put(place, [(sum, gamma(width) * magnitude + bound)]);
    }
    vec![results, of_shares]
}

fn case(tokens: usize, rows: usize, width: usize, listed: bool) -> Case {
    let label = format!("tokens={tokens},rows={rows},width={width},listed={listed}");
    Case::new(label, move |_: &Variant| {
        let experts = 3;
        let mut random = Random::new(64);
        let params = Params {
            rows: rows as u32,
            width: width as u32,
            experts: experts as u32,
            expert: 1,
            listed: u32::from(listed),
        };
        let shares = random_shares(&mut random, tokens, experts);
        let listed = random_tokens(&mut random, tokens, rows);
        let mut matrix = |rows: usize, columns: usize| {
            HostTensor::from_f32(DType::F32, &[rows, columns], &random.values(rows * columns, 2.0))
        };
        let (grad, branch, of_shares) =
            (matrix(tokens, width), matrix(rows, width), matrix(tokens, experts));
        params.case(vec![
            grad,
            branch,
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_u32(&[rows], &listed),
            HostTensor::zeros(DType::F32, &[rows, width]),
            of_shares,
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let tokens = sizes.between(0, 1, 40);
    let listed = sizes.between(3, 0, 1) == 1;
    let rows = if listed { sizes.between(1, 1, tokens) } else { tokens };
    case(tokens, rows, sizes.between(2, 1, 600), listed)
}

fn cases() -> Vec<Case> {
    vec![
        case(9, 5, 33, true),
        case(9, 9, 300, false),
        case(1, 1, 1, false),
        case(4, 4, 16, false).with(Poison::Zeros),
        case(4, 4, 16, false).with(Poison::NaN),
        case(4, 4, 16, false).poisoned(1, Poison::Infinity),
        case(1051, 1051, 2, false),
        case(4096, 1024, 4096, true).bench(),
    ]
}
