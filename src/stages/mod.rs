//! The kinds of stages a recipe is made of: one file and one row of [`STAGES`] each.
//!
//! A stage is a struct whose fields are the recipe's keys and the command's flags at once; kinds of several methods have one
//! struct for each ([`method`]). It plans on an outline, without
//! reading a weight, and runs on whatever the stage before it left: weights in, a packed folder out, tensor by tensor.

pub mod fresh;
pub mod merge;
pub mod method;
pub mod prune;
pub mod quantize;
mod repeat;
pub mod train;
pub mod transform;
pub mod upcycle;

use std::collections::HashMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{DeserializeOwned, Error as _};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use self::method::Method;
use crate::data::training::{Dataset, Examples};
use crate::device::Device;
use crate::disk::write_record;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::methods::BadField;
use crate::methods::calibration::{Calibration, Feed, Rows, Source};
use crate::methods::sequential::Inputs;
use crate::model::{
    Checkpoint, Compute, Config, Outline, Pass, Readout, Role, TensorSpec, Weights, continue_packed,
};
use crate::walk::Kind;
use crate::walk::stored::Stored;

/// A kind of stage.
#[derive(Debug)]
pub struct StageKind {
    /// `kind` in recipes, and the name of the stage's folder and report.
    pub name: &'static str,
    /// The model after this stage, in the words of reports.
    pub result: &'static str,
    /// Its methods, of a kind that has several.
    pub methods: &'static [Method],
    /// The command that runs one of them alone, which stands there as METHOD.
    pub command: &'static str,
    /// Reads a stage from the other keys of its table.
    pub parse: fn(toml::Table) -> Result<Arc<dyn Stage>, toml::de::Error>,
}

pub(crate) use repeat::{listed, unfold};

/// Every kind. What stands for several stages, [`repeat`], is none.
pub static STAGES: &[StageKind] = &[
    prune::KIND,
    transform::KIND,
    quantize::KIND,
    train::TUNE,
    train::DISTIL,
    merge::KIND,
    upcycle::KIND,
    fresh::KIND,
];

/// A step of a recipe.
pub trait Stage: std::fmt::Debug + Send + Sync {
    /// Its row of [`STAGES`].
    fn kind(&self) -> &'static StageKind;
    /// Its recipe keys, in order, without `kind`.
    fn keys(&self) -> Map<String, Value>;
    /// Its inputs beside the weights. They are read before anything is computed.
    fn needs(&self) -> Needs<'_>;
    /// The files that it reads beside texts and models, once they were looked at: what is wrong with them is told before anything
    /// is computed. `model`: what it runs on, where that is known already.
    fn files(&self, _model: Option<&Config>) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
    /// The head that it puts on such a model, which scores texts; `None`: the one that the model has stays.
    fn new_head(&self, _: &Config) -> Option<Readout> {
        None
    }
    /// Further models that it merges with the one that it runs on.
    fn others(&self) -> Vec<String> {
        Vec::new()
    }
    /// What only the files of those tell: what the user should know, or an error. `parent`: the recipe's own model.
    fn check_others(&self, _parent: &Checkpoint, _others: &[Checkpoint]) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// What it makes of a model of this outline. Pure. Errors name the recipe's key, or the tensor, that is at fault.
    fn plan(&self, model: &Outline) -> Result<Planned>;
    /// The same with further models of these outlines: those of [`Stage::others`], in order.
    fn plan_beside(&self, model: &Outline, _others: &[Outline]) -> Result<Planned> {
        self.plan(model)
    }
    /// Runs on the weights that the stage before left, and ends with [`Context::write`]. After an interruption it is called
    /// again with the same arguments and continues from what it saved. Returns the configuration of what it wrote.
    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config>;
    /// What its rounding is measured against: `model`, that it ran on, as it would have left it unrounded, by what is in its
    /// folder, in f32 where it rounded. `None`: `model` itself.
    fn unrounded<'a>(
        &self,
        _model: &'a dyn Weights,
        _device: &'a Device,
        _folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        Ok(None)
    }
    /// Whether what its weights differ in from those before it, or from [`Stage::unrounded`], is lost.
    fn loses(&self) -> bool {
        true
    }
    /// Whether many weights are exactly 0 afterwards, so that those that are not are counted.
    fn leaves_zeros(&self) -> bool {
        false
    }
    /// Whether the channels that are left are channels of the model before it.
    fn keeps_channels(&self) -> bool {
        true
    }
    /// Whether the recipe's seed decides what it makes.
    fn is_random(&self) -> bool {
        self.keys().values().any(|value| value == "random")
    }
    /// Removes from its folder what only a run needed that is done now.
    fn tidy(&self, _folder: &Path) -> Result<()> {
        Ok(())
    }
    /// Folders in its own that become part of the artifact, beside the model.
    fn folders(&self) -> &'static [&'static str] {
        &[]
    }
    /// What it has to tell beside its weights, by its folder once it is done.
    fn report(&self, _folder: &Path) -> Result<Option<Report>> {
        Ok(None)
    }
}

