//! Averages of whole tensors: weighted means (model soups, Wortsman et al. 2022, arXiv 2203.05482; WARM, Ramé et al. 2024, arXiv
//! 2401.12187), and the arc between two (Shoemake 1985, "Animating rotation with quaternion curves", as mergekit applies it to
//! flattened tensors).

use super::sums::{sums, values};

/// sum(w_i x_i) of so many values, divided by sum(w_i) where `normalize` says so. Tensors of weight 0 may be empty.
pub(super) fn linear(
    tensors: &[Vec<f32>],
    weights: &[f64],
    normalize: bool,
    count: usize,
) -> Vec<f32> {
    let parts: Vec<(&[f32], f64)> = tensors
        .iter()
        .zip(weights)
        .filter(|(_, weight)| **weight != 0.0)
        .map(|(tensor, weight)| (tensor.as_slice(), *weight))
        .collect();
    let divisor = if normalize { weights.iter().sum() } else { 1.0 };
    values(count, |place| {
        let terms = parts.iter().map(|(tensor, weight)| weight * f64::from(tensor[place]));
        terms.fold(0.0, |sum, term| sum + term) / divisor
    })
}

/// Beyond this cosine two tensors are taken for parallel.
const PARALLEL: f64 = 0.9995;

/// Sums over two tensors, in parts: of the squares of each, and of their products.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Products([f64; 3]);

impl Products {
    /// The same with more values of both.
    pub(super) fn plus(self, a: &[f32], b: &[f32]) -> Self {
        let found = sums(a.len(), |place| {
            let (a, b) = (f64::from(a[place]), f64::from(b[place]));
            [a * a, b * b, a * b]
        });
        Self(std::array::from_fn(|which| self.0[which] + found[which]))
    }

    /// What a and b are multiplied by at share `t` of the arc from a to b: sin((1 - t) θ) / sin(θ) and sin(t θ) / sin(θ), where θ is
    /// the angle between both. Of (anti)parallel tensors, and of one that is zero, which has no angle, 1 - t and t.
    pub(super) fn arc(self, t: f64) -> (f64, f64) {
        let [aa, bb, ab] = self.0;
        let norms = (aa * bb).sqrt();
        let cosine = if norms > 0.0 { (ab / norms).clamp(-1.0, 1.0) } else { 1.0 };
        if cosine.abs() > PARALLEL {
            return (1.0 - t, t);
        }
        let angle = cosine.acos();
        let sine = angle.sin();
        (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
    }
}

/// of_a a + of_b b.
pub(super) fn between(a: &[f32], b: &[f32], (of_a, of_b): (f64, f64)) -> Vec<f32> {
    values(a.len(), |place| of_a * f64::from(a[place]) + of_b * f64::from(b[place]))
}
