//! Low-rank adapters of a model: of an adapted linear layer W becomes W + scale B A (Hu et al. 2021, LoRA, arXiv 2106.09685).
//! What a file of them looks like is in [`crate::formats::peft`].

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use regex::Regex;

use crate::device::Random;
use crate::error::{Error, Result};
use crate::families::{Config, Role, TensorSpec, canonical, tensor_specs, without_layer};
use crate::formats::peft::{self, AdapterConfig, Pair, Targets, tensor_name};

/// Adapters, at most one pair for each module.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapters {
    /// Their settings.
    pub config: AdapterConfig,
    /// Their matrices. Modules are named as in a checkpoint of a causal model.
    pub pairs: Vec<Pair>,
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
        let (config, mut pairs) = peft::read(folder)?;
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
        Ok(Self { config, pairs, path: folder.into() })
    }

    /// Writes both files of PEFT's into a folder that is there, each whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        peft::write(folder, &self.config, &self.pairs)
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
        Ok(Self { config, pairs, path: "adapters".into() })
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
