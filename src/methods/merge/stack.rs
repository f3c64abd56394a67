//! Blocks of models stacked on each other, as they are: depth up-scaling (Kim et al. 2023, SOLAR, arXiv 2312.15166, section 2) and
//! what mergekit calls passthrough. The embedding is that of the first slice's model, the final norm and the head are those of the
//! last one's.

use std::collections::HashMap;

use super::setting::Setting;
use super::{BadField, Named, Place, of_vocabulary, unlike};
use crate::error::{Error, Result};
use crate::methods::prune::slice::left_format;
use crate::model::{Config, CopyOf, Outline, Role, TensorSpec, Weights, stored, tensor_specs};
use crate::tensor::{Packed, WeightFormat};

/// Consecutive blocks of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Which model.
    pub model: usize,
    /// Its first block.
    pub begin: usize,
    /// The one behind its last block.
    pub end: usize,
    /// What its weights are multiplied by.
    pub scale: Option<Setting>,
}

/// Where a tensor comes from.
#[derive(Clone, Debug)]
struct Origin {
    model: usize,
    spec: TensorSpec,
    scale: Option<f64>,
}

/// The model that slices are stacked to.
#[derive(Debug)]
pub struct Stacked<'a> {
    models: Vec<Named<'a>>,
    config: Config,
    specs: Vec<TensorSpec>,
    from: HashMap<String, Origin>,
}

impl<'a> Stacked<'a> {
    /// Checks slices and models: of headers alone.
    pub fn new(models: Vec<Named<'a>>, slices: &[Slice]) -> Result<Self> {
        let own = models[0].weights.config();
        for model in &models {
            let why = "slices of its two stacks are none of one row";
            model.weights.config().without_encoder("passthrough", why)?;
        }
        for slice in slices {
            check(&models, slice)?;
        }
        let (Some(first), Some(last)) = (slices.first(), slices.last()) else {
            let expected = "the slices that are stacked";
            return Err(BadField::new("slice", expected, "none").in_recipe());
        };
        let mut config = own.clone();
        config.tied = first.model == last.model && models[first.model].weights.config().tied;
        config.blocks.clear();
        // Of each block its model, its number there, its slice and its share of the slice's depth.
        let mut blocks = Vec::new();
        for slice in slices {
            for layer in slice.begin..slice.end {
                config.blocks.push(models[slice.model].weights.config().blocks[layer]);
                blocks.push((slice, layer));
            }
        }
        let (mut specs, mut from) = (Vec::new(), HashMap::new());
        for spec in tensor_specs(&config) {
            let (slice, layer) = match (spec.layer(), spec.role) {
                (Some(place), _) => (blocks[place].0, Some(blocks[place].1)),
                (None, Role::Embedding) => (first, None),
                (None, _) => (last, None),
            };
            let weights = models[slice.model].weights;
            let Some(whole) = find(weights, &spec, layer) else {
                if spec.optional {
                    continue;
                }
                return Err(differs(&models[slice.model], &spec, "no such tensor".into()));
            };
            if whole.shape() != spec.shape() {
                let found = format!("shape {:?}", whole.shape());
                return Err(differs(&models[slice.model], &spec, found));
            }
            let depth = layer.map_or(0, |layer| layer - slice.begin);
            let within = TensorSpec { layer: spec.layer.map(|_| depth), ..whole.clone() };
            let place = Place::new(&within, slice.end - slice.begin);
            let scale = slice.scale.as_ref().and_then(|setting| place.of(setting));
            let source = Origin { model: slice.model, spec: whole.clone(), scale };
            from.insert(spec.name.clone(), source);
            specs.push(spec);
        }
        Ok(Self { models, config, specs, from })
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

    /// What is done to each tensor that does not stay where it is, in words.
    pub fn changes(&self) -> HashMap<String, String> {
        let words = |spec: &TensorSpec| {
            let Origin { model, spec: whole, scale } = &self.from[&spec.name];
            if *model == 0 && whole.name == spec.name && scale.is_none() {
                return None;
            }
            let scaled = scale.map_or(String::new(), |scale| format!(", times {scale:.3}"));
            let text = format!("{} of {}{scaled}", whole.module(), self.models[*model].name);
            Some((spec.name.clone(), text))
        };
        self.specs.iter().filter_map(words).collect()
    }

    /// The models whose embedding and head it has.
    pub fn ends(slices: &[Slice]) -> Vec<usize> {
        let ends = [slices.first(), slices.last()].into_iter().flatten();
        let mut models: Vec<usize> = ends.map(|slice| slice.model).collect();
        models.dedup();
        models
    }
}

impl Weights for Stacked<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let Origin { model, spec: whole, scale } = &self.from[&spec.name];
        let weight = self.models[*model].weights.load(whole)?;
        let Some(scale) = scale else { return Ok(weight) };
        let offset = f64::from(spec.offset);
        let scaled = |value: f32| (scale * (f64::from(value) - offset) + offset) as f32;
        let values: Vec<f32> = weight.to_f32().into_iter().map(scaled).collect();
        stored(&values, self.format(spec)?, spec)
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        let Origin { model, spec: whole, scale } = &self.from[&spec.name];
        let format = self.models[*model].weights.format(whole)?;
        Ok(if scale.is_some() { left_format(format) } else { format })
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        let Origin { model, spec: whole, scale } = &self.from[&spec.name];
        // Blocks stand for those of the recipe's own model only.
        let own = *model == 0 && scale.is_none();
        own.then(|| self.models[0].weights.copy_of(whole)).flatten()
    }
}

