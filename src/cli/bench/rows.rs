//! Rows of a bench: the timings they are made of, and the columns that all have.

use std::time::Instant;

use serde_json::{Map, Value};

use super::{Format, model};
use crate::cli::output::{Output, table};
use crate::device::{Runner, Variant};
use crate::error::Result;
use crate::gpu::backend_name;
use crate::kernels::TABLE;
use crate::measure::speed::kernels::{Ceilings, Timing, time};

/// The rows of a bench. Lines of JSON go out as they come; what all rows make, when they are there or the rest was stopped.
pub(super) struct Rows<'a> {
    pub(super) output: &'a Output,
    format: Format,
    rows: Vec<Map<String, Value>>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(format: Format, output: &'a Output) -> Self {
        let text: fn(&Value) -> String = match format {
            Format::Md => markdown,
            Format::Csv => csv,
            Format::Json => |rows| format!("{rows:#}\n"),
            Format::Jsonl => |_| String::new(),
            Format::Sql => sql,
        };
        output.begin(Value::Array(Vec::new()), text);
        Self { output, format, rows: Vec::new() }
    }

    /// All that came.
    pub(super) fn all(&self) -> &[Map<String, Value>] {
        &self.rows
    }

    pub(super) fn push(&mut self, row: Map<String, Value>) -> Result<()> {
        // Every row is a record of its own, so each says what its fields mean.
        let mut json = Map::from_iter([("schema".to_string(), Value::from(1))]);
        json.extend(row.clone());
        self.rows.push(row);
        let json = Value::Object(json);
        if matches!(self.format, Format::Jsonl) {
            self.output.line(json.to_string());
        }
        self.output
            .add(|rows| rows.as_array_mut().into_iter().for_each(|rows| rows.push(json.clone())))
    }

    /// Prints what all rows make, and writes their JSON.
    pub(super) fn finish(self) -> Result<()> {
        self.output.give()
    }
}

/// The rows of an array, and the keys that any of them has.
fn columns(rows: &Value) -> (Vec<&Map<String, Value>>, Vec<&String>) {
    let rows: Vec<_> = rows.as_array().into_iter().flatten().filter_map(Value::as_object).collect();
    let mut keys: Vec<&String> = Vec::new();
    for key in rows.iter().flat_map(|row| row.keys()).filter(|key| *key != "schema") {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    (rows, keys)
}

fn exact(row: &Map<String, Value>, key: &str) -> String {
    match row.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn markdown(rows: &Value) -> String {
    let (rows, keys) = columns(rows);
    // A row of a model brings its own columns.
    if rows.iter().any(|row| row.contains_key("test")) {
        return model::markdown(&rows.into_iter().cloned().collect::<Vec<_>>());
    }
    let hidden = ["reason", "verified", "gpu_info", "backends", "driver"];
    let keys: Vec<_> = keys.into_iter().filter(|key| !hidden.contains(&key.as_str())).collect();
    let mut lines = vec![keys.iter().map(|key| key.to_string()).collect()];
    lines.extend(rows.iter().map(|row| {
        let shown = |key: &&String| row.get(*key).map_or(String::new(), shown);
        keys.iter().map(shown).collect::<Vec<_>>()
    }));
    table(&lines)
}

fn csv(rows: &Value) -> String {
    let (rows, keys) = columns(rows);
    let mut text = keys.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(",") + "\n";
    for row in rows {
        let quoted = |key: &&String| format!("\"{}\"", exact(row, key).replace('"', "\"\""));
        text += &(keys.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n");
    }
    text
}

fn sql(rows: &Value) -> String {
    let (rows, keys) = columns(rows);
    // The narrowest type that holds all of a column.
    let ty = |key: &str| {
        let values = || rows.iter().filter_map(|row| row.get(key)).filter(|v| !v.is_null());
        let whole = |v: &Value| v.is_i64() || v.is_u64() || v.is_boolean();
        match (values().all(whole), values().all(|v| whole(v) || v.is_number())) {
            _ if values().next().is_none() => "TEXT",
            (true, _) => "INTEGER",
            (_, true) => "REAL",
            _ => "TEXT",
        }
    };
    let columns: Vec<String> = keys.iter().map(|key| format!("{key} {}", ty(key))).collect();
    let mut text = format!("CREATE TABLE IF NOT EXISTS bench ({});\n", columns.join(", "));
    for row in &rows {
        let value = |key: &&String| match row.get(*key) {
            None | Some(Value::Null) => "NULL".into(),
            Some(Value::Bool(yes)) => u8::from(*yes).to_string(),
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => format!("'{}'", exact(row, key).replace('\'', "''")),
        };
        let values: Vec<String> = keys.iter().map(value).collect();
        text += &format!("INSERT INTO bench VALUES ({});\n", values.join(", "));
    }
    text
}

/// Every variant of the selected kernels that the device runs, on every shape. `tell` hears of each as it comes.
pub(super) fn timings(
    runner: &Runner,
    selected: impl Fn(&str, &str, &Variant) -> bool,
    ceilings: Option<Ceilings>,
    output: &Output,
    tell: &mut dyn FnMut(&Timing) -> Result<()>,
) -> Result<Vec<Timing>> {
    timings_until(runner, selected, (ceilings, None), output, tell)
}

/// The same; none is begun after `until`, but the first always is.
pub(super) fn timings_until(
    runner: &Runner,
    selected: impl Fn(&str, &str, &Variant) -> bool,
    (ceilings, until): (Option<Ceilings>, Option<Instant>),
    output: &Output,
    tell: &mut dyn FnMut(&Timing) -> Result<()>,
) -> Result<Vec<Timing>> {
    let mut work = Vec::new();
    for kernel in TABLE.iter().copied() {
        for variant in (kernel.variants)() {
            if !variant.runs_on(runner.gpu().capabilities()) {
                continue;
            }
            for case in kernel.shapes(&variant) {
                if selected(kernel.name, &case.label, &variant) {
                    work.push((kernel, variant.clone(), case));
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (done, (kernel, variant, case)) in work.iter().enumerate() {
        if done > 0 && until.is_some_and(|until| Instant::now() >= until) {
            output.note(format!(
                "the time is up: {done} of {} were measured, up to {}",
                work.len(),
                work[done - 1].0.name
            ));
            break;
        }
        output.progress(&format!("timing {}", kernel.name), done, work.len());
        let timing = time(runner, kernel, variant, case, ceilings)?;
        timing.iter().try_for_each(&mut *tell)?;
        rows.extend(timing);
    }
    Ok(rows)
}

/// The columns that say where a row was measured.
pub(super) fn device_columns(runner: &Runner) -> Map<String, Value> {
    let adapter = runner.gpu().adapter();
    let mut row = Map::new();
    row.insert("gpu_info".into(), adapter.info.name.clone().into());
    row.insert("backends".into(), backend_name(adapter.info.backend).into());
    row.insert("driver".into(), adapter.driver().into());
    row
}

/// A value in a table for people: counts as they are, measurements in four digits.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Number(number) if number.is_f64() => {
            let value = number.as_f64().unwrap_or(f64::NAN);
            let whole = value.fract() == 0.0 && value.abs() < 1e15;
            if whole { format!("{value}") } else { round(value).to_string() }
        }
        other => other.to_string(),
    }
}

/// Four significant digits: what a measurement is worth.
pub(super) fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}
