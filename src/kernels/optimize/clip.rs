//! `optimize/clip`: what a gradient is multiplied by so that its norm is at most so much (Pascanu, Mikolov and Bengio 2013,
//! arXiv 1211.5063, section 3.2), as PyTorch's `clip_grad_norm_` does, with 1e-6 added to the norm:
//! norm = scale sqrt(sum partials), factor = scale min(1, max_norm / (norm + 1e-6)).
//!
//! It stays on the device, so that a step waits for no readback; a norm that is not finite makes the step change nothing.

use glam::UVec3;

use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        max_norm: f32,
        scale: f32,
    }
}

/// Added to a norm that is divided by, as in the shader.
const EPSILON: f64 = 1e-6;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "optimize/clip",
    source: include_str!("../../../shaders/optimize/clip.wgsl"),
    bindings: &[
        binding("partials", Access::Read, Element::Is(DType::F32)),
        binding("state", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |_| UVec3::ONE,
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(100.0 * values, 4.0 * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// From the sums of squares of all parts of a gradient, f32 (parts), that [`squares`](super::squares) made: writes
/// (norm, factor, finite, 0) to `state`, f32 (4).
///
/// The gradient stands for `scale`, more than 0, times itself: 1 over the factor that its loss was multiplied by, and over the
/// microbatches that were added up. The norm is of that; `factor` is `scale`, and less where the norm is above `max_norm`,
/// which is infinite where nothing is clipped. `finite` is 1; or it and the factor are 0 where the sum of squares is infinite
/// or NaN, and the norm is what the sum is.
pub fn clip(
    device: &Device,
    partials: &Tensor,
    max_norm: f32,
    scale: f32,
    state: &Tensor,
) -> Result<()> {
    assert!(scale > 0.0 && max_norm > 0.0, "a factor and a norm above 0: {scale}, {max_norm}");
    // No infinity goes to a shader, which may assume that there is none.
    let max_norm = max_norm.min(f32::MAX);
    let params = Params { count: partials.len() as u32, max_norm, scale };
    device.call(&KERNEL, Variant::BASELINE, &params, &[partials, state])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let partials = args.tensors[0].to_f64();
    let sum: f64 = partials.iter().sum();
    if sum.is_nan() || sum > f64::from(f32::MAX) {
        let sum = if sum.is_nan() { sum } else { f64::INFINITY };
        return vec![Expected::exact(vec![sum, 0.0, 0.0, 0.0])];
    }
    let (max_norm, scale) = (f64::from(p.max_norm), f64::from(p.scale));
    let norm = scale * sum.sqrt();
    // Half the error of the sum; the root is 1 / inverseSqrt, off by 2 and 2.5 ulp.
    let relative = gamma(partials.len() + 2) / 2.0 + 12.0 * U;
    let clipped = (max_norm / (norm + EPSILON)).min(1.0);
    let mut expected = Expected::default();
    expected.push(norm, relative * norm + storing(DType::F32, norm));
    let factor = scale * clipped;
    expected.push(factor, (relative + 10.0 * U) * factor + storing(DType::F32, factor));
    expected.push(1.0, 0.0);
    expected.push(0.0, 0.0);
    vec![expected]
}

fn case(count: usize, (max_norm, scale): (f32, f32), note: &'static str) -> Case {
    Case::new(format!("count={count},max={max_norm:e},scale={scale}{note}"), move |_: &Variant| {
        let mut partials = Random::new(62).values(count, 2.0);
        partials.iter_mut().for_each(|value| *value = value.abs());
        if note == ",beyond" {
            partials.fill(3e38);
        }
        let params = Params { count: count as u32, max_norm, scale };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[count], &partials),
            HostTensor::zeros(DType::F32, &[4]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let max_norm = [f32::MAX, 1.0, 0.01, 30.0][sizes.between(2, 0, 3)];
    let scale = [1.0, 0.25, 1.0 / 1024.0][sizes.between(3, 0, 2)];
    case(sizes.between(0, 1, 60) * sizes.between(1, 1, 60), (max_norm, scale), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, (1.0, 1.0), ""),
        case(1, (1e-3, 0.125), ""),
        case(300, (1.0, 1.0), ""),
        case(300, (f32::MAX, 0.5), ""),
        case(5003, (1.0, 1.0 / 1024.0), ""),
        // The norm is far below what is added to it.
        case(40, (1.0, 1e-8), ""),
        case(40, (1e-7, 1e-8), ""),
        case(40, (1.0, 1.0), "").with(Poison::Zeros),
        case(40, (1.0, 1.0), ",beyond"),
        case(40, (1.0, 1.0), "").with(Poison::Infinity),
        case(40, (1.0, 1.0), "").with(Poison::NaN),
        case(20_000, (1.0, 1.0), "").bench(),
    ]
}
