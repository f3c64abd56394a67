//! Quantization-aware training: numbers are learned that are rounded on their way into the model. Rounding has no slope, so that
//! of what it gives is taken for its own (the straight-through estimator, Bengio, Leonard and Courville 2013, arXiv 1308.3432).
//!
//! A group's codes are those of its numbers on the grid that it began with; what its codes stand for is learned apart, by the
//! scales. So w = s code(u / s0): the derivative by s is the code, that by u is taken for s / s0, which is near 1.

use super::dense::fits;
use super::parameter::{Learned, Parameter};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::Result;
use crate::families::TensorSpec;
use crate::kernels::matrix::{Chunk, Matrix};
use crate::kernels::quantize::nearest::nearest;
use crate::kernels::quantize::round::round;
use crate::kernels::quantize::scale_grad::{has_real_scales, scale_grad};
use crate::kernels::quantize::store_scales::{scales, store_scales};
use crate::tensor::{DType, Packed, WeightFormat};

/// A matrix that is learned in full and computed with in codes.
#[derive(Debug)]
pub struct Rounded {
    tensor: String,
    format: WeightFormat,
    /// The grid: scale words as they were at first.
    grid: Tensor,
    /// The scale words that the model computes with.
    scales: Tensor,
    /// The numbers, f32 (rows, columns), then scales and offsets, f32 (rows, groups).
    learned: Vec<Learned>,
}

impl Rounded {
    /// Of the tensor `name`: its numbers, f32 (rows, columns), and the same packed in the format that it is to have.
    pub fn new(device: &Device, name: &str, values: &[f32], packed: &Packed) -> Result<Self> {
        let (rows, columns) = (packed.rows, packed.columns);
        fits(device, name, rows, columns)?;
        let tensor = |what: &str, values: &[f32], decays| {
            let host = HostTensor::from_f32(DType::F32, &[rows, values.len() / rows], values);
            Ok::<_, crate::error::Error>(Learned {
                name: format!("{name}{what}"),
                values: device.upload(&host, name)?,
                copy: None,
                decays,
                bounds: None,
            })
        };
        let mut learned = vec![tensor("", values, true)?];
        if has_real_scales(packed.format.ty) {
            let (scales, offsets) = scales(packed)?;
            learned.push(tensor(".scales", &scales, false)?);
            if let Some(offsets) = offsets {
                learned.push(tensor(".offsets", &offsets, false)?);
            }
        }
        let words = || {
            let shape = [rows, packed.scales.len() / rows];
            device.upload_words(DType::U32, &shape, &packed.scales, name)
        };
        let (grid, scales) = (words()?, words()?);
        Ok(Self { tensor: name.into(), format: packed.format, grid, scales, learned })
    }

    /// What the model computes with: the numbers rounded.
    pub fn matrix(&self, device: &Device) -> Result<Matrix> {
        let values = &self.learned[0].values;
        let codes = match self.format.ty.is_affine() {
            true => round(device, values, &self.grid, self.format)?,
            false => nearest(device, values, &self.grid, self.format)?,
        };
        let (rows, columns) = (values.shape()[0], values.shape()[1]);
        let chunk = Chunk::new(0, rows, codes, self.scales.clone());
        let matrix = Matrix::from_chunks(self.format, columns, vec![chunk]);
        if let Some(scales) = self.learned.get(1) {
            let offsets = self.learned.get(2).map(|learned| &learned.values);
            store_scales(device, &scales.values, offsets, &matrix)?;
        }
        Ok(matrix)
    }
}

impl Parameter for Rounded {
    fn tensor(&self) -> &str {
        &self.tensor
    }

    fn learned(&self) -> &[Learned] {
        &self.learned
    }

    fn gradients(&self, device: &Device, of_tensor: Tensor) -> Result<Vec<Tensor>> {
        if self.learned.len() == 1 {
            return Ok(vec![of_tensor]);
        }
        let (scales, offsets) = scale_grad(device, &of_tensor, &self.matrix(device)?)?;
        Ok([Some(of_tensor), Some(scales), offsets].into_iter().flatten().collect())
    }

    fn update(&self, device: &Device) -> Result<Option<Matrix>> {
        Ok(Some(self.matrix(device)?))
    }

    fn packed(&self, device: &Device, _: &TensorSpec) -> Result<Packed> {
        self.matrix(device)?.download(device)
    }
}
