//! From numbers to codes. Scales first (`absmax`, `minmax`), then the nearest codes on the grid they span (`round`).
//! Scales may be trained afterwards (`scale_grad`, `store_scales`), and so may rounding (`clip_range`, `shift`,
//! `rounding_grad`).
//!
//! Every step is exact or rounded once, so that all devices give the same bits; the references therefore compute in f32,
//! with the same roundings.

pub mod absmax;
pub mod activations;
pub mod clip_range;
pub mod gated;
pub mod inputs;
pub mod merged;
pub mod minmax;
pub mod nearest;
pub mod normed;
pub mod round;
pub mod rounding_grad;
pub mod scale_grad;
pub mod shift;
pub mod store_scales;

use half::f16;

use crate::kernels::prelude::*;

/// Widths of the groups that the cases try: (rows, columns, group_columns).
const SHAPES: [(usize, usize, usize); 5] =
    [(3, 97, 97), (5, 100, 16), (2, 576, 128), (1, 32, 32), (70, 64, 32)];

/// Weights as they come: bell-shaped, with an outlier now and then, a tie, a constant group and a zero group.
fn weights(random: &mut Random, rows: usize, columns: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..rows * columns)
        .map(|index| {
            let bell = (0..4).map(|_| random.value()).sum::<f32>() * 0.02;
            if index % 61 == 7 { bell * 10.0 } else { bell }
        })
        .collect();
    if columns > 48 {
        // As far to one side as to the other: the first counts.
        (values[40], values[41]) = (2.5, -2.5);
    }
    let first = columns.min(32);
    values[..first].fill(0.0);
    if rows > 1 {
        values[columns..columns + first].fill(-0.37);
    }
    if rows > 2 {
        values[2 * columns..2 * columns + first].fill(0.21);
    }
    values
}

/// f32 rounded to f16 and widened again.
fn rounded(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}
