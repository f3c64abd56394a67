//! `probe/read`: each invocation folds 16 quads, a workgroup apart, by exclusive or into one word. 256 bytes are read per
//! invocation and 4 written.

use super::{Quads, result, words};
use crate::kernels::prelude::*;

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "probe/read",
    source: include_str!("../../../shaders/probe/read.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Quads::LAYOUT,
    overrides: &[("WORKGROUP", WORKGROUP as f64)],
    groups: |args| fold(args.parameters::<Quads>().quads as usize / (16 * WORKGROUP)),
    cost: |args| Cost::new(0.0, 16.25 * f64::from(args.parameters::<Quads>().quads)),
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let x = args.tensors[0].u32s();
    let mut values = Vec::with_capacity(x.len() / 64);
    for block in x.chunks_exact(16 * 4 * WORKGROUP) {
        for lane in 0..WORKGROUP {
            let quads = block.chunks_exact(4).skip(lane).step_by(WORKGROUP);
            values.push(f64::from(quads.flatten().fold(0, |folded, word| folded ^ word)));
        }
    }
    vec![Expected::exact(values)]
}

fn case(blocks: usize) -> Case {
    let quads = blocks * 16 * WORKGROUP;
    Case::new(format!("blocks={blocks}"), move |_: &Variant| {
        Quads { quads: quads as u32 }.case(vec![words(4 * quads), result(quads / 16)])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 12))
}

fn cases() -> Vec<Case> {
    vec![case(1), case(7), case(1 << 10).bench(), case(1 << 12).bench()]
}
