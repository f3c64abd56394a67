//! `tune` and `distil`: a model learns from text, or from a teacher. What is learned is a method: a file and rows of the tables
//! each; what it is learned from is the kind.

mod curve;
mod full;
mod lora;
mod mask;
mod quantized;
mod rounding;
mod scales;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::method::{Method, OfMethod, flags, method, stage};
use super::{
    Context, Learned, Needs, Planned, RecipeStage, Report, Stage, StageKind, keys, save, saved,
};
use crate::data::training::{Dataset, Examples};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::methods::BadField;
use crate::model::{
    Config, CopyOf, Divergence, FreshHead, Headed, Model, Outline, Pass, Readout, Role, TensorSpec,
    Weights, identity,
};
use crate::tensor::{Packed, WeightFormat};
use crate::train::blockwise::{BlockTold, Blockwise};
use crate::train::hidden::Pairs;
use crate::train::stored_teacher::{StoredTeacher, Tie};
use crate::train::{
    Aim, Course, Hidden, Learner, Near, Parameter, Rule, Settings, TeacherModel, Told,
};

pub use full::Full;
pub use lora::Lora;
pub use mask::Mask;
pub use quantized::Quantized;
pub use rounding::Rounding;
pub use scales::Scales;

/// The kind that learns what the model's head is for: next tokens, or scores of texts.
pub(super) const TUNE: StageKind = StageKind {
    name: "tune",
    result: "tuned",
    methods: TUNE_METHODS,
    command: "lopper tune MODEL --method METHOD",
    parse: |table| super::method::parse(TUNE_METHODS, table),
};

/// The kind that learns from a teacher.
pub(super) const DISTIL: StageKind = StageKind {
    name: "distil",
    result: "distilled",
    methods: DISTIL_METHODS,
    command: "lopper distill MODEL --method METHOD",
    parse: |table| super::method::parse(DISTIL_METHODS, table),
};

/// A method's row, to some end.
macro_rules! row {
    (lora, $aim:ty) => {
        method!(
            Train<Lora, $aim>,
            "lora",
            "low-rank factors beside frozen layers (beside quantized ones: QLoRA), then merged"
        )
    };
    (full, $aim:ty) => {
        method!(Train<Full, $aim>, "full", "every weight, or those of some modules")
    };
    (scales, $aim:ty) => {
        method!(
            Train<Scales, $aim>,
            "scales",
            "scales and offsets of quantized weights, whose codes stay (DWQ)"
        )
    };
    (quantized, $aim:ty) => {
        method!(
            Train<Quantized, $aim>,
            "quantized",
            "weights that are rounded as they are learned (QAT, QAD)"
        )
    };
    (rounding, $aim:ty) => {
        method!(
            Train<Rounding, $aim>,
            "rounding",
            "whether weights are rounded up or down, and over what range (AutoRound)"
        )
    };
    (mask, $aim:ty) => {
        method!(
            Train<Mask, $aim>,
            "mask",
            "which weights stay, by scores; the weights that do are as they were"
        )
    };
}

/// Every method of [`TUNE`].
pub static TUNE_METHODS: &[Method] = &[
    row!(lora, OwnHead),
    row!(full, OwnHead),
    row!(scales, OwnHead),
    row!(quantized, OwnHead),
    row!(rounding, OwnHead),
    row!(mask, OwnHead),
];

/// Every method of [`DISTIL`].
pub static DISTIL_METHODS: &[Method] = &[
    row!(full, FromTeacher),
    row!(lora, FromTeacher),
    row!(scales, FromTeacher),
    row!(quantized, FromTeacher),
    row!(rounding, FromTeacher),
    row!(mask, FromTeacher),
];

/// What is to be made small.
pub trait Aimed: clap::Args + Serialize + DeserializeOwned + Default + Fields {
    /// The kind of its stages.
    const KIND: &'static StageKind;
    /// The factor of the cross-entropy of next tokens.
    fn next_tokens(&self) -> f32;
    /// The teacher, if there is one.
    fn teacher(&self) -> Option<TeacherOptions<'_>>;
    /// A head that scores texts, to be put on such a model first, and how it begins.
    fn new_head(&self, _: &Config) -> Option<(Readout, FreshHead)> {
        None
    }
    /// An error if it cannot be made small of such a model.
    fn check_model(&self, config: &Config) -> Result<()>;
    /// What the loss is, in words, of such a model.
    fn loss(&self, config: &Config) -> String;
    /// An error if a number has no sense.
    fn check(&self) -> Result<(), BadField>;
}

