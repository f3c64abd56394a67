//! Tensors that are learned themselves: matrices, norms, biases, and the factors of adapters.

use super::parameter::{Learned, Parameter};
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::families::TensorSpec;
use crate::kernels::copy::cast::cast;
use crate::kernels::copy::pad::cut;
use crate::kernels::matrix::{Chunk, Matrix};
use crate::model::stored;
use crate::tensor::{BLOCK, DType, Packed, WeightFormat};

/// A matrix that is learned.
#[derive(Debug)]
pub struct Dense {
    learned: [Learned; 1],
    /// The type that the model computes with.
    dtype: DType,
    /// The format that it is saved in.
    saved: WeightFormat,
    shape: (usize, usize),
    /// What the model computes with, where that shares its memory with what is learned.
    matrix: Option<Matrix>,
    /// Numbers that are not zeros for good.
    count: u64,
}

impl Dense {
    /// A matrix of these values, f32 row by row, that the model computes with in `dtype` and that is saved in the format
    /// `saved`, one of plain numbers.
    pub fn new(
        device: &Device,
        name: &str,
        values: &[f32],
        (rows, columns): (usize, usize),
        dtype: DType,
        saved: WeightFormat,
    ) -> Result<Self> {
        fits(device, name, rows, columns)?;
        let host = HostTensor::from_f32(DType::F32, &[rows, columns], values);
        let values = device.upload(&host, name)?;
        // A matrix has rows of whole blocks.
        let whole = columns.is_multiple_of(BLOCK);
        let copy = match (dtype, whole) {
            (DType::F16, true) => Some(cast(device, &values, DType::F16)?),
            _ => None,
        };
        let shared = match whole {
            true => Some(matrix(device, copy.as_ref().unwrap_or(&values), columns)?),
            false => None,
        };
        let learned = Learned { name: name.into(), values, copy, decays: true, bounds: None };
        let (shape, count) = ((rows, columns), (rows * columns) as u64);
        Ok(Self { learned: [learned], dtype, saved, shape, matrix: shared, count })
    }

    /// The same, of which only so many numbers are learned: the others are zeros and stay zeros.
    pub fn of_count(self, count: usize) -> Self {
        Self { count: count as u64, ..self }
    }

    /// What the model computes with.
    pub fn matrix(&self, device: &Device) -> Result<Matrix> {
        if let Some(matrix) = &self.matrix {
            return Ok(matrix.clone());
        }
        whole_blocks(device, &self.learned[0].values, self.shape, self.dtype)
    }
}

impl Parameter for Dense {
    fn tensor(&self) -> &str {
        &self.learned[0].name
    }

    fn learned(&self) -> &[Learned] {
        &self.learned
    }

    fn count(&self) -> u64 {
        self.count
    }

    fn gradients(&self, _: &Device, of_tensor: Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![of_tensor])
    }

    fn update(&self, device: &Device) -> Result<Option<Matrix>> {
        match self.matrix {
            // The optimizer wrote there.
            Some(_) => Ok(None),
            None => Ok(Some(self.matrix(device)?)),
        }
    }

    fn packed(&self, device: &Device, spec: &TensorSpec) -> Result<Packed> {
        let values = device.read(&self.learned[0].values)?.to_f32();
        stored(&values, self.saved, spec)
    }
}

/// The weight of a norm, or a bias.
#[derive(Debug)]
pub struct Vector {
    learned: [Learned; 1],
    saved: WeightFormat,
}

impl Vector {
    /// A vector that is learned, f32 on the device, where the model has it too.
    pub fn new(name: &str, values: Tensor, saved: WeightFormat) -> Self {
        let learned =
            Learned { name: name.into(), values, copy: None, decays: false, bounds: None };
        Self { learned: [learned], saved }
    }
}

impl Parameter for Vector {
    fn tensor(&self) -> &str {
        &self.learned[0].name
    }

    fn learned(&self) -> &[Learned] {
        &self.learned
    }

    fn gradients(&self, _: &Device, of_tensor: Tensor) -> Result<Vec<Tensor>> {
        Ok(vec![of_tensor])
    }

    fn update(&self, _: &Device) -> Result<Option<Matrix>> {
        Ok(None)
    }

    fn packed(&self, device: &Device, spec: &TensorSpec) -> Result<Packed> {
        let values = device.read(&self.learned[0].values)?.to_f32();
        stored(&values, self.saved, spec)
    }
}

/// Refuses a matrix that one binding cannot hold: the optimizer changes a tensor as a whole.
pub(super) fn fits(device: &Device, name: &str, rows: usize, columns: usize) -> Result<()> {
    let bytes = 4 * (rows * columns) as u64;
    if bytes <= device.max_tensor_bytes() {
        return Ok(());
    }
    Err(Error::Tensor {
        path: "training".into(),
        tensor: name.into(),
        expected: format!(
            "at most {} bytes in f32, a binding of this device",
            device.max_tensor_bytes()
        ),
        found: format!("{bytes} bytes"),
    })
}

/// Plain numbers, f32 (rows, columns), in another type as a matrix, whose rows are of whole blocks.
pub(super) fn whole_blocks(
    device: &Device,
    values: &Tensor,
    (rows, columns): (usize, usize),
    dtype: DType,
) -> Result<Matrix> {
    let padded = columns.next_multiple_of(BLOCK);
    let wide = cut(device, values, columns, padded, &[rows, padded])?;
    matrix(device, &cast(device, &wide, dtype)?, columns)
}

/// Plain numbers, (rows, columns padded to whole blocks), as a matrix of so many columns.
pub(super) fn matrix(device: &Device, values: &Tensor, columns: usize) -> Result<Matrix> {
    let format = match values.dtype() {
        DType::F16 => WeightFormat::f16(),
        _ => WeightFormat::f32(),
    };
    let unused = device.allocate(DType::U32, &[1], "unused scales")?;
    let chunk = Chunk::new(0, values.shape()[0], values.words(), unused);
    Ok(Matrix::from_chunks(format, columns, vec![chunk]))
}
