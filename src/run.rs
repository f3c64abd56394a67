//! Executes a plan: measures the parent, runs the stages one after the other, measures each result, writes the artifact.
//!
//! Between two stages stands a folder on the disk (see [`work`]): a stage reads the one before and writes its own tensor by
//! tensor, so no model is in memory as a whole, any stage can follow any other, and a killed run continues with `resume`. The
//! artifact is written in the work folder and renamed when whole. Callers are told of progress through [`Event`]s.

mod calibrate;
mod card;
mod files;
pub mod sweep;
mod work;

use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::training::Examples;
use crate::data::{mark_gaps, read_text};
use crate::device::Device;
use crate::disk::{sweep, sync, write_record};
use crate::error::{Error, Result};
use crate::formats::{Source, sha256};
use crate::graph::Experts;
use crate::interrupt;
use crate::measure::{Convention, Perplexity, Windows, perplexity};
use crate::methods::calibration::Rows;
use crate::model::{
    BlockDims, CONFIG_FILE, Checkpoint, Compute, Config, ExportFormat, KeptChannels, Model,
    Outline, Pass, Readout, WeightSource, Weights, hash_of_files, identity,
};
use crate::plan::{Plan, Written, in_f16};
use crate::recipe::{Evaluate, Recipe};
use crate::stages::prune::kept;
use crate::stages::{BEFORE, Context, DETAILS, Learned, Needs, RecipeStage, saved, titled};
use crate::tensor::{InputType, Packed};
use crate::text::{StoredTokenizer, Tokenizer};
use crate::walk::Kind;
use crate::walk::stored::{Stored, few_tokens};
use files::{list_inputs, list_outputs};
use work::{Fact, Work};

pub use crate::disk::Target;
pub use calibrate::{Calibrated, Calibrating, Estimate, calibrate};
pub use files::{InputFile, OutputFile};

/// Progress of a run.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A step with a known number of pieces, `done` of which are done.
    Progress {
        /// The step's name.
        step: &'a str,
        /// Pieces done.
        done: usize,
        /// Pieces in all.
        total: usize,
    },
    /// Something that only the run could tell.
    Warning {
        /// What.
        text: &'a str,
    },
    /// A stage's result is taken from the work folder.
    Resumed {
        /// The stage's folder there.
        stage: &'a str,
    },
    /// A figure is known.
    Measured {
        /// Whose: `parent`, `pruned`, `quantized`.
        whose: &'a str,
        /// The figure.
        perplexity: &'a Perplexity,
    },
}

/// Receives a run's events.
pub type Listener<'a> = &'a mut dyn FnMut(Event<'_>);

/// What was measured of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figures {
    /// Weights.
    pub parameters: u64,
    /// Bytes of its tensors as they are stored.
    pub bytes: u64,
    /// Bytes if every weight were f16.
    pub bytes_f16: u64,
    /// Weights that are not exactly 0, where a stage made zeros.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonzero: Option<u64>,
    /// Operations of the products with weights for one token, a multiplication and an addition each.
    pub flops_per_token: u64,
    /// Perplexity, if the recipe asks for it.
    pub perplexity: Option<Perplexity>,
    /// Bytes of the files with weights, of a model that was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// sum((w - w_before)^2) / sum(w_before^2) over the tensors that a stage rounded, of what it left of them; 0: reproduced
    /// exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_error: Option<f64>,
    /// Tensors that lost what one error over all weights does not show: scales too small for f16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A stage as it ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageReport {
    /// Its name.
    pub name: String,
    /// Which round of a repetition it is part of, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
    /// Wall time, with its measurement; of what an interrupted run had done before, only whole stages count.
    pub seconds: f64,
    /// Most bytes of device buffers in use, up to its end.
    pub peak_vram: u64,
    /// What was measured after it.
    pub figures: Figures,
    /// How much it learned, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<Learned>,
    /// How it decided, where it tried several things.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
}

/// A further model that a result was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// As it was opened.
    pub model: String,
    /// A hash of its files: of weights, configuration and tokenizer.
    pub sha256: String,
}

/// `manifest.json`: what was made from what, by what, and how good it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub lopper: String,
    /// Hash of everything that the outputs depend on: two runs with the same one give the same bytes.
    pub run: String,
    /// Hash of `recipe.toml`.
    pub recipe_sha256: String,
    /// The recipe's seed.
    pub seed: u64,
    /// Adapter and driver, or `cpu`.
    pub device: String,
    /// The parent as it was opened.
    pub model: String,
    /// Further models that were merged with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<Parent>,
    /// What was read: the parent's weight files and the evaluation's text.
    pub inputs: Vec<InputFile>,
    /// The parent's figures.
    pub parent: Figures,
    /// Stages in order.
    pub stages: Vec<StageReport>,
    /// The models written, with their sizes beside the parent's.
    pub exports: Vec<Written>,
    /// Files in order.
    pub outputs: Vec<OutputFile>,
    /// What could not be kept exactly, and similar.
    pub warnings: Vec<String>,
}