/// What every part of a stage is.
pub trait Fields: std::fmt::Debug + Clone + PartialEq + Send + Sync + 'static {}
impl<T: std::fmt::Debug + Clone + PartialEq + Send + Sync + 'static> Fields for T {}

/// A teacher that is asked for.
#[derive(Clone, Copy, Debug)]
pub struct TeacherOptions<'a> {
    /// Which model; `None`: the recipe's own.
    pub model: Option<&'a str>,
    /// How far from it the model is.
    pub divergence: Divergence,
    /// Of both.
    pub temperature: f32,
    /// The factor of the divergence.
    pub weight: f32,
    /// Only so many of its likeliest tokens count; `None`: all.
    pub top: Option<usize>,
    /// A folder where these are stored.
    pub cache: Option<&'a str>,
    /// The factor of how far hidden states are from its own; 0: they need not be near.
    pub hidden: f32,
    /// Which of them; none: those of every block.
    pub hidden_map: &'a [(usize, usize)],
    /// Steps of each block alone before; 0: none.
    pub blockwise: u64,
}

/// What the model's head is for: next tokens, or scores of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct OwnHead {
    /// Put a head on the model first that scores texts, and learn that: preferences, or with --labels which label a text has
    #[arg(long, value_name = "HOW", value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_head: Option<FreshHead>,
    /// The labels that it scores, instead of how good a text is
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "score_head")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

impl Aimed for OwnHead {
    const KIND: &'static StageKind = &TUNE;

    fn new_head(&self, config: &Config) -> Option<(Readout, FreshHead)> {
        let readout = Readout::scores(config.family.scored_at, &self.labels);
        self.score_head.map(|fresh| (readout, fresh))
    }

    fn check_model(&self, config: &Config) -> Result<()> {
        match config.has_head() {
            true => Ok(()),
            false => Err(Error::Argument {
                argument: "tune".into(),
                expected: "a model with a head; --score-head puts one on it that scores texts"
                    .into(),
                found: "one that embeds texts".into(),
            }),
        }
    }

    fn next_tokens(&self) -> f32 {
        1.0
    }

    fn teacher(&self) -> Option<TeacherOptions<'_>> {
        None
    }

    fn loss(&self, config: &Config) -> String {
        match config.readout.as_ref().map(|readout| readout.labels.len()) {
            None => "cross-entropy of next tokens, nats a token".into(),
            Some(1) => "-log sigmoid(chosen - rejected), nats a pair".into(),
            Some(_) => "cross-entropy of labels, nats a text".into(),
        }
    }

    fn check(&self) -> Result<(), BadField> {
        let twice = |at: &usize| self.labels[..*at].contains(&self.labels[*at]);
        if !self.labels.is_empty() && self.score_head.is_none() {
            return Err(BadField::new("score_head", "zero or normal, beside labels", "none"));
        }
        match (self.labels.len(), (0..self.labels.len()).find(twice)) {
            (1, _) => Err(BadField::new("labels", "two or more, or none", "one")),
            (_, Some(at)) => {
                Err(BadField::new("labels", "each once", format!("{} twice", self.labels[at])))
            }
            _ => Ok(()),
        }
    }
}

