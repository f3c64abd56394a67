//! `matmul/lut`: the product with few tokens by lookup instead of multiplication (T-MAC, arXiv 2407.00088; LUT-GEMM, arXiv
//! 2206.09557), for integer codes of 1 to 4 bits as bit planes ([`planes`](crate::kernels::copy::planes)).
//!
//! With bits b_p of a code, sum(code x) = sum_p 2^p sum(b_p x), and sum(b x) = (sum(x) + sum(±x)) / 2, + where b is set. The
//! signed sum of four activations is one of sixteen, looked up in a table ([`lut_tables`](super::lut_tables)) that all rows share. A
//! group's scale and offset meet the sums block by block, in f32. Tables are f32, or f16, which rounds
//! their entries.

use super::cases::{self, Shape};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::finished;
use super::{Params, formed_bindings, formed_cost, lut_tables};
use crate::gpu::Capabilities;
use crate::kernels::copy::planes::{arrange, block_planes, takes};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, Packed, Scale, WHOLE_ROW, WeightFormat, WeightType};

type Constants = &'static [(&'static str, u32)];

/// Rows of a lane, parts of the columns, sets of 32 lanes that share a part, and tokens at once. A workgroup's tables, and
/// its sums, fit the 16 KiB of workgroup memory that every adapter has.
macro_rules! shape {
    ($each:literal rows, $parts:literal parts, $sets:literal sets, $tokens:literal tokens) => {
        &[("EACH", $each), ("PARTS", $parts), ("SETS", $sets), ("AT_ONCE", $tokens)]
    };
}

/// Shapes for one token.
const fn ones(tables: DType) -> &'static [Constants] {
    match tables {
        DType::F16 => {
            &[shape!(1 rows, 8 parts, 1 sets, 1 tokens), shape!(2 rows, 8 parts, 1 sets, 1 tokens)]
        }
        _ => {
            &[shape!(1 rows, 7 parts, 1 sets, 1 tokens), shape!(2 rows, 4 parts, 1 sets, 1 tokens)]
        }
    }
}

/// Shapes for four tokens at once: of tables in f16, and of up to three bits, whose words and sums registers hold. On an H100
/// eight tokens take 39 us so, 71 one by one (14336x4096, 1 bit); in f32 73 and 70, with 4 bits 297 and 146.
fn fours(weight: &WeightType, tables: DType) -> &'static [Constants] {
    match tables {
        DType::F16 if weight.bits <= 3 => &[shape!(2 rows, 2 parts, 2 sets, 4 tokens)],
        _ => &[],
    }
}

/// Shapes for so many tokens. The first is what is taken without measurement.
pub(super) fn shapes(
    weight: &WeightType,
    tables: DType,
    tokens: usize,
) -> impl Iterator<Item = Constants> {
    let fours = match tokens {
        1 => &[],
        _ => fours(weight, tables),
    };
    fours.iter().chain(ones(tables)).copied()
}

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::Lut,
    input: |variant| InputForm::Tables(variant.activation),
    weight: |_| WeightForm::Planes,
    candidates,
    case,
    many_beside: false,
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/lut",
    source: include_str!("../../../shaders/matmul/lut.wgsl"),
    bindings: &BINDINGS,
    imports: |variant, name| match (name, variant.constant("AT_ONCE")) {
        ("lut_tokens", 4) => Some("lut_four"),
        ("lut_tokens", _) => Some("lut_one"),
        _ => None,
    },
    parameters: Params::LAYOUT,
    variants,
    groups: |args| {
        let p: Params = args.parameters();
        let constant = |name| args.variant.constant(name);
        let rows = 32 * constant("SETS") * constant("EACH");
        fold(p.rows.div_ceil(rows) as usize * p.tokens.div_ceil(constant("AT_ONCE")) as usize)
    },
    cost,
    reference,
    cases,
    random,
    ..Kernel::BASE
};

const BINDINGS: [Binding; 6] = formed_bindings(("tables", Element::Activation), "halves", "planes");

/// Tables in f32 lose nothing; those in f16 are for activations that were rounded already, and hold four tokens.
fn candidates(shape: &MatmulShape, _: Capabilities) -> Vec<(Variant, u32)> {
    if !shape.has_planes() || shape.bytes == 1 {
        return Vec::new();
    }
    let types: &[DType] = match shape.activation {
        DType::F16 => &[DType::F16, DType::F32],
        _ => &[DType::F32],
    };
    let choices = types.iter().flat_map(|tables| {
        let all = shape.shaped(shapes(shape.weight.ty, *tables, shape.tokens));
        all.into_iter().map(|(variant, splits)| {
            let activation = *tables;
            (Variant { activation, ..variant }, splits)
        })
    });
    choices.collect()
}

fn variants() -> Vec<Variant> {
    let pairs = [
        (DType::F32, DType::F32),
        (DType::F32, DType::F16),
        (DType::F16, DType::F16),
        (DType::F16, DType::F32),
    ];
    let typed = weights::one_per_type().into_iter();
    let typed = typed.filter(|variant| variant.weight.is_some_and(takes));
    let mut variants = Vec::new();
    for base in typed {
        let weight = base.weight.expect("a type of the table");
        for (activation, output) in pairs {
            variants.extend(shapes(weight, activation, 4).map(|constants| Variant {
                activation,
                output,
                constants,
                ..base.clone()
            }));
        }
    }
    variants
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let tables = args.tensors[0].dtype.size() as f64 * 4.0 + 0.25;
    formed_cost(args, p.layout.code_words.into(), tables)
}

