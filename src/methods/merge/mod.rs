//! Several models become one: each tensor is an expression over the models' tensors of its name, computed when it is asked for, so
//! that no more than one tensor of each model is in memory, in its own format; what is merged at once is in f32 too. Values are those that a checkpoint stores (norms without what their
//! family adds), read in f32 from whatever format; sums are in f64.

mod average;
mod deltas;
mod experts;
mod setting;
mod stack;
mod stock;
mod sums;
mod vocabulary;

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

pub use deltas::{Deltas, Keep, Rescale, Trim};
pub use experts::{Assembled, Expert, Parts, Routers};
pub use setting::{Filtered, Setting, Values};
pub use stack::{Slice, Stacked};
pub use vocabulary::{Alignment, Vocabulary, alignments};

use self::average::Products;
use self::deltas::{Largest, Share, key};
use super::BadField;
use crate::error::{Error, Result};
use crate::methods::prune::left_specs;
use crate::methods::prune::slice::left_format;
use crate::model::{Config, Outline, Role, TensorSpec, Weights, stored};
use crate::tensor::{Packed, WeightFormat};

/// What a merged tensor is of the models' tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The weighted sum, divided by the weights where `normalize` says so.
    Linear {
        /// Whether it is.
        normalize: bool,
    },
    /// A point on the arc between two.
    Slerp,
    /// The first, and what the others changed of it.
    Deltas(Deltas),
    /// A point between the first and the mean of the others, by the angle between their changes.
    Stock {
        /// Whether each row has an angle of its own.
        filter_wise: bool,
    },
}

/// The numbers of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Own {
    /// Its weight in sums.
    pub weight: Option<Setting>,
    /// The share of its changes that stay.
    pub density: Option<Setting>,
    /// The share of its largest changes that go.
    pub gamma: Option<Setting>,
}

/// How models are merged.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// The expression.
    pub rule: Rule,
    /// The numbers of every model that has none of its own, the first one's among them.
    pub all: Own,
    /// Those of each further model, in order.
    pub each: Vec<Own>,
    /// The density where none is set.
    pub density: f64,
    /// The place on the arc.
    pub t: Option<Setting>,
    /// What changes are multiplied by in the end.
    pub lambda: Option<Setting>,
    /// The format of merged matrices; `None`: the first model's, where that has no scales, or else f16.
    pub format: Option<WeightFormat>,
    /// Blocks that all models must have; `None`: as many as the first has.
    pub layers: Option<usize>,
    /// Of everything random.
    pub seed: u64,
}

/// The share of the largest changes that Breadcrumbs leaves out where none is set.
const GAMMA: f64 = 0.01;
/// Sums of weights nearer to 0 than this are not divided by.
const LEAST_SUM: f64 = 1e-8;

impl Mix {
    fn own(&self, model: usize, of: fn(&Own) -> &Option<Setting>, at: Place<'_>) -> Option<f64> {
        let own = model.checked_sub(1).and_then(|further| of(&self.each[further]).as_ref());
        let own = own.and_then(|setting| at.of(setting));
        own.or_else(|| of(&self.all).as_ref().and_then(|setting| at.of(setting)))
    }

    fn weight(&self, model: usize, at: Place<'_>) -> f64 {
        self.own(model, |own| &own.weight, at).unwrap_or(1.0)
    }

    fn density(&self, model: usize, at: Place<'_>) -> f64 {
        self.own(model, |own| &own.density, at).unwrap_or(self.density)
    }

    fn t(&self, at: Place<'_>) -> f64 {
        self.t.as_ref().and_then(|setting| at.of(setting)).unwrap_or(0.5)
    }