/// A teacher's distribution of next tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct FromTeacher {
    /// The teacher [default: the recipe's model]; in a recipe `before` is what stood before the last prune stage
    #[arg(long, value_name = "MODEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// How far from it the model is
    #[arg(long, value_enum, default_value_t)]
    pub divergence: Far,
    /// Of jensen-shannon: the teacher's share in the mixture
    #[arg(long, default_value_t = Self::default().mixture)]
    pub mixture: f64,
    /// Logits of both are divided by this
    #[arg(long, default_value_t = Self::default().temperature)]
    pub temperature: f64,
    /// The share of the cross-entropy of next tokens beside the divergence from the teacher
    #[arg(long, value_name = "SHARE", default_value_t = Self::default().next_tokens)]
    pub next_tokens: f64,
    /// Let only so many of the teacher's likeliest tokens count
    #[arg(long, value_name = "TOKENS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_top: Option<usize>,
    /// Store these tokens in a folder in a first pass, and learn from there without the teacher
    #[arg(long, value_name = "FOLDER", requires = "teacher_top")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_cache: Option<String>,
    /// Add so many times how far hidden states are from the teacher's: squared errors relative to its squares
    #[arg(long, value_name = "WEIGHT", default_value_t = Self::default().hidden)]
    pub hidden: f64,
    /// The hidden states behind these blocks, from 0, of the model and the teacher (default: behind each block of the model and the
    /// teacher's at the same share of its depth)
    #[arg(long, value_name = "BLOCK=BLOCK", value_parser = pair)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hidden_map: Vec<(usize, usize)>,
    /// Before, train each block alone for so many steps: of what goes into the teacher's block it learns to give what comes out of
    /// that; the map above says which one
    #[arg(long, value_name = "STEPS", default_value_t = Self::default().blockwise)]
    pub blockwise: u64,
}

/// Two blocks, BLOCK=BLOCK.
fn pair(text: &str) -> Result<(usize, usize), String> {
    let both =
        text.split_once('=').and_then(|(own, of)| Some((own.parse().ok()?, of.parse().ok()?)));
    both.ok_or_else(|| "two blocks are 3=7: one of the model and one of the teacher, from 0".into())
}

/// How far a model is from its teacher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Far {
    /// KL(teacher || model): the model covers all that the teacher may say
    #[default]
    Forward,
    /// KL(model || teacher): the model says nothing that the teacher would not
    Reverse,
    /// Both against their mixture
    JensenShannon,
}

impl Default for FromTeacher {
    fn default() -> Self {
        Self {
            teacher: None,
            divergence: Far::Forward,
            mixture: 0.5,
            temperature: 1.0,
            next_tokens: 0.0,
            teacher_top: None,
            teacher_cache: None,
            hidden: 0.0,
            hidden_map: Vec::new(),
            blockwise: 0,
        }
    }
}

impl Aimed for FromTeacher {
    const KIND: &'static StageKind = &DISTIL;

    fn next_tokens(&self) -> f32 {
        self.next_tokens as f32
    }

    fn teacher(&self) -> Option<TeacherOptions<'_>> {
        Some(TeacherOptions {
            model: self.teacher.as_deref(),
            divergence: match self.divergence {
                Far::Forward => Divergence::Forward,
                Far::Reverse => Divergence::Reverse,
                Far::JensenShannon => Divergence::JensenShannon { beta: self.mixture as f32 },
            },
            temperature: self.temperature as f32,
            weight: (1.0 - self.next_tokens) as f32,
            top: self.teacher_top,
            cache: self.teacher_cache.as_deref(),
            hidden: self.hidden as f32,
            hidden_map: &self.hidden_map,
            blockwise: self.blockwise,
        })
    }

    fn check_model(&self, config: &Config) -> Result<()> {
        config.foretells("distil")
    }

    fn loss(&self, _: &Config) -> String {
        let far = match self.divergence {
            Far::Forward => "KL from the teacher",
            Far::Reverse => "reverse KL from the teacher",
            Far::JensenShannon => "Jensen-Shannon divergence from the teacher",
        };
        let text = match self.next_tokens {
            0.0 => format!("{far}, nats a token"),
            share => format!("{} x {far}, {share} x cross-entropy of next tokens", 1.0 - share),
        };
        match self.hidden {
            0.0 => text,
            weight => format!("{text}, {weight} x relative squared error of hidden states"),
        }
    }

    fn check(&self) -> Result<(), BadField> {
        if !(self.temperature >= 1e-3 && self.temperature <= 1e3) {
            return Err(BadField::new("temperature", "0.001 to 1000", self.temperature));
        }
        let mixture = self.mixture as f32;
        if !(mixture.is_normal() && mixture > 0.0 && mixture < 1.0) {
            return Err(BadField::new("mixture", "more than 0 and less than 1", self.mixture));
        }
        if self.blockwise > 1 << 32 {
            return Err(BadField::new("blockwise", "at most 4294967296", self.blockwise));
        }
        if !(0.0..1.0).contains(&self.next_tokens) {
            return Err(BadField::new("next_tokens", "0 to less than 1", self.next_tokens));
        }
        if self.teacher_top == Some(0) {
            return Err(BadField::new("teacher_top", "1 or more", 0));
        }
        if self.teacher_top.is_some() && self.divergence != Far::Forward {
            return Err(BadField::new("divergence", "forward, from likeliest tokens", "another"));
        }
        if self.teacher_cache.is_some() && self.teacher_top.is_none() {
            return Err(BadField::new("teacher_top", "how many tokens are stored", "none"));
        }
        if !(self.hidden >= 0.0 && self.hidden.is_finite()) {
            return Err(BadField::new("hidden", "0 or more", self.hidden));
        }
        if (self.hidden > 0.0 || self.blockwise > 0) && self.teacher_cache.is_some() {
            return Err(BadField::new("teacher_cache", "none beside hidden states", "a folder"));
        }
        if self.hidden == 0.0 && self.blockwise == 0 && !self.hidden_map.is_empty() {
            return Err(BadField::new("hidden", "a weight, beside hidden_map", 0));
        }
        Ok(())
    }
}

