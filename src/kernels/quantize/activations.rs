//! `quantize/activations`: activations as integers of one to three bytes, in blocks of 32, 64 or 128 columns.
//!
//! A block's scale is the least power of two for which its largest magnitude fits, so every step but one rounding is
//! exact and all devices agree. One byte loses up to 2^-7 of the block's largest magnitude, two 2^-15, three 2^-23.

use crate::kernels::prelude::*;
use crate::tensor::BLOCK;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        columns: u32,
    }
}

/// How activations become integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rounding {
    /// Bytes of an integer, 1 to 3.
    pub bytes: u32,
    /// Blocks of 32 columns that share a scale: 1, 2 (up to two bytes), or 4 (for ternary weights).
    pub span: u32,
}

/// A rounding and the constants that say it to a shader.
type Row = (Rounding, &'static [(&'static str, u32)]);

macro_rules! rounding {
    ($bytes:literal, $span:literal) => {
        (Rounding { bytes: $bytes, span: $span }, &[("PLANES", $bytes), ("SPAN", $span)])
    };
}

/// Every rounding there is.
pub(super) const ROUNDINGS: [Row; 8] = [
    rounding!(1, 1),
    rounding!(2, 1),
    rounding!(3, 1),
    rounding!(1, 2),
    rounding!(2, 2),
    rounding!(1, 4),
    rounding!(2, 4),
    rounding!(3, 4),
];

impl Rounding {
    /// What a variant's constants say.
    pub(crate) fn of(variant: &Variant) -> Self {
        Self { bytes: variant.constant("PLANES"), span: variant.constant("SPAN") }
    }

