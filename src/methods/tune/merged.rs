//! Adapters merged into the weights that they were trained on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;

use half::{bf16, f16};
use rayon::prelude::*;
use serde::Serialize;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::methods::quantize::Scheme;
use crate::methods::quantize::rtn::rtn;
use crate::model::{Adapters, Config, CopyOf, Pair, TensorSpec, Weights, stored};
use crate::tensor::{Levels, Packed, WeightFormat};

/// A model with adapters in its weights: of an adapted layer W + scale B A, in the format that W has. The sum is taken in f64; dense
/// formats round each value once, quantized ones are rounded to nearest again, with new scales. What that lost is kept by tensor.
pub struct Merged<'a> {
    model: &'a dyn Weights,
    adapters: Cow<'a, Adapters>,
    device: &'a Device,
    losses: Mutex<BTreeMap<String, MergeLoss>>,
}

/// What storing a merged weight lost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MergeLoss {
    /// |stored - exact| / |exact|, Frobenius' norms.
    pub of_weight: f64,
    /// |stored - exact| / |scale B A|: 1 and more where rounding hides what was learned. 0 where nothing was.
    pub of_change: f64,
}

impl<'a> Merged<'a> {
    /// Adapters that fit a model. A weight stored by a pattern of zeros has no room for a change of the others,
    /// and scales of super-blocks are not found again.
    pub fn new(
        model: &'a dyn Weights,
        adapters: impl Into<Cow<'a, Adapters>>,
        device: &'a Device,
    ) -> Result<Self> {
        let merged = Self::anywhere(model, adapters.into(), device)?;
        let adapters = &merged.adapters;
        for spec in model.specs() {
            let format = model.format(spec)?;
            if let (Some(why), Some(_)) = (no_room(format), pair(adapters, spec)) {
                return Err(Error::Unsupported {
                    path: "adapters".into(),
                    what: format!("merging into `{}`, stored as {}", spec.name, format.label()),
                    why,
                });
            }
        }
        Ok(merged)
    }

    /// The same whatever the weights are stored in.
    fn anywhere(
        model: &'a dyn Weights,
        adapters: Cow<'a, Adapters>,
        device: &'a Device,
    ) -> Result<Self> {
        adapters.check(model.config())?;
        Ok(Self { model, adapters, device, losses: Mutex::default() })
    }

    /// What was lost, of each tensor that was loaded and is adapted.
    pub fn losses(&self) -> BTreeMap<String, MergeLoss> {
        self.losses.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// Why sums of weights and what was learned cannot be stored in the format that the weights have; `None` if they can.
pub fn no_room(format: WeightFormat) -> Option<String> {
    match (format.ty.sparsity, format.ty.is_plain() || Scheme::of(format).is_some()) {
        (Some(pattern), _) => {
            let pattern = pattern.label();
            Some(format!("a change of every weight does not keep the pattern {pattern}"))
        }
        (None, false) => Some(format!("weights are not rounded to {} again", format.label())),
        (None, true) => None,
    }
}

/// The adapter of a tensor.
fn pair<'a>(adapters: &'a Adapters, spec: &TensorSpec) -> Option<&'a Pair> {
    // A bias is of the same module, and stays as it is.
    let is_weight = spec.name.ends_with(".weight");
    adapters.of(spec.module()).filter(|_| is_weight)
}

impl Weights for Merged<'_> {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let weight = self.model.load(spec)?;
        let Some(pair) = pair(&self.adapters, spec) else { return Ok(weight) };
        let before = weight.to_f32();
        let exact = self.adapters.merged(pair, &before);
        let stored = match Scheme::of(weight.format) {
            None => dense(&exact, &weight, &spec.name)?,
            Some(scheme) => {
                let values = Packed::from_f32(&narrowed(&exact), weight.rows, weight.columns);
                rtn(self.device, &values, scheme, &spec.name)?
            }
        };
        let loss = loss(&exact, &before, &stored.to_f32(), weight.columns);
        let mut losses = self.losses.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        losses.insert(spec.name.clone(), loss);
        Ok(stored)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        self.model.format(spec)
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        match pair(&self.adapters, spec) {
            Some(_) => None,
            None => self.model.copy_of(spec),
        }
    }
}

/// The same sums in f32, nothing rounded to what the weights are stored in: what storing is measured against.
pub struct Exact<'a> {
    model: &'a dyn Weights,
    adapters: Adapters,
}

