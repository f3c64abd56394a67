//! `experts/route_grad`: the gradient of [`experts/route`](super::route) at the logits. Which experts are chosen has no slope:
//! it is that of the softmax of the chosen ones.
//!
//! result[t, e] = share[t, e] (grad[t, e] - sum over chosen j of share[t, j] grad[t, j])

use super::random_shares;
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        experts: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/route_grad",
    source: include_str!("../../../shaders/experts/route_grad.wgsl"),
    bindings: &[
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.tokens as usize * p.experts as usize).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let shares = f64::from(p.tokens) * f64::from(p.experts);
        Cost::new(2.0 * shares * f64::from(p.experts), 12.0 * shares)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// From the shares of experts and their gradient, f32 (tokens, experts) both, that of the logits. The gradient may be anything
/// where the share is 0.
pub fn route_grad(device: &Device, shares: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let (tokens, experts) = (shares.shape()[0], shares.len() / shares.shape()[0]);
    let result = device.allocate(DType::F32, &[tokens, experts], "a gradient of logits")?;
    let params = Params { tokens: tokens as u32, experts: experts as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[shares, grad, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let experts = p.experts as usize;
    let (shares, grads) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let mut expected = Expected::default();
    for (shares, grads) in shares.chunks_exact(experts).zip(grads.chunks_exact(experts)) {
        let chosen = || shares.iter().zip(grads).filter(|(share, _)| **share != 0.0);
        let sum: f64 = chosen().map(|(share, grad)| share * grad).sum();
        let magnitude: f64 = chosen().map(|(share, grad)| (share * grad).abs()).sum();
        for (share, grad) in shares.iter().zip(grads) {
            if *share == 0.0 {
                expected.push(0.0, 0.0);
                continue;
            }
            let value = share * (grad - sum);
            let bound = gamma(experts + 3) * share.abs() * (grad.abs() + magnitude);
            expected.push(value, bound + storing(DType::F32, value));
        }
    }
    vec![expected]
}

fn case(tokens: usize, experts: usize) -> Case {
    Case::new(format!("tokens={tokens},experts={experts}"), move |_: &Variant| {
        let mut random = Random::new(62);
        let shares = random_shares(&mut random, tokens, experts);
        let mut grads = random.values(tokens * experts, 2.0);
        // What no token's share asks for is not read.
        for (grad, _) in grads.iter_mut().zip(&shares).filter(|(_, share)| **share == 0.0) {
            *grad = f32::NAN;
        }
        Params { tokens: tokens as u32, experts: experts as u32 }.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_f32(DType::F32, &[tokens, experts], &grads),
            HostTensor::zeros(DType::F32, &[tokens, experts]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 60), sizes.between(1, 1, 150))
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 4),
        case(1, 1),
        case(5, 130),
        case(3, 8).with(Poison::Zeros),
        case(3, 8).poisoned(1, Poison::Zeros),
        case(4096, 128).bench(),
    ]
}
