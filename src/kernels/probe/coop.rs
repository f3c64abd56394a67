//! `probe/coop`: result = steps * a * b of small integers, by cooperative-matrix multiply-adds. Exact: every sum is an
//! integer below 2^24.

use super::Steps;
use crate::kernels::prelude::*;

/// Tiles of a workgroup, as in the shader.
const GROUP_TILES: usize = 4;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "probe/coop",
    source: include_str!("../../../shaders/probe/coop.wgsl"),
    bindings: &[
        binding("a", Access::Read, Element::Is(DType::F16)),
        binding("b", Access::Read, Element::Is(DType::F16)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Steps::LAYOUT,
    variants: || {
        let of = |coop| Variant { coop, subgroups: true, ..Variant::BASELINE };
        vec![of(16), of(8)]
    },
    groups: |args| fold((args.parameters::<Steps>().invocations as usize).div_ceil(GROUP_TILES)),
    cost: |args| {
        let p: Steps = args.parameters();
        let (tiles, edge) = (f64::from(p.invocations), f64::from(args.variant.coop));
        Cost::new(
            tiles * f64::from(p.steps) * 4.0 * 2.0 * edge.powi(3),
            tiles * edge * edge * (2.0 * 2.0 + 4.0 * 4.0),
        )
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Steps = args.parameters();
    let edge = args.variant.coop as usize;
    let b = args.tensors[1].to_f64();
    let row = |row: usize| {
        let a = args.tensors[0].load(row * edge, edge);
        let column = |column: usize| {
            let products = (0..edge).map(|k| f64::from(a[k]) * b[k * 2 * edge + column]);
            f64::from(p.steps) * products.sum::<f64>()
        };
        (0..2 * edge).map(column).collect::<Vec<_>>()
    };
    let rows = p.invocations as usize * 2 * edge;
    let rows: Vec<Vec<f64>> = (0..rows).into_par_iter().map(row).collect();
    vec![Expected::exact(rows.concat())]
}

fn case(tiles: usize, steps: u32) -> Case {
    Case::new(format!("tiles={tiles},steps={steps}"), move |variant: &Variant| {
        let edge = variant.coop as usize;
        let mut random = Random::new(33);
        let mut integers = |shape: &[usize]| {
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| random.below(5) as f32 - 2.0).collect();
            HostTensor::from_f32(DType::F16, shape, &values)
        };
        let (a, b) = (integers(&[tiles, 2 * edge, edge]), integers(&[edge, 2 * edge]));
        Steps { invocations: tiles as u32, steps }.case(vec![
            a,
            b,
            HostTensor::zeros(DType::F32, &[tiles, 2 * edge, 2 * edge]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(4 * sizes.between(0, 1, 10), sizes.between(1, 1, 64) as u32)
}

fn cases() -> Vec<Case> {
    vec![case(4, 1), case(28, 5), case(1 << 13, 1024).bench()]
}
