//! `matmul/lut_i8`: the product with few tokens by lookup in tables of bytes ([`lut_tables_i8`](super::lut_tables_i8)), otherwise as
//! [`lut`](super::lut): a quarter of its memory for tables, and a found entry is within one part in 254 of its scale's largest.

use super::cases::{self, Shape, Special};
use super::lut::{Tokens, looked_up, planes_tensor};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::{Params, formed_bindings, formed_cost, lut_tables_i8};
use crate::gpu::Capabilities;
use crate::kernels::copy::planes::takes;
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::WHOLE_ROW;

type Constants = &'static [(&'static str, u32)];

/// Rows of a lane, subgroups of lanes, and units of columns whose tables, 512 bytes each, stand in workgroup memory at a
/// time: with the sums they fit the 16 KiB that every adapter has. The first is what is taken without measurement.
pub(super) const SHAPES: [Constants; 2] =
    [&[("EACH", 1), ("PARTS", 8), ("TILE", 28)], &[("EACH", 2), ("PARTS", 8), ("TILE", 24)]];

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::Lut,
    input: |_| InputForm::ByteTables,
    weight: |_| WeightForm::Planes,
    candidates,
    case,
    many_beside: false,
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/lut_i8",
    source: include_str!("../../../shaders/matmul/lut_i8.wgsl"),
    bindings: &BINDINGS,
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

const BINDINGS: [Binding; 6] =
    formed_bindings(("tables", Element::Is(DType::U32)), "sums", "planes");

/// Where activations of one byte were asked for.
fn candidates(shape: &MatmulShape, _: Capabilities) -> Vec<(Variant, u32)> {
    let takes = shape.has_planes() && shape.bytes == 1;
    shape.shaped(SHAPES.into_iter().filter(|_| takes))
}

fn variants() -> Vec<Variant> {
    let typed = weights::one_per_type().into_iter();
    let typed = typed.filter(|variant| variant.weight.is_some_and(takes));
    let shaped = |base: Variant| {
        [DType::F32, DType::F16].into_iter().flat_map(move |output| {
            let base = base.clone();
            SHAPES.into_iter().map(move |constants| Variant { output, constants, ..base.clone() })
        })
    };
    typed.flat_map(shaped).collect()
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    formed_cost(args, p.layout.code_words.into(), 4.25)
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
            blocks: (0..2 * spans).map(|block| sums[block / 2 * 4 + 1 + block % 2]).collect(),
        }
    })
}

fn case(shape: Shape) -> Case {
    shape.case(|shape, _, x, weight| {
        let (tables, sums) = lut_tables_i8::of_rows(x, shape.columns);
        vec![
            HostTensor::from_u32(&[tables.len()], &tables),
            HostTensor::from_f32(DType::F32, &[sums.len()], &sums),
            planes_tensor(weight),
        ]
    })
}

fn random(sizes: &Sizes) -> Case {
    case(Shape::random(sizes, [WHOLE_ROW, 32, 64, 128]))
}

fn cases() -> Vec<Case> {
    let timed = |variant: &Variant| {
        let weight = variant.weight.map_or("", |weight| weight.name);
        variant.output == DType::F32 && ["int1", "int2", "int3", "int4"].contains(&weight)
    };
    let mut cases = cases::of_planes(case);
    // More columns than the tables of one tile.
    cases.push(case(Shape::new(9, 3716, 1, 64)));
    cases.push(case(Shape::new(9, 64, 1, WHOLE_ROW).with(Special::Largest)));
    cases.push(case(Shape::new(14_336, 4096, 1, 64)).bench().only(timed));
    cases
}
