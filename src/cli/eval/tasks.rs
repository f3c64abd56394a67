//! The tasks of `lopper eval`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::task_files::TaskFiles;
use crate::cli::Global;
use crate::cli::output::{Output, table};
use crate::cli::session::{compute, load_model, open_model};
use crate::data::shots::{Selection, available};
use crate::data::{Task, read_task};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::kv::CacheType;
use crate::measure::quality::outcome::TaskOutcome;
use crate::measure::quality::statistics::number;
use crate::measure::quality::tasks::{Batching, Event, Figures, Options, Setup, evaluate};
use crate::model::{Checkpoint, Compute, Ensemble, Model, Pass, Weights};
use crate::text::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct TaskArguments {
    /// Answer these tasks: headlines, mmlu-mini, cloze, a data file, LAYOUT:FILE, or a task file (.toml)
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    pub task: Vec<String>,
    /// Examples in front of each question; several numbers make a table
    #[arg(long, value_name = "K", value_delimiter = ',', default_value = "0", requires = "task")]
    shots: Vec<usize>,
    /// Which examples: the first, drawn by --seed, or the most similar to each question
    #[arg(long, value_name = "HOW", default_value = "first", requires = "task")]
    shot_selection: SelectionName,
    /// Find the most similar examples by this sentence encoder's embeddings instead of the model's own states
    #[arg(long, value_name = "MODEL", requires = "task")]
    shot_encoder: Option<String>,
    /// Draw examples from this file, of the task's layout, instead
    #[arg(long, value_name = "FILE", requires = "task")]
    shots_from: Option<PathBuf>,
    /// Each task's first questions only
    #[arg(long, value_name = "N", requires = "task", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Of a model whose head scores labels: which of these a choice of the tasks is, where it has another name
    #[arg(long, value_name = "CHOICE=LABEL", value_delimiter = ',', value_parser = renamed, requires = "task")]
    label: Vec<(String, String)>,
    /// Put BOS in front of each question though the vocabulary does not ask for it
    #[arg(long, requires = "task")]
    add_bos: bool,
    /// Questions of a pass at most; without it, as many as 4096 tokens hold
    #[arg(long, value_name = "N", requires = "task", value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
    /// Compute examples and questions anew for every choice, for comparison
    #[arg(long, requires = "task")]
    no_prefix_sharing: bool,
}

/// Tasks that were read, how they are answered, and where the answers go.
#[derive(Clone, Copy)]
pub(super) struct Answering<'a> {
    pub(super) arguments: &'a TaskArguments,
    pub(super) tasks: &'a [Task],
    pub(super) files: &'a TaskFiles,
}

