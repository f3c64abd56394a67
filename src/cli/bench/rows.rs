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
    let mut rows = Vec::new();
    for kernel in TABLE.iter().copied() {
        for variant in (kernel.variants)() {
            if !variant.runs_on(runner.gpu().capabilities()) {
                continue;
            }
            for case in kernel.shapes(&variant) {
                if selected(kernel.name, &case.label, &variant) {
                    output.progress(&format!("timing {}", kernel.name), rows.len(), rows.len() + 1);
                    rows.extend(time(runner, kernel, &variant, &case, ceilings)?);
                }
            }
        }
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

/// Four significant digits: what a measurement is worth.
pub(super) fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}
