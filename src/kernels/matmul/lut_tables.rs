//! `matmul/lut_tables`: activations as tables of sums, for products by lookup.
//!
//! Four columns 4 apart in half a block of 32, a nibble of a bit plane's word ([`planes`](crate::kernels::copy::planes)),
//! share a table of sixteen: entry `n` is a quarter of the sum of the four, column `i` added where bit `i` of `n` is set
//! and taken away elsewhere (T-MAC, arXiv 2407.00088, section 3.1).

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

/// Entries of the tables of a token.
pub(super) fn entries(columns: usize) -> usize {
    columns.div_ceil(UNIT) * UNIT * 4
}

/// Sums of half a block of a token.
pub(super) fn halves(columns: usize) -> usize {
    columns.div_ceil(UNIT) * UNIT / 16
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/lut_tables",
    source: include_str!("../../../shaders/matmul/lut_tables.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("tables", Access::Write, Element::Output),
        binding("halves", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let f16 = [DType::F16, DType::F32].map(|tables| variant(DType::F16, tables));
        [vec![variant(DType::F32, DType::F32)], f16.to_vec()].concat()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold((p.tokens as usize * entries(p.columns as usize) / 16).div_ceil(64))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let (columns, tokens) = (p.columns as usize, f64::from(p.tokens));
        let size = [0, 1].map(|index: usize| args.tensors[index].dtype.size());
        Cost::new(
            2.0 * tokens * entries(columns) as f64,
            tokens * (size[0] * columns + size[1] * entries(columns) + 4 * halves(columns)) as f64,
        )
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// The variant for activations of a type, and tables of a type.
pub fn variant(activation: DType, tables: DType) -> Variant {
    Variant::typed(activation, tables)
}

/// The tables of some tokens.
#[derive(Clone, Debug)]
pub struct Tables {
    /// (tokens, units, 32, 16), f32 or f16.
    pub tables: Tensor,
    /// f32 (tokens, units, 8): sums of 16 columns.
    pub halves: Tensor,
}

/// Tokens of `x`, whose rows are padded to whole vectors of four, as tables of `dtype`.
pub fn tables(
    device: &Device,
    x: &Tensor,
    tokens: std::ops::Range<usize>,
    columns: usize,
    dtype: DType,
) -> Result<Tables> {
    let count = tokens.len();
    let tables = device.allocate(dtype, &[count, entries(columns)], "lookup tables")?;
    let halves = device.allocate(DType::F32, &[count, halves(columns)], "sums of half a block")?;
    let params =
        Params { tokens: count as u32, token_start: tokens.start as u32, columns: columns as u32 };
    device.call(&KERNEL, variant(x.dtype(), dtype), &params, &[x, &tables, &halves])?;
    Ok(Tables { tables, halves })
}

/// The columns of a table, by its place among a token's.
pub(super) fn columns_of(place: usize) -> [usize; 4] {
    let (nibble, block) = (place % 8, place / 8);
    std::array::from_fn(|i| block * BLOCK + nibble % 2 * 16 + 4 * i + nibble / 2)
}

/// Rows of activations as tables of f32, exact but for f32's own rounding, and as sums of half a block.
pub(super) fn of_rows(x: &[f32], columns: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut tables, mut sums) = (Vec::new(), Vec::new());
    for line in x.chunks(columns) {
        let value = |column: usize| f64::from(line.get(column).copied().unwrap_or(0.0));
        for place in 0..entries(columns) / 16 {
            let four = columns_of(place).map(value);
            let signed = |entry: usize| {
                let terms = four.iter().enumerate();
                let terms = terms.map(|(i, x)| if entry >> i & 1 == 1 { *x } else { -x });
                (terms.sum::<f64>() / 4.0) as f32
            };
            tables.extend((0..16).map(signed));
        }
        let sixteen = |half: usize| (0..16).map(|i| value(16 * half + i)).sum::<f64>() as f32;
        sums.extend((0..halves(columns)).map(sixteen));
    }
    (tables, sums)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let stride = padded(columns);
    let x = args.tensors[0].load(p.token_start as usize * stride, tokens * stride);
    let rows: Vec<f32> = x.chunks(stride).flat_map(|line| &line[..columns]).copied().collect();
    let (tables, sums) = of_rows(&rows, columns);
    let dtype = args.tensors[1].dtype;
    let line = |place: usize, per: usize| &rows[place / per * columns..][..columns];
    let size = |line: &[f32], column: usize| f64::from(line.get(column).map_or(0.0, |x| x.abs()));
    let exact = |values: Vec<f32>| Expected::exact(values.into_iter().map(f64::from).collect());
    let (mut tables, mut sums) = (exact(tables), exact(sums));
    for (place, bound) in tables.bounds.iter_mut().enumerate() {
        let line = line(place, entries(columns));
        let four = columns_of(place % entries(columns) / 16);
        let magnitude: f64 = four.iter().map(|column| size(line, *column)).sum();
        *bound = gamma(4) * magnitude / 4.0 + storing(dtype, tables.values[place]);
    }
    for (place, bound) in sums.bounds.iter_mut().enumerate() {
        let (line, half) = (line(place, halves(columns)), place % halves(columns));
        let magnitude: f64 = (0..16).map(|i| size(line, 16 * half + i)).sum();
        *bound = gamma(16) * magnitude + storing(DType::F32, sums.values[place]);
    }
    vec![tables, sums]
}

/// A case of that shape, for measurements.
pub fn shaped(tokens: usize, columns: usize) -> Case {
    case(tokens, columns, "")
}

fn case(tokens: usize, columns: usize, note: &'static str) -> Case {
    let label = format!("tokens={tokens},columns={columns}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(43);
        let (before, stride) = (2 * usize::from(note == ",part"), padded(columns));
        let mut x = vec![0.0; (before + tokens) * stride];
        for line in x.chunks_mut(stride) {
            line[..columns].copy_from_slice(&random.values(columns, 3.0));
        }
        if note == ",largest" {
            // Four of the largest f16 have a sum that f16 does not hold; a quarter of it, it does.
            x.fill(65_504.0);
        }
        let params =
            Params { tokens: tokens as u32, token_start: before as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[before + tokens, stride], &x),
            HostTensor::zeros(variant.output, &[tokens, entries(columns)]),
            HostTensor::zeros(DType::F32, &[tokens, halves(columns)]),
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
        case(1, 4, ""),
        case(2, 260, ",part"),
        case(1, 72, "").with(Poison::Zeros),
        case(2, 64, ",largest"),
        case(2, 36, "").with(Poison::NaN),
        case(1, 4096, "").bench(),
    ]
}
