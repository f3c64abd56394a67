//! Half-quadratic quantization (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"): no data. The
//! offset of a group is the one that a heavy-tailed measure of what it loses, |e|^p, likes best: outliers in the error count less
//! than by squares.
//!
//! With x the weights, s the range over 2^bits - 1, z the zero point, a real number, q = round(x / s + z) clamped to the codes,
//! x' = s (q - z): e = shrink(x - x'), shrink(v) = sign(v) max(|v| - |v|^(p-1) / beta, 0); z = mean(q - (x - e) / s); beta grows by
//! kappa each time; it ends when the mean |x - x'| no longer falls.

/// The exponent of the measure.
const P: f32 = 0.7;
/// What beta begins with.
const BETA: f32 = 10.0;
/// By how much it grows.
const KAPPA: f32 = 1.01;
/// How often, at most.
const ROUNDS: usize = 20;

/// Scale and offset -s z of a group.
pub(super) fn fit(values: &[f32], bits: u32) -> (f32, f32) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let last = ((1u32 << bits) - 1) as f32;
    let scale = (high - low) / last;
    if !(scale > 0.0 && scale.is_finite()) {
        return (scale, low);
    }
    let mut zero = -low / scale;
    let mut best = (f32::INFINITY, zero);
    let mut beta = BETA;
    for _ in 0..ROUNDS {
        let code = |x: f32| (x / scale + zero).round_ties_even().clamp(0.0, last);
        let lost = |x: f32| x - scale * (code(x) - zero);
        let mean = values.iter().map(|x| lost(*x).abs()).sum::<f32>() / values.len() as f32;
        if mean >= best.0 || mean.is_nan() {
            break;
        }
        best = (mean, zero);
        let of = |x: &f32| code(*x) - (x - shrink(lost(*x), beta)) / scale;
        zero = values.iter().map(of).sum::<f32>() / values.len() as f32;
        beta *= KAPPA;
    }
    (scale, -scale * best.1)
}

/// What minimizes |e|^p + beta/2 (e - v)^2, about (the paper's equation 4).
fn shrink(value: f32, beta: f32) -> f32 {
    let most = value.abs();
    if most == 0.0 {
        return 0.0;
    }
    value.signum() * (most - most.powf(P - 1.0) / beta).max(0.0)
}
