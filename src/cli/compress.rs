//! `lopper compress`: the main job.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::Global;
use super::output::{Output, bytes, table};
use super::session::{calibration_compute, compute, open_device, open_model, report_device};
use crate::disk;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::ExportFormat;
use crate::plan::{Plan, Written};
use crate::recipe::{EMBEDDED, Evaluate, Export, Recipe};
use crate::run::{Event, Figures, Manifest, Options, Place, StageReport, check, run as run_plan};
use crate::stages::{RecipeStage, titled};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A recipe file (TOML); without one, the embedded recipe
    recipe: Option<PathBuf>,
    /// Use this model instead of the recipe's
    #[arg(long)]
    model: Option<String>,
    /// The file is a sweep: recipes that differ in a value, each measured beside the parent
    #[arg(long, requires = "recipe")]
    sweep: bool,
    #[command(flatten)]
    common: Common,
}

/// Flags of every command that runs a plan.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Folder of the result
    #[arg(long, default_value = "lopper-out")]
    pub(super) out: PathBuf,
    /// Check all that the run would, print the plan and stop
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Continue an interrupted run from its work folder, OUT.work; begin if there is none
    #[arg(long)]
    pub(super) resume: bool,
    /// Leave the work folder, with the result of every stage, when all is done
    #[arg(long)]
    pub(super) keep_work: bool,
    /// Print the recipe and stop
    #[arg(long)]
    pub(super) print_recipe: bool,
}

/// What a command with one stage measures before and after it, and writes.
#[derive(Debug, clap::Args)]
pub(super) struct Measuring {
    #[command(flatten)]
    evaluate: Evaluate,
    /// Measure nothing
    #[arg(long)]
    no_eval: bool,
    /// What is written (default: the format of the model's own files, and packed where it cannot hold the result)
    #[arg(long, value_enum, value_delimiter = ',')]
    formats: Option<Vec<ExportFormat>>,
}

/// Plans, shows or runs a recipe of a command's stages.
pub(super) fn execute_stage(
    global: &Global,
    model: &str,
    stage: Vec<RecipeStage>,
    measuring: &Measuring,
    common: &Common,
    output: &Output,
) -> Result<()> {
    stage.iter().try_for_each(check_numbers)?;
    let recipe = Recipe {
        model: model.into(),
        seed: global.seed.unwrap_or(0),
        stage,
        evaluate: (!measuring.no_eval).then(|| measuring.evaluate.clone()),
        export: Export { formats: measuring.formats.clone() },
    };
    execute(global, &recipe, &recipe.to_toml(), common, output).map_err(of_flag)
}

/// An error that names the flag of a number that no recipe can hold: JSON has nothing in its place.
fn check_numbers(stage: &RecipeStage) -> Result<()> {
    fn lacks(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(values) => values.iter().any(lacks),
            Value::Object(map) => map.values().any(lacks),
            _ => false,
        }
    }
    match stage.keys().iter().find(|(_, value)| lacks(value)) {
        None => Ok(()),
        Some((key, _)) => Err(Error::Argument {
            argument: format!("--{}", key.replace('_', "-")),
            expected: "a finite number".into(),
            found: "one that is not".into(),
        }),
    }
}

/// An error of a recipe that was made of flags names the flag.
pub(super) fn of_flag(error: Error) -> Error {
    match error {
        Error::Key { path, key, expected, found } if path == Path::new("recipe") => {
            let flag = key.rsplit('.').next().unwrap_or_default().replace('_', "-");
            Error::Argument { argument: format!("--{flag}, `{key}`"), expected, found }
        }
        error => error,
    }
}

