//! Round to nearest: each weight goes to the nearest point of its group's grid. Needs the weight only.

use super::Scheme;
use crate::device::{Chunk, Device, HostTensor, Layout, Matrix, rows_per_chunk};
use crate::error::{Error, Result};
use crate::kernels::quantize::{absmax::absmax, minmax::minmax, round::round};
use crate::recipe::Grid;
use crate::tensor::{DType, Packed, WeightFormat};

/// Quantizes a matrix. `name` is the tensor's, for errors.
pub fn rtn(device: &Device, weight: &Packed, scheme: Scheme, name: &str) -> Result<Packed> {
    let wrong = |expected: String, found: String| Error::Tensor {
        path: "quantize".into(),
        tensor: name.to_string(),
        expected,
        found,
    };
    let format = scheme
        .format()
        .map_err(|bad| wrong(bad.expected, format!("{} {}", bad.field, bad.found)))?;
    let (rows, columns) = (weight.rows, weight.columns);
    // A call of `quantize/round` costs about 20 operations a weight.
    let short = (device.call_limit().operations / (20.0 * columns as f64)) as usize;
    let step = rows_per_chunk(device, columns, rows).min(short.max(1));
    let mut chunks = Vec::new();
    for start in (0..rows).step_by(step) {
        let count = step.min(rows - start);
        let dense = HostTensor::from_f32(
            DType::F32,
            &[count, columns],
            &weight.slice_rows(start, start + count).to_f32(),
        );
        chunks.push(quantize_rows(device, &dense, start, scheme, format, name)?);
    }
    let packed = Matrix::from_chunks(format, columns, chunks).download(device)?;
    match packed.first_non_finite() {
        None => Ok(packed),
        Some((row, column)) => Err(wrong(
            "values whose scales f16 holds".into(),
            format!(
                "{} at row {row}, column {column}",
                weight.value(row, column)
            ),
        )),
    }
}

fn quantize_rows(
    device: &Device,
    dense: &HostTensor,
    start: usize,
    scheme: Scheme,
    format: WeightFormat,
    name: &str,
) -> Result<Chunk> {
    let (rows, columns) = (dense.shape[0], dense.shape[1]);
    let weight = device.upload(dense, name)?;
    let group_columns = format.group_columns(columns);
    let scale_words = Layout::new(format, columns).scale_words as usize;
    let half_range = (1u32 << (scheme.bits - 1)) as f32;
    let scales = match scheme.grid {
        Grid::AbsmaxSymmetric => absmax(
            device,
            &weight,
            group_columns,
            scale_words,
            false,
            1.0 / (half_range - 1.0),
        )?,
        Grid::SignedMax => absmax(
            device,
            &weight,
            group_columns,
            scale_words,
            true,
            -1.0 / half_range,
        )?,
        Grid::ZeroPoint => minmax(device, &weight, group_columns, scheme.bits, false)?,
        Grid::FloatMin => minmax(device, &weight, group_columns, scheme.bits, true)?,
    };
    let codes = round(device, &weight, &scales, format)?;
    Ok(Chunk {
        start,
        rows,
        codes,
        scales,
    })
}
