//! What kernels with a packed weight share: variants per weight type, views as [`Packed`], random weights for cases.

use half::f16;

use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::tensor::{
    BLOCK, Line, Packed, Scale, Sparsity, WEIGHT_TYPES, WHOLE_ROW, WeightFormat, WeightType,
};

/// The f32 variant that decodes this type.
pub fn variant(ty: &'static WeightType) -> Variant {
    Variant { weight: Some(ty), ..Variant::BASELINE }
}

/// One f32 variant per weight type.
pub fn one_per_type() -> Vec<Variant> {
    WEIGHT_TYPES.iter().map(|ty| variant(ty)).collect()
}

fn format(args: &Args<'_>, layout: Layout) -> WeightFormat {
    let ty = args.variant.weight.expect("a variant of a kernel with a weight names its type");
    let group_size = if layout.group_shift == 31 || !ty.has_scales() {
        WHOLE_ROW
    } else {
        1 << layout.group_shift
    };
    WeightFormat::grouped(ty, group_size)
}

/// The weight of a call, given which bindings are its codes and scales.
pub fn packed(
    args: &Args<'_>,
    codes: usize,
    scales: usize,
    rows: usize,
    columns: usize,
    layout: Layout,
) -> Packed {
    let format = format(args, layout);
    Packed {
        format,
        rows,
        columns,
        codes: args.tensors[codes].words[..rows * format.code_words_per_row(columns)].to_vec(),
        scales: args.tensors[scales].words[..rows * format.scale_words_per_row(columns)].to_vec(),
    }
}

/// Decodes one row of a call's weight, whose bindings are `(codes, scales)`, without copying the rest.
pub fn decode_row(
    args: &Args<'_>,
    (codes, scales): (usize, usize),
    row: usize,
    layout: Layout,
    out: &mut [f32],
) {
    line(args, (codes, scales), row, layout, out.len()).decode(out);
}

/// A row of a call's weight, whose bindings are `(codes, scales)`.
pub fn line<'a>(
    args: &Args<'a>,
    (codes, scales): (usize, usize),
    row: usize,
    layout: Layout,
    columns: usize,
) -> Line<'a> {
    let (code_words, scale_words) = (layout.code_words as usize, layout.scale_words as usize);
    Line {
        format: format(args, layout),
        columns,
        codes: &args.tensors[codes].words[row * code_words..(row + 1) * code_words],
        scales: &args.tensors[scales].words[row * scale_words..(row + 1) * scale_words],
    }
}

/// The words of a packed matrix as bindings: codes and scales (one unused word where there are none).
pub fn host(packed: &Packed) -> [HostTensor; 2] {
    let scales = if packed.scales.is_empty() { vec![0] } else { packed.scales.clone() };
    [
        HostTensor::from_u32(&[packed.codes.len()], &packed.codes),
        HostTensor::from_u32(&[scales.len()], &scales),
    ]
}

/// A matrix of random codes and scales in the variant's weight type. `group` may be [`WHOLE_ROW`]; super-blocks have their own.
pub fn random(
    random: &mut Random,
    variant: &Variant,
    rows: usize,
    columns: usize,
    group: u32,
) -> Packed {
    // Values as large as a model's, for benches, repeat: drawing them all would take longer than timing it.
    const DISTINCT: usize = 1021;
    let mut packed = random_rows(random, variant, rows.min(DISTINCT), columns, group);
    if rows > DISTINCT {
        let repeat = |words: &[u32], per_row: usize| {
            let words = words.iter().copied().cycle();
            words.take(rows * per_row).collect()
        };
        let format = packed.format;
        packed.codes = repeat(&packed.codes, format.code_words_per_row(columns));
        packed.scales = repeat(&packed.scales, format.scale_words_per_row(columns));
        packed.rows = rows;
    }
    packed
}

