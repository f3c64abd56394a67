//! `quantize/clip_range`: grids whose ranges are clipped by learned factors (AutoRound, Cheng et al. 2023, arXiv 2309.05516,
//! equations 2 and 4). With a group's scale s0 and offset m0, so that its values go from m0 to s0 last + m0, and factors a and b:
//! s = (a (s0 last + m0) - b m0) / last = a s0 + (a - b) m0 / last and m = b m0.
//! Without offsets both ends are clipped alike, s = a s0, and zero points stay.

use crate::kernels::prelude::*;

params! {
    struct Params {
        groups: u32,
        /// 1: grids have offsets.
        by_offset: u32,
        /// The highest code.
        last: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/clip_range",
    source: include_str!("../../../shaders/quantize/clip_range.wgsl"),
    bindings: &[
        binding("clips", Access::Read, Element::Is(DType::F32)),
        binding("base", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Write, Element::Is(DType::F32)),
        binding("offsets", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold(args.tensors[2].len().div_ceil(64)),
    cost: |args| {
        let groups = args.tensors[2].len() as f64;
        Cost::new(6.0 * groups, 24.0 * groups)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// From factors `clips` and grids `base`, f32 (rows, groups, 2) each, a grid's scale and its offset or what it has instead: the
/// scales, f32 (rows, groups), and the offsets if `by_offset`. `last`: the highest code.
pub fn clip_range(
    device: &Device,
    clips: &Tensor,
    base: &Tensor,
    last: u32,
    by_offset: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    assert_eq!(clips.shape(), base.shape(), "factors for each grid");
    let shape = [clips.shape()[0], clips.shape()[1]];
    let scales = device.allocate(DType::F32, &shape, "clipped scales")?;
    let unused = [1, 1];
    let shape = if by_offset { &shape } else { &unused };
    let offsets = device.allocate(DType::F32, shape, "clipped offsets")?;
    let groups = scales.len() as u32;
    let params = Params { groups, by_offset: u32::from(by_offset), last: last as f32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[clips, base, &scales, &offsets])?;
    Ok((scales, by_offset.then_some(offsets)))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (mut scales, mut offsets) =
        (Expected::default(), Expected::exact(args.tensors[3].to_f64()));
    for group in 0..p.groups as usize {
        let pair = |binding: usize| {
            (args.tensors[binding].get(2 * group), args.tensors[binding].get(2 * group + 1))
        };
        let ((a, b), (s, m)) = (pair(0), pair(1));
        if p.by_offset == 0 {
            scales.push(a * s, storing(DType::F32, a * s));
            continue;
        }
        let shift = (a - b) * m / f64::from(p.last);
        let value = a * s + shift;
        let below = DType::F32.underflow();
        // A device's quotient is off by 2.5 ulp.
        let bound = U * (2.0 * (a * s).abs() + 8.0 * shift.abs()) + 3.0 * below;
        scales.push(value, bound + storing(DType::F32, value));
        offsets.put(group, [(b * m, storing(DType::F32, b * m))]);
    }
    vec![scales, offsets]
}

fn case(groups: usize, by_offset: bool, last: u32) -> Case {
    let label = format!("groups={groups},by_offset={by_offset},last={last}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(84);
        let clips: Vec<f32> =
            random.values(2 * groups, 0.25).iter().map(|value| value + 0.75).collect();
        let base = random.values(2 * groups, 1.0);
        let params =
            Params { groups: groups as u32, by_offset: u32::from(by_offset), last: last as f32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[groups, 2], &clips),
            HostTensor::from_f32(DType::F32, &[groups, 2], &base),
            HostTensor::zeros(DType::F32, &[groups]),
            HostTensor::zeros(DType::F32, &[if by_offset { groups } else { 1 }]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let last = (1 << sizes.between(2, 1, 8)) - 1;
    case(sizes.between(0, 1, 900), sizes.between(1, 0, 1) == 1, last)
}

fn cases() -> Vec<Case> {
    vec![
        case(1, true, 1),
        case(301, true, 15),
        case(130, false, 7),
        case(65, true, 255),
        case(20, true, 3).poisoned(1, Poison::Zeros),
        case(20, true, 3).poisoned(0, Poison::NaN),
        case(1 << 19, true, 15).bench(),
    ]
}
