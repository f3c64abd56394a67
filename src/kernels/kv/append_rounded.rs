//! `kv/append_rounded`: new tokens' rows behind what each sequence's cache holds already, rounded to the cache's type. Exact.
//!
//! Plain numbers go to the nearest, ties to even. A group of a symmetric type gets the scale max|x| / (2^(bits-1) - 1), or
//! with `signed_max` x / -2^(bits-1) of the x of largest magnitude, the positive one of two (GGUF's Q4_0); one of a type with
//! an offset (max - min) / (2^bits - 1), and its minimum as the offset (Q4_1). Then each value takes the nearest code on the
//! grid that the scale in f16 spans, the lower of two. A group with a value that is not finite, or whose scale is too large
//! for f16, decodes to infinity or NaN.

use half::f16;

use super::{CACHE_TYPES, CacheType, Cached};
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::quantize::round;
use crate::tensor::{BLOCK, Packed, Scale, WHOLE_ROW, WeightFormat, WeightType};

params! {
    struct Params {
        tokens: u32,
        tokens_per_sequence: u32,
        width: u32,
        capacity: u32,
        /// 1: the scale of a symmetric group is that of its value of largest magnitude, with its sign.
        signed_max: u32,
        factor: f32,
        layout: Layout,
    }
}

/// Columns of a workgroup.
const UNIT: usize = 64;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "kv/append_rounded",
    source: include_str!("../../../shaders/kv/append_rounded.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("past", Access::Read, Element::Is(DType::U32)),
        binding("codes", Access::ReadWrite, Element::Is(DType::U32)),
        binding("scales", Access::ReadWrite, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    imports: |variant, name| match name {
        "rounded" if variant.weight.is_some_and(WeightType::has_scales) => Some("append_grouped"),
        "rounded" => Some("append_plain"),
        _ => None,
    },
    overrides: &[("WORKGROUP", UNIT as f64)],
    variants: || {
        let of = |activation| {
            super::decoding_variants().map(move |variant| Variant { activation, ..variant })
        };
        of(DType::F32).chain(of(DType::F16)).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tokens as usize * (p.width as usize).div_ceil(UNIT))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let values = args.tensors[0].len() as f64;
        let words = f64::from(p.tokens) * f64::from(p.layout.code_words + p.layout.scale_words);
        let read = args.tensors[0].dtype.size() as f64;
        Cost::new(30.0 * values, read * values + 4.0 * words)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
};

/// Appends `x`, (tokens, width), to a cache. `past`: tokens each sequence holds already.
pub fn append_rounded(device: &Device, x: &Tensor, past: &Tensor, cache: &Cached) -> Result<()> {
    let tokens = x.shape()[0];
    let params = Params {
        tokens: tokens as u32,
        tokens_per_sequence: (tokens / past.len()) as u32,
        width: cache.width() as u32,
        capacity: cache.capacity() as u32,
        signed_max: u32::from(cache.ty.signed_max),
        factor: cache.ty.factor(),
        layout: cache.layout(),
    };
    let variant =
        Variant { activation: x.dtype(), weight: Some(cache.weight()), ..Variant::BASELINE };
    let (codes, scales) = cache.words();
    device.call(&KERNEL, variant, &params, &[x, past, &codes, scales])
}

/// The scale and second number of a group, both f16.
fn mark(ty: &WeightType, p: &Params, group: &[f32]) -> (u16, u16) {
    // What is not finite makes the group's range too large for f16.
    let finite = |value: &f32, other: f32| if value.is_finite() { *value } else { other };
    let low = group.iter().map(|value| finite(value, -3.0e38)).fold(f32::INFINITY, f32::min);
    let high = group.iter().map(|value| finite(value, 3.0e38)).fold(f32::NEG_INFINITY, f32::max);
    let bits = |value: f32| f16::from_f32(value).to_bits();
    let signless = |value: f32, bits: u16| if value == 0.0 { 0 } else { bits };
    if ty.scale == Scale::Offset {
        return (bits((high - low) * p.factor), signless(low, bits(low)));
    }
    let negative = p.signed_max == 1 && high < -low;
    let extreme = if negative { low } else { high.max(-low) };
    (signless(extreme, bits(extreme * p.factor)), 0)
}

/// A row of the cache that holds `values`; `code` finds a value's code on its group's grid.
fn rounded(
    ty: &'static WeightType,
    p: &Params,
    values: &[f32],
    code: fn(f32, WeightFormat, (f32, f32)) -> u32,
) -> Packed {
    let group = 1 << p.layout.group_shift.min(BLOCK.trailing_zeros());
    let group_size = if ty.has_scales() { group } else { WHOLE_ROW };
    let mut row = Packed::zeros(WeightFormat { ty, group_size }, 1, values.len());
    for (index, values) in values.chunks(group as usize).enumerate() {
        let (scale, second) = mark(ty, p, values);
        row.set_group(0, index, scale, second);
        let grid = row.grid(0, index);
        for (place, value) in values.iter().enumerate() {
            let code = match ty.bits {
                32 if value.is_nan() => 0x7fc0_0000,
                32 => value.to_bits(),
                // As the shader's integers round: NaN becomes infinity.
                16 if value.is_nan() => u32::from(f16::INFINITY.to_bits()),
                16 => u32::from(f16::from_f32(*value).to_bits()),
                _ if !f16::from_bits(scale).is_finite() => 0,
                _ => code(*value, row.format, grid),
            };
            row.set_code(0, index * group as usize + place, code);
        }
    }
    row
}

/// The rows of the new tokens: where each goes, and what it is.
fn rows(args: &Args<'_>, code: fn(f32, WeightFormat, (f32, f32)) -> u32) -> Vec<(usize, Packed)> {
    let p: Params = args.parameters();
    let ty = args.variant.weight.expect("a variant of a kernel with a cache names its type");
    let (width, past) = (p.width as usize, args.tensors[1].u32s());
    (0..p.tokens as usize)
        .into_par_iter()
        .map(|token| {
            let (sequence, order) =
                (token / p.tokens_per_sequence as usize, token % p.tokens_per_sequence as usize);
            let row = sequence * p.capacity as usize + past[sequence] as usize + order;
            (row, rounded(ty, &p, &args.tensors[0].load(token * width, width), code))
        })
        .collect()
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut words = [args.tensors[2].to_f64(), args.tensors[3].to_f64()];
    for (row, packed) in rows(args, round::nearest_of_all) {
        let widths = [p.layout.code_words as usize, p.layout.scale_words as usize];
        for ((words, width), new) in words.iter_mut().zip(widths).zip([packed.codes, packed.scales])
        {
            let line = &mut words[row * width..(row + 1) * width];
            line.iter_mut().zip(new).for_each(|(word, new)| *word = f64::from(new));
        }
    }
    words.map(Expected::exact).into()
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    for (row, packed) in rows(args, round::code) {
        let widths = [p.layout.code_words as usize, p.layout.scale_words as usize];
        for (output, (width, new)) in
            widths.into_iter().zip([packed.codes, packed.scales]).enumerate()
        {
            let line = &mut outputs.words(output)[row * width..(row + 1) * width];
            line.copy_from_slice(&new[..width]);
        }
    }
}

/// The cache type that a variant writes.
fn cache_type(variant: &Variant) -> &'static CacheType {
    let found = CACHE_TYPES.iter().find(|ty| Some(ty.weight()) == variant.weight);
    found.expect("a variant of a kernel with a cache names its type")
}

