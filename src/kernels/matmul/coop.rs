//! `matmul/coop`: the product with many tokens on matrix units: f16 times f16, summed in f32.
//!
//! Weights of other types are rounded to f16 where they are decoded; the bound counts that.

use glam::UVec3;

use super::cases::{noted, plain, split};
use super::reference::reference;
use super::{Params, cost};
use crate::device::{Args, Case, Kernel, Sizes, Variant, fold};
use crate::tensor::{DType, WEIGHT_TYPES, WHOLE_ROW};

type Shape = &'static [(&'static str, u32)];

/// A tile by WM x WN subgroups of TM x TN matrices each, in steps of columns, whose sums leave through workgroup memory in
/// so many turns: a driver seen gives the workgroups of a multiprocessor 48 KiB together, so that 24 let two run. Pieces
/// that an invocation loads of the activations, and of the weight: of 16-bit and 32-bit weights, then of blocks of codes.
macro_rules! tile {
    ($tm:literal $tn:literal, $wm:literal $wn:literal, $step:literal, $turns:literal, $x:literal, $wide:literal $blocks:literal) => {
        [
            tile!(@ $tm $tn, $wm $wn, $step, $turns, $x, $wide),
            tile!(@ $tm $tn, $wm $wn, $step, $turns, $x, $blocks),
        ]
    };
    (@ $tm:literal $tn:literal, $wm:literal $wn:literal, $step:literal, $turns:literal, $x:literal, $w:literal) => {
        &[
            ("TM", $tm),
            ("TN", $tn),
            ("WM", $wm),
            ("WN", $wn),
            ("STEP", $step),
            ("PARTS", $step / 16),
            ("TURNS", $turns),
            ("X_PIECES", $x),
            ("W_PIECES", $w),
            ("SUBGROUP", 32),
        ]
    };
}

/// Every tile: 128, 64, 32 and 16 tokens, by 128 rows.
pub(super) const TILES: [[Shape; 2]; 4] = [
    tile!(4 4, 2 2, 32, 2, 8, 8 1),
    tile!(4 2, 1 4, 64, 4, 8, 16 2),
    tile!(2 2, 1 4, 64, 4, 4, 16 2),
    tile!(1 2, 1 4, 64, 2, 2, 16 2),
];

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/coop",
    source: include_str!("../../../shaders/matmul/coop.wgsl"),
    bindings: super::BINDINGS,
    parameter_bytes: size_of::<Params>(),
    overrides: &[],
    variants,
    groups,
    cost,
    reference,
    cpu: None,
    cases,
    random,
};

/// Tokens of a tile.
pub fn tile_tokens(variant: &Variant) -> u32 {
    variant.coop * variant.constant("TM") * variant.constant("WM")
}

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    let rows = args.variant.coop * args.variant.constant("TN") * args.variant.constant("WN");
    let tokens = tile_tokens(args.variant);
    let tiles = p.rows.div_ceil(rows) as usize * p.tokens.div_ceil(tokens) as usize;
    fold(tiles * p.splits as usize)
}

/// The variant with a tile of [`TILES`].
pub(super) fn with_tile(base: &Variant, tile: &[Shape; 2]) -> Variant {
    let wide = base.weight.is_some_and(|weight| weight.bits > 8);
    Variant {
        activation: DType::F16,
        coop: 16,
        subgroups: true,
        constants: tile[usize::from(!wide)],
        ..base.clone()
    }
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for weight in WEIGHT_TYPES {
        for output in [DType::F32, DType::F16] {
            let base = Variant {
                output,
                weight: Some(weight),
                ..Variant::BASELINE
            };
            variants.extend(TILES.iter().map(|tile| with_tile(&base, tile)));
        }
    }
    variants
}

fn random(sizes: &Sizes) -> Case {
    plain(
        sizes.between(0, 1, 300),
        4 * sizes.between(1, 1, 90) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 300),
        sizes.group(4),
    )
}

fn cases() -> Vec<Case> {
    let extremes = |variant: &Variant| variant.weight.is_some_and(|weight| weight.bits == 16);
    vec![
        plain(128, 64, 128, 32),
        plain(257, 97, 130, WHOLE_ROW),
        plain(130, 40, 9, 16),
        plain(3, 1000, 70, 64),
        plain(1, 4, 1, WHOLE_ROW),
        noted(",window", 70),
        noted(",bias", 33),
        noted(",add", 33),
        noted(",gate", 33),
        noted(",gate,gelu_tanh", 33),
        noted(",gate,gelu", 33),
        split(40, 640, 19, 2),
        split(130, 1000, 130, 3),
        noted(",infinity", 20).only(extremes),
        noted(",nan", 20).only(extremes),
        noted(",zeros", 20).only(extremes),
        noted(",row of NaN", 20).only(extremes),
        // Products of a Llama-3.1-8B.
        split(14_336, 4096, 8, 4).bench().only(few),
        plain(14_336, 4096, 8, 32).bench().only(few),
        plain(14_336, 4096, 64, 32).bench().only(few),
        plain(14_336, 4096, 512, 32).bench().only(large),
        plain(4096, 4096, 4096, 32).bench().only(large),
    ]
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.output == DType::F32 && ["f16", "int8", "uint4m", "int2"].contains(&weight)
}

fn few(variant: &Variant) -> bool {
    timed(variant) && tile_tokens(variant) < 128
}

fn large(variant: &Variant) -> bool {
    timed(variant) && tile_tokens(variant) == 128
}
