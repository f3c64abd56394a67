//! `matmul/lut_i8`: the product with few tokens by lookup in tables of bytes ([`lut_tables_i8`](super::lut_tables_i8)), otherwise as
//! [`lut`](super::lut): a quarter of its memory for tables, and a found entry is within one part in 254 of its scale's largest.

use super::cases::Shape;
use super::lut::{Tokens, arranged, looked_up};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::{Params, lut_tables_i8, padded};
use crate::gpu::Capabilities;
use crate::kernels::copy::planes::takes;
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, WHOLE_ROW};

type Constants = &'static [(&'static str, u32)];

/// Rows of a lane, subgroups of lanes, and units of columns whose tables, 512 bytes each, stand in workgroup memory at a
/// time: with the sums they fit the 16 KiB that every adapter has. The first is what is taken without measurement.
pub(super) const SHAPES: [Constants; 2] = [
    &[("EACH", 1), ("PARTS", 8), ("TILE", 28)],
    &[("EACH", 2), ("PARTS", 8), ("TILE", 24)],
];

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::Lut,
    input: |_| InputForm::ByteTables,
    weight: |_| WeightForm::Planes,
    candidates,
    case: |shape, _| {
        shaped(
            shape.rows,
            shape.columns,
            shape.tokens,
            shape.weight.group_size,
        )
    },
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/lut_i8",
    source: include_str!("../../../shaders/matmul/lut_i8.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    variants,
    groups: |args| {
        let p: Params = args.parameters();
        let rows = 32 * args.variant.constant("EACH");
        fold(p.rows.div_ceil(rows) as usize * p.tokens as usize)
    },
    cost,
    reference,
    cases,
    random,
    ..Kernel::BASE
};

const BINDINGS: &[Binding] = &[
    binding("tables", Access::Read, Element::Is(DType::U32)),
    binding("sums", Access::Read, Element::Is(DType::F32)),
    binding("planes", Access::Read, Element::Is(DType::U32)),
    binding("scales", Access::Read, Element::Is(DType::U32)),
    binding("bias", Access::Read, Element::Is(DType::F32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// Where activations of one byte were asked for.
fn candidates(shape: &MatmulShape, _: Capabilities) -> Vec<(Variant, u32)> {
    let takes = shape.has_planes() && shape.bytes == 1;
    shape.shaped(SHAPES.into_iter().filter(|_| takes))
}

fn variants() -> Vec<Variant> {
    let typed = weights::one_per_type().into_iter();
    let typed = typed.filter(|variant| variant.weight.is_some_and(takes));
    let shaped = |base: Variant| {
        [DType::F32, DType::F16]
            .into_iter()
            .flat_map(move |output| {
                let base = base.clone();
                SHAPES.into_iter().map(move |constants| Variant {
                    output,
                    constants,
                    ..base.clone()
                })
            })
    };
    typed.flat_map(shaped).collect()
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (f64::from(p.rows), f64::from(p.columns), f64::from(p.tokens));
    let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
    let size = args.tensors[5].dtype.size() as f64;
    Cost {
        operations: 2.0 * rows * columns * tokens,
        bytes: weight + tokens * (4.25 * columns + size * rows),
    }
}

/// The algorithm itself, with the tables as they are given.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let spans = lut_tables_i8::spans(p.columns as usize);
    let bytes: &[i8] = bytemuck::cast_slice(args.tensors[0].words);
    let sums = args.tensors[1].to_f64();
    looked_up(args, |token| {
        let sums = &sums[token * spans * 4..][..spans * 4];
        let bytes = &bytes[token * spans * 256..][..spans * 256];
        // Entries of `lut` are quarters.
        let entry = |(place, byte): (usize, &i8)| f64::from(*byte) * sums[place / 256 * 4] / 4.0;
        Tokens {
            tables: bytes.iter().enumerate().map(entry).collect(),
            blocks: (0..2 * spans)
                .map(|block| sums[block / 2 * 4 + 1 + block % 2])
                .collect(),
        }
    })
}

/// A case of that shape.
pub(super) fn shaped(rows: usize, columns: usize, tokens: usize, group: u32) -> Case {
    noted(rows, columns, tokens, group, "")
}

fn noted(rows: usize, columns: usize, tokens: usize, group: u32, note: &'static str) -> Case {
    let shape = Shape {
        rows,
        columns,
        tokens,
        group,
        note,
        splits: 1,
    };
    Case::new(shape.label(), move |variant: &Variant| {
        let (params, x, rest) = shape.data(variant);
        let (tables, sums) = lut_tables_i8::of_rows(&x, shape.columns);
        let before = vec![
            HostTensor::from_u32(&[tables.len()], &tables),
            HostTensor::from_f32(DType::F32, &[sums.len()], &sums),
            arranged(&shape, variant, &params, &rest[0]),
        ];
        CaseData {
            parameters: bytemuck::bytes_of(&params).to_vec(),
            tensors: [before, rest[1..].to_vec()].concat(),
        }
    })
}

fn random(sizes: &Sizes) -> Case {
    let group = [WHOLE_ROW, 32, 64, 128][sizes.between(4, 0, 3)];
    let columns = padded(sizes.between(1, 1, 1300)) - sizes.between(2, 0, 3);
    let (rows, tokens) = (sizes.between(0, 1, 100), sizes.between(3, 1, 5));
    shaped(rows, columns, tokens, group)
}

fn cases() -> Vec<Case> {
    let timed = |variant: &Variant| {
        let weight = variant.weight.map_or("", |weight| weight.name);
        variant.output == DType::F32 && ["int1", "int2", "int3", "int4"].contains(&weight)
    };
    vec![
        shaped(5, 97, 1, WHOLE_ROW),
        // The last group is one column.
        shaped(5, 97, 1, BLOCK as u32),
        shaped(70, 576, 2, 32),
        // More columns than the tables of one tile.
        shaped(9, 3716, 1, 64),
        shaped(1, 4, 1, 128),
        noted(37, 64, 3, WHOLE_ROW, ",window"),
        noted(37, 64, 2, WHOLE_ROW, ",bias"),
        noted(37, 64, 2, WHOLE_ROW, ",add"),
        noted(9, 70, 1, WHOLE_ROW, ",nan"),
        noted(9, 64, 1, WHOLE_ROW, ",largest"),
        shaped(14_336, 4096, 1, 64).bench().only(timed),
    ]
}
