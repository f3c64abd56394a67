//! Low-rank adapters of a model: of an adapted linear layer W becomes W + scale B A (Hu et al. 2021, LoRA, arXiv 2106.09685).
//! What a file of them looks like is in [`crate::formats::peft`].

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use regex::Regex;

use super::checkpoint::Weights;
use super::outline::Outline;
use super::readout::Headed;
use crate::data::unnamed_label;
use crate::device::Random;
use crate::error::{Error, Result};
use crate::families::{
    Config, Readout, Role, TensorSpec, canonical, is_of_score, stored_name, tensor_specs,
    without_layer,
};
use crate::formats::peft::{self, AdapterConfig, Pair, Saved, Stored, Targets, tensor_name};
use crate::graph::Slot;
use crate::tensor::Packed;

/// Adapters, at most one pair for each module.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapters {
    /// Their settings.
    pub config: AdapterConfig,
    /// Their matrices. Modules are named as in a checkpoint of a causal model.
    pub pairs: Vec<Pair>,
    /// A head that scores labels and was learned beside them: its tensors, named likewise.
    pub saved: Vec<Saved>,
    /// The names of its labels; none: nobody says.
    pub labels: Vec<String>,
    /// Where they were read from, for messages.
    path: PathBuf,
}

impl From<Adapters> for Cow<'_, Adapters> {
    fn from(adapters: Adapters) -> Self {
        Cow::Owned(adapters)
    }
}

impl<'a> From<&'a Adapters> for Cow<'a, Adapters> {
    fn from(adapters: &'a Adapters) -> Self {
        Cow::Borrowed(adapters)
    }
}

impl Adapters {
    /// Reads a folder of PEFT's. What they fit is asked with [`Adapters::check`].
    pub fn read(folder: &Path) -> Result<Self> {
        let Stored { config, mut pairs, mut saved, labels } = peft::read(folder)?;
        saved.iter_mut().for_each(|saved| saved.name = canonical(&saved.name));
        if let Some(name) = config.saved.iter().find(|name| !is_of_score(&canonical(name))) {
            return Err(Error::Unsupported {
                path: folder.join(peft::CONFIG_FILE),
                what: format!("an adapter with `modules_to_save` {name}"),
                why: "whole modules beside adapters are read where they are a head that scores labels".into(),
            });
        }
        let mut seen = HashSet::new();
        for pair in &mut pairs {
            let name = canonical(&pair.module);
            if !seen.insert(name.clone()) {
                return Err(Error::Tensor {
                    path: folder.into(),
                    tensor: tensor_name(&pair.module, "A"),
                    expected: "one adapter for each module".into(),
                    found: format!("another one of {name}"),
                });
            }
            pair.module = name;
        }
        Ok(Self { config, pairs, saved, labels, path: folder.into() })
    }

    /// Writes both files of PEFT's into a folder that is there, each whole or not at all, under the names that transformers has for the
    /// modules of a model of this configuration.
    pub fn write(&self, folder: &Path, model: &Config) -> Result<()> {
        let names: HashMap<String, String> =
            tensor_specs(model).iter().map(|s| (s.name.clone(), stored_name(model, s))).collect();
        let stored = |name: &str| names.get(name).map_or(name, String::as_str).to_string();
        let (mut pairs, mut saved) = (self.pairs.clone(), self.saved.clone());
        for pair in &mut pairs {
            let weight = stored(&format!("{}.weight", pair.module));
            pair.module = weight.trim_end_matches(".weight").into();
        }
        saved.iter_mut().for_each(|saved| saved.name = stored(&saved.name));
        peft::write(folder, &self.config, &pairs, (&saved, &self.labels))
    }

