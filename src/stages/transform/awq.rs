//! AWQ ([`crate::methods::transform::awq`]) for a type that weights will be quantized to.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::KIND;
use super::scaled::{self, Observed};
use crate::device::Device;
use crate::error::Result;
use crate::methods::BadField;
use crate::methods::quantize::fit::{Fitting, How};
use crate::methods::transform::awq::{KINDS, Loss, Search};
use crate::methods::transform::scale::is_scaled;
use crate::model::{Config, Outline, Role, Weights};
use crate::stages::method::OfMethod;
use crate::stages::quantize::{Rule, Target};
use crate::stages::{Context, Needs, Planned, Report, Stage, StageKind, keys};

/// Channels scaled so that weights of some modules lose little in a type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Awq {
    /// What becomes of the weights
    #[arg(skip)]
    #[serde(default)]
    method: String,
    #[command(flatten)]
    #[serde(flatten)]
    target: Target,
    /// Exponents of activations that are tried, from 0 up to 1 [default: 20]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alphas: Option<usize>,
    /// Let the magnitudes of weights divide, as AutoAWQ does
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    duo: bool,
    #[command(flatten)]
    #[serde(flatten)]
    observed: Observed,
}

/// Exponents that are tried; more are no use.
const MOST_ALPHAS: usize = 1000;

impl OfMethod for Awq {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.observed.calibration.fill(128, 256);
        self
    }
}

impl Awq {
    fn rule(&self) -> Result<(Rule, Search), BadField> {
        let rule = self.target.rule()?;
        let alphas = self.alphas.unwrap_or(20);
        if !(1..=MOST_ALPHAS).contains(&alphas) {
            return Err(BadField::new("alphas", format!("1 to {MOST_ALPHAS}"), alphas));
        }
        let Some(scheme) = rule.scheme.filter(|_| !rule.format.ty.is_sparse()) else {
            let expected = "a type with scales and without a pattern";
            return Err(BadField::new("type", expected, rule.format.ty.name));
        };
        // As rtn rounds: integers of super-blocks have no rule.
        let how = if rule.format.ty.super_block().is_some() { How::Search } else { How::Rule };
        let fitting = Fitting::new(scheme, how)?;
        Ok((rule, Search { alphas, duo: self.duo, fitting }))
    }
}

impl Stage for Awq {
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
        scaled::check(model, "awq")?;
        let (rule, _) = self.rule().map_err(BadField::in_recipe)?;
        let rounded = |spec: &_| is_scaled(spec) && rule.modules.have(spec);
        let mut linear = model.specs.iter().filter(|spec| spec.role == Role::Linear);
        if !linear.any(rounded) {
            let expected = "patterns that match a linear layer of a block";
            let found = format!("{:?}, which match none", self.target.include);
            return Err(BadField::new("include", expected, found).in_recipe());
        }
        let duo = if self.duo { ", duo" } else { "" };
        let words = format!("awq for {}{duo}", rule.format.label());
        Ok(scaled::plan(model, &self.observed, &words, true))
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let (rule, search) = self.rule().map_err(BadField::in_recipe)?;
        let device = context.pass.device;
        scaled::run::<Loss>(model, context, &KINDS, &mut |found, sums| {
            let rounded = |spec: &_| rule.modules.have(spec);
            search.find(device, model, found, &rounded, sums)
        })
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        _: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        scaled::unrounded::<Loss>(model, folder)
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let format = self.target.format().map_err(BadField::in_recipe)?.label();
        let method = json!({"name": self.method, "type": format, "duo": self.duo});
        scaled::report::<Loss>(folder, method).map(Some)
    }
}