fn random_rows(
    random: &mut Random,
    variant: &Variant,
    rows: usize,
    columns: usize,
    group: u32,
) -> Packed {
    let ty = variant.weight.expect("a variant of a kernel with a weight names its type");
    if ty.is_plain() {
        let values = random.values(rows * columns, 1.0);
        return rounded_to(ty, &values, rows, columns);
    }
    let group_size = if ty.has_scales() { group } else { WHOLE_ROW };
    let format = WeightFormat::grouped(ty, group_size);
    let mut packed = Packed::zeros(format, rows, columns);
    for row in 0..rows {
        draw_super_scales(random, &mut packed, row);
        if ty.scale == Scale::TwoLevel {
            packed.set_row_scale(row, 0.003 * (1.5 + random.value()));
        }
        for index in 0..format.groups_per_row(columns) {
            let scale = match ty.scale {
                // Bytes of numbers around 2^-6, and around 8.
                Scale::PowerOfTwo => 118 + random.below(6) as u16,
                Scale::TwoLevel => 0x48 + random.below(16) as u16,
                Scale::SuperOffset(of) => random.below(1 << of.bits) as u16,
                Scale::SuperSymmetric(of) => {
                    (random.below(1 << of.bits) as u16).wrapping_sub(1 << (of.bits - 1))
                }
                _ => f16::from_f32(0.02 + 0.01 * random.value()).to_bits(),
            };
            let half = |value: f32| f16::from_f32(value).to_bits();
            let second = match ty.scale {
                Scale::SuperOffset(of) => random.below(1 << of.bits) as u16,
                Scale::ZeroPoint => half(f32::from(random.below(1 << ty.bits) as u16)),
                _ => half(0.1 * random.value()),
            };
            packed.set_group(row, index, scale, second);
        }
        if let Some(pattern) = ty.sparsity {
            draw_kept(random, &mut packed, row, pattern, |random| match ty.bits {
                16 => f16::from_f32(random.value()).to_bits().into(),
                bits => random.below(1 << bits),
            });
            continue;
        }
        // Every code of an integer type stands for a number: whole words are drawn at once.
        if ty.is_affine() && columns.is_multiple_of(BLOCK) {
            let words = format.code_words_per_row(columns);
            packed.codes[row * words..(row + 1) * words].fill_with(|| random.word());
            continue;
        }
        for column in 0..columns {
            let code = random.below(ty.codes());
            // Not a code that stands for NaN or infinity: those are for cases of their own.
            packed.set_code(row, column, if ty.level(code).is_finite() { code } else { 0 });
        }
    }
    packed
}

/// Draws the scales of a row's super-blocks: groups' come out about as large as those of other types.
fn draw_super_scales(random: &mut Random, packed: &mut Packed, row: usize) {
    let Some(of) = packed.format.ty.super_block() else {
        return;
    };
    let middle = f32::from(1u16 << (of.bits - 1));
    for index in 0..packed.format.super_blocks_per_row(packed.columns) {
        let bits = |value: f32| f16::from_f32(value / middle).to_bits();
        let scale = bits(0.02 + 0.01 * random.value());
        let second = match packed.format.ty.scale {
            Scale::SuperOffset(_) => bits(0.1 * random.value()),
            _ => 0,
        };
        packed.set_super_scales(row, index, scale, second);
    }
}

/// Draws the codes of a row of a type with a pattern, and which columns are kept: as many as may be, now and then one less.
pub fn draw_kept(
    random: &mut Random,
    packed: &mut Packed,
    row: usize,
    pattern: Sparsity,
    code: impl Fn(&mut Random) -> u32,
) {
    let of = pattern.of as usize;
    for first in (0..packed.columns).step_by(of) {
        let end = packed.columns.min(first + of);
        let mut left = pattern.kept - u32::from(random.below(8) == 0);
        for column in first..end {
            if left > 0 && random.below((end - column) as u32) < left {
                left -= 1;
                let code = code(random);
                packed.set_code(row, column, code);
            }
        }
    }
}

/// f32 values in one of the types without scales.
pub fn rounded_to(ty: &'static WeightType, values: &[f32], rows: usize, columns: usize) -> Packed {
    let format = WeightFormat { ty, group_size: WHOLE_ROW };
    let dtype = match ty.name {
        "f32" => return Packed::from_f32(values, rows, columns),
        "f16" => DType::F16,
        _ => DType::Bf16,
    };
    let tensor = HostTensor::from_f32(dtype, &[rows, columns], values);
    Packed::from_16bit(format, tensor.bytes(), rows, columns)
}
