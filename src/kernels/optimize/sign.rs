//! `optimize/sign`: one step by the sign of a gradient (signSGD, Bernstein et al. 2018, arXiv 1802.04434, algorithm 1), within
//! bounds, as learned rounding takes it (AutoRound, Cheng et al. 2023, arXiv 2309.05516, algorithm 1):
//! weight = clamp(weight - rate sign(gradient), low, high), with sign(0) = 0.

use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        rate: f32,
        low: f32,
        high: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "optimize/sign",
    source: include_str!("../../../shaders/optimize/sign.wgsl"),
    bindings: &[
        binding("gradient", Access::Read, Element::Is(DType::F32)),
        binding("state", Access::Read, Element::Is(DType::F32)),
        binding("weight", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold(args.tensors[0].len().div_ceil(256)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(4.0 * values, 12.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Moves each of `weight`, f32, by `rate` against the sign of `gradient`, f32 of as many elements, to no more than `bounds`, in
/// place. `state` is what [`clip`](super::clip) made of the whole gradient: nothing changes where that is not finite.
pub fn sign(
    device: &Device,
    rate: f32,
    bounds: (f32, f32),
    gradient: &Tensor,
    state: &Tensor,
    weight: &Tensor,
) -> Result<()> {
    assert_eq!(gradient.len(), weight.len(), "a gradient for each weight");
    let (low, high) = bounds;
    let params = Params { count: weight.len() as u32, rate, low, high };
    device.call(&KERNEL, Variant::BASELINE, &params, &[gradient, state, weight])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let weight = args.tensors[2].to_f64();
    if args.tensors[1].get(2) == 0.0 {
        return vec![Expected::exact(weight)];
    }
    let mut expected = Expected::default();
    for (index, weight) in weight.into_iter().enumerate() {
        let gradient = args.tensors[0].get(index);
        let sign = if gradient == 0.0 { 0.0 } else { gradient.signum() };
        let value = weight - f64::from(p.rate) * sign;
        let value = value.clamp(f64::from(p.low), f64::from(p.high));
        expected.push(value, storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let gradient = args.tensors[0].to_f32();
    if args.tensors[1].get(2) == 0.0 {
        return;
    }
    let mut weight = outputs.load(0, 0, gradient.len());
    weight.iter_mut().zip(&gradient).for_each(|(weight, gradient)| {
        let sign = if *gradient == 0.0 { 0.0 } else { gradient.signum() };
        *weight = (*weight - p.rate * sign).clamp(p.low, p.high);
    });
    outputs.store(0, 0, &weight);
}

fn case(count: usize, rate: f32, (low, high): (f32, f32), note: &'static str) -> Case {
    let label = format!("count={count},rate={rate},low={low},high={high}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(83);
        let mut gradient = random.values(count, 1e-3);
        gradient.iter_mut().step_by(5).for_each(|value| *value = 0.0);
        let params = Params { count: count as u32, rate, low, high };
        let weight: Vec<f32> =
            random.values(count, 1.0).iter().map(|value| value.clamp(low, high)).collect();
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[count], &gradient),
            super::step::state(1.0, note != ",not finite"),
            HostTensor::from_f32(DType::F32, &[count], &weight),
        ])
    })
}

const HALF: (f32, f32) = (-0.5, 0.5);
const ANY: (f32, f32) = (f32::MIN, f32::MAX);

fn random(sizes: &Sizes) -> Case {
    let count = sizes.between(0, 1, 70) * sizes.between(1, 1, 70);
    let rate = [0.0, 0.01, 0.3][sizes.between(2, 0, 2)];
    case(count, rate, [HALF, ANY][sizes.between(3, 0, 1)], "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 0.1, HALF, ""),
        case(1001, 0.2, HALF, ""),
        case(1002, 0.01, (0.5, 1.0), ""),
        case(1003, 0.01, ANY, ""),
        case(301, 0.1, HALF, ",not finite"),
        case(301, 0.1, HALF, ",not finite").poisoned(0, Poison::NaN),
        case(4096 * 4096, 0.01, HALF, "").bench(),
    ]
}
