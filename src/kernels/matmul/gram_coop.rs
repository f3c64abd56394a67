//! `matmul/gram_coop`: second moments of f16 activations on matrix units, summed in f32; what [`matmul/gram`](super::gram) is
//! elsewhere. Of widths that are multiples of four.

use super::gram::{
    BINDINGS, Note, Params, SUMMED_COOP, calibration, case, cost, groups, random_of, reference,
};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/gram_coop",
    source: include_str!("../../../shaders/matmul/gram_coop.wgsl"),
    bindings: BINDINGS,
    parameters: Params::LAYOUT,
    variants: || vec![variant()],
    groups,
    cost,
    reference,
    cases,
    random: |sizes| random_of(sizes, 4),
    ..Kernel::BASE
};

/// A tile of 128 x 128 by 2 x 2 subgroups of 4 x 4 matrices each, in steps of 32 tokens: the tile that
/// [`matmul/coop`](super::coop) has for many tokens.
pub(super) fn variant() -> Variant {
    Variant {
        coop: 16,
        subgroups: true,
        constants: &[
            ("EDGE", 128),
            ("TM", 4),
            ("TN", 4),
            ("WM", 2),
            ("WN", 2),
            ("STEP", 32),
            ("PARTS", 2),
            ("TURNS", 2),
            ("PIECES", 8),
            ("SUBGROUP", 32),
        ],
        ..Variant::typed(DType::F16, DType::F32)
    }
}

fn cases() -> Vec<Case> {
    let poisoned = |poison| case(140, 20, Note::Nothing).with(poison);
    let mut cases = vec![
        case(128, 32, Note::Nothing),
        case(256, 96, Note::Nothing),
        case(248, 67, Note::Nothing),
        case(4, 1, Note::Nothing),
        case(500, 33, Note::Accumulate),
        case(256, 64, Note::Accumulate),
        case(132, 70, Note::Window),
        case(388, 40, Note::Slots),
        case(240, 100, Note::Parts(32)),
        case(140, 70, Note::Parts(20)),
        // Tiles of two bands.
        case(1156, 2, Note::Slots),
        poisoned(Poison::Infinity),
        poisoned(Poison::NaN),
        poisoned(Poison::Zeros),
    ];
    cases.extend(calibration(SUMMED_COOP));
    cases
}
