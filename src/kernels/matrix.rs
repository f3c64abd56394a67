//! A packed weight matrix on a device, split by rows where a binding cannot hold it whole.

use std::sync::{Arc, Mutex, PoisonError};

use crate::device::{Device, Field, Tensor};
use crate::error::Result;
use crate::kernels::matmul::product::WeightForm;
use crate::tensor::{BLOCK, DType, Packed, Scale, WHOLE_ROW, WeightFormat};

/// A weight of shape (rows, columns): codes and scales as [`Packed`] lays them out.
#[derive(Clone, Debug)]
pub struct Matrix {
    format: WeightFormat,
    rows: usize,
    columns: usize,
    chunks: Vec<Chunk>,
}

/// Forms of a chunk's codes. Clones of the chunk share them.
type Forms = Arc<Mutex<Vec<(WeightForm, Tensor)>>>;

/// Consecutive rows of a matrix, in bindings of their own.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The first row.
    pub start: usize,
    /// How many rows.
    pub rows: usize,
    /// (rows, code_words) u32
    pub codes: Tensor,
    /// (rows, scale_words) u32, or one unused word for types without scales.
    pub scales: Tensor,
    /// The codes in the other forms that products have asked for.
    forms: Forms,
}

impl Chunk {
    /// Rows from `start` on.
    pub fn new(start: usize, rows: usize, codes: Tensor, scales: Tensor) -> Self {
        Self { start, rows, codes, scales, forms: Forms::default() }
    }

    /// The codes, of `columns` in a format, in a form that products take: made when the first asks for it, and kept.
    pub fn form(
        &self,
        device: &Device,
        form: WeightForm,
        format: WeightFormat,
        columns: usize,
    ) -> Result<Tensor> {
        if form == WeightForm::Codes {
            return Ok(self.codes.clone());
        }
        let mut forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, made)) = forms.iter().find(|(known, _)| *known == form) {
            return Ok(made.clone());
        }
        let made = form.make(device, &self.codes, format, (self.rows, columns))?;
        forms.push((form, made.clone()));
        Ok(made)
    }
}

/// The words a shader needs to find a code and its scale: the tail of every parameter struct with a weight.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Layout {
    /// Words of codes in a row.
    pub code_words: u32,
    /// Words of scales in a row.
    pub scale_words: u32,
    /// log2 of the columns of a group; 31: one group per row.
    pub group_shift: u32,
}

impl Field for Layout {
    fn wgsl(_: &str) -> String {
        ["code_words", "scale_words", "group_shift"].map(u32::wgsl).concat()
    }
}

impl Layout {
    /// The layout of a format in rows of `columns`. Group sizes are powers of two.
    pub fn new(format: WeightFormat, columns: usize) -> Self {
        let whole = format.group_size == WHOLE_ROW || format.group_size as usize >= columns;
        assert!(whole || format.group_size.is_power_of_two(), "group sizes are powers of two");
        Self {
            code_words: format.code_words_per_row(columns) as u32,
            scale_words: format.scale_words_per_row(columns) as u32,
            group_shift: if whole { 31 } else { format.group_size.trailing_zeros() },
        }
    }
}

impl Matrix {
    /// Copies a packed matrix to the device. `name` is the tensor's, for errors.
    pub fn upload(device: &Device, packed: &Packed, name: &str) -> Result<Self> {
        let (format, rows, columns) = (packed.format, packed.rows, packed.columns);
        let (codes, scales) =
            (format.code_words_per_row(columns), format.scale_words_per_row(columns));
        let per_chunk = rows_per_chunk(device, codes.max(scales), rows);
        let mut chunks = Vec::new();
        for start in (0..rows).step_by(per_chunk) {
            let count = per_chunk.min(rows - start);
            let code_words = &packed.codes[start * codes..(start + count) * codes];
            let scale_words = &packed.scales[start * scales..(start + count) * scales];
            let unused = [0];
            let scale_words = if scales == 0 { &unused[..] } else { scale_words };
            let scale_shape = if scales == 0 { vec![1] } else { vec![count, scales] };
            let codes = device.upload_words(DType::U32, &[count, codes], code_words, name)?;
            let scales = device.upload_words(DType::U32, &scale_shape, scale_words, name)?;
            chunks.push(Chunk::new(start, count, codes, scales));
        }
        Ok(Self { format, rows, columns, chunks })
    }

