// Activations of gated units, by their number: 0 SiLU, 1 GELU by tanh, 2 GELU (src/kernels/activation.rs).
const GELU_TANH: u32 = 1u;
const GELU: u32 = 2u;

// The error function within some ulp: minimax polynomials for small arguments and for log(1 - erf). From 3.92 on it is 1.
fn erf(x: f32) -> f32 {
    let t = min(abs(x), 4.0);
    if t > 0.92773438 {
        let s = t * t;
        var r = (-1.72853470e-5 * t + 3.83197126e-4) * s + (-3.88396438e-3 * t + 2.42546219e-2);
        r = r * t - 1.06777877e-1;
        r = r * t - 6.34846687e-1;
        r = r * t - 1.28717512e-1;
        return sign(x) * (1.0 - exp(r * t - t));
    }
    let s = x * x;
    var r = -5.96761703e-4 * s + 4.99119423e-3;
    r = r * s - 2.67681349e-2;
    r = r * s + 1.12819925e-1;
    r = r * s - 3.76125336e-1;
    r = r * s + 1.28379166e-1;
    return r * x + x;
}

// What the logistic function takes: 1/2 (1 + tanh(y)) = 1 / (1 + exp(-2 y)), which does not cancel.
fn logistic_argument(x: f32, activation: u32) -> f32 {
    if activation == GELU_TANH {
        return 1.5957691 * (x + 0.044715 * x * x * x);
    }
    return x;
}

// All but the exact GELU.
fn activated_by_logistic(x: f32, activation: u32) -> f32 {
    return x / (1.0 + exp(-logistic_argument(x, activation)));
}

fn activated(x: f32, activation: u32) -> f32 {
    if activation == GELU {
        return 0.5 * x * (1.0 + erf(x * 0.70710678));
    }
    return activated_by_logistic(x, activation);
}

// The activation's value and its derivative.
fn activated_slope(x: f32, activation: u32) -> vec2<f32> {
    if activation == GELU {
        let below = 0.5 * (1.0 + erf(x * 0.70710678));
        return vec2(x * below, below + x * (0.39894228 * exp(-0.5 * x * x)));
    }
    let sigmoid = 1.0 / (1.0 + exp(-logistic_argument(x, activation)));
    var near = x;
    var argument_slope = 1.0;
    if activation == GELU_TANH {
        // Farther out the slope is 0 or 1, and the square may overflow.
        near = select(x, clamp(x, -20.0, 20.0), abs(x) > 20.0);
        argument_slope = 1.5957691 * (1.0 + 0.134145 * near * near);
    }
    return vec2(x * sigmoid, sigmoid * (1.0 + near * argument_slope * (1.0 - sigmoid)));
}
