//! What the kernels of AdamW share: its settings, their form in a shader's parameters, and the reference of a step.

use crate::device::Field;
use crate::kernels::prelude::*;

/// AdamW: Adam (Kingma and Ba 2015, arXiv 1412.6980) whose decay of the weights is no part of the gradient (Loshchilov and
/// Hutter 2019, arXiv 1711.05101, algorithm 2), in the form of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// The learning rate of this step.
    pub rate: f32,
    /// How much of the mean of the gradient stays.
    pub beta1: f32,
    /// How much of the mean of its squares stays.
    pub beta2: f32,
    /// Added to the root of the mean of squares. Above 0.
    pub epsilon: f32,
    /// Weight decay, of which `rate` times is taken off a weight each step.
    pub decay: f32,
}

/// A step's numbers: part of every parameter struct of the two kernels.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Step {
    /// 1 - rate decay: what is left of a weight.
    pub kept: f32,
    /// rate / (1 - beta1^t).
    pub pace: f32,
    /// 1 / sqrt(1 - beta2^t).
    pub root: f32,
    pub epsilon: f32,
    pub beta1: f32,
    /// 1 - beta1.
    pub rest1: f32,
    pub beta2: f32,
    /// 1 - beta2.
    pub rest2: f32,
}

impl Field for Step {
    fn wgsl(_: &str) -> String {
        let names = ["kept", "pace", "root", "epsilon", "beta1", "rest1", "beta2", "rest2"];
        names.map(f32::wgsl).concat()
    }
}

impl Step {
    /// The numbers of step `t`, counted from 1, each rounded once.
    pub(super) fn new(settings: &AdamW, t: u64) -> Self {
        assert!(t > 0 && settings.epsilon > 0.0, "steps count from 1, and epsilon is above 0");
        let [rate, decay] = [settings.rate, settings.decay].map(f64::from);
        let [beta1, beta2] = [settings.beta1, settings.beta2].map(f64::from);
        let power = |beta: f64| beta.powf(t as f64);
        Self {
            kept: (1.0 - rate * decay) as f32,
            pace: (rate / (1.0 - power(beta1))) as f32,
            root: (1.0 / (1.0 - power(beta2)).sqrt()) as f32,
            epsilon: settings.epsilon,
            beta1: settings.beta1,
            rest1: (1.0 - beta1) as f32,
            beta2: settings.beta2,
            rest2: (1.0 - beta2) as f32,
        }
    }

    /// A step of one weight, each number with its bound: the weight, the mean of its gradient and of the squares.
    pub(super) fn reference(
        &self,
        gradient: f64,
        weight: f64,
        (first, second): (f64, f64),
    ) -> [(f64, f64); 3] {
        let below = DType::F32.underflow();
        let term = |factor: f32, value: f64| f64::from(factor) * value;
        // A term that is 0 is exact; others lose what is below the normal numbers.
        let sum = |old: f64, new: f64, roundings: f64| {
            let zero = old == 0.0 && new == 0.0;
            let lost = if zero { 0.0 } else { 3.0 * below };
            (old + new, roundings * U * (old.abs() + new.abs()) + lost)
        };
        let (mean, mean_off) = sum(term(self.beta1, first), term(self.rest1, gradient), 5.0);
        let squared = term(self.rest2, gradient * gradient);
        let (squares, squares_off) = sum(term(self.beta2, second), squared, 8.0);
        let spread = squares.sqrt();
        // The root is 1 / inverseSqrt, off by 2 and 2.5 ulp.
        let spread_off = match squares_off < squares / 2.0 {
            true => squares_off / spread + 12.0 * U * spread,
            false => (squares + squares_off).sqrt(),
        };
        let divisor = term(self.root, spread) + f64::from(self.epsilon);
        let divisor_off = term(self.root, spread_off) + 4.0 * U * divisor;
        let ratio = mean / divisor;
        let ratio_off = (mean_off + ratio.abs() * divisor_off) / (divisor - divisor_off).max(below)
            + 6.0 * U * ratio.abs()
            + below;
        let (old, change) = (term(self.kept, weight), term(self.pace, ratio));
        let value = old - change;
        let off = term(self.pace, ratio_off).abs() + 3.0 * U * (old.abs() + change.abs());
        let zero = old == 0.0 && change == 0.0;
        let weight_off = if zero { 0.0 } else { off + storing(DType::F32, value) };
        [(value, weight_off), (mean, mean_off), (squares, squares_off)]
    }

    /// The same in f32, for the CPU device.
    pub(super) fn take(&self, gradient: f32, weight: &mut f32, moments: (&mut f32, &mut f32)) {
        let (first, second) = moments;
        *first = self.beta1 * *first + self.rest1 * gradient;
        *second = self.beta2 * *second + self.rest2 * (gradient * gradient);
        let divisor = second.sqrt() * self.root + self.epsilon;
        *weight = self.kept * *weight - self.pace * (*first / divisor);
    }
}

/// Variants without a copy of the weight in f16 and with one.
pub(super) fn variants() -> Vec<Variant> {
    vec![variant(false), variant(true)]
}

/// The variant with a copy or without.
pub(super) fn variant(copy: bool) -> Variant {
    let (output, constants): (_, &[_]) =
        if copy { (DType::F16, &[("COPY", 1)]) } else { (DType::F32, &[("COPY", 0)]) };
    Variant { constants, ..Variant::typed(DType::F32, output) }
}

/// What is bound in a copy's place: the copy, or four words that the shader leaves alone.
pub(super) fn copy_or_unused(device: &Device, copy: Option<&Tensor>) -> Result<Tensor> {
    match copy {
        Some(copy) => Ok(copy.clone()),
        None => device.allocate(DType::F32, &[4], "no copy of a weight"),
    }
}

/// The settings of a case, by its number: those of practice, a late step, and ones that show each number's part.
pub(super) fn settings(number: usize) -> (AdamW, u64) {
    let usual = AdamW { rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, decay: 0.01 };
    [
        (usual, 1),
        (usual, 100_000),
        (AdamW { rate: 0.1, beta1: 0.5, beta2: 0.75, epsilon: 0.25, decay: 2.0 }, 2),
        (AdamW { beta1: 0.0, decay: 0.0, ..usual }, 3),
    ][number]
}

/// What [`clip`](super::clip) leaves, for a case: a factor, and whether the gradient is finite.
pub(super) fn state(factor: f32, finite: bool) -> HostTensor {
    let state = if finite { [3.0, factor, 1.0, 0.0] } else { [f32::NAN, 0.0, 0.0, 0.0] };
    HostTensor::from_f32(DType::F32, &[4], &state)
}
