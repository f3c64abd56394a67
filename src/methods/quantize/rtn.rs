//! Round to nearest: each weight goes to the nearest point of its group's grid. Needs the weight only.

use super::fit::{Fitting, How};
use super::{Grid, Scheme, levels};
use crate::device::{Device, HostTensor};
use crate::error::{Error, Result};
use crate::kernels::matrix::{Chunk, Layout, Matrix, rows_per_chunk};
use crate::kernels::quantize::{absmax::absmax, minmax::minmax, nearest::nearest, round::round};
use crate::tensor::{DType, Packed, Scale, WeightFormat};

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
    if format.ty.super_block().is_some() {
        // No rule finds their integers: they are looked for.
        let fitting = Fitting::new(scheme, How::Search)
            .map_err(|bad| wrong(bad.expected, format!("{} {}", bad.field, bad.found)))?;
        return fitting.round(weight, None, name);
    }
    let (rows, columns) = (weight.rows, weight.columns);
    // A call of `quantize/round` costs about 20 operations a weight, one of `quantize/nearest` 12 a level.
    let affine = format.ty.is_affine();
    let cost = if affine { 20.0 } else { 12.0 * f64::from(format.ty.codes()) };
    let short = (device.call_limit().operations / (cost * columns as f64)) as usize;
    // Two levels of scales need the whole tensor's largest magnitude before any row's.
    let whole =
        if format.ty.scale == Scale::TwoLevel { levels::largest(&weight.to_f32()) } else { 0.0 };
    let step = rows_per_chunk(device, columns, rows).min(short.max(1));
    let mut chunks = Vec::new();
    for start in (0..rows).step_by(step) {
        let count = step.min(rows - start);
        let dense = HostTensor::from_f32(
            DType::F32,
            &[count, columns],
            &weight.slice_rows(start, start + count).to_f32(),
        );
        if let Some(place) = dense.to_f32().iter().position(|value| !value.is_finite()) {
            let (row, column) = (start + place / columns, place % columns);
            return Err(wrong(
                "finite weights".into(),
                format!("{} at row {row}, column {column}", weight.value(row, column)),
            ));
        }
        chunks.push(if affine {
            quantize_rows(device, &dense, start, scheme, format, name)?
        } else {
            quantize_levels(device, &dense, start, whole, format, name)?
        });
    }
    let packed = Matrix::from_chunks(format, columns, chunks).download(device)?;
    match packed.first_non_finite() {
        None => Ok(packed),
        Some((row, column)) => Err(wrong(
            "values whose scales f16 holds".into(),
            format!("{} at row {row}, column {column}", weight.value(row, column)),
        )),
    }
}

fn quantize_levels(
    device: &Device,
    dense: &HostTensor,
    start: usize,
    whole: f32,
    format: WeightFormat,
    name: &str,
) -> Result<Chunk> {
    let (rows, columns) = (dense.shape[0], dense.shape[1]);
    let words = levels::scales(&dense.to_f32(), columns, format, whole);
    let shape = [rows, format.scale_words_per_row(columns)];
    let scales = device.upload(&HostTensor::from_u32(&shape, &words), name)?;
    let weight = device.upload(dense, name)?;
    let codes = nearest(device, &weight, &scales, format)?;
    Ok(Chunk::new(start, rows, codes, scales))
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
        Grid::AbsmaxSymmetric => {
            absmax(device, &weight, group_columns, scale_words, false, 1.0 / (half_range - 1.0))?
        }
        Grid::SignedMax => {
            absmax(device, &weight, group_columns, scale_words, true, -1.0 / half_range)?
        }
        Grid::ZeroPoint => minmax(device, &weight, group_columns, scheme.bits, false)?,
        _ => minmax(device, &weight, group_columns, scheme.bits, true)?,
    };
    let codes = round(device, &weight, &scales, format)?;
    Ok(Chunk::new(start, rows, codes, scales))
}
