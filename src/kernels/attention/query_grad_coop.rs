//! `attention/query_grad_coop`: what [`attention/query_grad`](super::query_grad) computes, on matrix units: f16 times f16, summed
//! in f32, of heads of up to 128 columns. The scores' gradients are f16 on their way into the sums.

use super::backward::{self, Params};
use super::coop::{Tile, with_tile};
use super::{examples, query_grad};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/query_grad_coop",
    source: include_str!("../../../shaders/attention/query_grad_coop.wgsl"),
    bindings: query_grad::BINDINGS,
    parameters: Params::LAYOUT,
    variants: || TILES.map(|tile| with_tile(tile, DType::F32)).to_vec(),
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tiles as usize * p.heads as usize)
    },
    cost: |args| backward::cost(args, 6.0, false),
    reference: query_grad::reference,
    cases: || examples::cases(query_grad::case),
    random: |sizes: &Sizes| examples::random(sizes, query_grad::case),
    ..Kernel::BASE
};

/// The first that fits is taken: 16 keys at a time leave room for two workgroups of 24 KiB; 32 are there to be timed beside.
const TILES: [Tile; 3] = [
    &[("DIM", 64), ("COLS", 4), ("STRIPS", 1), ("BLOCKS", 1), ("OWNERS", 64), ("SUBGROUP", 32)],
    &[("DIM", 64), ("COLS", 4), ("STRIPS", 2), ("BLOCKS", 2), ("OWNERS", 64), ("SUBGROUP", 32)],
    &[("DIM", 128), ("COLS", 8), ("STRIPS", 1), ("BLOCKS", 2), ("OWNERS", 64), ("SUBGROUP", 32)],
];
