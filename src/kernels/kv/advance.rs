//! `kv/advance`: the likeliest token becomes the next one, without the processor: the next pass reads it, and the cache holds one
//! token more. Which it is, the first of equals, and its logits' log-sum-exp, not finite where a logit is not, come of the parts of
//! [`loss/peaks`](crate::kernels::loss::peaks): with m the largest of their largest m_i, m + log(sum(exp(m_i - m) sum_i)).

use crate::kernels::loss::peaks::{LEAST, Peaks};
use crate::kernels::prelude::*;

params! {
    struct Params {
        sequences: u32,
        parts: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "kv/advance",
    source: include_str!("../../../shaders/kv/advance.wgsl"),
    bindings: &[
        binding("peaks", Access::Read, Element::Is(DType::F32)),
        binding("places", Access::Read, Element::Is(DType::U32)),
        binding("ids", Access::ReadWrite, Element::Is(DType::U32)),
        binding("past", Access::ReadWrite, Element::Is(DType::U32)),
        binding("told", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || vec![Variant::BASELINE, Variant { subgroups: true, ..Variant::BASELINE }],
    groups: |args| fold(args.parameters::<Params>().sequences as usize),
    cost: |args| {
        let parts = args.tensors[1].len() as f64;
        Cost::new(8.0 * parts, 12.0 * parts)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// For each sequence: its likeliest token takes its place in `ids`, `past` grows by one, and `told`, f32 of (sequences, 2), gets the
/// token and the log-sum-exp.
pub fn advance(
    device: &Device,
    peaks: &Peaks,
    ids: &Tensor,
    past: &Tensor,
    told: &Tensor,
) -> Result<()> {
    let sequences = ids.len();
    let params =
        Params { sequences: sequences as u32, parts: (peaks.places.len() / sequences) as u32 };
    let variant = Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE };
    device.call(&KERNEL, variant, &params, &[&peaks.peaks, &peaks.places, ids, past, told])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (peaks, places) = (args.tensors[0].to_f64(), args.tensors[1].u32s());
    let (mut ids, mut told) = (Vec::new(), Expected::default());
    let parts = p.parts as usize;
    for (peaks, places) in peaks.chunks_exact(2 * parts).zip(places.chunks_exact(parts)) {
        let (mut token, mut largest) = (0, f64::from(LEAST));
        for (peak, place) in peaks.chunks_exact(2).zip(places) {
            if peak[0] > largest {
                (token, largest) = (*place, peak[0]);
            }
        }
        let (mut sum, mut bound) = (0.0, 0.0);
        for peak in peaks.chunks_exact(2) {
            let term = peak[1] * (peak[0] - largest).exp();
            sum += term;
            bound += term * (10.0 + 6.0 * (largest - peak[0]).min(100.0)) * U;
        }
        let value = largest + sum.ln();
        let log = f64::powi(2.0, -21).max(6.0 * U * sum.ln().abs());
        let stored = storing(DType::F32, value) + 2.0 * U * largest.abs();
        ids.push(f64::from(token));
        told.push(token.into(), 0.0);
        told.push(value, bound / sum + gamma(parts) + log + stored);
    }
    let past = args.tensors[3].u32s().iter().map(|past| f64::from(past + 1)).collect();
    vec![Expected::exact(ids), Expected::exact(past), told]
}

fn case(sequences: usize, parts: usize, note: &'static str) -> Case {
    let label = format!("sequences={sequences},parts={parts}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(29);
        let count = sequences * parts;
        let mut peaks: Vec<f32> = (0..count)
            .flat_map(|_| [9.0 * random.value(), 700.0 + 600.0 * random.value()])
            .collect();
        match note {
            // All below zero, so that a lane without a part must not win.
            ",below" => peaks.chunks_exact_mut(2).for_each(|peak| peak[0] -= 1000.0),
            // The largest in several parts, of one lane and of others.
            ",equals" => peaks.chunks_exact_mut(2).skip(1).step_by(2).for_each(|p| p[0] = 20.0),
            // No logit above the bound: the first token.
            ",nothing" => peaks.chunks_exact_mut(2).for_each(|peak| peak[0] = LEAST),
            ",nan" => peaks[1] = f32::NAN,
            _ => {}
        }
        // In order, as columns of parts are.
        let places: Vec<u32> =
            (0..count).map(|index| (index % parts) as u32 * 2048 + random.below(2048)).collect();
        let mut words = || -> Vec<u32> { (0..sequences).map(|_| random.below(1 << 20)).collect() };
        let (ids, past) = (words(), words());
        let params = Params { sequences: sequences as u32, parts: parts as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[sequences, parts, 2], &peaks),
            HostTensor::from_u32(&[sequences, parts], &places),
            HostTensor::from_u32(&[sequences], &ids),
            HostTensor::from_u32(&[sequences], &past),
            HostTensor::zeros(DType::F32, &[sequences, 2]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 50), sizes.between(1, 1, 200), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, ""),
        case(5, 3, ""),
        case(70, 63, ""),
        case(2, 150, ""),
        case(3, 5, ",below"),
        case(3, 140, ",equals"),
        case(2, 70, ",nothing"),
        case(2, 4, ",nan"),
        // More sequences than one dimension of a dispatch holds.
        case(4099, 1, "").only(|variant| !variant.subgroups),
        case(1, 63, "").bench(),
    ]
}
