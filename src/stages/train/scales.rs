//! Scales and offsets of quantized weights are learned, and norms.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::full::{learn, plain};
use super::{Change, Learn, Preparing, Trained};
use crate::device::Device;
use crate::error::Result;
use crate::graph;
use crate::kernels::quantize::scale_grad::has_real_scales;
use crate::methods::BadField;
use crate::model::{Role, TensorSpec, Weights};
use crate::stages::Modules;
use crate::tensor::{Scale, WeightFormat};
use crate::train::scales::Scales as Parameters;
use crate::train::{Learner, Parameter};

/// Whose scales are learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Scales {
    /// Learn the scales of quantized modules that match (* stands for anything; default: all)
    #[arg(long, default_values_t = all(), hide_default_value = true)]
    pub include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    pub exclude: Vec<String>,
    /// Learn the norms of the blocks too
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = true)]
    pub norms: bool,
}

fn all() -> Vec<String> {
    vec!["*".into()]
}

impl Default for Scales {
    fn default() -> Self {
        Self { include: all(), exclude: Vec::new(), norms: true }
    }
}

/// Whether a tensor is a norm beside the layers that are learned.
pub(super) fn is_norm(spec: &TensorSpec) -> bool {
    spec.role == Role::Norm && (spec.layer.is_some() || spec.slot == crate::graph::Slot::FinalNorm)
}

impl Learn for Scales {
    const USUAL_RATE: f64 = 1e-4;
    const OF_MATRICES: bool = true;

    fn check(&self) -> Result<(), BadField> {
        Modules::new(&self.include, &self.exclude).map(|_| ())
    }

    fn plan(&self, spec: &TensorSpec, format: WeightFormat) -> Result<Option<Change>, BadField> {
        if self.norms && is_norm(spec) {
            let numbers = spec.columns as u64;
            return Ok(Some(Change { format: plain(format), numbers, text: "learned".into() }));
        }
        let modules = Modules::new(&self.include, &self.exclude)?;
        if !modules.have(spec) || !has_real_scales(format.ty) {
            return Ok(None);
        }
        let groups = spec.columns.div_ceil(format.group_columns(spec.columns));
        let numbers = (spec.rows * groups) as u64;
        let offsets = format.ty.scale == Scale::Offset;
        let text = if offsets { "scales and offsets learned" } else { "scales learned" };
        Ok(Some(Change { format, numbers: numbers << u32::from(offsets), text: text.into() }))
    }

    fn no_match(&self) -> BadField {
        let found = format!("{:?}, which match none", self.include);
        BadField::new("include", "patterns that match a weight with scales: a quantized one", found)
    }

    fn prepare(&self, mut preparing: Preparing<'_>) -> Result<Vec<Box<dyn Parameter>>> {
        let weights = preparing.weights;
        let mut parameters: Vec<Box<dyn Parameter>> = Vec::new();
        for spec in weights.specs() {
            let change = self.plan(spec, weights.format(spec)?).map_err(BadField::in_recipe)?;
            if change.is_none() {
                continue;
            }
            if is_norm(spec) {
                parameters.push(learn(&mut preparing, spec)?);
                continue;
            }
            let Some(graph::Parameter::Matrix(matrix)) = preparing.model.tensor(&spec.name) else {
                unreachable!("a model has every tensor of its checkpoint");
            };
            let device = preparing.pass.device;
            let packed = weights.load(spec)?;
            parameters.push(Box::new(Parameters::new(device, &spec.name, &packed, matrix)?));
        }
        Ok(parameters)
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
