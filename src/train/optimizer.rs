//! AdamW with gradients clipped by their common norm, all on the device.

use super::parameter::Learned;
use crate::device::{Device, HostTensor, Reading, Tensor};
use crate::error::Result;
use crate::kernels::copy::cast::cast_into;
use crate::kernels::optimize;
use crate::kernels::optimize::adamw::adamw;
use crate::kernels::optimize::adamw_8bit::{Moments8, adamw_8bit};
use crate::kernels::optimize::clip::clip;
use crate::kernels::optimize::sign::sign;
use crate::kernels::optimize::squares::{parts, squares};
use crate::tensor::DType;

/// The numbers of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) that stay the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// What is left of the mean of gradients at each step.
    pub beta1: f64,
    /// What is left of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of that mean.
    pub epsilon: f64,
    /// How much of a matrix goes at each step, times the rate.
    pub decay: f64,
    /// The norm that all gradients together have at most.
    pub max_norm: Option<f64>,
    /// How the means are kept.
    pub state: StateBits,
    /// Whether each number moves by the rate against the sign of its gradient instead, without means and decay (signSGD,
    /// Bernstein et al. 2018, arXiv 1802.04434).
    pub by_sign: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            decay: 0.0,
            max_norm: Some(1.0),
            state: StateBits::ThirtyTwo,
            by_sign: false,
        }
    }
}

/// How an optimizer keeps its means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StateBits {
    /// f32.
    #[default]
    ThirtyTwo,
    /// 8-bit codes in blocks of 256 (Dettmers et al. 2022, arXiv 2110.02861); of vectors and small matrices f32.
    Eight,
}

/// From so many elements on means are kept in 8 bits, as bitsandbytes does.
const LEAST_8BIT: usize = 4096;

/// An optimizer's means of one tensor.
#[derive(Debug)]
enum Moments {
    Wide([Tensor; 2]),
    Narrow(Moments8),
}

impl Moments {
    fn zeros(device: &Device, len: usize, bits: StateBits) -> Result<Self> {
        if bits == StateBits::Eight && len >= LEAST_8BIT {
            return Moments8::zeros(device, len).map(Moments::Narrow);
        }
        let zeros = HostTensor::zeros(DType::F32, &[len]);
        let upload = || device.upload(&zeros, "means of gradients");
        Ok(Moments::Wide([upload()?, upload()?]))
    }

    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Moments::Wide(both) => both.iter().collect(),
            Moments::Narrow(both) => vec![&both.codes, &both.absmax],
        }
    }
}

/// The optimizer's state of all that is learned.
#[derive(Debug)]
pub struct Optimizer {
    settings: AdamW,
    moments: Vec<Moments>,
    steps: u64,
    lost: u64,
    /// Sums of squares of parts of the gradients.
    partials: Tensor,
    /// The gradients' norm, the factor that clips it, whether it is finite.
    state: Tensor,
}

impl Optimizer {
    /// A new one for these.
    pub fn new(device: &Device, settings: AdamW, learned: &[&Learned]) -> Result<Self> {
        let with_means: &[&Learned] = if settings.by_sign { &[] } else { learned };
        let moments =
            with_means.iter().map(|l| Moments::zeros(device, l.values.len(), settings.state));
        let count: usize = learned.iter().map(|l| parts(l.values.len())).sum();
        Ok(Self {
            settings,
            moments: moments.collect::<Result<_>>()?,
            steps: 0,
            lost: 0,
            partials: device.allocate(DType::F32, &[count.max(1)], "squares of gradients")?,
            state: device.allocate(DType::F32, &[4], "norm of gradients")?,
        })
    }

    /// Steps taken, those among them that changed nothing.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Says that one of the steps was not finite and changed nothing: means are corrected by the number of the others.
    pub fn lost(&mut self) {
        self.lost += 1;
    }

    /// A step with these gradients of what is learned, which are those of 1 / `scale` of what is to be small. Returns the
    /// gradients' norm, factor and whether that is finite on their way back, f32 (4): where it is not, nothing has changed.
    pub fn step(
        &mut self,
        device: &Device,
        learned: &[&Learned],
        gradients: &[Option<Tensor>],
        rate: f64,
        scale: f32,
    ) -> Result<Reading> {
        let mut first = 0;
        for (learned, gradient) in learned.iter().zip(gradients) {
            first += match gradient {
                Some(gradient) => squares(device, gradient, &self.partials, first)?,
                None => zero(device, &self.partials, first, parts(learned.values.len()))?,
            };
        }
        let most = self.settings.max_norm.map_or(f32::INFINITY, |norm| norm as f32);
        clip(device, &self.partials, most, scale, &self.state)?;
        self.steps += 1;
        let number = (self.steps - self.lost).max(1);
        if self.settings.by_sign {
            for (learned, gradient) in learned.iter().zip(gradients) {
                let Some(gradient) = gradient else { continue };
                let bounds = learned.bounds.unwrap_or((f32::MIN, f32::MAX));
                sign(device, rate as f32, bounds, gradient, &self.state, &learned.values)?;
                if let Some(copy) = &learned.copy {
                    cast_into(device, &learned.values, copy)?;
                }
            }
            return device.read_later(&self.state);
        }
        for ((learned, gradient), moments) in learned.iter().zip(gradients).zip(&self.moments) {
            let Some(gradient) = gradient else { continue };
            let settings = optimize::AdamW {
                rate: rate as f32,
                beta1: self.settings.beta1 as f32,
                beta2: self.settings.beta2 as f32,
                epsilon: self.settings.epsilon as f32,
                decay: if learned.decays { self.settings.decay as f32 } else { 0.0 },
            };
            let copy = learned.copy.as_ref();
            match moments {
                Moments::Wide([m, v]) => {
                    let moments = (m, v);
                    adamw(
                        device,
                        &settings,
                        number,
                        gradient,
                        &self.state,
                        &learned.values,
                        moments,
                        copy,
                    )?;
                }
                Moments::Narrow(moments) => {
                    adamw_8bit(
                        device,
                        &settings,
                        number,
                        gradient,
                        &self.state,
                        &learned.values,
                        moments,
                        copy,
                    )?;
                }
            }
        }
        device.read_later(&self.state)
    }

    /// What has to be saved to go on: the steps taken, and tensors in order.
    pub fn state(&self) -> (u64, Vec<&Tensor>) {
        (self.steps, self.moments.iter().flat_map(Moments::tensors).collect())
    }

    /// Goes on after so many steps, so many of them lost; the tensors of [`Optimizer::state`] have been put back.
    pub fn resume(&mut self, steps: u64, lost: u64) {
        (self.steps, self.lost) = (steps, lost);
    }
}

/// Writes zeros in the place of the squares of a gradient that there is none of.
fn zero(device: &Device, partials: &Tensor, first: usize, count: usize) -> Result<usize> {
    let none = device.upload(&HostTensor::zeros(DType::F32, &[1]), "no gradient")?;
    for place in first..first + count {
        squares(device, &none, partials, place)?;
    }
    Ok(count)
}
