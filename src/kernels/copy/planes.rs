//! `copy/planes`: codes as bit planes, for products by lookup (T-MAC, arXiv 2407.00088) and by counting bits.
//!
//! Rows stand in tiles of 32, columns in units of 128; a unit of a tile holds plane by plane, row by row, four words: 16
//! bytes feed a lane, and the lanes of a subgroup, a row each, load them side by side. A word holds 32 columns: column
//! `4q + i` is bit `8i + q`, so that a nibble is four columns four apart. Rows and columns beyond the end are zero bits.

use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, Packed, WHOLE_ROW, WeightFormat, WeightType};

/// Rows of a tile.
pub const TILE: usize = 32;
/// Columns of a unit.
pub const UNIT: usize = 128;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        code_words: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/planes",
    source: include_str!("../../../shaders/copy/planes.wgsl"),
    bindings: &[
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("planes", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let all = weights::one_per_type().into_iter();
        all.filter(|variant| variant.weight.is_some_and(takes)).collect()
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

/// Whether products by lookup take codes of this type: integers of up to four bits, of every column, with scales of one level.
pub fn takes(weight: &WeightType) -> bool {
    weight.is_affine() && weight.bits <= 4 && !weight.is_sparse() && weight.super_block().is_none()
}

/// Words of the planes of a matrix.
pub fn words(rows: usize, columns: usize, bits: usize) -> usize {
    rows.next_multiple_of(TILE) * columns.div_ceil(UNIT) * bits * 4
}

/// The first word of a row's unit in a plane, and the words that follow it are those of the next 32 columns each.
fn place(row: usize, unit: usize, plane: usize, units: usize, bits: usize) -> usize {
    (((row / TILE * units + unit) * bits + plane) * TILE + row % TILE) * 4
}

/// The codes of a matrix, (rows, code_words) u32 of a device, as planes.
pub fn planes(
    device: &Device,
    codes: &Tensor,
    format: WeightFormat,
    (rows, columns): (usize, usize),
) -> Result<Tensor> {
    let words = words(rows, columns, format.ty.bits as usize);
    let result = device.allocate(DType::U32, &[words], "bit planes")?;
    let params = Params {
        rows: rows as u32,
        columns: columns as u32,
        code_words: format.code_words_per_row(columns) as u32,
    };
    device.call(&KERNEL, weights::variant(format.ty), &params, &[codes, &result])?;
    Ok(result)
}

/// The same on the host.
pub fn arrange(packed: &Packed) -> Vec<u32> {
    let (rows, columns) = (packed.rows, packed.columns);
    let bits = packed.format.ty.bits as usize;
    let units = columns.div_ceil(UNIT);
    let mut planes = vec![0; words(rows, columns, bits)];
    let per_tile = units * bits * TILE * 4;
    let tiles = planes.par_chunks_mut(per_tile.max(1)).enumerate();
    tiles.for_each(|(tile, planes)| {
        for row in tile * TILE..rows.min((tile + 1) * TILE) {
            for column in 0..columns {
                let (code, within) = (packed.code(row, column), column % BLOCK);
                for plane in 0..bits {
                    let unit = place(row % TILE, column / UNIT, plane, units, bits);
                    let at = unit + column % UNIT / BLOCK;
                    planes[at] |= (code >> plane & 1) << (8 * (within % 4) + within / 4);
                }
            }
        }
    });
    planes
}

/// The words of a block of 32 columns of a row, plane by plane.
pub fn block_planes(
    planes: &[u32],
    (row, block): (usize, usize),
    columns: usize,
    bits: u32,
) -> Vec<u32> {
    let (units, bits, blocks) = (columns.div_ceil(UNIT), bits as usize, UNIT / BLOCK);
    let word = |plane| place(row, block / blocks, plane, units, bits) + block % blocks;
    (0..bits).map(|plane| planes[word(plane)]).collect()
}

/// The reverse: a matrix without scales, of the codes that planes hold.
pub fn restore(planes: &[u32], format: WeightFormat, rows: usize, columns: usize) -> Packed {
    let (bits, units) = (format.ty.bits as usize, columns.div_ceil(UNIT));
    let mut packed = Packed::zeros(format, rows, columns);
    for row in 0..rows {
        for column in 0..columns {
            let within = column % BLOCK;
            let bit = |plane: usize| {
                let at = place(row, column / UNIT, plane, units, bits) + column % UNIT / BLOCK;
                (planes[at] >> (8 * (within % 4) + within / 4) & 1) << plane
            };
            packed.set_code(row, column, (0..bits).map(bit).sum());
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
    let words = arrange(&packed).into_iter();
    vec![Expected::exact(words.map(f64::from).collect())]
}

fn case(rows: usize, columns: usize) -> Case {
    Case::new(format!("rows={rows},columns={columns}"), move |variant: &Variant| {
        let mut random = Random::new(41);
        let packed = weights::random(&mut random, variant, rows, columns, WHOLE_ROW);
        let bits = packed.format.ty.bits as usize;
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            code_words: packed.format.code_words_per_row(columns) as u32,
        };
        let [codes, _] = weights::host(&packed);
        let planes = HostTensor::zeros(DType::U32, &[words(rows, columns, bits)]);
        params.case(vec![codes, planes])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 80), sizes.between(1, 1, 400))
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1),
        case(33, 97),
        case(31, 300),
        case(64, 256),
        case(14_336, 4096)
            .bench()
            .only(|variant| variant.weight.is_some_and(|weight| weight.name == "int2")),
    ]
}
