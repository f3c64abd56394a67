//! `copy/ternary`: ternary codes as indices of sums of two or three weights, for products by lookup: the layouts TL1 and TL2
//! of bitnet.cpp (arXiv 2502.11880, section 3).
//!
//! Rows stand in tiles of 32, columns in units of 128; a unit of a tile holds word by word, row by row, so that the lanes of
//! a subgroup, a row each, load neighbouring words. Columns follow one another: with weights a, b, c of -1, 0 and 1,
//!
//! * two (TL1) are the nibble `3a + b + 4`, 0 to 8, place `p` in word `p / 8`: eight words, 2 bits a weight;
//! * three (TL2) are a sign and the nibble `|9a + 3b + c|`, 0 to 13. A unit is padded with one weight of 0 to 43 triples:
//!   nibbles in five words and the low 12 bits of the sixth, the signs of the first 32 in the seventh and the others' in the
//!   sixth from bit 12 on, where the sum is below 0: seven words, 1.75 bits a weight.
//!
//! Columns and rows beyond the end are weights of 0. Codes of 3, which stand for 0, come back as 1: all others as they were.

use super::planes::{TILE, UNIT};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{Packed, WHOLE_ROW, WeightFormat, WeightType};

params! {
    struct Params {
        rows: u32,
        columns: u32,
        code_words: u32,
    }
}