/// Where and how a plan is run.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The recipe's text as it was given; it becomes part of the artifact.
    pub recipe_text: &'a str,
    /// Where the artifact goes.
    pub place: Place<'a>,
    /// What evaluations compute in.
    pub compute: Compute,
    /// What gradients of a calibration compute in.
    pub calibration: Compute,
    /// What training computes in.
    pub training: Compute,
    /// Bytes of device memory that may be used.
    pub budget: Option<u64>,
}

/// Where an artifact goes, and what may be there already.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The artifact's folder. The work folder is beside it: `OUT.work`.
    pub out: &'a Path,
    /// Replace an earlier artifact.
    pub force: bool,
    /// Continue what an interrupted run left in the work folder.
    pub resume: bool,
    /// Leave the work folder when the artifact is whole.
    pub keep_work: bool,
}

impl Place<'_> {
    fn target<'a>(&'a self, parent: &'a Checkpoint) -> Target<'a> {
        Target { path: self.out, force: self.force, folder: true, model: parent.path() }
    }

    /// Refuses, before any work, what [`run`] would refuse.
    pub fn check(&self, parent: &Checkpoint) -> Result<()> {
        let work = work::work_path(self.out)?;
        // The run may have been stopped between its end and the removal of its work folder.
        match (self.resume, self.out.exists()) {
            (true, true) => {}
            // A temporary folder, which tells whether anything can be written, would be left by a kill just now.
            (true, false) => self.target(parent).check_standing()?,
            (false, _) => self.target(parent).check()?,
        }
        match !self.resume && work::is_there(&work) {
            true => Err(Error::Unfinished { path: work }),
            false => Ok(()),
        }
    }
}

/// Everything of a run that its steps share.
struct Run<'a> {
    recipe: &'a Recipe,
    plan: &'a Plan,
    parent: &'a Checkpoint,
    device: &'a Device,
    options: Options<'a>,
    tokenizer: Option<StoredTokenizer>,
    /// The tokens of the evaluation, if there is one.
    evaluation: Option<(&'a Evaluate, Vec<u32>)>,
    /// The calibration rows of each stage.
    rows: Vec<Option<Rows>>,
    /// The statistics of each stage that were taken before.
    statistics: Vec<Option<Stored>>,
    /// What each stage learns from.
    lessons: Vec<Lessons>,
}

/// What a stage learns from, and what it merges.
#[derive(Default)]
struct Lessons {
    examples: Option<Examples>,
    teacher: Option<Checkpoint>,
    /// Further models that it merges.
    others: Vec<Checkpoint>,
    files: Vec<PathBuf>,
}

/// What a recipe reads beside the model.
pub struct Texts<'a> {
    tokenizer: Option<StoredTokenizer>,
    evaluation: Option<(&'a Evaluate, Vec<u32>)>,
    rows: Vec<Option<Rows>>,
    statistics: Vec<Option<Stored>>,
    lessons: Vec<Lessons>,
    /// What the user should know of them.
    pub warnings: Vec<String>,
}

/// What is wrong with the place of the result, the exports and any text is told before anything is computed.
pub fn check<'a>(
    recipe: &'a Recipe,
    plan: &Plan,
    parent: &Checkpoint,
    place: Place<'_>,
) -> Result<Texts<'a>> {
    place.check(parent)?;
    let stored = parent.has_tokenizer().then(|| parent.stored_tokenizer()).transpose()?;
    let reads = |needs: Needs<'_>| needs.calibration.is_some() || needs.data.is_some();
    let reads_text =
        recipe.evaluate.is_some() || recipe.stage.iter().any(|stage| reads(stage.needs()));
    let tokenizer = match &stored {
        Some(stored) if reads_text => Some(stored.read()?),
        _ => None,
    };
    check_exports(parent, plan)?;
    let evaluation = match &recipe.evaluate {
        Some(evaluate) => Some((evaluate, tokens(evaluate, parent, tokenizer.as_ref())?)),
        None => None,
    };
    let context = parent.config().max_positions;
    let rows = recipe.stage.iter().map(|stage| rows(stage, tokenizer.as_ref(), context));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let statistics = recipe.stage.iter().map(|stage| statistics(stage, parent));
    let statistics = statistics.collect::<Result<Vec<_>>>()?;
    let lessons = lessons(recipe, parent, tokenizer.as_ref())?;
    let mut warnings = Vec::new();
    for (index, stage) in recipe.stage.iter().enumerate() {
        let kinds = stage.needs().kinds;
        if let Some(stored) = &statistics[index] {
            warnings.extend(stored.cautions(parent.config(), kinds));
        } else if let Some(rows) = rows[index].as_ref().filter(|_| kinds.contains(&Kind::Gram)) {
            warnings.extend(few_tokens(parent.config(), rows.ids.len() as u64));
        }
        warnings.extend(stage.check_others(parent, &lessons[index].others)?);
    }
    Ok(Texts { tokenizer: stored, evaluation, rows, statistics, lessons, warnings })
}

/// The statistics that a stage takes, if they were taken before.
fn statistics(stage: &RecipeStage, parent: &Checkpoint) -> Result<Option<Stored>> {
    let needs = stage.needs();
    let stored = needs.stats.map(|path| Stored::open(Path::new(path))).transpose()?;
    if let Some(stored) = &stored {
        stored.check_model(parent.path(), &identity(parent)?)?;
        stored.require(parent.config(), needs.kinds)?;
    }
    Ok(stored)
}