/// An error of a recipe's value names the file, and the line if it is the only one with that key.
fn in_file(error: Error, file: &Path, text: &str) -> Error {
    let Error::Key { path, key, expected, found } = error else {
        return error;
    };
    if path != Path::new("recipe") {
        return Error::Key { path, key, expected, found };
    }
    let name = key.rsplit('.').next().unwrap_or_default();
    let has = |line: &str| line.split_once('=').is_some_and(|(left, _)| left.trim() == name);
    let mut lines = text.lines().enumerate().filter(|(_, line)| has(line));
    let key = match (lines.next(), lines.next()) {
        (Some((number, line)), None) => {
            format!("{key}` in line {}, `{}", number + 1, line.trim())
        }
        _ => key,
    };
    Error::Key { path: file.into(), key, expected, found }
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let (path, mut text) = match &arguments.recipe {
        Some(path) => (path.as_path(), disk::read_string(path, disk::SETTINGS)?),
        None => (Path::new("embedded recipe"), EMBEDDED.to_string()),
    };
    if arguments.sweep {
        return super::sweep::run(
            global,
            (path, text),
            arguments.model.as_deref(),
            &arguments.common,
            output,
        );
    }
    let mut recipe = Recipe::parse(path, &text)?;
    if arguments.model.is_some() || global.seed.is_some() {
        recipe.model = arguments.model.clone().unwrap_or(recipe.model);
        recipe.seed = global.seed.unwrap_or(recipe.seed);
        text = recipe.to_toml();
    }
    let result = execute(global, &recipe, &text, &arguments.common, output);
    result.map_err(|error| in_file(error, path, &text))
}

/// Plans, shows or runs a recipe.
pub(super) fn execute(
    global: &Global,
    recipe: &Recipe,
    text: &str,
    common: &Common,
    output: &Output,
) -> Result<()> {
    if common.print_recipe {
        output.text(text);
        return output.json(&json!({"schema": 1, "recipe": recipe}));
    }
    let parent = open_model(&recipe.model, output)?;
    let mut plan = Plan::new(recipe, &parent)?;
    let place = Place {
        out: &common.out,
        force: output.force(),
        resume: common.resume,
        keep_work: common.keep_work,
    };
    place.check(&parent)?;
    let device = open_device(global, output)?;
    if device.gpu().is_some() {
        plan.check_budget(global.vram_budget)?;
    }
    plan.foresee(&parent, &mut |done, total| {
        output.progress("looking for values that f16 does not hold", done, total);
        interrupt::check()
    })?;
    if common.dry_run {
        let found = check(recipe, &plan, &parent, place)?;
        for warning in &found.warnings {
            output.note(format!("warning: {warning}"));
        }
        output.json(&json!({"schema": 1, "model": recipe.model, "plan": plan}))?;
        show_plan(&plan, output);
        return Ok(());
    }
    for warning in &plan.warnings {
        output.note(format!("warning: {warning}"));
    }
    let start = Instant::now();
    let options = Options {
        recipe_text: text,
        place,
        compute: compute(global, &device)?,
        calibration: calibration_compute(global, &device)?,
        training: compute(global, &device)?,
        budget: global.vram_budget.filter(|_| device.gpu().is_some()),
    };
    let mut listen = |event: Event<'_>| match event {
        Event::Progress { step, done, total } => output.progress(step, done, total),
        Event::Warning { text } => output.note(format!("warning: {text}")),
        Event::Resumed { stage } => output.note(format!("note: {stage} was whole already")),
        Event::Measured { whose, perplexity } => tracing::info!("{whose}: {perplexity}"),
    };
    let manifest = run_plan(recipe, &plan, &parent, &device, options, &mut listen)?;
    let manifest_json =
        serde_json::to_value(&manifest).expect("a manifest is plain tables and values");
    output.json(&manifest_json)?;
    show_result(&manifest, &common.out, start.elapsed().as_secs_f64(), output);
    report_device(global, &device, output, start.elapsed())
}

