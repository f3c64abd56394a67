//! A model with experts made of models without: sparse upcycling, whose experts are copies of one feed-forward (Komatsuzaki et al.
//! 2022, arXiv 2212.05055), and mixtures of feed-forwards of several models, as mergekit-moe makes them. All but the feed-forwards is
//! the first model's; routers are drawn or given.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{BadField, Named, unlike};
use crate::device::Random;
use crate::error::{Error, Result};
use crate::graph::{Experts, Slot};
use crate::model::{Config, CopyOf, Outline, Role, TensorSpec, Weights, stored, tensor_specs};
use crate::tensor::{Packed, WeightFormat};

/// Where an expert comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert {
    /// Which model's feed-forwards it has.
    pub model: usize,
    /// The deviation of the noise that is added to its weights; 0: none.
    pub noise: f64,
}

/// What routers begin with.
#[derive(Clone, Debug, PartialEq)]
pub enum Routers {
    /// A normal distribution of this deviation.
    Normal(f64),
    /// From minus this to this, all alike.
    Uniform(f64),
    /// Of each block its rows, (experts, hidden).
    Given(Vec<Vec<f32>>),
}

/// What an assembled model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// The experts of every block.
    pub experts: Vec<Expert>,
    /// How many of them a token goes through.
    pub used: usize,
    /// What routers begin with.
    pub routers: Routers,
    /// The format of matrices; `None`: as they are, with noise f16 where they have scales.
    pub format: Option<WeightFormat>,
    /// Of everything random.
    pub seed: u64,
}

/// The model that is assembled. Tensors are made when they are asked for.
#[derive(Debug)]
pub struct Assembled<'a> {
    models: Vec<Named<'a>>,
    parts: Parts,
    config: Config,
    specs: Vec<TensorSpec>,
    /// Of each tensor but for routers, by name, the model and the tensor there.
    from: HashMap<String, (usize, TensorSpec)>,
}

impl<'a> Assembled<'a> {
    /// Checks that the parts go together: of headers alone. The first model gives all but the feed-forwards.
    pub fn new(models: Vec<Named<'a>>, parts: Parts) -> Result<Self> {
        let own = models[0].weights.config();
        let count = parts.experts.len();
        let config = own.with_experts(Experts { count, used: parts.used, normalized: true });
        let Some(mut config) = config else {
            let expected = "a model without experts, of a family whose blocks one with experts has";
            return Err(Error::Argument {
                argument: "model".into(),
                expected: expected.into(),
                found: format!("one of the family {}", own.family.name),
            });
        };
        for expert in &parts.experts {
            check(&models[0], &models[expert.model], &config)?;
        }
        let first = models[parts.experts[0].model].weights.config();
        for (block, of) in config.blocks.iter_mut().zip(&first.blocks) {
            block.intermediate_size = of.intermediate_size;
        }
        let (mut specs, mut from) = (Vec::new(), HashMap::new());
        for spec in tensor_specs(&config) {
            if spec.role == Role::Router {
                specs.push(spec);
                continue;
            }
            let model = spec.slot.expert().map_or(0, |expert| parts.experts[expert].model);
            let Named { name, weights } = models[model];
            let wrong = |tensor: &str, found: String| Error::Tensor {
                path: name.into(),
                tensor: tensor.into(),
                expected: format!("shape {:?}, for {}", spec.shape(), spec.name),
                found,
            };
            let slot = spec.slot.of_no_expert();
            let is = |own: &&TensorSpec| {
                (own.layer, own.slot, own.role) == (spec.layer, slot, spec.role)
            };
            match weights.specs().iter().find(is) {
                None if spec.optional => continue,
                None => return Err(wrong(&spec.name, "no such tensor".into())),
                Some(whole) if whole.shape() != spec.shape() => {
                    return Err(wrong(&whole.name, format!("shape {:?}", whole.shape())));
                }
                Some(whole) => _ = from.insert(spec.name.clone(), (model, whole.clone())),
            }
            specs.push(spec);
        }
        Ok(Self { models, parts, config, specs, from })
    }

    /// The outline of what it will be, after `before`.
    pub fn outline(&self, before: &Outline) -> Result<Outline> {
        let formats = self.specs.iter().map(|spec| self.format(spec));
        Ok(Outline {
            config: self.config.clone(),
            first: before.first.clone(),
            formats: formats.collect::<Result<_>>()?,
            copies: self.specs.iter().map(|spec| self.copy_of(spec)).collect(),
            specs: self.specs.clone(),
            estimated: before.estimated,
            uneven: before.uneven,
        })
    }

    /// What is done to each tensor of the feed-forwards, in words.
    pub fn changes(&self) -> HashMap<String, String> {
        let words = |spec: &TensorSpec| {
            let Some((model, whole)) = self.from.get(&spec.name) else {
                let text = match &self.parts.routers {
                    Routers::Normal(deviation) => format!("drawn, deviation {deviation}"),
                    Routers::Uniform(most) => format!("drawn, up to {most:.4}"),
                    Routers::Given(_) => "by prompts".into(),
                };
                return Some((spec.name.clone(), text));
            };
            let mut text = format!("{} of {}", whole.name, self.models[*model].name);
            match self.noise(spec) {
                noise if noise > 0.0 => text += &format!(", noise {noise}"),
                _ if spec.slot.expert().is_none() => return None,
                _ => {}
            }
            Some((spec.name.clone(), text))
        };
        self.specs.iter().filter_map(words).collect()
    }

