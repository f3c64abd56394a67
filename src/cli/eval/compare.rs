//! `lopper compare A B`: a parent and its child side by side.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::pair::{Pair, WindowArguments, size};
use super::task_files::TaskFiles;
use super::tasks::{Answering, TaskArguments};
use crate::cli::Global;
use crate::cli::output::{Output, bytes, table};
use crate::cli::session::{open_device, open_language_model, report_device};
use crate::data::read_text;
use crate::error::{Error, Result};
use crate::measure::quality::comparison::{Paired, TasksComparison, compare_tasks};
use crate::measure::quality::outcome::TaskOutcome;
use crate::measure::quality::predictions::{read_predictions, read_samples};
use crate::measure::quality::statistics::{Bootstrap, Interval, with_error};
use crate::measure::quality::summary::{Size, TextComparison, summary};
use crate::model::Checkpoint;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The parent: a model, or the answers (.jsonl) that --samples wrote of one
    #[arg(value_name = "A")]
    parent: String,
    /// The child: a model, or such a file
    #[arg(value_name = "B")]
    child: String,
    /// The text for perplexity and divergence: a file, or embedded:NAME [default: embedded:heldout-2026]
    #[arg(long, value_name = "FILE")]
    ppl: Option<String>,
    #[command(flatten)]
    windows: WindowArguments,
    /// Another program's answers to the same items, as a further row: lines of JSON with doc_id (or item) and pick,
    /// prediction or filtered_resps
    #[arg(long, value_name = "FILE.jsonl")]
    predictions: Vec<PathBuf>,
    #[command(flatten)]
    tasks: TaskArguments,
    #[command(flatten)]
    files: TaskFiles,
}

/// One of the two sides: a model, or answers read from a file.
enum Side {
    Model(Box<Checkpoint>),
    Answers(Vec<TaskOutcome>),
}

impl Side {
    fn open(name: &str, output: &Output) -> Result<Self> {
        let path = Path::new(name);
        if path.extension().is_none_or(|end| end != "jsonl") {
            let model = open_language_model("MODEL", name, output)?;
            return Ok(Side::Model(Box::new(model)));
        }
        read_samples(path, &read_text(name)?).map(Side::Answers)
    }

    fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Side::Model(checkpoint) => Some(checkpoint),
            Side::Answers(_) => None,
        }
    }

    /// The outcomes of the tasks; a model answers them now.
    fn outcomes(
        &self,
        answer: &dyn Fn(&Checkpoint) -> Result<Vec<TaskOutcome>>,
    ) -> Result<Vec<TaskOutcome>> {
        match self {
            Side::Model(checkpoint) => answer(checkpoint),
            Side::Answers(outcomes) => Ok(outcomes.clone()),
        }
    }
}

/// Every result of the comparison.
struct Found {
    sizes: [Option<Size>; 2],
    text: Option<TextComparison>,
    tasks: Option<TasksComparison>,
    predictions: Vec<(String, TasksComparison)>,
}

pub(in crate::cli) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let tasks = arguments.tasks.read()?;
    let bootstrap = Bootstrap::seeded(global.seed.unwrap_or(0));
    let parent = Side::open(&arguments.parent, output)?;
    let child = Side::open(&arguments.child, output)?;
    let sides = [&parent, &child];
    let models = sides.iter().filter(|side| side.checkpoint().is_some()).count();
    let answered = models == 0 || !tasks.is_empty();
    arguments.files.check(answered, output)?;
    let wrong = |argument: &str, expected: &str| {
        Err(Error::Argument {
            argument: argument.into(),
            expected: expected.into(),
            found: format!("{} and {}", arguments.parent, arguments.child),
        })
    };
    if models < 2 && (arguments.ppl.is_some() || !answered) {
        return wrong(
            "compare",
            "two models, two files of answers (.jsonl), or one of each and --task; a text needs two models",
        );
    }
    if models == 0 && !tasks.is_empty() {
        return wrong("--task", "a model to answer them");
    }
    if !answered && !arguments.predictions.is_empty() {
        return wrong("--predictions", "answers to tasks: --task, or files of answers (.jsonl)");
    }
    let source = arguments.ppl.as_deref().unwrap_or("embedded:heldout-2026");
    let text = arguments.windows.of(source);
    let mut found = Found {
        sizes: [
            parent.checkpoint().map(|c| size(&arguments.parent, c)),
            child.checkpoint().map(|c| size(&arguments.child, c)),
        ],
        text: None,
        tasks: None,
        predictions: Vec::new(),
    };
    let pair = match parent.checkpoint().zip(child.checkpoint()) {
        Some((parent, child)) => Some(Pair::new(parent, child, &text, output)?),
        None => None,
    };
    let device = match models {
        0 => None,
        _ => Some(open_device(global, output)?),
    };
    let start = Instant::now();
    if let (Some(pair), Some(device)) = (&pair, &device) {
        found.text = Some(pair.measure(global, device, &text, None, output)?.0);
        let begun = json!({"schema": 1, "parent": arguments.parent, "child": arguments.child});
        output.begin(begun, |found| {
            let of = |side: &str| found["text"][side]["perplexity"]["value"].to_string();
            format!("so far: perplexity {} of A, {} of B\n", of("parent"), of("child"))
        });
        output.add(|json| json["text"] = json!(found.text))?;
    }
    if answered {
        let answering =
            Answering { arguments: &arguments.tasks, tasks: &tasks, files: &arguments.files };
        let answer = |checkpoint: &Checkpoint| match &device {
            Some(device) => answering.answers(global, device, checkpoint, None, output),
            None => Ok(Vec::new()),
        };
        let (before, after) = (parent.outcomes(&answer)?, child.outcomes(&answer)?);
        found.tasks = Some(compare_tasks(&before, &after, bootstrap)?);
        for path in &arguments.predictions {
            let name = path.display().to_string();
            let others = read_predictions(path, &read_text(&name)?, &before)?;
            let compared = compare_tasks(&before, &others, bootstrap)?;
            found.predictions.push((name, compared));
        }
        arguments.files.write(global, &arguments.child, &after)?;
    }
    report(arguments, bootstrap, &found, output)?;
    match &device {
        Some(device) => report_device(global, device, output, start.elapsed()),
        None => Ok(()),
    }
}