/// `each` new tokens in each of `sequences`, of heads of `head_dim` columns.
fn case(
    (sequences, each): (usize, usize),
    (heads, head_dim): (usize, usize),
    past: u32,
    note: &'static str,
) -> Case {
    let label = format!(
        "sequences={sequences},tokens={each},heads={heads},head_dim={head_dim},past={past}{note}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(31);
        let (tokens, width) = (sequences * each, heads * head_dim);
        let ty = cache_type(variant);
        let format = ty.format(head_dim).expect("heads of whole groups");
        let layout = super::layout(ty, format, width);
        let capacity = past as usize + each + sequences + 2;
        let past: Vec<u32> = (0..sequences as u32).map(|s| past + s).collect();
        let params = Params {
            tokens: tokens as u32,
            tokens_per_sequence: each as u32,
            width: width as u32,
            capacity: capacity as u32,
            signed_max: u32::from(ty.signed_max),
            factor: ty.factor(),
            layout,
        };
        let mut values = random.values(tokens * width, 3.0);
        match note {
            // Groups of one magnitude of both signs, and of one value.
            ",ties" => values.iter_mut().enumerate().for_each(|(index, value)| {
                *value =
                    [1.5, -1.5, 0.75, 0.0][index % 4] * if index % 64 < 32 { 1.0 } else { -1.0 }
            }),
            ",far" => values.iter_mut().for_each(|value| *value *= 21_000.0),
            ",near" => values.iter_mut().for_each(|value| *value *= 1e-6),
            _ => {}
        }
        let rows = sequences * capacity;
        let mut words = |count: usize| {
            let words: Vec<u32> = (0..rows * count).map(|_| random.below(1 << 30)).collect();
            HostTensor::from_u32(&[rows * count], &words)
        };
        let (codes, scales) = (words(layout.code_words as usize), layout.scale_words as usize);
        let scales = if scales == 0 { HostTensor::from_u32(&[1], &[7]) } else { words(scales) };
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[tokens, width], &values),
            HostTensor::from_u32(&[sequences], &past),
            codes,
            scales,
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let heads = (sizes.between(2, 1, 4), 16 * sizes.between(3, 1, 8));
    case(
        (sizes.between(0, 1, 3), sizes.between(1, 1, 20)),
        heads,
        sizes.between(4, 0, 30) as u32,
        "",
    )
}

fn cases() -> Vec<Case> {
    vec![
        case((2, 3), (2, 32), 4, ""),
        case((1, 1), (1, 16), 0, ""),
        case((1, 5), (3, 80), 1, ""),
        case((3, 9), (4, 64), 10, ""),
        case((1, 2), (2, 64), 0, ",ties"),
        case((1, 2), (2, 64), 0, ",far"),
        case((1, 2), (2, 64), 0, ",near"),
        case((1, 2), (1, 64), 0, "").with(Poison::Zeros),
        case((1, 2), (1, 64), 0, "").with(Poison::Infinity),
        case((1, 2), (1, 64), 0, "").with(Poison::NegativeInfinity),
        case((1, 2), (1, 64), 0, "").with(Poison::NaN),
        case((1, 1), (8, 128), 4096, "").bench(),
        case((1, 512), (8, 128), 0, "").bench(),
    ]
}
