//! Weights that were pruned to a pattern, stored without their zeros. Which are zero is the pruning's business: here every
//! weight that is not keeps its place, and scales are those of the kept values, as zeros move no symmetric grid.

use half::f16;

use super::Scheme;
use super::rtn::rtn;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Levels, Packed, Sparsity, WeightFormat};

/// A matrix in the format of a scheme, `None` for f16, with only the columns that `pattern` keeps. `name` is the tensor's, for
/// errors. A matrix that has more other than zero is one.
pub fn kept(
    device: &Device,
    weight: &Packed,
    scheme: Option<Scheme>,
    pattern: Sparsity,
    name: &str,
) -> Result<Packed> {
    let wrong = |expected: String, found: String| Error::Tensor {
        path: "quantize".into(),
        tensor: name.to_string(),
        expected,
        found,
    };
    let beyond = |(row, column): (usize, usize)| {
        let Sparsity { kept, of } = pattern;
        wrong(
            format!(
                "at most {kept} of every {of} columns other than 0 (prune with --pattern {} first)",
                pattern.label()
            ),
            format!("one more at row {row}, column {column}"),
        )
    };
    if let Some(place) = weight.first_beyond(pattern) {
        return Err(beyond(place));
    }
    let dense = match scheme {
        Some(scheme) => rtn(device, weight, scheme, name)?,
        None => half(weight).map_err(|(row, column)| {
            wrong(
                "values that f16 holds".into(),
                format!("{} at row {row}, column {column}", weight.value(row, column)),
            )
        })?,
    };
    dense.sparse(pattern).map_err(beyond)
}

/// The values rounded to f16, or the first place whose value is too large.
fn half(weight: &Packed) -> Result<Packed, (usize, usize)> {
    if weight.format.ty.levels == Levels::F16 {
        return Ok(weight.dense());
    }
    let bits = |value: f32| f16::from_f32(value).to_le_bytes();
    let bytes: Vec<u8> = weight.to_f32().into_iter().flat_map(bits).collect();
    let packed = Packed::from_16bit(WeightFormat::f16(), &bytes, weight.rows, weight.columns);
    packed.first_non_finite().map_or(Ok(packed), Err)
}
