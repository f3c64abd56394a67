//! `experts/choose`: the experts that each token goes to, as a list, by their shares.
//!
//! chosen[t, k] = the k-th e with share[t, e] != 0, or the number of experts where there is none

use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        experts: u32,
        /// Places of a token.
        used: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/choose",
    source: include_str!("../../../shaders/experts/choose.wgsl"),
    bindings: &[
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("chosen", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold((args.parameters::<Params>().tokens as usize).div_ceil(64)),
    cost: |args| {
        let p: Params = args.parameters();
        let shares = f64::from(p.tokens) * f64::from(p.experts);
        Cost::new(shares, 4.0 * shares + 4.0 * f64::from(p.tokens * p.used))
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The experts of each token, u32 (tokens, used), in order, by shares, f32 (tokens, experts), of which at most so many are not 0.
pub fn choose(device: &Device, shares: &Tensor, used: usize) -> Result<Tensor> {
    let (tokens, experts) = (shares.shape()[0], shares.len() / shares.shape()[0]);
    let chosen = device.allocate(DType::U32, &[tokens, used], "experts of tokens")?;
    let params = Params { tokens: tokens as u32, experts: experts as u32, used: used as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[shares, &chosen])?;
    Ok(chosen)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (experts, used) = (p.experts as usize, p.used as usize);
    let mut all = Vec::new();
    for line in args.tensors[0].to_f64().chunks_exact(experts) {
        let own = line.iter().enumerate().filter(|(_, share)| **share != 0.0);
        let mut own: Vec<f64> = own.map(|(expert, _)| expert as f64).take(used).collect();
        own.resize(used, experts as f64);
        all.extend(own);
    }
    vec![Expected::exact(all)]
}

fn case(tokens: usize, experts: usize, used: usize) -> Case {
    Case::new(format!("tokens={tokens},experts={experts},used={used}"), move |_: &Variant| {
        let mut random = Random::new(69);
        let shares = super::random_shares(&mut random, tokens, experts);
        let params = Params { tokens: tokens as u32, experts: experts as u32, used: used as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, experts], &shares),
            HostTensor::from_u32(&[tokens, used], &vec![0; tokens * used]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let experts = sizes.between(1, 1, 150);
    case(sizes.between(0, 1, 80), experts, sizes.between(2, 1, experts.min(12)))
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 4, 2),
        case(1, 1, 1),
        case(70, 9, 9),
        case(5, 130, 8),
        case(3, 8, 2).with(Poison::Zeros),
        case(3, 8, 2).with(Poison::NaN),
        case(8, 128, 8).bench(),
    ]
}
