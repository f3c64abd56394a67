//! `matmul/dot4`: the product with few tokens in integers: activations of one or two signed bytes
//! ([`quantize/activations`](crate::kernels::quantize::activations)) times codes as they stand, by `dot4I8Packed`.
//!
//! With s, z a group's scale and zero point, a the activations' scale and q their integers, a block of 32 columns gives
//! s a sum(code q) - s z a sum(q); an offset m gives + m a sum(q). Both sums of integers are exact. Where groups are 16 columns,
//! as in some super-blocks, the two halves of a block have such sums each.

use super::cases::{Shape, Special, epilogues, special};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::{finished, tokens_of};
use super::{Params, formed_bindings, formed_cost, padded};
use crate::gpu::Capabilities;
use crate::kernels::prelude::*;
use crate::kernels::quantize::activations::{Rounding, words};
use crate::kernels::weights;
use crate::tensor::{BLOCK, Levels, Scale, WEIGHT_TYPES, WHOLE_ROW, WeightType};

type Constants = &'static [(&'static str, u32)];

/// A workgroup's rows, tokens and invocations, the bytes of an activation, and the blocks that share a scale.
macro_rules! shape {
    ($planes:literal bytes, $tokens:literal x $rows:literal, $workgroup:literal) => {
        shape!($planes bytes, 1 blocks, $tokens x $rows, $workgroup)
    };
    ($planes:literal bytes, $span:literal blocks, $tokens:literal x $rows:literal, $workgroup:literal) => {
        &[
            ("PLANES", $planes),
            ("SPAN", $span),
            ("TOKENS", $tokens),
            ("ROWS", $rows),
            ("WORKGROUP", $workgroup),
        ]
    };
}

/// Up to so many tokens, integers are quicker than tiles. On an H100 a step of 4-bit weights (tokens/s of all sequences, tiles in
/// brackets): TinyLlama's shape 12: 5503 (2630), 16: 5964 (3519), 32: 8818 (8536), 64: 10 737 (12 325); 8B's blocks 16: 5215 (5468 by tiles
/// of 16 tokens), 32: 6460 (9821).
const MOST_TOKENS: usize = 16;

/// For one token, by bytes less one. The first is what is taken without measurement.
const ONE: [&[Constants]; 3] = [
    &[shape!(1 bytes, 1 x 4, 32), shape!(1 bytes, 1 x 4, 128)],
    &[shape!(2 bytes, 1 x 4, 64), shape!(2 bytes, 1 x 2, 128)],
    &[shape!(3 bytes, 1 x 4, 64), shape!(3 bytes, 1 x 2, 64)],
];
/// For more tokens.
const MORE: [&[Constants]; 3] =
    [&[shape!(1 bytes, 8 x 4, 64)], &[shape!(2 bytes, 4 x 4, 64)], &[shape!(3 bytes, 4 x 2, 64)]];

/// For one token, groups of 64 columns or more and codes of up to four bits, by bytes less one: blocks share scales in
/// pairs, which leaves less to do beside the products.
const PAIRS: [&[Constants]; 2] = [
    &[
        shape!(1 bytes, 2 blocks, 1 x 4, 32),
        shape!(1 bytes, 2 blocks, 1 x 4, 64),
        shape!(1 bytes, 2 blocks, 1 x 2, 32),
    ],
    &[shape!(2 bytes, 2 blocks, 1 x 4, 32), shape!(2 bytes, 2 blocks, 1 x 4, 64)],
];

/// Those of [`PAIRS`] for so many bytes and tokens.
pub(super) fn pairs(weight: &WeightType, bytes: u32, tokens: usize) -> &'static [Constants] {
    let known = tokens == 1 && weight.bits <= 4 && weight.super_block().is_none();
    PAIRS.get(bytes as usize - 1).filter(|_| known).unwrap_or(&&[][..])
}

/// Shapes for so many tokens, with activations of so many bytes. Where the tier is the lowest, or the result f16, only the
/// first is in the table.
pub(super) fn shapes(bytes: u32, tokens: usize) -> &'static [Constants] {
    let place = bytes as usize - 1;
    if tokens == 1 { ONE[place] } else { MORE[place] }
}

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::Mul,
    input: |variant| InputForm::Integers(Rounding::of(variant)),
    weight: |_| WeightForm::Codes,
    candidates,
    case,
    many_beside: true,
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/dot4",
    source: include_str!("../../../shaders/matmul/dot4.wgsl"),
    bindings: &BINDINGS,
    imports,
    parameters: Params::LAYOUT,
    variants,
    groups: super::row_blocks,
    cost,
    reference,
    cases,
    random,
    ..Kernel::BASE
};

const BINDINGS: [Binding; 6] =
    formed_bindings(("x_codes", Element::Is(DType::U32)), "x_scales", "codes");