impl Answering<'_> {
    /// Loads a model and lets it answer, with a key-value cache of that type.
    pub(super) fn answers(
        &self,
        global: &Global,
        device: &Device,
        checkpoint: &Checkpoint,
        cache: Option<&'static CacheType>,
        output: &Output,
    ) -> Result<Vec<TaskOutcome>> {
        let compute = compute(global, device)?.with_cache(cache);
        // A question's choices and the questions of a batch differ in length: no one number of tokens is worth tuning.
        let model = load_model(global, device, checkpoint, compute, &[], output)?;
        let encoder = self.arguments.encoder(global, device, compute, output)?;
        let setup = Setup {
            models: &Ensemble::from(&model),
            pass: &Pass { device, compute },
            tokenizer: &checkpoint.tokenizer()?,
            encoder: encoder.as_ref().map(|(model, tokenizer)| (model, tokenizer)),
        };
        self.arguments.evaluate(global, &setup, self.tasks, output, &mut |_| Ok(()))
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SelectionName {
    First,
    Random,
    #[value(name = "bm25")]
    Bm25,
    Embedding,
}

impl From<SelectionName> for Selection {
    fn from(name: SelectionName) -> Self {
        match name {
            SelectionName::First => Selection::First,
            SelectionName::Random => Selection::Random,
            SelectionName::Bm25 => Selection::Bm25,
            SelectionName::Embedding => Selection::Embedding,
        }
    }
}

/// A choice and a label, CHOICE=LABEL.
fn renamed(text: &str) -> Result<(String, String), String> {
    let both =
        text.split_once('=').filter(|(choice, label)| !choice.is_empty() && !label.is_empty());
    let (choice, label) = both.ok_or("a choice and a label are bullish=positive")?;
    Ok((choice.into(), label.into()))
}

impl TaskArguments {
    /// Reads the tasks; what is wrong with them is said before a model is loaded.
    pub(super) fn read(&self) -> Result<Vec<Task>> {
        let mut names = HashSet::new();
        let mut tasks = Vec::new();
        for source in &self.task {
            let mut task = read_task(source, self.shots_from.as_deref())?;
            for (choice, label) in &self.label {
                task.rename_choice(choice, label);
            }
            if !names.insert(task.name.clone()) {
                return Err(Error::Argument {
                    argument: "--task".into(),
                    expected: "tasks with names of their own".into(),
                    found: format!("`{}` twice", task.name),
                });
            }
            let most = self.shots.iter().copied().max().unwrap_or(0);
            if most > available(&task) {
                return Err(Error::Argument {
                    argument: "--shots".into(),
                    expected: format!(
                        "at most the {} examples that task `{}` has for every question",
                        available(&task),
                        task.name
                    ),
                    found: most.to_string(),
                });
            }
            tasks.push(task);
        }
        let missing = |(_, label): &&(String, String)| {
            !tasks.iter().any(|task| task.items.iter().any(|item| item.has_choice(label)))
        };
        if let Some((choice, _)) = self.label.iter().find(missing) {
            return Err(Error::Argument {
                argument: "--label".into(),
                expected: "choices of the tasks".into(),
                found: choice.clone(),
            });
        }
        Ok(tasks)
    }

    /// The sentence encoder that finds examples, on the device with its vocabulary, if one is asked for.
    pub(super) fn encoder(
        &self,
        global: &Global,
        device: &Device,
        compute: Compute,
        output: &Output,
    ) -> Result<Option<(Model, Tokenizer)>> {
        let Some(name) = &self.shot_encoder else { return Ok(None) };
        if !matches!(self.shot_selection, SelectionName::Embedding) {
            return Err(Error::Argument {
                argument: "--shot-encoder".into(),
                expected: "--shot-selection embedding beside it".into(),
                found: Selection::from(self.shot_selection).name().into(),
            });
        }
        let checkpoint = open_model(name, output)?;
        checkpoint.config().embeds("--shot-encoder")?;
        let model = load_model(global, device, &checkpoint, compute, &[], output)?;
        Ok(Some((model, checkpoint.tokenizer()?)))
    }

    /// Evaluates the tasks on a model: by task, and for each by number of examples in the order of `--shots`. `tell` hears of
    /// all there are after each.
    pub(super) fn evaluate(
        &self,
        global: &Global,
        setup: &Setup<'_>,
        tasks: &[Task],
        output: &Output,
        tell: &mut dyn FnMut(&[TaskOutcome]) -> Result<()>,
    ) -> Result<Vec<TaskOutcome>> {
        let mut outcomes = Vec::new();
        for task in tasks {
            for shots in &self.shots {
                let options = Options {
                    shots: *shots,
                    selection: self.shot_selection.into(),
                    seed: global.seed.unwrap_or(0),
                    limit: self.limit.map(|limit| limit as usize),
                    add_bos: self.add_bos,
                    batching: Batching {
                        batch: self.batch.map(|batch| batch as usize),
                        share: !self.no_prefix_sharing,
                    },
                };
                let start = Instant::now();
                let outcome = evaluate(setup, task, &options, &mut |event| {
                    match event {
                        Event::Progress(step, done, total) => output.progress(step, done, total),
                        Event::Warning(text) => output.note(format!("warning: {text}")),
                    }
                    interrupt::check()
                })?;
                let seconds = start.elapsed().as_secs_f64();
                tracing::info!(
                    "{} with {shots} shots: {:.1} questions/s",
                    task.name,
                    outcome.outcomes.len() as f64 / seconds
                );
                outcomes.push(outcome);
                tell(&outcomes)?;
            }
        }
        Ok(outcomes)
    }

    /// The flags that figures depend on.
    pub(super) fn json(&self, global: &Global) -> Value {
        json!({
            "shot_selection": Selection::from(self.shot_selection).name(),
            "shot_encoder": self.shot_encoder,
            "seed": global.seed.unwrap_or(0),
            "limit": self.limit,
            "add_bos": self.add_bos,
            "labels": self.label.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "prefix_sharing": !self.no_prefix_sharing,
        })
    }
}

/// `tasks` of the command contract: a task's figures by its name, and those of every number of examples in `by_shots` where
/// there are several. The figures outside `by_shots` are those of the last.
pub(super) fn json_of(outcomes: &[TaskOutcome]) -> Value {
    let mut tasks = Map::new();
    for rows in outcomes.chunk_by(|a, b| a.task == b.task) {
        let figures = rows.iter().map(|outcome| json!(Figures::of(outcome)));
        let figures: Vec<Value> = figures.collect();
        let mut last = figures[figures.len() - 1].clone();
        if let (Value::Object(last), true) = (&mut last, figures.len() > 1) {
            last.insert("by_shots".into(), Value::Array(figures));
        }
        tasks.insert(rows[0].task.clone(), last);
    }
    Value::Object(tasks)
}

/// One table of all tasks, and a confusion matrix for each classification.
pub(super) fn text_of(outcomes: &[TaskOutcome]) -> String {
    let head = ["task", "shots", "n", "acc", "±", "acc_norm", "±", "macro F1", "chance"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let number = |value: Option<f64>| value.map_or("-".into(), |value| number(value, 4));
    for outcome in outcomes {
        let figures = Figures::of(outcome);
        rows.push(vec![
            outcome.task.clone(),
            figures.shots.to_string(),
            figures.n.to_string(),
            number(Some(figures.acc)),
            number(Some(figures.acc_stderr)),
            number(figures.acc_norm),
            number(figures.acc_norm_stderr),
            number(figures.macro_f1),
            number((figures.chance > 0.0).then_some(figures.chance)),
        ]);
    }
    let mut text = table(&rows);
    for outcome in outcomes {
        let figures = Figures::of(outcome);
        if figures.labels.is_empty() {
            continue;
        }
        let first = format!("{}, {} shots: right \\ picked", outcome.task, outcome.shots);
        let mut rows = vec![std::iter::once(first).chain(figures.labels.clone()).collect()];
        for (label, row) in figures.labels.iter().zip(&figures.confusion) {
            let counts = row.iter().map(usize::to_string);
            rows.push(std::iter::once(label.clone()).chain(counts).collect());
        }
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text
}
