//! Backward products: the gradients of a product's input, dX = dY * W, and of its weight, dW = dYᵗ * X.
//!
//! With transposed operands they are products like the forward one, and get its kernels, tuning and matrix units. What
//! transposing costs (a pass over the operands) is little beside many tokens; for few, and where a binding cannot hold the
//! weight whole, the direct kernels serve.

use super::{Destination, Input, input_grad, linear, weight_grad};
use crate::kernels::copy::pad::cut;
use crate::kernels::copy::transpose::transpose;
use crate::kernels::matrix::{Chunk, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::residual::add::add;
use crate::tensor::{BLOCK, WeightFormat};

/// From so many tokens on, transposing pays.
const MANY: usize = 64;

/// From so many rows on, as a vocabulary has, the forward kernels' sums in f32 are too long to be exact: the direct kernel
/// adds them up in parts.
const LONG: usize = 4096;

/// The gradient of the input of a product with a weight of (rows, columns), given that of its result, (tokens, rows):
/// (tokens, columns) in f32, added to `sum` if there is one. With gradients in f16, the weight is rounded to f16.
pub fn input(
    device: &Device,
    grad: &Tensor,
    weight: &Matrix,
    sum: Option<Tensor>,
) -> Result<Tensor> {
    let (rows, columns) = (weight.rows(), weight.columns());
    let tokens = grad.len() / rows;
    let long = rows >= LONG && grad.dtype() == DType::F32;
    let direct = tokens < MANY || long || !fits(device, columns, rows, grad.dtype());
    let chunk = match weight.chunks() {
        [chunk] if !direct => chunk,
        _ => {
            let new = input_grad::input_grad(device, grad, weight)?;
            let Some(sum) = sum else {
                return Ok(new);
            };
            add(device, &new, &sum)?;
            return Ok(sum);
        }
    };
    let parts = [&chunk.codes, &chunk.scales];
    let transposed = transpose(device, parts, weight.format(), (rows, columns), grad.dtype())?;
    let transposed = matrix(device, &transposed, rows)?;
    let grad = Input::new(grad.clone(), rows, 3);
    let destination = match &sum {
        Some(sum) => Destination::Add(sum),
        None => Destination::New(DType::F32),
    };
    linear(device, &grad, &transposed, None, destination)
}

/// Adds the gradient of a product's weight to `result`, f32 of (rows, columns), or writes it there: from the gradient of
/// the product's result, (tokens, rows), and its input, (tokens, columns), both of one type. `transposed` is the input
/// transposed, as a product of the same input left it there.
pub fn weight(
    device: &Device,
    grad: &Tensor,
    x: &Tensor,
    transposed: &mut Option<Tensor>,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let (rows, columns) = (result.shape()[0], result.shape()[1]);
    let tokens = grad.len() / rows;
    let dtype = grad.dtype();
    // Rows of activations are rows of a matrix where they are whole blocks.
    let blocks = rows.is_multiple_of(BLOCK) && columns.is_multiple_of(BLOCK);
    let fit = fits(device, rows.max(columns), tokens, dtype);
    if tokens < MANY || !blocks || !fit {
        return weight_grad::weight_grad(device, grad, x, result, accumulate);
    }
    let unused = device.allocate(DType::U32, &[1], "unused scales")?;
    let turn = |values: &Tensor, width: usize| {
        let words = values.words();
        transpose(device, [&words, &unused], plain(dtype), (tokens, width), dtype)
    };
    let x = match transposed.take().filter(|transposed| transposed.dtype() == dtype) {
        Some(x) => x,
        None => turn(x, columns)?,
    };
    let grad = turn(grad, rows)?;
    let stride = grad.shape()[1];
    *transposed = Some(x.clone());
    let x = matrix(device, &x, stride)?;
    let destination = if accumulate { Destination::Add(result) } else { Destination::Into(result) };
    linear(device, &Input::new(grad, stride, 3), &x, None, destination)?;
    Ok(())
}

fn plain(dtype: DType) -> WeightFormat {
    match dtype {
        DType::F16 => WeightFormat::f16(),
        _ => WeightFormat::f32(),
    }
}

/// Whether a transposed matrix of (rows, columns) fits a binding of a GPU. The processor has no use for one.
fn fits(device: &Device, rows: usize, columns: usize, dtype: DType) -> bool {
    let bytes = rows * columns.next_multiple_of(BLOCK) * dtype.size();
    device.runner().is_some() && bytes as u64 <= device.max_tensor_bytes()
}

/// A tensor of f32, (rows, columns), as a matrix, for a weight that is itself computed. Rows that are no whole blocks are
/// padded.
pub fn dense_matrix(device: &Device, values: &Tensor) -> Result<Matrix> {
    let (rows, columns) = (values.shape()[0], values.shape()[1]);
    if columns.is_multiple_of(BLOCK) {
        return matrix(device, values, columns);
    }
    let padded = columns.next_multiple_of(BLOCK);
    let wide = cut(device, values, columns, padded, &[rows, padded])?;
    matrix(device, &wide, columns)
}

/// Plain numbers, (rows, columns padded to whole blocks), as a matrix of so many columns.
fn matrix(device: &Device, values: &Tensor, columns: usize) -> Result<Matrix> {
    let rows = values.shape()[0];
    let unused = device.allocate(DType::U32, &[1], "unused scales")?;
    let chunk = Chunk::new(0, rows, values.words(), unused);
    Ok(Matrix::from_chunks(plain(values.dtype()), columns, vec![chunk]))
}
