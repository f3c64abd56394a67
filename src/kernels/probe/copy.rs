//! `probe/copy`: result = x. 32 bytes of memory traffic per invocation.

use super::{Quads, result, words};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "probe/copy",
    source: include_str!("../../../shaders/probe/copy.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Quads::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold((args.parameters::<Quads>().quads as usize).div_ceil(256)),
    cost: |args| Cost::new(0.0, 32.0 * f64::from(args.parameters::<Quads>().quads)),
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    vec![Expected::exact(args.tensors[0].to_f64())]
}

fn case(quads: usize) -> Case {
    Case::new(format!("quads={quads}"), move |_: &Variant| {
        Quads { quads: quads as u32 }.case(vec![words(4 * quads), result(4 * quads)])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 70) * sizes.between(1, 1, 70))
}

fn cases() -> Vec<Case> {
    vec![case(1), case(1003), case(1 << 22).bench(), case(1 << 24).bench()]
}
