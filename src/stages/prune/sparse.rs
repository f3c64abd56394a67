//! Sparsity: single weights become zero, by their magnitude, by Wanda or by SparseGPT; the shapes stay.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::KIND;
use super::channels::share;
use crate::error::{Error, Result};
use crate::families::block_patterns;
use crate::graph::Slot;
use crate::methods::BadField;
use crate::methods::calibration::{Feed, Source};
use crate::methods::linalg::squared_outputs;
use crate::methods::prune::sparse::allocate::{Threshold, outlier_share, spread};
use crate::methods::prune::sparse::gpt;
use crate::methods::prune::sparse::refit::{outputs, refit};
use crate::methods::prune::sparse::swaps::improve;
use crate::methods::prune::sparse::{
    Pattern, count, keep_highest, masked, scores, with_zeros, zero_code,
};
use crate::methods::sequential::{
    Compressed, Compressor, Inputs, Layer, Replaced, Sums, compress, gram, input_of, remove,
    reports, squares, survey,
};
use crate::model::{Config, Outline, TensorSpec, Weights, stored};
use crate::stages::method::OfMethod;
use crate::stages::{
    Context, Modules, Needs, Planned, Report, Stage, StageKind, keys, save, saved,
};
use crate::tensor::WeightFormat;
use crate::walk::{BlockSums, Kind};

/// Single weights become zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Sparsify {
    /// How what goes is found
    #[arg(skip)]
    #[serde(default)]
    pub method: SparseMethod,
    /// The share that goes, more than 0 and less than 1
    #[arg(long, value_parser = share)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Which weights compete: tensor (a matrix's; sparsegpt: those of its next 128 columns), row, global (those of all
    /// matrices), or N:M, of which N of each M consecutive inputs stay [default: magnitude, sparsegpt tensor, wanda row]
    #[arg(long, value_name = "tensor|row|global|N:M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Ratios of some modules, PATTERN=RATIO (* stands for anything; 0: they stay whole); the last that matches counts
    #[arg(long = "ratios", value_name = "PATTERN=RATIO")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ratios: Vec<String>,
    /// How much of each block goes
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub allocate: Allocate,
    /// Most that a block's share is from the mean, of owl and sensitivity [default: 0.08]
    #[arg(long, value_name = "LAMBDA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// Of owl: a score that is so many times its block's mean is an outlier [default: 5]
    #[arg(long, value_name = "M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_factor: Option<f64>,
    /// Improve the mask: exchange at most so many pairs of a row, a weight that goes for one that stays, while its error falls
    /// (SparseSwaps)
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swaps: Option<usize>,
    /// Solve again for the weights that stay, by least squares: each layer's outputs should be the dense model's, of the inputs that
    /// the layers before leave it, in a block one after the other
    #[arg(long)]
    #[serde(default)]
    pub refit: bool,
    /// What is added to the diagonal of Gram matrices that are solved with, as a share of its mean [default: 0.01]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Columns that are masked at once [default: 128]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_columns: Option<usize>,
    /// Prune modules that match (* stands for anything; default: the linear layers of the blocks); norms and biases never
    #[arg(long, default_values_t = default_include(), hide_default_value = true)]
    #[serde(default = "default_include")]
    pub include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Where statistics come from
    #[command(flatten)]
    #[serde(flatten)]
    pub source: Source,
}

/// How weights that go are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SparseMethod {
    /// The smallest magnitudes.
    #[default]
    Magnitude,
    /// Magnitudes times norms of their inputs.
    Wanda,
    /// What costs least if the weights behind it make up for it.
    Sparsegpt,
}

/// How much of each block goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Allocate {
    /// The same share of each.
    #[default]
    Uniform,
    /// Less of blocks with more outliers (OWL).
    Owl,
    /// Less of blocks whose outputs change more at the even share.
    Sensitivity,
}

fn default_include() -> Vec<String> {
    block_patterns()
}

/// Shares of tensors, once they are found.
const SHARES: &str = "shares.json";
/// The stage's report.
const MASKS: &str = "masks.json";