/// The files beside texts that stages read: what says which statistics are taken, weights of teachers and of what is merged.
fn taken(statistics: &[Option<Stored>], lessons: &[Lessons]) -> Vec<PathBuf> {
    let mut taken: Vec<PathBuf> = statistics.iter().flatten().map(Stored::file).collect();
    let models = lessons.iter().flat_map(|lessons| lessons.teacher.iter().chain(&lessons.others));
    for source in models.flat_map(Checkpoint::sources) {
        // A part of the program is no file.
        if source.path().exists() {
            taken.push(source.path().into());
        }
    }
    taken.extend(lessons.iter().flat_map(|lessons| lessons.files.iter().cloned()));
    taken.sort();
    taken.dedup();
    taken
}

/// What each stage learns from, if it does, and the files that it reads beside.
fn lessons(
    recipe: &Recipe,
    parent: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Lessons>> {
    let mut readout = parent.config().readout.clone();
    let of = |(index, stage): (usize, &RecipeStage)| {
        let needs = stage.needs();
        readout = stage.new_head(parent.config()).or(readout.take());
        let examples = needs.data.map(|dataset| {
            let tokenizer = tokenizer.ok_or_else(|| Error::Argument {
                argument: "training data".into(),
                expected: "a model with a tokenizer".into(),
                found: "none".into(),
            })?;
            // What the head learns is known by what it is.
            match &readout {
                None => Examples::read(dataset, tokenizer, recipe.seed),
                Some(Readout { labels, pooling, .. }) => {
                    Examples::texts(dataset, (labels, *pooling), tokenizer, recipe.seed)
                }
            }
        });
        let examples = examples.transpose()?;
        if let Some(examples) = examples.as_ref().filter(|e| e.rows_per_epoch() < needs.batch) {
            let key = "stage.batch".into();
            let expected =
                format!("at most {}, the rows that there are", examples.rows_per_epoch());
            let found = needs.batch.to_string();
            return Err(Error::Key { path: "recipe".into(), key, expected, found });
        }
        let teacher = needs.teacher.filter(|name| *name != BEFORE).map(Checkpoint::open);
        let teacher = teacher.transpose()?;
        if let Some(teacher) = &teacher {
            let (of, own) = (teacher.config(), parent.config());
            let length = needs.data.map_or(0, |dataset| dataset.length);
            let wrong = |expected: String, found: String| Error::Key {
                path: "recipe".into(),
                key: "stage.teacher".into(),
                expected,
                found: format!("{}, which has {found}", teacher.path().display()),
            };
            if of.vocab_size != own.vocab_size {
                let expected =
                    format!("a model with the student's vocabulary of {}", own.vocab_size);
                return Err(wrong(expected, of.vocab_size.to_string()));
            }
            if of.max_positions < length {
                let expected = format!("a model with a context of {length} tokens, a row's length");
                return Err(wrong(expected, of.max_positions.to_string()));
            }
        }
        let others = stage.others();
        let others = others.iter().map(|name| Checkpoint::open(name)).collect::<Result<_>>()?;
        Ok(Lessons {
            examples,
            teacher,
            others,
            files: stage.files((index == 0).then(|| parent.config()))?,
        })
    };
    recipe.stage.iter().enumerate().map(of).collect()
}

/// Runs a plan and writes the artifact. Returns its manifest. An interruption, or a crash, leaves the work folder, with which a
/// call with `resume` gives the same artifact as an uninterrupted one.
pub fn run(
    recipe: &Recipe,
    plan: &Plan,
    parent: &Checkpoint,
    device: &Device,
    options: Options<'_>,
    listen: Listener<'_>,
) -> Result<Manifest> {
    let place = options.place;
    let Texts { tokenizer, evaluation, rows, statistics, lessons, warnings } =
        check(recipe, plan, parent, place)?;
    let run = Run {
        recipe,
        plan,
        parent,
        device,
        options,
        evaluation,
        rows,
        statistics,
        lessons,
        tokenizer,
    };
    let path = work::work_path(place.out)?;
    let taken = taken(&run.statistics, &run.lessons);
    let inputs = list_inputs(parent, recipe, &taken, &work::known_inputs(&path))?;
    let files: Vec<InputFile> = inputs.iter().map(|input| input.file.clone()).collect();
    for text in &warnings {
        listen(Event::Warning { text });
    }
    let facts = run.facts(&files)?;
    let identity = sha256(work::hash(&facts) + options.recipe_text);
    if place.resume
        && let Some(manifest) = finished(place.out, &identity)
    {
        if path.is_dir() && !place.keep_work {
            // Perhaps half removed, or an empty folder.
            Work::open(path, true, facts, inputs)?.remove()?;
        }
        return Ok(manifest);
    }
    // The work folder beside it tells whether anything can be written there.
    place.target(parent).check_standing()?;
    let work = Work::open(path, place.resume, facts, inputs)?;
    interrupt::resumable(Some(work.path().into()));
    let executed = run.execute(&work, identity, files, listen);
    interrupt::resumable(None);
    match executed {
        Ok(manifest) if place.keep_work => Ok(manifest),
        Ok(manifest) => work.remove().map(|()| manifest),
        Err(Error::Interrupted) => Err(Error::Suspended { work: work.path().into() }),
        Err(error) => {
            work.leave(&error);
            Err(error)
        }
    }
}

/// A hash of a model's files: of weights, configuration and tokenizer. `inputs`: files that were hashed.
fn model_hash(model: &Checkpoint, inputs: &[InputFile]) -> Result<String> {
    let hash = |source: &Source| {
        let path = source.path().display().to_string();
        match inputs.iter().find(|file| file.path == path) {
            Some(file) => Ok(file.sha256.clone()),
            None => source.sha256(),
        }
    };
    let weights = model.sources().into_iter().map(hash).collect::<Result<Vec<_>>>()?;
    let files = [
        CONFIG_FILE,
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ];
    hash_of_files(model, &weights, &files)
}

/// The manifest of an artifact that is there already, if it is of this run.
fn finished(out: &Path, identity: &str) -> Option<Manifest> {
    let path = out.join("manifest.json");
    let text = path.is_file().then(|| std::fs::read(path).ok()).flatten()?;
    let manifest: Manifest = serde_json::from_slice(&text).ok()?;
    (manifest.run == identity).then_some(manifest)
}

/// A stage's record in its folder, once it is done.
const DONE: &str = "done.toml";

/// A stage's record in its folder.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    /// Hash of everything that the result depends on.
    run: String,
    seconds: f64,
    peak_vram: u64,
    hidden_size: usize,
    rms_norm_eps: f64,
    tied: bool,
    shortcuts: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input_type: Option<InputType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readout: Option<Readout>,
    blocks: Vec<BlockDims>,
}

