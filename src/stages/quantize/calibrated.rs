//! What methods share that round block by block, by sums over their inputs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::target::Rule;
use crate::error::{Error, Result};
use crate::graph::Slot;
use crate::methods::BadField;
use crate::methods::calibration::Feed;
use crate::methods::prune::sparse::squared_outputs;
use crate::methods::quantize::fit::Fitting;
use crate::methods::quantize::gptq;
use crate::methods::sequential::{
    Compressed, Compressor, Inputs, Layer, Replaced, Sums, compress, gram, input_of, remove,
    reports, squares,
};
use crate::model::{Config, Outline, TensorSpec, Weights};
use crate::stages::{Context, Report, save, saved};
use crate::tensor::{Packed, WeightFormat};
use crate::walk::Kind;

/// The stage's report.
pub(super) const ROUNDING: &str = "rounding.json";

/// A rounding by sums over inputs.
#[derive(Clone, Debug)]
pub(super) struct Calibrated {
    pub fittings: Fittings,
    pub solver: Solver,
}

/// How grids are found, of every tensor, or of each by its name.
#[derive(Clone, Debug)]
pub(super) enum Fittings {
    All(Fitting),
    Each(BTreeMap<String, Fitting>),
}

impl Fittings {
    fn of(&self, spec: &TensorSpec) -> &Fitting {
        match self {
            Fittings::All(fitting) => fitting,
            Fittings::Each(each) => &each[&spec.name],
        }
    }
}

/// How the codes on its grids are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Solver {
    /// The nearest, without inputs.
    Plain,
    /// The nearest, on grids for which a column's error counts as much as the squares of its inputs.
    Nearest,
    Gptq(gptq::Options),
}

/// What is told of a tensor in `rounding.json`.
#[derive(Debug, Serialize)]
struct TensorReport<'a> {
    tensor: &'a str,
    format: String,
    /// ||X (W - W')^T||^2 / ||X W^T||^2 over the tokens whose Gram matrix was used.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<f64>,
    /// Of the mean diagonal.
    #[serde(skip_serializing_if = "Option::is_none")]
    damping: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// The layers of a block in the order in which they are rounded: each is calibrated on what the ones before it became.
const APART: &[&[Slot]] = &[&[Slot::Query], &[Slot::Output], &[Slot::Gate], &[Slot::Down]];

impl Compressor for Calibrated {
    fn kinds(&self) -> &[Kind] {
        match self.solver {
            Solver::Plain => &[],
            Solver::Nearest => &[Kind::Squares],
            Solver::Gptq(_) => &[Kind::Gram],
        }
    }

    fn groups(&self) -> &[&[Slot]] {
        APART
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        Ok(self.fittings.of(spec).format())
    }

    fn compress(&self, layers: &[Layer<'_>], sums: &Sums) -> Result<Vec<Compressed>> {
        let mut grams: BTreeMap<Slot, Vec<f64>> = BTreeMap::new();
        let mut all = Vec::new();
        for layer in layers {
            let slot = input_of(layer.spec);
            if matches!(self.solver, Solver::Gptq(_)) && !grams.contains_key(&slot) {
                grams.clear();
                grams.insert(slot, gram(layer.spec, &sums.block)?);
            }
            all.push(self.tensor(layer, sums, grams.get(&slot).map(Vec::as_slice))?);
        }
        Ok(all)
    }
}

impl Calibrated {
    fn tensor(&self, layer: &Layer<'_>, sums: &Sums, gram: Option<&[f64]>) -> Result<Compressed> {
        let spec = layer.spec;
        let fitting = self.fittings.of(spec);
        let squares = match self.solver {
            Solver::Plain => Vec::new(),
            _ => squares(spec, &sums.block, gram)?,
        };
        let mut report = TensorReport {
            tensor: &spec.name,
            format: fitting.format().label(),
            error: None,
            damping: None,
            warning: None,
        };
        let seen = squares.iter().any(|square| *square > 0.0);
        let packed = match (self.solver, gram) {
            (Solver::Plain, _) => fitting.round(&layer.weight, None, &spec.name)?,
            _ if !seen => {
                report.warning = Some(format!(
                    "{}: no token of the calibration gave it an input other than 0; it is rounded without one",
                    spec.name
                ));
                fitting.round(&layer.weight, None, &spec.name)?
            }
            (Solver::Gptq(options), Some(gram)) => {
                let solved = gptq::solve(&layer.weight, gram, fitting, options, &spec.name)?;
                let solved = solved.map_err(|bad| Error::Tensor {
                    path: "quantize".into(),
                    tensor: spec.name.clone(),
                    expected: "a Gram matrix of its inputs that damping makes positive definite (more tokens, or a larger --damping)".into(),
                    found: format!("a pivot that is not positive at input {}", bad.pivot),
                })?;
                if solved.damping > options.damping {
                    report.warning = Some(format!(
                        "{}: the Gram matrix of its inputs is not positive definite with a damping of {}; {} was taken",
                        spec.name, options.damping, solved.damping,
                    ));
                }
                report.damping = Some(solved.damping);
                solved.packed
            }
            _ => fitting.round(&layer.weight, Some(&squares), &spec.name)?,
        };
        report.error = gram.filter(|_| seen).map(|gram| lost(&layer.weight, &packed, gram));
        let report = serde_json::to_value(&report).expect("reports are plain values");
        Ok(Compressed { weight: packed, report })
    }