impl Sparsify {
    /// The sums that it takes in all.
    fn kinds(&self) -> &'static [Kind] {
        let solves = self.refit || self.swaps.is_some() || self.method == SparseMethod::Sparsegpt;
        let solves = solves || self.allocate == Allocate::Sensitivity;
        kinds(solves, self.method == SparseMethod::Wanda || self.allocate == Allocate::Owl)
    }

    /// Checks the stage against a model of these tensors.
    fn rule(&self, model: &Outline) -> Result<Rule, BadField> {
        let (pattern, global) = self.pattern()?;
        let ratio = pattern.share(self.ratio)?;
        self.source.check()?;
        let solves = self.refit || self.method == SparseMethod::Sparsegpt;
        let sparsegpt = self.method == SparseMethod::Sparsegpt;
        let groups = matches!(pattern, Pattern::Groups { .. });
        if sparsegpt && global {
            let expected =
                "tensor, row or N:M with sparsegpt, whose scores are known block by block";
            return Err(BadField::new("pattern", expected, "global"));
        }
        if sparsegpt && self.swaps.is_some() && !self.refit {
            let expected =
                "--refit beside it, which solves again for the weights of a mask that changed";
            return Err(BadField::new("swaps", expected, "sparsegpt alone"));
        }
        if self.swaps == Some(0) {
            return Err(BadField::new("swaps", "1 or more", 0));
        }
        let damping = self.damping.unwrap_or(0.01);
        if self.damping.is_some() && !solves {
            let expected = "none, unless something is solved for (sparsegpt or --refit)";
            return Err(BadField::new("damping", expected, damping));
        }
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(BadField::new("damping", "0 or more", damping));
        }
        let block_columns = self.block_columns.unwrap_or(128);
        if self.block_columns.is_some() && !sparsegpt {
            return Err(BadField::new("block_columns", "none but with sparsegpt", block_columns));
        }
        if block_columns == 0 {
            return Err(BadField::new("block_columns", "1 or more", 0));
        }
        if self.allocate != Allocate::Uniform && (groups || global) {
            let expected = "uniform where the pattern says what goes of each matrix";
            let found = if groups { "N:M" } else { "global" };
            return Err(BadField::new("allocate", expected, found));
        }
        for (field, value, method) in [
            ("spread", self.spread, self.allocate != Allocate::Uniform),
            ("outlier_factor", self.outlier_factor, self.allocate == Allocate::Owl),
        ] {
            let Some(value) = value else { continue };
            if !method {
                let expected = "none but with --allocate owl (spread: or sensitivity)";
                return Err(BadField::new(field, expected, value));
            }
            if !(value > 0.0 && value.is_finite()) {
                return Err(BadField::new(field, "more than 0", value));
            }
        }
        let rule = Rule {
            method: self.method,
            pattern,
            global,
            ratio,
            by_hand: self.by_hand(groups)?,
            modules: Modules::new(&self.include, &self.exclude)?,
            allocate: self.allocate,
            spread: self.spread.unwrap_or(0.08),
            outlier_factor: self.outlier_factor.unwrap_or(5.0),
            swaps: self.swaps,
            refit: self.refit,
            damping,
            block_columns,
        };
        rule.check(model, &self.include)?;
        Ok(rule)
    }

    fn pattern(&self) -> Result<(Pattern, bool), BadField> {
        let expected = "tensor, row, global or N:M, N from 1 and less than M (2:4)";
        let wrong = |found: &str| BadField::new("pattern", expected, found);
        match self.pattern.as_deref() {
            None if self.method == SparseMethod::Wanda => Ok((Pattern::Row, false)),
            None | Some("tensor") => Ok((Pattern::Tensor, false)),
            Some("row") => Ok((Pattern::Row, false)),
            Some("global") => Ok((Pattern::Tensor, true)),
            Some(text) => match Pattern::groups(text) {
                Some(groups) => Ok((groups, false)),
                None => Err(wrong(text)),
            },
        }
    }

    fn by_hand(&self, groups: bool) -> Result<Vec<(glob::Pattern, f64)>, BadField> {
        let read = |text: &String| {
            let wrong = || {
                let expected = "PATTERN=RATIO, the ratio from 0 and less than 1";
                BadField::new("ratios", expected, text)
            };
            let (pattern, ratio) = text.rsplit_once('=').ok_or_else(wrong)?;
            let pattern = glob::Pattern::new(pattern).map_err(|_| wrong())?;
            let ratio = ratio.parse::<f64>().map_err(|_| wrong())?;
            if groups && ratio != 0.0 {
                let expected = "ratios of 0 only beside N:M";
                return Err(BadField::new("ratios", expected, text));
            }
            match (0.0..1.0).contains(&ratio) {
                true => Ok((pattern, ratio)),
                false => Err(wrong()),
            }
        };
        self.ratios.iter().map(read).collect()
    }
}

