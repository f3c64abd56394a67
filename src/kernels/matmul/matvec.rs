//! `matmul/matvec`: the product with few tokens, bound by reading the weight once.

use super::cases::{Shape, Special, epilogues, plain, special};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::{cpu, reference};
use super::{Params, cost, typed_variants};
use crate::gpu::Capabilities;
use crate::kernels::prelude::*;
use crate::tensor::WHOLE_ROW;

/// Rows and tokens of a workgroup, and its invocations.
type Constants = &'static [(&'static str, u32)];

/// One token per workgroup: for rows long and short. The first is what is taken without measurement.
pub(super) const ONE: [Constants; 2] = [
    &[("TOKENS", 1), ("ROWS", 2), ("WORKGROUP", 64)],
    &[("TOKENS", 1), ("ROWS", 4), ("WORKGROUP", 128)],
];
/// Four tokens per workgroup.
pub(super) const FOUR: [Constants; 1] = [&[("TOKENS", 4), ("ROWS", 2), ("WORKGROUP", 64)]];

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::Mul,
    input: |_| InputForm::Plain,
    weight: |_| WeightForm::Codes,
    candidates,
    case: plain,
    many_beside: false,
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/matvec",
    source: include_str!("../../../shaders/matmul/matvec.wgsl"),
    bindings: super::BINDINGS,
    parameters: Params::LAYOUT,
    variants,
    groups: super::row_blocks,
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

fn candidates(shape: &MatmulShape, capabilities: Capabilities) -> Vec<(Variant, u32)> {
    let shapes: &[Constants] = match shape.tokens {
        1 => &ONE,
        _ => &FOUR,
    };
    let mut choices = shape.shaped(shapes.iter().copied().filter(|_| shape.few_tokens()));
    for (variant, _) in &mut choices {
        variant.activation = shape.activation;
        variant.subgroups = capabilities.subgroups;
    }
    choices
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for base in typed_variants() {
        for constants in ONE.into_iter().chain(FOUR) {
            for subgroups in [false, true] {
                variants.push(Variant { constants, subgroups, ..base.clone() });
            }
        }
    }
    variants
}

fn random(sizes: &Sizes) -> Case {
    plain(Shape::new(
        sizes.between(0, 1, 60),
        4 * sizes.between(1, 1, 200) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 9),
        sizes.group(4),
    ))
}

fn cases() -> Vec<Case> {
    let extremes = |variant: &Variant| variant.weight.is_some_and(|weight| weight.bits >= 16);
    let new = |rows, columns, tokens, group| plain(Shape::new(rows, columns, tokens, group));
    let mut cases = vec![
        new(5, 97, 1, WHOLE_ROW),
        new(3, 576, 3, 32),
        // One column in the second vector of an invocation.
        new(3, 21, 2, WHOLE_ROW),
        new(2, 4096, 1, 128),
        new(1, 16, 8, 16),
        plain(special(Special::Part, 5)),
        plain(special(Special::Activations(Poison::Infinity), 1)).only(extremes),
        plain(special(Special::Activations(Poison::NaN), 1)).only(extremes),
        plain(special(Special::Activations(Poison::Zeros), 1)).only(extremes),
        plain(special(Special::NaNRow, 1)).only(extremes),
        new(4501, 4, 1, WHOLE_ROW)
            .only(|variant| variant.weight.is_some_and(|weight| weight.name == "f16")),
        // Products of a Llama-3.1-8B.
        new(14_336, 4096, 1, 32).bench().only(one_token),
        new(8192, 8192, 1, 32).bench().only(one_token),
        new(14_336, 4096, 8, 32).bench().only(four_tokens),
    ];
    cases.extend(epilogues(2).map(plain));
    cases
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.activation == DType::F32
        && ["f16", "int8", "uint4m", "uint3m", "int2", "f16_2of4", "int4_2of4"].contains(&weight)
}

fn one_token(variant: &Variant) -> bool {
    timed(variant) && variant.subgroups && variant.constant("TOKENS") == 1
}

fn four_tokens(variant: &Variant) -> bool {
    timed(variant) && variant.subgroups && variant.constant("TOKENS") == 4
}
