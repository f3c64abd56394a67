//! `select/top_k`: which of many scores are the k largest, and the smallest of those. A radix selection, digit by digit from
//! the highest (Alabi, Blanchard, Gordon and Steinbach 2012, "Fast k-selection algorithms for graphics processing units"),
//! and exact: of equal scores the first are kept.

use glam::UVec3;

use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        /// At most count.
        keep: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "select/top_k",
    source: include_str!("../../../shaders/select/top_k.wgsl"),
    bindings: &[
        binding("scores", Access::Read, Element::Is(DType::F32)),
        binding("mask", Access::Write, Element::Is(DType::U32)),
        binding("threshold", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    groups: |_| UVec3::ONE,
    cost: |args| {
        let count = args.tensors[0].len() as f64;
        // One workgroup keeps the rest of a device waiting: it takes as long as many times its work does elsewhere.
        Cost::new(1000.0 * count, 28.0 * count)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// For `scores`, f32 (count): a mask, u32 (count), of 1 at the `keep` largest and 0 elsewhere, and the smallest score kept,
/// f32 (1).
///
/// Of equal scores, as the two zeros are, the lower index goes first; NaN is below every other. All are kept where `keep` is
/// more than there are. The threshold is infinite where none is kept, and NaN where one of those is.
pub fn top_k(device: &Device, scores: &Tensor, keep: usize) -> Result<(Tensor, Tensor)> {
    let count = scores.len();
    let mask = device.allocate(DType::U32, &[count], "mask")?;
    let threshold = device.allocate(DType::F32, &[1], "threshold")?;
    let params = Params { count: count as u32, keep: keep.min(count) as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[scores, &mask, &threshold])?;
    Ok((mask, threshold))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let scores = args.tensors[0].to_f64();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // The sort is stable: equals stay in the order of their places.
    order.sort_by(|&a, &b| {
        let (a, b) = (scores[a], scores[b]);
        let numbers = b.partial_cmp(&a);
        numbers.unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
    });
    let kept = &order[..p.keep as usize];
    let mut mask = vec![0.0; scores.len()];
    for &place in kept {
        mask[place] = 1.0;
    }
    let threshold = kept.last().map_or(f64::INFINITY, |&place| scores[place]);
    vec![Expected::exact(mask), Expected::exact(vec![threshold])]
}

fn case(count: usize, keep: usize, note: &'static str) -> Case {
    Case::new(format!("count={count},keep={keep}{note}"), move |_: &Variant| {
        let mut random = Random::new(55);
        let mut scores = random.values(count, 3.0);
        match note {
            ",equal" => scores.fill(0.25),
            // Few values, so that many are equal.
            ",rounded" => scores.iter_mut().for_each(|score| *score = score.round()),
            ",zeros" => {
                let zeros = [0.0, -0.0];
                scores.iter_mut().for_each(|s| *s = zeros[(*s > 0.0) as usize])
            }
            // Every digit of a key counts: neighbours that differ in the last bit.
            ",close" => scores
                .iter_mut()
                .for_each(|score| *score = f32::from_bits(0x3f80_0000 + (*score * 9e4) as u32)),
            // From one end of the range to the other, and below it: any bits but a NaN's.
            ",wide" => scores.iter_mut().for_each(|score| {
                let any = f32::from_bits(random.word());
                *score = if any.is_nan() { 1.0 } else { any };
            }),
            ",nan" => scores
                .iter_mut()
                .enumerate()
                .filter(|(place, _)| place % 3 == 1)
                .for_each(|(place, score)| *score = [f32::NAN, -f32::NAN][place % 2]),
            ",infinity" => {
                scores[count / 2] = f32::INFINITY;
                scores[count / 3] = f32::NEG_INFINITY;
                scores[count - 1] = f32::NEG_INFINITY;
                scores[0] = f32::NAN;
            }
            _ => {}
        }
        let params = Params { count: count as u32, keep: keep as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[count], &scores),
            HostTensor::zeros(DType::U32, &[count]),
            HostTensor::zeros(DType::F32, &[1]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let count = sizes.between(0, 1, 70) * sizes.between(1, 1, 70);
    let notes = ["", ",rounded", ",zeros", ",close", ",wide", ",nan"];
    let keep = sizes.between(2, 0, count);
    case(count, keep, notes[sizes.between(3, 0, 5)])
}

fn cases() -> Vec<Case> {
    vec![
        case(1000, 300, ""),
        case(1, 1, ""),
        case(1, 0, ""),
        case(257, 0, ""),
        case(300, 300, ""),
        case(5000, 1, ""),
        case(100, 37, ",equal"),
        case(2000, 901, ",rounded"),
        case(513, 200, ",zeros"),
        case(3000, 1234, ",close"),
        case(3000, 1700, ",wide"),
        // A NaN in three: all others are kept, or some of the NaNs too.
        case(999, 400, ",nan"),
        case(999, 666, ",nan"),
        case(999, 700, ",nan"),
        case(30, 28, ",infinity"),
        case(100_003, 70_001, ""),
        case(1 << 20, 700_000, "").bench(),
    ]
}