impl Done {
    /// The configuration of the result, of a run on a model of configuration `parent`.
    fn config(&self, parent: &Config) -> Config {
        // Experts that the parent had not make it another family.
        let experts = self.experts.filter(|_| parent.experts.is_none());
        let other = experts.and_then(|experts| parent.with_experts(experts));
        let parent = other.as_ref().unwrap_or(parent);
        Config {
            hidden_size: self.hidden_size,
            rms_norm_eps: self.rms_norm_eps,
            tied: self.tied,
            shortcuts: self.shortcuts,
            input_type: self.input_type,
            experts: self.experts,
            readout: self.readout.clone(),
            blocks: self.blocks.clone(),
            ..parent.clone()
        }
    }
}

impl Run<'_> {
    /// Everything that the result depends on, stages last but for what comes after them.
    fn facts(&self, inputs: &[InputFile]) -> Result<Vec<Fact>> {
        let mut facts = Vec::new();
        let mut fact = |what: &str, value: String| {
            let what = what.to_string();
            facts.push(Fact { what, value });
        };
        fact("version of lopper", env!("CARGO_PKG_VERSION").into());
        fact("model", format!("sha256 {}", model_hash(self.parent, inputs)?));
        fact("seed", self.recipe.seed.to_string());
        fact("device", describe(self.device));
        let Options { compute, calibration, training, .. } = self.options;
        let names = [compute, calibration, training].map(Compute::name);
        fact("compute", names.join(", "));
        for examples in self.lessons.iter().filter_map(|lessons| lessons.examples.as_ref()) {
            fact("training data", examples.digest().into());
        }
        for text in &inputs[self.parent.sources().len()..] {
            fact(&format!("text {}", text.path), text.sha256.clone());
        }
        for other in self.merged(inputs)? {
            fact(&format!("merged model {}", other.model), format!("sha256 {}", other.sha256));
        }
        for (index, stage) in self.recipe.stage.iter().enumerate() {
            fact(&format!("stage {}", index + 1), json(stage));
        }
        fact("evaluation", json(&self.recipe.evaluate));
        fact("export", json(&self.formats()));
        Ok(facts)
    }

    /// What is written.
    fn formats(&self) -> Vec<ExportFormat> {
        self.plan.exports.iter().map(|export| export.format).collect()
    }

    /// The further models that stages merge, each once.
    fn others(&self) -> Vec<&Checkpoint> {
        let mut others: Vec<&Checkpoint> = Vec::new();
        for other in self.lessons.iter().flat_map(|lessons| &lessons.others) {
            if !others.iter().any(|known| known.path() == other.path()) {
                others.push(other);
            }
        }
        others
    }

    /// The same with their hashes.
    fn merged(&self, inputs: &[InputFile]) -> Result<Vec<Parent>> {
        let of = |other: &Checkpoint| {
            let model = other.path().display().to_string();
            Ok(Parent { model, sha256: model_hash(other, inputs)? })
        };
        self.others().into_iter().map(of).collect()
    }

    fn execute(
        &self,
        work: &Work,
        identity: String,
        inputs: Vec<InputFile>,
        listen: Listener<'_>,
    ) -> Result<Manifest> {
        let plan = self.plan;
        let parent = match work.recorded("00-parent.report.toml")? {
            Some(figures) => figures,
            None => {
                let figures = Figures {
                    parameters: plan.parameters,
                    nonzero: None,
                    bytes: plan.stored_bytes,
                    bytes_f16: plan.f16_bytes,
                    flops_per_token: plan.flops_per_token,
                    perplexity: self.measure(("parent", None), self.parent, listen)?,
                    file_bytes: Some(self.parent.file_bytes()),
                    weight_error: None,
                    warnings: Vec::new(),
                };
                work.record("00-parent.report.toml", &figures)?;
                figures
            }
        };
        let (stages, current) = self.stages(work, listen)?;
        let left: &dyn Weights = match &current {
            Some(checkpoint) => checkpoint,
            None => self.parent,
        };
        let lost = stages.iter().flat_map(|stage| stage.figures.warnings.iter());
        let warnings = self.plan.warnings.iter().chain(lost).cloned().collect();
        let mut manifest = Manifest {
            schema: 1,
            lopper: env!("CARGO_PKG_VERSION").into(),
            run: identity,
            recipe_sha256: sha256(self.options.recipe_text),
            seed: self.recipe.seed,
            device: describe(self.device),
            model: self.parent.path().display().to_string(),
            merged: self.merged(&inputs)?,
            inputs,
            parent,
            stages,
            exports: Vec::new(),
            outputs: Vec::new(),
            warnings,
        };
        let artifact = work.path().join("artifact.part");
        if artifact.exists() {
            std::fs::remove_dir_all(&artifact).map_err(Error::write(&artifact))?;
        }
        self.write_artifact(&artifact, work, left, &mut manifest, listen)?;
        sync(&artifact)?;
        interrupt::check()?;
        let target = self.options.place.target(self.parent);
        self.parent.unchanged()?;
        self.others().into_iter().try_for_each(Checkpoint::unchanged)?;
        target.take(&artifact, &work.path().join("replaced"))?;
        Ok(manifest)
    }

    /// Runs the stages one after the other. Returns their reports and the last one's result.
    fn stages(
        &self,
        work: &Work,
        listen: Listener<'_>,
    ) -> Result<(Vec<StageReport>, Option<Checkpoint>)> {
        let mut stages = Vec::new();
        let mut current: Option<Checkpoint> = None;
        for index in 0..self.recipe.stage.len() {
            interrupt::check()?;
            let before: &dyn Weights = match &current {
                Some(checkpoint) => checkpoint,
                None => self.parent,
            };
            let (after, report) = self.stage(work, index, before, listen)?;
            stages.push(report);
            current = Some(after);
        }
        Ok((stages, current))
    }

    /// Runs a stage on `before`, or takes its result from the work folder; likewise what is measured of it.
    fn stage(
        &self,
        work: &Work,
        index: usize,
        before: &dyn Weights,
        listen: Listener<'_>,
    ) -> Result<(Checkpoint, StageReport)> {
        let stage = &self.recipe.stage[index];
        let kind = stage.kind();
        let name = stage_folder(index, stage);
        let whole = work.path().join(&name);
        if whole.exists() {
            listen(Event::Resumed { stage: &name });
        } else {
            let part = work.path().join(format!("{name}.part"));
            self.make(stage, index, before, &part, work, listen)?;
            work.seal(&part, &whole)?;
        }
        let done: Option<Done> = work::read_record(&whole.join(DONE))?;
        let expected = work.chain(index + 1);
        let found = done.as_ref().map_or("absent", |done| &done.run);
        let Some(done) = done.as_ref().filter(|done| done.run == expected) else {
            return Err(Error::OtherRun {
                what: format!("record of {name}"),
                path: work.path().into(),
                before: found.into(),
                now: expected,
            });
        };
        let after = Checkpoint::open_stage(&whole, done.config(self.parent.config()))?;
        let record = format!("{name}.report.toml");
        if let Some(report) = work.recorded(&record)? {
            return Ok((after, report));
        }
        let start = Instant::now();
        let outline = Outline::of(&after)?;
        let unrounded = stage.unrounded(before, self.device, &whole)?;
        let mut rounded = self.plan.stages[index].changes.clone();
        if !stage.loses() {
            rounded.clear();
        }
        if let Some(exact) = &unrounded {
            rounded.clear();
            for spec in after.specs() {
                if exact.format(spec)? != after.format(spec)? {
                    rounded.push(spec.name.clone());
                }
            }
        }
        // What a stage changed in weights that kept their shape, before it rounded them.
        let change = match &unrounded {
            Some(exact) => rounding_error(before, &**exact, &rounded)?.0,
            None => None,
        };
        let before = unrounded.as_deref().unwrap_or(before);
        let (weight_error, mut warnings) = rounding_error(before, &after, &rounded)?;
        if let (Some(error), Some(change)) = (weight_error, change)
            && error > 0.1 * change
        {
            warnings.push(format!(
                "rounding changed the weights by {error:.1e}, where this stage itself changed them by {change:.1e} (squared \
                 errors): little of that may be left",
            ));
        }
        let told = stage.report(&whole)?;
        let learned = told.as_ref().and_then(|told| told.learned);
        warnings.extend(told.into_iter().flat_map(|told| told.warnings));
        for text in &warnings {
            listen(Event::Warning { text });
        }
        let figures = Figures {
            parameters: outline.parameters(),
            nonzero: match self.recipe.stage[..=index].iter().any(|s| s.leaves_zeros()) {
                true => Some(nonzero(&after)?),
                false => None,
            },
            bytes: outline.unpadded_bytes(),
            bytes_f16: 2 * outline.parameters(),
            flops_per_token: outline.flops_per_token(),
            perplexity: self.measure((kind.result, stage.round()), &after, listen)?,
            file_bytes: None,
            weight_error,
            warnings,
        };
        let report = StageReport {
            name: kind.name.into(),
            round: stage.round(),
            seconds: done.seconds + start.elapsed().as_secs_f64(),
            peak_vram: done.peak_vram.max(self.peak()),
            figures,
            learned,
            details: saved(&whole, DETAILS)?,
        };
        work.record(&record, &report)?;
        Ok((after, report))
    }

    /// Runs a stage into the folder `part`, where an earlier attempt may have left something.
    fn make(
        &self,
        stage: &RecipeStage,
        index: usize,
        before: &dyn Weights,
        part: &Path,
        work: &Work,
        listen: Listener<'_>,
    ) -> Result<()> {
        // Killed while it tidied up: what it needed for going on may be gone by halves, and is not needed.
        let done: Option<Done> = work::read_record(&part.join(DONE))?;
        if done.is_some_and(|done| done.run == work.chain(index + 1)) {
            return stage.tidy(part);
        }
        let start = Instant::now();
        let stood = self.before_cut(work, index)?;
        std::fs::create_dir_all(part).map_err(Error::write(part))?;
        let config = stage.run(
            before,
            &mut Context {
                parent: self.parent,
                pass: Pass { device: self.device, compute: self.options.calibration },
                rows: self.rows[index].as_ref(),
                statistics: self.statistics[index].as_ref(),
                examples: self.lessons[index].examples.as_ref(),
                teacher: stood.as_ref().or(self.lessons[index].teacher.as_ref()),
                others: &self.lessons[index].others,
                training: self.options.training,
                seed: self.recipe.seed,
                budget: self.options.budget,
                folder: part,
                progress: &mut |step, done, total| listen(Event::Progress { step, done, total }),
            },
        )?;
        let done = Done {
            run: work.chain(index + 1),
            seconds: start.elapsed().as_secs_f64(),
            peak_vram: self.peak(),
            hidden_size: config.hidden_size,
            rms_norm_eps: config.rms_norm_eps,
            tied: config.tied,
            shortcuts: config.shortcuts,
            input_type: config.input_type,
            experts: config.experts,
            readout: config.readout.clone(),
            blocks: config.blocks.clone(),
        };
        write_record(&part.join(DONE), &work::to_toml(&done))?;
        stage.tidy(part)
    }

    /// The model that stood before the last cut, if the stage learns from that; `None`: the parent did.
    fn before_cut(&self, work: &Work, index: usize) -> Result<Option<Checkpoint>> {
        let stages = &self.recipe.stage;
        if stages[index].needs().teacher != Some(BEFORE) {
            return Ok(None);
        }
        let cut = stages[..index].iter().rposition(|stage| stage.is_cut());
        let Some(left) = cut.and_then(|cut| cut.checked_sub(1)) else { return Ok(None) };
        let folder = work.path().join(stage_folder(left, &stages[left]));
        let record = folder.join(DONE);
        let done: Done = work::read_record(&record)?.ok_or_else(|| Error::Malformed {
            path: record,
            what: "record of a stage".into(),
            offset: None,
            expected: "that of a stage that is done".into(),
            found: "none".into(),
        })?;
        Checkpoint::open_stage(&folder, done.config(self.parent.config())).map(Some)
    }

    /// What all stages took out of the parent; `None` if none took anything.
    fn pruned(&self, work: &Work) -> Result<Option<Value>> {
        let mut all: Option<KeptChannels> = None;
        // Channels of a model that was made anew are none of the parent's.
        if self.recipe.stage.iter().any(|stage| !stage.keeps_channels()) {
            return Ok(None);
        }
        for (index, stage) in self.recipe.stage.iter().enumerate() {
            let folder = work.path().join(stage_folder(index, stage));
            if let Some(kept) = kept(&folder)? {
                all = Some(match all {
                    None => kept,
                    Some(before) => before.then(&kept),
                });
            }
        }
        Ok(all.map(|kept| kept.gone(self.parent.config())))
    }

    /// Most bytes of device buffers in use so far.
    fn peak(&self) -> u64 {
        self.device.gpu().map_or(0, |gpu| gpu.memory().1)
    }

    /// The perplexity that the recipe asks for, if it does. `whose`: the model's name in reports, and the round it is of.
    fn measure(
        &self,
        (whose, round): (&str, Option<usize>),
        weights: &dyn Weights,
        listen: Listener<'_>,
    ) -> Result<Option<Perplexity>> {
        // What scores texts has no perplexity; the plan said so.
        let evaluation = self.evaluation.as_ref();
        let Some((evaluate, tokens)) = evaluation.filter(|_| weights.config().readout.is_none())
        else {
            return Ok(None);
        };
        let pass = Pass { device: self.device, compute: self.options.compute };
        let (resident, _) = Outline::of(weights)?.evaluation_bytes(evaluate.ctx);
        let fits = self.options.budget.is_none_or(|budget| resident <= budget);
        let model = fits.then(|| Model::load(self.device, weights, |_, _| interrupt::check()));
        let model = model.transpose()?;
        let source = match &model {
            Some(model) => WeightSource::Resident(model),
            None => WeightSource::Streamed(self.device, weights),
        };
        let step = titled(&format!("measuring the {whose} model"), round);
        let progress = |done: usize, total: usize| {
            listen(Event::Progress { step: &step, done, total });
            interrupt::check()
        };
        let convention = Convention::usual(weights.config().encoder.is_some());
        let ctx = evaluate.ctx;
        let perplexity = perplexity(source, &pass, tokens, ctx, convention, None, progress)?;
        listen(Event::Measured { whose: &titled(whose, round), perplexity: &perplexity });
        Ok(Some(perplexity))
    }

    /// Fills the folder of the artifact.
    fn write_artifact(
        &self,
        folder: &Path,
        work: &Work,
        weights: &dyn Weights,
        manifest: &mut Manifest,
        listen: Listener<'_>,
    ) -> Result<()> {
        let make = |path: &Path| std::fs::create_dir(path).map_err(Error::write(path));
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(Error::write(&path))
        };
        make(folder)?;
        put("recipe.toml", self.options.recipe_text)?;
        put("plan.json", &pretty(self.plan))?;
        let (parent, tokenizer) = (self.parent, self.tokenizer.as_ref());
        let formats = self.formats();
        if let Some(pruned) = self.pruned(work)? {
            put("pruned.json", &pretty(&pruned))?;
        }
        for (index, stage) in self.recipe.stage.iter().enumerate() {
            let name = stage_folder(index, stage);
            for part in stage.folders() {
                // A second one of a recipe has its stage's name before its own.
                let own = folder.join(part).exists();
                let target = if own { format!("{name}.{part}") } else { part.to_string() };
                let left = work.path().join(&name).join(part);
                if left.exists() {
                    copy_files(&left, &folder.join(target))?;
                }
            }
            if let Some(report) = stage.report(&work.path().join(&name))? {
                // A second one of a recipe has its stage's name before its own.
                let own = folder.join(report.file).exists();
                let named = |file: &str| match own {
                    true => format!("{name}.{file}"),
                    false => file.into(),
                };
                put(&named(report.file), &pretty(&report.value))?;
                for (file, text) in &report.files {
                    put(&named(file), text)?;
                }
            }
        }
        // Where the plan had to guess sizes, it could not say this.
        if self.plan.estimated {
            for text in in_f16(&formats, parent, weights)? {
                listen(Event::Warning { text: &text });
                manifest.warnings.push(text);
            }
        }
        let total = formats.len();
        let progress = |listen: Listener<'_>, done: usize| {
            listen(Event::Progress { step: "writing", done, total });
            interrupt::check()
        };
        for (done, format) in formats.iter().enumerate() {
            progress(listen, done)?;
            let wide = format.write(&folder.join(format.path()), parent, weights, tokenizer)?;
            for text in wide.notes() {
                // The plan may have foreseen it.
                if !manifest.warnings.contains(&text) {
                    listen(Event::Warning { text: &text });
                    manifest.warnings.push(text);
                }
            }
        }
        progress(listen, total)?;
        let others = self.others();
        let cards = |formats| {
            let made = (&self.plan.left.config, parent, others.clone());
            card::card(manifest, self.options.recipe_text, made, formats)
        };
        cards(&formats).write(folder)?;
        for format in formats.chunks(1).filter(|format| format[0] != ExportFormat::Gguf) {
            cards(format).write(&folder.join(format[0].path()))?;
        }
        manifest.outputs = list_outputs(folder)?;
        for format in formats {
            let own = manifest.outputs.iter().filter(|file| format.holds(&file.path));
            let bytes = own.map(|file| file.bytes).sum();
            manifest.exports.push(Written::new(format, bytes, parent));
        }
        put("manifest.json", &pretty(manifest))
    }
}

