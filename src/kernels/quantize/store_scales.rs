//! `quantize/store_scales`: trained scales and offsets, f32, into the scale words of a packed matrix, in place: each rounded to
//! the nearest f16, or E4M3 in [`Scale::TwoLevel`], ties to even. Zero points and the f32 of a row stay. Exact.

use half::f16;

use super::scale_grad::expect_real_scales;
use crate::kernels::matrix::Matrix;
use crate::kernels::prelude::*;
use crate::tensor::{Packed, Scale, minifloat};

params! {
    struct Params {
        rows: u32,
        /// The first of the rows, among all that have values.
        row_start: u32,
        groups: u32,
        scale_words: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/store_scales",
    source: include_str!("../../../shaders/quantize/store_scales.wgsl"),
    bindings: &[
        binding("values", Access::Read, Element::Is(DType::F32)),
        binding("offsets", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::ReadWrite, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || KINDS.map(|(_, constants)| Variant { constants, ..Variant::BASELINE }).to_vec(),
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.rows as usize * p.scale_words as usize).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.rows) * f64::from(p.groups);
        Cost::new(30.0 * values, 8.0 * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The ways in which scales stand in words.
const KINDS: [(Scale, &[(&str, u32)]); 4] = [
    (Scale::Symmetric, &[("KIND", 0)]),
    (Scale::ZeroPoint, &[("KIND", 1)]),
    (Scale::Offset, &[("KIND", 2)]),
    (Scale::TwoLevel, &[("KIND", 3)]),
];

fn variant(scale: Scale) -> Variant {
    let scale = if scale == Scale::Level { Scale::Symmetric } else { scale };
    let row = KINDS.iter().find(|(known, _)| *known == scale);
    let constants = row.expect("scales that are real numbers").1;
    Variant { constants, ..Variant::BASELINE }
}

/// Writes `scales`, f32 (rows, groups), and the `offsets` of a type that has them, f32 of the same shape, into a matrix, in
/// place.
///
/// A scale beyond f16 becomes infinite, as NaN does; beyond E4M3 it becomes the largest, 448.
///
/// Errors: the format has no scales, or powers of two.
pub fn store_scales(
    device: &Device,
    scales: &Tensor,
    offsets: Option<&Tensor>,
    weight: &Matrix,
) -> Result<()> {
    let format = weight.format();
    expect_real_scales(format)?;
    let groups = format.groups_per_row(weight.columns());
    assert_eq!(scales.len(), weight.rows() * groups, "a value for each group");
    assert_eq!(offsets.is_some(), format.ty.scale == Scale::Offset, "offsets where there are any");
    for chunk in weight.chunks() {
        let params = Params {
            rows: chunk.rows as u32,
            row_start: chunk.start as u32,
            groups: groups as u32,
            scale_words: format.scale_words_per_row(weight.columns()) as u32,
        };
        let tensors = [scales, offsets.unwrap_or(scales), &chunk.scales];
        device.call(&KERNEL, variant(format.ty.scale), &params, &tensors)?;
    }
    Ok(())
}

/// The scales of a matrix, (rows, groups), and its offsets, where its type has them: what training begins from, and what
/// [`store_scales`] puts back without a change.
///
/// Errors: the format has no scales, or powers of two.
pub fn scales(packed: &Packed) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
    expect_real_scales(packed.format)?;
    let groups = packed.format.groups_per_row(packed.columns);
    let places = (0..packed.rows).flat_map(|row| (0..groups).map(move |group| (row, group)));
    let halves = places.map(|(row, group)| packed.group(row, group));
    let wide = |bits: u16| f16::from_bits(bits).to_f32();
    let (scales, offsets) = halves
        .map(|(scale, second)| match packed.format.ty.scale {
            Scale::TwoLevel => (minifloat::decode(scale.into(), 4, 3), 0.0),
            _ => (wide(scale), wide(second)),
        })
        .unzip();
    Ok((scales, (packed.format.ty.scale == Scale::Offset).then_some(offsets)))
}

fn half_bits(value: f32) -> u32 {
    let bits = f16::from_f32(value).to_bits();
    // A NaN becomes infinity, as in the shader.
    u32::from(if value.is_nan() { bits & 0x8000 | 0x7c00 } else { bits })
}

fn e4m3_bits(value: f32) -> u32 {
    let sign = value.to_bits() >> 24 & 0x80;
    let nearest = minifloat::encode_magnitude(value.abs(), 4, 3);
    sign | if value.is_nan() { 0x7f } else { nearest }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (values, offsets) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let mut words = args.tensors[2].u32s().to_vec();
    let groups = p.groups as usize;
    for (row, line) in words.chunks_mut(p.scale_words as usize).take(p.rows as usize).enumerate() {
        let first = (p.row_start as usize + row) * groups;
        let values = &values[first..first + groups];
        match args.variant.constant("KIND") {
            0 => {
                for (word, pair) in line.iter_mut().zip(values.chunks(2)) {
                    let upper = pair.get(1).map_or(0, |value| half_bits(*value));
                    *word = half_bits(pair[0]) | upper << 16;
                }
            }
            1 => {
                for (word, value) in line.iter_mut().zip(values) {
                    *word = *word & 0xffff_0000 | half_bits(*value);
                }
            }
            2 => {
                let pairs = values.iter().zip(&offsets[first..]);
                for (word, (value, offset)) in line.iter_mut().zip(pairs) {
                    *word = half_bits(*value) | half_bits(*offset) << 16;
                }
            }
            _ => {
                for (word, four) in line[1..].iter_mut().zip(values.chunks(4)) {
                    let bytes = four.iter().enumerate();
                    let bytes = bytes.map(|(byte, value)| e4m3_bits(*value) << (8 * byte));
                    *word = bytes.fold(0, |word, byte| word | byte);
                }
            }
        }
    }
    vec![Expected::exact(words.into_iter().map(f64::from).collect())]
}

fn scale_words(groups: usize, variant: &Variant) -> usize {
    match variant.constant("KIND") {
        0 => groups.div_ceil(2),
        3 => 1 + groups.div_ceil(4),
        _ => groups,
    }
}

/// Values for a chunk of `rows` behind `before` others.
fn of_values(
    (rows, before, groups): (usize, usize, usize),
    variant: &Variant,
    values: &[f32],
    random: &mut Random,
) -> CaseData {
    let words = scale_words(groups, variant);
    let params = Params {
        rows: rows as u32,
        row_start: before as u32,
        groups: groups as u32,
        scale_words: words as u32,
    };
    let earlier: Vec<u32> = (0..rows * words).map(|_| random.word()).collect();
    let offsets = random.values(values.len(), 3.0);
    params.case(vec![
        HostTensor::from_f32(DType::F32, &[values.len() / groups, groups], values),
        HostTensor::from_f32(DType::F32, &[values.len() / groups, groups], &offsets),
        HostTensor::from_u32(&[rows, words], &earlier),
    ])
}

fn case(rows: usize, before: usize, groups: usize) -> Case {
    let label = format!("rows={rows},before={before},groups={groups}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(70);
        let values = random.values((before + rows + 1) * groups, 0.1);
        of_values((rows, before, groups), variant, &values, &mut random)
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 60), sizes.between(1, 0, 4), sizes.between(2, 1, 70))
}

fn cases() -> Vec<Case> {
    vec![
        case(7, 0, 1),
        case(5, 2, 7),
        case(3, 1, 32),
        Case::new("every rounding", |variant: &Variant| {
            let mut values = every_rounding();
            values.extend(values.clone().iter().map(|value| -value));
            let mut random = Random::new(71);
            of_values((1, 0, values.len()), variant, &values, &mut random)
        }),
        case(2, 0, 9).with(Poison::Zeros),
        case(2, 0, 9).with(Poison::NegativeInfinity),
        case(2, 0, 9).with(Poison::NaN),
        case(4096, 0, 128).bench(),
    ]
}

/// The neighbours of every E4M3 number and of the middle between it and the next, of some f16 numbers and of their middles; what
/// is beyond either, and next to nothing.
fn every_rounding() -> Vec<f32> {
    let e4m3 = (0..0x7e).map(|code| [code, code + 1].map(|code| minifloat::decode(code, 4, 3)));
    let halves = (0..0x7bff).step_by(37);
    let halves = halves.map(|bits| [bits, bits + 1].map(|bits| f16::from_bits(bits).to_f32()));
    let mut values = vec![447.9, 448.1, 464.0, 480.0, 1e9, 65_519.0, 65_520.0, 1e-30, 1e-40];
    for [value, next] in e4m3.chain(halves) {
        for centre in [value, (value + next) / 2.0] {
            let bits = centre.to_bits();
            values.extend([bits.saturating_sub(1), bits, bits + 1].map(f32::from_bits));
        }
    }
    values
}