/// A stage, checked.
#[derive(Clone)]
struct Rule {
    method: SparseMethod,
    pattern: Pattern,
    /// Whether the shares of matrices are found by one threshold over all of them.
    global: bool,
    ratio: f64,
    by_hand: Vec<(glob::Pattern, f64)>,
    modules: Modules,
    allocate: Allocate,
    spread: f64,
    outlier_factor: f64,
    swaps: Option<usize>,
    refit: bool,
    damping: f64,
    block_columns: usize,
}

impl Rule {
    /// The ratio that was set by hand for a tensor.
    fn fixed(&self, spec: &TensorSpec) -> Option<f64> {
        let own = self.by_hand.iter().rev().find(|(pattern, _)| pattern.matches(spec.module()));
        own.map(|(_, ratio)| *ratio)
    }

    fn applies(&self, spec: &TensorSpec) -> bool {
        self.modules.have(spec) && self.fixed(spec) != Some(0.0)
    }

    fn chosen<'s>(&self, specs: &'s [TensorSpec]) -> Vec<&'s TensorSpec> {
        specs.iter().filter(|spec| self.applies(spec)).collect()
    }

    fn check(&self, model: &Outline, include: &[String]) -> Result<(), BadField> {
        let chosen = self.chosen(&model.specs);
        if chosen.is_empty() {
            let found = format!("{include:?}, which match none");
            return Err(BadField::new("include", "patterns that match a weight", found));
        }
        for (pattern, _) in &self.by_hand {
            if !model.specs.iter().any(|s| self.modules.have(s) && pattern.matches(s.module())) {
                let expected = "patterns that match a module that is pruned";
                return Err(BadField::new(
                    "ratios",
                    expected,
                    format!("{pattern}, which matches none"),
                ));
            }
        }
        for spec in chosen {
            if let Pattern::Groups { keep, of } = self.pattern
                && !spec.columns.is_multiple_of(of)
            {
                let expected =
                    format!("an M that divides the {} inputs of {}", spec.columns, spec.name);
                return Err(BadField::new("pattern", expected, format!("{keep}:{of}")));
            }
            let lookup = spec.slot == Slot::Embedding && !model.config.tied;
            if lookup && !(self.kinds().is_empty() && self.survey().is_empty()) {
                let expected = "weights that are multiplied with inputs; an embedding is looked up in (magnitude alone prunes it)";
                return Err(BadField::new("include", expected, spec.module()));
            }
        }
        Ok(())
    }

    /// Whether weights that stay change.
    fn solves(&self) -> bool {
        self.refit || self.method == SparseMethod::Sparsegpt
    }

    /// The sums that weights are found with. The squares are the diagonal of the Gram matrix, where that is there.
    fn kinds(&self) -> &'static [Kind] {
        let solves = self.solves() || self.swaps.is_some();
        kinds(solves, self.method == SparseMethod::Wanda)
    }

    /// The sums that shares are found with, of the parent.
    fn survey(&self) -> &'static [Kind] {
        match self.allocate {
            Allocate::Uniform if self.global && self.method == SparseMethod::Wanda => {
                &[Kind::Squares]
            }
            Allocate::Uniform => &[],
            Allocate::Owl => &[Kind::Squares],
            Allocate::Sensitivity => &[Kind::Gram],
        }
    }

    /// The format that a tensor is left in.
    fn format(&self, before: WeightFormat) -> WeightFormat {
        let dense = !before.ty.has_scales() && before.ty.sparsity.is_none();
        match dense || (!self.solves() && zero_code(before).is_some()) {
            true => before,
            false => WeightFormat::f16(),
        }
    }

    /// In the words of plans.
    fn words(&self, spec: &TensorSpec, before: WeightFormat) -> String {
        let method = match self.method {
            SparseMethod::Magnitude => "magnitude",
            SparseMethod::Wanda => "wanda",
            SparseMethod::Sparsegpt => "sparsegpt",
        };
        let what = match (self.pattern, self.fixed(spec)) {
            (Pattern::Groups { keep, of }, _) => format!("{keep}:{of}"),
            (_, Some(ratio)) => format!("{ratio} zeros"),
            (_, None) if self.global => format!("{} zeros of all", self.ratio),
            (_, None) if self.allocate != Allocate::Uniform => {
                format!("about {} zeros", self.ratio)
            }
            (Pattern::Row, None) => format!("{} zeros a row", self.ratio),
            (_, None) => format!("{} zeros", self.ratio),
        };
        let mut text = format!("{method} {what}");
        if self.swaps.is_some() {
            text += ", swaps";
        }
        if self.refit {
            text += ", refit";
        }
        let after = self.format(before);
        if after != before {
            text += &format!(", dequantized to {}", after.label());
        }
        text
    }
}

