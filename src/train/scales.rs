//! Scale tuning: the codes of a quantized matrix stay, the scales and offsets of its groups are learned (DWQ, as MLX has it; LSQ,
//! Esser et al. 2020, arXiv 1902.08153, without its gradient of the codes). The file keeps its size and its speed.

use super::dense::fits;
use super::parameter::{Learned, Parameter};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::families::TensorSpec;
use crate::kernels::matrix::Matrix;
use crate::kernels::quantize::scale_grad::scale_grad;
use crate::kernels::quantize::store_scales::{scales, store_scales};
use crate::tensor::{DType, Packed};

/// A quantized matrix whose scales are learned.
#[derive(Debug)]
pub struct Scales {
    tensor: String,
    matrix: Matrix,
    /// Scales and, of a type that has them, offsets, f32 (rows, groups).
    learned: Vec<Learned>,
}

impl Scales {
    /// Of the tensor `name`, as it is packed, and as the model has it on the device.
    pub fn new(device: &Device, name: &str, packed: &Packed, matrix: Matrix) -> Result<Self> {
        fits(device, name, packed.rows, packed.columns)?;
        let (scales, offsets) = scales(packed)?;
        let groups = scales.len() / packed.rows.max(1);
        let upload = |what: &str, values: Vec<f32>| {
            let host = HostTensor::from_f32(DType::F32, &[packed.rows, groups], &values);
            Ok::<_, Error>(Learned {
                name: format!("{name}.{what}"),
                values: device.upload(&host, name)?,
                copy: None,
                decays: false,
                bounds: None,
            })
        };
        let mut learned = vec![upload("scales", scales)?];
        if let Some(offsets) = offsets {
            learned.push(upload("offsets", offsets)?);
        }
        Ok(Self { tensor: name.into(), matrix, learned })
    }
}

impl Parameter for Scales {
    fn tensor(&self) -> &str {
        &self.tensor
    }

    fn learned(&self) -> &[Learned] {
        &self.learned
    }

    fn gradients(&self, device: &Device, of_tensor: Tensor) -> Result<Vec<Tensor>> {
        let (scales, offsets) = scale_grad(device, &of_tensor, &self.matrix)?;
        Ok([Some(scales), offsets].into_iter().flatten().collect())
    }

    fn update(&self, device: &Device) -> Result<Option<Matrix>> {
        let offsets = self.learned.get(1).map(|learned| &learned.values);
        store_scales(device, &self.learned[0].values, offsets, &self.matrix)?;
        Ok(None)
    }

    fn packed(&self, device: &Device, _: &TensorSpec) -> Result<Packed> {
        self.matrix.download(device)
    }
}
