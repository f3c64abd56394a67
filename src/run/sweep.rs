//! A sweep: each of its recipes run, and what it leaves measured beside the parent on every text. Nothing is exported; what is
//! kept are the figures, one record a recipe, so that a sweep that was killed goes on at the first that is missing.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::files::{HashedInput, list_inputs};
use super::work::{Fact, Work, is_there, work_path};
use super::{
    Event, Lessons, Listener, Options, Place, Run, describe, json, lessons, nonzero_of, pretty,
    rows, statistics, taken, tokens,
};
use crate::device::Device;
use crate::disk::Target;
use crate::error::{Error, Result};
use crate::formats::sha256;
use crate::interrupt;
use crate::measure::{Convention, Windows, divergence};
use crate::methods::calibration::Rows;
use crate::model::{Checkpoint, Compute, Model, Outline, Pass, WeightSource, Weights, identity};
use crate::plan::Plan;
use crate::recipe::{Evaluate, Point, Sweep};
use crate::walk::stored::Stored;

/// What became of one recipe of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The case's name.
    pub case: String,
    /// The value of the key that varies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Which draw, from 0.
    pub draw: usize,
    /// Why it was not run, if the model cannot be cut like that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Weights.
    pub parameters: u64,
    /// Those that are not zero.
    pub nonzero: u64,
    /// Bytes of the tensors as the last stage left them.
    pub bytes: u64,
    /// Bytes in f16, of each tensor either all values, or a bit each and those that are not zero, whichever is less.
    pub least_bytes: u64,
    /// Time of the stages.
    pub seconds: f64,
    /// Most bytes of device buffers in use.
    pub peak_vram: u64,
    /// What was measured on each text.
    pub texts: Vec<OnText>,
}

/// How well a result predicts a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OnText {
    /// The text.
    pub text: String,
    /// Tokens of a window.
    pub ctx: usize,
    /// Tokens scored.
    pub tokens: usize,
    /// Its perplexity.
    pub perplexity: f64,
    /// Standard error of the perplexity.
    pub stderr: f64,
    /// The parent's perplexity.
    pub base_perplexity: f64,
    /// Mean KL(parent || result), nats a token.
    pub kl: f64,
    /// Its standard error.
    pub kl_stderr: f64,
    /// Share of places where both find the same token the likeliest.
    pub same_top: f64,
}

/// Where and how a sweep is run.
#[derive(Clone, Copy, Debug)]
pub struct Sweeping<'a> {
    /// The sweep's file, for messages.
    pub path: &'a Path,
    /// Its text as it was given.
    pub text: &'a str,
    /// Where the figures go, and what of evaluation and calibration [`Options`] says.
    pub options: Options<'a>,
}

