//! `matmul/ternary`: the product with few tokens of ternary weights by lookup instead of multiplication, two (TL1) or three
//! (TL2) weights to an index ([`copy/ternary`](crate::kernels::copy::trits); bitnet.cpp, arXiv 2502.11880).
//!
//! Activations are integers of one to three bytes, of which 128 columns share a scale
//! ([`activations`](crate::kernels::quantize::activations)); the sums that two or three of them have with weights of -1, 0
//! and 1 stand in a table of nine, or of fourteen and their negatives. With s a group's scale and a the activations', 128
//! columns give s a sum, a sum of integers and exact (below 2^30 for three bytes): what is lost is f32's rounding of that
//! product and of the sum over units. Groups are multiples of 128 columns, or rows.

use super::cases::{self, Shape, Special};
use super::lut::planes_of;
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::{finished, tokens_of};
use super::{Params, formed_bindings, formed_cost};
use crate::gpu::Capabilities;
use crate::kernels::copy::planes::UNIT;
use crate::kernels::copy::ternary::{arrange, restore, takes, unit_words};
use crate::kernels::prelude::*;
use crate::kernels::quantize::activations::{Rounding, words};
use crate::kernels::weights;
use crate::tensor::{Packed, WHOLE_ROW, WeightFormat};

type Constants = &'static [(&'static str, u32)];

/// Weights of an index, bytes of an activation, sets of 32 lanes that share tables. Four parts of the columns, whose tables fit
/// the 16 KiB of workgroup memory that every adapter has.
macro_rules! shape {
    ($trits:literal trits, $bytes:literal bytes, $sets:literal sets) => {
        &[("TRITS", $trits), ("PLANES", $bytes), ("SPAN", 4), ("SETS", $sets), ("PARTS", 4)]
    };
}

/// By bytes less one. The first is what is taken without measurement.
const SHAPES: [[Constants; 4]; 3] = [
    [
        shape!(2 trits, 1 bytes, 1 sets),
        shape!(3 trits, 1 bytes, 1 sets),
        shape!(2 trits, 1 bytes, 2 sets),
        shape!(3 trits, 1 bytes, 2 sets),
    ],
    [
        shape!(2 trits, 2 bytes, 1 sets),
        shape!(3 trits, 2 bytes, 1 sets),
        shape!(2 trits, 2 bytes, 2 sets),
        shape!(3 trits, 2 bytes, 2 sets),
    ],
    [
        shape!(2 trits, 3 bytes, 1 sets),
        shape!(3 trits, 3 bytes, 1 sets),
        shape!(2 trits, 3 bytes, 2 sets),
        shape!(3 trits, 3 bytes, 2 sets),
    ],
];

/// Shapes for activations of so many bytes; none for f16 results of three, which stand for f32.
pub(super) fn shapes(bytes: u32, output: DType) -> &'static [Constants] {
    let all = &SHAPES[bytes as usize - 1];
    match (output, bytes) {
        (DType::F16, 3) => &[],
        _ => all,
    }
}

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::Lut,
    input: |variant| InputForm::Integers(Rounding::of(variant)),
    weight: |variant| WeightForm::Ternary(variant.constant("TRITS") as usize),
    candidates,
    case,
    many_beside: false,
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/ternary",
    source: include_str!("../../../shaders/matmul/ternary.wgsl"),
    bindings: &BINDINGS,
    parameters: Params::LAYOUT,
    variants,
    groups: |args| {
        let p: Params = args.parameters();
        let rows = 32 * args.variant.constant("SETS");
        fold(p.rows.div_ceil(rows) as usize * p.tokens as usize)
    },
    cost,
    reference,
    cases,
    random,
    ..Kernel::BASE
};

const BINDINGS: [Binding; 6] =
    formed_bindings(("x_codes", Element::Is(DType::U32)), "x_scales", "trits");

fn candidates(shape: &MatmulShape, _: Capabilities) -> Vec<(Variant, u32)> {
    let known = shapes(shape.bytes, shape.output).iter().copied();
    shape.shaped(known.filter(|_| multiplies(shape.weight)))
}

fn variants() -> Vec<Variant> {
    let typed = weights::one_per_type().into_iter();
    let typed = typed.filter(|variant| variant.weight.is_some_and(takes));
    let with = |base: Variant| {
        let mut all = Vec::new();
        for output in [DType::F32, DType::F16] {
            let shapes = (1..=3).flat_map(|bytes| shapes(bytes, output));
            all.extend(shapes.map(|constants| Variant { output, constants, ..base.clone() }));
        }
        all
    };
    typed.flat_map(with).collect()
}

/// Whether the kernel multiplies weights of this format.
pub(super) fn multiplies(format: WeightFormat) -> bool {
    let group = format.group_size;
    takes(format.ty) && (group == WHOLE_ROW || (group as usize).is_multiple_of(UNIT))
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let constant = |name| args.variant.constant(name);
    let units = p.columns.div_ceil(UNIT as u32) as usize;
    let words = units * unit_words(constant("TRITS") as usize);
    formed_cost(args, words as f64, constant("PLANES").into())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let (row_start, token_start) = (p.row_start as usize, p.token_start as usize);
    let scaled = planes_of(args);
    let (indices, all) = (args.tensors[2].words, (scaled.rows, columns));
    let trits = args.variant.constant("TRITS") as usize;
    let weight = Packed { codes: restore(indices, scaled.format, all, trits).codes, ..scaled };
    let x = tokens_of(
        &args.tensors[0],
        &args.tensors[1],
        token_start..token_start + tokens,
        columns,
        Rounding::of(args.variant),
    );
    // Per unit: the integer's conversion and two products; then the sums over units and parts.
    let relative = gamma(columns.div_ceil(UNIT) + 16);
    let sums: Vec<Vec<(f64, f64)>> = (row_start..row_start + rows)
        .into_par_iter()
        .map(|row| {
            let mut decoded = vec![0.0; columns];
            weight.decode_row(row, &mut decoded);
            let of_token = |line: &[f64]| {
                let products = line.iter().zip(&decoded);
                let products = products.map(|(x, weight)| x * f64::from(*weight));
                products
                    .fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
            };
            x.chunks(columns).map(of_token).collect()
        })
        .collect();
    finished(args, &sums, relative)
}

fn case(shape: Shape) -> Case {
    shape.case(|shape, variant, x, weight| {
        let indices = arrange(weight, variant.constant("TRITS") as usize);
        let (x_codes, x_scales) = words(x, shape.columns, Rounding::of(variant));
        vec![
            HostTensor::from_u32(&[x_codes.len()], &x_codes),
            HostTensor::from_f32(DType::F32, &[x_scales.len()], &x_scales),
            HostTensor::from_u32(&[indices.len()], &indices),
        ]
    })
}

fn random(sizes: &Sizes) -> Case {
    case(Shape::random(sizes, [WHOLE_ROW, 128, 256, 512]))
}

fn cases() -> Vec<Case> {
    let mut cases = cases::few(case);
    cases.extend([
        // The last group is 8 columns.
        case(Shape::new(33, 1160, 2, 128)),
        case(Shape::new(70, 576, 3, 256)),
        case(Shape::new(9, 256, 1, WHOLE_ROW).with(Special::Largest)),
        // A product of a Llama-3.1-8B.
        case(Shape::new(14_336, 4096, 1, 128)).bench().only(|variant| variant.output == DType::F32),
    ]);
    cases
}
