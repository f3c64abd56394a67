//! Activations on their way into products.

use std::cell::RefCell;
use std::ops::Range;

use super::bits::bits;
use super::lut_tables::tables;
use super::lut_tables_i8::{self, byte_tables};
use super::padded;
use super::product::InputForm;
use crate::kernels::activation::Activation;
use crate::kernels::attention::cached::Mixed;
use crate::kernels::attention::merge::merge;
use crate::kernels::copy::pad::pad;
use crate::kernels::gate::glu::glu;
use crate::kernels::norm::rms::rms;
use crate::kernels::prelude::*;
use crate::kernels::quantize::activations::{Integers, Rounding, activations};
use crate::kernels::quantize::gated::gated;
use crate::kernels::quantize::merged;
use crate::kernels::quantize::normed::normed;

/// A form, the tokens that were asked for, and its tensors.
type Formed = (InputForm, Range<usize>, Vec<Tensor>);

/// Activations, (tokens, columns), in the forms that products take. A form is made when the first product asks for it, and
/// serves the others: the query, the key and the value of an attention share one.
#[derive(Debug)]
pub struct Input {
    source: Source,
    dtype: DType,
    tokens: usize,
    columns: usize,
    bytes: u32,
    /// Of each form, its tensors for the tokens that were last asked for.
    forms: RefCell<Vec<Formed>>,
}

/// What activations are made of. What is still to be computed is computed in the form that is asked for first, in one pass with its
/// rounding where there is a kernel for it.
#[derive(Debug)]
enum Source {
    /// They are there.
    Values(Tensor),
    /// The residual stream, f32 (tokens, columns), to be normalized.
    Stream(Tensor, Norm),
    /// A gate and what it gates, f32 (tokens, columns) each.
    Gated(Tensor, Tensor, Activation),
    /// Parts of attention, f32 (tokens, heads, splits, head_dim + 2).
    Parts(Tensor),
}

/// A root-mean-square normalization that is still to be done: its gain, f32 (columns), and epsilon.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The gain of each normalized column.
    pub gain: Tensor,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

impl Input {
    /// `x` has (tokens, columns) values. Integer products take them in `bytes` bytes each, 1 to 3: 2 lose less than f16
    /// does, 3 about what f32 sums do.
    pub fn new(x: Tensor, columns: usize, bytes: u32) -> Self {
        let (dtype, tokens) = (x.dtype(), x.len() / columns);
        Self::of(Source::Values(x), dtype, (tokens, columns), bytes)
    }

    /// The residual stream `x`, f32 (tokens, columns), normalized on its way: activations of type `dtype`, or integers at
    /// once.
    pub fn normed(x: Tensor, norm: Norm, dtype: DType, bytes: u32) -> Self {
        let columns = norm.gain.len();
        let tokens = x.len() / columns;
        Self::of(Source::Stream(x, norm), dtype, (tokens, columns), bytes)
    }

    /// activation(gate) * up, both f32 (tokens, columns): activations of type `dtype`, or integers at once.
    pub fn gated(
        (gate, up): (Tensor, Tensor),
        activation: Activation,
        dtype: DType,
        bytes: u32,
    ) -> Self {
        let tokens = gate.shape()[0];
        let columns = gate.len() / tokens;
        Self::of(Source::Gated(gate, up, activation), dtype, (tokens, columns), bytes)
    }

    /// Attention, whole or of parts that are put together on the way: activations of type `dtype`, or integers at once.
    pub fn mixed(mixed: Mixed, columns: usize, dtype: DType, bytes: u32) -> Self {
        match mixed {
            Mixed::Whole(x) => Self::new(x, columns, bytes),
            Mixed::Parts(parts) => {
                let tokens = parts.shape()[0];
                Self::of(Source::Parts(parts), dtype, (tokens, columns), bytes)
            }
        }
    }

