//! `quantize/rounding_grad`: gradients of learned rounding from that of the weights (AutoRound, Cheng et al. 2023, arXiv
//! 2309.05516, section 3, with rounding taken for a slope of 1). With steps t = (w - m) / s, code c = clamp(round(t + z + v), 0,
//! last) and w' = s (c - z) + m: where the code is within the range dw'/dv = s, dw'/ds = c - z - t and dw'/dm = 0; where it is
//! clipped dw'/dv = 0, dw'/ds = c - z and dw'/dm = 1. From s and m the factors a and b of
//! [`clip_range`](super::clip_range) follow: ds/da = s0 + m0 / last, ds/db = -m0 / last and dm/db = m0; without offsets
//! ds/da = s0.

use glam::UVec3;

use crate::kernels::prelude::*;
use crate::tensor::{Scale, WeightFormat};

params! {
    struct Params {
        rows: u32,
        columns: u32,
        groups: u32,
        group_columns: u32,
        /// Invocations that share a group: a power of two.
        lanes: u32,
        /// 0: symmetric grids, 1: zero points, 2: offsets.
        mode: u32,
        /// The code of 0 in symmetric grids; 0 in others.
        zero: f32,
        /// The highest code.
        last: f32,
    }
}

const WORKGROUP: usize = 64;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/rounding_grad",
    source: include_str!("../../../shaders/quantize/rounding_grad.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("base", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Read, Element::Is(DType::F32)),
        binding("offsets", Access::Read, Element::Is(DType::F32)),
        binding("gradient", Access::ReadWrite, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", WORKGROUP as f64)],
    groups,
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(20.0 * values, 16.0 * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// Makes of `gradient`, f32 (rows, columns), of the weights in the format that `weight` is rounded to, that of `shares` of steps,
/// in place, and returns that of the factors that clip its grids, f32 (rows, groups, 2).
///
/// `weight` and `shares` are f32 (rows, columns), `base` f32 (rows, groups, 2) as in [`clip_range`](super::clip_range), of which
/// `scales` and `offsets`, f32 (rows, groups), came. The format's codes are integers with scales.
pub fn rounding_grad(
    device: &Device,
    format: WeightFormat,
    (weight, shares): (&Tensor, &Tensor),
    base: &Tensor,
    (scales, offsets): (&Tensor, Option<&Tensor>),
    gradient: &Tensor,
) -> Result<Tensor> {
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let params = Params::new((rows, columns), format);
    assert_eq!(gradient.len(), weight.len(), "a gradient for each weight");
    assert_eq!(scales.len(), rows * params.groups as usize, "a scale for each group");
    let result = device.allocate(DType::F32, base.shape(), "a gradient of clipping")?;
    let tensors = [weight, shares, base, scales, offsets.unwrap_or(scales), gradient, &result];
    device.call(&KERNEL, Variant::BASELINE, &params, &tensors)?;
    Ok(result)
}

impl Params {
    fn new((rows, columns): (usize, usize), format: WeightFormat) -> Self {
        let (mode, zero) = match format.ty.scale {
            Scale::Offset => (2, 0),
            Scale::ZeroPoint => (1, 0),
            _ => (0, 1 << (format.ty.bits - 1)),
        };
        let last = (1u32 << format.ty.bits) - 1;
        let group = format.group_columns(columns).min(columns);
        Self::of((rows, columns), group, mode, zero, last)
    }

    fn of((rows, columns): (usize, usize), group: usize, mode: u32, zero: u32, last: u32) -> Self {
        Self {
            rows: rows as u32,
            columns: columns as u32,
            groups: columns.div_ceil(group) as u32,
            group_columns: group as u32,
            lanes: group.div_ceil(4).next_power_of_two().min(WORKGROUP) as u32,
            mode,
            zero: zero as f32,
            last: last as f32,
        }
    }
}

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    fold((p.rows as usize * p.groups as usize).div_ceil(WORKGROUP / p.lanes as usize))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, group_columns) = (p.columns as usize, p.group_columns as usize);
    let last = f64::from(p.last);
    let (mut gradient, mut result) =
        (Expected::exact(args.tensors[5].to_f64()), Expected::default());
    for index in 0..(p.rows * p.groups) as usize {
        let (row, group) = (index / p.groups as usize, index % p.groups as usize);
        let (s0, m0) = (args.tensors[2].get(2 * index), args.tensors[2].get(2 * index + 1));
        let scale = args.tensors[3].get(index);
        let zero = if p.mode == 1 { m0 } else { f64::from(p.zero) };
        let offset = if p.mode == 2 { args.tensors[4].get(index) } else { 0.0 };
        // Sums of the gradients by s and m, and how far off they may be.
        let (mut of_s, mut of_m, mut s_off, mut m_off) = (0.0, 0.0, 0.0, 0.0);
        let mut terms = 0;
        for column in group * group_columns..columns.min((group + 1) * group_columns) {
            let place = row * columns + column;
            let slope = args.tensors[5].get(place);
            terms += 1;
            if scale == 0.0 {
                gradient.put(place, [(0.0, 0.0)]);
                of_m += slope;
                m_off += 64.0 * U * slope.abs();
                continue;
            }
            let steps = (args.tensors[0].get(place) - offset) / scale;
            let sum = steps + zero + args.tensors[1].get(place);
            let nearest = sum.round_ties_even();
            let within = (0.0..=last).contains(&nearest);
            let level = nearest.clamp(0.0, last) - zero;
            let off = 16.0 * U * (1.0 + steps.abs() + zero.abs() + offset.abs() / scale.abs());
            // At a tie the code may be the next one, within the range or not.
            let tie = ((sum - sum.floor()) - 0.5).abs() <= off;
            let slope_v = if within { slope * scale } else { 0.0 };
            let loose = if tie { (slope * scale).abs() } else { 0.0 };
            gradient.put(place, [(slope_v, loose + storing(DType::F32, slope_v))]);
            let by_s = if within { level - steps } else { level };
            of_s += slope * by_s;
            of_m += if within { 0.0 } else { slope };
            let loose = if tie { 1.0 + steps.abs() } else { 0.0 };
            s_off += slope.abs() * (off + 8.0 * U * by_s.abs() + loose);
            m_off += slope.abs() * (8.0 * U + if tie { 1.0 } else { 0.0 });
            // Sums are rounded as they grow.
            s_off += gamma(group_columns) * (slope * by_s).abs();
            m_off += gamma(group_columns) * slope.abs();
        }
        let lost = f64::from(terms) * DType::F32.underflow();
        let (s_off, m_off) = (s_off + lost, m_off + lost);
        let pair = if p.mode == 2 {
            let low = m0 / last;
            let (by_a, by_b) = (s0 + low, -low);
            let (a, b) = (of_s * by_a, of_m * m0 + of_s * by_b);
            let near = 12.0 * U * of_s.abs() * (s0.abs() + low.abs());
            let a_off = s_off * (s0.abs() + low.abs()) + near;
            let b_off = s_off * low.abs() + m_off * m0.abs() + near + 8.0 * U * (of_m * m0).abs();
            [(a, a_off + storing(DType::F32, a) + lost), (b, b_off + storing(DType::F32, b) + lost)]
        } else {
            let a = of_s * s0;
            [(a, s_off * s0.abs() * 1.01 + storing(DType::F32, a) + lost), (0.0, 0.0)]
        };
        pair.into_iter().for_each(|(value, bound)| result.push(value, bound));
    }
    vec![gradient, result]
}

fn case((rows, columns): (usize, usize), group: usize, mode: u32, bits: u32) -> Case {
    let label = format!("rows={rows},columns={columns},group={group},mode={mode},bits={bits}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(86);
        let zero = if mode == 0 { 1 << (bits - 1) } else { 0 };
        let last = (1u32 << bits) - 1;
        let params = Params::of((rows, columns), group.min(columns), mode, zero, last);
        let groups = rows * params.groups as usize;
        let scales: Vec<f32> = random
            .values(groups, 0.5)
            .iter()
            .map(|value| (value + 1.5) / (1 << bits) as f32)
            .collect();
        let seconds: Vec<f32> = match mode {
            1 => random.values(groups, 4.0).iter().map(|value| value.round()).collect(),
            2 => random.values(groups, 0.1).iter().map(|value| value - 0.5).collect(),
            _ => vec![0.0; groups],
        };
        let mut now: Vec<f32> = scales.iter().map(|scale| scale * 0.75).collect();
        // A group of nothing but its offset.
        if groups > 2 {
            now[1] = 0.0;
        }
        let pairs = scales.iter().zip(&seconds).flat_map(|(scale, second)| [*scale, *second]);
        let host =
            |shape: &[usize], values: &[f32]| HostTensor::from_f32(DType::F32, shape, values);
        let count = rows * columns;
        params.case(vec![
            host(&[rows, columns], &random.values(count, 0.8)),
            host(&[rows, columns], &random.values(count, 0.5)),
            host(&[groups, 2], &pairs.collect::<Vec<_>>()),
            host(&[groups], &now),
            host(&[groups], &seconds),
            host(&[rows, columns], &random.values(count, 1.0)),
            HostTensor::zeros(DType::F32, &[groups, 2]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let shape = (sizes.between(0, 1, 30), sizes.between(1, 1, 300));
    let (mode, bits) = (sizes.between(2, 0, 2) as u32, sizes.between(3, 2, 8) as u32);
    case(shape, 16 << sizes.between(4, 0, 4), mode, bits)
}

fn cases() -> Vec<Case> {
    vec![
        case((1, 1), 32, 2, 4),
        case((7, 100), 32, 2, 4),
        case((5, 97), 4096, 0, 3),
        case((5, 200), 64, 1, 4),
        case((3, 64), 16, 2, 2),
        case((3, 64), 16, 0, 8),
        case((4, 64), 32, 2, 4).poisoned(5, Poison::Zeros),
        case((4096, 4096), 128, 2, 4).bench(),
    ]
}