    /// An error if a tensor's weights cannot be divided by.
    fn check_weights(&self, at: Place<'_>, models: usize) -> Result<(), BadField> {
        let (first, normalize, elect) = match self.rule {
            Rule::Linear { normalize } => (0, normalize, false),
            Rule::Deltas(deltas) => (1, deltas.normalize, deltas.elect),
            _ => return Ok(()),
        };
        let weights: Vec<f64> = (first..models).map(|model| self.weight(model, at)).collect();
        let sum: f64 = weights.iter().sum();
        let zero = match elect {
            true => weights.iter().all(|weight| *weight == 0.0),
            false => sum.abs() < LEAST_SUM,
        };
        if !(normalize && zero) {
            return Ok(());
        }
        let expected = "weights whose sum is not 0, by which it is divided (normalize = false does not divide)";
        let found = format!("{weights:?} of {}", at.spec.name);
        Err(BadField::new("weight", expected, found))
    }
}

/// Where a tensor stands: by its name and its share of the depth.
#[derive(Clone, Copy)]
struct Place<'a> {
    spec: &'a TensorSpec,
    depth: f64,
}

impl<'a> Place<'a> {
    /// Of a tensor of a model of so many blocks, as mergekit counts: the first block is at 0, the last one at 1, also if it is the
    /// only one; what stands before and behind the blocks is at 0.
    fn new(spec: &'a TensorSpec, layers: usize) -> Self {
        let depth = match spec.layer() {
            None => 0.0,
            Some(_) if layers < 2 => 1.0,
            Some(layer) => layer as f64 / (layers - 1) as f64,
        };
        Self { spec, depth }
    }

    fn of(self, setting: &Setting) -> Option<f64> {
        setting.of(self.spec, self.depth)
    }
}

/// A model and its name in messages.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// Its name.
    pub name: &'a str,
    /// The model.
    pub weights: &'a dyn Weights,
}

impl std::fmt::Debug for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Named").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The model that several are merged to.
#[derive(Debug)]
pub struct Merged<'a> {
    models: Vec<Named<'a>>,
    mix: Mix,
    config: Config,
    specs: Vec<TensorSpec>,
    formats: HashMap<String, WeightFormat>,
    /// Of each further model, where its rows of the vocabulary stand.
    alignments: Vec<Option<Alignment>>,
    /// With [`Trim::Model`] of each further model the smallest change that stays.
    thresholds: Vec<f32>,
}

impl<'a> Merged<'a> {
    /// Checks that all models have the same tensors, of the same shapes: of headers alone. `aligned`: whether rows of the
    /// vocabulary may be as many as they like, because [`Merged::aligned`] will say which is which.
    pub fn new(models: Vec<Named<'a>>, mix: Mix, aligned: bool) -> Result<Self> {
        let (first, others) = models.split_first().expect("a stage has a model");
        let mut config = first.weights.config().clone();
        check_families(first, others)?;
        if let Some(layers) = mix.layers.filter(|layers| *layers != config.layers()) {
            let expected = format!("{}, all blocks of the models", config.layers());
            return Err(BadField::new("layers", expected, layers).in_recipe());
        }
        config.tied = models.iter().all(|model| model.weights.config().tied);
        let specs = left_specs(&config, first.weights.specs());
        let specs: Vec<TensorSpec> =
            specs.into_iter().filter(|spec| source(first.weights, spec).is_some()).collect();
        for other in others {
            check_shapes(first, other, &specs, aligned)?;
        }
        let mut formats = HashMap::new();
        for spec in &specs {
            let own = source(first.weights, spec).expect("its tensors were looked at");
            let own = left_format(first.weights.format(own)?);
            let matrix = !spec.is_plain();
            formats.insert(spec.name.clone(), mix.format.filter(|_| matrix).unwrap_or(own));
            let place = Place::new(spec, config.layers());
            mix.check_weights(place, models.len()).map_err(BadField::in_recipe)?;
        }
        let (alignments, thresholds) = (vec![None; others.len()], Vec::new());
        Ok(Self { models, mix, config, specs, formats, alignments, thresholds })
    }

    /// The same with rows of further models' vocabularies where they stand.
    pub fn aligned(self, alignments: Vec<Option<Alignment>>) -> Self {
        assert_eq!(alignments.len(), self.models.len() - 1, "one for each further model");
        Self { alignments, ..self }
    }

