//! A sweep: each of its recipes run, and what it leaves measured beside the parent on every text. Nothing is exported; what is
//! kept are the figures, one record a recipe, so that a sweep that was killed goes on at the first that is missing.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::files::{HashedInput, list_inputs};
use super::work::{Fact, Work, is_there, work_path};
use super::{
    Event, Listener, Options, Place, Run, describe, json, pretty, rows, statistics, tokens,
};
use crate::device::Device;
use crate::disk::Target;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::measure::{Convention, Windows, divergence};
use crate::model::{Checkpoint, Model, Outline, Pass, Weights, identity};
use crate::plan::Plan;
use crate::recipe::{Point, Sweep};
use crate::tensor::Packed;
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
    let stored = parent.stored_tokenizer()?;
    let tokenizer = stored.read()?;
    // Plans, texts and calibration rows of all before anything is computed.
    let mut texts = Vec::new();
    for evaluate in &sweep.text {
        texts.push((evaluate, tokens(evaluate, parent, Some(&tokenizer))?));
    }
    let mut plans: Vec<std::result::Result<Plan, String>> = Vec::new();
    for point in &points {
        let plan = Plan::new(&point.recipe, parent);
        if let Ok(plan) = &plan {
            plan.check_budget(options.budget)?;
        }
        for stage in &point.recipe.stage {
            rows(stage, Some(&tokenizer), parent.config().max_positions)?;
        }
        plans.push(plan.map_err(|error| error.to_string()));
    }
    let mut known: Vec<HashedInput> = Vec::new();
    let mut facts = vec![
        Fact { what: "version of lopper".into(), value: env!("CARGO_PKG_VERSION").into() },
        Fact { what: "device".into(), value: describe(device) },
        Fact { what: "sweep".into(), value: json(sweep) },
    ];
    for point in &points {
        let taken = taken(&taken_by(point, parent)?);
        known = list_inputs(parent, &point.recipe, &taken, &known)?;
    }
    facts.push(Fact { what: "model".into(), value: identity(parent)? });
    let path = work_path(place.out)?;
    place.target(parent).check_standing()?;
    let work = Work::open(path, place.resume, facts, known.clone())?;
    interrupt::resumable(Some(work.path().into()));
    let all = Sweeper { parent, device, options, texts, stored: &stored };
    let result = all.rows(&work, &points, &plans, &known, found, listen);
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

/// What the recipes of a sweep share.
struct Sweeper<'a> {
    parent: &'a Checkpoint,
    device: &'a Device,
    options: Options<'a>,
    texts: Vec<(&'a crate::recipe::Evaluate, Vec<u32>)>,
    stored: &'a crate::text::StoredTokenizer,
}

impl Sweeper<'_> {
    fn rows(
        &self,
        work: &Work,
        points: &[Point],
        plans: &[std::result::Result<Plan, String>],
        known: &[HashedInput],
        found: &mut dyn FnMut(&Row) -> Result<()>,
        listen: Listener<'_>,
    ) -> Result<Vec<Row>> {
        let mut model: Option<Model> = None;
        let mut rows = Vec::new();
        for (place, (point, plan)) in points.iter().zip(plans).enumerate() {
            interrupt::check()?;
            listen(Event::Progress { step: "sweeping", done: place, total: points.len() });
            let record = format!("{:04}.toml", place + 1);
            let row = match (work.recorded(&record)?, plan) {
                (Some(row), _) => row,
                (None, Err(why)) => Row { refused: Some(why.clone()), ..nothing(point) },
                (None, Ok(plan)) => {
                    if model.is_none() {
                        let load = |_, _| interrupt::check();
                        model = Some(Model::load(self.device, self.parent, load)?);
                    }
                    let base = model.as_ref().expect("it was just loaded");
                    let folder = work.path().join(format!("{:04}", place + 1));
                    self.row(point, plan, known, folder, base, listen)?
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
        plan: &Plan,
        known: &[HashedInput],
        folder: PathBuf,
        base: &Model,
        listen: Listener<'_>,
    ) -> Result<Row> {
        let (parent, device) = (self.parent, self.device);
        let (recipe, context) = (&point.recipe, parent.config().max_positions);
        let tokenizer = self.stored.read()?;
        let rows = recipe.stage.iter().map(|stage| rows(stage, Some(&tokenizer), context));
        let rows = rows.collect::<Result<_>>()?;
        let statistics = taken_by(point, parent)?;
        let inputs = list_inputs(parent, recipe, &taken(&statistics), known)?;
        let files: Vec<_> = inputs.iter().map(|input| input.file.clone()).collect();
        let out = folder.clone();
        let options = Options { place: Place { out: &out, ..self.options.place }, ..self.options };
        let (evaluation, tokenizer) = (None, None);
        let run =
            Run { recipe, plan, parent, device, options, tokenizer, evaluation, rows, statistics };
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
        base: &Model,
        listen: Listener<'_>,
    ) -> Result<Vec<OnText>> {
        let pass = Pass { device: self.device, compute: self.options.compute };
        let child = Model::load(self.device, result, |_, _| interrupt::check())?;
        let mut texts = Vec::new();
        for (evaluate, tokens) in &self.texts {
            let windows = Windows::new(tokens, evaluate.ctx, Convention::AllButFirst, None)?;
            let found = divergence(base, &child, &pass, &windows, |done, total| {
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

/// The statistics of each stage that were taken before.
fn taken_by(point: &Point, parent: &Checkpoint) -> Result<Vec<Option<Stored>>> {
    point.recipe.stage.iter().map(|stage| statistics(stage, parent)).collect()
}

/// Their files.
fn taken(statistics: &[Option<Stored>]) -> Vec<PathBuf> {
    statistics.iter().flatten().map(Stored::file).collect()
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
        let own = nonzeros(&weights.load(spec)?);
        let all = (spec.rows * spec.columns) as u64;
        nonzero += own;
        bytes += (2 * all).min(all.div_ceil(8) + 2 * own);
    }
    Ok((nonzero, bytes))
}

fn nonzeros(weight: &Packed) -> u64 {
    let row = |row: usize| {
        let mut values = vec![0.0; weight.columns];
        weight.decode_row(row, &mut values);
        values.iter().filter(|value| **value != 0.0).count() as u64
    };
    (0..weight.rows).into_par_iter().map(row).sum()
}
