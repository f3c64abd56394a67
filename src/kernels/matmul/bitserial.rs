//! `matmul/bitserial`: the product with few tokens by counting bits, for integer codes of 1 to 4 bits as bit planes
//! ([`planes`](crate::kernels::copy::planes)) and activations of 1 to 8 ([`bits`](super::bits)).
//!
//! With bits w_p of a code and x_a of an activation, sum(code x) = sum_p sum_a 2^p 2^a popcount(w_p & x_a), the highest a
//! below zero: integers, exact. A group's scale and offset meet a block's sums as in [`dot4`](super::dot4).

use super::bits::words;
use super::cases::Shape;
use super::lut::{grid, planes_of};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::finished;
use super::{Params, padded};
use crate::gpu::Capabilities;
use crate::kernels::copy::planes::{block_planes, takes};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, Scale, WHOLE_ROW};

/// Bits of an activation, and subgroups of lanes that share a row.
type Constants = &'static [(&'static str, u32)];

/// What the planner takes: eight bits.
pub(super) const SHAPES: [Constants; 2] = [
    &[("ACT_BITS", 8), ("PARTS", 4)],
    &[("ACT_BITS", 8), ("PARTS", 8)],
];
/// Narrower activations, for whoever measures: signs alone too. The last five are for symmetric weights only.
const NARROW: [Constants; 7] = [
    &[("ACT_BITS", 4), ("PARTS", 4)],
    &[("ACT_BITS", 2), ("PARTS", 4)],
    &[("ACT_BITS", 1), ("PARTS", 4)],
    &[("ACT_BITS", 3), ("PARTS", 4)],
    &[("ACT_BITS", 5), ("PARTS", 4)],
    &[("ACT_BITS", 6), ("PARTS", 4)],
    &[("ACT_BITS", 7), ("PARTS", 4)],
];

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::BitSerial,
    input: |_| InputForm::Bits,
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
    name: "matmul/bitserial",
    source: include_str!("../../../shaders/matmul/bitserial.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    variants,
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.rows.div_ceil(32) as usize * p.tokens as usize)
    },
    cost,
    reference,
    cases,
    random,
    ..Kernel::BASE
};

const BINDINGS: &[Binding] = &[
    binding("x_planes", Access::Read, Element::Is(DType::U32)),
    binding("x_scales", Access::Read, Element::Is(DType::F32)),
    binding("planes", Access::Read, Element::Is(DType::U32)),
    binding("scales", Access::Read, Element::Is(DType::U32)),
    binding("bias", Access::Read, Element::Is(DType::F32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// Activations of eight bits: of themselves, not where more were asked for.
fn candidates(shape: &MatmulShape, _: Capabilities) -> Vec<(Variant, u32)> {
    let takes = shape.has_planes() && (shape.engine == Engine::BitSerial || shape.bytes == 1);
    shape.shaped(SHAPES.into_iter().filter(|_| takes))
}

fn variants() -> Vec<Variant> {
    let typed = weights::one_per_type().into_iter();
    let typed = typed.filter(|variant| variant.weight.is_some_and(takes));
    let with = |base: Variant| {
        let half = Variant {
            output: DType::F16,
            ..base.clone()
        };
        let shaped = |base: Variant, constants| Variant { constants, ..base };
        let symmetric = base
            .weight
            .is_some_and(|weight| weight.scale == Scale::Symmetric);
        let narrow = NARROW.into_iter().take(if symmetric { 7 } else { 2 });
        let wide = SHAPES.into_iter().chain(narrow);
        let mut all: Vec<Variant> = wide.map(|shape| shaped(base.clone(), shape)).collect();
        all.extend(SHAPES.map(|shape| shaped(half.clone(), shape)));
        all
    };
    typed.flat_map(with).collect()
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (f64::from(p.rows), f64::from(p.columns), f64::from(p.tokens));
    let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
    let size = args.tensors[5].dtype.size() as f64;
    let bits = f64::from(args.variant.constant("ACT_BITS"));
    Cost {
        operations: 2.0 * rows * columns * tokens,
        bytes: weight + tokens * ((bits / 8.0 + 0.25) * columns + size * rows),
    }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let (row_start, token_start) = (p.row_start as usize, p.token_start as usize);
    let weight = planes_of(args);
    let bits = weight.format.ty.bits;
    let act_bits = args.variant.constant("ACT_BITS") as usize;
    let (planes, x) = (args.tensors[2].words, args.tensors[0].words);
    let scales = args.tensors[1].to_f64();
    let blocks = columns.div_ceil(BLOCK);
    let in_units = blocks.next_multiple_of(4);
    let relative = gamma(blocks + 16);
    let of_block = |row: usize, token: usize, block: usize| {
        let words = block_planes(planes, (row, block), columns, bits);
        let first = (token * in_units + block / 4 * 4) * act_bits + block % 4;
        let mut dot = 0i64;
        for (plane, word) in words.iter().enumerate() {
            for a in 0..act_bits {
                let count = i64::from((word & x[first + 4 * a]).count_ones()) << (plane + a);
                dot += match act_bits {
                    // A sign: 1 where no bit is set, -1 where one is.
                    1 => (i64::from(word.count_ones()) << plane) - 2 * count,
                    _ if a + 1 == act_bits => -count,
                    _ => count,
                };
            }
        }
        let (scale, offset) = grid(&weight, row, block * BLOCK);
        let at = 2 * (token * in_units + block);
        let parts = (scale * scales[at] * dot as f64, offset * scales[at + 1]);
        (parts.0 + parts.1, parts.0.abs() + parts.1.abs())
    };
    let sums: Vec<Vec<(f64, f64)>> = (0..rows)
        .into_par_iter()
        .map(|row| {
            let of_token = |token: usize| {
                let blocks = (0..blocks).map(|block| of_block(row_start + row, token, block));
                blocks.fold((0.0, 0.0), |sum, block| (sum.0 + block.0, sum.1 + block.1))
            };
            (token_start..token_start + tokens).map(of_token).collect()
        })
        .collect();
    finished(args, &sums, relative)
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
        let (x_planes, x_scales) = words(&x, shape.columns, variant.constant("ACT_BITS"));
        let planes = super::lut::arranged(&shape, variant, &params, &rest[0]);
        let before = vec![
            HostTensor::from_u32(&[x_planes.len()], &x_planes),
            HostTensor::from_f32(DType::F32, &[x_scales.len()], &x_scales),
            planes,
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
        variant.output == DType::F32 && ["int1", "int2"].contains(&weight)
    };
    vec![
        shaped(5, 97, 1, WHOLE_ROW),
        // The last group is one column.
        shaped(5, 97, 1, 32),
        shaped(70, 576, 3, 32),
        shaped(33, 1160, 2, 64),
        shaped(1, 4, 1, 128),
        noted(37, 64, 5, WHOLE_ROW, ",window"),
        noted(37, 64, 2, WHOLE_ROW, ",bias"),
        noted(37, 64, 2, WHOLE_ROW, ",add"),
        noted(37, 64, 2, WHOLE_ROW, ",gate"),
        noted(9, 70, 1, WHOLE_ROW, ",nan"),
        noted(9, 64, 1, WHOLE_ROW, ",zeros"),
        noted(9, 64, 1, WHOLE_ROW, ",largest"),
        // A product of a Llama-3.1-8B.
        shaped(14_336, 4096, 1, 64).bench().only(timed),
    ]
}
