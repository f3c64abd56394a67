//! Averages of whole tensors: weighted means (model soups, Wortsman et al. 2022, arXiv 2203.05482; WARM, Ramé et al. 2024, arXiv
//! 2401.12187), and the arc between two (Shoemake 1985, "Animating rotation with quaternion curves", as mergekit applies it to
//! flattened tensors).

use super::sums::{sums, values};

/// sum(w_i x_i), divided by sum(w_i) where `normalize` says so. Tensors of weight 0 may be empty.
pub(super) fn linear(tensors: &[Vec<f32>], weights: &[f64], normalize: bool) -> Vec<f32> {
    let parts: Vec<(&[f32], f64)> = tensors
        .iter()
        .zip(weights)
        .filter(|(_, weight)| **weight != 0.0)
        .map(|(tensor, weight)| (tensor.as_slice(), *weight))
        .collect();
    let divisor = if normalize { weights.iter().sum() } else { 1.0 };
    let count = tensors.iter().map(Vec::len).max().unwrap_or(0);
    values(count, |place| {
        let sum: f64 = parts.iter().map(|(tensor, weight)| weight * f64::from(tensor[place])).sum();
        sum / divisor
    })
}

/// Beyond this cosine two tensors are taken for parallel.
const PARALLEL: f64 = 0.9995;

/// The point at share `t` of the arc from `a` to `b`: sin((1 - t) θ) / sin(θ) a + sin(t θ) / sin(θ) b, where θ is the angle between
/// both. Of (anti)parallel tensors, and of one that is zero, which has no angle, (1 - t) a + t b.
pub(super) fn slerp(a: &[f32], b: &[f32], t: f64) -> Vec<f32> {
    let wide = |place: usize| (f64::from(a[place]), f64::from(b[place]));
    let [aa, bb, ab] = sums(a.len(), |place| {
        let (a, b) = wide(place);
        [a * a, b * b, a * b]
    });
    let norms = (aa * bb).sqrt();
    let cosine = if norms > 0.0 { (ab / norms).clamp(-1.0, 1.0) } else { 1.0 };
    let (of_a, of_b) = match cosine.abs() > PARALLEL {
        true => (1.0 - t, t),
        false => {
            let angle = cosine.acos();
            let sine = angle.sin();
            (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
        }
    };
    values(a.len(), |place| {
        let (a, b) = wide(place);
        of_a * a + of_b * b
    })
}