    /// Copies matrices of as many columns to the device, so that [`Matrix::joined`] gives them as one where they are of one format
    /// and the device can bind them so. `names` are the tensors', for errors.
    pub fn upload_beside(device: &Device, packed: &[Packed], names: &[&str]) -> Result<Vec<Self>> {
        let each = || {
            let pairs = packed.iter().zip(names);
            pairs.map(|(packed, name)| Self::upload(device, packed, name)).collect()
        };
        let Some((first, rest)) = packed.split_first() else { return Ok(Vec::new()) };
        let (format, columns) = (first.format, first.columns);
        let alike = |other: &Packed| other.format == format && other.columns == columns;
        if rest.is_empty() || !rest.iter().all(alike) {
            return each();
        }
        let shapes = |words: usize| -> Vec<Vec<usize>> {
            packed.iter().map(|packed| vec![packed.rows, words]).collect()
        };
        let (code_words, scale_words) =
            (format.code_words_per_row(columns), format.scale_words_per_row(columns));
        let codes = device.allocate_parts(DType::U32, &shapes(code_words), names[0])?;
        let scales = match scale_words {
            // One unused word for all.
            0 => Some(vec![device.upload_words(DType::U32, &[1], &[0], names[0])?; packed.len()]),
            words => device.allocate_parts(DType::U32, &shapes(words), names[0])?,
        };
        let (Some(codes), Some(scales)) = (codes, scales) else { return each() };
        let mut matrices = Vec::with_capacity(packed.len());
        for (packed, (codes, scales)) in packed.iter().zip(codes.into_iter().zip(scales)) {
            device.write(&codes, &packed.codes)?;
            if scale_words > 0 {
                device.write(&scales, &packed.scales)?;
            }
            let chunk = Chunk::new(0, packed.rows, codes, scales);
            matrices.push(Self::from_chunks(format, columns, vec![chunk]));
        }
        Ok(matrices)
    }

    /// The rows of matrices that stand one behind the other in memory, as one matrix; `None` where they do not.
    pub fn joined(parts: &[&Matrix]) -> Option<Matrix> {
        let (first, rest) = parts.split_first()?;
        let alike =
            |other: &&Matrix| other.format == first.format && other.columns == first.columns;
        let whole = parts.iter().all(|part| part.chunks.len() == 1);
        if !whole || !rest.iter().all(alike) {
            return None;
        }
        let of = |tensor: fn(&Chunk) -> &Tensor| -> Vec<&Tensor> {
            parts.iter().map(|part| tensor(&part.chunks[0])).collect()
        };
        let codes = Tensor::joined(&of(|chunk| &chunk.codes))?;
        let scales = match first.format.ty.scale {
            Scale::None => first.chunks[0].scales.clone(),
            _ => Tensor::joined(&of(|chunk| &chunk.scales))?,
        };
        let rows = parts.iter().map(|part| part.rows).sum();
        let chunk = Chunk::new(0, rows, codes, scales);
        Some(Self::from_chunks(first.format, first.columns, vec![chunk]))
    }

    /// Copies the matrix back to the host.
    pub fn download(&self, device: &Device) -> Result<Packed> {
        let mut packed = Packed {
            format: self.format,
            rows: self.rows,
            columns: self.columns,
            codes: vec![],
            scales: vec![],
        };
        for chunk in &self.chunks {
            packed.codes.extend(device.read(&chunk.codes)?.words);
            if self.format.ty.scale != Scale::None {
                packed.scales.extend(device.read(&chunk.scales)?.words);
            }
        }
        Ok(packed)
    }

    /// A matrix from chunks that stand on the device already.
    pub fn from_chunks(format: WeightFormat, columns: usize, chunks: Vec<Chunk>) -> Self {
        let rows = chunks.iter().map(|chunk| chunk.rows).sum();
        Self { format, rows, columns, chunks }
    }

    /// How its codes read.
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Output features of a linear layer, or tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The row chunks in order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The layout words for kernels.
    pub fn layout(&self) -> Layout {
        Layout::new(self.format, self.columns)
    }
}

/// Rows of `words` words each that fit one binding.
pub fn rows_per_chunk(device: &Device, words: usize, rows: usize) -> usize {
    let fit = device.max_tensor_bytes() / (4 * words.max(BLOCK) as u64);
    (fit.max(1) as usize).min(rows.max(1))
}
