//! Each weight goes to the nearest point of its group's grid (round to nearest). Grids are found from the weights alone, or by
//! what the group's error counts in the outputs.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::KIND;
use super::calibrated::{Calibrated, Fittings, Solver, changed, have_inputs, report};
use super::target::{Rule, Target};
use crate::device::Device;
use crate::error::Result;
use crate::methods::BadField;
use crate::methods::calibration::Source;
use crate::methods::guided::TokenRoots;
use crate::methods::quantize::fit::{Fitting, How};
use crate::methods::quantize::kept::kept;
use crate::methods::quantize::rtn::rtn;
use crate::model::{Config, CopyOf, Outline, TensorSpec, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Report, Stage, StageKind, keys};
use crate::tensor::{Packed, WeightFormat};
use crate::walk::Kind;

/// Quantization of the weights whose names match, each to the nearest point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Nearest {
    /// How codes are found
    #[arg(skip)]
    #[serde(default)]
    method: String,
    #[command(flatten)]
    #[serde(flatten)]
    target: Target,
    /// How a group's grid is found (default: rtn by its rule, gptq by search)
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fit: Option<How>,
    /// With --fit search: a column's error counts as much as the squares of its inputs, over a calibration text or --stats (an
    /// imatrix file is one)
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    weighted: bool,
    #[command(flatten)]
    #[serde(flatten)]
    source: Source,
}

impl OfMethod for Nearest {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.source.calibration.fill(128, 256);
        self
    }
}

impl Nearest {
    /// To a type, the linear layers of the blocks.
    pub fn of_type(ty: &str) -> Self {
        Self {
            method: "rtn".into(),
            target: Target::of_type(ty),
            fit: None,
            weighted: false,
            source: Source::default(),
        }
    }

    /// The patterns compiled; and how grids are found, where they are not found by their rule.
    fn rule(&self) -> Result<(Rule, Option<Fitting>), BadField> {
        let rule = self.target.rule()?;
        let how = match (self.method.as_str(), self.fit) {
            ("hqq", None) => How::Hqq,
            ("hqq", Some(_)) => return Err(BadField::new("fit", "none with hqq", "one")),
            (_, fit) => fit.unwrap_or_default(),
        };
        if self.weighted && how != How::Search {
            return Err(BadField::new("weighted", "fit search beside it", true));
        }
        if how == How::Rule {
            return Ok((rule, None));
        }
        let dense = rule.scheme.filter(|_| !rule.format.ty.is_sparse());
        let Some(scheme) = dense else {
            let expected = "a type with scales and without a pattern, where grids are looked for";
            return Err(BadField::new("type", expected, rule.format.ty.name));
        };
        Ok((rule, Some(Fitting::new(scheme, how)?)))
    }

    fn words(&self, rule: &Rule) -> String {
        let label = rule.format.label();
        let Some(scheme) = rule.scheme else { return format!("pack {label}") };
        let search = match (self.fit, self.weighted) {
            (_, true) => ", weighted search",
            (Some(How::Search), _) => ", search",
            _ => "",
        };
        format!("{} {} {label}{search}", self.method, scheme.grid.name())
    }
}

impl Stage for Nearest {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        let mut keys = keys(self);
        if !self.weighted {
            // It reads no text.
            keys.remove("calibration");
        }
        keys
    }

    fn needs(&self) -> Needs<'_> {
        match self.weighted {
            true => Needs::sums(&self.source, &[Kind::Squares]),
            false => Needs::default(),
        }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let (rule, _) = self.rule().map_err(BadField::in_recipe)?;
        if self.weighted {
            self.source.check().map_err(BadField::in_recipe)?;
            have_inputs(rule.of(model), &model.config).map_err(BadField::in_recipe)?;
        }
        let (outline, changes, largest) =
            changed(model, &rule, &self.target.include, &self.words(&rule))?;
        let largest = 4 * largest;
        Ok(Planned {
            outline,
            changes,
            peak_device_bytes: 2 * largest,
            peak_host_bytes: 3 * largest.max(4 * model.largest()),
            warnings: Vec::new(),
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let (rule, fitting) = self.rule().map_err(BadField::in_recipe)?;
        if self.weighted
            && let Some(fitting) = fitting
        {
            let fittings = Fittings::All(fitting);
            let device = context.pass.device;
            let method = Calibrated {
                fittings,
                solver: Solver::Nearest,
                device,
                roots: TokenRoots::default(),
            };
            return method.run(model, &rule.of(model), self.source.feed(), context);
        }
        let device = context.pass.device;
        context.write("quantizing", &Quantized { model, device, rule, fitting })
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        report(folder)
    }
}

/// A model that is quantized tensor by tensor, when each is asked for.
struct Quantized<'a> {
    model: &'a dyn Weights,
    device: &'a Device,
    rule: Rule,
    /// Of grids that are not found by their rule.
    fitting: Option<Fitting>,
}

impl Weights for Quantized<'_> {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let weight = self.model.load(spec)?;
        if !self.rule.modules.have(spec) {
            return Ok(weight);
        }
        if let Some(fitting) = &self.fitting {
            return fitting.round(&weight, None, &spec.name);
        }
        match (self.rule.scheme, self.rule.format.ty.sparsity) {
            (scheme, Some(pattern)) => kept(self.device, &weight, scheme, pattern, &spec.name),
            (Some(scheme), None) => rtn(self.device, &weight, scheme, &spec.name),
            (None, None) => Ok(weight),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        if self.rule.modules.have(spec) {
            return Ok(self.rule.format);
        }
        self.model.format(spec)
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        self.model.copy_of(spec).filter(|_| !self.rule.modules.have(spec))
    }
}
