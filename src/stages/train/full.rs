//! Every weight is learned, or those of some modules.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Change, Learn, Preparing, Trained};
use crate::device::Device;
use crate::error::Result;
use crate::graph;
use crate::methods::BadField;
use crate::model::{TensorSpec, Weights};
use crate::stages::Modules;
use crate::tensor::WeightFormat;
use crate::train::dense::{Dense, Vector};
use crate::train::{Learner, Parameter};

/// Which weights are learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Full {
    /// Learn the weights of modules that match (* stands for anything; default: all)
    #[arg(long, default_values_t = all(), hide_default_value = true)]
    pub include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    pub exclude: Vec<String>,
}

fn all() -> Vec<String> {
    vec!["*".into()]
}

impl Default for Full {
    fn default() -> Self {
        Self { include: all(), exclude: Vec::new() }
    }
}

/// The format that a tensor is left in: its own if that is of plain numbers.
pub(super) fn plain(format: WeightFormat) -> WeightFormat {
    match format.ty.is_plain() {
        true => format,
        false => WeightFormat::f16(),
    }
}

/// A tensor of the model that is learned as it is, in the place of what the model has.
pub(super) fn learn(
    preparing: &mut Preparing<'_>,
    spec: &TensorSpec,
) -> Result<Box<dyn Parameter>> {
    let device = preparing.pass.device;
    let saved = plain(preparing.weights.format(spec)?);
    if spec.is_plain() {
        let Some(graph::Parameter::Vector(values)) = preparing.model.tensor(&spec.name) else {
            unreachable!("a model has every tensor of its checkpoint");
        };
        return Ok(Box::new(Vector::new(&spec.name, values, saved)));
    }
    let values = preparing.weights.load(spec)?.to_f32();
    let dtype = preparing.pass.compute.activation;
    let dense = Dense::new(device, &spec.name, &values, (spec.rows, spec.columns), dtype, saved)?;
    preparing.model.set(&spec.name, dense.matrix(device)?);
    Ok(Box::new(dense))
}

impl Learn for Full {
    const USUAL_RATE: f64 = 1e-4;

    fn check(&self) -> Result<(), BadField> {
        Modules::new(&self.include, &self.exclude).map(|_| ())
    }

    fn plan(&self, spec: &TensorSpec, format: WeightFormat) -> Result<Option<Change>, BadField> {
        let modules = Modules::new(&self.include, &self.exclude)?;
        let change = Change {
            format: plain(format),
            numbers: (spec.rows * spec.columns) as u64,
            text: "learned".into(),
        };
        Ok(modules.names(spec).then_some(change))
    }

    fn no_match(&self) -> BadField {
        let found = format!("{:?}, which match none", self.include);
        BadField::new("include", "patterns that match a weight", found)
    }

    fn prepare(&self, mut preparing: Preparing<'_>) -> Result<Vec<Box<dyn Parameter>>> {
        let modules = Modules::new(&self.include, &self.exclude).map_err(BadField::in_recipe)?;
        let weights = preparing.weights;
        let specs = weights.specs().iter().filter(|spec| modules.names(spec));
        specs.map(|spec| learn(&mut preparing, spec)).collect()
    }

    fn result<'a>(
        &self,
        device: &'a Device,
        weights: &'a dyn Weights,
        learner: &'a Learner,
        _: &Path,
    ) -> Result<Box<dyn Weights + 'a>> {
        Ok(Box::new(Trained::new(device, weights, learner, self)?))
    }
}