/// Copies the files of a folder into a new one, once what a killed run left among them is gone.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    sweep(from);
    std::fs::create_dir(to).map_err(Error::write(to))?;
    for entry in std::fs::read_dir(from).map_err(Error::read(from))? {
        let entry = entry.map_err(Error::read(from))?;
        let target = to.join(entry.file_name());
        std::fs::copy(entry.path(), &target).map_err(Error::write(&target))?;
    }
    Ok(())
}

/// The name of a stage's folder in the work folder.
fn stage_folder(index: usize, stage: &RecipeStage) -> String {
    format!("{:02}-{}", index + 1, stage.kind().name)
}

/// Makes once, before any work, what an export may find impossible after it.
fn check_exports(parent: &Checkpoint, plan: &Plan) -> Result<()> {
    for export in &plan.exports {
        match export.format {
            ExportFormat::Gguf => {}
            ExportFormat::Packed => _ = parent.config_json()?,
            _ => {
                parent.config().check_plain(parent.path())?;
                parent.config_json()?;
            }
        }
    }
    Ok(())
}

fn describe(device: &Device) -> String {
    match device.gpu() {
        None => "cpu".into(),
        Some(gpu) => {
            let adapter = gpu.adapter();
            format!(
                "{} ({}, {})",
                adapter.info.name,
                crate::gpu::backend_name(adapter.info.backend),
                adapter.driver()
            )
        }
    }
}

