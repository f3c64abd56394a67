//! `experts/route_grad`: the gradient of [`experts/route`](super::route) at the logits. Which experts are chosen has no slope:
//! it is that of the softmax of the chosen ones, or of all, of which those that are not chosen have no gradient of their own.
//!
//! result[t, e] = share[t, e] (grad[t, e] - sum over chosen j of share[t, j] grad[t, j]) where e is chosen
//! result[t, e] = -p[t, e] (that sum) elsewhere, p the softmax of all logits; 0 where shares add up to 1

use super::balance::probabilities;
use super::random_shares;
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        experts: u32,
        /// 1: shares add up to 1; 0: they are those of the softmax over all experts.
        normalized: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/route_grad",
    source: include_str!("../../../shaders/experts/route_grad.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
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

/// From the shares of experts, whether they are `normalized` as [`route`](super::route::route) made them of the `logits`, and their
/// gradient, f32 (tokens, experts) each, that of the logits. The gradient may be anything where the share is 0.
pub fn route_grad(
    device: &Device,
    (logits, shares): (&Tensor, &Tensor),
    grad: &Tensor,
    normalized: bool,
) -> Result<Tensor> {
    let (tokens, experts) = (shares.shape()[0], shares.len() / shares.shape()[0]);
    let result = device.allocate(DType::F32, &[tokens, experts], "a gradient of logits")?;
    let normalized = u32::from(normalized);
    let params = Params { tokens: tokens as u32, experts: experts as u32, normalized };
    device.call(&KERNEL, Variant::BASELINE, &params, &[logits, shares, grad, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let experts = p.experts as usize;
    let [logits, shares, grads] = [0, 1, 2].map(|tensor| args.tensors[tensor].to_f64());
    let logits = logits.chunks_exact(experts);
    let mut expected = Expected::default();
    let lines = shares.chunks_exact(experts).zip(grads.chunks_exact(experts)).zip(logits);
    for ((shares, grads), logits) in lines {
        let softmax = probabilities(logits);
        let chosen = || shares.iter().zip(grads).filter(|(share, _)| **share != 0.0);
        let sum: f64 = chosen().map(|(share, grad)| share * grad).sum();
        let magnitude: f64 = chosen().map(|(share, grad)| (share * grad).abs()).sum();
        for (expert, (share, grad)) in shares.iter().zip(grads).enumerate() {
            if *share == 0.0 && p.normalized == 1 {
                expected.push(0.0, 0.0);
                continue;
            }
            if *share == 0.0 {
                let of = softmax.as_ref().map_or((f64::NAN, 0.0), |softmax| softmax[expert]);
                let (value, relative) = (-of.0 * sum, of.1 + gamma(experts + 3));
                let bound = magnitude * (of.0 * relative + DType::F32.underflow());
                expected.push(value, bound + storing(DType::F32, value));
                continue;
            }
            let value = share * (grad - sum);
            let bound = gamma(experts + 3) * share.abs() * (grad.abs() + magnitude);
            expected.push(value, bound + storing(DType::F32, value));
        }
    }
    vec![expected]
}

fn case(tokens: usize, experts: usize, normalized: bool) -> Case {
    let label = format!("tokens={tokens},experts={experts},normalized={normalized}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(62);
        let shares = random_shares(&mut random, tokens, experts);
        let mut grads = random.values(tokens * experts, 2.0);
        // What no token's share asks for is not read.
        for (grad, _) in grads.iter_mut().zip(&shares).filter(|(_, share)| **share == 0.0) {
            *grad = f32::NAN;
        }
        let logits = random.values(tokens * experts, 4.0);
        let normalized = u32::from(normalized);
        Params { tokens: tokens as u32, experts: experts as u32, normalized }.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, experts], &logits),
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_f32(DType::F32, &[tokens, experts], &grads),
            HostTensor::zeros(DType::F32, &[tokens, experts]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 60), sizes.between(1, 1, 150), sizes.between(2, 0, 1) == 1)
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 4, true),
        case(1, 1, true),
        case(5, 130, true),
        case(7, 4, false),
        case(5, 130, false),
        case(3, 8, true).poisoned(1, Poison::Zeros),
        case(3, 8, true).poisoned(2, Poison::Zeros),
        case(3, 8, true).with(Poison::NaN),
        case(3, 8, false).with(Poison::Infinity),
        case(3, 8, false).with(Poison::NaN),
        case(3, 8, false).poisoned(1, Poison::Zeros),
        case(4096, 128, true).bench(),
    ]
}