/// What a stage has to tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The file of the artifact that it becomes.
    pub file: &'static str,
    /// Its contents.
    pub value: Value,
    /// Further files beside it, and what is in them.
    pub files: Vec<(&'static str, String)>,
    /// How much was learned, of a stage that learns.
    pub learned: Option<Learned>,
    /// What only the run could tell.
    pub warnings: Vec<String>,
}

impl Report {
    /// A file alone.
    pub fn new(file: &'static str, value: Value) -> Self {
        Self { file, value, files: Vec::new(), learned: None, warnings: Vec::new() }
    }
}

/// How much a stage learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// Tokens that it was trained on.
    pub tokens: u64,
    /// The mean loss, in nats a token (or a pair, or a text), of what was held out, with the weights that it left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
    /// Of scores, the share of pairs or of texts that are told right there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// An error that names the family, if a model has an encoder: a field's value is for decoders only, for that reason.
pub(crate) fn without_encoder(
    config: &Config,
    field: &'static str,
    value: &str,
    why: &str,
) -> Result<(), BadField> {
    match config.has_encoder() {
        false => Ok(()),
        true => {
            let (name, why) = (config.family.name, config.why_not(why));
            let expected = format!("another one for a model of the family {name}: {why}");
            Err(BadField::new(field, expected, value))
        }
    }
}

/// Which weights a stage is for, by patterns of their modules' names.
#[derive(Clone, Debug)]
pub(crate) struct Modules {
    include: Vec<glob::Pattern>,
    exclude: Vec<glob::Pattern>,
}

impl Modules {
    fn new(include: &[String], exclude: &[String]) -> Result<Self, BadField> {
        let compile = |field, patterns: &[String]| -> Result<Vec<glob::Pattern>, BadField> {
            let compile = |text: &String| {
                let broken = |error: glob::PatternError| {
                    BadField::new(field, "a pattern", format!("{text}: {}", error.msg))
                };
                glob::Pattern::new(text).map_err(broken)
            };
            patterns.iter().map(compile).collect()
        };
        let (include, exclude) = (compile("include", include)?, compile("exclude", exclude)?);
        Ok(Self { include, exclude })
    }

    /// Whether a tensor is among them. Norms and biases never are.
    fn have(&self, spec: &TensorSpec) -> bool {
        let weight = matches!(spec.role, Role::Linear | Role::Head | Role::Embedding);
        weight && self.names(spec)
    }

    /// Whether a tensor's module is meant, whatever its role.
    fn names(&self, spec: &TensorSpec) -> bool {
        let named = |patterns: &[glob::Pattern]| {
            patterns.iter().any(|pattern| pattern.matches(spec.module()))
        };
        named(&self.include) && !named(&self.exclude)
    }
}

/// A stage's inputs beside weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Needs<'a> {
    /// Tokens to calibrate on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<&'a Calibration>,
    /// A folder or file of statistics that were taken of the recipe's own model before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<&'a str>,
    /// The kinds of sums that it takes, of these tokens or from these statistics.
    #[serde(skip)]
    pub kinds: &'a [Kind],
    /// What is learned from.
    #[serde(skip)]
    pub data: Option<&'a Dataset>,
    /// Rows of a step of learning: no more than there are.
    #[serde(skip)]
    pub batch: usize,
    /// A model to learn from, where that is not the recipe's own; [`BEFORE`] stands for one of the run's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<&'a str>,
    /// Gradients of the loss of these tokens.
    pub gradients: bool,
    /// Rows behind those of the calibration that are kept apart, to try on what it found.
    #[serde(skip_serializing_if = "is_zero")]
    pub held_out: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl<'a> Needs<'a> {
    /// What a method needs that takes sums of these kinds from `source`.
    pub fn sums(source: &'a Source, kinds: &'a [Kind]) -> Self {
        let (calibration, stats) = (source.calibration(), source.stats.as_deref());
        Self { calibration, stats, kinds, ..Self::default() }
    }
}