/// The evaluation's tokens, cut to its limit.
fn tokens(
    evaluate: &Evaluate,
    parent: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<u32>> {
    let Some(tokenizer) = tokenizer else {
        return Err(Error::Read {
            path: parent.path().join("tokenizer.json"),
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "an evaluation needs the model's tokenizer",
            ),
        });
    };
    let most = evaluate.max_tokens.unwrap_or(usize::MAX);
    let mut tokens = tokenizer.encode_first(&read_text(&evaluate.text)?, false, most)?;
    Windows::check_length(tokens.len(), evaluate.ctx, evaluate.max_tokens)?;
    mark_gaps(&mut tokens, evaluate.ctx, tokenizer.gap());
    Ok(tokens)
}

/// The rows that a stage calibrates on, if it does.
fn rows(
    stage: &RecipeStage,
    tokenizer: Option<&Tokenizer>,
    context: usize,
) -> Result<Option<Rows>> {
    let Needs { calibration, held_out, .. } = stage.needs();
    let Some(mut calibration) = calibration.cloned() else {
        return Ok(None);
    };
    calibration.samples = Some(calibration.samples().saturating_add(held_out));
    let tokenizer = tokenizer.ok_or_else(|| Error::Argument {
        argument: "calibration".into(),
        expected: "a model with a tokenizer".into(),
        found: "none".into(),
    })?;
    Rows::of_text(&calibration, tokenizer)?.within(context).map(Some)
}

