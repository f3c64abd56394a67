//! `select/threshold`: which scores reach a threshold that stays on the device, [`select/top_k`](super::top_k)'s for
//! instance.

use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "select/threshold",
    source: include_str!("../../../shaders/select/threshold.wgsl"),
    bindings: &[
        binding("scores", Access::Read, Element::Is(DType::F32)),
        binding("threshold", Access::Read, Element::Is(DType::F32)),
        binding("mask", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold(args.tensors[0].len().div_ceil(64)),
    cost: |args| {
        let count = args.tensors[0].len() as f64;
        Cost::new(8.0 * count, 8.0 * count)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// A mask, u32 (count), of 1 where `scores`, f32 (count), are at least `threshold`, f32 (1), and 0 elsewhere: at a NaN, and
/// everywhere if the threshold is one.
pub fn threshold(device: &Device, scores: &Tensor, threshold: &Tensor) -> Result<Tensor> {
    let count = scores.len();
    let mask = device.allocate(DType::U32, &[count], "mask")?;
    let params = Params { count: count as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[scores, threshold, &mask])?;
    Ok(mask)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let bar = args.tensors[1].get(0);
    let scores = args.tensors[0].to_f64();
    // Every comparison with a NaN is false.
    let mask = scores.iter().map(|score| f64::from(*score >= bar));
    vec![Expected::exact(mask.collect())]
}

fn case(count: usize, bar: f32, note: &'static str) -> Case {
    Case::new(format!("count={count},bar={bar}{note}"), move |_: &Variant| {
        let mut random = Random::new(56);
        let mut scores = random.values(count, 2.0);
        match note {
            ",rounded" => scores.iter_mut().for_each(|score| *score = score.round()),
            ",special" => {
                let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0];
                for (score, special) in scores.iter_mut().zip(special) {
                    *score = special;
                }
            }
            // Below the normal range, around the threshold.
            ",small" => scores
                .iter_mut()
                .enumerate()
                .for_each(|(place, score)| *score = f32::from_bits(90 + place as u32)),
            _ => {}
        }
        Params { count: count as u32 }.case(vec![
            HostTensor::from_f32(DType::F32, &[count], &scores),
            HostTensor::from_f32(DType::F32, &[1], &[bar]),
            HostTensor::zeros(DType::U32, &[count]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let count = sizes.between(0, 1, 70) * sizes.between(1, 1, 70);
    let bar = [-1.0, 0.0, 0.3, 5.0][sizes.between(2, 0, 3)];
    case(count, bar, ["", ",rounded"][sizes.between(3, 0, 1)])
}

fn cases() -> Vec<Case> {
    vec![
        case(1001, 0.3, ""),
        case(1, -2.0, ""),
        case(500, 1.0, ",rounded"),
        case(500, -1.0, ",rounded"),
        case(7, 0.0, ",special"),
        case(7, -0.0, ",special"),
        case(7, f32::INFINITY, ",special"),
        case(7, f32::NEG_INFINITY, ",special"),
        case(7, f32::NAN, ",special"),
        case(20, f32::from_bits(100), ",small"),
        case(1 << 20, 0.5, "").bench(),
    ]
}
