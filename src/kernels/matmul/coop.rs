//! `matmul/coop`: the product with many tokens on matrix units: f16 times f16, summed in f32.
//!
//! Weights of other types are rounded to f16 where they are decoded; the bound counts that.

use glam::UVec3;

use super::cases::{Shape, Special, epilogues, plain, special};
use super::product::{Engine, InputForm, MatmulShape, ProductKernel, WeightForm};
use super::reference::reference;
use super::{Params, cost};
use crate::gpu::Capabilities;
use crate::kernels::prelude::*;
use crate::tensor::{Levels, WEIGHT_TYPES, WHOLE_ROW, WeightType};

type Constants = &'static [(&'static str, u32)];

/// A tile by WM x WN subgroups of TM x TN matrices each, in steps of columns, whose sums leave through workgroup memory in
/// so many turns: a driver seen gives the workgroups of a multiprocessor 48 KiB together, so that 24 let two run. Pieces
/// that an invocation loads of the activations, and of the weight: of 16-bit and 32-bit weights, then of blocks of codes, or of kept numbers.
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
pub(super) const TILES: [[Constants; 2]; 4] = [
    tile!(4 4, 2 2, 32, 2, 8, 8 1),
    tile!(4 2, 1 4, 64, 4, 8, 16 2),
    tile!(2 2, 1 4, 64, 4, 4, 16 2),
    tile!(1 2, 1 4, 64, 2, 2, 16 2),
];

/// The row of the table of product kernels.
pub static PRODUCT: ProductKernel = ProductKernel {
    kernel: &KERNEL,
    engine: Engine::Mul,
    input: |_| InputForm::Plain,
    weight: |_| WeightForm::Codes,
    candidates,
    case: plain,
    many_beside: true,
};

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/coop",
    source: include_str!("../../../shaders/matmul/coop.wgsl"),
    bindings: super::BINDINGS,
    imports,
    parameters: Params::LAYOUT,
    variants,
    groups,
    cost,
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn imports(variant: &Variant, name: &str) -> Option<&'static str> {
    let levels = variant.weight.map(|weight| weight.levels);
    let sparse = variant.weight.is_some_and(WeightType::is_sparse);
    Some(match name {
        "coop_weight" => match levels {
            Some(Levels::F16) if sparse => "coop_weight_kept",
            Some(Levels::F32 | Levels::F16 | Levels::Bf16) => "coop_weight_wide",
            _ => "coop_weight_blocks",
        },
        "coop_wide" => match levels {
            Some(Levels::F16) => "coop_wide_f16",
            Some(Levels::Bf16) => "coop_wide_bf16",
            _ => "coop_wide_f32",
        },
        "coop_before" if variant.output != DType::F32 => "coop_before_none",
        "coop_direct" if variant.output != DType::F32 => "coop_staged",
        _ => return None,
    })
}

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
pub(super) fn with_tile(base: &Variant, tile: &[Constants; 2]) -> Variant {
    let wide = base.weight.is_some_and(|weight| weight.bits > 8 && !weight.is_sparse());
    Variant {
        activation: DType::F16,
        coop: 16,
        subgroups: true,
        constants: tile[usize::from(!wide)],
        ..base.clone()
    }
}