/// The squared error of some weights and the sum of their squares.
type SquaredError = (f64, f64);

fn plus(a: SquaredError, b: SquaredError) -> SquaredError {
    (a.0 + b.0, a.1 + b.1)
}

/// sum((after - before)^2) / sum(before^2) over the tensors of these names, `None` if there are none; and a warning for each
/// that loses more than 2 % of the squares of groups whose scale f16 does not hold in full.
fn rounding_error(
    before: &dyn Weights,
    after: &dyn Weights,
    rounded: &[String],
) -> Result<(Option<f64>, Vec<String>)> {
    let (mut all, mut any, mut warnings) = ((0.0, 0.0), false, Vec::new());
    let specs = after.specs().iter().filter(|spec| rounded.contains(&spec.name));
    for spec in specs {
        interrupt::check()?;
        let old = before.specs().iter().find(|old| old.name == spec.name);
        let Some(old) = old.filter(|old| old.shape() == spec.shape()) else {
            continue;
        };
        let (old, new) = (before.load(old)?, after.load(spec)?);
        let group = new.format.group_columns(new.columns);
        let row = |row: usize| {
            let [mut was, mut is] = [vec![0.0; old.columns], vec![0.0; old.columns]];
            old.decode_row(row, &mut was);
            new.decode_row(row, &mut is);
            let (mut whole, mut lost, mut groups) = ((0.0, 0.0), (0.0, 0.0), 0);
            for (at, (was, is)) in was.chunks(group).zip(is.chunks(group)).enumerate() {
                let pairs = was.iter().zip(is).map(|(was, is)| (f64::from(*was), f64::from(*is)));
                let error = pairs.fold((0.0, 0.0), |sum, (was, is)| {
                    plus(sum, ((is - was).powi(2), was.powi(2)))
                });
                whole = plus(whole, error);
                if new.scale_underflows(row, at) && error.1 > 0.0 {
                    (lost, groups) = (plus(lost, error), groups + 1);
                }
            }
            (whole, lost, groups)
        };
        // In order, whichever thread computed a row: the figure is the same every time.
        let rows: Vec<(SquaredError, SquaredError, usize)> =
            (0..old.rows).into_par_iter().map(row).collect();
        let (mut lost, mut groups) = ((0.0, 0.0), 0);
        for (row, row_lost, row_groups) in rows {
            (all, any) = (plus(all, row), true);
            (lost, groups) = (plus(lost, row_lost), groups + row_groups);
        }
        if lost.0 > 0.02 * lost.1 {
            warnings.push(format!(
                "{}: {groups} groups have scales below the normal numbers of f16 (6.1e-5) and lose {:.0} % of their squares as \
                 {}; its weights are too small for this type",
                spec.name,
                100.0 * lost.0 / lost.1,
                new.format.label(),
            ));
        }
    }
    let error = any.then_some(if all.1 > 0.0 { all.0 / all.1 } else { 0.0 });
    Ok((error, warnings))
}

/// Values of a model that are not exactly 0.
fn nonzero(weights: &dyn Weights) -> Result<u64> {
    let mut all = 0;
    for spec in weights.specs() {
        interrupt::check()?;
        all += nonzero_of(&weights.load(spec)?);
    }
    Ok(all)
}

/// Values of a tensor that are not exactly 0.
fn nonzero_of(tensor: &Packed) -> u64 {
    let row = |row: usize| {
        let mut values = vec![0.0; tensor.columns];
        tensor.decode_row(row, &mut values);
        values.iter().filter(|value| **value != 0.0).count() as u64
    };
    (0..tensor.rows).into_par_iter().map(row).sum()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("recipes are plain tables and values")
}

fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value)
        .expect("plans and manifests are plain tables and values");
    text + "\n"
}