/// Codes of 1 to 3 bits as parts of bytes, where one token leaves the time for nothing else; sums of blocks or of their halves.
fn imports(variant: &Variant, name: &str) -> Option<&'static str> {
    const PARTS: [&str; 3] = ["block_parts_1", "block_parts_2", "block_parts_3"];
    if name == "span" {
        let groups = variant.weight.and_then(|weight| weight.super_block());
        let halves = groups.is_some_and(|of| (of.group as usize) < BLOCK);
        return Some(if halves { "span_halves" } else { "span_whole" });
    }
    if name != "block_parts" {
        return None;
    }
    let weight = variant.weight.filter(|_| variant.constant("TOKENS") == 1);
    let parts = weight.filter(|weight| weight.is_affine());
    let parts = parts.and_then(|weight| PARTS.get(weight.bits as usize - 1));
    Some(parts.copied().unwrap_or("block_parts_bytes"))
}

/// Whether the kernel multiplies codes of this type: integers, and the ternary levels, which are.
pub fn takes(weight: &WeightType) -> bool {
    weight.is_affine() || weight.name == "ternary"
}

/// Activations in so many bytes as were asked for.
fn candidates(shape: &MatmulShape, capabilities: Capabilities) -> Vec<(Variant, u32)> {
    let group = shape.weight.group_size as usize;
    let whole_blocks = shape.weight.group_size == WHOLE_ROW
        || group.is_multiple_of(BLOCK)
        || shape.weight.ty.super_block().is_some();
    // The table has f16 results with subgroups and of up to two bytes only.
    let known = shape.output == DType::F32 || (capabilities.subgroups && shape.bytes < 3);
    let can = shape.tokens <= MOST_TOKENS && capabilities.integer_dot && known && whole_blocks;
    if !can || !takes(shape.weight.ty) {
        return Vec::new();
    }
    let all = shape.output == DType::F32 && capabilities.subgroups;
    let single = shapes(shape.bytes, shape.tokens);
    let single = if all { single } else { &single[..1] };
    let wide = shape.columns.is_multiple_of(2 * BLOCK) && (group == 0 || group > BLOCK);
    let pairs = pairs(shape.weight.ty, shape.bytes, shape.tokens);
    let pairs = match (wide, all) {
        (true, true) => pairs,
        // The first is in the table for f16 results too.
        (true, false) => &pairs[..pairs.len().min(1)],
        (false, _) => &[],
    };
    let mut choices = shape.shaped(pairs.iter().chain(single).copied());
    for (variant, _) in &mut choices {
        variant.subgroups = capabilities.subgroups;
    }
    choices
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for weight in WEIGHT_TYPES.iter().copied().filter(|weight| takes(weight)) {
        for output in [DType::F32, DType::F16] {
            let base = Variant { output, weight: Some(weight), ..Variant::BASELINE };
            let with =
                |constants: Constants, subgroups| Variant { constants, subgroups, ..base.clone() };
            for bytes in 1..=3 {
                for tokens in [1, 2] {
                    let all = shapes(bytes, tokens);
                    // Three bytes stand for f32, whose products are f32.
                    if bytes == 3 && output == DType::F16 {
                        continue;
                    }
                    let pairs = pairs(weight, bytes, tokens);
                    let single = output == DType::F32;
                    let of = |shapes: &'static [Constants]| {
                        let first = shapes.len().min(1);
                        &shapes[..if single { shapes.len() } else { first }]
                    };
                    let known = of(all).iter().chain(of(pairs));
                    variants.extend(known.map(|shape| with(shape, true)));
                    if single {
                        let first = all.iter().take(1).chain(pairs.iter().take(1));
                        variants.extend(first.map(|shape| with(shape, false)));
                    }
                }
            }
        }
    }
    variants
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let planes = args.variant.constant("PLANES");
    formed_cost(args, p.layout.code_words.into(), planes.into())
}

/// What the sums are made of: the largest magnitudes that a block's parts may have, for the bound. As the shader takes the
/// zero point apart from the code, both count, whatever they cancel.
fn parts(weight: &WeightType, code: u32, (scale, second): (f64, f64)) -> f64 {
    let less = if weight.bits == 8 { 128.0 } else { 0.0 };
    let code = (f64::from(code) - less).abs();
    let zero = match (weight.scale, weight.levels) {
        (Scale::Symmetric | Scale::SuperSymmetric(_), _) => {
            f64::from(1u32 << (weight.bits - 1)) - less
        }
        (Scale::ZeroPoint, _) => (second.abs() + less) * 2.0,
        (Scale::Level, Levels::Table(_)) => 1.0,
        _ => return scale.abs() * (code + less * 2.0) + second.abs() * 2.0,
    };
    scale.abs() * (code + zero)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let (row_start, token_start) = (p.row_start as usize, p.token_start as usize);
    let weight = weights::packed(args, 2, 3, row_start + rows, columns, p.layout)
        .slice_rows(row_start, row_start + rows);
    let x = tokens_of(
        &args.tensors[0],
        &args.tensors[1],
        token_start..token_start + tokens,
        columns,
        Rounding::of(args.variant),
    );
    // Per block: the integers' conversion, three products, two sums; then the sums over blocks.
    let relative = gamma(columns.div_ceil(BLOCK) + 24);
    let sums: Vec<Vec<(f64, f64)>> = (0..rows)
        .into_par_iter()
        .map(|row| {
            let decoded: Vec<(f64, f64)> = (0..columns)
                .map(|column| {
                    let group = column / weight.format.group_columns(columns);
                    let (scale, second) = weight.grid(row, group);
                    let code = weight.code(row, column);
                    let value = weight.format.ty.decode(code, scale, second);
                    (f64::from(value), parts(weight.format.ty, code, (scale.into(), second.into())))
                })
                .collect();
            let of_token = |line: &[f64]| {
                let zero = (0.0, 0.0);
                line.iter().zip(&decoded).fold(zero, |(sum, size), (x, (value, parts))| {
                    (sum + x * value, size + x.abs() * parts)
                })
            };
            x.chunks(columns).map(of_token).collect()
        })
        .collect();
    finished(args, &sums, relative)
}

