//! `probe/write`: result[i] = i. 16 bytes of memory traffic per invocation.

use super::{Quads, result};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "probe/write",
    source: include_str!("../../../shaders/probe/write.wgsl"),
    bindings: &[binding("result", Access::Write, Element::Is(DType::U32))],
    parameters: Quads::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold((args.parameters::<Quads>().quads as usize).div_ceil(256)),
    cost: |args| Cost::new(0.0, 16.0 * f64::from(args.parameters::<Quads>().quads)),
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let quads = args.parameters::<Quads>().quads;
    vec![Expected::exact((0..4 * quads).map(f64::from).collect())]
}

fn case(quads: usize) -> Case {
    Case::new(format!("quads={quads}"), move |_: &Variant| {
        Quads { quads: quads as u32 }.case(vec![result(4 * quads)])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 70) * sizes.between(1, 1, 70))
}

fn cases() -> Vec<Case> {
    vec![case(1), case(1003), case(1 << 22).bench(), case(1 << 24).bench()]
}
