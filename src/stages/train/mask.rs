//! Which weights stay is learned, by a score of each; the weights do not change.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Change, Learn, Preparing, Trained};
use crate::device::Device;
use crate::error::Result;
use crate::families::block_patterns;
use crate::methods::BadField;
use crate::methods::prune::sparse::Pattern;
use crate::model::{TensorSpec, Weights};
use crate::stages::Modules;
use crate::tensor::WeightFormat;
use crate::train::masked::{Masked, format_with_zeros};
use crate::train::{Learner, Parameter};

/// How many weights stay, and which compete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Mask {
    /// The share that goes, more than 0 and less than 1 [default: 0.5; of N:M its own]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Which weights compete: row, tensor (a matrix's), or N:M, of which N of each M consecutive inputs stay
    #[arg(long, value_name = "row|tensor|N:M", default_value_t = Self::default().pattern)]
    pub pattern: String,
    /// Learn masks of modules that match (* stands for anything; default: the linear layers of the blocks)
    #[arg(long, default_values_t = layers(), hide_default_value = true)]
    pub include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    pub exclude: Vec<String>,
}

fn layers() -> Vec<String> {
    block_patterns()
}

impl Default for Mask {
    fn default() -> Self {
        Self { ratio: None, pattern: "row".into(), include: layers(), exclude: Vec::new() }
    }
}

impl Mask {
    /// Which weights compete, and the share that goes.
    fn rule(&self) -> Result<(Pattern, f64), BadField> {
        let pattern = match self.pattern.as_str() {
            "row" => Pattern::Row,
            "tensor" => Pattern::Tensor,
            text => Pattern::groups(text).ok_or_else(|| {
                BadField::new("pattern", "row, tensor or N:M, N from 1 and less than M (2:4)", text)
            })?,
        };
        let own = match pattern {
            Pattern::Groups { keep, of } => Some(1.0 - keep as f64 / of as f64),
            Pattern::Row | Pattern::Tensor => None,
        };
        match (self.ratio, own) {
            (Some(ratio), Some(own)) if (ratio - own).abs() > 1e-3 || ratio.is_nan() => {
                let expected = format!("none beside {}, of which {own:.3} go", self.pattern);
                Err(BadField::new("ratio", expected, ratio))
            }
            (Some(ratio), _) if !(ratio > 0.0 && ratio < 1.0) => {
                Err(BadField::new("ratio", "more than 0 and less than 1", ratio))
            }
            (ratio, own) => Ok((pattern, own.or(ratio).unwrap_or(0.5))),
        }
    }
}

impl Learn for Mask {
    const USUAL_RATE: f64 = 1e-2;

    fn check(&self) -> Result<(), BadField> {
        Modules::new(&self.include, &self.exclude)?;
        self.rule().map(|_| ())
    }

    fn plan(&self, spec: &TensorSpec, format: WeightFormat) -> Result<Option<Change>, BadField> {
        if !Modules::new(&self.include, &self.exclude)?.have(spec) {
            return Ok(None);
        }
        let (pattern, ratio) = self.rule()?;
        let text = match pattern {
            Pattern::Groups { keep, of } => {
                if !spec.columns.is_multiple_of(of) {
                    let expected = format!("groups that fill rows of {}", spec.name);
                    let found = format!("{keep}:{of} of {} columns", spec.columns);
                    return Err(BadField::new("pattern", expected, found));
                }
                format!("mask learned, {keep}:{of}")
            }
            _ => format!("mask learned, {ratio} of each {} goes", self.pattern),
        };
        Ok(Some(Change {
            format: format_with_zeros(format),
            numbers: (spec.rows * spec.columns) as u64,
            text,
        }))
    }

    fn no_match(&self) -> BadField {
        let found = format!("{:?}, which match none", self.include);
        BadField::new("include", "patterns that match a weight", found)
    }

    fn prepare(&self, preparing: Preparing<'_>) -> Result<Vec<Box<dyn Parameter>>> {
        let (weights, device) = (preparing.weights, preparing.pass.device);
        let rule = self.rule().map_err(BadField::in_recipe)?;
        let dtype = preparing.pass.compute.activation;
        let mut parameters: Vec<Box<dyn Parameter>> = Vec::new();
        for spec in weights.specs() {
            let change = self.plan(spec, weights.format(spec)?).map_err(BadField::in_recipe)?;
            if change.is_none() {
                continue;
            }
            let masked = Masked::new(device, &spec.name, weights.load(spec)?, rule, dtype)?;
            preparing.model.set(&spec.name, masked.matrix(device)?);
            parameters.push(Box::new(masked));
        }
        Ok(parameters)
    }

    fn leaves_zeros(&self) -> bool {
        true
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
