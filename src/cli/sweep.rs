//! `lopper compress SWEEP --sweep`: what is left by many recipes, beside the parent, as a table and a plot.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::Global;
use super::compress::Common;
use super::output::{Output, table};
use super::session::{calibration_compute, compute, open_device, open_model, report_device};
use crate::error::{Error, Result};
use crate::measure::quality::statistics::mean_and_error;
use crate::plan::Plan;
use crate::plot::{Axis, HEIGHT, Line, Mark, Panel, plot};
use crate::recipe::Sweep;
use crate::run::sweep::{Row, Sweeping, run as run_sweep};
use crate::run::{Event, Options, Place};

pub(super) fn run(
    global: &Global,
    (path, mut text): (&Path, String),
    model: Option<&str>,
    common: &Common,
    output: &Output,
) -> Result<()> {
    let mut sweep = Sweep::parse(path, &text)?;
    if model.is_some() || global.seed.is_some() {
        sweep.model = model.map_or(sweep.model, str::to_string);
        sweep.seed = global.seed.unwrap_or(sweep.seed);
        text = toml::to_string_pretty(&sweep).expect("a sweep is plain tables and values");
    }
    let points = sweep.points(path)?;
    if common.print_recipe {
        for point in &points {
            let value = point.value.as_deref().unwrap_or("");
            output.line(format!("# {} {value}, draw {}", point.case, point.draw + 1));
            output.line(point.recipe.to_toml());
        }
        output.line(format!("# {} recipes", points.len()));
        let recipes: Vec<_> = points.iter().map(|point| &point.recipe).collect();
        return output.json(&json!({"schema": 1, "recipes": recipes}));
    }
    let parent = open_model(&sweep.model, output)?;
    let place = Place {
        out: &common.out,
        force: output.force(),
        resume: common.resume,
        keep_work: common.keep_work,
    };
    place.check(&parent)?;
    if common.dry_run {
        let mut rows =
            vec![["case", "value", "draw", "parameters", "bytes"].map(String::from).to_vec()];
        for point in &points {
            let value = point.value.clone().unwrap_or_default();
            let mut row = vec![point.case.clone(), value, (point.draw + 1).to_string()];
            match Plan::new(&point.recipe, &parent) {
                Ok(plan) => {
                    row.push(plan.output_parameters.to_string());
                    row.push(plan.output_bytes.to_string());
                }
                Err(why) => row.push(format!("not run: {why}")),
            }
            rows.push(row);
        }
        output.text(&table(&rows));
        return output.json(&json!({"schema": 1, "model": sweep.model, "rows": rows}));
    }
    let device = open_device(global, output)?;
    let options = Options {
        recipe_text: &text,
        place,
        compute: compute(global, &device)?,
        calibration: calibration_compute(global, &device)?,
        training: compute(global, &device)?,
        budget: global.vram_budget.filter(|_| device.gpu().is_some()),
    };
    let start = Instant::now();
    output.begin(json!({"schema": 1, "model": sweep.model, "rows": []}), |_| String::new());
    let mut found = |row: &Row| {
        output.line(line(row));
        output.add(|json| {
            if let Some(rows) = json["rows"].as_array_mut() {
                rows.push(json!(row));
            }
        })
    };
    let mut listen = |event: Event<'_>| match event {
        Event::Progress { step, done, total } => output.progress(step, done, total),
        Event::Warning { text } => output.note(format!("warning: {text}")),
        Event::Resumed { stage } => output.note(format!("note: {stage} was whole already")),
        Event::Measured { .. } => {}
    };
    let parent_bytes = 2 * parent.parameters();
    let write = |folder: &Path, rows: &[Row]| {
        let put = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(Error::write(&path))
        };
        put("sweep.md", &markdown(rows, parent_bytes))?;
        put("sweep.svg", &plot(&panels(rows, parent_bytes)))
    };
    let sweeping = Sweeping { path, text: &text, options };
    let rows = run_sweep(&sweep, &parent, &device, sweeping, &mut found, &mut listen, &write)?;
    let json: Value = output.finish();
    output.line(String::new());
    output.text(&table(&means(&rows, parent_bytes)));
    output.line(format!("\n{}: sweep.md, sweep.svg, sweep.json", common.out.display()));
    output.json(&json)?;
    report_device(global, &device, output, start.elapsed())
}

/// A row as it is found.
fn line(row: &Row) -> String {
    let name = [Some(row.case.clone()), row.value.clone()].into_iter().flatten();
    let name = format!("{}, draw {}", name.collect::<Vec<_>>().join(" "), row.draw + 1);
    if let Some(why) = &row.refused {
        return format!("{name}: not run: {why}");
    }
    let texts =
        row.texts.iter().map(|on| format!("perplexity {:.3}, KL {:.4}", on.perplexity, on.kl));
    format!(
        "{name}: {} of {} weights, {} in {:.1} s",
        row.nonzero,
        row.parameters,
        texts.collect::<Vec<_>>().join("; "),
        row.seconds
    )
}