/// The tasks of two models side by side.
pub(super) fn task_table(tasks: &TasksComparison) -> String {
    let mut rows = vec![["", "base", "model", "change"].map(String::from).to_vec()];
    task_rows(tasks, "", &mut |name: &str, a: String, b: String, change: String| {
        rows.push(vec![name.into(), a, b, change]);
    });
    let mut text = table(&rows);
    for line in about_tasks("", tasks) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn report(
    arguments: &Arguments,
    bootstrap: Bootstrap,
    found: &Found,
    output: &Output,
) -> Result<()> {
    let words = summary(
        found.sizes[0].as_ref().zip(found.sizes[1].as_ref()),
        found.text.as_ref(),
        found.tasks.as_ref(),
    );
    let predictions: Vec<Value> = found
        .predictions
        .iter()
        .map(|(file, tasks)| json!({"file": file, "tasks": tasks.tasks, "share": tasks.share}))
        .collect();
    output.json(&json!({
        "schema": 1, "parent": arguments.parent, "child": arguments.child,
        "sizes": {"parent": found.sizes[0], "child": found.sizes[1]},
        "text": found.text, "tasks": found.tasks.as_ref().map(|tasks| &tasks.tasks),
        "share": found.tasks.as_ref().and_then(|tasks| tasks.share.as_ref()),
        "at_chance": found.tasks.as_ref().map(|tasks| &tasks.at_chance),
        "unpaired_tasks": found.tasks.as_ref().map(|tasks| &tasks.unpaired),
        "predictions": predictions, "summary": words,
        "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed},
    }))?;
    let mut rows = vec![["", "A", "B", "B against A"].map(String::from).to_vec()];
    let mut row = |name: &str, a: String, b: String, change: String| {
        rows.push(vec![name.into(), a, b, change]);
    };
    row("model", arguments.parent.clone(), arguments.child.clone(), String::new());
    if let [Some(a), Some(b)] = &found.sizes {
        size_rows(a, b, &mut row);
    }
    if let Some(text) = &found.text {
        text_rows(text, &mut row);
    }
    if let Some(tasks) = &found.tasks {
        task_rows(tasks, "", &mut row);
    }
    for (file, tasks) in &found.predictions {
        task_rows(tasks, &format!(" [{file}]"), &mut row);
    }
    output.line(format!("{words}\n"));
    output.text(&table(&rows));
    for line in notes(found) {
        output.line(line);
    }
    Ok(())
}

type Row<'a> = &'a mut dyn FnMut(&str, String, String, String);

fn size_rows(a: &Size, b: &Size, row: Row<'_>) {
    let times = |a: u64, b: u64| format!("{:.3}x", b as f64 / a as f64);
    let millions = |size: &Size| format!("{:.1} M", size.parameters as f64 / 1e6);
    row("parameters", millions(a), millions(b), times(a.parameters, b.parameters));
    let files = bytes(b.file_bytes);
    row("files", bytes(a.file_bytes), files.clone(), times(a.file_bytes, b.file_bytes));
    row("files, A in f16", bytes(a.bytes_f16), files, times(a.bytes_f16, b.file_bytes));
    row("tensors", bytes(a.bytes), bytes(b.bytes), times(a.bytes, b.bytes));
}

/// `+4.12 % (95 %: +3.60 to +4.64)`
fn change(value: f64, unit: &str, interval: Option<Interval>, digits: usize) -> String {
    let interval = interval.map_or("no interval, too few".into(), |interval| {
        format!("95 %: {:+.digits$} to {:+.digits$}", interval.low, interval.high)
    });
    format!("{value:+.digits$} {unit} ({interval})")
}

fn text_rows(text: &TextComparison, row: Row<'_>) {
    let perplexity = |whose: &crate::measure::quality::summary::TextFigures| {
        with_error(whose.perplexity.value, whose.perplexity.stderr, 4)
    };
    let against = text.change.as_ref();
    row(
        "perplexity",
        perplexity(&text.parent),
        perplexity(&text.child),
        against.map_or("-".into(), |c| change(c.percent, "%", c.percent_interval, 2)),
    );
    if let (Some(a), Some(b)) = (text.parent.bits_per_byte, text.child.bits_per_byte) {
        row(
            "bits per byte",
            with_error(a.value, a.stderr, 4),
            with_error(b.value, b.stderr, 4),
            format!("{:+.2} %", 100.0 * (b.value / a.value - 1.0)),
        );
    }
    if let Some(kl) = &text.kl {
        let mean = format!("{} nats, 99 % below {:.4}", with_error(kl.mean, kl.stderr, 5), kl.p99);
        row("KL divergence", String::new(), String::new(), mean);
        let same = format!("{} %", with_error(100.0 * kl.same_top, 100.0 * kl.same_top_stderr, 2));
        row("same top token", String::new(), String::new(), same);
    }
}

fn task_rows(tasks: &TasksComparison, whose: &str, row: Row<'_>) {
    let mut add = |name: String, paired: &Paired| {
        let percent =
            |value: f64, error: f64| format!("{} %", with_error(100.0 * value, 100.0 * error, 1));
        let interval = paired.interval.map(|interval| interval.map(|end| 100.0 * end));
        row(
            &name,
            percent(paired.parent, paired.parent_stderr),
            percent(paired.child, paired.child_stderr),
            change(100.0 * paired.difference, "points", interval, 1),
        );
    };
    for task in &tasks.tasks {
        let about = format!("({} items, {} shots)", task.n, task.shots);
        add(format!("{} acc {about}{whose}", task.task), &task.acc);
        if let Some(norm) = &task.acc_norm {
            add(format!("{} acc_norm{whose}", task.task), norm);
        }
    }
    if let Some(share) = &tasks.share {
        let interval = share.interval.map_or(String::new(), |interval| {
            format!(" (95 %: {:.1} to {:.1})", 100.0 * interval.low, 100.0 * interval.high)
        });
        let value = format!("{:.1} %{interval}", 100.0 * share.value);
        row(&format!("share of the parent's quality{whose}"), String::new(), String::new(), value);
    }
}

/// Lines below the table: scope of the figures, and what is left out with the reason.
fn notes(found: &Found) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(text) = &found.text {
        let figure = &text.child.perplexity;
        notes.push(format!(
            "text: {} tokens scored, ctx {}, convention {}",
            figure.tokens_scored,
            figure.ctx,
            figure.convention.name()
        ));
        if let (Some(_), Some(a), Some(b)) =
            (&text.impossible, text.parent.bits_per_byte, text.child.bits_per_byte)
        {
            let (a, b) = (a.bytes, b.bytes);
            notes.push(format!("bits per byte: over {a} bytes of A's windows, {b} of B's"));
        }
        notes.extend(text.impossible.iter().map(|why| format!("not possible: {why}")));
    }
    if let Some(tasks) = &found.tasks {
        notes.extend(about_tasks("", tasks));
    }
    for (file, tasks) in &found.predictions {
        notes.extend(about_tasks(&format!("{file}: "), tasks));
    }
    notes
}

/// Tasks and items that the comparison leaves out, with the reason.
fn about_tasks(whose: &str, tasks: &TasksComparison) -> Vec<String> {
    let mut notes = Vec::new();
    if !tasks.at_chance.is_empty() {
        let names = tasks.at_chance.join(", ");
        notes.push(format!(
            "{whose}left out of the share, the parent is within two standard errors of chance: {names}"
        ));
    }
    if !tasks.unpaired.is_empty() {
        let names = tasks.unpaired.join(", ");
        notes.push(format!("{whose}not compared, only one side has them: {names}"));
    }
    for task in tasks.tasks.iter().filter(|task| task.unpaired > 0) {
        let (name, count) = (&task.task, task.unpaired);
        notes
            .push(format!("{whose}{name}: {count} items that only one side answered are left out"));
    }
    notes
}