/// Gram matrices where there is something to solve, or else squares where they are needed.
fn kinds(solves: bool, squares: bool) -> &'static [Kind] {
    match (solves, squares) {
        (true, _) => &[Kind::Gram],
        (false, true) => &[Kind::Squares],
        (false, false) => &[],
    }
}

/// A method with the share of each tensor that goes, as a [`Compressor`].
struct Sparsifier<'a> {
    rule: &'a Rule,
    shares: &'a BTreeMap<String, f64>,
    formats: HashMap<&'a str, WeightFormat>,
}

/// What is told of a tensor in `masks.json`.
#[derive(Debug, Serialize)]
struct MaskReport<'a> {
    tensor: &'a str,
    weights: usize,
    /// Exact zeros, as they are stored.
    zeros: usize,
    share: f64,
    /// ||X (W - W')^T||^2 / ||X W^T||^2 over the tokens whose Gram matrix was used: of the mask alone, or SparseGPT's solution; after
    /// the swaps; after the refit, which where blocks are fed by pruned ones aims at other outputs than X W^T, the dense model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_pruned: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_swapped: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_refitted: Option<f64>,
    /// Exchanges that were made.
    #[serde(skip_serializing_if = "Option::is_none")]
    swaps: Option<usize>,
    /// Of the mean diagonal, the largest that a solution took.
    #[serde(skip_serializing_if = "Option::is_none")]
    damping: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// The layers of a block in the order in which a refit observes them.
const APART: &[&[Slot]] = &[
    &[Slot::CrossKey],
    &[Slot::Query],
    &[Slot::Output],
    &[Slot::CrossQuery],
    &[Slot::CrossOutput],
    &[Slot::Gate, Slot::ExpertGate(0)],
    &[Slot::Down, Slot::ExpertDown(0)],
];