    /// The same with other numbers.
    pub fn with(&self, mix: Mix) -> Merged<'a> {
        Merged {
            models: self.models.clone(),
            mix,
            config: self.config.clone(),
            specs: self.specs.clone(),
            formats: self.formats.clone(),
            alignments: self.alignments.clone(),
            thresholds: self.thresholds.clone(),
        }
    }

    /// The outline of what it will be, after `before`.
    pub fn outline(&self, before: &Outline) -> Outline {
        Outline {
            config: self.config.clone(),
            first: before.first.clone(),
            formats: self.specs.iter().map(|spec| self.formats[&spec.name]).collect(),
            copies: vec![None; self.specs.len()],
            specs: self.specs.clone(),
            estimated: before.estimated,
            uneven: before.uneven,
        }
    }

    /// What is done to each tensor, in words.
    pub fn changes(&self, method: &str) -> HashMap<String, String> {
        let words = |spec: &TensorSpec| {
            let place = Place::new(spec, self.config.layers());
            let models = self.models.len();
            match self.mix.rule {
                Rule::Slerp => format!("{method} at {:.3}", self.mix.t(place)),
                Rule::Stock { .. } => format!("{method} of {models}"),
                _ => {
                    let from = usize::from(matches!(self.mix.rule, Rule::Deltas(_)));
                    let weights = (from..models).map(|model| self.mix.weight(model, place));
                    let weights: Vec<String> = weights.map(|w| format!("{w:.3}")).collect();
                    format!("{method} by {}", weights.join(" "))
                }
            }
        };
        self.specs.iter().map(|spec| (spec.name.clone(), words(spec))).collect()
    }

    /// Most bytes of host memory in use at once: of one tensor what it is in every model, what it becomes, and, where values depend on
    /// each other, all of them in f32 with what ranks them.
    pub fn host_bytes(&self) -> Result<u64> {
        let mut most = 0;
        for spec in &self.specs {
            let mut bytes = self.formats[&spec.name].bytes(spec.rows, spec.columns);
            for model in &self.models {
                let own = source(model.weights, spec).expect("its tensors were looked at");
                bytes += model.weights.format(own)?.bytes(own.rows, own.columns);
            }
            let at_once = (spec.columns * self.rows_at_once(spec)) as u64;
            bytes += at_once * (4 * self.models.len() as u64 + 16);
            most = most.max(bytes);
        }
        Ok(most)
    }

    /// What the user should know of models that were made for something else than the first.
    pub fn warnings(&self) -> Vec<String> {
        let first = self.models[0].weights.config();
        let windows = |config: &Config| -> Vec<(Option<usize>, usize)> {
            config.blocks.iter().map(|block| (block.window, block.rope)).collect()
        };
        let differs = |model: &Named<'_>| {
            let own = model.weights.config();
            let slides = windows(first) != windows(own);
            let what = unlike(first, own).or(slides.then_some("window of attention"))?;
            Some(format!(
                "{} was made for another {what}: its weights are merged, and run with the first model's",
                model.name
            ))
        };
        self.models[1..].iter().filter_map(differs).collect()
    }

    /// Whether thresholds over whole models are wanted.
    fn trims_models(&self) -> bool {
        let Rule::Deltas(deltas) = self.mix.rule else { return false };
        deltas.keep == Keep::Largest && deltas.trim == Trim::Model
    }

    /// With [`Trim::Model`] the smallest change of each further model that stays; none are wanted otherwise. Reads all models twice.
    /// Calls `progress` before each tensor with those done and all; its error ends it.
    pub fn thresholds(
        &self,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f32>> {
        if !self.trims_models() {
            return Ok(Vec::new());
        }
        let further = self.models.len() - 1;
        let mut found: Vec<Largest> = (0..further).map(|_| Largest::new()).collect();
        let all = 2 * self.specs.len();
        for pass in 0..2 {
            for (done, spec) in self.specs.iter().enumerate() {
                progress(pass * self.specs.len() + done, all)?;
                let weights = self.weights(spec, |_| true)?;
                for rows in blocks(spec.rows, rows_of(spec)) {
                    let base = self.values(&weights, 0, spec, rows.clone());
                    for (model, found) in (1..).zip(&mut found) {
                        let tuned = self.values(&weights, model, spec, rows.clone());
                        let both = base.iter().zip(&tuned);
                        found.add(both.map(|(base, tuned)| (tuned - base).abs()));
                    }
                }
            }
            for (model, found) in (1..).zip(&mut found).filter(|_| pass == 0) {
                // The density is the same of every tensor.
                let place = Place::new(&self.specs[0], self.config.layers());
                let stay = self.mix.density(model, place) * found.count() as f64;
                found.narrow(stay as u64);
            }
        }
        Ok(found.iter().map(Largest::least).collect())
    }

    /// The same with thresholds that were found.
    pub fn trimmed(self, thresholds: Vec<f32>) -> Self {
        Self { thresholds, ..self }
    }

    /// Rows of a tensor that are merged at once.
    fn rows_at_once(&self, spec: &TensorSpec) -> usize {
        let local = match self.mix.rule {
            Rule::Linear { .. } | Rule::Slerp => true,
            Rule::Stock { filter_wise } => filter_wise,
            Rule::Deltas(deltas) => deltas.is_local(self.trims_models()),
        };
        if local { rows_of(spec).min(spec.rows) } else { spec.rows }
    }

    /// A tensor as the models that are `wanted` have it.
    fn weights(
        &self,
        spec: &TensorSpec,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<Packed>>> {
        let aligned = of_vocabulary(spec) && self.alignments.iter().any(Option::is_some);
        let of = |(model, named): (usize, &Named<'_>)| {
            // Its rows stand in for those that others lack.
            let wanted = wanted(model) || (model == 0 && aligned);
            let own = source(named.weights, spec).expect("its tensors were looked at");
            wanted.then(|| named.weights.load(own)).transpose()
        };
        self.models.iter().enumerate().map(of).collect()
    }

    /// Rows of a tensor of one of the models as they are merged: those of the vocabulary where the first model has them. None of a
    /// model that was not wanted.
    fn values(
        &self,
        weights: &[Option<Packed>],
        model: usize,
        spec: &TensorSpec,
        rows: Range<usize>,
    ) -> Vec<f32> {
        let (Some(own), first) = (&weights[model], &weights[0]) else { return Vec::new() };
        let alignment = model.checked_sub(1).and_then(|further| self.alignments[further].as_ref());
        let alignment = alignment.filter(|_| of_vocabulary(spec)).zip(first.as_ref());
        let mut values = vec![0.0; rows.len() * spec.columns];
        let lines = values.par_chunks_exact_mut(spec.columns.max(1)).enumerate();
        lines.for_each(|(place, line)| {
            let row = rows.start + place;
            match alignment.map(|(alignment, first)| (alignment.row(row), first)) {
                None => own.decode_row(row, line),
                Some((Some(row), _)) => own.decode_row(row, line),
                Some((None, first)) => first.decode_row(row, line),
            }
            // What a norm's family adds is no part of what is merged.
            if spec.offset != 0.0 {
                line.iter_mut().for_each(|value| *value -= spec.offset);
            }
        });
        values
    }

    /// A merged tensor in a format without scales.
    fn merged(&self, spec: &TensorSpec, format: WeightFormat) -> Result<Packed> {
        let (mix, place) = (&self.mix, Place::new(spec, self.config.layers()));
        let all = 0..self.models.len();
        let shares: Vec<f64> = all.clone().map(|model| mix.weight(model, place)).collect();
        let used = |model: usize| match mix.rule {
            Rule::Linear { .. } => shares[model] != 0.0,
            Rule::Deltas(_) => model == 0 || shares[model] != 0.0,
            _ => true,
        };
        let weights = self.weights(spec, used)?;
        let at_once = self.rows_at_once(spec);
        let of_rows = |model: usize, rows: &Range<usize>| match used(model) {
            true => self.values(&weights, model, spec, rows.clone()),
            false => Vec::new(),
        };
        let mut products = Products::default();
        if mix.rule == Rule::Slerp {
            for rows in blocks(spec.rows, at_once) {
                products = products.plus(&of_rows(0, &rows), &of_rows(1, &rows));
            }
        }
        let of_deltas = self.shares(spec, &shares, used);
        let lambda = mix.lambda.as_ref().and_then(|setting| place.of(setting)).unwrap_or(1.0);
        let mut merged = Packed::zeros(format, 0, spec.columns);
        for rows in blocks(spec.rows, at_once) {
            let mut tensors: Vec<Vec<f32>> =
                all.clone().map(|model| of_rows(model, &rows)).collect();
            let mut values = match mix.rule {
                Rule::Linear { normalize } => {
                    let count = rows.len() * spec.columns;
                    average::linear(&tensors, &shares, normalize, count)
                }
                Rule::Slerp => {
                    average::between(&tensors[0], &tensors[1], products.arc(mix.t(place)))
                }
                Rule::Stock { filter_wise } => {
                    stock::stock(&tensors, filter_wise.then_some(spec.columns))
                }
                Rule::Deltas(deltas) => {
                    tensors.retain(|tensor| !tensor.is_empty());
                    deltas.merge(&tensors, &of_deltas, lambda, rows.start * spec.columns)
                }
            };
            if spec.offset != 0.0 {
                values.par_iter_mut().for_each(|value| *value += spec.offset);
            }
            let part = TensorSpec { rows: rows.len(), ..spec.clone() };
            merged.codes.extend(stored(&values, format, &part)?.codes);
            merged.rows += rows.len();
        }
        Ok(merged)
    }

    /// How the changes of further models that are used enter a tensor; `weights`: of all models.
    fn shares(
        &self,
        spec: &TensorSpec,
        weights: &[f64],
        used: impl Fn(usize) -> bool,
    ) -> Vec<Share> {
        let (mix, place) = (&self.mix, Place::new(spec, self.config.layers()));
        let share = |model: usize| Share {
            weight: weights[model],
            density: mix.density(model, place),
            gamma: mix.own(model, |own| &own.gamma, place).unwrap_or(GAMMA),
            key: key(mix.seed, model, &spec.name),
            threshold: self.thresholds.get(model - 1).copied(),
        };
        (1..weights.len()).filter(|model| used(*model)).map(share).collect()
    }
}

/// Values of a tensor that are merged at once where none depends on others.
const AT_ONCE: usize = 1 << 17;

/// Rows of a tensor with about so many values.
fn rows_of(spec: &TensorSpec) -> usize {
    (AT_ONCE / spec.columns.max(1)).max(1)
}

/// So many rows in parts of at most `at_once`.
fn blocks(rows: usize, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    let at_once = at_once.max(1);
    (0..rows).step_by(at_once).map(move |start| start..(start + at_once).min(rows))
}

impl Weights for Merged<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        self.merged(spec, self.format(spec)?)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        Ok(self.formats[&spec.name])
    }

    fn copy_of(&self, _: &TensorSpec) -> Option<crate::model::CopyOf> {
        None
    }
}

