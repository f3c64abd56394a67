//! Model Stock (Jang et al. 2024, arXiv 2403.19522): from fine-tuned weights w_1 … w_N of one pretrained w_0, the point on the line
//! from w_0 to their mean that is nearest to the centre of the shell that fine-tunes lie on (equations 3 and 4):
//! t = N cos θ / (1 + (N - 1) cos θ), w = t mean(w_i) + (1 - t) w_0, where θ is the angle between two w_i - w_0; of more than two
//! the mean of all pairs' cosines, as mergekit has it.

use rayon::prelude::*;

use super::sums::{sums, values};

/// Below this a denominator is taken for 0: opposed updates have no such point, and the pretrained weights stay.
const SINGULAR: f64 = 1e-6;

/// The merged tensor, the pretrained one first. `row`: the values of a row if each row has an angle of its own (the paper's filters),
/// `None`: the tensor has one.
pub(super) fn stock(tensors: &[Vec<f32>], row: Option<usize>) -> Vec<f32> {
    let (base, tuned) = (&tensors[0], &tensors[1..]);
    let delta =
        |model: usize, place: usize| f64::from(tuned[model][place]) - f64::from(base[place]);
    let product = |a: usize, b: usize, place: usize| delta(a, place) * delta(b, place);
    let shares: Vec<f64> = match row {
        None => {
            vec![share(tuned.len(), |a, b| sums(base.len(), |place| [product(a, b, place)])[0])]
        }
        Some(columns) => {
            let of_row = |row: usize| {
                let places = row * columns..(row + 1) * columns;
                share(tuned.len(), |a, b| places.clone().map(|place| product(a, b, place)).sum())
            };
            (0..base.len() / columns.max(1)).into_par_iter().map(of_row).collect()
        }
    };
    let columns = row.unwrap_or(base.len()).max(1);
    values(base.len(), |place| {
        let t = shares[place / columns];
        let sum: f64 = tuned.iter().map(|tensor| f64::from(tensor[place])).sum();
        t * sum / tuned.len() as f64 + (1.0 - t) * f64::from(base[place])
    })
}

/// t, of so many fine-tuned models, by the dot products of their deltas.
fn share(count: usize, dot: impl Fn(usize, usize) -> f64) -> f64 {
    let squares: Vec<f64> = (0..count).map(|model| dot(model, model)).collect();
    let (mut cosines, mut pairs) = (0.0, 0);
    for a in 0..count {
        for b in a + 1..count {
            let norms = (squares[a] * squares[b]).sqrt();
            let cosine = if norms > 0.0 { dot(a, b) / norms } else { 0.0 };
            (cosines, pairs) = (cosines + cosine.clamp(-1.0, 1.0), pairs + 1);
        }
    }
    let (cosine, count) = (cosines / f64::from(pairs.max(1)), count as f64);
    let denominator = 1.0 + (count - 1.0) * cosine;
    if denominator.abs() < SINGULAR { 0.0 } else { count * cosine / denominator }
}