/// Draws of one case and value, in the order in which they were run.
fn grouped(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        let same = |of: &&mut Vec<&Row>| of[0].case == row.case && of[0].value == row.value;
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// The mean of some draws and their standard deviation, where there are several.
fn spread(values: &[f64]) -> (f64, Option<f64>) {
    let (mean, error) = mean_and_error(values);
    (mean, (values.len() > 1).then(|| error * (values.len() as f64).sqrt()))
}

fn with_spread(values: &[f64], digits: usize) -> String {
    match spread(values) {
        (mean, None) => format!("{mean:.digits$}"),
        (mean, Some(deviation)) => format!("{mean:.digits$} ± {deviation:.digits$}"),
    }
}

/// A row for each case and value: sizes, and of each text the mean over the draws with their standard deviation.
fn means(rows: &[Row], parent_bytes: u64) -> Vec<Vec<String>> {
    let texts = rows.iter().map(|row| row.texts.as_slice()).find(|texts| !texts.is_empty());
    let mut head = vec!["case", "value", "draws", "weights not 0", "% of f16 bytes"];
    let names: Vec<[String; 2]> = texts
        .unwrap_or_default()
        .iter()
        .map(|on| ["perplexity", "KL"].map(|what| format!("{what}, {}", on.text)))
        .collect();
    head.extend(names.iter().flatten().map(String::as_str));
    let mut lines = vec![head.into_iter().map(String::from).collect::<Vec<_>>()];
    for group in grouped(rows) {
        let first = group[0];
        let mut line = vec![first.case.clone(), first.value.clone().unwrap_or_default()];
        if let Some(why) = &first.refused {
            line.push(format!("not run: {why}"));
            lines.push(line);
            continue;
        }
        let of =
            |value: &dyn Fn(&Row) -> f64| group.iter().map(|row| value(row)).collect::<Vec<_>>();
        let share = |row: &Row| 100.0 * row.least_bytes as f64 / parent_bytes.max(1) as f64;
        line.push(group.len().to_string());
        line.push(with_spread(&of(&|row| row.nonzero as f64), 0));
        line.push(with_spread(&of(&share), 1));
        for text in 0..first.texts.len() {
            line.push(with_spread(&of(&|row| row.texts[text].perplexity), 2));
            line.push(with_spread(&of(&|row| row.texts[text].kl), 4));
        }
        lines.push(line);
    }
    lines
}

fn markdown(rows: &[Row], parent_bytes: u64) -> String {
    let mut text = String::new();
    if let Some(texts) = rows.iter().map(|row| &row.texts).find(|texts| !texts.is_empty()) {
        for on in texts {
            text += &format!(
                "Parent on {}: perplexity {:.3} ({} tokens scored, windows of {}).\n",
                on.text, on.base_perplexity, on.tokens, on.ctx
            );
        }
    }
    text += "\nBytes are those of each tensor in f16, or of a bit a weight and the weights that are not 0 in f16, whichever is \
             less, of the parent's in f16. Means over draws of the calibration text, ± their standard deviation; KL in nats a \
             token from the parent.\n\n";
    for (place, line) in means(rows, parent_bytes).iter().enumerate() {
        let cells = line.iter().map(|cell| cell.replace('|', "\\|"));
        text += &format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        if place == 0 {
            text += &format!("|{}\n", " --- |".repeat(line.len()));
        }
    }
    text
}

/// Perplexity and divergence of each text over bytes.
fn panels(rows: &[Row], parent_bytes: u64) -> Vec<Panel> {
    let mut panels = Vec::new();
    let texts = rows.iter().map(|row| row.texts.as_slice()).find(|texts| !texts.is_empty());
    let groups = grouped(rows);
    for (text, on) in texts.unwrap_or_default().iter().enumerate() {
        for (what, value) in [
            ("perplexity", (|row, text| row_text(row, text).0) as fn(&Row, usize) -> f64),
            ("KL from the parent, nats", |row, text| row_text(row, text).1),
        ] {
            let mut lines: Vec<Line> = Vec::new();
            for group in groups.iter().filter(|group| group[0].refused.is_none()) {
                let share =
                    |row: &&Row| 100.0 * row.least_bytes as f64 / parent_bytes.max(1) as f64;
                let (x, _) = spread(&group.iter().map(share).collect::<Vec<_>>());
                let values: Vec<f64> = group.iter().map(|row| value(row, text)).collect();
                let (y, deviation) = spread(&values);
                let point = (x, y, deviation.unwrap_or(0.0));
                match lines.iter_mut().find(|line| line.name == group[0].case) {
                    Some(line) => line.points.push(point),
                    None => {
                        let name = group[0].case.clone();
                        lines.push(Line { name, mark: Mark::Measured, points: vec![point] });
                    }
                }
            }
            panels.push(Panel {
                title: format!("{what}, {}", on.text),
                across: "% of the parent's bytes in f16".into(),
                up: Axis::Logarithmic,
                height: HEIGHT,
                lines,
            });
        }
    }
    panels
}

fn row_text(row: &Row, text: usize) -> (f64, f64) {
    row.texts.get(text).map_or((f64::NAN, f64::NAN), |on| (on.perplexity, on.kl))
}