/// The largest tile that, split along the columns if need be, leaves enough workgroups to fill a large device; then what else
/// may be quickest.
pub(super) fn candidates(shape: &MatmulShape, capabilities: Capabilities) -> Vec<(Variant, u32)> {
    const ENOUGH: usize = 128;
    // Columns of a part, so that what a part costs beside its products stays small.
    const LEAST: usize = 512;
    let mut choices: Vec<(bool, (Variant, u32))> = Vec::new();
    for tile in &TILES {
        let whole = with_tile(&shape.variant(), tile);
        if shape.activation != DType::F16 || !whole.runs_on(capabilities) {
            return Vec::new();
        }
        let tokens = tile_tokens(&whole) as usize;
        // No tile of which more than half would be empty, nor a small one beside a larger that fills the device.
        let small = tokens * 4 < shape.tokens && choices.iter().any(|(enough, _)| *enough);
        if small || (tokens > 16 && shape.tokens <= tokens / 2) {
            continue;
        }
        let workgroups = shape.tokens.div_ceil(tokens) * shape.rows.div_ceil(128);
        let most = (shape.columns / LEAST).clamp(1, 8);
        let wanted = ENOUGH.div_ceil(workgroups).next_power_of_two();
        let mut splits = vec![wanted.min(most)];
        if wanted > 1 {
            splits.extend([(2 * wanted).min(most), 1]);
        }
        splits.dedup();
        choices.extend(splits.into_iter().map(|splits| {
            // Sums of parts are f32.
            let output = if splits > 1 { DType::F32 } else { shape.output };
            let variant = Variant { output, ..whole.clone() };
            (workgroups * splits >= ENOUGH, (variant, splits as u32))
        }));
    }
    let best = choices.iter().position(|(enough, _)| *enough);
    let best = best.unwrap_or(choices.len() - 1);
    choices[..=best].rotate_right(1);
    choices.into_iter().map(|(_, choice)| choice).collect()
}

fn variants() -> Vec<Variant> {
    let mut variants = Vec::new();
    for weight in WEIGHT_TYPES {
        for output in [DType::F32, DType::F16] {
            let base = Variant { output, weight: Some(weight), ..Variant::BASELINE };
            variants.extend(TILES.iter().map(|tile| with_tile(&base, tile)));
        }
    }
    variants
}

fn random(sizes: &Sizes) -> Case {
    plain(Shape::new(
        sizes.between(0, 1, 300),
        4 * sizes.between(1, 1, 90) - sizes.between(2, 0, 3),
        sizes.between(3, 1, 300),
        sizes.group(4),
    ))
}

fn cases() -> Vec<Case> {
    let extremes = |variant: &Variant| variant.weight.is_some_and(|weight| weight.bits == 16);
    let new = |rows, columns, tokens, group| plain(Shape::new(rows, columns, tokens, group));
    let split =
        |rows, columns, tokens, splits| plain(Shape::new(rows, columns, tokens, 32).split(splits));
    let mut cases = vec![
        new(128, 64, 128, 32),
        new(257, 97, 130, WHOLE_ROW),
        new(130, 40, 9, 16),
        new(3, 1000, 70, 64),
        new(1, 4, 1, WHOLE_ROW),
        plain(special(Special::Part, 70)),
        // Tiles that lie in one layer, and tiles that do not.
        plain(Shape::new(512, 64, 130, 32).with(Special::Apart)),
        plain(Shape::new(1096, 32, 128, 32).with(Special::Apart)),
        split(40, 640, 19, 2),
        split(130, 1000, 130, 3),
        plain(special(Special::Activations(Poison::Infinity), 20)).only(extremes),
        plain(special(Special::Activations(Poison::NaN), 20)).only(extremes),
        plain(special(Special::Activations(Poison::Zeros), 20)).only(extremes),
        plain(special(Special::NaNRow, 20)).only(extremes),
        // Products of a Llama-3.1-8B.
        split(14_336, 4096, 8, 4).bench().only(few),
        new(14_336, 4096, 8, 32).bench().only(few),
        new(14_336, 4096, 64, 32).bench().only(few),
        new(14_336, 4096, 512, 32).bench().only(large),
        new(4096, 4096, 4096, 32).bench().only(large),
    ];
    cases.extend(epilogues(33).map(plain));
    cases
}

/// Weight types worth timing.
fn timed(variant: &Variant) -> bool {
    let weight = variant.weight.map_or("", |weight| weight.name);
    variant.output == DType::F32
        && ["f16", "int8", "uint4m", "int2", "f16_2of4", "int4_2of4"].contains(&weight)
}

fn few(variant: &Variant) -> bool {
    timed(variant) && tile_tokens(variant) < 128
}

fn large(variant: &Variant) -> bool {
    timed(variant) && tile_tokens(variant) == 128
}