/// How many weights an index stands for.
const TRITS: [&[(&str, u32)]; 2] = [&[("TRITS", 2)], &[("TRITS", 3)]];

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/ternary",
    source: include_str!("../../../shaders/copy/ternary.wgsl"),
    bindings: &[
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("trits", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let all = weights::one_per_type().into_iter();
        let ternary = all.filter(|variant| variant.weight.is_some_and(takes));
        let with = |base: Variant| TRITS.map(|constants| Variant { constants, ..base.clone() });
        ternary.flat_map(with).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        let units = (p.columns as usize).div_ceil(UNIT);
        fold(((p.rows as usize).next_multiple_of(TILE) * units).div_ceil(64))
    },
    cost: |args| {
        let words = (args.tensors[0].len() + args.tensors[1].len()) as f64;
        Cost::new(0.0, 4.0 * words)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// Whether codes of this type are ternary.
pub fn takes(weight: &WeightType) -> bool {
    weight.name == "ternary"
}

/// Words of a row's unit, two or three weights to an index.
pub fn unit_words(trits: usize) -> usize {
    if trits == 2 { 8 } else { 7 }
}

/// Words of a matrix in that layout.
pub fn words(rows: usize, columns: usize, trits: usize) -> usize {
    rows.next_multiple_of(TILE) * columns.div_ceil(UNIT) * unit_words(trits)
}

/// The first word of a row's unit; those that follow it are [`TILE`] apart.
fn start(row: usize, unit: usize, units: usize, trits: usize) -> usize {
    (row / TILE * units + unit) * unit_words(trits) * TILE + row % TILE
}

/// The bit of a triple's sign: a word of the unit, and a place in it.
fn sign_place(triple: usize) -> (usize, usize) {
    if triple < 32 { (6, triple) } else { (5, triple - 20) }
}

/// The codes of a ternary matrix, (rows, code_words) u32 of a device, `trits` (2 or 3) to an index: u32
/// (rows / 32, units, words of a unit, 32).
pub fn indices(
    device: &Device,
    codes: &Tensor,
    format: WeightFormat,
    (rows, columns): (usize, usize),
    trits: usize,
) -> Result<Tensor> {
    let result = device.allocate(DType::U32, &[words(rows, columns, trits)], "ternary indices")?;
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        code_words: format.code_words_per_row(columns) as u32,
    };
    device.call(
        &KERNEL,
        Variant { constants: TRITS[usize::from(trits == 3)], ..weights::variant(format.ty) },
        &params,
        &[codes, &result],
    )?;
    Ok(result)
}

/// The same on the host.
pub fn arrange(packed: &Packed, trits: usize) -> Vec<u32> {
    let (rows, columns) = (packed.rows, packed.columns);
    let units = columns.div_ceil(UNIT);
    let mut result = vec![0; words(rows, columns, trits)];
    let weight = |row: usize, unit: usize, within: usize| {
        let column = unit * UNIT + within;
        if row < rows && within < UNIT && column < columns {
            packed.format.ty.level(packed.code(row, column)) as i32
        } else {
            0
        }
    };
    let per_tile = units * unit_words(trits) * TILE;
    let tiles = result.par_chunks_mut(per_tile.max(1)).enumerate();
    tiles.for_each(|(tile, result)| {
        for (within, unit) in (0..TILE).flat_map(|row| (0..units).map(move |unit| (row, unit))) {
            let row = tile * TILE + within;
            let first = start(within, unit, units, trits);
            for place in 0..UNIT.div_ceil(trits) {
                let each = (0..trits).map(|i| weight(row, unit, place * trits + i));
                let value = each.fold(0, |sum, weight| 3 * sum + weight);
                let nibble = if trits == 2 { value + 4 } else { value.abs() };
                result[first + place / 8 * TILE] |= (nibble as u32) << (4 * (place % 8));
                if trits == 3 && value < 0 {
                    let (word, bit) = sign_place(place);
                    result[first + word * TILE] |= 1 << bit;
                }
            }
        }
    });
    result
}

/// The reverse: a matrix without scales, of the codes 0, 1 and 2 for what the indices stand for.
pub fn restore(
    indices: &[u32],
    format: WeightFormat,
    (rows, columns): (usize, usize),
    trits: usize,
) -> Packed {
    let units = columns.div_ceil(UNIT);
    let mut packed = Packed::zeros(format, rows, columns);
    for row in 0..rows {
        for column in 0..columns {
            let first = start(row, column / UNIT, units, trits);
            let within = column % UNIT;
            let place = within / trits;
            let nibble = (indices[first + place / 8 * TILE] >> (4 * (place % 8)) & 15) as i32;
            // From -4 or -13 up, so that a digit of base three is a code.
            let rank = if trits == 2 {
                nibble
            } else {
                let (word, bit) = sign_place(place);
                let below = indices[first + word * TILE] >> bit & 1 == 1;
                13 + if below { -nibble } else { nibble }
            };
            let behind = trits - 1 - within % trits;
            let code = rank / 3i32.pow(behind as u32) % 3;
            packed.set_code(row, column, code as u32);
        }
    }
    packed
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let format = WeightFormat {
        ty: args.variant.weight.expect("a variant names its weight"),
        group_size: WHOLE_ROW,
    };
    let packed = Packed {
        codes: args.tensors[0].words.to_vec(),
        ..Packed::zeros(format, p.rows as usize, p.columns as usize)
    };
    let words = arrange(&packed, args.variant.constant("TRITS") as usize).into_iter();
    vec![Expected::exact(words.map(f64::from).collect())]
}

fn case(rows: usize, columns: usize, note: &'static str) -> Case {
    Case::new(format!("rows={rows},columns={columns}{note}"), move |variant: &Variant| {
        let mut random = Random::new(57);
        let mut packed = weights::random(&mut random, variant, rows, columns, WHOLE_ROW);
        if note == ",any code" {
            packed.codes.fill_with(|| random.word());
        }
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            code_words: packed.format.code_words_per_row(columns) as u32,
        };
        let [codes, _] = weights::host(&packed);
        let words = words(rows, columns, variant.constant("TRITS") as usize);
        params.case(vec![codes, HostTensor::zeros(DType::U32, &[words])])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 80), sizes.between(1, 1, 400), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, ""),
        case(33, 97, ""),
        case(31, 300, ",any code"),
        case(64, 256, ""),
        case(14_336, 4096, "").bench(),
    ]
}
