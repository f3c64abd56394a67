//! `matmul/tiled`: the product with many tokens, f32 multiply-adds on tiles in workgroup memory. Runs everywhere.

use glam::UVec3;

use super::cases::{Shape, Special, epilogues, plain, special};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::{cpu, reference};
use super::{Params, coop, cost, typed_variants};
use crate::gpu::Capabilities;
use crate::kernels::prelude::*;
use crate::tensor::WHOLE_ROW;

/// Tiles of 64 and of 128 weight rows and tokens: a workgroup's, 64 * QUADS in the shader.
pub(super) const TILES: [&[(&str, u32)]; 2] = [&[("QUADS", 1)], &[("QUADS", 2)]];

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
    name: "matmul/tiled",
    source: include_str!("../../../shaders/matmul/tiled.wgsl"),
    bindings: super::BINDINGS,
    parameters: Params::LAYOUT,
    variants,
    groups,
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    let tile = 64 * args.variant.constant("QUADS");
    fold(p.rows.div_ceil(tile) as usize * p.tokens.div_ceil(tile) as usize)
}

/// For many tokens, which are many times as quick on matrix units where there are some.
fn candidates(shape: &MatmulShape, capabilities: Capabilities) -> Vec<(Variant, u32)> {
    if shape.few_tokens() || !coop::candidates(shape, capabilities).is_empty() {
        return Vec::new();
    }
    let base = Variant { activation: shape.activation, ..shape.variant() };
    // The large tile where it leaves enough workgroups to fill a large device; a processor has few cores to fill.
    let workgroups = shape.rows.div_ceil(128) * shape.tokens.div_ceil(128);
    let enough = if capabilities.processor { 2 } else { 128 };
    let mut tiles = TILES.to_vec();
    if workgroups >= enough && shape.tokens > 64 {
        tiles.reverse();
    }
    tiles.retain(|constants| large(&base) || *constants == TILES[0]);
    let variant = |constants| Variant { constants, ..base.clone() };
    tiles.into_iter().map(|tile| (variant(tile), 1)).collect()
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for base in typed_variants() {
        let tiles = if large(&base) { &TILES[..] } else { &TILES[..1] };
        variants.extend(tiles.iter().map(|constants| Variant { constants, ..base.clone() }));
    }
    variants
}

/// Whether the large tile is there: for products that are mostly this kernel's, where there are no matrix units.
pub(super) fn large(variant: &Variant) -> bool {
    let types = ["f32", "f16", "bf16", "int8", "int4", "uint4m", "f16_2of4", "int4_2of4"];
    variant.activation == DType::F32
        && variant.weight.is_some_and(|weight| types.contains(&weight.name))
}

fn random(sizes: &Sizes) -> Case {
    plain(Shape::new(
        sizes.between(0, 1, 150),
        4 * sizes.between(1, 1, 60) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 150),
        sizes.group(4),
    ))
}

fn cases() -> Vec<Case> {
    let extremes = |variant: &Variant| variant.weight.is_some_and(|weight| weight.bits >= 16);
    let new = |rows, columns, tokens, group| plain(Shape::new(rows, columns, tokens, group));
    let mut cases = vec![
        new(65, 97, 67, WHOLE_ROW),
        new(64, 64, 129, 32),
        new(130, 36, 9, 16),
        new(3, 1000, 70, 64),
        new(1, 4, 1, WHOLE_ROW),
        plain(special(Special::Part, 70)),
        plain(special(Special::Activations(Poison::Infinity), 20)).only(extremes),
        plain(special(Special::Activations(Poison::NaN), 20)).only(extremes),
        plain(special(Special::Activations(Poison::Zeros), 20)).only(extremes),
        // Products of a Llama-3.1-8B and of SmolLM2.
        new(14_336, 4096, 512, 32).bench().only(timed),
        new(1536, 576, 2048, 32).bench().only(timed),
        new(4096, 4096, 4096, 32).bench().only(half),
    ];
    cases.extend(epilogues(33).map(plain));
    cases
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.activation == DType::F32
        && ["f16", "int8", "uint4m", "f16_2of4", "int4_2of4"].contains(&weight)
}

fn half(variant: &Variant) -> bool {
    timed(variant) && variant.weight.is_some_and(|weight| weight.name == "f16")
}
