//! Rows of a bench: the timings they are made of, and the columns that all have.

use serde_json::{Map, Value};

use crate::cli::output::Output;
use crate::device::{Runner, Variant};
use crate::error::Result;
use crate::gpu::backend_name;
use crate::kernels::TABLE;
use crate::measure::speed::kernels::{Ceilings, Timing, time};

/// Every variant of the selected kernels that the device runs, on every shape.
pub(super) fn timings(
    runner: &Runner,
    selected: impl Fn(&str, &str, &Variant) -> bool,
    ceilings: Option<Ceilings>,
    output: &Output,
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
        output.progress(&format!("timing {}", kernel.name), done, work.len());
        rows.extend(time(runner, kernel, variant, case, ceilings)?);
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
