//! Error bounds of floating-point results, from Higham, *Accuracy and Stability of Numerical Algorithms*, chapters 3
//! and 4, and Higham and Mary, *A New Approach to Probabilistic Rounding Error Analysis* (2019).

use crate::tensor::DType;

/// The unit roundoff of f32, in which every kernel accumulates.
pub const U: f64 = 1.0 / (1u64 << 24) as f64;

/// The relative error, against the sum of magnitudes, of a sum of `terms` products in any order, with or without fused
/// multiply-adds.
///
/// The smaller of the certain bound, n u / (1 - n u), and of the probabilistic one with a factor of 8, whose chance of
/// failing is below 1e-13 per element: for long rows the certain bound would let a dropped term through.
pub fn gamma(terms: usize) -> f64 {
    let n = terms as f64 + 1.0;
    let certain = n * U / (1.0 - n * U);
    certain.min(8.0 * n.sqrt() * U)
}

/// The error of storing `value` as `dtype`: one rounding to nearest in f32, up to two for f16 (WGSL leaves the direction
/// of that conversion to the device), and of results below the normal range, which may be flushed to zero.
pub fn storing(dtype: DType, value: f64) -> f64 {
    2.0 * dtype.unit_roundoff() * value.abs() + dtype.underflow()
}
