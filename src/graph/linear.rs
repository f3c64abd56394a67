//! Weights of a block on a device, and what a pass over them computes in.

use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::matmul::{Destination, Input, Norm, linear_rows};
use crate::kernels::matrix::Matrix;
use crate::tensor::DType;

/// A linear layer on a device.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The module's name in the checkpoint, without `.weight`.
    pub name: String,
    /// (output features, input features)
    pub weight: Matrix,
    /// (output features) f32
    pub bias: Option<Tensor>,
}

/// The weight of a root-mean-square norm on a device.
#[derive(Clone, Debug)]
pub struct RmsNormWeight {
    /// The tensor's name in the checkpoint.
    pub name: String,
    /// The gain of each normalized column, f32 (columns).
    pub gain: Tensor,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// The device and settings of a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Where it runs.
    pub device: &'a Device,
    /// The types it computes in.
    pub compute: Compute,
}

/// The types of a forward pass. The residual stream is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// The type of activations between kernels.
    pub activation: DType,
    /// Bytes of an activation in products of integers: 3 beside f32; 2, which lose less than f16 does; or 1.
    pub activation_bytes: u32,
}

impl Compute {
    /// Activations in f32.
    pub const F32: Compute = Compute { activation: DType::F32, activation_bytes: 3 };
    /// Activations in f16.
    pub const F16: Compute = Compute { activation: DType::F16, activation_bytes: 2 };

    /// With activations of this type.
    pub fn with(activation: DType) -> Self {
        match activation {
            DType::F16 => Self::F16,
            _ => Self { activation, ..Self::F32 },
        }
    }

    /// Its name in flags and reports.
    pub fn name(self) -> &'static str {
        if self.activation_bytes == 1 { "i8" } else { self.activation.name() }
    }
}

impl Pass<'_> {
    /// Activations of so many columns, for products.
    pub fn input(&self, x: Tensor, columns: usize) -> Input {
        Input::new(x, columns, self.compute.activation_bytes)
    }

    /// The residual stream, normalized on its way into products.
    pub fn normed(&self, x: &Tensor, norm: &RmsNormWeight) -> Input {
        let Compute { activation, activation_bytes } = self.compute;
        let (gain, epsilon) = (norm.gain.clone(), norm.epsilon);
        Input::normed(x.clone(), Norm { gain, epsilon }, activation, activation_bytes)
    }
}

impl Linear {
    /// x (tokens, input features) to (tokens, output features) in its destination.
    pub fn apply(
        &self,
        pass: &Pass<'_>,
        x: &Input,
        destination: Destination<'_>,
    ) -> Result<Tensor> {
        self.apply_rows(pass, x, 0..x.tokens(), destination)
    }

    /// The product of some of the tokens only.
    pub fn apply_rows(
        &self,
        pass: &Pass<'_>,
        x: &Input,
        tokens: std::ops::Range<usize>,
        destination: Destination<'_>,
    ) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        linear_rows(pass.device, x, tokens, &self.weight, bias, destination)
    }
}