impl Compressor for Sparsifier<'_> {
    fn kinds(&self) -> &[Kind] {
        self.rule.kinds()
    }

    fn groups(&self) -> &[&[Slot]] {
        if self.rule.refit { APART } else { &[] }
    }

    fn aims_at_model(&self) -> bool {
        self.rule.refit
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        Ok(self.formats[spec.name.as_str()])
    }

    fn compress(&self, layers: &[Layer<'_>], sums: &Sums) -> Result<Vec<Compressed>> {
        let mut grams: BTreeMap<Slot, Vec<f64>> = BTreeMap::new();
        let mut all = Vec::new();
        for layer in layers {
            let slot = input_of(layer.spec);
            if self.kinds() == [Kind::Gram] && !grams.contains_key(&slot) {
                grams.clear();
                grams.insert(slot, gram(layer.spec, &sums.block)?);
            }
            all.push(self.tensor(layer, sums, grams.get(&slot).map(Vec::as_slice))?);
        }
        Ok(all)
    }
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
}

impl Sparsifier<'_> {
    fn tensor(&self, layer: &Layer<'_>, sums: &Sums, gram: Option<&[f64]>) -> Result<Compressed> {
        let (rule, spec) = (self.rule, layer.spec);
        let (share, columns) = (self.shares[&spec.name], spec.columns);
        let weights = layer.weight.to_f32();
        // Nothing is known of the inputs of an expert that no token reached.
        let reached = match self.kinds() {
            [] => true,
            _ => {
                spec.slot.expert().is_none() || {
                    squares(spec, &sums.block, gram)?.iter().any(|square| *square > 0.0)
                }
            }
        };
        let gram = gram.filter(|_| reached);
        let exact: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
        let whole = gram.map(|gram| squared_outputs(&exact, columns, gram));
        drop(exact);
        let error = |new: &[f32]| {
            let error = gram.map(|g| squared_outputs(&difference(&weights, new), columns, g));
            error.zip(whole).map(|(error, whole)| if whole > 0.0 { error / whole } else { 0.0 })
        };
        let mut report = MaskReport {
            tensor: &spec.name,
            weights: weights.len(),
            zeros: 0,
            share: 0.0,
            error_pruned: None,
            error_swapped: None,
            error_refitted: None,
            swaps: None,
            damping: None,
            warning: None,
        };
        let (mut new, mut kept) = match (rule.method, gram) {
            (SparseMethod::Sparsegpt, Some(gram)) => {
                let options = gpt::Options {
                    damping: rule.damping,
                    block: rule.block_columns,
                    pattern: rule.pattern,
                    ratio: share,
                };
                let solved = gpt::solve(&weights, columns, gram, options)?;
                let solved = solved.map_err(|bad| not_positive(spec, bad.pivot))?;
                report.damping = Some(solved.damping);
                (solved.weights, solved.kept)
            }
            _ => {
                let squares = match rule.method {
                    SparseMethod::Wanda if reached => Some(squares(spec, &sums.block, gram)?),
                    _ => None,
                };
                let scores = scores(&weights, columns, squares.as_deref());
                let kept = keep_highest(&scores, columns, rule.pattern, share);
                (masked(&weights, &kept), kept)
            }
        };
        report.error_pruned = error(&new);
        if let Some((gram, most)) = gram.zip(rule.swaps) {
            let made = improve(&weights, columns, gram, rule.pattern, most, &mut kept);
            report.swaps = Some(made);
            new = masked(&weights, &kept);
            report.error_swapped = error(&new);
        }
        if let Some(gram) = gram.filter(|_| rule.refit) {
            let cross = sums.cross.get(&input_of(spec));
            let cross: Option<Vec<f64>> =
                cross.map(|cross| cross.iter().map(|value| f64::from(*value)).collect());
            let target = outputs(&weights, columns, cross.as_deref().unwrap_or(gram));
            drop(cross);
            let (solved, damping) = refit(&weights, columns, (gram, &target), &kept, rule.damping)
                .map_err(|bad| not_positive(spec, bad.pivot))?;
            new = solved;
            report.damping = Some(damping.max(report.damping.unwrap_or(0.0)));
            report.error_refitted = error(&new);
        }
        if !reached {
            report.warning = Some(format!(
                "{}: no token of the calibration reached its expert; its weights went by their magnitudes",
                spec.name
            ));
        }
        if let Some(damping) = report.damping.filter(|damping| *damping > rule.damping) {
            report.warning = Some(format!(
                "{}: the Gram matrix of its inputs is not positive definite with a damping of {}; {damping} was taken",
                spec.name, rule.damping,
            ));
        }
        let format = self.formats[spec.name.as_str()];
        let weight = match zero_code(format).filter(|_| format.ty.has_scales()) {
            Some(zero) => with_zeros(&layer.weight, &kept, zero),
            None => stored(&new, format, spec)?,
        };
        report.zeros = weight.to_f32().iter().filter(|value| **value == 0.0).count();
        report.share = report.zeros as f64 / report.weights.max(1) as f64;
        let report = serde_json::to_value(&report).expect("reports are plain values");
        Ok(Compressed { weight, report })
    }
}