    /// What the user should know of models that were made for something else than the first.
    pub fn warnings(&self) -> Vec<String> {
        let first = self.models[0].weights.config();
        let differs = |model: &Named<'_>| {
            let what = unlike(first, model.weights.config())?;
            let name = model.name;
            Some(format!("{name} was made for another {what}: its experts run with the first's"))
        };
        self.models[1..].iter().filter_map(differs).collect()
    }

    fn noise(&self, spec: &TensorSpec) -> f64 {
        spec.slot.expert().map_or(0.0, |expert| self.parts.experts[expert].noise)
    }

    /// The model and the tensor that a tensor is made of; `None` for a router.
    fn source(&self, spec: &TensorSpec) -> Option<(&'a dyn Weights, &TensorSpec)> {
        let (model, whole) = self.from.get(&spec.name)?;
        Some((self.models[*model].weights, whole))
    }

    /// A router's rows.
    fn router(&self, spec: &TensorSpec) -> Vec<f32> {
        let draw = |next: &dyn Fn(&mut Random) -> f32| {
            let mut random = Random::new(Random::seed_of(self.parts.seed, &spec.name));
            (0..spec.rows * spec.columns).map(|_| next(&mut random)).collect()
        };
        match &self.parts.routers {
            Routers::Normal(deviation) => draw(&|random| *deviation as f32 * random.normal()),
            Routers::Uniform(most) => draw(&|random| *most as f32 * random.value()),
            Routers::Given(rows) => rows[spec.layer.expect("a router is of a block")].clone(),
        }
    }
}

/// An error if a model's feed-forwards do not go with the first one's blocks.
fn check(first: &Named<'_>, model: &Named<'_>, config: &Config) -> Result<()> {
    let own = model.weights.config();
    let same = own.with_experts(config.experts.expect("a model with experts"));
    let words = |config: &Config| format!("{} of {} blocks", config.family.name, config.layers());
    if same.is_none_or(|same| same.family != config.family) || own.layers() != config.layers() {
        let expected = format!("models like {}, a {}", first.name, words(first.weights.config()));
        let found = format!("{}, a {}", model.name, words(own));
        return Err(BadField::new("expert", expected, found).in_recipe());
    }
    let feed_forward = |slot: Slot| matches!(slot, Slot::Gate | Slot::Up | Slot::Down);
    let biased = |spec: &&TensorSpec| spec.role == Role::Bias && feed_forward(spec.slot);
    match model.weights.specs().iter().find(biased) {
        None => Ok(()),
        Some(spec) => Err(Error::Tensor {
            path: model.name.into(),
            tensor: spec.name.clone(),
            expected: "a feed-forward without biases, as experts are".into(),
            found: "one".into(),
        }),
    }
}

impl Weights for Assembled<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let format = self.format(spec)?;
        let Some((weights, whole)) = self.source(spec) else {
            return stored(&self.router(spec), format, spec);
        };
        let packed = weights.load(whole)?;
        let noise = self.noise(spec);
        if noise == 0.0 && packed.format == format {
            return Ok(packed);
        }
        let mut values = packed.to_f32();
        drop(packed);
        if noise > 0.0 {
            let first = Random::seed_of(self.parts.seed, &spec.name);
            values.par_chunks_mut(spec.columns).enumerate().for_each(|(row, line)| {
                let mut random = Random::new(first.wrapping_add(row as u64));
                line.iter_mut().for_each(|value| *value += noise as f32 * random.normal());
            });
        }
        stored(&values, format, spec)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        let plain = |format: WeightFormat| match format.ty.is_plain() {
            true => format,
            false => WeightFormat::f16(),
        };
        let Some((weights, whole)) = self.source(spec) else {
            if let Some(format) = self.parts.format {
                return Ok(format);
            }
            // As the first matrix: the embedding.
            let weights = self.models[0].weights;
            let first = weights.specs().iter().find(|spec| !spec.is_plain());
            return first.map_or(Ok(WeightFormat::f32()), |spec| weights.format(spec).map(plain));
        };
        let own = weights.format(whole)?;
        Ok(match self.parts.format.filter(|_| !spec.is_plain()) {
            Some(format) => format,
            None if self.noise(spec) > 0.0 => plain(own),
            None => own,
        })
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        // Copies are told of the first model alone, and of what is as it was.
        let (0, whole) = self.from.get(&spec.name)? else { return None };
        let weights = self.models[0].weights;
        let same = self.noise(spec) == 0.0 && weights.format(whole).ok() == self.format(spec).ok();
        weights.copy_of(whole).filter(|_| same)
    }
}
