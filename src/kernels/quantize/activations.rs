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

impl Integers {
    /// Undefined ones of so many tokens and columns.
    pub(super) fn new(
        device: &Device,
        tokens: usize,
        columns: usize,
        rounding: Rounding,
    ) -> Result<Self> {
        let [codes, scales] = Self::shapes(tokens, columns, rounding);
        let codes = device.allocate(DType::U32, &codes, "integer activations")?;
        let scales = device.allocate(DType::F32, &scales, "scales of activations")?;
        Ok(Self { codes, scales })
    }

    /// The shapes of both tensors.
    pub(super) fn shapes(tokens: usize, columns: usize, rounding: Rounding) -> [Vec<usize>; 2] {
        let blocks = columns.div_ceil(rounding.columns());
        [vec![tokens, rounding.pieces(), blocks, 4], vec![tokens, blocks, 2]]
    }
}

/// Tokens of `x`, whose rows are padded to whole vectors of four, as integers.
pub fn activations(
    device: &Device,
    x: &Tensor,
    tokens: std::ops::Range<usize>,
    columns: usize,
    rounding: Rounding,
) -> Result<Integers> {
    let made = Integers::new(device, tokens.len(), columns, rounding)?;
    let params = Params {
        tokens: tokens.len() as u32,
        token_start: tokens.start as u32,
        columns: columns as u32,
    };
    let tensors = [x, &made.codes, &made.scales];
    device.call(&KERNEL, variant(x.dtype(), rounding), &params, &tensors)?;
    Ok(made)
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

/// The exponent of the scale of a block whose largest magnitude, finite, is given.
fn exponent(largest: f32, planes: u32) -> i32 {
    let limit = LARGEST[planes as usize - 1];
    let above = 8 * planes as i32 - 2;
    let exponent = ((largest.to_bits() >> 23) as i32).max(30) - 127 - above;
    exponent + i32::from(largest * f32::powi(2.0, -exponent) > limit)
}

/// The integers of a block, and its scale.
pub(crate) fn block(values: &[f32], planes: u32) -> (Vec<i32>, f32) {
    let mut integers = vec![0; values.len()];
    let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    if values.iter().any(|value| !value.is_finite()) {
        return (integers, f32::NAN);
    }
    let exponent = exponent(largest, planes);
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

/// What a kernel must give that rounds what it computes: integers and scales of rows of values that are each known to within a
/// bound. A word of integers is exact where all values within the bounds give it, and may be anything elsewhere; so is a scale.
pub(super) fn expected(values: &[(f64, f64)], columns: usize, rounding: Rounding) -> Vec<Expected> {
    let x: Vec<f32> = values.iter().map(|(value, _)| *value as f32).collect();
    let (words, scales) = words(&x, columns, rounding);
    let exact = |values: Vec<f64>| Expected::exact(values);
    let mut codes = exact(words.into_iter().map(f64::from).collect());
    let mut scales = exact(scales.into_iter().map(f64::from).collect());
    let (blocks, halves) = (columns.div_ceil(rounding.columns()), 2 * rounding.span as usize);
    for (token, line) in values.chunks(columns).enumerate() {
        for (index, block) in line.chunks(rounding.columns()).enumerate() {
            let doubt = Doubt::of(block, rounding.bytes);
            for (place, plane) in doubt.bytes {
                let piece = token * rounding.pieces() + halves * plane + place / 16;
                codes.bounds[4 * (piece * blocks + index) + place % 16 / 4] = u32::MAX.into();
            }
            let at = 2 * (token * blocks + index);
            scales.bounds[at] = doubt.scale;
            scales.bounds[at + 1] = doubt.sum;
        }
    }
    vec![codes, scales]
}

/// What is not certain of a block whose values are known to within bounds.
#[derive(Default)]
struct Doubt {
    /// Columns and planes whose byte is not.
    bytes: Vec<(usize, usize)>,
    /// How far off the scale may be, and the scale times the sum.
    scale: f64,
    sum: f64,
}

impl Doubt {
    fn of(values: &[(f64, f64)], planes: u32) -> Self {
        // NaN and infinity are certain.
        if values.iter().any(|(value, _)| !(*value as f32).is_finite()) {
            return Self::default();
        }
        let scale = |sign: f64| {
            let ends = values.iter().map(|(value, bound)| value.abs() + sign * bound);
            f64::powi(2.0, exponent(ends.fold(0.0, f64::max) as f32, planes))
        };
        let (least, most) = (scale(-1.0), scale(1.0));
        let (mut bytes, mut loss) = (Vec::new(), 0.0);
        for (place, (value, bound)) in values.iter().enumerate() {
            let ends = [value - bound, value + bound];
            let [low, high] = ends.map(|end| (end / most).round_ties_even() as i64);
            let range = high - low + if least < most { 1 } else { 0 };
            loss += range as f64;
            let differs = |plane: &usize| {
                least < most || range > 255 || byte(low, *plane) != byte(high, *plane)
            };
            bytes.extend((0..planes as usize).filter(differs).map(|plane| (place, plane)));
        }
        let size: f64 = values.iter().map(|(value, _)| value.abs()).sum();
        let rounded = if loss > 0.0 { 2.0 * U * size } else { 0.0 };
        Self { bytes, scale: most - least, sum: most * loss + rounded }
    }
}

/// A plane's byte of an integer.
fn byte(integer: i64, plane: usize) -> u8 {
    (0..plane).fold(integer, |rest, _| (rest + 128) >> 8) as u8
}

/// The scale of a block, and integers that its values may be meant to be times that, for cases whose values are computed: as far from
/// the middle between two as can be. The first is the largest, in a third of its range; the others are so small that what is lost
/// is less than half a step.
pub(super) fn aims(random: &mut Random, count: usize, planes: u32) -> Vec<f32> {
    let scale = f32::powi(2.0, random.below(12) as i32 - 20);
    let limit = LARGEST[planes as usize - 1];
    let most = if planes == 3 { 60_000.0 } else { 0.8 * limit };
    let value = |index: usize| {
        let one = random.value();
        let size = if index == 0 { (0.9 * limit).copysign(one) } else { one * most };
        size.round() * scale
    };
    (0..count).map(value).collect()
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
        let [codes, scales] = Integers::shapes(tokens, columns, Rounding::of(variant));
        let params =
            Params { tokens: tokens as u32, token_start: before as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[before + tokens, stride], &x),
            HostTensor::zeros(DType::U32, &codes),
            HostTensor::zeros(DType::F32, &scales),
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
