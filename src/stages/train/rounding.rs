//! How weights are rounded is learned, up or down and over how much of their range; the weights do not change.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::quantized::Quantized;
use super::{Change, Learn, Preparing, Trained};
use crate::device::Device;
use crate::error::Result;
use crate::families::block_patterns;
use crate::methods::BadField;
use crate::methods::quantize::rtn::rtn;
use crate::methods::quantize::{Grid, Scheme};
use crate::model::{TensorSpec, Weights};
use crate::stages::Modules;
use crate::tensor::WeightFormat;
use crate::train::rounding::{Rounding as Parameters, can_be_learned};
use crate::train::{Learner, Parameter};

/// What weights are rounded to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Rounding {
    /// Bits of a code, 1 to 8 [default: 4]
    #[arg(long, conflicts_with = "ty")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// A weight type instead, as `lopper quantize --type` takes it, of integer codes
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
    /// Round modules that match (* stands for anything; default: the linear layers of the blocks)
    #[arg(long, default_values_t = layers(), hide_default_value = true)]
    pub include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    pub exclude: Vec<String>,
}

fn layers() -> Vec<String> {
    block_patterns()
}

impl Default for Rounding {
    fn default() -> Self {
        Self {
            bits: None,
            ty: None,
            group_size: None,
            grid: None,
            include: layers(),
            exclude: Vec::new(),
        }
    }
}

impl Rounding {
    fn scheme(&self) -> Result<(Scheme, WeightFormat), BadField> {
        let same = Quantized {
            bits: self.bits,
            ty: self.ty.clone(),
            group_size: self.group_size,
            grid: self.grid,
            ..Quantized::default()
        };
        let scheme = same.scheme()?;
        let format = scheme.format()?;
        match can_be_learned(format.ty) {
            true => Ok((scheme, format)),
            false => {
                let field = if self.grid.is_some() { "grid" } else { "type" };
                Err(BadField::new(field, "one of integer codes with scales", format.label()))
            }
        }
    }
}

impl Learn for Rounding {
    // Of all steps together: a share goes from 0 to its bound if every step has the same sign.
    const USUAL_RATE: f64 = 1.0;
    const BY_SIGN: bool = true;

    fn check(&self) -> Result<(), BadField> {
        Modules::new(&self.include, &self.exclude)?;
        self.scheme().map(|_| ())
    }

    fn plan(&self, spec: &TensorSpec, _: WeightFormat) -> Result<Option<Change>, BadField> {
        if !Modules::new(&self.include, &self.exclude)?.have(spec) {
            return Ok(None);
        }
        let (scheme, format) = self.scheme()?;
        let groups = format.groups_per_row(spec.columns);
        Ok(Some(Change {
            format,
            numbers: (spec.rows * (spec.columns + 2 * groups)) as u64,
            text: format!("rounding learned, {} {}", scheme.grid.name(), format.label()),
        }))
    }

    fn no_match(&self) -> BadField {
        let found = format!("{:?}, which match none", self.include);
        BadField::new("include", "patterns that match a weight", found)
    }

    fn prepare(&self, preparing: Preparing<'_>) -> Result<Vec<Box<dyn Parameter>>> {
        let (weights, device) = (preparing.weights, preparing.pass.device);
        let (scheme, _) = self.scheme().map_err(BadField::in_recipe)?;
        let mut parameters: Vec<Box<dyn Parameter>> = Vec::new();
        for spec in weights.specs() {
            let change = self.plan(spec, weights.format(spec)?).map_err(BadField::in_recipe)?;
            if change.is_none() {
                continue;
            }
            let weight = weights.load(spec)?;
            let packed = rtn(device, &weight, scheme, &spec.name)?;
            let rounding = Parameters::new(device, &spec.name, &weight.to_f32(), &packed)?;
            preparing.model.set(&spec.name, rounding.matrix(device)?);
            parameters.push(Box::new(rounding));
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