fn show_plan(plan: &Plan, output: &Output) {
    let mut rows = vec![
        ["tensor", "shape", "from", "bytes", "becomes", "bytes", "gguf"].map(String::from).to_vec(),
    ];
    for line in &plan.tensors {
        rows.push(vec![
            line.name.clone(),
            format!("{:?}", line.shape),
            line.source.clone(),
            line.source_bytes.to_string(),
            line.decision.clone(),
            line.output_bytes.to_string(),
            line.gguf.into(),
        ]);
    }
    output.text(&table(&rows));
    let about = if plan.estimated { ", about" } else { "" };
    output.line(format!("\n{:.1} M parameters{about}", plan.parameters as f64 / 1e6));
    output.text(&sizes((plan.stored_file_bytes, plan.f16_bytes), &plan.exports));
    if plan.stages.len() > 1 {
        let stages = plan.stages.iter().enumerate().map(|(index, stage)| {
            vec![
                format!("{} {}", index + 1, titled(stage.name, stage.round)),
                stage.parameters.to_string(),
                stage.output_bytes.to_string(),
                stage.peak_device_bytes.to_string(),
            ]
        });
        let head = ["stage", "parameters", "bytes after it", "device bytes"];
        let mut rows = vec![head.map(String::from).to_vec()];
        rows.extend(stages);
        output.text(&format!("\n{}", table(&rows)));
    }
    if plan.output_parameters != plan.parameters {
        output.line(format!(
            "{:.2} M parameters are left ({:.2} %), {:.1} of {:.1} MFLOP a token in products",
            plan.output_parameters as f64 / 1e6,
            100.0 * plan.output_parameters as f64 / plan.parameters as f64,
            plan.output_flops_per_token as f64 / 1e6,
            plan.flops_per_token as f64 / 1e6,
        ));
    }
    output.line(format!(
        "\npeak device memory {}, peak host memory {}, {} on the disk until it is done, about {} submits",
        bytes(plan.peak_device_bytes),
        bytes(plan.peak_host_bytes),
        bytes(plan.work_bytes),
        plan.estimated_submits,
    ));
    for warning in &plan.warnings {
        output.line(format!("warning: {warning}"));
    }
}

