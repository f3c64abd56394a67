//! `matmul/bitserial`: the product with few tokens by counting bits, for integer codes of 1 to 4 bits as bit planes
//! ([`planes`](crate::kernels::copy::planes)) and activations of 1 to 8 ([`bits`](super::bits)).
//!
//! With bits w_p of a code and x_a of an activation, sum(code x) = sum_p sum_a 2^p 2^a popcount(w_p & x_a), the highest a
//! below zero: integers, exact. A group's scale and offset meet a block's sums as in [`dot4`](super::dot4).

use super::bits::words;
use super::cases::{self, Shape, Special};
use super::lut::{grid, planes_of, planes_tensor};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::finished;
use super::{Params, formed_bindings, formed_cost};
use crate::gpu::Capabilities;
use crate::kernels::copy::planes::{block_planes, takes};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::{BLOCK, Scale, WHOLE_ROW};

/// Bits of an activation, and subgroups of lanes that share a row.
type Constants = &'static [(&'static str, u32)];

/// The planner's choice: eight bits.
pub(super) const SHAPES: [Constants; 2] =
    [&[("ACT_BITS", 8), ("PARTS", 4)], &[("ACT_BITS", 8), ("PARTS", 8)]];
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
    case,
    many_beside: false,
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/bitserial",
    source: include_str!("../../../shaders/matmul/bitserial.wgsl"),
    bindings: &BINDINGS,
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

const BINDINGS: [Binding; 6] =
    formed_bindings(("x_planes", Element::Is(DType::U32)), "x_scales", "planes");

/// Activations of eight bits: of themselves, not where more were asked for.
fn candidates(shape: &MatmulShape, _: Capabilities) -> Vec<(Variant, u32)> {
    let takes = shape.has_planes() && (shape.engine == Engine::BitSerial || shape.bytes == 1);
    shape.shaped(SHAPES.into_iter().filter(|_| takes))
}

fn variants() -> Vec<Variant> {
    let typed = weights::one_per_type().into_iter();
    let typed = typed.filter(|variant| variant.weight.is_some_and(takes));
    let with = |base: Variant| {
        let half = Variant { output: DType::F16, ..base.clone() };
        let shaped = |base: Variant, constants| Variant { constants, ..base };
        let symmetric = base.weight.is_some_and(|weight| weight.scale == Scale::Symmetric);
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
    let bits = f64::from(args.variant.constant("ACT_BITS"));
    formed_cost(args, p.layout.code_words.into(), bits / 8.0 + 0.25)
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

fn case(shape: Shape) -> Case {
    shape.case(|shape, variant, x, weight| {
        let (x_planes, x_scales) = words(x, shape.columns, variant.constant("ACT_BITS"));
        vec![
            HostTensor::from_u32(&[x_planes.len()], &x_planes),
            HostTensor::from_f32(DType::F32, &[x_scales.len()], &x_scales),
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
        variant.output == DType::F32 && ["int1", "int2"].contains(&weight)
    };
    let mut cases = cases::of_planes(case);
    cases.push(case(Shape::new(9, 64, 1, WHOLE_ROW).with(Special::Largest)));
    // A product of a Llama-3.1-8B.
    cases.push(case(Shape::new(14_336, 4096, 1, 64)).bench().only(timed));
    cases
}