/// A model's tensor for a place: of a block there, or before or behind the blocks.
fn find<'w>(
    weights: &'w dyn Weights,
    spec: &TensorSpec,
    layer: Option<usize>,
) -> Option<&'w TensorSpec> {
    let is = |role: Role| {
        move |own: &&TensorSpec| {
            own.layer == layer && own.role == role && (own.slot == spec.slot || of_vocabulary(own))
        }
    };
    let specs = weights.specs();
    let tied = spec.role == Role::Head && weights.config().tied;
    specs.iter().find(is(if tied { Role::Embedding } else { spec.role }))
}

fn differs(model: &Named<'_>, spec: &TensorSpec, found: String) -> Error {
    Error::Tensor {
        path: model.name.into(),
        tensor: spec.name.clone(),
        expected: format!("shape {:?} in its place", spec.shape()),
        found,
    }
}

/// An error if a slice is none of its model, or its blocks do not go with those of the first model.
fn check(models: &[Named<'_>], slice: &Slice) -> Result<()> {
    let (first, model) = (&models[0], &models[slice.model]);
    let (own, config) = (first.weights.config(), model.weights.config());
    let wrong =
        |expected: String, found: String| Err(BadField::new("slice", expected, found).in_recipe());
    if slice.begin >= slice.end || slice.end > config.layers() {
        let expected = format!("blocks within 0..{} of {}", config.layers(), model.name);
        return wrong(expected, format!("{}..{}", slice.begin, slice.end));
    }
    let words = |config: &Config| {
        let (family, hidden) = (config.family.name, config.hidden_size);
        format!("{family} of {hidden} columns, heads of {}", config.head_dim)
    };
    let same = own.family == config.family
        && own.hidden_size == config.hidden_size
        && own.head_dim == config.head_dim
        && own.shortcuts == config.shortcuts;
    if !same {
        let expected = format!("blocks of a {}, as {} has", words(own), first.name);
        return wrong(expected, format!("{}, a {}", model.name, words(config)));
    }
    match unlike(own, config).filter(|_| slice.model > 0) {
        None => Ok(()),
        Some(what) => wrong(format!("blocks with the {what} of {}", first.name), model.name.into()),
    }
}