/// What is learned.
pub trait Learn: clap::Args + Serialize + DeserializeOwned + Default + Fields {
    /// The rate where none is asked for.
    const USUAL_RATE: f64;
    /// Whether norms alone are nothing to learn.
    const OF_MATRICES: bool = false;

    /// Whether steps go by the signs of gradients: the usual rate is that of all steps together, and what is learned has bounds
    /// that nothing else keeps.
    const BY_SIGN: bool = false;

    /// Checks the fields alone.
    fn check(&self) -> Result<(), BadField>;

    /// As [`Stage::files`].
    fn files(&self, _model: Option<&Config>) -> Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }

    /// What becomes of a tensor in this format; `None` if nothing of it is learned.
    fn plan(&self, spec: &TensorSpec, format: WeightFormat) -> Result<Option<Change>, BadField>;

    /// Why nothing matches, and the field at fault.
    fn no_match(&self) -> BadField;

    /// Puts what is learned into the model.
    fn prepare(&self, preparing: Preparing<'_>) -> Result<Vec<Box<dyn Parameter>>>;

    /// What its rounding is measured against, by the stage's folder; `None`: the model itself.
    fn unrounded<'a>(
        &self,
        _weights: &'a dyn Weights,
        _folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        Ok(None)
    }

    /// Whether many weights are exactly 0 afterwards.
    fn leaves_zeros(&self) -> bool {
        false
    }

    /// Folders that become part of the artifact, beside the model.
    fn folders(&self) -> &'static [&'static str] {
        &[]
    }

    /// The model that a training left.
    fn result<'a>(
        &self,
        device: &'a Device,
        weights: &'a dyn Weights,
        learner: &'a Learner,
        folder: &Path,
    ) -> Result<Box<dyn Weights + 'a>>;
}

/// What becomes of a tensor that is learned.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its format afterwards.
    pub format: WeightFormat,
    /// Numbers that are learned.
    pub numbers: u64,
    /// What is done, in words.
    pub text: String,
}

/// What a method prepares a training with.
pub struct Preparing<'a> {
    /// Where, and in what.
    pub pass: &'a Pass<'a>,
    /// The model's weights.
    pub weights: &'a dyn Weights,
    /// The model on its device.
    pub model: &'a mut Model,
    /// Of everything random.
    pub seed: u64,
}

/// A stage that learns `L` to the end `A`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, bound = "")]
pub struct Train<L: Learn, A: Aimed> {
    /// What is learned
    #[arg(skip)]
    #[serde(default)]
    method: String,
    #[command(flatten)]
    #[serde(flatten)]
    learn: L,
    #[command(flatten)]
    #[serde(flatten)]
    aim: A,
    #[command(flatten)]
    #[serde(flatten)]
    dataset: Dataset,
    #[command(flatten)]
    #[serde(flatten)]
    settings: Settings,
}

