//! `matmul/bits`: activations as bit planes, for products by counting bits ([`bitserial`](super::bitserial)).
//!
//! A block of 32 columns becomes integers of 2 to 8 bits in two's complement, with the least power of two as scale for which
//! the largest magnitude fits; or signs, with the mean of the magnitudes as scale (XNOR-Net, arXiv 1603.05279). Plane by plane, a word holds the 32 columns in the order of [`planes`](crate::kernels::copy::planes).

use super::padded;
use crate::kernels::copy::planes::UNIT;
use crate::kernels::prelude::*;
use crate::tensor::BLOCK;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        columns: u32,
    }
}

/// Bits of an activation.
const WIDTHS: [&[(&str, u32)]; 8] = [
    &[("ACT_BITS", 8)],
    &[("ACT_BITS", 7)],
    &[("ACT_BITS", 6)],
    &[("ACT_BITS", 5)],
    &[("ACT_BITS", 4)],
    &[("ACT_BITS", 3)],
    &[("ACT_BITS", 2)],
    &[("ACT_BITS", 1)],
];

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/bits",
    source: include_str!("../../../shaders/matmul/bits.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("x_planes", Access::Write, Element::Is(DType::U32)),
        binding("x_scales", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let all = [DType::F32, DType::F16].map(|activation| {
            WIDTHS.map(|constants| Variant { activation, constants, ..Variant::BASELINE })
        });
        all.concat()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.tokens as usize * blocks(p.columns as usize)).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.tokens) * f64::from(p.columns);
        let bits = f64::from(args.variant.constant("ACT_BITS"));
        Cost::new(
            4.0 * bits * values,
            (args.tensors[0].dtype.size() as f64 + bits / 8.0 + 0.25) * values,
        )
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// Blocks of a row, in whole units.
fn blocks(columns: usize) -> usize {
    columns.div_ceil(UNIT) * UNIT / BLOCK
}

/// The variant for activations of a type, in eight bits.
pub fn variant(activation: DType) -> Variant {
    Variant { activation, constants: WIDTHS[0], ..Variant::BASELINE }
}

/// Activations as planes.
#[derive(Clone, Debug)]
pub struct Bits {
    /// u32 (tokens, units, bits, 4).
    pub planes: Tensor,
    /// f32 (tokens, units, 4, 2): each block's scale, and the scale times the sum of its integers.
    pub scales: Tensor,
}

/// Tokens of `x`, whose rows are padded to whole vectors of four, as planes of eight bits.
pub fn bits(
    device: &Device,
    x: &Tensor,
    tokens: std::ops::Range<usize>,
    columns: usize,
) -> Result<Bits> {
    let (count, blocks) = (tokens.len(), blocks(columns));
    let planes = device.allocate(DType::U32, &[count, blocks * 8], "planes of activations")?;
    let scales = device.allocate(DType::F32, &[count, blocks, 2], "scales of activations")?;
    let params =
        Params { tokens: count as u32, token_start: tokens.start as u32, columns: columns as u32 };
    device.call(&KERNEL, variant(x.dtype()), &params, &[x, &planes, &scales])?;
    Ok(Bits { planes, scales })
}

/// The integers of a block, and its scale.
fn block(values: &[f32], bits: u32) -> ([i32; BLOCK], f32) {
    let mut integers = [0; BLOCK];
    let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    if values.iter().any(|value| !value.is_finite()) {
        return (integers, f32::NAN);
    }
    if bits == 1 {
        for (integer, value) in integers.iter_mut().zip(values) {
            *integer = if *value < 0.0 { -1 } else { 1 };
        }
        let total: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
        return (integers, (total / values.len().max(1) as f64) as f32);
    }
    let mut exponent = ((largest.to_bits() >> 23) as i32).max(30) - 127 - (bits as i32 - 2);
    if largest * f32::powi(2.0, -exponent) > ((1 << (bits - 1)) - 1) as f32 {
        exponent += 1;
    }
    for (integer, value) in integers.iter_mut().zip(values) {
        *integer = (value * f32::powi(2.0, -exponent)).round_ties_even() as i32;
    }
    (integers, f32::powi(2.0, exponent))
}

