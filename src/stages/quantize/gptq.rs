//! GPTQ ([`crate::methods::quantize::gptq`]) of the weights whose names match.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::KIND;
use super::calibrated::{Calibrated, Fittings, Solver, changed, have_inputs, report};
use super::target::{Rule, Target};
use crate::error::{Error, Result};
use crate::methods::BadField;
use crate::methods::calibration::Source;
use crate::methods::guided::{AT_ONCE, TokenRoots};
use crate::methods::obs::DEVICE_COLUMNS;
use crate::methods::prune::memory::estimate;
use crate::methods::prune::sparse::Pattern;
use crate::methods::quantize::fit::{Fitting, How};
use crate::methods::quantize::gptq::{Options, Sparse, has_zero};
use crate::model::{Compute, Config, Outline, Pass, TensorSpec, WeightSource, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{
    Context, Needs, Planned, Report, Stage, StageKind, keys, save_bytes, saved_bytes,
    without_encoder,
};
use crate::walk::Kind;

/// Quantization of the weights whose names match, column by column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Gptq {
    /// How codes are found
    #[arg(skip)]
    #[serde(default)]
    method: String,
    #[command(flatten)]
    #[serde(flatten)]
    target: Target,
    /// How a group's grid is found, of its weights as they are by then; in a search a column's error counts as much as the squares
    /// of its inputs (default: rtn by its rule, gptq by search)
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fit: Option<How>,
    /// Round the columns with the largest inputs first, on grids that are all found before; codes stand where they would anyway
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    by_activation: bool,
    /// What is added to the diagonal of Gram matrices, as a share of its mean [default: 0.01]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    damping: Option<f64>,
    /// Columns that are rounded before the rest of the matrix makes up for them [default: 128]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    block_columns: Option<usize>,
    /// Count a token as far as the end loss depends on what the layer gives for it, by the gradients of the model before anything is
    /// rounded (GuidedQuant)
    #[arg(long, conflicts_with = "stats")]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    guided: bool,
    /// Make weights 0 beside, those that stay making up for both (SparseGPT): a share of each matrix's next 128 columns, 0.5, or all but N
    /// of each M consecutive inputs, 2:4
    #[arg(long, value_name = "SHARE|N:M")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zeros: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    source: Source,
}

impl OfMethod for Gptq {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.source.calibration.fill(128, 256);
        self
    }
}

impl Gptq {
    fn rule(&self) -> Result<(Rule, Fittings, Solver), BadField> {
        let rule = self.target.rule()?;
        self.source.check()?;
        if self.guided && self.source.stats.is_some() {
            let expected = "false beside stats: what tokens count is known while they are walked through alone";
            return Err(BadField::new("guided", expected, true));
        }
        let damping = self.damping.unwrap_or(0.01);
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(BadField::new("damping", "0 or more", damping));
        }
        let block = self.block_columns.unwrap_or(128);
        if block == 0 {
            return Err(BadField::new("block_columns", "1 or more", 0));
        }
        let Some(scheme) = rule.scheme.filter(|_| !rule.format.ty.is_sparse()) else {
            let expected = "a type with scales and without a pattern";
            return Err(BadField::new("type", expected, rule.format.ty.name));
        };
        let how = self.fit.unwrap_or(How::Search);
        let sparse = self.sparse()?;
        if sparse.is_some() && self.by_activation {
            let expected =
                "none beside by_activation: what goes is chosen in the columns' own order";
            let found = self.zeros.as_deref().unwrap_or_default();
            return Err(BadField::new("zeros", expected, found));
        }
        if sparse.is_some() && !has_zero(rule.format.ty) {
            let expected = "a type that has a 0 where weights go: int1 to int8, uint1z to uint8z, q3_k, q6_k, ternary, floats or levels with one";
            return Err(BadField::new("type", expected, rule.format.ty.name));
        }
        let options = Options { damping, block, by_activation: self.by_activation, sparse };
        let fitting = Fitting::new(scheme, how)?;
        Ok((rule, Fittings::All(fitting), Solver::Gptq(options)))
    }

    /// What becomes 0 beside.
    fn sparse(&self) -> Result<Option<Sparse>, BadField> {
        let Some(text) = self.zeros.as_deref() else { return Ok(None) };
        let expected =
            "a share, more than 0 and less than 1, or N:M, N from 1 and less than M (2:4)";
        let wrong = || BadField::new("zeros", expected, text);
        let pattern = Pattern::groups(text).unwrap_or(Pattern::Tensor);
        let ratio = match pattern {
            Pattern::Tensor => Some(text.parse::<f64>().map_err(|_| wrong())?),
            _ => None,
        };
        let ratio = pattern.share(ratio).map_err(|_| wrong())?;
        Ok(Some(Sparse { pattern, ratio }))
    }

    /// Checks that a pattern divides the inputs of what is rounded.
    fn divides(&self, rule: &Rule, model: &Outline) -> Result<(), BadField> {
        let Some(Sparse { pattern: Pattern::Groups { keep, of }, .. }) = self.sparse()? else {
            return Ok(());
        };
        match rule.of(model).into_iter().find(|spec| !spec.columns.is_multiple_of(of)) {
            None => Ok(()),
            Some(spec) => {
                let expected =
                    format!("an M that divides the {} inputs of {}", spec.columns, spec.name);
                Err(BadField::new("zeros", expected, format!("{keep}:{of}")))
            }
        }
    }

    fn words(&self, rule: &Rule) -> String {
        let grid = rule.scheme.map_or("", |scheme| scheme.grid.name());
        let mut words = format!("gptq {grid} {}", rule.format.label());
        let rule_alone = self.fit == Some(How::Rule);
        let said = [
            (rule_alone, ", by rule"),
            (self.by_activation, ", by activation"),
            (self.guided, ", guided"),
        ];
        for (is, word) in said {
            words += if is { word } else { "" };
        }
        if let Some(zeros) = &self.zeros {
            words += &match zeros.contains(':') {
                true => format!(", {zeros}"),
                false => format!(", {zeros} of it 0"),
            };
        }
        words
    }
}

