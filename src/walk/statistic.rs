//! Statistics of what goes through a block: sums over tokens, so that those of two parts of a text add up to those of the whole.

use std::collections::BTreeMap;

use super::Observer;
use crate::device::{Device, HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::graph::Slot;
use crate::kernels::matmul::gram;
use crate::kernels::residual::add::add;
use crate::kernels::score::sums::{self, Term};
use crate::kernels::score::{Form, rows};
use crate::tensor::DType;

/// What is summed over the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Of each input channel of a linear layer the squares (Wanda's norms are their roots): (input features).
    Squares,
    /// Of each input channel the values: over the tokens their means: (input features).
    Values,
    /// Of each input channel the magnitudes (AWQ): (input features).
    Magnitudes,
    /// Of each input channel the squared mean magnitude over each sequence of so many tokens (Minitron, whose score is its root):
    /// (input features).
    SequenceMagnitudes(usize),
    /// X^T X of a linear layer's inputs, the Hessian of its squared error (GPTQ, SparseGPT, SliceGPT):
    /// (input features, input features).
    Gram,
    /// The cosine of each token's residual stream before and after the block (depth pruning).
    Cosine,
}

/// Statistics of one block.
#[derive(Debug)]
pub struct Statistics<'a> {
    device: &'a Device,
    kinds: &'a [Kind],
    sums: BTreeMap<(Slot, Kind), Tensor>,
    cosines: f64,
    tokens: BTreeMap<Slot, u64>,
    seen: u64,
}

impl<'a> Statistics<'a> {
    /// None yet, of these kinds.
    pub fn new(device: &'a Device, kinds: &'a [Kind]) -> Self {
        Self {
            device,
            kinds,
            sums: BTreeMap::new(),
            cosines: 0.0,
            tokens: BTreeMap::new(),
            seen: 0,
        }
    }

    /// A sum over the tokens of a linear layer's inputs, f32; `None` if the block has no such layer, or it is not of the kinds.
    pub fn sum(&self, slot: Slot, kind: Kind) -> Result<Option<HostTensor>> {
        let sum = self.sums.get(&(slot, kind));
        let read = |sum: &Tensor| match kind {
            Kind::Gram => gram::read(self.device, sum),
            _ => self.device.read(sum),
        };
        sum.map(read).transpose()
    }

    /// Tokens that went into the sums of a linear layer.
    pub fn tokens(&self, slot: Slot) -> u64 {
        self.tokens.get(&slot).copied().unwrap_or(0)
    }

    /// The mean cosine of the residual stream before and after the block.
    pub fn mean_cosine(&self) -> Option<f64> {
        (self.seen > 0).then(|| self.cosines / self.seen as f64)
    }

    /// Adds the statistics of another part of the text, of the same block and kinds.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let keys = |of: &Self| of.sums.keys().copied().collect::<Vec<_>>();
        if keys(self) != keys(other) {
            return Err(Error::Argument {
                argument: "statistics to add".into(),
                expected: format!("{:?}", keys(self)),
                found: format!("{:?}", keys(other)),
            });
        }
        for (key, sum) in &self.sums {
            add(self.device, &other.sums[key], sum)?;
        }
        for (slot, tokens) in &other.tokens {
            *self.tokens.entry(*slot).or_default() += tokens;
        }
        self.cosines += other.cosines;
        self.seen += other.seen;
        Ok(())
    }
}

impl Observer for Statistics<'_> {
    fn input(&mut self, slot: Slot, x: &Tensor) -> Result<()> {
        let device = self.device;
        let (tokens, width) = (x.shape()[0], x.len() / x.shape()[0]);
        *self.tokens.entry(slot).or_default() += tokens as u64;
        for kind in self.kinds {
            let shape = match kind {
                Kind::Gram => vec![width, width],
                Kind::Cosine => continue,
                _ => vec![width],
            };
            let known = self.sums.get(&(slot, *kind)).cloned();
            let later = known.is_some();
            let sum = match known {
                Some(sum) => sum,
                None => device.allocate(DType::F32, &shape, "statistics")?,
            };
            match kind {
                Kind::Squares => sums::sums(device, Term::Square, x, &sum, later)?,
                Kind::Values => sums::sums(device, Term::Value, x, &sum, later)?,
                Kind::Magnitudes => sums::sums(device, Term::Magnitude, x, &sum, later)?,
                Kind::SequenceMagnitudes(length) => {
                    sums::sequence_magnitudes(device, x, *length, &sum, later)?;
                }
                Kind::Gram => {
                    gram::gram(device, &x.reshaped(&[tokens, width]), &sum, later)?;
                }
                Kind::Cosine => {}
            }
            self.sums.insert((slot, *kind), sum);
        }
        Ok(())
    }

    fn wants_output(&self) -> bool {
        self.kinds.contains(&Kind::Cosine)
    }

    fn output(&mut self, before: &Tensor, after: &Tensor) -> Result<()> {
        let device = self.device;
        let tokens = before.shape()[0];
        let of_rows = |form: Form, x: &Tensor, y: Option<&Tensor>| {
            let result = device.allocate(DType::F32, &[tokens], "cosines")?;
            rows::rows(device, form, x, y, None, &result, false)?;
            device.read_later(&result)
        };
        // All three are on their way before the first is waited for.
        let dots = of_rows(Form::Product, before, Some(after))?;
        let (a, b) = (of_rows(Form::L2, before, None)?, of_rows(Form::L2, after, None)?);
        let values = |reading| Ok(device.finish(reading)?.to_f32());
        let (dots, a, b) = (values(dots)?, values(a)?, values(b)?);
        for ((dot, a), b) in dots.into_iter().zip(a).zip(b) {
            let norms = (f64::from(a) * f64::from(b)).sqrt();
            self.cosines += f64::from(dot) / norms.max(f64::MIN_POSITIVE);
        }
        self.seen += tokens as u64;
        Ok(())
    }
}
