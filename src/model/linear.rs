//! The one call site of every linear layer: here statistics will be tapped, adapters added, rotations applied,
//! activations quantized and the product's engine chosen.

use super::checkpoint::Weights;
use super::names::{Role, TensorSpec};
use crate::device::{Device, Matrix, Tensor};
use crate::error::Result;
use crate::kernels::matmul;
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

/// What a forward pass needs besides weights and activations.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Where it runs.
    pub device: &'a Device,
    /// The type of activations between kernels. The residual stream is f32 always.
    pub activation: DType,
}

impl Linear {
    /// Loads the layer `module` with the bias it may have.
    pub fn load(device: &Device, weights: &dyn Weights, module: &str) -> Result<Self> {
        let weight = Matrix::upload(device, &load(weights, &format!("{module}.weight"))?, module)?;
        let bias = format!("{module}.bias");
        let bias = match weights
            .specs()
            .iter()
            .find(|spec| spec.role == Role::Bias && spec.name == bias)
        {
            Some(spec) => Some(vector(device, weights, spec)?),
            None => None,
        };
        Ok(Self {
            name: module.to_string(),
            weight,
            bias,
        })
    }

    /// x (tokens, input features) to (tokens, output features) of type `output`.
    pub fn apply(&self, pass: &Pass<'_>, x: &Tensor, output: DType) -> Result<Tensor> {
        let tokens = x.len() / self.weight.columns();
        self.apply_rows(pass, x, 0..tokens, output)
    }

    /// The same for some of the tokens only.
    pub fn apply_rows(
        &self,
        pass: &Pass<'_>,
        x: &Tensor,
        tokens: std::ops::Range<usize>,
        output: DType,
    ) -> Result<Tensor> {
        matmul::linear_rows(
            pass.device,
            x,
            tokens,
            &self.weight,
            self.bias.as_ref(),
            output,
        )
    }
}

/// A tensor that the name table promises.
pub(super) fn load(weights: &dyn Weights, name: &str) -> Result<crate::tensor::Packed> {
    let spec = weights.specs().iter().find(|spec| spec.name == name);
    weights.load(spec.expect("the name table lists every tensor that a block loads"))
}

/// A vector in f32.
pub(super) fn vector(device: &Device, weights: &dyn Weights, spec: &TensorSpec) -> Result<Tensor> {
    let values = weights.load(spec)?.to_f32();
    device.upload(
        &crate::device::HostTensor::from_f32(DType::F32, &[values.len()], &values),
        &spec.name,
    )
}
