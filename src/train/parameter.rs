//! What is learned in the place of a tensor.

use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::families::TensorSpec;
use crate::kernels::matrix::Matrix;
use crate::tensor::Packed;

/// Numbers that an optimizer changes, on the device.
#[derive(Clone, Debug)]
pub struct Learned {
    /// Its name in checkpoints of a training.
    pub name: String,
    /// f32.
    pub values: Tensor,
    /// f16 of as many elements, that hold the same numbers rounded after each step.
    pub copy: Option<Tensor>,
    /// Whether weight decay pulls it towards 0: matrices, not norms, biases and scales.
    pub decays: bool,
    /// The least and the largest value that steps by sign lead to; `None`: any.
    pub bounds: Option<(f32, f32)>,
}

/// What is learned in the place of a tensor of the model.
pub trait Parameter: std::fmt::Debug {
    /// The name of the tensor whose gradient it takes.
    fn tensor(&self) -> &str;

    /// What is learned. The same tensors, and as many, at every call.
    fn learned(&self) -> &[Learned];

    /// Numbers that are learned.
    fn count(&self) -> u64 {
        self.learned().iter().map(|learned| learned.values.len() as u64).sum()
    }

    /// The gradients of what is learned, in its order, from that of the tensor, f32 of its shape, which is nobody else's.
    fn gradients(&self, device: &Device, of_tensor: Tensor) -> Result<Vec<Tensor>>;

    /// Puts what was learned where the model computes with it. Returns what the model is to have in the tensor's place from now
    /// on; `None` if it has that already.
    fn update(&self, device: &Device) -> Result<Option<Matrix>>;

    /// The tensor as it is saved.
    fn packed(&self, device: &Device, spec: &TensorSpec) -> Result<Packed>;
}
