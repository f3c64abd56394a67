//! `experts/balance`: what the load-balancing loss of a mixture of experts is made of (Fedus, Zoph and Shazeer 2021, Switch
//! Transformers, arXiv 2101.03961, section 2.2): of each expert the tokens that go there and the sum of its probabilities over all
//! experts. They are added to those of other tokens and layers: the loss is of all of them together, as transformers has it for
//! Mixtral.
//!
//! sums[0, e] += tokens t with share[t, e] != 0
//! sums[1, e] += sum over t of exp(logit[t, e]) / sum over j of exp(logit[t, j])

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
    name: "experts/balance",
    source: include_str!("../../../shaders/experts/balance.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("sums", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let subgroups = Variant { subgroups: true, ..Variant::BASELINE };
        vec![Variant::BASELINE, subgroups]
    },
    groups: |args| fold(args.parameters::<Params>().experts as usize),
    cost: |args| {
        let p: Params = args.parameters();
        let logits = f64::from(p.tokens) * f64::from(p.experts);
        Cost::new(3.0 * logits * f64::from(p.experts), 8.0 * logits)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The balance loss that [`balance`]'s sums over so many tokens (those of all layers together) come to, (2, experts): experts
/// times the sum over them of the share of tokens that go there (of 1, so that all shares add up to the experts of a token)
/// times the mean probability. It is the number of a token's experts where all are alike.
pub fn loss(sums: &[f32], tokens: usize) -> f64 {
    let (counts, probabilities) = sums.split_at(sums.len() / 2);
    let products = counts.iter().zip(probabilities).map(|(c, p)| f64::from(*c) * f64::from(*p));
    counts.len() as f64 * products.sum::<f64>() / (tokens as f64).powi(2)
}

/// Adds to `sums`, f32 (2, experts), what these tokens make of it, by the router's `logits` and the `shares` that
/// [`route`](super::route::route) made of them, f32 (tokens, experts) both.
pub fn balance(device: &Device, logits: &Tensor, shares: &Tensor, sums: &Tensor) -> Result<()> {
    let (tokens, experts) = (logits.shape()[0], logits.len() / logits.shape()[0]);
    let params = Params { tokens: tokens as u32, experts: experts as u32 };
    let subgroups = device.capabilities().subgroups;
    let variant = Variant::BASELINE.with_subgroups(subgroups);
    device.call(&KERNEL, variant, &params, &[logits, shares, sums])
}

/// The softmax of a token's logits, and each one's relative error on a device; `None` where a logit is NaN.
pub(super) fn probabilities(line: &[f64]) -> Option<Vec<(f64, f64)>> {
    if line.iter().any(|logit| logit.is_nan()) {
        return None;
    }
    let most = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms = line.iter().map(|own| {
        let below = if *own == most { 0.0 } else { own - most };
        // Of exp: (3 + 2 |x|) ulp, and half an ulp of its argument.
        (below.exp(), (8.0 + 6.0 * below.abs().min(100.0)) * U)
    });
    let terms: Vec<(f64, f64)> = terms.collect();
    let total: f64 = terms.iter().map(|(term, _)| term).sum();
    let of_total: f64 = terms.iter().map(|(term, relative)| term * relative).sum();
    let all = gamma(line.len() + 4) + of_total / total;
    Some(terms.into_iter().map(|(term, relative)| (term / total, relative + all)).collect())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (tokens, experts) = (p.tokens as usize, p.experts as usize);
    let (logits, shares) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let lines: Vec<_> = logits.chunks_exact(experts).map(probabilities).collect();
    let mut expected = Expected::default();
    for expert in 0..experts {
        let counted = shares.iter().skip(expert).step_by(experts).filter(|share| **share != 0.0);
        let value = args.tensors[2].get(expert) + counted.count() as f64;
        expected.push(value, gamma(tokens + 1) * value.abs());
    }
    for expert in 0..experts {
        let before = args.tensors[2].get(experts + expert);
        let (mut value, mut bound) = (before, 0.0);
        for line in &lines {
            let (probability, relative) =
                line.as_ref().map_or((f64::NAN, 0.0), |line| line[expert]);
            value += probability;
            bound += probability * relative + DType::F32.underflow();
        }
        let all = gamma(tokens + 1) * (value.abs() + 2.0 * before.abs());
        expected.push(value, bound + all + storing(DType::F32, value));
    }
    vec![expected]
}

fn case(tokens: usize, experts: usize, spread: f32) -> Case {
    let label = format!("tokens={tokens},experts={experts},spread={spread}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(67);
        let logits = random.values(tokens * experts, spread);
        let shares = random_shares(&mut random, tokens, experts);
        let before: Vec<f32> = random.values(2 * experts, 9.0).iter().map(|x| x.round()).collect();
        Params { tokens: tokens as u32, experts: experts as u32 }.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, experts], &logits),
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_f32(DType::F32, &[2, experts], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let spread = [1.0, 4.0, 200.0][sizes.between(2, 0, 2)];
    case(sizes.between(0, 1, 200), sizes.between(1, 1, 150), spread)
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 4, 4.0),
        case(1, 1, 4.0),
        case(200, 8, 4.0),
        case(65, 130, 4.0),
        case(20, 64, 200.0),
        case(9, 8, 4.0).with(Poison::Zeros),
        case(9, 8, 4.0).with(Poison::Infinity),
        case(9, 8, 4.0).with(Poison::NaN),
        case(9, 8, 4.0).poisoned(1, Poison::NaN),
        case(9, 8, 4.0).poisoned(2, Poison::NaN),
        case(4096, 8, 4.0).bench(),
        case(4096, 128, 4.0).bench(),
    ]
}
