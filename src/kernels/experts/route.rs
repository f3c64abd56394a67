//! `experts/route`: the experts that each token goes to, and their shares: softmax over all experts, the largest few of it; made
//! to add up to 1 again (Jiang et al. 2024, Mixtral, arXiv 2401.04088, section 2.1), which is the softmax of the largest logits
//! alone, or as they are (Shazeer et al. 2017, and Qwen's where `norm_topk_prob` is false).
//!
//! share[t, e] = exp(logit[t, e]) / sum over chosen (or all) j of exp(logit[t, j]) where e is chosen, 0 elsewhere

use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        experts: u32,
        /// Experts of a token: at most all.
        used: u32,
        /// 1: shares add up to 1; 0: they are those of the softmax over all experts.
        normalized: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "experts/route",
    source: include_str!("../../../shaders/experts/route.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
        binding("shares", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let subgroups = Variant { subgroups: true, ..Variant::BASELINE };
        vec![Variant::BASELINE, subgroups]
    },
    groups: |args| fold(args.parameters::<Params>().tokens as usize),
    cost: |args| {
        let p: Params = args.parameters();
        let logits = f64::from(p.tokens) * f64::from(p.experts);
        Cost::new(4.0 * logits * f64::from(p.experts), 8.0 * logits)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The shares of the experts, f32 (tokens, experts), by their `logits`, f32 of the same shape: those of the `used` largest of a
/// token, which add up to 1 if they are `normalized` and are as the softmax over all experts has them otherwise; the others are 0.
/// Of equal logits the lower index goes first; a token with a NaN gets NaNs.
pub fn route(device: &Device, logits: &Tensor, used: usize, normalized: bool) -> Result<Tensor> {
    let (tokens, experts) = (logits.shape()[0], logits.len() / logits.shape()[0]);
    let shares = device.allocate(DType::F32, &[tokens, experts], "shares of experts")?;
    let params = Params {
        tokens: tokens as u32,
        experts: experts as u32,
        used: used as u32,
        normalized: u32::from(normalized),
    };
    let subgroups = device.capabilities().subgroups;
    device.call(
        &KERNEL,
        Variant::BASELINE.with_subgroups(subgroups),
        &params,
        &[logits, &shares],
    )?;
    Ok(shares)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let experts = p.experts as usize;
    let logits = args.tensors[0].to_f64();
    let mut expected = Expected::default();
    for line in logits.chunks_exact(experts) {
        if let Some(broken) = line.iter().find(|logit| logit.is_nan()) {
            line.iter().for_each(|_| expected.push(*broken, 0.0));
            continue;
        }
        let most = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let terms = line.iter().enumerate().map(|(expert, own)| {
            let goes_before =
                |(other, logit): (usize, &f64)| logit > own || (logit == own && other < expert);
            let before = line.iter().enumerate().filter(|(o, l)| goes_before((*o, *l))).count();
            let below = if *own == most { 0.0 } else { own - most };
            let chosen = before < p.used as usize;
            // Of exp: (3 + 2 |x|) ulp, and half an ulp of its argument.
            let relative = (8.0 + 6.0 * below.abs().min(100.0)) * U;
            (below.exp(), relative, chosen)
        });
        let terms: Vec<(f64, f64, bool)> = terms.collect();
        let summed = || terms.iter().filter(|(.., chosen)| *chosen || p.normalized == 0);
        let total: f64 = summed().map(|(term, ..)| term).sum();
        let of_total: f64 = summed().map(|(term, relative, _)| term * relative).sum();
        for (term, relative, chosen) in terms.iter().copied() {
            if !chosen {
                expected.push(0.0, 0.0);
                continue;
            }
            let share = term / total;
            let relative = relative + of_total / total + gamma(experts + 4);
            expected.push(share, share * relative + storing(DType::F32, share));
        }
    }
    vec![expected]
}

fn case(tokens: usize, experts: usize, used: usize, note: &'static str) -> Case {
    Case::new(format!("tokens={tokens},experts={experts},used={used}{note}"), move |_: &Variant| {
        let mut random = Random::new(61);
        let mut logits = random.values(tokens * experts, 4.0);
        match note {
            ",equal" => logits.fill(-1.5),
            // Few values, so that many are equal.
            ",rounded" => logits.iter_mut().for_each(|logit| *logit = logit.round()),
            // Beside the largest, exp of the others is nothing.
            ",wide" => logits.iter_mut().for_each(|logit| *logit *= 50.0),
            _ => {}
        }
        let params = Params {
            tokens: tokens as u32,
            experts: experts as u32,
            used: used as u32,
            normalized: u32::from(note != ",of all"),
        };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, experts], &logits),
            HostTensor::zeros(DType::F32, &[tokens, experts]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let experts = sizes.between(1, 1, 150);
    let notes = ["", ",rounded", ",wide", ",of all"];
    case(
        sizes.between(0, 1, 60),
        experts,
        sizes.between(2, 1, experts.min(10)),
        notes[sizes.between(3, 0, 3)],
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 4, 2, ""),
        case(1, 1, 1, ""),
        case(3, 8, 1, ""),
        case(3, 8, 8, ""),
        case(5, 130, 8, ""),
        case(4, 8, 2, ",equal"),
        case(50, 9, 3, ",rounded"),
        case(20, 64, 6, ",wide"),
        case(6, 9, 4, ",of all"),
        case(5, 130, 8, ",of all"),
        case(3, 8, 2, ",of all").with(Poison::Infinity),
        case(3, 8, 2, "").with(Poison::Zeros),
        case(3, 8, 2, "").with(Poison::Infinity),
        case(3, 8, 2, "").with(Poison::NegativeInfinity),
        case(3, 8, 2, "").with(Poison::NaN),
        case(1051, 2, 1, ""),
        case(4096, 8, 2, "").bench(),
        case(4096, 128, 8, "").bench(),
    ]
}
