//! What methods share that round block by block, by sums over their inputs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::target::Rule;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Slot;
use crate::methods::BadField;
use crate::methods::calibration::Feed;
use crate::methods::guided::TokenRoots;
use crate::methods::quantize::fit::Fitting;
use crate::methods::quantize::gptq::{self, Prepared};
use crate::methods::sequential::{
    Compressed, Compressor, Inputs, Layer, Replaced, Sums, compress, gram_sums, input_of, remove,
    reports, squares,
};
use crate::model::{Config, Outline, TensorSpec, Weights};
use crate::stages::{Context, Report, save, saved};
use crate::tensor::WeightFormat;
use crate::walk::Kind;

/// The stage's report.
pub(super) const ROUNDING: &str = "rounding.json";

/// A rounding by sums over inputs.
#[derive(Clone, Debug)]
pub(super) struct Calibrated<'a> {
    pub fittings: Fittings,
    pub solver: Solver,
    /// Where products are computed, other than the model's own.
    pub device: &'a Device,
    /// What tokens count, where it is not 1.
    pub roots: TokenRoots,
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
    /// The share of its weights that were made 0 beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    zeros: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// The layers of a block in the order in which they are rounded: each is calibrated on what the ones before it became.
const APART: &[&[Slot]] = &[
    &[Slot::Query],
    &[Slot::Output],
    &[Slot::Gate, Slot::ExpertGate(0)],
    &[Slot::Down, Slot::ExpertDown(0)],
];

impl Compressor for Calibrated<'_> {
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

    fn roots(&self, layer: usize) -> BTreeMap<Slot, &[f32]> {
        self.roots.of(layer)
    }

    fn compress(&self, layers: &[Layer<'_>], sums: &Sums) -> Result<Vec<Compressed>> {
        // Layers that share their input stand beside each other.
        let mut prepared: Option<(Slot, Prepared<'_>)> = None;
        layers.iter().map(|layer| self.tensor(layer, sums, &mut prepared)).collect()
    }
}

impl Calibrated<'_> {
    fn tensor<'s>(
        &'s self,
        layer: &Layer<'_>,
        sums: &Sums,
        prepared: &mut Option<(Slot, Prepared<'s>)>,
    ) -> Result<Compressed> {
        let spec = layer.spec;
        let fitting = self.fittings.of(spec);
        let gram = match self.solver {
            Solver::Gptq(_) => Some(gram_sums(spec, &sums.block)?),
            _ => None,
        };
        let squares = match (self.solver, gram) {
            (Solver::Plain, _) => Vec::new(),
            (_, Some(gram)) => (0..spec.columns).map(|i| gram[i * (spec.columns + 1)]).collect(),
            (_, None) => squares(spec, &sums.block, None)?,
        };
        let mut report = TensorReport {
            tensor: &spec.name,
            format: fitting.format().label(),
            error: None,
            damping: None,
            zeros: None,
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
                let (slot, span) = (input_of(spec), fitting.span(spec.columns));
                let known = prepared.take().filter(|(of, known)| *of == slot && known.takes(span));
                let start = std::time::Instant::now();
                let known = match known {
                    Some((_, known)) => known,
                    None => Prepared::new(gram, spec.columns, span, options, self.device)?
                        .map_err(|bad| Error::Tensor {
                            path: "quantize".into(),
                            tensor: spec.name.clone(),
                            expected: "a Gram matrix of its inputs that damping makes positive definite (more tokens, or a larger --damping)".into(),
                            found: format!("a pivot that is not positive at input {}", bad.pivot),
                        })?,
                };
                let factored = start.elapsed();
                let solved = gptq::solve(&layer.weight, &known, fitting, &spec.name)?;
                let rounded = start.elapsed() - factored;
                tracing::debug!("{}: factor in {factored:?}, rounded in {rounded:?}", spec.name);
                if known.damping() > options.damping {
                    report.warning = Some(format!(
                        "{}: the Gram matrix of its inputs is not positive definite with a damping of {}; {} was taken",
                        spec.name,
                        options.damping,
                        known.damping(),
                    ));
                }
                report.damping = Some(known.damping());
                report.error = Some(solved.error);
                report.zeros = options.sparse.map(|_| solved.gone);
                *prepared = Some((slot, known));
                solved.packed
            }
            _ => fitting.round(&layer.weight, Some(&squares), &spec.name)?,
        };
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
