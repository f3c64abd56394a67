//! `probe/read`: each invocation folds a few quads, a workgroup apart, by exclusive or into one word. How many loads under way at
//! once a device wants differs, so there is a variant for each number; the quickest is the device's rate.

use super::{Quads, result, words};
use crate::kernels::prelude::*;

type Constants = &'static [(&'static str, u32)];

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;

/// Quads of an invocation.
const EACH: [Constants; 4] = [&[("QUADS", 4)], &[("QUADS", 8)], &[("QUADS", 16)], &[("QUADS", 32)]];

fn each(variant: &Variant) -> usize {
    variant.constant("QUADS") as usize
}

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
    variants: || EACH.map(|constants| Variant { constants, ..Variant::BASELINE }).to_vec(),
    groups: |args| {
        fold(args.parameters::<Quads>().quads as usize / (each(args.variant) * WORKGROUP))
    },
    cost: |args| {
        let bytes = 16.0 + 4.0 / each(args.variant) as f64;
        Cost::new(0.0, bytes * f64::from(args.parameters::<Quads>().quads))
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let x = args.tensors[0].u32s();
    let each = each(args.variant);
    let mut values = Vec::with_capacity(x.len() / (4 * each));
    for block in x.chunks_exact(each * 4 * WORKGROUP) {
        for lane in 0..WORKGROUP {
            let quads = block.chunks_exact(4).skip(lane).step_by(WORKGROUP);
            values.push(f64::from(quads.flatten().fold(0, |folded, word| folded ^ word)));
        }
    }
    vec![Expected::exact(values)]
}

/// So many blocks of 32 quads for each of a workgroup's invocations: whole ones of every variant.
fn case(blocks: usize) -> Case {
    let quads = blocks * 32 * WORKGROUP;
    Case::new(format!("blocks={blocks}"), move |variant: &Variant| {
        Quads { quads: quads as u32 }.case(vec![words(4 * quads), result(quads / each(variant))])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 6))
}

fn cases() -> Vec<Case> {
    vec![case(1), case(5), case(1 << 9).bench(), case(1 << 12).bench()]
}