fn not_positive(spec: &TensorSpec, pivot: usize) -> Error {
    Error::Tensor {
        path: "prune".into(),
        tensor: spec.name.clone(),
        expected: "a Gram matrix of its inputs that damping makes positive definite (more tokens, or a larger --damping)".into(),
        found: format!("a pivot that is not positive at input {pivot}"),
    }
}

impl OfMethod for Sparsify {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = match name {
            "wanda" => SparseMethod::Wanda,
            "sparsegpt" => SparseMethod::Sparsegpt,
            _ => SparseMethod::Magnitude,
        };
        self.source.calibration.fill(128, 256);
        self
    }
}

impl Stage for Sparsify {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        match self.kinds() {
            [] => Needs::default(),
            kinds => Needs::sums(&self.source, kinds),
        }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let rule = self.rule(model).map_err(BadField::in_recipe)?;
        let mut outline = model.clone();
        let (mut changes, mut warnings) = (HashMap::new(), Vec::new());
        let mut wider = Vec::new();
        let (mut largest, mut widest) = (0, 0);
        let formats = outline.formats.iter_mut().zip(&mut outline.copies);
        for (spec, (format, copy)) in outline.specs.iter().zip(formats) {
            if !rule.applies(spec) {
                continue;
            }
            changes.insert(spec.name.clone(), rule.words(spec, *format));
            let after = rule.format(*format);
            if after != *format {
                wider.push((spec.name.as_str(), *format));
            }
            (*format, *copy) = (after, None);
            largest = largest.max(spec.rows * spec.columns);
            widest = widest.max(spec.columns);
        }
        if let Some((name, format)) = wider.first() {
            let why = match rule.solves() {
                true => "weights that stay change",
                false => "its codes have no exact 0",
            };
            warnings.push(format!(
                "{} quantized tensors ({name}, …) are kept in f16, because {why}; quantize them again afterwards (symmetric types and those with a level 0 hold the zeros)",
                wider.len(),
            ));
            tracing::debug!("{name} was {}", format.label());
        }
        let grams = self.kinds().contains(&Kind::Gram);
        let tokens = match self.needs().calibration {
            Some(calibration) => calibration.samples().saturating_mul(calibration.length()),
            None => 0,
        };
        let gram = if grams { widest * widest } else { 0 };
        let stream = 4 * model.config.hidden_size;
        let block = model.config.layers().max(1) as u64;
        Ok(Planned {
            // A block's weights as they were and as they became, the residual stream, one Gram matrix of each input.
            peak_device_bytes: 2 * model.bytes() / block
                + (tokens * stream) as u64
                + 2 * (4 * gram) as u64
                + (4 * 4096 * (2 * widest + 8 * model.config.hidden_size)) as u64,
            peak_host_bytes: (8 * (4 * largest + 3 * gram)) as u64,
            outline,
            changes,
            warnings,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let outline = Outline::of(model)?;
        let rule = self.rule(&outline).map_err(BadField::in_recipe)?;
        let chosen = rule.chosen(model.specs());
        let mut formats = HashMap::new();
        for spec in &chosen {
            formats.insert(spec.name.as_str(), rule.format(model.format(spec)?));
        }
        let shares = match context.saved(SHARES)? {
            Some(shares) => shares,
            None => {
                let shares = rule.shares(model, &chosen, context)?;
                save(context.folder, SHARES, &shares)?;
                shares
            }
        };
        let method = Sparsifier { rule: &rule, shares: &shares, formats };
        let folder = context.folder;
        if !folder.join(MASKS).exists() {
            let inputs = match rule.kinds() {
                [] => Inputs::None,
                _ => context.inputs(self.source.feed()),
            };
            let progress = &mut *context.progress;
            compress(model, &chosen, inputs, &method, folder, &mut |done, all| {
                progress("pruning", done, all);
            })?;
            save(folder, MASKS, &reports(folder)?)?;
        }
        let config = context.write("writing", &Replaced::new(model, &chosen, &method, folder)?)?;
        remove(folder)?;
        Ok(config)
    }

    fn leaves_zeros(&self) -> bool {
        true
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let Some(tensors) = saved::<Vec<Value>>(folder, MASKS)? else { return Ok(None) };
        let warnings = tensors.iter().filter_map(|tensor| tensor["warning"].as_str());
        let warnings = warnings.map(String::from).collect();
        let number = |name: &str| {
            let all = tensors.iter().filter_map(|tensor| tensor[name].as_u64());
            all.sum::<u64>()
        };
        let (weights, zeros) = (number("weights"), number("zeros"));
        let value = json!({
            "schema": 1,
            "weights": weights,
            "zeros": zeros,
            "share": zeros as f64 / weights.max(1) as f64,
            "tensors": tensors,
        });
        Ok(Some(Report { warnings, ..Report::new(MASKS, value) }))
    }
}

impl Rule {
    /// The share of each tensor that goes.
    fn shares(
        &self,
        model: &dyn Weights,
        chosen: &[&TensorSpec],
        context: &mut Context<'_>,
    ) -> Result<BTreeMap<String, f64>> {
        let even = |spec: &&TensorSpec| (spec.name.clone(), self.fixed(spec).unwrap_or(self.ratio));
        let mut shares: BTreeMap<String, f64> = chosen.iter().map(even).collect();
        let free: Vec<&TensorSpec> =
            chosen.iter().copied().filter(|spec| self.fixed(spec).is_none()).collect();
        if self.global {
            shares.extend(self.by_threshold(model, &free, context)?);
        } else if self.allocate != Allocate::Uniform {
            let free: Vec<_> = free.into_iter().filter(|spec| spec.layer.is_some()).collect();
            shares.extend(self.by_block(model, &free, context)?);
        }
        Ok(shares)
    }