/// Runs a sweep. `found` is told of each row when it is known. `write` makes the result's files in a folder from all rows.
pub fn run(
    sweep: &Sweep,
    parent: &Checkpoint,
    device: &Device,
    sweeping: Sweeping<'_>,
    found: &mut dyn FnMut(&Row) -> Result<()>,
    listen: Listener<'_>,
    write: &dyn Fn(&Path, &[Row]) -> Result<()>,
) -> Result<Vec<Row>> {
    let options = sweeping.options;
    let place = options.place;
    place.check(parent)?;
    let points = sweep.points(sweeping.path)?;
    let tokenizer = parent.stored_tokenizer()?.read()?;
    // Plans, texts and calibration rows of all before anything is computed.
    let [compute, calibration] = [options.compute, options.calibration].map(Compute::name);
    let fact = |what: String, value: String| Fact { what, value };
    let mut facts = vec![
        fact("version of lopper".into(), env!("CARGO_PKG_VERSION").into()),
        fact("model".into(), identity(parent)?),
        fact("device".into(), describe(device)),
        fact("compute".into(), format!("{compute}, {calibration}")),
        fact("sweep".into(), json(sweep)),
    ];
    let mut texts = Vec::new();
    for (place, evaluate) in sweep.text.iter().enumerate() {
        let tokens = tokens(evaluate, parent, Some(&tokenizer))?;
        let bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        facts.push(fact(format!("tokens of text {}", place + 1), sha256(bytes)));
        texts.push((evaluate, tokens));
    }
    let mut known: Vec<HashedInput> = Vec::new();
    let mut ready = Vec::new();
    for (place, point) in points.into_iter().enumerate() {
        let plan = match Plan::new(&point.recipe, parent) {
            Ok(plan) => plan,
            Err(error) => {
                ready.push((point, Err(error.to_string())));
                continue;
            }
        };
        plan.check_budget(options.budget)?;
        let stages = &point.recipe.stage;
        let context = parent.config().max_positions;
        let rows = stages.iter().map(|stage| rows(stage, Some(&tokenizer), context));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let statistics = stages.iter().map(|stage| statistics(stage, parent));
        let statistics = statistics.collect::<Result<Vec<_>>>()?;
        let lessons = lessons(&point.recipe, parent, Some(&tokenizer))?;
        let inputs = list_inputs(parent, &point.recipe, &taken(&statistics, &lessons), &known)?;
        let hashes: String = inputs.iter().map(|input| input.file.sha256.as_str()).collect();
        facts.push(fact(format!("inputs of recipe {}", place + 1), sha256(hashes)));
        for input in &inputs {
            if !known.iter().any(|other| other.file.path == input.file.path) {
                known.push(input.clone());
            }
        }
        ready.push((point, Ok(Ready { plan, rows, statistics, lessons, inputs })));
    }
    let path = work_path(place.out)?;
    place.target(parent).check_standing()?;
    let work = Work::open(path, place.resume, facts, known)?;
    interrupt::resumable(Some(work.path().into()));
    let all = Sweeper { parent, device, options, texts };
    let result = all.rows(&work, ready, found, listen);
    interrupt::resumable(None);
    let rows = match result {
        Ok(rows) => rows,
        Err(Error::Interrupted) => return Err(Error::Suspended { work: work.path().into() }),
        Err(error) => {
            work.leave(&error);
            return Err(error);
        }
    };
    let target = Target { path: place.out, force: place.force, folder: true, model: parent.path() };
    target.write(|folder| {
        std::fs::create_dir_all(folder).map_err(Error::write(folder))?;
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(Error::write(&path))
        };
        put("sweep.toml", sweeping.text)?;
        put("sweep.json", &pretty(&serde_json::json!({"schema": 1, "rows": rows})))?;
        write(folder, &rows)
    })?;
    if !place.keep_work {
        work.remove()?;
    }
    Ok(rows)
}

/// A recipe of a sweep with all that it reads.
struct Ready {
    plan: Plan,
    rows: Vec<Option<Rows>>,
    statistics: Vec<Option<Stored>>,
    lessons: Vec<Lessons>,
    inputs: Vec<HashedInput>,
}

/// What the recipes of a sweep share.
struct Sweeper<'a> {
    parent: &'a Checkpoint,
    device: &'a Device,
    options: Options<'a>,
    texts: Vec<(&'a Evaluate, Vec<u32>)>,
}

