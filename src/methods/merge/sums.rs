//! Sums over all values of a tensor, the same bits whatever the number of threads.

use rayon::prelude::*;

/// Values that one thread goes through at once.
const CHUNK: usize = 1 << 13;

/// Sums in f64 of what `of` gives for each of `count` places: within chunks of fixed size, then over the chunks in order.
pub(super) fn sums<const N: usize>(
    count: usize,
    of: impl Fn(usize) -> [f64; N] + Sync,
) -> [f64; N] {
    let plus = |mut sum: [f64; N], values: [f64; N]| {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        sum
    };
    let chunk = |chunk: usize| {
        let places = chunk * CHUNK..((chunk + 1) * CHUNK).min(count);
        places.fold([0.0; N], |sum, place| plus(sum, of(place)))
    };
    let chunks: Vec<[f64; N]> = (0..count.div_ceil(CHUNK)).into_par_iter().map(chunk).collect();
    chunks.into_iter().fold([0.0; N], plus)
}

/// What `of` gives for each of `count` places, rounded to f32.
pub(super) fn values(count: usize, of: impl Fn(usize) -> f64 + Sync) -> Vec<f32> {
    (0..count).into_par_iter().with_min_len(CHUNK).map(|place| of(place) as f32).collect()
}
