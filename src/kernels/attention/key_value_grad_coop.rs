//! `attention/key_value_grad_coop`: what [`attention/key_value_grad`](super::key_value_grad) computes, on matrix units: f16 times
//! f16, summed in f32, of heads of up to 128 columns. The softmax's weights and the scores' gradients are f16 on their way
//! into the sums.
//!
//! A query or gradient that is not finite reaches all places of a tile, seen or not: its products with zeros are NaN.

use super::backward::{self, Params};
use super::coop::{Tile, with_tile};
use super::{examples, key_value_grad};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/key_value_grad_coop",
    source: include_str!("../../../shaders/attention/key_value_grad_coop.wgsl"),
    bindings: key_value_grad::BINDINGS,
    parameters: Params::LAYOUT,
    variants: || TILES.map(|tile| with_tile(tile, DType::F32)).to_vec(),
    groups: |args| {
        let p: Params = args.parameters();
        let shares = args.variant.constant("SHARES") as usize;
        fold(p.tiles as usize * p.heads as usize * shares)
    },
    cost: |args| backward::cost(args, 8.0, true),
    reference: key_value_grad::reference,
    // What is not finite spreads through a tile.
    cases: || {
        let cases = examples::cases(key_value_grad::case).into_iter();
        cases.filter(|case| !case.label.contains(",nan")).collect()
    },
    random: |sizes: &Sizes| examples::random(sizes, key_value_grad::case),
    ..Kernel::BASE
};

/// Of longer heads, two workgroups have 64 columns of the sums each.
const TILES: [Tile; 2] = [
    &[
        ("DIM", 64),
        ("COLS", 4),
        ("SHARES", 1),
        ("STRIPS", 1),
        ("BLOCKS", 1),
        ("OWNERS", 64),
        ("SUBGROUP", 32),
    ],
    &[
        ("DIM", 128),
        ("COLS", 8),
        ("SHARES", 2),
        ("STRIPS", 1),
        ("BLOCKS", 2),
        ("OWNERS", 64),
        ("SUBGROUP", 32),
    ],
];
