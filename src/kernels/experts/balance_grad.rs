//! `experts/balance_grad`: the gradient of the load-balancing loss ([`experts/balance`](super::balance)) at the router's logits.
//! How many tokens go to an expert has no slope: it is that of the mean probabilities.
//!
//! result[t, e] = factor p[t, e] (count[e] - sum over j of p[t, j] count[j]), p the softmax of the token's logits

use super::balance::probabilities;
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        experts: u32,
        /// The loss's own factor times experts / (all tokens)^2.
        factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/balance_grad",
    source: include_str!("../../../shaders/experts/balance_grad.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
        binding("sums", Access::Read, Element::Is(DType::F32)),
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
        let logits = f64::from(p.tokens) * f64::from(p.experts);
        Cost::new(6.0 * logits * f64::from(p.experts), 8.0 * logits)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The gradient at the `logits`, f32 (tokens, experts), of `factor` times the loss of all tokens, of which
/// [`balance`](super::balance::balance) made `sums`, f32 (2, experts); `all`: how many those are, over all layers.
pub fn balance_grad(
    device: &Device,
    logits: &Tensor,
    sums: &Tensor,
    all: usize,
    factor: f32,
) -> Result<Tensor> {
    let (tokens, experts) = (logits.shape()[0], logits.len() / logits.shape()[0]);
    let result = device.allocate(DType::F32, &[tokens, experts], "a gradient of logits")?;
    let factor = (f64::from(factor) * experts as f64 / (all as f64).powi(2)) as f32;
    let params = Params { tokens: tokens as u32, experts: experts as u32, factor };
    device.call(&KERNEL, Variant::BASELINE, &params, &[logits, sums, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (experts, factor) = (p.experts as usize, f64::from(p.factor));
    let logits = args.tensors[0].to_f64();
    let counts = &args.tensors[1].to_f64()[..experts];
    let mut expected = Expected::default();
    for line in logits.chunks_exact(experts) {
        let Some(line) = probabilities(line) else {
            line.iter().for_each(|_| expected.push(f64::NAN, 0.0));
            continue;
        };
        let terms = || line.iter().zip(counts).map(|((p, relative), count)| (p * count, relative));
        let mean: f64 = terms().map(|(term, _)| term).sum();
        let magnitude: f64 = terms().map(|(term, _)| term.abs()).sum();
        let of_mean: f64 = terms().map(|(term, relative)| term.abs() * relative).sum();
        for ((probability, relative), count) in line.iter().zip(counts) {
            let value = factor * probability * (count - mean);
            let relative = relative + gamma(experts + 8);
            let most = count.abs() + magnitude;
            let bound = factor.abs() * probability * (relative * most + of_mean);
            // A probability, or its product with the factor, may be flushed to zero.
            let flushed = factor.abs().max(1.0) * most * DType::F32.underflow();
            expected.push(value, bound + flushed + storing(DType::F32, value));
        }
    }
    vec![expected]
}

fn case(tokens: usize, experts: usize, spread: f32) -> Case {
    let label = format!("tokens={tokens},experts={experts},spread={spread}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(68);
        let logits = random.values(tokens * experts, spread);
        let mut sums: Vec<f32> = (0..experts).map(|_| random.below(1000) as f32).collect();
        // What is not read may be anything.
        sums.resize(2 * experts, f32::NAN);
        Params { tokens: tokens as u32, experts: experts as u32, factor: 0.004 }.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, experts], &logits),
            HostTensor::from_f32(DType::F32, &[2, experts], &sums),
            HostTensor::zeros(DType::F32, &[tokens, experts]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let spread = [1.0, 4.0, 200.0][sizes.between(2, 0, 2)];
    case(sizes.between(0, 1, 60), sizes.between(1, 1, 150), spread)
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 4, 4.0),
        case(1, 1, 4.0),
        case(5, 130, 4.0),
        case(20, 64, 200.0),
        case(9, 8, 4.0).with(Poison::Zeros),
        case(9, 8, 4.0).with(Poison::Infinity),
        case(9, 8, 4.0).with(Poison::NaN),
        case(4096, 128, 4.0).bench(),
    ]
}