    /// The model with the head that is stored beside the adapters; `None`: there is none. Labels that nobody names are those of the
    /// model's own head where it has as many, and else have no names.
    pub fn headed<'a>(&self, weights: &'a dyn Weights) -> Result<Option<Headed<'a>>> {
        let Some(first) = self.saved.first() else { return Ok(None) };
        let wrong = |name: &str, expected: String, found: String| Error::Tensor {
            path: self.path.clone(),
            tensor: name.into(),
            expected,
            found,
        };
        let (before, pooling) = (Outline::of(weights)?, weights.config().family.scored_at);
        let of = |labels: &[String]| Headed::outline(&before, &Readout::scores(pooling, labels));
        let one = of(&[])?.specs;
        let head = one.iter().find(|spec| spec.slot == Slot::Head && spec.role == Role::Score);
        let head = head.map_or("", |spec| spec.name.as_str());
        let Some(stored) = self.saved.iter().find(|saved| saved.name == head) else {
            let found = "another module";
            return Err(wrong(
                &first.name,
                format!("{head}, and what belongs to it"),
                found.into(),
            ));
        };
        let count = stored.shape[0];
        if !self.labels.is_empty() && self.labels.len() != count {
            let expected = format!("a row for each of {} labels", self.labels.len());
            return Err(wrong(head, expected, format!("{count} rows")));
        }
        let own = weights.config().readout.as_ref().map_or(&self.labels, |own| &own.labels);
        let labels = match [&self.labels, own].into_iter().find(|names| names.len() == count) {
            Some(names) => names.clone(),
            None => (0..count).map(unnamed_label).collect(),
        };
        let readout = Readout::scores(pooling, &labels);
        let specs = of(&labels)?.specs;
        let mut given = HashMap::new();
        for Saved { name, shape, values } in &self.saved {
            let spec = specs.iter().find(|spec| spec.name == *name && spec.is_of_score());
            let expected = || {
                spec.map_or("a tensor of a head that scores labels".into(), |spec| {
                    format!("shape {:?}", spec.shape())
                })
            };
            match spec {
                Some(spec) if spec.shape() == *shape => {
                    given.insert(name.clone(), Packed::from_f32(values, spec.rows, spec.columns));
                }
                _ => return Err(wrong(name, expected(), format!("shape {shape:?}"))),
            }
        }
        Headed::given(weights, &readout, given).map(Some)
    }

    /// Adapters to begin training with, of every linear layer that is targeted: A is normal with standard deviation 1 / rank, as
    /// PEFT's `gaussian` has it, B is zero, so that the model is as it was. `specs`: the model's tensors.
    pub fn fresh(config: AdapterConfig, specs: &[TensorSpec], seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        let targeted = targeted(&config.targets, specs)?;
        let pair = |spec: &&TensorSpec| {
            let rank = config.rank_of(spec.module());
            let a = (0..rank * spec.columns).map(|_| random.normal() / rank as f32).collect();
            let b = vec![0.0; spec.rows * rank];
            let (module, inputs, outputs) = (spec.module().into(), spec.columns, spec.rows);
            Pair { module, rank, inputs, outputs, a, b }
        };
        let pairs = targeted.iter().map(pair).collect();
        Ok(Self { config, pairs, saved: Vec::new(), labels: Vec::new(), path: "adapters".into() })
    }

    /// An error that names the first matrix that a model of this configuration has no place for: another module, another shape.
    pub fn check(&self, model: &Config) -> Result<()> {
        let specs = tensor_specs(model);
        let linear = specs.iter().filter(|spec| adaptable(spec));
        let linear: HashMap<&str, &TensorSpec> = linear.map(|spec| (spec.module(), spec)).collect();
        for pair in &self.pairs {
            let wrong = |place: usize, expected: String, found: String| {
                let [a, b] = pair.names();
                let tensor = if place == 0 { a } else { b };
                Error::Tensor { path: self.path.clone(), tensor, expected, found }
            };
            let Some(spec) = linear.get(pair.module.as_str()) else {
                let expected = format!(
                    "a linear layer of a {} of {} layers",
                    model.family.name,
                    model.layers()
                );
                return Err(wrong(0, expected, format!("`{}`, which is none", pair.module)));
            };
            let rank = pair.rank;
            let shapes = [
                ([rank, spec.columns], [rank, pair.inputs]),
                ([spec.rows, rank], [pair.outputs, rank]),
            ];
            for (place, (expected, found)) in shapes.into_iter().enumerate() {
                if expected != found {
                    let shape = |shape: [usize; 2]| format!("shape {shape:?}");
                    return Err(wrong(place, shape(expected), shape(found)));
                }
            }
        }
        Ok(())
    }

    /// The pair of a module.
    pub fn of(&self, module: &str) -> Option<&Pair> {
        self.pairs.iter().find(|pair| pair.module == module)
    }

    /// W + scale B A in f64, of a pair of this model's and its module's weight, (outputs, inputs).
    pub fn merged(&self, pair: &Pair, weight: &[f32]) -> Vec<f64> {
        assert_eq!(weight.len(), pair.outputs * pair.inputs, "the adapters were checked");
        let scale = self.config.scale_of(&pair.module);
        let mut sum: Vec<f64> = weight.par_iter().map(|value| f64::from(*value)).collect();
        let rows = sum.par_chunks_mut(pair.inputs).zip(pair.b.par_chunks(pair.rank));
        rows.for_each(|(row, b)| {
            for (b, a) in b.iter().zip(pair.a.chunks(pair.inputs)) {
                let factor = scale * f64::from(*b);
                for (value, a) in row.iter_mut().zip(a) {
                    *value += factor * f64::from(*a);
                }
            }
        });
        sum
    }
}

/// Whether a tensor can have an adapter.
fn adaptable(spec: &TensorSpec) -> bool {
    matches!(spec.role, Role::Linear | Role::Head)
}

/// The linear layers that are meant, in the model's order. Every name of a list must mean one.
fn targeted<'a>(targets: &Targets, specs: &'a [TensorSpec]) -> Result<Vec<&'a TensorSpec>> {
    let linear: Vec<&TensorSpec> = specs.iter().filter(|spec| adaptable(spec)).collect();
    let wrong = |found: &str| {
        let mut names: Vec<String> = linear.iter().map(|s| without_layer(s.module())).collect();
        names.sort_unstable();
        names.dedup();
        Error::Argument {
            argument: "target modules".into(),
            expected: format!("{}, or what of {}", Targets::ALL_LINEAR, names.join(", ")),
            found: found.into(),
        }
    };
    let is_named = |module: &str, name: &str| {
        module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let mut chosen = linear.clone();
    match targets {
        Targets::Pattern(pattern) if pattern == Targets::ALL_LINEAR => {
            chosen.retain(|spec| spec.role == Role::Linear);
        }
        Targets::Pattern(pattern) => {
            let whole = Regex::new(&format!(r"\A(?:{pattern})\z")).map_err(|_| wrong(pattern))?;
            chosen.retain(|spec| whole.is_match(spec.module()));
        }
        Targets::Named(names) => {
            let any = |name: &&String| {
                !name.is_empty() && linear.iter().any(|spec| is_named(spec.module(), name))
            };
            if let Some(name) = names.iter().find(|name| !any(name)) {
                return Err(wrong(&format!("`{name}`")));
            }
            chosen.retain(|spec| names.iter().any(|name| is_named(spec.module(), name)));
        }
    }
    match chosen.is_empty() {
        true => Err(wrong("none of them")),
        false => Ok(chosen),
    }
}