fn case(shape: Shape) -> Case {
    shape.case(|shape, variant, x, weight| {
        let (x_codes, x_scales) = words(x, shape.columns, Rounding::of(variant));
        let [codes, _] = weights::host(weight);
        vec![
            HostTensor::from_u32(&[x_codes.len()], &x_codes),
            HostTensor::from_f32(DType::F32, &[x_scales.len()], &x_scales),
            codes,
        ]
    })
}

fn random(sizes: &Sizes) -> Case {
    let group = [WHOLE_ROW, 32, 64, 128][sizes.between(4, 0, 3)];
    let columns = padded(sizes.between(1, 1, 900)) - sizes.between(2, 0, 3);
    let (rows, tokens) = (sizes.between(0, 1, 40), sizes.between(3, 1, 17));
    let drawn = case(Shape::new(rows, columns, tokens, group));
    // Pairs of blocks are for whole pairs only: the next shape that has them.
    let group = if group == 32 { 64 } else { group };
    let columns = columns.next_multiple_of(2 * BLOCK);
    let pairs = case(Shape::new(rows, columns, tokens, group));
    Case::new(drawn.label.clone(), move |variant: &Variant| {
        let case = if alone(variant) { &drawn } else { &pairs };
        (case.make)(variant)
    })
}

fn cases() -> Vec<Case> {
    let new = |rows, columns, tokens, group| case(Shape::new(rows, columns, tokens, group));
    let with = |rows, columns, group, special| {
        case(Shape::new(rows, columns, 1, group).with(special)).only(single)
    };
    let poison = Special::Activations;
    let mut cases = vec![
        new(5, 97, 1, WHOLE_ROW).only(alone),
        new(5, 192, 1, WHOLE_ROW),
        new(7, 576, 9, 32).only(alone),
        new(7, 576, 9, 64),
        new(3, 4160, 1, 64).only(single),
        case(special(Special::Part, 5)),
        with(3, 70, 32, poison(Poison::NaN)).only(single_and_alone),
        with(3, 128, 64, poison(Poison::NaN)),
        with(2, 64, 64, poison(Poison::Zeros)),
        with(4, 64, WHOLE_ROW, Special::Largest),
        // Products of a Llama-3.1-8B.
        new(14_336, 4096, 1, 32).bench().only(four_bits_and_more),
        new(8192, 8192, 1, 32).bench().only(four_bits_and_more),
        new(14_336, 4096, 1, 64).bench().only(four_bits_in_pairs),
        new(14_336, 4096, 1, 64).bench().only(three_bits_and_less),
        new(8192, 8192, 1, 64).bench().only(three_bits_and_less),
        new(14_336, 4096, 8, 32).bench().only(more_tokens),
    ];
    cases.extend(epilogues(3).map(case));
    cases
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.output == DType::F32
        && variant.subgroups
        && ["int8", "uint4m", "int3", "int2", "ternary", "int1", "int4_2of4"].contains(&weight)
}

fn single(variant: &Variant) -> bool {
    variant.output == DType::F32
}

/// Whether every block has a scale of its own.
fn alone(variant: &Variant) -> bool {
    variant.constant("SPAN") == 1
}

fn single_and_alone(variant: &Variant) -> bool {
    single(variant) && alone(variant)
}

fn four_bits_and_more(variant: &Variant) -> bool {
    let wide = variant.weight.is_some_and(|weight| weight.bits >= 4);
    timed(variant) && wide && variant.constant("TOKENS") == 1 && alone(variant)
}

fn four_bits_in_pairs(variant: &Variant) -> bool {
    let wide = variant.weight.is_some_and(|weight| weight.bits >= 4);
    timed(variant) && wide && !alone(variant)
}

fn three_bits_and_less(variant: &Variant) -> bool {
    let narrow = variant.weight.is_some_and(|weight| weight.bits < 4);
    timed(variant) && narrow && variant.constant("TOKENS") == 1
}

fn more_tokens(variant: &Variant) -> bool {
    timed(variant) && variant.constant("TOKENS") > 1
}
