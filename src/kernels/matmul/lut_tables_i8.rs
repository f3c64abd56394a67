//! `matmul/lut_tables_i8`: integer activations as tables of bytes, for products by lookup ([`lut_i8`](super::lut_i8)).
//!
//! As [`lut_tables`](super::lut_tables), of activations rounded to two bytes with a scale every 64 columns: the sixteen signed sums
//! of every four columns are integers, which the least power of two for which the largest fits divides, so that they become
//! bytes (T-MAC, arXiv 2407.00088, section 3.2: quantized tables, one scale per 64 activations).

use super::lut_tables::columns_of;
use super::reference::integer;
use crate::kernels::copy::planes::UNIT;
use crate::kernels::prelude::*;
use crate::kernels::quantize::activations::{Rounding, block, words};
use crate::tensor::BLOCK;

params! {
    struct Params {
        tokens: u32,
        columns: u32,
    }
}

/// How the activations are rounded that become tables.
pub const ROUNDING: Rounding = Rounding { bytes: 2, span: 2 };
/// Columns of a scale.
const SPAN: usize = 2 * BLOCK;
/// Words of a scale's tables: 16 tables of 16 bytes.
const WORDS: usize = 64;

/// Scales of a token: whole units have two.
pub(super) fn spans(columns: usize) -> usize {
    columns.div_ceil(UNIT) * UNIT / SPAN
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/lut_tables_i8",
    source: include_str!("../../../shaders/matmul/lut_tables_i8.wgsl"),
    bindings: &[
        binding("x_codes", Access::Read, Element::Is(DType::U32)),
        binding("x_scales", Access::Read, Element::Is(DType::F32)),
        binding("tables", Access::Write, Element::Is(DType::U32)),
        binding("sums", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.tokens as usize * spans(p.columns as usize)).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let (columns, tokens) = (f64::from(p.columns), f64::from(p.tokens));
        Cost {
            operations: 8.0 * columns * tokens,
            // Two bytes in and four entries out.
            bytes: 6.25 * columns * tokens,
        }
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The tables of some tokens.
#[derive(Clone, Debug)]
pub struct ByteTables {
    /// u32 (tokens, units, 32, 4): a table is sixteen bytes.
    pub tables: Tensor,
    /// f32 (tokens, units, 2, 4): of 64 columns what entries are multiplied by, the sums of both blocks, and 0.
    pub sums: Tensor,
}

/// All tokens of activations, their codes and scales rounded by [`ROUNDING`], as tables.
pub fn byte_tables(
    device: &Device,
    [codes, scales]: [&Tensor; 2],
    tokens: usize,
    columns: usize,
) -> Result<ByteTables> {
    let spans = spans(columns);
    let tables = device.allocate(DType::U32, &[tokens, spans * WORDS], "tables of bytes")?;
    let sums = device.allocate(DType::F32, &[tokens, spans * 4], "sums of activations")?;
    let params = Params { tokens: tokens as u32, columns: columns as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[codes, scales, &tables, &sums])?;
    Ok(ByteTables { tables, sums })
}

/// The tables of 64 columns, and what stands beside them.
fn of_span(integers: &[i32], scale: f32) -> (Vec<u32>, [f32; 4]) {
    let value = |column: usize| integers.get(column).copied().unwrap_or(0);
    let tables: Vec<[i32; 4]> = (0..SPAN / 4).map(|table| columns_of(table).map(value)).collect();
    let largest = tables.iter().map(|four| four.iter().map(|a| a.abs()).sum());
    let largest: i32 = largest.max().unwrap_or(0);
    let divided = |sum: i32, shift: u32| (sum + ((1 << shift) >> 1)) >> shift;
    let shift = (0..).find(|shift| divided(largest, *shift) <= 127).unwrap_or(0);
    let byte = |four: &[i32; 4], entry: usize| {
        let terms = four.iter().enumerate();
        let sum = terms.map(|(i, a)| if entry >> i & 1 == 1 { *a } else { -a });
        divided(sum.sum(), shift) as u8
    };
    let words = tables.iter().flat_map(|four| {
        (0..4).map(move |word| {
            u32::from_le_bytes(std::array::from_fn(|place| byte(four, 4 * word + place)))
        })
    });
    let total = |block: usize| (block * BLOCK..(block + 1) * BLOCK).map(value).sum::<i32>();
    let sums = [scale * (1 << shift) as f32, scale * total(0) as f32, scale * total(1) as f32, 0.0];
    (words.collect(), sums)
}

/// Rows of activations as tables, as the kernels make them one after the other.
pub(super) fn of_rows(x: &[f32], columns: usize) -> (Vec<u32>, Vec<f32>) {
    let (mut tables, mut sums) = (Vec::new(), Vec::new());
    for line in x.chunks(columns) {
        for span in 0..spans(columns) {
            let values = &line[(span * SPAN).min(columns)..((span + 1) * SPAN).min(columns)];
            let (integers, scale) = block(values, ROUNDING.bytes);
            let scale = if values.is_empty() { 0.0 } else { scale };
            let (words, beside) = of_span(&integers, scale);
            tables.extend(words);
            sums.extend(beside);
        }
    }
    (tables, sums)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (codes, scales) = (&args.tensors[0], &args.tensors[1]);
    let (mut tables, mut sums) = (Vec::new(), Vec::new());
    for token in 0..p.tokens as usize {
        for span in 0..spans(columns) {
            let own = span * SPAN..((span + 1) * SPAN).min(columns);
            let at = 2 * (token * columns.div_ceil(SPAN) + span);
            let scale = if own.is_empty() { 0.0 } else { scales.get(at) };
            let integers: Vec<i32> =
                own.map(|column| integer(codes, token, column, columns, ROUNDING)).collect();
            let (words, beside) = of_span(&integers, scale as f32);
            tables.extend(words.into_iter().map(f64::from));
            sums.extend(beside.map(f64::from));
        }
    }
    vec![Expected::exact(tables), Expected::exact(sums)]
}

/// A case of that shape, for measurements.
pub fn shaped(tokens: usize, columns: usize) -> Case {
    case(tokens, columns, "")
}

fn case(tokens: usize, columns: usize, note: &'static str) -> Case {
    let label = format!("tokens={tokens},columns={columns}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(61);
        let mut x = random.values(tokens * columns, 3.0);
        match note {
            ",nan" => x[columns - 1] = f32::NAN,
            ",zeros" => x.fill(0.0),
            ",largest" => x.fill(32_639.0),
            // Sums that are divided by two at once, and by nothing.
            ",small" => {
                x.fill(0.0);
                x[0] = 1.0;
            }
            _ => {}
        }
        let (codes, scales) = words(&x, columns, ROUNDING);
        let params = Params { tokens: tokens as u32, columns: columns as u32 };
        let spans = spans(columns);
        params.case(vec![
            HostTensor::from_u32(&[codes.len()], &codes),
            HostTensor::from_f32(DType::F32, &[scales.len()], &scales),
            HostTensor::zeros(DType::U32, &[tokens, spans * WORDS]),
            HostTensor::zeros(DType::F32, &[tokens, spans * 4]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 9), sizes.between(1, 1, 400), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 128, ""),
        case(3, 97, ""),
        case(2, 64, ""),
        case(1, 4, ""),
        case(1, 70, ",zeros"),
        case(2, 64, ",largest"),
        case(1, 64, ",small"),
        case(2, 33, ",nan"),
        case(1, 4096, "").bench(),
    ]
}