    /// One threshold over the scores of all tensors, with the parent's inputs.
    fn by_threshold(
        &self,
        model: &dyn Weights,
        free: &[&TensorSpec],
        context: &mut Context<'_>,
    ) -> Result<Vec<(String, f64)>> {
        let mut norms: HashMap<&str, Vec<f32>> = HashMap::new();
        if !self.survey().is_empty() {
            self.look(model, context, &mut |layer, sums| {
                let layers = model.config().layers();
                for spec in free.iter().filter(|spec| spec.layer.unwrap_or(layers) == layer) {
                    norms.insert(spec.name.as_str(), squares(spec, sums, None)?);
                }
                Ok(())
            })?;
        }
        let of = |spec: &TensorSpec| -> Result<Vec<f32>> {
            let squares = norms.get(spec.name.as_str()).map(Vec::as_slice);
            Ok(scores(&model.load(spec)?.to_f32(), spec.columns, squares))
        };
        let weights: usize = free.iter().map(|spec| spec.rows * spec.columns).sum();
        let go = count(weights, self.ratio) as u64;
        let mut found = Threshold::default();
        let (threshold, mut ties) = loop {
            for spec in free {
                found.count(&of(spec)?);
            }
            if let Some(found) = found.next(go) {
                break found;
            }
        };
        let mut shares = Vec::new();
        for spec in free {
            let scores = of(spec)?;
            let below = scores.iter().filter(|score| **score < threshold).count() as u64;
            let equal = scores.iter().filter(|score| **score == threshold).count() as u64;
            let taken = equal.min(ties);
            ties -= taken;
            // Half a weight more, so that the whole part of the share is this count again.
            let share = ((below + taken) as f64 + 0.5) / scores.len().max(1) as f64;
            shares.push((spec.name.clone(), share.min(1.0)));
        }
        Ok(shares)
    }

