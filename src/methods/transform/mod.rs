//! Transformations: a model's weights become others that compute the same function, up to rounding, and round better.

pub mod awq;
pub mod hadamard;
pub mod rotate;
pub mod scale;
pub mod smooth;

use crate::error::Result;
use crate::methods::prune::slice::left_format;
use crate::model::{Config, CopyOf, TensorSpec, Weights, stored};
use crate::tensor::{Packed, WeightFormat};

/// A model that computes what its parent does, with other weights.
pub trait Transformed {
    /// The parent.
    fn parent(&self) -> &dyn Weights;

    /// The configuration.
    fn config(&self) -> &Config {
        self.parent().config()
    }

    /// The tensors.
    fn specs(&self) -> &[TensorSpec] {
        self.parent().specs()
    }

    /// The parent's tensor behind one of these.
    fn whole<'s>(&'s self, spec: &'s TensorSpec) -> &'s TensorSpec {
        spec
    }

    /// Whether a tensor may have other values than the parent's.
    fn may_change(&self, spec: &TensorSpec) -> bool;

    /// Its values, rounded to f32 alone; `None`: the parent's.
    fn exact(&self, spec: &TensorSpec) -> Result<Option<Vec<f32>>>;
}

/// The same in the parent's types; where these have scales, whose codes do not survive, in f16.
#[derive(Debug)]
pub struct Rounded<T>(pub T);

impl<T: Transformed> Weights for Rounded<T> {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.0.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let (exact, format) = (self.0.exact(spec)?, self.format(spec)?);
        if let Some(values) = exact {
            return stored(&values, format, spec);
        }
        let weight = self.0.parent().load(self.0.whole(spec))?;
        match weight.format == format {
            true => Ok(weight),
            false => stored(&weight.to_f32(), format, spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        let format = self.0.parent().format(self.0.whole(spec))?;
        Ok(if self.0.may_change(spec) { left_format(format) } else { format })
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        match self.0.may_change(spec) {
            true => None,
            false => self.0.parent().copy_of(self.0.whole(spec)),
        }
    }
}

/// The same in f32, where something may change: what the rounding of a transformation is measured against.
#[derive(Debug)]
pub struct Exact<T>(pub T);

impl<T: Transformed> Weights for Exact<T> {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.0.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let (rows, columns) = (spec.rows, spec.columns);
        let weight = match self.0.exact(spec)? {
            Some(values) => return Ok(Packed::from_f32(&values, rows, columns)),
            None => self.0.parent().load(self.0.whole(spec))?,
        };
        match self.0.may_change(spec) {
            true => Ok(Packed::from_f32(&weight.to_f32(), rows, columns)),
            false => Ok(weight),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.0.may_change(spec) {
            true => Ok(WeightFormat::f32()),
            false => self.0.parent().format(self.0.whole(spec)),
        }
    }
}
