//! `matmul/tiled`: the product with many tokens, f32 multiply-adds on tiles in workgroup memory. Runs everywhere.

use glam::UVec3;

use super::cases::{noted, plain};
use super::reference::{cpu, reference};
use super::{Params, cost, typed_variants};
use crate::device::{Args, Case, Kernel, Sizes, Variant, fold};
use crate::tensor::{DType, WHOLE_ROW};

/// Tiles of 64 and of 128 weight rows and tokens: a workgroup's, 64 * QUADS in the shader.
pub(super) const TILES: [&[(&str, u32)]; 2] = [&[("QUADS", 1)], &[("QUADS", 2)]];

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/tiled",
    source: include_str!("../../../shaders/matmul/tiled.wgsl"),
    bindings: super::BINDINGS,
    parameter_bytes: size_of::<Params>(),
    overrides: &[],
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
    let tile = 64 * args.variant.constant("QUADS");
    fold(p.rows.div_ceil(tile) as usize * p.tokens.div_ceil(tile) as usize)
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for base in typed_variants() {
        let tiles = if large(&base) {
            &TILES[..]
        } else {
            &TILES[..1]
        };
        variants.extend(tiles.iter().map(|constants| Variant {
            constants,
            ..base.clone()
        }));
    }
    variants
}

/// Whether the large tile is there: for products that are mostly this kernel's, where there are no matrix units.
pub(super) fn large(variant: &Variant) -> bool {
    let types = ["f32", "f16", "bf16", "int8", "int4", "uint4m"];
    variant.activation == DType::F32
        && variant
            .weight
            .is_some_and(|weight| types.contains(&weight.name))
}

fn random(sizes: &Sizes) -> Case {
    plain(
        sizes.between(0, 1, 150),
        4 * sizes.between(1, 1, 60) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 150),
        sizes.group(4),
    )
}

fn cases() -> Vec<Case> {
    let extremes = |variant: &Variant| variant.weight.is_some_and(|weight| weight.bits >= 16);
    vec![
        plain(65, 97, 67, WHOLE_ROW),
        plain(64, 64, 129, 32),
        plain(130, 36, 9, 16),
        plain(3, 1000, 70, 64),
        plain(1, 4, 1, WHOLE_ROW),
        noted(",window", 70),
        noted(",bias", 33),
        noted(",add", 33),
        noted(",gate", 33),
        noted(",gate,gelu_tanh", 33),
        noted(",gate,gelu", 33),
        noted(",infinity", 20).only(extremes),
        noted(",nan", 20).only(extremes),
        noted(",zeros", 20).only(extremes),
        // Products of a Llama-3.1-8B and of SmolLM2.
        plain(14_336, 4096, 512, 32).bench().only(timed),
        plain(1536, 576, 2048, 32).bench().only(timed),
        plain(4096, 4096, 4096, 32).bench().only(half),
    ]
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.activation == DType::F32 && ["f16", "int8", "uint4m"].contains(&weight)
}

fn half(variant: &Variant) -> bool {
    timed(variant) && variant.weight.is_some_and(|weight| weight.name == "f16")
}
