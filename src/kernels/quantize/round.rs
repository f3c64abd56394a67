//! `quantize/round`: the code whose value is nearest to each weight, on the grid its group's scales span. A tie goes to
//! the lower code. Exact: distances are compared, not quotients rounded.

use std::ops::RangeInclusive;

use glam::UVec3;
use half::f16;

use super::SHAPES;
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{
    BLOCK, Packed, Scale, WEIGHT_TYPES, WHOLE_ROW, WeightFormat, WeightType, block,
};

params! {
    struct Params {
        rows: u32,
        columns: u32,
        layout: Layout,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/round",
    source: include_str!("../../../shaders/quantize/round.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("codes", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let affine = WEIGHT_TYPES.iter().filter(|ty| takes(ty));
        affine.map(|ty| weights::variant(ty)).collect()
    },
    groups,
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(20.0 * values, 5.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Whether the kernel rounds to codes of this type: integers with scales of one level. Types with a pattern are made of the
/// codes of those without.
fn takes(ty: &WeightType) -> bool {
    ty.is_affine() && !ty.is_sparse() && ty.super_block().is_none()
}

/// The code words of a weight, f32 of (rows, columns), in a format whose scales are given.
pub fn round(
    device: &Device,
    weight: &Tensor,
    scales: &Tensor,
    format: WeightFormat,
) -> Result<Tensor> {
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let layout = Layout::new(format, columns);
    let codes = device.allocate(DType::U32, &[rows, layout.code_words as usize], "codes")?;
    let params = Params { rows: rows as u32, columns: columns as u32, layout };
    device.call(&KERNEL, weights::variant(format.ty), &params, &[weight, scales, &codes])?;
    Ok(codes)
}

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    fold((p.rows as usize * (p.columns as usize).div_ceil(BLOCK)).div_ceil(64))
}

/// The nearest of `candidates`, tried in order; only a smaller distance, in f32, replaces an earlier one.
fn nearest(
    value: f32,
    format: WeightFormat,
    (scale, second): (f32, f32),
    candidates: RangeInclusive<u32>,
) -> u32 {
    let ty = format.ty;
    if scale == 0.0 {
        return zero_code(ty);
    }
    nearest_by(value, |code| ty.decode(code, scale, second), candidates)
}

/// The code where a group's scale is 0.
#[inline(always)]
fn zero_code(ty: &WeightType) -> u32 {
    if ty.scale == Scale::Symmetric { 1 << (ty.bits - 1) } else { 0 }
}

#[inline(always)]
fn nearest_by(value: f32, decode: impl Fn(u32) -> f32, candidates: RangeInclusive<u32>) -> u32 {
    let distance = |code: u32| (value - decode(code)).abs();
    let mut best = *candidates.start();
    let mut least = distance(best);
    for code in best + 1..=*candidates.end() {
        let away = distance(code);
        if away < least {
            (best, least) = (code, away);
        }
    }
    // Where the grid is finer than f32 at this value, several codes stand equally near, the lowest perhaps before the
    // first candidate.
    while best > 0 && distance(best - 1) <= least {
        best -= 1;
        least = distance(best);
    }
    best
}

/// The words of codes of one row, each found by `code` for its value and its group's grid.
#[inline(always)]
fn encode(weight: &[f32], row: &Packed, code: impl Fn(f32, (f32, f32)) -> u32) -> Vec<u32> {
    let (bits, group_columns) =
        (row.format.ty.bits as usize, row.format.group_columns(row.columns));
    let mut words = vec![0; row.codes.len()];
    let (mut codes, mut place) = ([0u8; BLOCK], 0);
    let mut blocks = words.chunks_exact_mut(bits);
    let mut store = |codes: &mut [u8; BLOCK]| {
        let words = blocks.next().expect("a row has words for all of its columns");
        block::pack(bits, codes, words);
        codes.fill(0);
    };
    for (group, values) in weight.chunks(group_columns).enumerate() {
        let grid = row.grid(0, group);
        for value in values {
            codes[place] = code(*value, grid) as u8;
            place += 1;
            if place == BLOCK {
                store(&mut codes);
                place = 0;
            }
        }
    }
    if place > 0 {
        store(&mut codes);
    }
    words
}

fn encode_all(args: &Args<'_>, encode: impl Fn(&[f32], &Packed) -> Vec<u32> + Sync) -> Vec<u32> {
    let p: Params = args.parameters();
    let (columns, scale_words) = (p.columns as usize, p.layout.scale_words as usize);
    let ty = args.variant.weight.expect("a variant of a kernel with a weight names its type");
    let group_size = if p.layout.group_shift == 31 { WHOLE_ROW } else { 1 << p.layout.group_shift };
    let format = WeightFormat { ty, group_size };
    let weight = args.tensors[0].to_f32();
    let scales = args.tensors[1].words;
    let lines: Vec<Vec<u32>> = weight
        .par_chunks_exact(columns)
        .enumerate()
        .map(|(row, line)| {
            let mut packed = Packed::zeros(format, 1, columns);
            packed.scales.copy_from_slice(&scales[row * scale_words..(row + 1) * scale_words]);
            encode(line, &packed)
        })
        .collect();
    lines.concat()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    // Every code is tried: nothing is assumed about where the nearest is.
    let words = encode_all(args, |line, row| {
        encode(line, row, |value, grid| nearest_of_all(value, row.format, grid))
    });
    vec![Expected::exact(words.into_iter().map(f64::from).collect())]
}

/// The code nearest to a value on a grid of its group, with every code tried: nothing is assumed about where it is.
pub(in crate::kernels) fn nearest_of_all(
    value: f32,
    format: WeightFormat,
    grid: (f32, f32),
) -> u32 {
    nearest(value, format, grid, 0..=(1 << format.ty.bits) - 1)
}

/// The code nearest to a value on a grid of its group: what the kernel finds, in the type's codes near the quotient alone.
#[inline(always)]
pub fn code(value: f32, format: WeightFormat, (scale, second): (f32, f32)) -> u32 {
    let ty = format.ty;
    let (last, middle) = ((1u32 << ty.bits) - 1, (1u32 << (ty.bits - 1)) as f32);
    if scale == 0.0 {
        return zero_code(ty);
    }
    let near = |guess: f32| {
        // Near enough to round: the neighbours are tried too.
        let guess = (guess.clamp(0.0, last as f32) + 0.5) as u32;
        guess.saturating_sub(1)..=(guess + 1).min(last)
    };
    match ty.scale {
        Scale::Offset | Scale::SuperOffset(_) => {
            let decode = |code: u32| scale * code as f32 + second;
            nearest_by(value, decode, near((value - second) / scale))
        }
        Scale::ZeroPoint => {
            let decode = |code: u32| scale * (code as f32 - second);
            nearest_by(value, decode, near(value / scale + second))
        }
        _ => {
            let decode = |code: u32| scale * (code as f32 - middle);
            nearest_by(value, decode, near(value / scale + middle))
        }
    }
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let words = encode_all(args, |line, row| {
        encode(line, row, |value, grid| code(value, row.format, grid))
    });
    outputs.words(0).copy_from_slice(&words);
}

fn case((rows, columns, group): (usize, usize, usize), fine: bool) -> Case {
    let note = if fine { ",fine" } else { "" };
    let label = format!("rows={rows},columns={columns},group={group}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(13);
        let mut weight = super::weights(&mut random, rows, columns);
        let group = if group >= columns { WHOLE_ROW } else { group as u32 };
        let mut packed = weights::random(&mut random, variant, rows, columns, group);
        packed.codes.fill(0);
        if fine {
            // Steps so small that f32 does not tell neighbouring codes apart around these values.
            weight
                .iter_mut()
                .enumerate()
                .for_each(|(index, value)| *value = 5000.0 + (index % 5) as f32 * 4.9e-4);
            let bits = |value: f32| u32::from(f16::from_f32(value).to_bits());
            let step = bits(f32::powi(2.0, -14));
            let words = match packed.format.ty.scale {
                Scale::Symmetric => step | step << 16,
                _ => step | bits(5000.0) << 16,
            };
            packed.scales.fill(words);
        }
        if rows == 1 {
            // A group whose scale is zero has one value only.
            packed.scales.fill(0);
        }
        let layout = Layout::new(packed.format, columns);
        let params = Params { rows: rows as u32, columns: columns as u32, layout };
        let [codes, scales] = weights::host(&packed);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &weight),
            scales,
            codes,
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let shape = (sizes.between(0, 2, 60), sizes.between(1, 1, 400), 16 << sizes.between(2, 0, 4));
    case(shape, sizes.between(3, 0, 3) == 3)
}

fn cases() -> Vec<Case> {
    let shapes = SHAPES.map(|shape| case(shape, false));
    shapes.into_iter().chain([case((2, 64, 32), true)]).collect()
}