impl<L: Learn, A: Aimed> OfMethod for Train<L, A> {
    fn of_method(self, name: &'static str) -> Self {
        Self { method: name.into(), ..self }
    }
}

/// Where a training keeps its checkpoints, in the stage's folder.
const TRAINING: &str = "training";
/// What its blocks came to, where they learned alone before.
const BLOCKS: &str = "blocks.json";
/// The stage's report, its curves, and its steps and looks as lines.
const TOLD: &str = "training.json";
const CURVE: &str = "training.svg";
const LINES: &str = "training.jsonl";

impl<L: Learn, A: Aimed> Train<L, A> {
    fn check(&self) -> Result<()> {
        let fields = self.settings.check().and_then(|()| self.aim.check());
        fields.and_then(|()| self.learn.check()).map_err(BadField::in_recipe)?;
        self.check_optimizer().map_err(BadField::in_recipe)?;
        if self.settings.patience.is_some() && self.dataset.held_out == 0.0 {
            let expected = "none without held-out rows, which are what is looked at";
            let found = self.settings.patience.unwrap_or_default();
            return Err(BadField::new("patience", expected, found).in_recipe());
        }
        self.dataset.check()
    }

    fn check_optimizer(&self) -> Result<(), BadField> {
        match (self.settings.optimizer, L::BY_SIGN) {
            (Some(Rule::Adamw), true) => {
                Err(BadField::new("optimizer", format!("sign, for {}", self.method), "adamw"))
            }
            (Some(Rule::Sign), false) if self.settings.rate.is_none() => {
                Err(BadField::new("rate", "a rate, beside steps by sign", "none"))
            }
            _ => Ok(()),
        }
    }

    /// The settings with the method's own optimizer, where none is asked for.
    fn settings(&self) -> Settings {
        let own = if L::BY_SIGN { Rule::Sign } else { Rule::Adamw };
        let optimizer = Some(self.settings.optimizer.unwrap_or(own));
        Settings { optimizer, ..self.settings.clone() }
    }
}

