//! Weights are learned that are rounded on their way into the model, with their scales, and norms.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::full::{learn, plain};
use super::scales::is_norm;
use super::{Change, Learn, Preparing, Trained};
use crate::device::Device;
use crate::error::Result;
use crate::families::block_patterns;
use crate::kernels::quantize::scale_grad::has_real_scales;
use crate::methods::BadField;
use crate::methods::quantize::rtn::rtn;
use crate::methods::quantize::{Grid, Scheme};
use crate::model::{TensorSpec, Weights};
use crate::stages::Modules;
use crate::stages::quantize::Target;
use crate::tensor::{Scale, WeightFormat};
use crate::train::rounded::Rounded;
use crate::train::{Learner, Parameter};

/// What weights are rounded to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Quantized {
    /// Bits of a code, 1 to 8 [default: 4]
    #[arg(long, conflicts_with = "ty")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// A weight type instead, as `lopper quantize --type` takes it
    #[arg(long = "type", id = "ty", value_name = "TYPE")]
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub ty: Option<String>,
    /// Columns that share a scale: a power of two from 16, or 0 for a whole row
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<u32>,
    /// How a group's range becomes a grid
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<Grid>,
    /// Learn modules that match (* stands for anything; default: the linear layers of the blocks)
    #[arg(long, default_values_t = layers(), hide_default_value = true)]
    pub include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    pub exclude: Vec<String>,
    /// Learn the norms of the blocks too
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = true)]
    pub norms: bool,
}

fn layers() -> Vec<String> {
    block_patterns()
}

impl Default for Quantized {
    fn default() -> Self {
        Self {
            bits: None,
            ty: None,
            group_size: None,
            grid: None,
            include: layers(),
            exclude: Vec::new(),
            norms: true,
        }
    }
}

impl Quantized {
    /// What they are rounded to.
    fn target(&self) -> Target {
        Target {
            bits: self.bits,
            ty: self.ty.clone(),
            group_size: self.group_size,
            grid: self.grid,
            ..Target::of_type("")
        }
    }

    pub(super) fn scheme(&self) -> Result<Scheme, BadField> {
        self.target().scheme()?.ok_or_else(|| {
            BadField::new("type", "a type with scales", self.ty.as_deref().unwrap_or_default())
        })
    }
}

impl Learn for Quantized {
    const USUAL_RATE: f64 = 1e-4;
    const OF_MATRICES: bool = true;

    fn check(&self) -> Result<(), BadField> {
        Modules::new(&self.include, &self.exclude)?;
        let format = self.scheme()?.format()?;
        if format.ty.super_block().is_some() {
            let expected = "a type without super-blocks, whose integers are not learned";
            return Err(BadField::new("type", expected, format.ty.name));
        }
        Ok(())
    }

    fn plan(&self, spec: &TensorSpec, format: WeightFormat) -> Result<Option<Change>, BadField> {
        if self.norms && is_norm(spec) {
            let numbers = spec.columns as u64;
            return Ok(Some(Change { format: plain(format), numbers, text: "learned".into() }));
        }
        if !Modules::new(&self.include, &self.exclude)?.have(spec) {
            return Ok(None);
        }
        let scheme = self.scheme()?;
        let format = scheme.format()?;
        let groups = spec.columns.div_ceil(format.group_columns(spec.columns));
        let scales = match format.ty.scale {
            Scale::Offset => 2,
            _ => usize::from(has_real_scales(format.ty)),
        };
        Ok(Some(Change {
            format,
            numbers: (spec.rows * (spec.columns + scales * groups)) as u64,
            text: format!("learned as {} {}", scheme.grid.name(), format.label()),
        }))
    }

    fn no_match(&self) -> BadField {
        let found = format!("{:?}, which match none", self.include);
        BadField::new("include", "patterns that match a weight", found)
    }

    fn prepare(&self, mut preparing: Preparing<'_>) -> Result<Vec<Box<dyn Parameter>>> {
        let (weights, device) = (preparing.weights, preparing.pass.device);
        let scheme = self.scheme().map_err(BadField::in_recipe)?;
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
            let weight = weights.load(spec)?;
            let packed = rtn(device, &weight, scheme, &spec.name)?;
            let rounded = Rounded::new(device, &spec.name, &weight.to_f32(), &packed)?;
            preparing.model.set(&spec.name, rounded.matrix(device)?);
            parameters.push(Box::new(rounded));
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
