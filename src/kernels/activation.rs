//! The nonlinear functions that kernels share: activations of gated units and the soft cap of scores and logits, each in f32
//! for the CPU and in f64 with the bound that a correct device keeps. `shaders/shared/activation.wgsl` and
//! `shaders/shared/soft_cap.wgsl` are their WGSL.
//!
//! exp is off by (3 + 2 |x|) ulp in WGSL, a division by 2.5 ulp; an ulp is up to two unit roundoffs.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::bounds::U;

/// The activation of a gated unit (Shazeer 2020, arXiv 2002.05202).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + exp(-x)), also called swish: Llama, Mistral, Qwen.
    #[default]
    Silu,
    /// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): `gelu_pytorch_tanh` of transformers; Gemma.
    GeluTanh,
    /// x / 2 (1 + erf(x / sqrt(2))), the exact GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    Gelu,
}

/// 2 sqrt(2 / pi): with it 1/2 (1 + tanh(...)) of the approximate GELU is 1 / (1 + exp(-z)).
const GELU_SLOPE: f64 = 1.595_769_121_605_731;
const GELU_CUBE: f64 = 0.044_715;

impl Activation {
    /// All of them, in the order of their numbers in shaders.
    pub const ALL: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    /// The number that stands for it in shaders.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The activation of a number.
    pub fn of(code: u32) -> Self {
        Self::ALL[code as usize]
    }

    /// The argument z of the logistic function that multiplies x, and dz / dx. Not of the exact GELU.
    fn logistic_argument(self, x: f64) -> (f64, f64) {
        match self {
            Activation::Silu => (x, 1.0),
            _ => (
                GELU_SLOPE * (x + GELU_CUBE * x * x * x),
                GELU_SLOPE * (1.0 + 3.0 * GELU_CUBE * x * x),
            ),
        }
    }

    /// Its value in f32.
    pub fn value(self, x: f32) -> f32 {
        match self {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                let z = GELU_SLOPE as f32 * (x + GELU_CUBE as f32 * x * x * x);
                x / (1.0 + (-z).exp())
            }
            Activation::Gelu => 0.5 * x * (1.0 + erf_f32(x * FRAC_1_SQRT_2 as f32)),
        }
    }

    /// Its value and its derivative in f32.
    pub fn value_and_slope(self, x: f32) -> (f32, f32) {
        if self == Activation::Gelu {
            let below = 0.5 * (1.0 + erf_f32(x * FRAC_1_SQRT_2 as f32));
            let density = (1.0 / (2.0 * PI).sqrt()) as f32 * (-0.5 * x * x).exp();
            return (x * below, below + x * density);
        }
        let (z, z_slope, near) = match self {
            Activation::Silu => (x, 1.0, x),
            _ => {
                // Farther out the slope is 0 or 1, and the square may overflow.
                let near = x.clamp(-20.0, 20.0);
                let z = GELU_SLOPE as f32 * (x + GELU_CUBE as f32 * x * x * x);
                let z_slope = GELU_SLOPE as f32 * (1.0 + 3.0 * GELU_CUBE as f32 * near * near);
                (z, z_slope, near)
            }
        };
        let sigmoid = 1.0 / (1.0 + (-z).exp());
        let slope = sigmoid * (1.0 + near * z_slope * (1.0 - sigmoid));
        (x * sigmoid, slope)
    }

    /// Its value, and what a device may be off by. WGSL promises nothing of a division by more than 2^126, whose reciprocal
    /// is subnormal: such a result, below 1e-36, may be zero. The exact GELU's 1 + erf cancels for negative numbers.
    pub fn reference(self, x: f64) -> (f64, f64) {
        if self == Activation::Gelu {
            let value = 0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2));
            return (value, 12.0 * U * x.abs());
        }
        let (z, _) = self.logistic_argument(x);
        let divisor = 1.0 + (-z).exp();
        let value = x / divisor;
        let relative = if divisor > f64::powi(2.0, 126) {
            1.0
        } else {
            (16.0 + self.per_argument() * z.abs().min(100.0)) * U
        };
        (value, relative * value.abs())
    }

    /// Its value and its derivative, each with what a device may be off by.
    pub fn slope_reference(self, x: f64) -> [(f64, f64); 2] {
        if self == Activation::Gelu {
            let below = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
            let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
            let tail = (10.0 + 8.0 * (x * x).min(200.0)) * U * (x * density).abs();
            return [(x * below, 12.0 * U * x.abs()), (below + x * density, 12.0 * U + tail)];
        }
        let (z, z_slope) = self.logistic_argument(x);
        let sigmoid = 1.0 / (1.0 + (-z).exp());
        let relative =
            if z < -87.0 { 1.0 } else { (20.0 + self.per_argument() * z.abs().min(100.0)) * U };
        let value = x * sigmoid;
        let slope = sigmoid * (1.0 + x * z_slope * (1.0 - sigmoid));
        // 1 - sigmoid is as exact as the sigmoid is, and what it is multiplied by may cancel the 1.
        let rest = (value * z_slope).abs();
        let bound = relative * (slope.abs() + sigmoid + rest * (1.0 + sigmoid));
        [(value, relative * value.abs()), (slope, bound)]
    }

    /// Unit roundoffs lost for each unit of the exponent: by exp, and by the polynomial before it.
    fn per_argument(self) -> f64 {
        match self {
            Activation::Silu => 6.0,
            _ => 12.0,
        }
    }
}

/// cap tanh(x / cap), the soft cap of Gemma 2 (arXiv 2408.00118), in f32.
pub fn soft_cap(x: f32, cap: f32) -> f32 {
    cap * (x / cap).tanh()
}

/// The same in f64, with what a device may be off by where `x` is off by `error`.
pub fn soft_cap_reference(x: f64, error: f64, cap: f64) -> (f64, f64) {
    let value = cap * (x / cap).tanh();
    (value, error + 32.0 * U * value.abs())
}

/// The derivative of the soft cap where its value is `y`, off by `error`: 1 - (y / cap)^2, and its bound.
pub fn soft_cap_slope_reference(y: f64, error: f64, cap: f64) -> (f64, f64) {
    let ratio = y / cap;
    (1.0 - ratio * ratio, 2.0 * ratio.abs() * error / cap + 16.0 * U)
}

/// The error function in f32, within two ulp: polynomials of minimax for its argument and for the logarithm of 1 - erf.
pub fn erf_f32(x: f32) -> f32 {
    let distance = x.abs();
    if distance > 0.927_734_4 {
        // From 3.92 on it is 1.
        let t = distance.min(4.0);
        let square = t * t;
        let mut r =
            (-1.728_534_7e-5 * t + 3.831_972e-4) * square + (-3.883_964_4e-3 * t + 2.425_462_2e-2);
        for coefficient in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
            r = r * t + coefficient;
        }
        return (1.0 - (r * t - t).exp()).copysign(x);
    }
    let square = x * x;
    let mut r = -5.967_617e-4;
    for coefficient in
        [4.991_194_2e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1]
    {
        r = r * square + coefficient;
    }
    r * x + x
}

/// The error function in f64: 2 / sqrt(pi) exp(-x^2) sum_n 2^n x^(2n+1) / (1 3 5 ... (2n+1)), whose terms have one sign.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}
