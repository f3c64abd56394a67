//! `quantize/minmax`: scale and second number of asymmetric groups, both f16.
//!
//! scale = (max - min) / (2^bits - 1). Grid `zero-point`: an integer z nearest to -min / scale, not clamped to the code
//! range. Grid `float-min`: the offset is the minimum itself.

use half::f16;

use super::{SHAPES, rounded};
use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        group_columns: u32,
        groups: u32,
        /// 0: integer zero point. 1: the offset is the minimum.
        offset: u32,
        /// 1 / (2^bits - 1)
        factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/minmax",
    source: include_str!("../../../shaders/quantize/minmax.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold(args.tensors[1].len().div_ceil(64)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(2.0 * values, 4.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// The scale words of a weight, f32 of (rows, columns). `offset`: float minimum instead of integer zero point.
pub fn minmax(
    device: &Device,
    weight: &Tensor,
    group_columns: usize,
    bits: u32,
    offset: bool,
) -> Result<Tensor> {
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let groups = columns.div_ceil(group_columns);
    let scales = device.allocate(DType::U32, &[rows, groups], "scales")?;
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        group_columns: group_columns as u32,
        groups: groups as u32,
        offset: u32::from(offset),
        factor: factor(bits),
    };
    device.call(&KERNEL, Variant::BASELINE, &params, &[weight, &scales])?;
    Ok(scales)
}

fn factor(bits: u32) -> f32 {
    1.0 / ((1u32 << bits) - 1) as f32
}

fn nearest_zero(low: f32, scale: f32) -> f32 {
    let guess = (-f64::from(low) / f64::from(scale)).round();
    let mut best = guess - 1.0;
    for candidate in [guess, guess + 1.0] {
        let distance = |zero: f64| (f64::from(low) + f64::from(scale) * zero).abs() as f32;
        if distance(candidate) < distance(best) {
            best = candidate;
        }
    }
    best as f32
}

/// Scale and zero point of a group from `low` to `high`; `factor`: 1 / (2^bits - 1).
pub fn zero_point(low: f32, high: f32, factor: f32) -> (f32, f32) {
    let scale = rounded((high - low) * factor);
    if scale == 0.0 {
        let scale = rounded(low.abs());
        let zero = if low < 0.0 { 1.0 } else { -1.0 };
        return (scale, if scale > 0.0 { zero } else { 0.0 });
    }
    let zero = nearest_zero(low, scale);
    if zero.abs() <= 2048.0 {
        return (scale, unsigned(zero));
    }
    let least = low.min(0.0);
    let scale = rounded((high.max(0.0) - least) * factor);
    (scale, unsigned(nearest_zero(least, scale)))
}

/// A zero without a sign: devices may lose or keep that of -0.
fn unsigned(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { value }
}

fn words(args: &Args<'_>) -> Vec<u32> {
    let p: Params = args.parameters();
    let weight = args.tensors[0].to_f32();
    let mut words = Vec::with_capacity((p.rows * p.groups) as usize);
    for line in weight.chunks_exact(p.columns as usize) {
        for group in line.chunks(p.group_columns as usize) {
            let low = group.iter().copied().fold(f32::INFINITY, f32::min);
            let high = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (scale, second) = match p.offset {
                0 => zero_point(low, high, p.factor),
                _ => ((high - low) * p.factor, low),
            };
            let bits = |value: f32| u32::from(f16::from_f32(value).to_bits());
            words.push(bits(scale) | bits(second) << 16);
        }
    }
    words
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    vec![Expected::exact(words(args).into_iter().map(f64::from).collect())]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    outputs.words(0).copy_from_slice(&words(args));
}

fn case(shape: (usize, usize, usize), offset: u32, bits: u32, shift: f32) -> Case {
    let (rows, columns, group) = shape;
    let label = format!(
        "rows={rows},columns={columns},group={group},offset={offset},bits={bits},shift={shift}"
    );
    Case::new(label, move |_: &Variant| {
        let mut weight = super::weights(&mut Random::new(12), rows, columns);
        // Far from zero, where the zero point leaves the integers of f16.
        weight
            .iter_mut()
            .for_each(|value| *value = if shift == 0.0 { *value } else { *value * 0.01 + shift });
        data(&weight, (rows, columns, group), offset, bits)
    })
}

fn data(weight: &[f32], shape: (usize, usize, usize), offset: u32, bits: u32) -> CaseData {
    let (rows, columns, group) = shape;
    let groups = columns.div_ceil(group);
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        group_columns: group as u32,
        groups: groups as u32,
        offset,
        factor: factor(bits),
    };
    params.case(vec![
        HostTensor::from_f32(DType::F32, &[rows, columns], weight),
        HostTensor::zeros(DType::U32, &[rows, groups]),
    ])
}

/// Groups whose zero point lies in the middle of two integers, and one where it is the last that f16 tells apart.
fn ties() -> Case {
    Case::new("ties", |_: &Variant| {
        let mut weight = Vec::new();
        for low in [-3.5, -2.5, -4.5] {
            weight.extend((0..16).map(|step| low + step as f32));
        }
        weight.extend((0..16).map(|step| (step - 2048) as f32 / 1024.0));
        data(&weight, (1, 64, 16), 0, 4)
    })
}

fn random(sizes: &Sizes) -> Case {
    let shape = (sizes.between(0, 1, 60), sizes.between(1, 1, 400), 16 << sizes.between(2, 0, 4));
    let shift = [0.0, 5.0, -5.0, -0.02, 300.0][sizes.between(5, 0, 4)];
    case(shape, sizes.between(3, 0, 1) as u32, sizes.between(4, 1, 8) as u32, shift)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in SHAPES {
        for (offset, bits, shift) in [
            (0u32, 4, 0.0),
            (1, 4, 0.0),
            (0, 1, 0.0),
            (1, 3, 0.0),
            (0, 8, 0.0),
            (0, 8, 5.0),
            (0, 8, -5.0),
            (0, 3, -0.02),
        ] {
            cases.push(case(shape, offset, bits, shift));
        }
    }
    cases.push(ties());
    cases
}