impl<L: Learn, A: Aimed> Stage for Train<L, A> {
    fn kind(&self) -> &'static StageKind {
        A::KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs {
            data: Some(&self.dataset),
            batch: self.settings.batch,
            teacher: self.aim.teacher().and_then(|teacher| teacher.model),
            ..Needs::default()
        }
    }

    fn files(&self, model: Option<&Config>) -> Result<Vec<PathBuf>> {
        self.learn.files(model)
    }

    fn new_head(&self, config: &Config) -> Option<Readout> {
        self.aim.new_head(config).map(|(readout, _)| readout)
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        self.check()?;
        let fresh = self.aim.new_head(&model.config);
        let headed = match &fresh {
            None => model.clone(),
            Some((readout, _)) => Headed::outline(model, readout)?,
        };
        let model = &headed;
        self.aim.check_model(&model.config)?;
        let mut outline = model.clone();
        let mut changes = HashMap::new();
        let mut numbers = 0;
        let formats = outline.formats.iter_mut().zip(&mut outline.copies);
        for (spec, (format, copy)) in outline.specs.iter().zip(formats) {
            let change = self.learn.plan(spec, *format).map_err(BadField::in_recipe)?;
            let Some(change) = change else { continue };
            (*format, *copy) = (change.format, None);
            numbers += change.numbers;
            changes.insert(spec.name.clone(), change.text);
        }
        let learned = model.specs.iter().filter(|spec| changes.contains_key(&spec.name));
        let mut roles = learned.map(|spec| spec.role);
        if !roles.any(|role| !L::OF_MATRICES || role != Role::Norm) {
            return Err(self.learn.no_match().in_recipe());
        }
        let score = model.specs.iter().find(|spec| spec.role == Role::Score);
        if let (Some(_), Some(spec)) = (fresh, score)
            && !changes.contains_key(&spec.name)
        {
            let expected =
                format!("a method and modules that learn the fresh head `{}`", spec.module());
            return Err(BadField::new("score_head", expected, &self.method).in_recipe());
        }
        let config = &model.config;
        if let (Some(_), None) = (self.settings.balance, config.experts) {
            let found = format!("one of the family {}", config.family.name);
            return Err(BadField::new("balance", "a model with experts", found).in_recipe());
        }
        let length = self.dataset.length;
        if length > config.max_positions {
            let expected = format!("at most {}, the model's context", config.max_positions);
            return Err(BadField::new("length", expected, length).in_recipe());
        }
        // Weights, what is learned with its gradient and the optimizer's state, each block's inputs, a block's activations and
        // logits.
        let state = match (self.settings().optimizer, self.settings.optimizer_bits) {
            (Some(Rule::Sign), _) => 0,
            (_, 8) => 2,
            _ => 8,
        };
        let tokens = self.settings.batch.saturating_mul(length);
        let at_once = self.settings.tokens_at_once().max(length).min(tokens);
        let tokens = tokens as u64;
        let (resident, _) = model.evaluation_bytes(length);
        let widest = config.widest();
        let wide = (6 * config.hidden_size + 5 * widest.intermediate_size) as u64;
        let block = (4 * at_once as u64).saturating_mul(wide);
        let streams = (config.hidden_size * (config.layers() + 2)) as u64;
        let inputs = (4 * tokens).saturating_mul(streams);
        let logits =
            3 * (4 * at_once as u64).saturating_mul(config.vocab_size as u64).min(256 << 20);
        let passes = block.saturating_add(inputs).saturating_add(logits);
        let peak = (resident + (8 + state) * numbers).saturating_add(passes);
        Ok(Planned {
            outline,
            changes,
            peak_device_bytes: peak,
            peak_host_bytes: 8 * model.largest().max(numbers),
            warnings: Vec::new(),
        })
    }

    fn run(&self, weights: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let pass = Pass { device: context.pass.device, compute: context.training };
        let device = pass.device;
        let examples = context.examples.ok_or_else(|| Error::Argument {
            argument: "training data".into(),
            expected: "rows that were read before".into(),
            found: "none".into(),
        })?;
        let settings = self.settings();
        let balance = settings.balance.unwrap_or(weights.config().balance);
        let seed = context.seed;
        let headed = match self.aim.new_head(weights.config()) {
            None => None,
            Some((readout, fresh)) => Some(Headed::new(weights, &readout, fresh, seed)?),
        };
        let weights = headed.as_ref().map_or(weights, |headed| headed as &dyn Weights);
        self.aim.check_model(weights.config())?;
        let options = self.aim.teacher();
        // What is stored is there before the model takes its place.
        let stored = match options {
            Some(TeacherOptions { cache: Some(folder), top: Some(top), .. }) => {
                let (folder, vocabulary) = (Path::new(folder), weights.config().vocab_size);
                let at_once = settings.tokens_at_once();
                let top = top.min(vocabulary);
                Some(store_teacher(context, &pass, examples, folder, (top, vocabulary), at_once)?)
            }
            _ => None,
        };
        let progress = &mut *context.progress;
        let mut model = Model::load(device, weights, |done, total| {
            progress("loading the model", done, total);
            interrupt::check()
        })?;
        let preparing = Preparing { pass: &pass, weights, model: &mut model, seed };
        let parameters = self.learn.prepare(preparing)?;
        let mut learner = Learner::new(device, model, parameters, settings.optimizer())?;
        let (mut teacher, mut pairs) = (stored.map(TeacherModel::stored), None);
        if let (Some(options), None) = (options, &teacher) {
            let others = context.teacher.unwrap_or(context.parent);
            let model = load_teacher(device, others, progress)?;
            let own = learner.model().config();
            if options.blockwise > 0 {
                let why = "a block alone knows nothing of where sources end";
                own.without_encoder("--blockwise", why)?;
            }
            if options.hidden > 0.0 || options.blockwise > 0 {
                pairs = Some(Pairs::new(options.hidden_map, own, model.config())?);
            }
            let found = TeacherModel::new(model, own.vocab_size)?.with_top(options.top);
            teacher = Some(match &pairs {
                Some(pairs) => found.with_states(pairs),
                None => found,
            });
        }
        let teacher = teacher.as_ref().zip(options).map(|(teacher, options)| Near {
            teacher,
            divergence: options.divergence,
            temperature: options.temperature,
            weight: options.weight,
            hidden: match (&pairs, options.hidden) {
                (Some(pairs), weight) if weight > 0.0 => Some(Hidden { pairs, weight }),
                _ => None,
            },
        });
        let folder = context.folder.join(TRAINING);
        let course = Course {
            settings: &settings,
            usual_rate: L::USUAL_RATE,
            examples,
            aim: Aim { next_tokens: self.aim.next_tokens(), teacher, balance: balance as f32 },
            pass,
            seed,
            folder: &folder,
        };
        let doing = if teacher.is_some() { "distilling" } else { "tuning" };
        let mut blocks: Vec<BlockTold> = saved(&folder, BLOCKS)?.unwrap_or_default();
        if let (Some(near), Some(pairs), Some(steps), false) = (
            teacher,
            &pairs,
            options.map(|options| options.blockwise).filter(|steps| *steps > 0),
            course.has_begun(),
        ) {
            let blockwise = Blockwise {
                settings: &settings,
                usual_rate: L::USUAL_RATE,
                steps,
                examples,
                teacher: near.teacher,
                pairs,
                pass,
                seed,
            };
            blocks = blockwise.run(&mut learner, settings.optimizer(), &mut |done, all| {
                progress("distilling block by block", done, all);
                Ok(())
            })?;
            std::fs::create_dir_all(&folder).map_err(Error::write(&folder))?;
            save(&folder, BLOCKS, &blocks)?;
        }
        let told = course.run(&mut learner, &mut |standing| {
            let text = format!("{doing}: {standing}");
            progress(&text, standing.step as usize, standing.steps as usize);
            Ok(())
        })?;
        let numbers = learner.count();
        let sources = examples.figures().iter().map(|figures| {
            json!({
                "source": figures.source, "examples": figures.examples, "rows": figures.rows,
                "scored": figures.scored, "held_out": figures.held_out, "share": figures.share, "noisy": figures.noisy,
            })
        });
        let account = Account {
            learned: numbers,
            loss: match (balance, self.aim.loss(weights.config())) {
                (0.0, loss) => loss,
                (factor, loss) => format!("{loss}, {factor} x balance of experts"),
            },
            blocks,
            sources: sources.collect(),
            told,
        };
        save(context.folder, TOLD, &account)?;
        let result = self.learn.result(device, weights, &learner, context.folder)?;
        let config = context.write("writing what was learned", &*result)?;
        drop(result);
        Ok(config)
    }

    fn tidy(&self, folder: &Path) -> Result<()> {
        let folder = folder.join(TRAINING);
        match folder.exists() {
            true => std::fs::remove_dir_all(&folder).map_err(Error::write(&folder)),
            false => Ok(()),
        }
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        _: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        self.learn.unrounded(model, folder)
    }

    fn leaves_zeros(&self) -> bool {
        self.learn.leaves_zeros()
    }

    fn folders(&self) -> &'static [&'static str] {
        self.learn.folders()
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let Some(account) = saved::<Account>(folder, TOLD)? else { return Ok(None) };
        let told = &account.told;
        let warnings = match told.lost {
            0 => Vec::new(),
            lost => vec![format!("{lost} steps were not finite and changed nothing")],
        };
        let taken = told.looks.iter().rfind(|look| told.best.is_none_or(|best| look.step == best));
        let next_tokens = self.aim.teacher().is_none();
        let value = serde_json::to_value(&account).expect("an account is plain values");
        Ok(Some(Report {
            files: vec![
                (CURVE, curve::svg(told, &account.loss, next_tokens)),
                (LINES, curve::jsonl(told)),
            ],
            learned: Some(Learned {
                tokens: told.steps.last().map_or(0, |step| step.tokens),
                held_out: taken.map(|look| look.loss),
                accuracy: taken.and_then(|look| look.accuracy),
            }),
            warnings,
            ..Report::new(TOLD, value)
        }))
    }
}