/// A stage's plan, from headers alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The model afterwards.
    pub outline: Outline,
    /// What is done to tensors, in words, by their names afterwards; those it leaves as they are do not appear.
    pub changes: HashMap<String, String>,
    /// Most bytes of device memory in use at once, about.
    pub peak_device_bytes: u64,
    /// Most bytes of host memory in use at once, about.
    pub peak_host_bytes: u64,
    /// Warnings: effects the user may not expect.
    pub warnings: Vec<String>,
}

/// The environment of a running stage.
pub struct Context<'a> {
    /// The recipe's own model: its configuration file, and the teacher of stages that learn from it.
    pub parent: &'a Checkpoint,
    /// Where and in what calibration computes.
    pub pass: Pass<'a>,
    /// The rows of [`Needs::calibration`], and behind them [`Needs::held_out`] more.
    pub rows: Option<&'a Rows>,
    /// The statistics of [`Needs::stats`], which have the kinds of [`Needs::kinds`] of every block, and are this model's.
    pub statistics: Option<&'a Stored>,
    /// The rows of [`Needs::data`].
    pub examples: Option<&'a Examples>,
    /// The model of [`Needs::teacher`].
    pub teacher: Option<&'a Checkpoint>,
    /// The models of [`Stage::others`], in order.
    pub others: &'a [Checkpoint],
    /// What training computes in.
    pub training: Compute,
    /// The recipe's seed.
    pub seed: u64,
    /// Bytes of device memory that may be used.
    pub budget: Option<u64>,
    /// The stage's folder while it is being made; what is in it outlives a crash.
    pub folder: &'a Path,
    /// Progress: what is being done, pieces done, pieces in all.
    pub progress: &'a mut dyn FnMut(&str, usize, usize),
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl<'a> Context<'a> {
    /// Writes the stage's result. A tensor is loaded from `weights`, which may compute it then, and written before the next
    /// one; a repeated call continues at the first tensor that is not safely on the disk. Returns the configuration.
    pub fn write(&mut self, step: &str, weights: &dyn Weights) -> Result<Config> {
        // What this file cannot say of some models (rotary divisors) `Checkpoint::open_stage` is told.
        let config = self.parent.config_json().unwrap_or_default();
        continue_packed(self.folder, config, weights, &mut |done, total| {
            interrupt::check()?;
            (self.progress)(step, done, total);
            Ok(())
        })?;
        Ok(weights.config().clone())
    }

    /// Where the sums of a method come from that goes block by block.
    pub(crate) fn inputs(&self, feed: Feed) -> Inputs<'a> {
        match (self.statistics, self.rows) {
            (Some(stored), _) => Inputs::Stored(stored),
            (None, Some(rows)) => Inputs::Walk { rows, pass: self.pass, feed },
            (None, None) => Inputs::None,
        }
    }

    /// The state that [`save`] saved as `name` before an interruption.
    pub fn saved<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        saved(self.folder, name)
    }
}

/// What a stage saves of how it decided, for the manifest: any JSON without nulls.
pub const DETAILS: &str = "details.json";

/// What [`save`] saved as `name` in a stage's folder.
pub(crate) fn saved<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(Error::read(&path))?;
    let state = serde_json::from_slice(&text).map_err(|error| Error::Malformed {
        path,
        what: "saved state".into(),
        offset: None,
        expected: "what this version writes".into(),
        found: error.to_string(),
    })?;
    Ok(Some(state))
}

/// What [`save_bytes`] saved as `name` in a stage's folder.
fn saved_bytes(folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    let read = path.exists().then(|| std::fs::read(&path).map_err(Error::read(&path)));
    read.transpose()
}

/// Saves numbers as `name` in a stage's folder: all of them, or what was there before stays.
fn save_bytes(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    write_record(&folder.join(name), bytes)
}

/// Saves a stage's own progress as `name` in its folder: all of it, or what was there before stays.
fn save(folder: &Path, name: &str, state: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(state).expect("states are plain tables and values");
    write_record(&folder.join(name), &text)
}

/// The teacher of a recipe that is no model of its own: what stood before the last `prune` stage.
pub const BEFORE: &str = "before";

/// The key of a stage that is part of a round.
const ROUND: &str = "round";

/// A stage's kind, with its round where it has one.
pub fn titled(kind: &str, round: Option<usize>) -> String {
    match round {
        None => kind.into(),
        Some(round) => format!("{kind}, round {round}"),
    }
}

/// A stage of whatever kind, as recipes hold it.
#[derive(Clone, Debug)]
pub struct RecipeStage {
    stage: Arc<dyn Stage>,
    /// Which round of a repetition it is part of, from 1.
    round: Option<usize>,
}

