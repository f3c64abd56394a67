//! `matmul/matvec`: the product with few tokens, bound by reading the weight once.

use glam::UVec3;

use super::{Params, cost, cpu, noted, plain, reference, typed_variants};
use crate::device::{Args, Case, Kernel, Sizes, Variant, fold};
use crate::tensor::{DType, WHOLE_ROW};

/// One token per workgroup.
pub(super) const ONE: &[(&str, u32)] = &[("TOKENS", 1)];
/// Four tokens per workgroup.
pub(super) const FOUR: &[(&str, u32)] = &[("TOKENS", 4)];

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/matvec",
    source: include_str!("../../../shaders/matmul/matvec.wgsl"),
    bindings: super::BINDINGS,
    parameter_bytes: size_of::<Params>(),
    overrides: &[("WORKGROUP", 64.0)],
    variants,
    groups,
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
};

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    let block = args
        .variant
        .constants
        .iter()
        .find(|(name, _)| *name == "TOKENS")
        .map_or(1, |(_, value)| *value);
    fold(p.rows as usize * p.tokens.div_ceil(block) as usize)
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for base in typed_variants() {
        for constants in [ONE, FOUR] {
            for subgroups in [false, true] {
                variants.push(Variant {
                    constants,
                    subgroups,
                    ..base.clone()
                });
            }
        }
    }
    variants
}

fn random(sizes: &Sizes) -> Case {
    plain(
        sizes.between(0, 1, 60),
        4 * sizes.between(1, 1, 200) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 9),
        sizes.group(4),
    )
}

fn cases() -> Vec<Case> {
    let extremes = |variant: &Variant| variant.weight.is_some_and(|weight| weight.bits >= 16);
    vec![
        plain(5, 97, 1, WHOLE_ROW),
        plain(3, 576, 3, 32),
        plain(2, 4096, 1, 128),
        plain(1, 16, 8, 16),
        noted(",window", 5),
        noted(",bias", 2),
        noted(",infinity", 1).only(extremes),
        noted(",nan", 1).only(extremes),
        noted(",zeros", 1).only(extremes),
        noted(",row of NaN", 1).only(extremes),
        plain(70_001, 4, 1, WHOLE_ROW)
            .only(|variant| variant.weight.is_some_and(|weight| weight.name == "f16")),
        // Products of a Llama-3.1-8B.
        plain(14_336, 4096, 1, 32).bench().only(one_token),
        plain(8192, 8192, 1, 32).bench().only(one_token),
        plain(14_336, 4096, 8, 32).bench().only(four_tokens),
    ]
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.activation == DType::F32
        && ["f16", "int8", "uint4m", "uint3m", "int2"].contains(&weight)
}

fn one_token(variant: &Variant) -> bool {
    timed(variant) && variant.subgroups && variant.constants == ONE
}

fn four_tokens(variant: &Variant) -> bool {
    timed(variant) && variant.subgroups && variant.constants == FOUR
}
