//! SmoothQuant ([`crate::methods::transform::smooth`]).

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::KIND;
use super::scaled::{self, Observed};
use crate::device::Device;
use crate::error::Result;
use crate::methods::BadField;
use crate::methods::transform::smooth::{KINDS, Smoothed, check, find};
use crate::model::{Config, Outline, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Report, Stage, StageKind, keys};

/// Channels scaled so that activations have fewer outliers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Smooth {
    /// What becomes of the weights
    #[arg(skip)]
    #[serde(default)]
    method: String,
    /// How much of the difference between channels goes into the weights, 0 to 1 [default: 0.5]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alpha: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    observed: Observed,
}

impl OfMethod for Smooth {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.observed.calibration.fill(128, 256);
        self
    }
}

impl Smooth {
    fn exponent(&self) -> Result<f64, BadField> {
        check(self.alpha.unwrap_or(0.5))
    }
}

impl Stage for Smooth {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        self.observed.needs(&KINDS)
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        scaled::check(model, "smooth")?;
        let alpha = self.exponent().map_err(BadField::in_recipe)?;
        Ok(scaled::plan(model, &self.observed, &format!("smooth {alpha}"), false))
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let alpha = self.exponent().map_err(BadField::in_recipe)?;
        scaled::run::<Smoothed>(model, context, &KINDS, &mut |found, sums| {
            let (scales, told) = find(model, found, alpha, sums)?;
            Ok(Some((Some(scales), told)))
        })
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        _: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        scaled::unrounded::<Smoothed>(model, folder)
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let alpha = self.exponent().map_err(BadField::in_recipe)?;
        let method = json!({"name": self.method, "alpha": alpha});
        scaled::report::<Smoothed>(folder, method).map(Some)
    }
}