impl<S: Stage + 'static> From<S> for RecipeStage {
    fn from(stage: S) -> Self {
        Self::of(Arc::new(stage))
    }
}

impl RecipeStage {
    /// One that was read.
    pub fn of(stage: Arc<dyn Stage>) -> Self {
        Self { stage, round: None }
    }

    /// Reads one from its table. The message of an error begins with its kind.
    fn read(mut table: toml::Table) -> Result<Self, String> {
        let names = || STAGES.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        let Some(kind) = table.remove("kind") else {
            return Err(format!("a stage without kind ({}, repeat)", names()));
        };
        let named = STAGES.iter().find(|row| kind.as_str() == Some(row.name));
        let row = named
            .ok_or_else(|| format!("stage kind {kind}, which is none of {}, repeat", names()))?;
        let round = match table.remove(ROUND) {
            None => None,
            Some(value) => match value.as_integer().and_then(|round| usize::try_from(round).ok()) {
                Some(round) if round > 0 => Some(round),
                _ => {
                    let name = row.name;
                    return Err(format!("in a {name} stage: {ROUND} {value}, which is not from 1"));
                }
            },
        };
        let stage = (row.parse)(table)
            .map_err(|error| format!("in a {} stage: {}", row.name, error.message()))?;
        Ok(Self { stage, round })
    }

    /// Which round of a repetition it is part of, from 1.
    pub fn round(&self) -> Option<usize> {
        self.round
    }

    /// Whether it is a `prune` stage.
    pub fn is_cut(&self) -> bool {
        self.kind().name == prune::KIND.name
    }

    /// The same as part of a round.
    fn in_round(self, round: usize) -> Self {
        Self { round: Some(round), ..self }
    }

    /// Its kind, with its round where it has one, as tables and messages name it.
    pub fn title(&self) -> String {
        titled(self.kind().name, self.round)
    }

    /// The same stage with calibration rows of the text's draw of this number: those behind the rows of the draws before.
    pub fn drawn(&self, draw: usize) -> Result<Self, toml::de::Error> {
        let needs = self.needs();
        let Some(calibration) = needs.calibration else {
            return Ok(self.clone());
        };
        let rows = calibration.samples().saturating_add(needs.held_out);
        let tokens = rows.saturating_mul(calibration.length());
        let offset = calibration.offset.saturating_add(draw.saturating_mul(tokens));
        let mut keys = self.keys();
        // The table of the calibration is the one with an offset.
        let table = keys.values_mut().find(|value| value.get("offset").is_some());
        let table = table
            .and_then(Value::as_object_mut)
            .ok_or_else(|| toml::de::Error::custom("no table with an offset"))?;
        table.insert("offset".into(), offset.into());
        self.parsed(keys)
    }

    /// Whether two draws of it differ: it calibrates, or is random.
    pub fn is_drawn(&self) -> bool {
        self.needs().calibration.is_some() || self.is_random()
    }

    pub(crate) fn parsed(&self, keys: Map<String, Value>) -> Result<Self, toml::de::Error> {
        let table = toml::Table::try_from(keys).map_err(toml::de::Error::custom)?;
        Ok(Self { stage: (self.kind().parse)(table)?, round: self.round })
    }

    /// The same stage with another value of a recipe key.
    pub fn with(&self, key: &str, value: &str) -> Result<Self, toml::de::Error> {
        let mut keys = self.keys();
        keys.insert(key.into(), value.into());
        self.parsed(keys)
    }
}

impl Deref for RecipeStage {
    type Target = dyn Stage;
    fn deref(&self) -> &Self::Target {
        &*self.stage
    }
}

impl PartialEq for RecipeStage {
    fn eq(&self, other: &Self) -> bool {
        let of = |stage: &Self| (stage.kind().name, stage.round, stage.keys());
        of(self) == of(other)
    }
}

impl Serialize for RecipeStage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.kind().name)?;
        if let Some(round) = self.round {
            map.serialize_entry(ROUND, &round)?;
        }
        for (key, value) in self.keys() {
            map.serialize_entry(&key, &value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for RecipeStage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(toml::Table::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The parse of a kind whose keys are those of `S`.
fn parse<S: Stage + DeserializeOwned + 'static>(
    table: toml::Table,
) -> Result<Arc<dyn Stage>, toml::de::Error> {
    table.try_into::<S>().map(|stage| Arc::new(stage) as Arc<dyn Stage>)
}

/// The keys of a stage, as its fields are declared.
fn keys(stage: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(stage) {
        Ok(Value::Object(map)) => map,
        _ => unreachable!("a stage is a struct of plain values"),
    }
}
