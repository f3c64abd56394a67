//! Scales of types whose codes are levels. They are found on the host: one number a group, in one pass over weights that
//! are there anyway, and the same on every device.

use half::f16;
use rayon::prelude::*;

use crate::tensor::{Levels, Packed, Scale, WeightFormat, minifloat};

/// The largest magnitude of E2M1.
const E2M1_MAX: f32 = 6.0;

/// The largest finite magnitude of E4M3.
const E4M3_MAX: f32 = 448.0;

/// The level at which a group's largest magnitude is put. Of E5M2 not its largest: its scales would be f16 subnormals, and
/// it loses nothing by the shift.
fn top(levels: Levels) -> f32 {
    match levels {
        Levels::Table(table) => table.iter().fold(0.0, |top: f32, level| top.max(level.abs())),
        Levels::Float { exponent: 2, .. } => E2M1_MAX,
        _ => E4M3_MAX,
    }
}

/// The largest magnitude of a tensor.
pub(super) fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, value| most.max(value.abs()))
}

/// The scale words of rows of `columns` values, (rows, scale_words). `whole` is the largest magnitude of the whole tensor,
/// of which these may be some rows.
pub(super) fn scales(values: &[f32], columns: usize, format: WeightFormat, whole: f32) -> Vec<u32> {
    let line = |values: &[f32]| {
        let mut packed = Packed::zeros(format, 1, columns);
        if format.ty.scale == Scale::TwoLevel {
            packed.set_row_scale(0, tensor_scale(whole));
        }
        for (group, values) in values.chunks(format.group_columns(columns)).enumerate() {
            packed.set_group(0, group, group_scale(values, format, tensor_scale(whole)), 0);
        }
        packed.scales
    };
    let lines: Vec<Vec<u32>> = values.par_chunks_exact(columns).map(line).collect();
    lines.concat()
}

/// The tensor's own scale of [`Scale::TwoLevel`], by its largest magnitude.
pub(super) fn tensor_scale(whole: f32) -> f32 {
    whole / (E4M3_MAX * E2M1_MAX)
}

/// The scale of a group as it is stored.
///
/// - f16 scales: largest magnitude / top level; for `ternary` the mean magnitude (BitNet b1.58, arXiv 2402.17764, eq. 3); for
///   `iq4_nl`, whose levels reach further below 0 than above, the value of that magnitude / the lowest level.
/// - powers of two: 2^(floor(log2(largest)) - 2), 2 being E2M1's largest exponent (OCP Microscaling 1.0, section 6.3).
/// - two levels: t = whole / (448 * 6), then E4M3 of largest / (6 t).
pub(super) fn group_scale(values: &[f32], format: WeightFormat, tensor_scale: f32) -> u16 {
    let most = largest(values);
    match format.ty.scale {
        Scale::PowerOfTwo if most > 0.0 => power_of_two(most),
        Scale::PowerOfTwo => 1,
        Scale::TwoLevel if tensor_scale > 0.0 => {
            minifloat::encode_magnitude(most / (E2M1_MAX * tensor_scale), 4, 3) as u16
        }
        Scale::TwoLevel => 0,
        _ if format.ty.name == "ternary" => {
            let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
            f16::from_f64(sum / values.len() as f64).to_bits()
        }
        _ if format.ty.name == "iq4_nl" => {
            let extreme = values.iter().find(|value| value.abs() == most);
            f16::from_f32(extreme.copied().unwrap_or(0.0) / -top(format.ty.levels)).to_bits()
        }
        _ => f16::from_f32(most / top(format.ty.levels)).to_bits(),
    }
}

/// E8M0 of 2^(floor(log2(most)) - 2).
fn power_of_two(most: f32) -> u16 {
    // The exponent field is floor(log2) + 127 for normal numbers; what is smaller has the smallest scale that
    // is a normal f32.
    let exponent = (most.to_bits() >> 23) as i32;
    (exponent - 2).clamp(1, 254) as u16
}
