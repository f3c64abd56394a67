//! Learned rounding (AutoRound, Cheng et al. 2023, arXiv 2309.05516): the weights stay, and it is learned whether each is rounded up
//! or down, by a share v of a step that is added to it, and how much of its group's range the grid spans, by factors of the
//! highest and of the lowest value. As learned there: by the signs of gradients, v from -1/2 to 1/2, the factors from 1/2 to 1.

use super::dense::fits;
use super::parameter::{Learned, Parameter};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::families::TensorSpec;
use crate::kernels::matrix::{Chunk, Matrix};
use crate::kernels::quantize::clip_range::clip_range;
use crate::kernels::quantize::round::round;
use crate::kernels::quantize::rounding_grad::rounding_grad;
use crate::kernels::quantize::scale_grad::has_real_scales;
use crate::kernels::quantize::shift::shift;
use crate::kernels::quantize::store_scales::store_scales;
use crate::tensor::{DType, Packed, Scale, WeightFormat, WeightType};

/// A matrix of which it is learned how it is rounded.
#[derive(Debug)]
pub struct Rounding {
    tensor: String,
    format: WeightFormat,
    /// f32 (rows, columns); it does not change.
    weight: Tensor,
    /// The grids of the whole ranges: scales and offsets or zero points, f32 (rows, groups, 2).
    base: Tensor,
    /// The scale words that the model computes with.
    words: Tensor,
    /// The shares of steps, f32 (rows, columns), and the factors, f32 (rows, groups, 2).
    learned: [Learned; 2],
}

/// Whether rounding to a type can be learned: its codes are integers and its scales real numbers.
pub fn can_be_learned(ty: &WeightType) -> bool {
    ty.is_affine() && !ty.is_sparse() && has_real_scales(ty)
}

impl Rounding {
    /// Of the tensor `name`: its numbers, f32 (rows, columns), and the same rounded to nearest in a format whose rounding
    /// [`can_be_learned`], which is what it begins with.
    pub fn new(device: &Device, name: &str, values: &[f32], packed: &Packed) -> Result<Self> {
        let (rows, columns, format) = (packed.rows, packed.columns, packed.format);
        fits(device, name, rows, columns)?;
        if !can_be_learned(format.ty) {
            return Err(Error::Tensor {
                path: "training".into(),
                tensor: name.into(),
                expected: "a format of integer codes with scales, to learn rounding".into(),
                found: format.label(),
            });
        }
        let groups = format.groups_per_row(columns);
        let places = (0..rows).flat_map(|row| (0..groups).map(move |group| (row, group)));
        let base: Vec<f32> = places
            .map(|(row, group)| packed.grid(row, group))
            .flat_map(|(scale, second)| [scale, second])
            .collect();
        let upload = |shape: &[usize], values: &[f32]| {
            device.upload(&HostTensor::from_f32(DType::F32, shape, values), name)
        };
        let learned = |what: &str, values, (low, high)| Learned {
            name: format!("{name}.{what}"),
            values,
            copy: None,
            decays: false,
            bounds: Some((low, high)),
        };
        let shares = upload(&[rows, columns], &vec![0.0; rows * columns])?;
        let clips = upload(&[rows, groups, 2], &vec![1.0; 2 * rows * groups])?;
        let words = [rows, packed.scales.len() / rows];
        Ok(Self {
            tensor: name.into(),
            format,
            weight: upload(&[rows, columns], values)?,
            base: upload(&[rows, groups, 2], &base)?,
            words: device.upload_words(DType::U32, &words, &packed.scales, name)?,
            learned: [learned("shares", shares, (-0.5, 0.5)), learned("clips", clips, (0.5, 1.0))],
        })
    }

    /// Scales and offsets as they are clipped now.
    fn grid(&self, device: &Device) -> Result<(Tensor, Option<Tensor>)> {
        let last = (1 << self.format.ty.bits) - 1;
        let by_offset = self.format.ty.scale == Scale::Offset;
        clip_range(device, &self.learned[1].values, &self.base, last, by_offset)
    }

    /// What the model computes with.
    pub fn matrix(&self, device: &Device) -> Result<Matrix> {
        let (rows, columns) = (self.weight.shape()[0], self.weight.shape()[1]);
        let (scales, offsets) = self.grid(device)?;
        let unset = device.allocate(DType::U32, &[1], "codes to come")?;
        let grid = Chunk::new(0, rows, unset, self.words.clone());
        let grid = Matrix::from_chunks(self.format, columns, vec![grid]);
        store_scales(device, &scales, offsets.as_ref(), &grid)?;
        let group = self.format.group_columns(columns);
        let moved = shift(device, &self.weight, &self.learned[0].values, &scales, group)?;
        let codes = round(device, &moved, &self.words, self.format)?;
        let chunk = Chunk::new(0, rows, codes, self.words.clone());
        Ok(Matrix::from_chunks(self.format, columns, vec![chunk]))
    }
}

impl Parameter for Rounding {
    fn tensor(&self) -> &str {
        &self.tensor
    }

    fn learned(&self) -> &[Learned] {
        &self.learned
    }

    fn gradients(&self, device: &Device, of_tensor: Tensor) -> Result<Vec<Tensor>> {
        let (scales, offsets) = self.grid(device)?;
        let clips = rounding_grad(
            device,
            self.format,
            (&self.weight, &self.learned[0].values),
            &self.base,
            (&scales, offsets.as_ref()),
            &of_tensor,
        )?;
        Ok(vec![of_tensor, clips])
    }

    fn update(&self, device: &Device) -> Result<Option<Matrix>> {
        Ok(Some(self.matrix(device)?))
    }

    fn packed(&self, device: &Device, _: &TensorSpec) -> Result<Packed> {
        self.matrix(device)?.download(device)
    }
}