/// A model's tensor of this place in it; a head that is the embedding is that.
fn source<'w>(weights: &'w dyn Weights, spec: &TensorSpec) -> Option<&'w TensorSpec> {
    let specs = weights.specs();
    let named = specs.iter().find(|own| own.name == spec.name);
    named.or_else(|| {
        let tied = spec.role == Role::Head && weights.config().tied;
        specs.iter().find(|own| tied && own.role == Role::Embedding)
    })
}

/// Whether a tensor's rows are tokens.
fn of_vocabulary(spec: &TensorSpec) -> bool {
    matches!(spec.role, Role::Embedding | Role::Head)
}

/// An error that names the model whose family, or whose number or size of blocks or heads, is another.
fn check_families(first: &Named<'_>, others: &[Named<'_>]) -> Result<()> {
    let own = first.weights.config();
    let words = |config: &Config| {
        let widths = config.widest();
        format!(
            "{} of {} blocks, {} and {} heads of {} columns",
            config.family.name,
            config.layers(),
            widths.heads,
            widths.kv_heads,
            config.head_dim
        )
    };
    for other in others {
        let of = other.weights.config();
        let heads = |config: &Config| -> Vec<(usize, usize)> {
            config.blocks.iter().map(|block| (block.heads, block.kv_heads)).collect()
        };
        let same = own.family == of.family
            && own.head_dim == of.head_dim
            && own.shortcuts == of.shortcuts
            && heads(own) == heads(of);
        if !same {
            let expected = format!("models of one shape: {} is a {}", first.name, words(own));
            let found = format!("{}, a {}", other.name, words(of));
            return Err(BadField::new("with", expected, found).in_recipe());
        }
        if own.readout != of.readout {
            let (own, of) = (scored(own), scored(of));
            let expected = format!("models whose heads are for the same: {} for {own}", first.name);
            let found = format!("{} for {of}", other.name);
            return Err(BadField::new("with", expected, found).in_recipe());
        }
    }
    Ok(())
}