impl<'a> Exact<'a> {
    /// Adapters that fit a model.
    pub fn new(model: &'a dyn Weights, adapters: Adapters) -> Result<Self> {
        adapters.check(model.config())?;
        Ok(Self { model, adapters })
    }
}

impl Weights for Exact<'_> {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let weight = self.model.load(spec)?;
        let Some(pair) = pair(&self.adapters, spec) else { return Ok(weight) };
        let exact = self.adapters.merged(pair, &weight.to_f32());
        Ok(Packed::from_f32(&narrowed(&exact), weight.rows, weight.columns))
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match pair(&self.adapters, spec) {
            Some(_) => Ok(WeightFormat::f32()),
            None => self.model.format(spec),
        }
    }
}

/// The same sums where the weights are quantized as f16, which holds what was learned; other weights keep their format.
pub struct Widened<'a> {
    merged: Merged<'a>,
    exact: Exact<'a>,
}

impl<'a> Widened<'a> {
    /// Adapters that fit a model.
    pub fn new(model: &'a dyn Weights, adapters: Adapters, device: &'a Device) -> Result<Self> {
        let exact = Exact::new(model, adapters.clone())?;
        Ok(Self { merged: Merged::anywhere(model, adapters.into(), device)?, exact })
    }

    fn widens(&self, spec: &TensorSpec) -> Result<bool> {
        let plain = self.merged.format(spec)?.ty.is_plain();
        Ok(!plain && pair(&self.merged.adapters, spec).is_some())
    }
}

impl Weights for Widened<'_> {
    fn config(&self) -> &Config {
        self.merged.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.merged.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        match self.widens(spec)? {
            true => stored(&self.exact.load(spec)?.to_f32(), WeightFormat::f16(), spec),
            false => self.merged.load(spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.widens(spec)? {
            true => Ok(WeightFormat::f16()),
            false => self.merged.format(spec),
        }
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        self.merged.copy_of(spec)
    }
}

/// Values in the format of a dense weight, each rounded once; an error where one becomes infinite.
fn dense(exact: &[f64], like: &Packed, name: &str) -> Result<Packed> {
    let (rows, columns) = (like.rows, like.columns);
    let of_16_bits = |rounded: fn(f64) -> u16| {
        let halves: Vec<u16> = exact.par_iter().map(|value| rounded(*value)).collect();
        Packed::from_16bit(like.format, bytemuck::cast_slice(&halves), rows, columns)
    };
    let packed = match like.format.ty.levels {
        Levels::F16 => of_16_bits(|value| f16::from_f64(value).to_bits()),
        Levels::Bf16 => of_16_bits(|value| bf16::from_f64(value).to_bits()),
        _ => Packed::from_f32(&narrowed(exact), rows, columns),
    };
    match packed.first_non_finite() {
        None => Ok(packed),
        Some((row, column)) => Err(Error::Tensor {
            path: "adapters".into(),
            tensor: name.into(),
            expected: format!("sums that {} holds", like.format.label()),
            found: format!("{} at row {row}, column {column}", exact[row * columns + column]),
        }),
    }
}

/// The same in f32.
fn narrowed(exact: &[f64]) -> Vec<f32> {
    exact.par_iter().map(|value| *value as f32).collect()
}

/// What rows of so many columns lost. Summed row by row, and the rows in order: the figure is the same every time.
fn loss(exact: &[f64], before: &[f32], stored: &[f32], columns: usize) -> MergeLoss {
    let lines = exact.par_chunks(columns).zip(before.par_chunks(columns));
    let squares: Vec<[f64; 3]> = lines
        .zip(stored.par_chunks(columns))
        .map(|((exact, before), stored)| {
            let mut squares = [0.0; 3];
            for ((exact, before), stored) in exact.iter().zip(before).zip(stored) {
                squares[0] += (f64::from(*stored) - exact).powi(2);
                squares[1] += exact.powi(2);
                squares[2] += (exact - f64::from(*before)).powi(2);
            }
            squares
        })
        .collect();
    let sum = |kind: usize| squares.iter().map(|row| row[kind]).sum::<f64>().sqrt();
    let (lost, weight, change) = (sum(0), sum(1), sum(2));
    let share = |whole: f64| if whole > 0.0 { lost / whole } else { 0.0 };
    MergeLoss { of_weight: share(weight), of_change: share(change) }
}