impl Stage for Gptq {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs::sums(&self.source, &[Kind::Gram])
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let (rule, ..) = self.rule().map_err(BadField::in_recipe)?;
        have_inputs(rule.of(model), &model.config).map_err(BadField::in_recipe)?;
        self.divides(&rule, model).map_err(BadField::in_recipe)?;
        if self.guided {
            let why = "tokens of its two stacks are weighed apart";
            without_encoder(&model.config, "guided", "true", why).map_err(BadField::in_recipe)?;
        }
        if self.guided && model.config.experts.is_some() {
            let expected = "false for a model with experts: which tokens an expert gets changes as blocks are rounded";
            return Err(BadField::new("guided", expected, true).in_recipe());
        }
        let (outline, changes, largest) =
            changed(model, &rule, &self.target.include, &self.words(&rule))?;
        let widest = outline.specs.iter().filter(|spec| rule.modules.have(spec));
        let widest = widest.map(|spec| spec.columns as u64).max().unwrap_or(0);
        let tokens = match self.needs().calibration {
            Some(calibration) => calibration.samples().saturating_mul(calibration.length()),
            None => 0,
        };
        let gram = widest * widest;
        // Gradients of the fewest rows that go through a block at once.
        let gradients = match self.needs().calibration.filter(|_| self.guided) {
            Some(rows) => {
                let length = rows.length().max(2);
                let rows = (AT_ONCE / length).clamp(1, rows.samples().max(1));
                estimate(model, &[], &[], Some((rows, length)), Compute::F32).streamed
            }
            None => 0,
        };
        let hidden = model.config.hidden_size as u64;
        let blocks = model.config.layers().max(1) as u64;
        Ok(Planned {
            // A block's weights as they were and as they became, the residual stream, one Gram matrix of each input; then a
            // Gram matrix and its factor, and what a matrix loses.
            peak_device_bytes: (2 * model.bytes() / blocks
                + (4 * tokens as u64).saturating_mul(hidden)
                + 8 * gram
                + if widest >= DEVICE_COLUMNS as u64 { 8 * gram + 12 * largest } else { 0 }
                + 4 * 4096 * (2 * widest + 8 * hidden))
                .max(gradients),
            // Weights in f64, what they lose, the Gram matrix, its factor and what that is made in.
            peak_host_bytes: 8 * (3 * largest + 4 * gram),
            outline,
            changes,
            warnings: Vec::new(),
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let (rule, fittings, solver) = self.rule().map_err(BadField::in_recipe)?;
        let chosen = rule.of(model);
        let roots =
            if self.guided { roots(model, &chosen, context)? } else { TokenRoots::default() };
        let method = Calibrated { fittings, solver, device: context.pass.device, roots };
        method.run(model, &chosen, self.source.feed(), context)
    }

    fn tidy(&self, folder: &Path) -> Result<()> {
        let path = folder.join(ROOTS);
        match path.exists() {
            true => std::fs::remove_file(&path).map_err(Error::write(&path)),
            false => Ok(()),
        }
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        report(folder)
    }
}

/// What [`TokenRoots`] are saved as in the stage's folder.
const ROOTS: &str = "roots.bin";

/// What tokens count, computed or as an interrupted run has saved it.
fn roots(
    model: &dyn Weights,
    chosen: &[&TensorSpec],
    context: &mut Context<'_>,
) -> Result<TokenRoots> {
    let rows = context.rows.expect("a stage that needs rows is given them");
    let saved = saved_bytes(context.folder, ROOTS)?;
    let saved = saved.and_then(|saved| TokenRoots::from_bytes(&saved, chosen, rows.ids.len()));
    if let Some(saved) = saved {
        return Ok(saved);
    }
    let pass = Pass { compute: context.training, ..context.pass };
    let source = WeightSource::Streamed(pass.device, model);
    let progress = &mut *context.progress;
    let roots = TokenRoots::new(source, &pass, chosen, rows, &mut |done, all| {
        progress("gradients", done, all);
    })?;
    save_bytes(context.folder, ROOTS, &roots.to_bytes())?;
    Ok(roots)
}