/// What a model's head is for, in words.
fn scored(config: &Config) -> String {
    match &config.readout {
        None => "next tokens".into(),
        Some(readout) if readout.labels.is_empty() => {
            format!("embeddings, of {:?} pooling", readout.pooling).to_lowercase()
        }
        Some(readout) => readout.labels.join(", "),
    }
}

/// An error that names the tensors that a model lacks, or has of another shape.
fn check_shapes(
    first: &Named<'_>,
    other: &Named<'_>,
    specs: &[TensorSpec],
    aligned: bool,
) -> Result<()> {
    let own = first.weights;
    let mut wrong: Vec<(&str, String, String)> = Vec::new();
    for spec in specs {
        let expected = source(own, spec).map(TensorSpec::shape);
        let found = source(other.weights, spec).map(TensorSpec::shape);
        let columns = |shape: &Option<Vec<usize>>| shape.as_ref().and_then(|s| s.last().copied());
        let same = match aligned && of_vocabulary(spec) {
            true => columns(&expected) == columns(&found),
            false => expected == found,
        };
        if !same {
            let words = |shape: Option<Vec<usize>>| {
                shape.map_or("no such tensor".into(), |shape| format!("shape {shape:?}"))
            };
            wrong.push((&spec.name, words(expected), words(found)));
        }
    }
    // What only the other one has.
    for spec in other.weights.specs() {
        let tied = spec.role == Role::Head && own.config().tied;
        if !tied && source(own, spec).is_none() {
            let found = format!("shape {:?}", spec.shape());
            wrong.push((&spec.name, "no such tensor".into(), found));
        }
    }
    let Some(((tensor, expected, found), more)) = wrong.split_first() else { return Ok(()) };
    let rows = wrong
        .iter()
        .all(|(name, ..)| specs.iter().any(|spec| spec.name == *name && of_vocabulary(spec)));
    let names: Vec<&str> = more.iter().take(3).map(|(name, ..)| *name).collect();
    let more = match more.len() {
        0 => String::new(),
        count => format!("; so do {count} more tensors ({})", names.join(", ")),
    };
    let advice = if rows { "; vocabulary = \"base\" merges the tokens that both have" } else { "" };
    Err(Error::Tensor {
        path: other.name.into(),
        tensor: (*tensor).into(),
        expected: format!("{expected}, as {} has it", first.name),
        found: format!("{found}, which differs{more}{advice}"),
    })
}

/// In what a model of one configuration computes otherwise than one of another with the same tensors.
fn unlike(own: &Config, other: &Config) -> Option<&'static str> {
    let angles = |config: &Config| -> Vec<Vec<f64>> {
        config.ropes.iter().map(|rope| rope.frequencies(config.head_dim)).collect()
    };
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs().max(b.abs());
    let (mine, others) = (angles(own), angles(other));
    let same = mine.len() == others.len()
        && mine.iter().flatten().zip(others.iter().flatten()).all(|(a, b)| near(*a, *b));
    let numbers = |config: &Config| {
        [config.attention_scale, config.attention_soft_cap, config.logit_soft_cap]
    };
    match () {
        () if !same => Some("rotary encoding"),
        () if !near(own.rms_norm_eps, other.rms_norm_eps) => Some("epsilon of norms"),
        () if numbers(own) != numbers(other) => Some("scale or cap"),
        () => None,
    }
}