/// A token's tables and scales, as a product by lookup reads them.
pub(super) struct Tokens {
    /// Sixteen entries, quarters of sums, of every table.
    pub(super) tables: Vec<f64>,
    /// The sum of each block's activations.
    pub(super) blocks: Vec<f64>,
}

/// The algorithm itself, with the tables as they are given, in f64.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let columns = args.parameters::<Params>().columns as usize;
    let (tables, halves) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let per_token = (lut_tables::entries(columns), lut_tables::halves(columns));
    looked_up(args, |token| Tokens {
        tables: tables[token * per_token.0..][..per_token.0].to_vec(),
        blocks: halves[token * per_token.1..][..per_token.1]
            .chunks(2)
            .map(|pair| pair[0] + pair[1])
            .collect(),
    })
}

/// The same for whatever tables `of_token` finds.
pub(super) fn looked_up(args: &Args<'_>, of_token: impl Fn(usize) -> Tokens) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let (row_start, token_start) = (p.row_start as usize, p.token_start as usize);
    let weight = planes_of(args);
    let bits = weight.format.ty.bits;
    let planes = args.tensors[2].words;
    // Eight entries make a plane of a block; then planes, blocks and parts.
    let relative = gamma(columns.div_ceil(BLOCK) + 24);
    let known: Vec<Tokens> = (token_start..token_start + tokens).map(of_token).collect();
    let sums: Vec<Vec<(f64, f64)>> = (0..rows)
        .into_par_iter()
        .map(|row| {
            let row = row_start + row;
            let of_token = |token: &Tokens| {
                let blocks = (0..columns.div_ceil(BLOCK)).map(|block| {
                    let words = block_planes(planes, (row, block), columns, bits);
                    let tables = &token.tables[block * 8 * 16..][..8 * 16];
                    let grid = grid(&weight, row, block * BLOCK);
                    block_sum(&words, tables, token.blocks[block], grid)
                });
                blocks.fold((0.0, 0.0), |sum, block| (sum.0 + block.0, sum.1 + block.1))
            };
            known.iter().map(of_token).collect()
        })
        .collect();
    finished(args, &sums, relative)
}

/// The weight of a call that takes bit planes, with its scales and without its codes.
pub(super) fn planes_of(args: &Args<'_>) -> Packed {
    let p: Params = args.parameters();
    let format = WeightFormat {
        ty: args.variant.weight.expect("a variant names its weight"),
        group_size: if p.layout.group_shift == 31 { WHOLE_ROW } else { 1 << p.layout.group_shift },
    };
    let all = (p.row_start + p.rows) as usize;
    Packed {
        scales: args.tensors[3].words[..all * p.layout.scale_words as usize].to_vec(),
        ..Packed::zeros(format, all, p.columns as usize)
    }
}

/// A block's scale, and what its sum of activations is multiplied by.
pub(super) fn grid(weight: &Packed, row: usize, column: usize) -> (f64, f64) {
    let group = column / weight.format.group_columns(weight.columns);
    let (scale, second) = weight.grid(row, group);
    let (scale, second) = (f64::from(scale), f64::from(second));
    let offset = match weight.format.ty.scale {
        Scale::Symmetric => -scale * f64::from(1u32 << (weight.format.ty.bits - 1)),
        Scale::ZeroPoint => -scale * second,
        _ => second,
    };
    (scale, offset)
}

/// A block's sum of products, and the magnitude of what makes it: of its planes' words, its eight tables, the sum of its
/// activations and its grid.
fn block_sum(words: &[u32], tables: &[f64], all: f64, (scale, offset): (f64, f64)) -> (f64, f64) {
    let (mut signed, mut magnitude) = (0.0, 0.0);
    for (plane, word) in words.iter().enumerate() {
        for (nibble, table) in tables.chunks(16).enumerate() {
            let found = table[(word >> (4 * nibble) & 15) as usize] * f64::from(2u32 << plane);
            signed += found;
            magnitude += found.abs();
        }
    }
    let half = f64::from((1u32 << words.len()) - 1) / 2.0;
    let value = scale * (signed + half * all) + offset * all;
    let size = scale.abs() * (magnitude + half * all.abs()) + (offset * all).abs();
    (value, size)
}

/// The codes of a case as planes.
pub(super) fn planes_tensor(weight: &Packed) -> HostTensor {
    let planes = arrange(weight);
    HostTensor::from_u32(&[planes.len()], &planes)
}

fn case(shape: Shape) -> Case {
    shape.case(|shape, variant, x, weight| {
        let (tables, halves) = lut_tables::of_rows(x, shape.columns);
        vec![
            HostTensor::from_f32(variant.activation, &[tables.len()], &tables),
            HostTensor::from_f32(DType::F32, &[halves.len()], &halves),
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
        variant.output == DType::F32 && ["int1", "int2", "int3", "int4", "uint4m"].contains(&weight)
    };
    let mut cases = cases::of_planes(case);
    // Products of a Llama-3.1-8B.
    for (rows, columns, tokens) in [(14_336, 4096, 1), (8192, 8192, 1), (14_336, 4096, 8)] {
        cases.push(case(Shape::new(rows, columns, tokens, 64)).bench().only(timed));
    }
    cases
}
