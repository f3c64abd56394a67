//! `attention/coop`: what [`attention/tiled`](super::tiled) computes, on matrix units: f16 times f16, summed in f32, of heads of up
//! to 128 columns. Scores leave the matrices through workgroup memory; the softmax's weights come back in f16. The keys pass by
//! twice, first for each row's highest score, so that no sum of matrices is ever scaled again (three products for the two of
//! FlashAttention, arXiv 2205.14135).
//!
//! A value or key that is not finite reaches all tokens of a tile, seen or not: its products with weights of zero are NaN.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::backward::Params;
use super::{key_value_grad_coop, query_grad_coop, tiled};
use crate::device::{Runner, check_case};
use crate::kernels::prelude::*;

/// The constants of a tile: heads of up to DIM columns, which are COLS matrices; STRIPS matrices of streamed rows at once, of
/// which an invocation loads so many pieces, vectors of a row or BLOCKS of four by four; and the subgroups' lanes.
pub(super) type Tile = &'static [(&'static str, u32)];

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/coop",
    source: include_str!("../../../shaders/attention/coop.wgsl"),
    bindings: tiled::BINDINGS,
    parameters: Params::LAYOUT,
    variants: || {
        let typed = |output| TILES.map(|tile| with_tile(tile, output));
        [typed(DType::F16), typed(DType::F32)].concat()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost: tiled::cost,
    reference: tiled::reference,
    // What is not finite spreads through a tile.
    cases: || {
        tiled::cases().into_iter().filter(|case| !case.label.contains(",nan value")).collect()
    },
    random: tiled::random,
    ..Kernel::BASE
};

const TILES: [Tile; 2] = [
    &[
        ("DIM", 64),
        ("COLS", 4),
        ("STRIPS", 2),
        ("PIECES", 4),
        ("BLOCKS", 1),
        ("OWNERS", 64),
        ("SUBGROUP", 32),
    ],
    &[
        ("DIM", 128),
        ("COLS", 8),
        ("STRIPS", 1),
        ("PIECES", 4),
        ("BLOCKS", 1),
        ("OWNERS", 64),
        ("SUBGROUP", 32),
    ],
];

/// A variant on matrix units: f16 activations, and results of some type.
pub(super) fn with_tile(constants: Tile, output: DType) -> Variant {
    Variant { coop: 16, subgroups: true, constants, ..Variant::typed(DType::F16, output) }
}

/// What a runner's matrix units were found to do, by kernel and variant.
#[derive(Debug, Default)]
struct Verified(Mutex<HashMap<(&'static str, Variant), bool>>);

/// The variant of a kernel on matrix units for heads of so many columns, where the device has such units and the variant passed
/// its first cases on them: drivers differ, and register tiles do the same.
pub(super) fn choose(
    device: &Device,
    kernel: &'static Kernel,
    (activation, output): (DType, DType),
    head_dim: usize,
) -> Option<Variant> {
    let runner = device.runner()?;
    let capabilities = device.capabilities();
    if activation != DType::F16 || capabilities.cooperative_matrix == 0 {
        return None;
    }
    let fits = |variant: &Variant| {
        variant.output == output
            && variant.constant("DIM") as usize >= head_dim
            && variant.runs_on(capabilities)
    };
    let variant = (kernel.variants)().into_iter().find(fits)?;
    verified(runner, kernel, &variant).then_some(variant)
}

/// Whether a device's matrix units compute attention there and back for heads of so many columns, given f16.
pub fn serves(device: &Device, head_dim: usize) -> bool {
    let kernels = [&KERNEL, &query_grad_coop::KERNEL, &key_value_grad_coop::KERNEL];
    let chosen = |kernel| choose(device, kernel, (DType::F16, DType::F32), head_dim).is_some();
    kernels.into_iter().all(chosen)
}

fn verified(runner: &Runner, kernel: &'static Kernel, variant: &Variant) -> bool {
    // Enough to have heads of every matrix.
    const CASES: usize = 6;
    let known = runner.kept::<Verified>();
    let mut known = known.0.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry((kernel.name, variant.clone())).or_insert_with(|| {
        let failed = |case: &Case| {
            Some((case.label.clone(), check_case(runner, kernel, variant, case).err()?))
        };
        let failure = kernel.checks(variant).iter().take(CASES).find_map(failed);
        if let Some((case, failure)) = &failure {
            let (name, label) = (kernel.name, variant.label());
            tracing::warn!("{name} [{label}] {case}: {failure}: register tiles take its place");
        }
        failure.is_none()
    })
}
