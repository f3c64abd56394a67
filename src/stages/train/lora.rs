//! Low-rank factors are learned beside frozen layers, and merged into them in the end. A head that scores texts is small and may be
//! fresh: it is learned itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::full::{learn, plain};
use super::{Change, Learn, Preparing};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::families::block_patterns;
use crate::formats::peft::{AdapterConfig, CONFIG_FILE, Saved, Targets, WEIGHTS_FILE};
use crate::methods::BadField;
use crate::methods::tune::merged::{Exact, Merged, Widened, no_room};
use crate::model::{Adapters, Config, CopyOf, Role, TensorSpec, Weights};
use crate::stages::Modules;
use crate::tensor::{Packed, WeightFormat};
use crate::train::lora::{adapt, expect_of_blocks, learned};
use crate::train::{Learner, Parameter};

/// The factors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Lora {
    /// Rows of the first factor of each layer, columns of the second
    #[arg(long, default_value_t = Self::default().rank)]
    pub rank: usize,
    /// What they add is multiplied by this, over the rank
    #[arg(long, default_value_t = Self::default().alpha)]
    pub alpha: f64,
    /// The share of their inputs that is left out, another one at each step
    #[arg(long, default_value_t = Self::default().dropout)]
    pub dropout: f64,
    /// Beside the layers that match (* stands for anything; default: all linear layers of the blocks)
    #[arg(long, default_values_t = layers(), hide_default_value = true)]
    pub include: Vec<String>,
    /// Leave out layers that match
    #[arg(long)]
    pub exclude: Vec<String>,
    /// What quantized layers are once the factors are merged into them
    #[arg(long, value_enum, default_value_t)]
    pub merge: MergeAs,
    /// Begin with the adapter in this folder, as PEFT writes it; rank, alpha, dropout and layers are its own
    #[arg(
        id = "begin",
        long = "begin",
        value_name = "FOLDER",
        conflicts_with_all = ["rank", "alpha", "dropout", "include", "exclude"],
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

/// What quantized layers are once factors are merged into them. Plain ones keep their type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MergeAs {
    /// Rounded to their own type again, which may lose what was learned
    #[default]
    Own,
    /// f16
    F16,
}

fn layers() -> Vec<String> {
    block_patterns()
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            include: layers(),
            exclude: Vec::new(),
            merge: MergeAs::Own,
            adapter: None,
        }
    }
}

/// The adapter's folder, in the stage's and in the artifact.
const ADAPTER: &str = "adapter";

impl Lora {
    fn targets(&self, spec: &TensorSpec) -> Result<bool, BadField> {
        let modules = Modules::new(&self.include, &self.exclude)?;
        Ok(spec.role == Role::Linear && modules.have(spec))
    }

    /// The factors to begin with.
    fn begin(&self, weights: &dyn Weights, seed: u64) -> Result<Adapters> {
        let adapters = match &self.adapter {
            Some(folder) => without_head(Adapters::read(Path::new(folder))?, folder)?,
            None => {
                let mut names = Vec::new();
                for spec in weights.specs() {
                    if self.targets(spec).map_err(BadField::in_recipe)? {
                        names.push(spec.module().to_string());
                    }
                }
                let config = AdapterConfig {
                    dropout: self.dropout,
                    ..AdapterConfig::new(self.rank, self.alpha, Targets::Named(names))
                };
                Adapters::fresh(config, weights.specs(), seed)?
            }
        };
        adapters.check(weights.config())?;
        Ok(adapters)
    }
}

impl Learn for Lora {
    const USUAL_RATE: f64 = 3e-4;

    fn check(&self) -> Result<(), BadField> {
        Modules::new(&self.include, &self.exclude)?;
        let own = Self { adapter: self.adapter.clone(), merge: self.merge, ..Self::default() };
        if self.adapter.is_some() && *self != own {
            let expected =
                "neither rank, alpha, dropout, include nor exclude beside it: they are its own";
            return Err(BadField::new("adapter", expected, "one of these"));
        }
        if self.rank == 0 || self.rank > 4096 {
            return Err(BadField::new("rank", "1 to 4096", self.rank));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(BadField::new("alpha", "a number above 0", self.alpha));
        }
        if !(self.dropout >= 0.0 && (self.dropout as f32) < 1.0) {
            return Err(BadField::new("dropout", "0 to less than 1", self.dropout));
        }
        Ok(())
    }

    fn files(&self, model: Option<&Config>) -> Result<Vec<PathBuf>> {
        let Some(folder) = self.adapter.as_deref().map(Path::new) else {
            return Ok(Vec::new());
        };
        let adapters = without_head(Adapters::read(folder)?, &folder.to_string_lossy())?;
        if let Some(config) = model {
            adapters.check(config)?;
        }
        expect_of_blocks(&adapters, folder)?;
        Ok([CONFIG_FILE, WEIGHTS_FILE].map(|name| folder.join(name)).to_vec())
    }