    /// Shares by what each block loses.
    fn by_block(
        &self,
        model: &dyn Weights,
        free: &[&TensorSpec],
        context: &mut Context<'_>,
    ) -> Result<Vec<(String, f64)>> {
        let layers = model.config().layers();
        let of = |layer: usize| free.iter().copied().filter(move |s| s.layer == Some(layer));
        let mut losses = Vec::new();
        let mut blocks: Vec<usize> = Vec::new();
        let mut weights = Vec::new();
        self.look(model, context, &mut |layer, sums| {
            let specs: Vec<_> = of(layer).collect();
            if layer == layers || specs.is_empty() {
                return Ok(());
            }
            blocks.push(layer);
            weights.push(specs.iter().map(|spec| (spec.rows * spec.columns) as u64).sum());
            losses.push(self.loss(model, &specs, sums)?);
            Ok(())
        })?;
        let shares = spread(&losses, &weights, self.ratio, self.spread);
        let mut all = Vec::new();
        for (layer, share) in blocks.into_iter().zip(shares) {
            if !(share > 0.0 && share < 1.0) {
                let expected = format!(
                    "one that leaves each block a share between 0 and 1 around {}",
                    self.ratio
                );
                let found = format!("{}, with which block {layer} has {share:.3}", self.spread);
                return Err(BadField::new("spread", expected, found).in_recipe());
            }
            all.extend(of(layer).map(|spec| (spec.name.clone(), share)));
        }
        Ok(all)
    }

    /// What a block loses: the share of outliers, or of its outputs' squares at the even share.
    fn loss(&self, model: &dyn Weights, specs: &[&TensorSpec], sums: &BlockSums) -> Result<f64> {
        if self.allocate == Allocate::Owl {
            let of = |spec: &&TensorSpec| {
                let squares = squares(spec, sums, None)?;
                Ok(scores(&model.load(spec)?.to_f32(), spec.columns, Some(&squares)))
            };
            let scores = specs.iter().map(of).collect::<Result<Vec<_>>>()?;
            return Ok(outlier_share(&scores, self.outlier_factor));
        }
        let even = specs.iter().map(|spec| (spec.name.clone(), self.ratio)).collect();
        let (mut lost, mut whole) = (0.0, 0.0);
        let method = Sparsifier {
            rule: &Rule { swaps: None, refit: false, ..self.clone() },
            shares: &even,
            formats: specs.iter().map(|spec| (spec.name.as_str(), WeightFormat::f32())).collect(),
        };
        for spec in specs {
            let gram = gram(spec, sums)?;
            let weight = model.load(spec)?;
            let exact: Vec<f64> = weight.to_f32().iter().map(|w| f64::from(*w)).collect();
            let own = squared_outputs(&exact, spec.columns, &gram);
            let layer = Layer { spec, weight };
            let report = method.tensor(&layer, &Sums::default(), Some(&gram))?.report;
            lost += own * report["error_pruned"].as_f64().unwrap_or(0.0);
            whole += own;
        }
        Ok(if whole > 0.0 { lost / whole } else { 0.0 })
    }

    /// Shows the sums of each block that shares are found with.
    fn look(
        &self,
        model: &dyn Weights,
        context: &mut Context<'_>,
        see: &mut dyn FnMut(usize, &BlockSums) -> Result<()>,
    ) -> Result<()> {
        let layers = model.config().layers();
        let inputs = context.inputs(Feed::Parent);
        let progress = &mut *context.progress;
        survey(model, &inputs, self.survey(), 0..layers + 1, &mut |layer, sums| {
            progress("looking at all blocks", layer.min(layers), layers);
            see(layer, sums)
        })
    }
}