/// A teacher's model on the device.
fn load_teacher(
    device: &Device,
    weights: &dyn Weights,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Model> {
    Model::load(device, weights, |done, total| {
        progress("loading the teacher", done, total);
        interrupt::check()
    })
}

/// A teacher's likeliest tokens from their folder, where what is missing of them is put first.
fn store_teacher(
    context: &mut Context<'_>,
    pass: &Pass<'_>,
    examples: &Examples,
    folder: &Path,
    (top, vocabulary): (usize, usize),
    at_once: usize,
) -> Result<StoredTeacher> {
    let others = context.teacher.unwrap_or(context.parent);
    let rows = examples.rows_per_epoch();
    let length = examples.tokens_per_epoch() / rows.max(1);
    let tie = Tie {
        teacher: identity(others)?,
        data: examples.digest().into(),
        compute: pass.compute.activation.to_string(),
        top,
        length,
        rows,
    };
    if StoredTeacher::rows_done(folder, &tie)? == rows {
        return StoredTeacher::open(folder, &tie);
    }
    let model = load_teacher(pass.device, others, &mut *context.progress)?;
    let teacher = TeacherModel::new(model, vocabulary)?.with_top(Some(top));
    let text = format!("storing what the teacher says, {} MiB", tie.bytes() >> 20);
    let at_once = (at_once / length.max(1)).max(1);
    StoredTeacher::write(folder, &tie, &teacher, pass, examples, at_once, &mut |done, all| {
        (context.progress)(&text, done, all);
    })
}

/// What a stage has to tell.
#[derive(Debug, Serialize, Deserialize)]
struct Account {
    /// Numbers that were learned.
    learned: u64,
    /// What was made small.
    loss: String,
    /// What blocks came to that learned alone before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<BlockTold>,
    /// What they were learned from.
    sources: Vec<Value>,
    #[serde(flatten)]
    told: Told,
}

/// A model some of whose tensors were learned.
struct Trained<'a> {
    device: &'a Device,
    weights: &'a dyn Weights,
    learner: &'a Learner,
    /// The formats of those that were learned, by name.
    formats: HashMap<String, WeightFormat>,
}

