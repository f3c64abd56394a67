//! `score/blocks`: one score for each block of consecutive channels, a head's for instance, of several members that can only
//! be pruned together: each member's channels first, then the members, by one [`Reduction`] (Ma et al. 2023, LLM-Pruner,
//! arXiv 2305.11627, section 3.2, "group importance").

use super::Reduction;
use crate::kernels::prelude::*;

params! {
    struct Params {
        members: u32,
        count: u32,
        block: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "score/blocks",
    source: include_str!("../../../shaders/score/blocks.wgsl"),
    bindings: &[
        binding("scores", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || Reduction::ALL.map(Reduction::variant).to_vec(),
    groups: |args| fold(args.tensors[1].len().div_ceil(64)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(values, 4.0 * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The scores of blocks, f32 (count), from those of their channels, f32 (members, count * block): `block` consecutive ones
/// become one, then those of all members.
pub fn blocks(
    device: &Device,
    reduction: Reduction,
    scores: &Tensor,
    block: usize,
) -> Result<Tensor> {
    let (members, channels) = (scores.shape()[0], scores.shape()[1]);
    let count = channels / block;
    assert_eq!(channels, count * block, "blocks are whole");
    let result = device.allocate(DType::F32, &[count], "scores of blocks")?;
    let params = Params { members: members as u32, count: count as u32, block: block as u32 };
    device.call(&KERNEL, reduction.variant(), &params, &[scores, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (members, count, block) = (p.members as usize, p.count as usize, p.block as usize);
    let scores = args.tensors[0].to_f64();
    let reduction = Reduction::of(args.variant);
    let mut expected = Expected::default();
    for index in 0..count {
        let parts: Vec<(f64, f64)> = (0..members)
            .map(|member| {
                let first = (member * count + index) * block;
                let channels = scores[first..first + block].iter();
                reduced(reduction, channels.map(|score| (*score, 0.0)).collect())
            })
            .collect();
        let (value, bound) = reduced(reduction, parts);
        expected.push(value, bound);
    }
    vec![expected]
}

/// One value of several, each with how far from it a device may be.
fn reduced(reduction: Reduction, parts: Vec<(f64, f64)>) -> (f64, f64) {
    let count = parts.len();
    let sum: f64 = parts.iter().map(|part| part.0).sum();
    let reached: f64 = parts.iter().map(|part| part.0.abs() + part.1).sum();
    let off = parts.iter().map(|part| part.1).sum::<f64>() + gamma(count) * reached;
    match reduction {
        Reduction::Sum => (sum, off + storing(DType::F32, sum)),
        // A quotient is off by 2.5 units in the last place.
        Reduction::Mean => {
            let mean = sum / count as f64;
            let off = off / count as f64 + 4.0 * U * mean.abs();
            (mean, off + storing(DType::F32, mean))
        }
        Reduction::Max => {
            let larger = |known: (f64, f64), next: &(f64, f64)| {
                let keep = known.0.is_nan() || (!next.0.is_nan() && known.0 >= next.0);
                (if keep { known.0 } else { next.0 }, known.1.max(next.1))
            };
            parts[1..].iter().fold(parts[0], larger)
        }
        Reduction::Product => parts[1..].iter().fold(parts[0], times),
        Reduction::First => parts[0],
        Reduction::Last => parts[count - 1],
    }
}

/// A product that leaves f32's range on its way stays outside, even where its other factors would bring it back; what is
/// below the normal range may be taken for zero.
fn times(known: (f64, f64), next: &(f64, f64)) -> (f64, f64) {
    let value = known.0 * next.0;
    if value.abs() > f64::from(f32::MAX) {
        return (value.signum() * f64::INFINITY, 0.0);
    }
    let off = known.0.abs() * next.1 + known.1 * next.0.abs() + known.1 * next.1;
    (value, off + storing(DType::F32, value))
}

fn case(members: usize, count: usize, block: usize, note: &'static str) -> Case {
    let label = format!("members={members},count={count},block={block}{note}");
    Case::new(label, move |_: &Variant| {
        let width = count * block;
        let mut random = Random::new(54);
        let mut scores = random.values(members * width, 1.5);
        match note {
            // Only negative ones: a maximum that starts from 0 is none of them.
            ",negative" => scores.iter_mut().for_each(|score| *score = -score.abs()),
            ",equal" => scores.fill(0.5),
            // Products that leave the range of f32 at either end.
            ",large" => scores.fill(1e3),
            ",small" => scores.fill(-1e-3),
            ",nan first" => scores[0] = f32::NAN,
            _ => {}
        }
        let params = Params { members: members as u32, count: count as u32, block: block as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[members, width], &scores),
            HostTensor::zeros(DType::F32, &[count]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 8), sizes.between(1, 1, 200), sizes.between(2, 1, 40), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 9, 64, ""),
        case(1, 1, 1, ""),
        case(4, 97, 1, ""),
        case(1, 70, 5, ""),
        case(2, 5, 6, "").with(Poison::Zeros),
        case(2, 5, 6, ",negative"),
        case(2, 5, 6, ",equal"),
        case(2, 5, 16, ",large"),
        case(2, 5, 16, ",small"),
        case(2, 5, 6, "").with(Poison::Infinity),
        case(2, 5, 6, "").with(Poison::NaN),
        case(2, 5, 6, ",nan first"),
        case(4, 14_336, 1, "").bench(),
        case(4, 32, 128, "").bench(),
    ]
}