    fn of(source: Source, dtype: DType, (tokens, columns): (usize, usize), bytes: u32) -> Self {
        Self { source, dtype, tokens, columns, bytes, forms: RefCell::default() }
    }

    /// Rows.
    pub fn tokens(&self) -> usize {
        self.tokens
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
        if self.columns == padded(self.columns) {
            self.plain(device)
        } else {
            self.computed(device)
        }
    }

    /// The values of the source.
    fn computed(&self, device: &Device) -> Result<Tensor> {
        match &self.source {
            Source::Values(x) => Ok(x.clone()),
            Source::Stream(x, Norm { gain, epsilon }) => rms(device, x, gain, *epsilon, self.dtype),
            Source::Gated(gate, up, activation) => glu(device, gate, up, *activation, self.dtype),
            Source::Parts(parts) => merge(device, parts, self.dtype),
        }
    }

    /// Those of some tokens in a form: its tensors, and the row of the first of the tokens in them.
    pub(super) fn form(
        &self,
        device: &Device,
        form: InputForm,
        tokens: Range<usize>,
    ) -> Result<(Vec<Tensor>, usize)> {
        // Plain ones are all tokens'.
        let (range, first) = match form {
            InputForm::Plain => (0..self.tokens(), tokens.start),
            _ => (tokens, 0),
        };
        let kept = self.forms.borrow();
        let known = kept.iter().find(|(known, its, _)| (known, its) == (&form, &range));
        if let Some((.., tensors)) = known {
            return Ok((tensors.clone(), first));
        }
        drop(kept);
        let tensors = self.make(device, form, range.clone())?;
        let mut kept = self.forms.borrow_mut();
        kept.retain(|(known, ..)| *known != form);
        kept.push((form, range, tensors.clone()));
        Ok((tensors, first))
    }

    /// As they are, in rows padded to whole vectors of four.
    pub fn plain(&self, device: &Device) -> Result<Tensor> {
        let (mut tensors, _) = self.form(device, InputForm::Plain, 0..self.tokens())?;
        Ok(tensors.remove(0))
    }

    fn make(&self, device: &Device, form: InputForm, tokens: Range<usize>) -> Result<Vec<Tensor>> {
        let columns = self.columns;
        Ok(match form {
            InputForm::Plain => {
                let x = self.computed(device)?;
                vec![if columns == padded(columns) { x } else { pad(device, &x, columns)? }]
            }
            InputForm::Integers(rounding) => {
                let made = self.integers(device, tokens, rounding)?;
                vec![made.codes, made.scales]
            }
            InputForm::Tables(dtype) => {
                let made = tables(device, &self.plain(device)?, tokens, columns, dtype)?;
                vec![made.tables, made.halves]
            }
            InputForm::ByteTables => {
                let (count, rounding) = (tokens.len(), lut_tables_i8::ROUNDING);
                let (x, _) = self.form(device, InputForm::Integers(rounding), tokens)?;
                let made = byte_tables(device, [&x[0], &x[1]], count, columns)?;
                vec![made.tables, made.sums]
            }
            InputForm::Bits => {
                let made = bits(device, &self.plain(device)?, tokens, columns)?;
                vec![made.planes, made.scales]
            }
        })
    }

    fn integers(
        &self,
        device: &Device,
        tokens: Range<usize>,
        rounding: Rounding,
    ) -> Result<Integers> {
        let whole_fours = self.columns == padded(self.columns);
        match &self.source {
            Source::Stream(x, Norm { gain, epsilon }) if whole_fours => {
                normed(device, x, gain, *epsilon, tokens, rounding)
            }
            Source::Gated(gate, up, activation) if whole_fours => {
                gated(device, (gate, up), *activation, self.columns, tokens, rounding)
            }
            Source::Parts(parts) if merged::takes(parts.shape()[3] - 2, rounding) => {
                merged::merged(device, parts, tokens, rounding)
            }
            _ => activations(device, &self.plain(device)?, tokens, self.columns, rounding),
        }
    }
}
