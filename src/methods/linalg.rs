//! Linear algebra in f64 on the processor, by faer. Devices have no f64, and what is made of second moments in f32 is worse:
//! SliceGPT's perplexity of Llama 2 7B at 30 % goes from 8.64 to 10.41 (arXiv 2401.15024, tables 4 and 5).

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::{Mat, MatRef, Par};

use crate::error::{Error, Result};

/// Pieces of work that run side by side. Sums depend on where they are split, so it is a number of its own and not the
/// machine's processors.
const PIECES: usize = 4;

/// The eigenvectors of a symmetric matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Eigen {
    /// The eigenvalues, the largest first.
    pub values: Vec<f64>,
    /// Of each a vector of length 1, one after the other. Of a vector and its negative it is the one whose largest value (by
    /// magnitude, the first of several) is positive.
    pub vectors: Vec<f64>,
}

/// The eigenvectors of a symmetric matrix of (size, size), of which the lower half is read. An error, with `what` it is of, if
/// its values are not finite.
pub fn eigen(matrix: &[f64], size: usize, what: &str) -> Result<Eigen> {
    assert_eq!(matrix.len(), size * size, "a matrix has as many values as its shape says");
    let wrong = |found: String| Error::NotFinite { what: what.into(), found };
    if let Some(value) = matrix.iter().find(|value| !value.is_finite()) {
        return Err(wrong(value.to_string()));
    }
    let par = Par::rayon(PIECES);
    let (mut vectors, mut values) = (Mat::<f64>::zeros(size, size), Diag::<f64>::zeros(size));
    let scratch =
        self_adjoint_evd_scratch::<f64>(size, ComputeEigenvectors::Yes, par, Default::default());
    let matrix = MatRef::from_row_major_slice(matrix, size, size);
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let (to_values, to_vectors) = (values.as_mut(), Some(vectors.as_mut()));
    self_adjoint_evd(matrix, to_values, to_vectors, par, stack, Default::default())
        .map_err(|error| wrong(format!("eigenvectors that are not found ({error:?})")))?;
    let mut eigen = Eigen { values: vec![], vectors: Vec::with_capacity(size * size) };
    // They come in ascending order.
    for index in (0..size).rev() {
        let column = vectors.col(index);
        let mut largest = 0.0f64;
        for row in 0..size {
            if column[row].abs() > largest.abs() {
                largest = column[row];
            }
        }
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        eigen.values.push(values[index]);
        eigen.vectors.extend((0..size).map(|row| sign * column[row]));
    }
    Ok(eigen)
}