    fn plan(&self, spec: &TensorSpec, format: WeightFormat) -> Result<Option<Change>, BadField> {
        if spec.is_of_score() {
            let numbers = (spec.rows * spec.columns) as u64;
            return Ok(Some(Change { format: plain(format), numbers, text: "learned".into() }));
        }
        // Which layers an adapter is beside is known when it is read.
        let has = match self.adapter {
            Some(_) => spec.role == Role::Linear,
            None => self.targets(spec)?,
        };
        if let (true, Some(why), MergeAs::Own) = (has, no_room(format), self.merge) {
            let found = format!("own, and `{}` stored as {}", spec.name, format.label());
            return Err(BadField::new("merge", format!("f16: {why}"), found));
        }
        let format = if self.merge == MergeAs::F16 { plain(format) } else { format };
        let numbers = (self.rank * (spec.rows + spec.columns)) as u64;
        let text = format!("rank {} learned, merged", self.rank);
        Ok(has.then_some(Change { format, numbers, text }))
    }

    fn no_match(&self) -> BadField {
        let found = format!("{:?}, which match none", self.include);
        BadField::new("include", "patterns that match a linear layer of a block", found)
    }

    fn prepare(&self, mut preparing: Preparing<'_>) -> Result<Vec<Box<dyn Parameter>>> {
        let adapters = self.begin(preparing.weights, preparing.seed)?;
        let mut parameters: Vec<Box<dyn Parameter>> = Vec::new();
        let device = preparing.pass.device;
        for pair in &adapters.pairs {
            let dropout = adapters.config.dropout as f32;
            parameters.extend(adapt(device, preparing.model, &adapters, pair, dropout)?);
        }
        let weights = preparing.weights;
        for spec in weights.specs().iter().filter(|spec| spec.is_of_score()) {
            parameters.push(learn(&mut preparing, spec)?);
        }
        Ok(parameters)
    }

    fn unrounded<'a>(
        &self,
        weights: &'a dyn Weights,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        let adapters = Adapters::read(&folder.join(ADAPTER))?;
        // The factors alone are not what was learned where a head was, too.
        if !adapters.saved.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(Exact::new(weights, adapters)?)))
    }

    fn folders(&self) -> &'static [&'static str] {
        &[ADAPTER]
    }

    fn result<'a>(
        &self,
        device: &'a Device,
        weights: &'a dyn Weights,
        learner: &'a Learner,
        folder: &Path,
    ) -> Result<Box<dyn Weights + 'a>> {
        // Names, shapes and settings are those that it began with.
        let mut adapters = self.begin(weights, 0)?;
        let parameter = |name: String| {
            let mut parameters = learner.parameters().iter();
            let found = parameters.find(|parameter| parameter.tensor() == name);
            &**found.expect("every factor is learned")
        };
        for pair in &mut adapters.pairs {
            let both = ["A", "B"].map(|ab| parameter(format!("{}.lora_{ab}.weight", pair.module)));
            learned(device, both, pair)?;
        }
        let mut learned_head = HashMap::new();
        for spec in weights.specs().iter().filter(|spec| spec.is_of_score()) {
            let values = device.read(&parameter(spec.name.clone()).learned()[0].values)?.to_f32();
            let (name, shape) = (spec.name.clone(), spec.shape());
            adapters.saved.push(Saved { name, shape, values });
            if spec.role == Role::Score {
                adapters.config.saved.push(spec.module().into());
            }
            let packed = parameter(spec.name.clone()).packed(device, spec)?;
            learned_head.insert(spec.name.clone(), packed);
        }
        if let (Some(readout), false) = (&weights.config().readout, learned_head.is_empty()) {
            adapters.labels.clone_from(&readout.labels);
        }
        let folder = folder.join(ADAPTER);
        std::fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
        adapters.write(&folder, weights.config())?;
        let merged: Box<dyn Weights + 'a> = match self.merge {
            MergeAs::Own => Box::new(Merged::new(weights, adapters, device)?),
            MergeAs::F16 => Box::new(Widened::new(weights, adapters, device)?),
        };
        match learned_head.is_empty() {
            true => Ok(merged),
            false => Ok(Box::new(WithScore { merged, learned: learned_head })),
        }
    }
}

/// Adapters to begin with: a head beside them would have to be the model's already.
fn without_head(adapters: Adapters, folder: &str) -> Result<Adapters> {
    match adapters.saved.first() {
        None => Ok(adapters),
        Some(saved) => Err(Error::Unsupported {
            path: folder.into(),
            what: format!("beginning with an adapter that has {} beside it", saved.name),
            why: "go on with the merged model, which has the head".into(),
        }),
    }
}

/// A merged model with a head that was learned, which scores texts.
struct WithScore<'a> {
    merged: Box<dyn Weights + 'a>,
    /// The head's tensors, by name.
    learned: HashMap<String, Packed>,
}

impl Weights for WithScore<'_> {
    fn config(&self) -> &Config {
        self.merged.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.merged.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        match self.learned.get(&spec.name) {
            Some(learned) => Ok(learned.clone()),
            None => self.merged.load(spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.learned.get(&spec.name) {
            Some(learned) => Ok(learned.format),
            None => self.merged.format(spec),
        }
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        self.merged.copy_of(spec).filter(|_| !self.learned.contains_key(&spec.name))
    }
}