    pub(super) fn constants(self) -> &'static [(&'static str, u32)] {
        let row = ROUNDINGS.iter().find(|(known, _)| *known == self);
        row.expect("a rounding of the table").1
    }

    /// Columns that share a scale.
    pub(crate) fn columns(self) -> usize {
        BLOCK * self.span as usize
    }

    /// Vectors of sixteen bytes that an integer's block has.
    pub(crate) fn pieces(self) -> usize {
        2 * (self.span * self.bytes) as usize
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/activations",
    source: include_str!("../../../shaders/quantize/activations.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("x_codes", Access::Write, Element::Is(DType::U32)),
        binding("x_scales", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let all = [DType::F32, DType::F16].map(|activation| {
            ROUNDINGS.map(|(_, constants)| Variant { activation, constants, ..Variant::BASELINE })
        });
        all.concat()
    },
    groups: |args| {
        let p: Params = args.parameters();
        let block = Rounding::of(args.variant).columns();
        fold((p.tokens as usize * (p.columns as usize).div_ceil(block)).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.tokens) * f64::from(p.columns);
        let bytes =
            args.tensors[0].dtype.size() as f64 + f64::from(args.variant.constant("PLANES"));
        Cost::new(8.0 * values, bytes * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// Integer activations.
#[derive(Clone, Debug)]
pub struct Integers {
    /// u32 (tokens, 2 span bytes, blocks, 4): the lowest bytes first.
    pub codes: Tensor,
    /// f32 (tokens, blocks, 2): each block's scale, and the scale times the sum of its integers.
    pub scales: Tensor,
}

/// Tokens of `x`, whose rows are padded to whole vectors of four, as integers.
pub fn activations(
    device: &Device,
    x: &Tensor,
    tokens: std::ops::Range<usize>,
    columns: usize,
    rounding: Rounding,
) -> Result<Integers> {
    let (count, blocks) = (tokens.len(), columns.div_ceil(rounding.columns()));
    let shape = [count, rounding.pieces(), blocks, 4];
    let codes = device.allocate(DType::U32, &shape, "integer activations")?;
    let scales = device.allocate(DType::F32, &[count, blocks, 2], "scales of activations")?;
    let params =
        Params { tokens: count as u32, token_start: tokens.start as u32, columns: columns as u32 };
    device.call(&KERNEL, variant(x.dtype(), rounding), &params, &[x, &codes, &scales])?;
    Ok(Integers { codes, scales })
}

/// The variant for activations of a type.
pub fn variant(activation: DType, rounding: Rounding) -> Variant {
    Variant { activation, constants: rounding.constants(), ..Variant::BASELINE }
}

/// A case of that shape, for measurements.
pub fn shaped(tokens: usize, columns: usize) -> Case {
    case(tokens, columns, "")
}

/// The largest integer of one, two and three signed bytes.
const LARGEST: [f32; 3] = [127.0, 32_639.0, 8_355_711.0];

/// The integers of a block, and its scale.
pub(crate) fn block(values: &[f32], planes: u32) -> (Vec<i32>, f32) {
    let mut integers = vec![0; values.len()];
    let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    if values.iter().any(|value| !value.is_finite()) {
        return (integers, f32::NAN);
    }
    let limit = LARGEST[planes as usize - 1];
    let above = 8 * planes as i32 - 2;
    let mut exponent = ((largest.to_bits() >> 23) as i32).max(30) - 127 - above;
    if largest * f32::powi(2.0, -exponent) > limit {
        exponent += 1;
    }
    for (integer, value) in integers.iter_mut().zip(values) {
        *integer = (value * f32::powi(2.0, -exponent)).round_ties_even() as i32;
    }
    (integers, f32::powi(2.0, exponent))
}

/// Rows of activations as words of byte planes and scales, as the kernel writes them.
pub(crate) fn words(x: &[f32], columns: usize, rounding: Rounding) -> (Vec<u32>, Vec<f32>) {
    let (planes, blocks) = (rounding.bytes, columns.div_ceil(rounding.columns()));
    let halves = 2 * rounding.span as usize;
    let (mut words, mut scales) = (Vec::new(), Vec::new());
    for line in x.chunks(columns) {
        let mut pieces = vec![[0u8; 16]; rounding.pieces() * blocks];
        for (index, values) in line.chunks(rounding.columns()).enumerate() {
            let (integers, scale) = block(values, planes);
            let sum: i32 = integers.iter().sum();
            scales.extend([scale, scale * sum as f32]);
            for (place, integer) in integers.iter().enumerate() {
                let mut rest = *integer;
                for plane in 0..planes as usize {
                    let piece = (halves * plane + place / 16) * blocks + index;
                    pieces[piece][place % 16] = rest as u8;
                    rest = (rest + 128) >> 8;
                }
            }
        }
        words.extend(pieces.iter().flat_map(|piece| {
            let words: [u32; 4] = bytemuck::cast(*piece);
            words
        }));
    }
    (words, scales)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let stride = columns.next_multiple_of(4);
    let x = args.tensors[0].load(p.token_start as usize * stride, tokens * stride);
    let rows: Vec<f32> = x.chunks(stride).flat_map(|line| &line[..columns]).copied().collect();
    let (words, scales) = words(&rows, columns, Rounding::of(args.variant));
    vec![
        Expected::exact(words.into_iter().map(f64::from).collect()),
        Expected::exact(scales.into_iter().map(f64::from).collect()),
    ]
}

fn case(tokens: usize, columns: usize, note: &'static str) -> Case {
    let label = format!("tokens={tokens},columns={columns}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(12);
        let (before, stride) = (usize::from(note == ",part"), columns.next_multiple_of(4));
        let mut x = vec![0.0; (before + tokens) * stride];
        for line in x.chunks_mut(stride) {
            let size = f32::powi(2.0, random.below(12) as i32 - 6);
            line[..columns].copy_from_slice(&random.values(columns, size));
        }
        match note {
            // Just below a power of two: the largest integer would not fit the finer scale.
            ",edge" => x[columns / 2] = -1.999,
            // Exactly the largest integer, which the finer scale holds.
            ",limit" => {
                x[0] = match variant.constant("PLANES") {
                    1 => 127.0,
                    planes => LARGEST[planes as usize - 1] / 256.0,
                }
            }
            _ => {}
        }
        let rounding = Rounding::of(variant);
        let blocks = columns.div_ceil(rounding.columns());
        let params =
            Params { tokens: tokens as u32, token_start: before as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[before + tokens, stride], &x),
            HostTensor::zeros(DType::U32, &[tokens, rounding.pieces(), blocks, 4]),
            HostTensor::zeros(DType::F32, &[tokens, blocks, 2]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 20), sizes.between(1, 1, 300), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 32, ""),
        case(3, 97, ""),
        case(2, 576, ""),
        case(2, 64, ",part"),
        case(2, 40, "").with(Poison::Zeros),
        case(1, 70, ",edge"),
        case(1, 32, ",limit"),
        case(2, 36, "").with(Poison::NaN),
        case(1, 64, "").with(Poison::NegativeInfinity),
        case(1, 4096, "").bench(),
        case(512, 4096, "").bench(),
    ]
}