impl<'a> Trained<'a> {
    fn new(
        device: &'a Device,
        weights: &'a dyn Weights,
        learner: &'a Learner,
        learn: &impl Learn,
    ) -> Result<Self> {
        let mut formats = HashMap::new();
        for spec in weights.specs() {
            let change = learn.plan(spec, weights.format(spec)?).map_err(BadField::in_recipe)?;
            if let Some(change) = change {
                formats.insert(spec.name.clone(), change.format);
            }
        }
        Ok(Self { device, weights, learner, formats })
    }

    fn parameter(&self, spec: &TensorSpec) -> Option<&dyn Parameter> {
        let mut parameters = self.learner.parameters().iter();
        parameters.find(|parameter| parameter.tensor() == spec.name).map(|found| &**found)
    }
}

impl Weights for Trained<'_> {
    fn config(&self) -> &Config {
        self.weights.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.weights.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        match self.parameter(spec) {
            Some(parameter) => parameter.packed(self.device, spec),
            None => self.weights.load(spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.formats.get(&spec.name) {
            Some(format) => Ok(*format),
            None => self.weights.format(spec),
        }
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        match self.parameter(spec) {
            Some(_) => None,
            None => self.weights.copy_of(spec),
        }
    }
}

/// The flags of a command, and the stage that they ask for.
macro_rules! command {
    ($flags:ident, $kind:ident, $methods:ident, $about:literal) => {
        #[doc = $about]
        #[derive(Clone, Debug)]
        pub struct $flags(pub RecipeStage);

        impl clap::Args for $flags {
            fn augment_args(command: clap::Command) -> clap::Command {
                flags($methods, "What is learned:", command)
            }

            fn augment_args_for_update(command: clap::Command) -> clap::Command {
                flags($methods, "What is learned:", command)
            }
        }

        impl clap::FromArgMatches for $flags {
            fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
                stage($kind.name, $methods, matches).map(|stage| Self(RecipeStage::of(stage)))
            }

            fn update_from_arg_matches(
                &mut self,
                matches: &clap::ArgMatches,
            ) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}

command!(
    TuneFlags,
    TUNE,
    TUNE_METHODS,
    "The flags of `lopper tune`, and the stage that they ask for."
);
command!(
    DistilFlags,
    DISTIL,
    DISTIL_METHODS,
    "The flags of `lopper distill`, and the stage that they ask for."
);
