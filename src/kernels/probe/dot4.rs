//! `probe/dot4`: four sums per invocation, each with `steps` products of four signed bytes by dot4I8Packed. Exact.

use super::{Steps, result, words};
use crate::kernels::prelude::*;

/// The other operand of every product: bytes 2, 3, -2, 1 from the lowest.
const OPERAND: u32 = 0x01fe_0302;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "probe/dot4",
    source: include_str!("../../../shaders/probe/dot4.wgsl"),
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
        // Four products and four additions a dot; the exclusive or is not counted.
        Cost::new(invocations * steps * 4.0 * 8.0, 8.0 * invocations)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn dot(a: u32, b: u32) -> i32 {
    let byte = |word: u32, index: u32| i32::from((word >> (8 * index)) as u8 as i8);
    (0..4).map(|index| byte(a, index) * byte(b, index)).sum()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Steps = args.parameters();
    let element = |word: &u32| {
        let mut sums = [0i32, 1, 2, 3];
        for _ in 0..p.steps {
            for sum in &mut sums {
                *sum = sum.wrapping_add(dot(word ^ *sum as u32, OPERAND));
            }
        }
        f64::from(sums.iter().fold(0, |folded, sum| folded ^ *sum as u32))
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
