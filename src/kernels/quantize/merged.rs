//! `quantize/merged`: the parts of attention put together and rounded to integers in one pass: what
//! [`attention/merge`](crate::kernels::attention::merge) and [`quantize/activations`](super::activations) give one after the other,
//! in f32 between them.

use super::activations::{Integers, ROUNDINGS, Rounding, aims, expected};
use crate::kernels::attention::merge::{self, MAX_SPLITS, NOTHING};
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        heads: u32,
        head_dim: u32,
        splits: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/merged",
    source: include_str!("../../../shaders/quantize/merged.wgsl"),
    bindings: &[
        binding("parts", Access::Read, Element::Is(DType::F32)),
        binding("x_codes", Access::Write, Element::Is(DType::U32)),
        binding("x_scales", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        let with = |subgroups| {
            CONSTANTS.map(|constants| Variant { constants, subgroups, ..Variant::BASELINE })
        };
        [with(false), with(true)].concat()
    },
    groups: |args| {
        let p: Params = args.parameters();
        let columns = p.heads as usize * p.head_dim as usize;
        fold(p.tokens as usize * columns / Rounding::of(args.variant).columns())
    },
    cost: |args| {
        let p: Params = args.parameters();
        let results = f64::from(p.tokens) * f64::from(p.heads) * f64::from(p.head_dim);
        let splits = f64::from(p.splits);
        let written = f64::from(args.variant.constant("PLANES"));
        Cost::new((2.0 * splits + 8.0) * results, (4.0 * splits + written) * results)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The constants of each rounding: those of [`ROUNDINGS`], and the most parts.
const CONSTANTS: [&[(&str, u32)]; 8] = [
    &[("PLANES", 1), ("SPAN", 1), MOST],
    &[("PLANES", 2), ("SPAN", 1), MOST],
    &[("PLANES", 3), ("SPAN", 1), MOST],
    &[("PLANES", 1), ("SPAN", 2), MOST],
    &[("PLANES", 2), ("SPAN", 2), MOST],
    &[("PLANES", 1), ("SPAN", 4), MOST],
    &[("PLANES", 2), ("SPAN", 4), MOST],
    &[("PLANES", 3), ("SPAN", 4), MOST],
];
const MOST: (&str, u32) = ("MAX_SPLITS", MAX_SPLITS as u32);
const _: () = assert!(CONSTANTS.len() == ROUNDINGS.len());

/// Whether heads of so many columns are whole blocks.
pub fn takes(head_dim: usize, rounding: Rounding) -> bool {
    head_dim.is_multiple_of(rounding.columns())
}

/// Attention of some tokens as integers, from parts of all, f32 (all tokens, heads, splits, head_dim + 2). Heads are whole blocks.
pub fn merged(
    device: &Device,
    parts: &Tensor,
    tokens: std::ops::Range<usize>,
    rounding: Rounding,
) -> Result<Integers> {
    let [_, heads, splits, pitch] = parts.shape()[..] else {
        unreachable!("parts have four dimensions")
    };
    let head_dim = pitch - 2;
    assert!(takes(head_dim, rounding), "heads are whole blocks");
    let made = Integers::new(device, tokens.len(), heads * head_dim, rounding)?;
    let params = Params {
        tokens: tokens.len() as u32,
        token_start: tokens.start as u32,
        heads: heads as u32,
        head_dim: head_dim as u32,
        splits: splits as u32,
    };
    let place = ROUNDINGS.iter().position(|(known, _)| *known == rounding);
    let constants = CONSTANTS[place.expect("a rounding of the table")];
    let subgroups = device.capabilities().subgroups;
    let variant = Variant { constants, subgroups, ..Variant::BASELINE };
    device.call(&KERNEL, variant, &params, &[parts, &made.codes, &made.scales])?;
    Ok(made)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (heads, head_dim, splits) = (p.heads as usize, p.head_dim as usize, p.splits as usize);
    let size = splits * (head_dim + 2);
    let first = p.token_start as usize * heads;
    let parts = args.tensors[0].to_f64();
    let rows = parts[first * size..].chunks_exact(size).take(p.tokens as usize * heads);
    let values: Vec<(f64, f64)> =
        rows.flat_map(|row| merge::row_reference(row, head_dim, DType::F32)).collect();
    expected(&values, heads * head_dim, Rounding::of(args.variant))
}

fn case(
    tokens: usize,
    (heads, head_dim): (usize, usize),
    splits: usize,
    note: &'static str,
) -> Case {
    let label = format!("tokens={tokens},heads={heads},head_dim={head_dim},splits={splits}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(38);
        let rounding = Rounding::of(variant);
        let before = usize::from(note == ",part");
        let mut parts = Vec::new();
        for index in 0..(before + tokens) * heads {
            // So far apart that they overflow where they are not beside the highest of their own head.
            let sign = if index % 2 == 0 { 1.0 } else { -1.0 };
            let offset = if note == ",large" { 60.0 * sign } else { 0.0 };
            let aims: Vec<f32> = (0..head_dim / rounding.columns())
                .flat_map(|_| aims(&mut random, rounding.columns(), rounding.bytes))
                .collect();
            let mut row = row(&mut random, &aims, splits, note == ",empty");
            row.chunks_exact_mut(head_dim + 2).for_each(|part| part[head_dim] += offset);
            parts.extend(row);
        }
        let params = Params {
            tokens: tokens as u32,
            token_start: before as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            splits: splits as u32,
        };
        let [codes, scales] = Integers::shapes(tokens, heads * head_dim, rounding);
        params.case(vec![
            HostTensor::from_f32(
                DType::F32,
                &[before + tokens, heads, splits, head_dim + 2],
                &parts,
            ),
            HostTensor::zeros(DType::U32, &codes),
            HostTensor::zeros(DType::F32, &scales),
        ])
    })
    .only(whole_heads(head_dim))
}

/// Which variants take heads of so many columns.
fn whole_heads(head_dim: usize) -> fn(&Variant) -> bool {
    match head_dim {
        dim if dim % 128 == 0 => |_| true,
        dim if dim % 64 == 0 => |variant| variant.constant("SPAN") <= 2,
        _ => |variant| variant.constant("SPAN") == 1,
    }
}

/// The parts of a head whose columns come out as `aims`: every part but the last is drawn, the last makes up for them.
fn row(random: &mut Random, aims: &[f32], splits: usize, empty: bool) -> Vec<f32> {
    let head_dim = aims.len();
    let kept = if empty { splits.div_ceil(2) } else { splits };
    // The highest score stands in the last part that has keys.
    let scores: Vec<f32> =
        (0..kept).map(|part| if part + 1 == kept { 0.5 } else { -2.0 - random.value() }).collect();
    let totals: Vec<f32> = (0..kept).map(|_| 1.5 + random.value()).collect();
    let factor = |part: usize| f64::from(scores[part] - scores[kept - 1]).exp();
    let total: f64 = (0..kept).map(|part| factor(part) * f64::from(totals[part])).sum();
    let mut row = vec![0.0; splits * (head_dim + 2)];
    for (column, aim) in aims.iter().enumerate() {
        let mut rest = f64::from(*aim) * total;
        for part in 0..kept {
            let value = if part + 1 == kept { rest as f32 } else { random.value() * aim };
            rest -= factor(part) * f64::from(value);
            row[part * (head_dim + 2) + column] = value;
        }
    }
    for part in 0..splits {
        let ends = if part < kept { [scores[part], totals[part]] } else { [NOTHING, 0.0] };
        row[part * (head_dim + 2) + head_dim..][..2].copy_from_slice(&ends);
    }
    row
}

fn random(sizes: &Sizes) -> Case {
    let heads = (sizes.between(1, 1, 5), 128 * sizes.between(2, 1, 2));
    case(sizes.between(0, 1, 3), heads, sizes.between(3, 1, MAX_SPLITS), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, (1, 32), 1, ""),
        case(3, (5, 64), 5, ""),
        case(1, (2, 256), MAX_SPLITS, ""),
        case(2, (3, 96), 33, ",empty"),
        case(2, (2, 128), 4, ",part"),
        case(1, (3, 64), 4, ",large"),
        case(1, (2, 64), 3, "").with(Poison::NaN),
        case(1, (32, 128), 64, "").bench(),
        case(1, (32, 64), 64, "").bench(),
    ]
}
