//! Activations on their way into products.

use std::cell::RefCell;
use std::ops::Range;

use super::padded;
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::copy::pad::pad;
use crate::kernels::quantize::activations::{Integers, activations};
use crate::tensor::DType;

/// Activations, (tokens, columns), in the forms that products take. A form is made when the first product asks for it, and
/// serves the others: the query, the key and the value of an attention share one.
#[derive(Debug)]
pub struct Input {
    x: Tensor,
    columns: usize,
    bytes: u32,
    padded: RefCell<Option<Tensor>>,
    integers: RefCell<Option<(Range<usize>, u32, Integers)>>,
}

impl Input {
    /// `x` has (tokens, columns) values. Integer products take them in `bytes` bytes each, 1 to 3: 2 lose less than f16
    /// does, 3 about what f32 sums do.
    pub fn new(x: Tensor, columns: usize, bytes: u32) -> Self {
        Self {
            x,
            columns,
            bytes,
            padded: RefCell::default(),
            integers: RefCell::default(),
        }
    }

    /// Rows.
    pub fn tokens(&self) -> usize {
        self.x.len() / self.columns
    }

    /// Type of the activations as they are.
    pub fn dtype(&self) -> DType {
        self.x.dtype()
    }

    /// Bytes of an activation in integer products.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// As they are, in rows padded to whole vectors of four.
    pub(super) fn plain(&self, device: &Device) -> Result<Tensor> {
        if self.columns == padded(self.columns) {
            return Ok(self.x.clone());
        }
        let mut kept = self.padded.borrow_mut();
        if let Some(kept) = &*kept {
            return Ok(kept.clone());
        }
        Ok(kept.insert(pad(device, &self.x, self.columns)?).clone())
    }

    /// Those of some tokens as integers of so many bytes.
    pub(super) fn integers(
        &self,
        device: &Device,
        tokens: Range<usize>,
        planes: u32,
    ) -> Result<Integers> {
        let mut kept = self.integers.borrow_mut();
        if let Some((range, bytes, kept)) = &*kept
            && (range, *bytes) == (&tokens, planes)
        {
            return Ok(kept.clone());
        }
        let plain = self.plain(device)?;
        let made = activations(device, &plain, tokens.clone(), self.columns, planes)?;
        Ok(kept.insert((tokens, planes, made)).2.clone())
    }
}