    /// Rounds these tensors of a model, and writes the stage's result.
    pub fn run(
        &self,
        model: &dyn Weights,
        chosen: &[&TensorSpec],
        feed: Feed,
        context: &mut Context<'_>,
    ) -> Result<Config> {
        let folder = context.folder;
        if !folder.join(ROUNDING).exists() {
            let inputs = match self.kinds() {
                [] => Inputs::None,
                _ => context.inputs(feed),
            };
            let progress = &mut *context.progress;
            compress(model, chosen, inputs, self, folder, &mut |done, all| {
                progress("quantizing", done, all);
            })?;
            save(folder, ROUNDING, &reports(folder)?)?;
        }
        let config = context.write("writing", &Replaced::new(model, chosen, self, folder)?)?;
        remove(folder)?;
        Ok(config)
    }
}

/// What a matrix loses in its outputs, relative to them.
fn lost(weight: &Packed, packed: &Packed, gram: &[f64]) -> f64 {
    let wide =
        |packed: &Packed| -> Vec<f64> { packed.to_f32().into_iter().map(f64::from).collect() };
    let (weight, packed) = (wide(weight), wide(packed));
    let columns = gram.len().isqrt();
    let away: Vec<f64> = weight.iter().zip(&packed).map(|(a, b)| a - b).collect();
    let whole = squared_outputs(&weight, columns, gram);
    if whole > 0.0 { squared_outputs(&away, columns, gram) / whole } else { 0.0 }
}

/// An error if one of these tensors of a model has no inputs whose sums are its own: an embedding that is not the head too.
pub(super) fn have_inputs<'a>(
    tensors: impl IntoIterator<Item = &'a TensorSpec>,
    config: &Config,
) -> Result<(), BadField> {
    let mut tensors = tensors.into_iter();
    match tensors.find(|spec| spec.slot == Slot::Embedding && !config.tied) {
        None => Ok(()),
        Some(spec) => {
            let expected = "weights that are multiplied with inputs; an embedding is looked up in (rtn rounds it)";
            Err(BadField::new("include", expected, spec.module()))
        }
    }
}

/// The report of a stage that left one.
pub(super) fn report(folder: &Path) -> Result<Option<Report>> {
    let Some(tensors) = saved::<Vec<Value>>(folder, ROUNDING)? else { return Ok(None) };
    let warnings = tensors.iter().filter_map(|tensor| tensor["warning"].as_str());
    let warnings = warnings.map(String::from).collect();
    let value = json!({"schema": 1, "tensors": tensors});
    Ok(Some(Report { warnings, ..Report::new(ROUNDING, value) }))
}

/// The outline with what a rule names in its format, the words for each such tensor, and the weights of the largest.
pub(super) fn changed(
    model: &Outline,
    rule: &Rule,
    include: &[String],
    words: &str,
) -> Result<(Outline, HashMap<String, String>, u64)> {
    let mut outline = model.clone();
    let (mut changes, mut largest) = (HashMap::new(), 0);
    let formats = outline.formats.iter_mut().zip(&mut outline.copies);
    for (spec, (format, copy)) in outline.specs.iter().zip(formats) {
        if rule.modules.have(spec) {
            (*format, *copy) = (rule.format, None);
            changes.insert(spec.name.clone(), words.to_string());
            largest = largest.max((spec.rows * spec.columns) as u64);
        }
    }
    if changes.is_empty() {
        let found = format!("{include:?}, which match none");
        return Err(BadField::new("include", "patterns that match a weight", found).in_recipe());
    }
    Ok((outline, changes, largest))
}