impl Sweeper<'_> {
    /// A model for evaluations: on the device as a whole, or, where memory has a bound, a block at a time.
    fn resident(&self, weights: &dyn Weights) -> Result<Option<Model>> {
        let load = |_, _| interrupt::check();
        let all = self.options.budget.is_none();
        all.then(|| Model::load(self.device, weights, load)).transpose()
    }

    fn source<'w>(
        &'w self,
        model: &'w Option<Model>,
        weights: &'w dyn Weights,
    ) -> WeightSource<'w> {
        match model {
            Some(model) => WeightSource::Resident(model),
            None => WeightSource::Streamed(self.device, weights),
        }
    }

    fn rows(
        &self,
        work: &Work,
        points: Vec<(Point, std::result::Result<Ready, String>)>,
        found: &mut dyn FnMut(&Row) -> Result<()>,
        listen: Listener<'_>,
    ) -> Result<Vec<Row>> {
        let base = self.resident(self.parent)?;
        let (mut rows, total) = (Vec::new(), points.len());
        for (place, (point, ready)) in points.into_iter().enumerate() {
            interrupt::check()?;
            listen(Event::Progress { step: "sweeping", done: place, total });
            let record = format!("{:04}.toml", place + 1);
            let row = match (work.recorded(&record)?, ready) {
                (Some(row), _) => row,
                (None, Err(why)) => Row { refused: Some(why), ..nothing(&point) },
                (None, Ok(ready)) => {
                    let folder = work.path().join(format!("{:04}", place + 1));
                    self.row(&point, ready, folder, &base, listen)?
                }
            };
            work.record(&record, &row)?;
            found(&row)?;
            rows.push(row);
        }
        Ok(rows)
    }

    fn row(
        &self,
        point: &Point,
        ready: Ready,
        folder: PathBuf,
        base: &Option<Model>,
        listen: Listener<'_>,
    ) -> Result<Row> {
        let (parent, device, recipe) = (self.parent, self.device, &point.recipe);
        let Ready { plan, rows, statistics, lessons, inputs } = ready;
        let files: Vec<_> = inputs.iter().map(|input| input.file.clone()).collect();
        let out = folder.clone();
        let options = Options { place: Place { out: &out, ..self.options.place }, ..self.options };
        let (evaluation, tokenizer, plan) = (None, None, &plan);
        let run = Run {
            recipe,
            plan,
            parent,
            device,
            options,
            tokenizer,
            evaluation,
            rows,
            statistics,
            lessons,
        };
        let resume = is_there(&folder);
        let work = Work::open(folder, resume, run.facts(&files)?, inputs)?;
        let start = Instant::now();
        let (_, result) = run.stages(&work, listen)?;
        let seconds = start.elapsed().as_secs_f64();
        let result = result.as_ref().map_or(parent as &dyn Weights, |result| result);
        let outline = Outline::of(result)?;
        let (nonzero, least_bytes) = counts(result)?;
        let texts = self.measured(result, base, listen)?;
        let row = Row {
            parameters: outline.parameters(),
            nonzero,
            bytes: outline.unpadded_bytes(),
            least_bytes,
            seconds,
            peak_vram: run.peak(),
            texts,
            ..nothing(point)
        };
        work.remove()?;
        Ok(row)
    }

    fn measured(
        &self,
        result: &dyn Weights,
        base: &Option<Model>,
        listen: Listener<'_>,
    ) -> Result<Vec<OnText>> {
        let pass = Pass { device: self.device, compute: self.options.compute };
        let child = self.resident(result)?;
        let sources = (self.source(base, self.parent), self.source(&child, result));
        let mut texts = Vec::new();
        for (evaluate, tokens) in &self.texts {
            let convention = Convention::usual(self.parent.config().encoder.is_some());
            let windows = Windows::new(tokens, evaluate.ctx, convention, None)?;
            let found = divergence(sources.0, sources.1, &pass, &windows, |done, total| {
                listen(Event::Progress { step: "measuring", done, total });
                interrupt::check()
            })?;
            let (own, kl) = (found.child.perplexity(), found.kl());
            texts.push(OnText {
                text: evaluate.text.clone(),
                ctx: evaluate.ctx,
                tokens: found.child.values().len(),
                perplexity: own.value,
                stderr: own.stderr,
                base_perplexity: found.parent.perplexity().value,
                kl: kl.mean,
                kl_stderr: kl.stderr,
                same_top: kl.same_top,
            });
        }
        Ok(texts)
    }
}

/// A row without figures.
fn nothing(point: &Point) -> Row {
    Row {
        case: point.case.clone(),
        value: point.value.clone(),
        draw: point.draw,
        refused: None,
        parameters: 0,
        nonzero: 0,
        bytes: 0,
        least_bytes: 0,
        seconds: 0.0,
        peak_vram: 0,
        texts: Vec::new(),
    }
}

/// Weights that are not zero, and the bytes of [`Row::least_bytes`].
fn counts(weights: &dyn Weights) -> Result<(u64, u64)> {
    let (mut nonzero, mut bytes) = (0, 0);
    for spec in weights.specs() {
        interrupt::check()?;
        let own = nonzero_of(&weights.load(spec)?);
        let all = (spec.rows * spec.columns) as u64;
        nonzero += own;
        bytes += (2 * all).min(all.div_ceil(8) + 2 * own);
    }
    Ok((nonzero, bytes))
}
