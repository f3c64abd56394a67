//! Activations on their way into products.

use std::cell::RefCell;
use std::ops::Range;

use super::bits::{Bits, bits};
use super::padded;
use super::tables::{Tables, tables};
use super::tables8::{self, ByteTables, byte_tables};
use crate::device::{Device, Tensor};
use crate::error::Result;
use crate::kernels::copy::pad::pad;
use crate::kernels::norm::rms::rms;
use crate::kernels::quantize::activations::{Integers, Rounding, activations};
use crate::kernels::quantize::normed::normed;
use crate::tensor::DType;

/// Activations, (tokens, columns), in the forms that products take. A form is made when the first product asks for it, and
/// serves the others: the query, the key and the value of an attention share one.
#[derive(Debug)]
pub struct Input {
    x: Tensor,
    norm: Option<Norm>,
    dtype: DType,
    columns: usize,
    bytes: u32,
    plain: RefCell<Option<Tensor>>,
    integers: RefCell<Option<(Range<usize>, Rounding, Integers)>>,
    tables: RefCell<Option<(Range<usize>, Tables)>>,
    byte_tables: RefCell<Option<(Range<usize>, ByteTables)>>,
    bits: RefCell<Option<(Range<usize>, Bits)>>,
}

/// A root-mean-square normalization that is still to be done: its gain, f32 (columns), and epsilon.
#[derive(Clone, Debug)]
pub struct Norm {
    /// What normalized columns are multiplied by.
    pub gain: Tensor,
    /// What is added to the mean of the squares.
    pub epsilon: f32,
}

impl Input {
    /// `x` has (tokens, columns) values. Integer products take them in `bytes` bytes each, 1 to 3: 2 lose less than f16
    /// does, 3 about what f32 sums do.
    pub fn new(x: Tensor, columns: usize, bytes: u32) -> Self {
        Self {
            dtype: x.dtype(),
            x,
            norm: None,
            columns,
            bytes,
            plain: RefCell::default(),
            integers: RefCell::default(),
            tables: RefCell::default(),
            byte_tables: RefCell::default(),
            bits: RefCell::default(),
        }
    }

    /// The residual stream `x`, f32 (tokens, columns), normalized on its way: activations of type `dtype`, or integers at
    /// once.
    pub fn normed(x: Tensor, norm: Norm, dtype: DType, bytes: u32) -> Self {
        let columns = norm.gain.len();
        Self {
            norm: Some(norm),
            dtype,
            ..Self::new(x, columns, bytes)
        }
    }

    /// Rows.
    pub fn tokens(&self) -> usize {
        self.x.len() / self.columns
    }

    /// Type of the activations as they are.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of an activation in integer products.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// As they are, without padding: what a product is of.
    pub fn values(&self, device: &Device) -> Result<Tensor> {
        match &self.norm {
            Some(Norm { gain, epsilon }) if self.columns != padded(self.columns) => {
                rms(device, &self.x, gain, *epsilon, self.dtype)
            }
            Some(_) => self.plain(device),
            None => Ok(self.x.clone()),
        }
    }

    /// As they are, in rows padded to whole vectors of four.
    pub(super) fn plain(&self, device: &Device) -> Result<Tensor> {
        let whole = self.columns == padded(self.columns);
        if self.norm.is_none() && whole {
            return Ok(self.x.clone());
        }
        let mut kept = self.plain.borrow_mut();
        if let Some(kept) = &*kept {
            return Ok(kept.clone());
        }
        let x = match &self.norm {
            Some(Norm { gain, epsilon }) => rms(device, &self.x, gain, *epsilon, self.dtype)?,
            None => self.x.clone(),
        };
        let x = if whole {
            x
        } else {
            pad(device, &x, self.columns)?
        };
        Ok(kept.insert(x).clone())
    }

    /// Those of some tokens as tables for lookup.
    pub(super) fn tables(
        &self,
        device: &Device,
        tokens: Range<usize>,
        dtype: DType,
    ) -> Result<Tables> {
        let mut kept = self.tables.borrow_mut();
        if let Some((range, kept)) = &*kept
            && (range, kept.tables.dtype()) == (&tokens, dtype)
        {
            return Ok(kept.clone());
        }
        let x = self.plain(device)?;
        let made = tables(device, &x, tokens.clone(), self.columns, dtype)?;
        Ok(kept.insert((tokens, made)).1.clone())
    }

    /// Those of some tokens as tables of bytes.
    pub(super) fn byte_tables(&self, device: &Device, tokens: Range<usize>) -> Result<ByteTables> {
        let mut kept = self.byte_tables.borrow_mut();
        if let Some((range, kept)) = &*kept
            && *range == tokens
        {
            return Ok(kept.clone());
        }
        let x = self.integers(device, tokens.clone(), tables8::ROUNDING)?;
        let made = byte_tables(device, &x, tokens.len(), self.columns)?;
        Ok(kept.insert((tokens, made)).1.clone())
    }

    /// Those of some tokens as bit planes.
    pub(super) fn bits(&self, device: &Device, tokens: Range<usize>) -> Result<Bits> {
        let mut kept = self.bits.borrow_mut();
        if let Some((range, kept)) = &*kept
            && *range == tokens
        {
            return Ok(kept.clone());
        }
        let made = bits(device, &self.plain(device)?, tokens.clone(), self.columns)?;
        Ok(kept.insert((tokens, made)).1.clone())
    }

    /// Those of some tokens as integers.
    pub(super) fn integers(
        &self,
        device: &Device,
        tokens: Range<usize>,
        rounding: Rounding,
    ) -> Result<Integers> {
        let mut kept = self.integers.borrow_mut();
        if let Some((range, known, kept)) = &*kept
            && (range, *known) == (&tokens, rounding)
        {
            return Ok(kept.clone());
        }
        let range = tokens.clone();
        let made = match &self.norm {
            Some(Norm { gain, epsilon }) if self.columns == padded(self.columns) => {
                normed(device, &self.x, gain, *epsilon, range, rounding)?
            }
            _ => activations(device, &self.plain(device)?, range, self.columns, rounding)?,
        };
        Ok(kept.insert((tokens, rounding, made)).2.clone())
    }
}
