//! `probe/fma`: 16 values per invocation, each turned 4 x steps times by v = v * 0.5 + b, then summed. The value tends to
//! 2 b, so it neither grows nor vanishes.

use super::Steps;
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "probe/fma",
    source: include_str!("../../../shaders/probe/fma.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Activation),
    ],
    parameters: Steps::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || {
        let half = Variant::typed(DType::F16, DType::F16);
        vec![Variant::BASELINE, half]
    },
    groups: |args| fold((args.parameters::<Steps>().invocations as usize).div_ceil(256)),
    cost: |args| {
        let p: Steps = args.parameters();
        let (invocations, steps) = (f64::from(p.invocations), f64::from(p.steps));
        let bytes = 2.0 * invocations * args.tensors[0].dtype.size() as f64;
        Cost::new(invocations * (steps * 4.0 * 16.0 * 2.0 + 27.0), bytes)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Steps = args.parameters();
    let dtype = args.variant.activation;
    let element = |index: usize| {
        let b = args.tensors[0].get(index);
        let mut sum = 0.0;
        for start in 0..16 {
            let mut value = b + 0.25 * f64::from(start);
            for _ in 0..4 * p.steps {
                value = value * 0.5 + b;
            }
            sum += value;
        }
        // Each turn halves what errors there are and adds one rounding of at most 2 |b| + 4; so do the 15 additions.
        let magnitude = 16.0 * (2.0 * b.abs() + 4.0);
        (sum, 8.0 * dtype.unit_roundoff() * magnitude + storing(dtype, sum))
    };
    let (values, bounds) = (0..p.invocations as usize).into_par_iter().map(element).unzip();
    vec![Expected { values, bounds }]
}

fn case(invocations: usize, steps: u32) -> Case {
    Case::new(format!("invocations={invocations},steps={steps}"), move |variant: &Variant| {
        let values = Random::new(32).values(invocations, 2.0);
        let dtype = variant.activation;
        Steps { invocations: invocations as u32, steps }.case(vec![
            HostTensor::from_f32(dtype, &[invocations], &values),
            HostTensor::zeros(dtype, &[invocations]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 70) * sizes.between(1, 1, 20), sizes.between(2, 1, 12) as u32)
}

fn cases() -> Vec<Case> {
    vec![case(1, 1), case(1003, 5), case(1 << 19, 64).bench()]
}
