//! Learned masks: the weights of a matrix stay as they are, and a score of each is learned; the model computes with those whose
//! scores are highest (edge-popup, Ramanujan et al. 2020, arXiv 1911.13299; over N of M, MaskLLM, Fang et al. 2024, arXiv
//! 2409.17481, whose sampling this does without).

use super::dense::{fits, matrix, whole_blocks};
use super::parameter::{Learned, Parameter};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::Result;
use crate::families::TensorSpec;
use crate::kernels::mask::keep_groups::keep_groups;
use crate::kernels::mask::keep_runs::keep_runs;
use crate::kernels::mask::score_grad::score_grad;
use crate::kernels::matrix::Matrix;
use crate::methods::prune::sparse::{Pattern, count, with_zeros, zero_code};
use crate::model::stored;
use crate::tensor::{BLOCK, DType, Packed, WeightFormat};

/// A matrix of which it is learned what stays.
#[derive(Debug)]
pub struct Masked {
    tensor: String,
    /// f32 (rows, columns); it does not change.
    weight: Tensor,
    /// The scores, f32 (rows, columns).
    learned: [Learned; 1],
    pattern: Pattern,
    ratio: f64,
    /// The type that the model computes with.
    dtype: DType,
    /// The format that it is saved in, where that is not the codes that it came with.
    saved: WeightFormat,
    /// The codes that it came with, where they have one of 0.
    codes: Option<Packed>,
}

/// The format of a matrix in this format once some of its weights are 0: f16 where it has no code of 0.
pub fn format_with_zeros(format: WeightFormat) -> WeightFormat {
    match zero_code(format) {
        Some(_) => format,
        None => WeightFormat::f16(),
    }
}

impl Masked {
    /// Of the tensor `name`, of which by `pattern` the share `ratio` goes (N:M has its own), computed with in `dtype`.
    ///
    /// Scores begin at the weights' magnitudes over the root of their mean square, so that a rate does the same in every
    /// matrix. Columns are a multiple of M.
    pub fn new(
        device: &Device,
        name: &str,
        packed: Packed,
        (pattern, ratio): (Pattern, f64),
        dtype: DType,
    ) -> Result<Self> {
        let (rows, columns) = (packed.rows, packed.columns);
        fits(device, name, rows, columns)?;
        let values = packed.to_f32();
        let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        let root = (squares / values.len().max(1) as f64).sqrt();
        let unit = if root > 0.0 { (1.0 / root) as f32 } else { 1.0 };
        let scores: Vec<f32> = values.iter().map(|value| value.abs() * unit).collect();
        let upload = |values: &[f32]| {
            device.upload(&HostTensor::from_f32(DType::F32, &[rows, columns], values), name)
        };
        let learned = Learned {
            name: format!("{name}.scores"),
            values: upload(&scores)?,
            copy: None,
            decays: false,
            bounds: None,
        };
        let saved = format_with_zeros(packed.format);
        let codes = packed.format.ty.has_scales() && saved == packed.format;
        Ok(Self {
            tensor: name.into(),
            weight: upload(&values)?,
            learned: [learned],
            pattern,
            ratio,
            dtype,
            saved,
            codes: codes.then_some(packed),
        })
    }

    /// The weights that stay, and 0 elsewhere, (rows, columns).
    fn kept(&self, device: &Device, output: DType) -> Result<Tensor> {
        let tensors = (&self.learned[0].values, &self.weight);
        let run = match self.pattern {
            Pattern::Groups { keep, of } => {
                return keep_groups(device, tensors, (keep, of), output);
            }
            Pattern::Row => self.weight.shape()[1],
            Pattern::Tensor => self.weight.len(),
        };
        keep_runs(device, tensors, run, (run - count(run, self.ratio)).max(1), output)
    }

    /// What the model computes with.
    pub fn matrix(&self, device: &Device) -> Result<Matrix> {
        let (rows, columns) = (self.weight.shape()[0], self.weight.shape()[1]);
        match columns.is_multiple_of(BLOCK) {
            true => matrix(device, &self.kept(device, self.dtype)?, columns),
            false => {
                whole_blocks(device, &self.kept(device, DType::F32)?, (rows, columns), self.dtype)
            }
        }
    }
}

impl Parameter for Masked {
    fn tensor(&self) -> &str {
        &self.tensor
    }

    fn learned(&self) -> &[Learned] {
        &self.learned
    }

    fn gradients(&self, device: &Device, of_tensor: Tensor) -> Result<Vec<Tensor>> {
        score_grad(device, &self.weight, &of_tensor)?;
        Ok(vec![of_tensor])
    }

    fn update(&self, device: &Device) -> Result<Option<Matrix>> {
        Ok(Some(self.matrix(device)?))
    }

    fn packed(&self, device: &Device, spec: &TensorSpec) -> Result<Packed> {
        let values = device.read(&self.kept(device, DType::F32)?)?.to_f32();
        match self.codes.as_ref().zip(zero_code(self.saved)) {
            Some((codes, zero)) => {
                // What was 0 before has that code already.
                let kept: Vec<bool> = values.iter().map(|value| *value != 0.0).collect();
                Ok(with_zeros(codes, &kept, zero))
            }
            None => stored(&values, self.saved, spec),
        }
    }
}