/// Rows of activations as words of planes and scales, as the kernel writes them.
pub(super) fn words(x: &[f32], columns: usize, bits: u32) -> (Vec<u32>, Vec<f32>) {
    let (mut words, mut scales) = (Vec::new(), Vec::new());
    for line in x.chunks(columns) {
        let first = words.len();
        words.resize(first + blocks(columns) * bits as usize, 0);
        for index in 0..blocks(columns) {
            let start = (index * BLOCK).min(columns);
            let (integers, scale) = block(&line[start..columns.min(start + BLOCK)], bits);
            scales.extend([scale, scale * integers.iter().sum::<i32>() as f32]);
            for plane in 0..bits {
                let word = (0..BLOCK).map(|column| {
                    let integer = integers[column];
                    // Of a sign, the bit says that it is below zero.
                    let bit = if bits == 1 {
                        u32::from(integer < 0)
                    } else {
                        integer as u32 >> plane & 1
                    };
                    bit << (8 * (column % 4) + column / 4)
                });
                let at = (index / 4 * bits as usize + plane as usize) * 4 + index % 4;
                words[first + at] = word.sum();
            }
        }
    }
    (words, scales)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let stride = padded(columns);
    let x = args.tensors[0].load(p.token_start as usize * stride, tokens * stride);
    let lines = x.chunks(stride).flat_map(|line| &line[..columns]);
    let rows: Vec<f32> = lines.copied().collect();
    let (words, scales) = words(&rows, columns, args.variant.constant("ACT_BITS"));
    let mut scales = Expected::exact(scales.into_iter().map(f64::from).collect());
    if args.variant.constant("ACT_BITS") == 1 {
        // The sum of 32 magnitudes, a division and a product.
        for (bound, value) in scales.bounds.iter_mut().zip(&scales.values) {
            *bound = gamma(36) * value.abs() + storing(DType::F32, *value);
        }
    }
    vec![Expected::exact(words.into_iter().map(f64::from).collect()), scales]
}

/// A case of that shape, for measurements.
pub fn shaped(tokens: usize, columns: usize) -> Case {
    case(tokens, columns, "")
}

fn case(tokens: usize, columns: usize, note: &'static str) -> Case {
    let label = format!("tokens={tokens},columns={columns}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(47);
        let (before, stride) = (usize::from(note == ",part"), padded(columns));
        let mut x = vec![0.0; (before + tokens) * stride];
        for line in x.chunks_mut(stride) {
            let size = f32::powi(2.0, random.below(12) as i32 - 6);
            line[..columns].copy_from_slice(&random.values(columns, size));
        }
        let bits = variant.constant("ACT_BITS");
        match note {
            // Just below a power of two: the largest integer would not fit the finer scale.
            ",edge" => x[columns / 2] = -1.999,
            // Exactly the largest integer, which the finer scale holds.
            ",limit" => x[0] = ((1 << (bits - 1)) - 1) as f32,
            _ => {}
        }
        let params =
            Params { tokens: tokens as u32, token_start: before as u32, columns: columns as u32 };
        let (blocks, bits) = (blocks(columns), bits as usize);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[before + tokens, stride], &x),
            HostTensor::zeros(DType::U32, &[tokens, blocks * bits]),
            HostTensor::zeros(DType::F32, &[tokens, blocks, 2]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 20), sizes.between(1, 1, 300), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 128, ""),
        case(3, 97, ""),
        case(2, 64, ",part"),
        case(2, 40, "").with(Poison::Zeros),
        case(1, 70, ",edge"),
        case(1, 32, ",limit"),
        case(2, 36, "").with(Poison::NaN),
        case(1, 64, "").with(Poison::NegativeInfinity),
        case(1, 4096, "").bench(),
    ]
}
