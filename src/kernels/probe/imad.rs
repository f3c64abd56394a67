//! `probe/imad`: 16 values per invocation, each turned 4 x steps times by v = v * f + b in wrapping integers, with
//! f = steps | 5. Exact.

use super::{Steps, result, words};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "probe/imad",
    source: include_str!("../../../shaders/probe/imad.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Steps::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold((args.parameters::<Steps>().invocations as usize).div_ceil(256)),
    cost: |args| {
        let p: Steps = args.parameters();
        let (invocations, steps) = (f64::from(p.invocations), f64::from(p.steps));
        Cost::new(invocations * steps * 4.0 * 16.0 * 2.0, 8.0 * invocations)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Steps = args.parameters();
    let element = |b: &u32| {
        let value = |start: u32| {
            let turn = |value: u32, _| value.wrapping_mul(p.steps | 5).wrapping_add(*b);
            (0..4 * p.steps).fold(b.wrapping_add(start), turn)
        };
        let lane = |lane: u32| {
            let [v0, v1, v2, v3] = [0, 4, 8, 12].map(|start| value(start + lane));
            (v0 ^ v1).wrapping_add(v2 ^ v3)
        };
        f64::from((0..4).map(lane).fold(0, u32::wrapping_add))
    };
    vec![Expected::exact(args.tensors[0].u32s().par_iter().map(element).collect())]
}

fn case(invocations: usize, steps: u32) -> Case {
    Case::new(format!("invocations={invocations},steps={steps}"), move |_: &Variant| {
        Steps { invocations: invocations as u32, steps }
            .case(vec![words(invocations), result(invocations)])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 70) * sizes.between(1, 1, 20), sizes.between(2, 1, 12) as u32)
}

fn cases() -> Vec<Case> {
    vec![case(1, 1), case(1003, 5), case(1 << 19, 64).bench()]
}