/// Files beside the parent's as they are and beside its weights in f16.
fn sizes((stored, f16): (u64, u64), exports: &[Written]) -> String {
    let head = ["", "file bytes", "", "of the parent's", "of its weights in f16"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut row = |name: &str, count: u64, of_stored: f64, of_f16: f64| {
        let (exact, short) = (count.to_string(), bytes(count));
        rows.push(vec![name.into(), exact, short, percent(of_stored), percent(of_f16)]);
    };
    row("parent", stored, 1.0, stored as f64 / f16.max(1) as f64);
    for export in exports {
        row(&export.path, export.bytes, export.of_stored, export.of_f16);
    }
    table(&rows)
}

/// What a stage tried, and what it took.
fn show_details(details: &Value, output: &Output) {
    let number = |value: &Value, digits: usize| {
        value.as_f64().map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    if let Some(tried) = details["candidates"].as_array() {
        let head = ["shape", "parameters", "bytes", "MFLOP", "importance", "perplexity", ""];
        let mut rows = vec![head.map(String::from).to_vec()];
        for (place, one) in tried.iter().enumerate() {
            let chosen = details["chosen"].as_u64() == Some(place as u64);
            rows.push(vec![
                one["shape"].as_str().unwrap_or_default().replace(',', " "),
                one["parameters"].to_string(),
                one["bytes"].to_string(),
                format!("{:.2}", one["flops_per_token"].as_f64().unwrap_or(0.0) / 1e6),
                number(&one["importance_kept"], 3),
                number(&one["perplexity"], 3),
                if chosen { "taken".into() } else { String::new() },
            ]);
        }
        output.line(format!(
            "tried of {} shapes within {}, on {} tokens held out:",
            details["within"],
            details["target"].as_str().unwrap_or_default(),
            details["held_out_tokens"],
        ));
        output.text(&table(&rows));
        output.line("");
    }
    if let Some(ingredients) = details["ingredients"].as_array() {
        let head = ["model", "perplexity alone", "of the soup with it", ""];
        let mut rows = vec![head.map(String::from).to_vec()];
        for one in ingredients {
            rows.push(vec![
                one["model"].as_str().unwrap_or_default().into(),
                number(&one["alone"], 4),
                number(&one["soup"], 4),
                if one["taken"] == true { "taken".into() } else { String::new() },
            ]);
        }
        output.line(format!("tried on {}:", details["text"].as_str().unwrap_or_default()));
        output.text(&table(&rows));
        output.line("");
    }
    if let Some(steps) = details["steps"].as_array() {
        let by = details["depth_by"].as_str().unwrap_or_default();
        for step in steps {
            let gone = step["gone"].as_array().into_iter().flatten();
            let gone: Vec<String> = gone.map(Value::to_string).collect();
            let into = match step.get("into") {
                Some(into) => format!("merged into {into}"),
                None => "left out".into(),
            };
            let cost = number(&step["cost"], 4);
            output.line(format!("block {}: {into}, by {by} ({cost})", gone.join(", ")));
        }
        output.line("");
    }
}

/// What each round of a repetition left, and what it took.
fn show_rounds(manifest: &Manifest, output: &Output) {
    let mut rounds: Vec<(usize, &[StageReport])> = Vec::new();
    // The next repetition begins with round 1 again.
    for stages in manifest.stages.chunk_by(|a, b| a.round == b.round) {
        if let Some(round) = stages[0].round {
            rounds.push((round, stages));
        }
    }
    if rounds.is_empty() {
        return;
    }
    let head =
        ["round", "parameters", "share", "tensors", "perplexity", "tokens trained", "held out"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let whole = manifest.parent.parameters.max(1) as f64;
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let mut row = |name: String, figures: &Figures, tokens: Option<u64>, held_out: Option<f64>| {
        rows.push(vec![
            name,
            figures.parameters.to_string(),
            format!("{:.1} %", 100.0 * figures.parameters as f64 / whole),
            bytes(figures.bytes),
            number(figures.perplexity.as_ref().map(|perplexity| perplexity.value)),
            tokens.map_or("-".into(), |tokens| tokens.to_string()),
            number(held_out),
        ]);
    };
    row("parent".into(), &manifest.parent, None, None);
    for (round, stages) in rounds {
        let learned = || stages.iter().filter_map(|stage| stage.learned);
        let tokens = learned().next().map(|_| learned().map(|learned| learned.tokens).sum());
        let held_out = learned().next_back().and_then(|learned| learned.held_out);
        row(round.to_string(), &stages[stages.len() - 1].figures, tokens, held_out);
    }
    output.text(&table(&rows));
    output.line("");
}

fn show_result(manifest: &Manifest, out: &Path, seconds: f64, output: &Output) {
    let mut rows = vec![
        ["", "parameters", "tensors", "MFLOP a token", "perplexity"].map(String::from).to_vec(),
    ];
    let row = |name: &str, figures: &Figures| {
        let perplexity = figures.perplexity.as_ref().map_or("not measured".into(), |p| {
            format!(
                "{:.3} ± {:.3} (ctx {}, {} tokens scored)",
                p.value, p.stderr, p.ctx, p.tokens_scored
            )
        });
        vec![
            name.to_string(),
            figures.parameters.to_string(),
            bytes(figures.bytes),
            format!("{:.2}", figures.flops_per_token as f64 / 1e6),
            perplexity,
        ]
    };
    rows.push(row("parent", &manifest.parent));
    let title = |stage: &StageReport| titled(&stage.name, stage.round);
    rows.extend(manifest.stages.iter().map(|stage| row(&title(stage), &stage.figures)));
    output.text(&table(&rows));
    output.line("");
    show_rounds(manifest, output);
    for stage in &manifest.stages {
        if let Some(details) = &stage.details {
            show_details(details, output);
        }
        if let Some(nonzero) = stage.figures.nonzero {
            let all = stage.figures.parameters;
            let share = 100.0 * nonzero as f64 / all.max(1) as f64;
            output.line(format!(
                "{}: {nonzero} of {all} parameters are not zero ({share:.2} %)",
                title(stage)
            ));
        }
        let Some(error) = stage.figures.weight_error else { continue };
        let text =
            if error == 0.0 { "0 (reproduced exactly)".into() } else { format!("{error:.3e}") };
        output.line(format!(
            "{}: weights changed by {text} (squared error over squared weights)",
            title(stage)
        ));
    }
    let parent = &manifest.parent;
    let stored = parent.file_bytes.unwrap_or(parent.bytes);
    output.text(&sizes((stored, parent.bytes_f16), &manifest.exports));
    if let Some(stage) = manifest.stages.last() {
        let figures = &stage.figures;
        if let (Some(before), Some(after)) = (&manifest.parent.perplexity, &figures.perplexity) {
            let change = 100.0 * (after.value / before.value - 1.0);
            output
                .line(format!("perplexity {change:+.2} %, convention {}", after.convention.name()));
        }
    }
    output.line(format!(
        "\nwritten to {} in {seconds:.1} s on {}:",
        out.display(),
        manifest.device
    ));
    for file in &manifest.outputs {
        output.line(format!("  {:40} {}", file.path, bytes(file.bytes)));
    }
    output.line("  manifest.json");
}
