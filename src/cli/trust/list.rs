//! `lopper verify --list`: the cases that would run, without any adapter.

use serde_json::json;

use crate::cli::output::Output;
use crate::error::{Error, Result};
use crate::gpu::Capabilities;
use crate::kernels::TABLE;
use crate::measure::trust::verify::{RandomCases, Selection};

/// Prints each selected case, a line each, as `--kernel` takes it.
pub(super) fn list(selection: &Selection, random: RandomCases, output: &Output) -> Result<()> {
    let (mut rows, mut kernels) = (Vec::new(), 0);
    for kernel in TABLE.iter().copied() {
        let before = rows.len();
        for variant in (kernel.variants)() {
            let cases = selection.cases(kernel, &variant, random).into_iter();
            rows.extend(cases.map(|(text, case)| {
                json!({"kernel": kernel.name, "variant": variant.label(), "case": case.label, "text": text})
            }));
        }
        kernels += usize::from(rows.len() > before);
    }
    if rows.is_empty() {
        return Err(Error::Argument {
            argument: "--kernel".into(),
            expected: "a selection that has cases".into(),
            found: "none".into(),
        });
    }
    output.json(&json!({"schema": 1, "cases": rows}))?;
    for row in &rows {
        output.line(row["text"].as_str().unwrap_or_default());
    }
    output.line(format!(
        "\n{} cases of {kernels} kernels; each adapter and tier runs those that it can",
        rows.len()
    ));
    Ok(())
}

/// How many of the selected cases a device with these capabilities runs.
pub(super) fn count(selection: &Selection, random: RandomCases, has: Capabilities) -> usize {
    let variants = |kernel: &'static crate::device::Kernel| {
        let runs = (kernel.variants)().into_iter().filter(|variant| variant.runs_on(has));
        runs.map(|variant| selection.cases(kernel, &variant, random).len()).sum::<usize>()
    };
    TABLE.iter().copied().map(variants).sum()
}
