//! `lopper bench --compare A B`: two runs side by side, with the noise judged.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::cli::output::{Output, table};
use crate::disk;
use crate::error::{Error, Result};

/// Keys that identify a row, of hardware, kernels and models.
const KEYS: &[&str] = &["what", "kernel", "variant", "shape", "model_type", "test", "compute"];

/// Those of products by type or by engine, whose quickest kernel is a result; and of tuned products.
const PRODUCT_KEYS: &[&str] = &["weight", "engine", "shape", "tokens", "class"];

/// A figure of a row: its value, its spread if that was measured, and whether more is better.
struct Figure {
    value: f64,
    spread: Option<f64>,
    more_is_better: bool,
    unit: String,
}

pub(super) fn run(paths: &[std::path::PathBuf], output: &Output) -> Result<()> {
    let [before, after] = paths else {
        let found = format!("{} files", paths.len());
        return Err(Error::Argument {
            argument: "--compare".into(),
            expected: "two files".into(),
            found,
        });
    };
    let (before, after) = (read(before)?, read(after)?);
    let mut lines =
        vec![["", "before", "after", "unit", "change", "judgement"].map(String::from).to_vec()];
    let mut rows = Vec::new();
    for new in &after {
        let Some(old) = before.iter().find(|old| name(old) == name(new)) else {
            continue;
        };
        let (Some(a), Some(b)) = (figure(old), figure(new)) else {
            continue;
        };
        let change = 100.0 * (b.value / a.value - 1.0);
        // Spreads are half the distance between quartiles, or a standard deviation: two of each are rarely left by luck.
        let noise = a.spread.zip(b.spread).map(|(a, b)| 2.0 * (a + b));
        let apart = (b.value - a.value).abs();
        let judgement = match noise {
            _ if apart == 0.0 => "the same",
            None => "noise not measured",
            Some(noise) if apart <= noise => "within noise",
            _ if (change > 0.0) == a.more_is_better => "better",
            _ => "worse",
        };
        rows.push(json!({
            "row": name(new), "before": a.value, "after": b.value, "unit": a.unit, "change_percent": change,
            "noise": noise, "judgement": judgement,
        }));
        lines.push(vec![
            name(new),
            format!("{:.4}", a.value),
            format!("{:.4}", b.value),
            a.unit,
            format!("{change:+.1} %"),
            judgement.into(),
        ]);
    }
    if rows.is_empty() {
        return Err(Error::Argument {
            argument: "--compare".into(),
            expected: "two runs of the same bench".into(),
            found: "no row that is in both".into(),
        });
    }
    output.json(&json!({"schema": 1, "rows": rows}))?;
    output.text(&table(&lines));
    output.line(format!(
        "\n{} rows in both, {} of {} only in one",
        rows.len(),
        before.len().abs_diff(rows.len()) + after.len().abs_diff(rows.len()),
        before.len() + after.len()
    ));
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = disk::read_json(path, disk::LIST)?;
    serde_json::from_slice(&text).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "bench results".into(),
        offset: None,
        expected: "an array of rows, as --json writes it".into(),
        found: error.to_string(),
    })
}

fn name(row: &Map<String, Value>) -> String {
    let product = ["weight", "class"].iter().any(|key| row.contains_key(*key));
    let keys = if product { PRODUCT_KEYS } else { KEYS };
    let part = |key: &&str| match row.get(*key)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(format!("{number} {key}")),
        _ => None,
    };
    keys.iter().filter_map(part).collect::<Vec<_>>().join(" ")
}

fn figure(row: &Map<String, Value>) -> Option<Figure> {
    let number = |key: &str| row.get(key).and_then(Value::as_f64);
    let new = |value: &str, spread: &str, more_is_better: bool, unit: &str| {
        let (value, spread) = (number(value)?, number(spread));
        Some(Figure { value, spread, more_is_better, unit: unit.into() })
    };
    if let Some(unit) = row.get("unit").and_then(Value::as_str) {
        // Rates end in a time; costs are times.
        return new("value", "spread", unit.contains("/s"), unit);
    }
    let time = new("us", "us_spread", false, "us");
    time.or_else(|| new("avg_ts", "stddev_ts", true, "t/s"))
        .or_else(|| new("winner_us", "winner_us_spread", false, "us"))
}
