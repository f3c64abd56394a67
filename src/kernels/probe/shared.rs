//! `probe/shared`: how fast workgroup memory is read. Each invocation adds up 256 neighbouring quads of a tile of 512, 4
//! KiB a round. Exact, in wrapping integers.

use super::{Rounds, result, words};
use crate::kernels::prelude::*;

/// Invocations of a workgroup, and quads that each adds up in a round.
const WORKGROUP: usize = 256;

/// The row of the kernel table. Its cost counts the bytes read from workgroup memory.
pub static KERNEL: Kernel = Kernel {
    name: "probe/shared",
    source: include_str!("../../../shaders/probe/shared.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Rounds::LAYOUT,
    groups: |args| fold(args.parameters::<Rounds>().groups as usize),
    cost: |args| {
        let p: Rounds = args.parameters();
        let quads = f64::from(p.groups) * f64::from(p.rounds) * (WORKGROUP * WORKGROUP) as f64;
        Cost::new(4.0 * quads, 16.0 * quads)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Rounds = args.parameters();
    let group = |x: &[u32]| {
        let mut window: u32 = x[..WORKGROUP].iter().fold(0, |sum, v| sum.wrapping_add(*v));
        let mut lanes = Vec::with_capacity(WORKGROUP);
        for lane in 0..WORKGROUP {
            let component = |factor: u32| {
                let round =
                    |sum: u32, round: u32| (sum ^ round).wrapping_add(window.wrapping_mul(factor));
                (0..p.rounds).fold(0, round)
            };
            lanes.push(f64::from(component(1) ^ component(3) ^ component(5) ^ component(7)));
            window = window.wrapping_add(x[lane + WORKGROUP]).wrapping_sub(x[lane]);
        }
        lanes
    };
    let x = args.tensors[0].u32s();
    let lanes: Vec<Vec<f64>> = x.par_chunks_exact(2 * WORKGROUP).map(group).collect();
    vec![Expected::exact(lanes.concat())]
}

fn case(groups: usize, rounds: u32) -> Case {
    Case::new(format!("groups={groups},rounds={rounds}"), move |_: &Variant| {
        Rounds { groups: groups as u32, rounds }
            .case(vec![words(groups * 2 * WORKGROUP), result(groups * WORKGROUP)])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 20), sizes.between(1, 1, 5) as u32)
}

fn cases() -> Vec<Case> {
    vec![case(1, 1), case(9, 3), case(1 << 12, 1).bench()]
}
