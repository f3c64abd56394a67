//! The stages of a run: what each does to a model, and what is left.

use std::collections::HashMap;

use super::{Event, Figures, Listener};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::methods::calibration::Rows;
use crate::methods::prune::Order;
use crate::methods::quantize::Scheme;
use crate::methods::quantize::rtn::rtn;
use crate::model::{Config, TensorSpec, Weights};
use crate::plan::{Plan, flops_per_token};
use crate::tensor::{Packed, WeightFormat};
use crate::text::Tokenizer;

/// A model some of whose tensors have been replaced.
pub(super) struct Compressed<'a> {
    base: &'a dyn Weights,
    replaced: HashMap<String, Packed>,
}

impl<'a> Compressed<'a> {
    /// Nothing is replaced yet.
    pub(super) fn new(base: &'a dyn Weights) -> Self {
        let replaced = HashMap::new();
        Self { base, replaced }
    }
}

impl Weights for Compressed<'_> {
    fn config(&self) -> &Config {
        self.base.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.base.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        self.replaced
            .get(&spec.name)
            .map_or_else(|| self.base.load(spec), |packed| Ok(packed.clone()))
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        self.replaced
            .get(&spec.name)
            .map_or_else(|| self.base.format(spec), |packed| Ok(packed.format))
    }
}

/// The figures of a model that follow from its tensors alone.
pub(super) fn figures(weights: &dyn Weights) -> Result<Figures> {
    let (mut parameters, mut bytes) = (0, 0);
    for spec in weights.specs() {
        parameters += (spec.rows * spec.columns) as u64;
        bytes += weights.format(spec)?.bytes(spec.rows, spec.columns);
    }
    Ok(Figures {
        parameters,
        bytes,
        bytes_f16: 2 * parameters,
        flops_per_token: flops_per_token(weights.specs(), weights.config()),
        perplexity: None,
        weight_error: None,
    })
}

/// The tokens that an order's gradients are taken over, if it takes any. Read before anything is computed: what is wrong with
/// them is told at once.
pub(super) fn rows(order: &Order, tokenizer: Option<&Tokenizer>) -> Result<Option<Rows>> {
    if !order.score.needs_gradient() {
        return Ok(None);
    }
    let Some(tokenizer) = tokenizer else {
        return Err(Error::Argument {
            argument: "calibration".into(),
            expected: "a model with a tokenizer".into(),
            found: "none".into(),
        });
    };
    let c = order.calibration();
    Rows::of_text(&c.text, tokenizer, c.offset, c.samples, c.length).map(Some)
}

/// Replaces what the plan quantizes. Returns the squared error over the squared weights.
pub(super) fn quantize(
    plan: &Plan,
    model: &mut Compressed<'_>,
    device: &Device,
    listen: Listener<'_>,
) -> Result<f64> {
    let (mut error, mut total) = (0.0f64, 0.0f64);
    let planned: HashMap<&str, Scheme> = plan
        .tensors
        .iter()
        .filter_map(|line| Some((line.name.as_str(), line.scheme?)))
        .collect();
    let chosen: Vec<_> = model
        .base
        .specs()
        .iter()
        .filter_map(|spec| Some((spec, *planned.get(spec.name.as_str())?)))
        .collect();
    for (done, (spec, scheme)) in chosen.iter().enumerate() {
        interrupt::check()?;
        listen(Event::Progress {
            step: "quantizing",
            done,
            total: chosen.len(),
        });
        let weight = model.base.load(spec)?;
        let packed = rtn(device, &weight, *scheme, &spec.name)?;
        for (after, before) in packed.to_f32().into_iter().zip(weight.to_f32()) {
            error += (f64::from(after) - f64::from(before)).powi(2);
            total += f64::from(before).powi(2);
        }
        model.replaced.insert(spec.name.clone(), packed);
    }
    listen(Event::Progress {
        step: "quantizing",
        done: chosen.len(),
        total: chosen.len(),
    });
    Ok(if total > 0.0 { error / total } else { 0.0 })
}
