//! `lopper mutate` (hidden): how many mutants of each shader the case table kills. For those who write kernels.

use std::process::{Command, Stdio};

use serde_json::json;

use super::Global;
use super::output::{Output, table};
use crate::device::{Kernel, compose};
use crate::error::{Error, Result};
use crate::gpu::{Access, Shader, check_limits};
use crate::interrupt;
use crate::kernels::TABLE;
use crate::measure::mutate::mutants;
use crate::measure::verify::Selection;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Kernels to mutate: a pattern of names
    #[arg(long, value_name = "GLOB")]
    kernel: Option<String>,
    /// Seconds that a mutant's case may take before it counts as killed: it hangs
    #[arg(long, default_value_t = 20)]
    case_timeout: u64,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let selection = Selection::new(arguments.kernel.as_deref())?;
    let mut rows = vec![
        ["kernel", "mutants", "killed", "rate"]
            .map(String::from)
            .to_vec(),
    ];
    let (mut total, mut killed, mut all_survivors) = (0, 0, Vec::new());
    for kernel in TABLE
        .iter()
        .copied()
        .filter(|kernel| selection.names_kernel(kernel.name))
    {
        let (count, survivors) = score(global, arguments, kernel, output)?;
        let dead = count - survivors.len();
        rows.push(vec![
            kernel.name.into(),
            count.to_string(),
            dead.to_string(),
            percent(dead, count),
        ]);
        all_survivors.extend(survivors.into_iter().map(|change| (kernel.name, change)));
        (total, killed) = (total + count, killed + dead);
    }
    rows.push(vec![
        "all".into(),
        total.to_string(),
        killed.to_string(),
        percent(killed, total),
    ]);
    output.json(
        &json!({"schema": 1, "mutants": total, "killed": killed, "survivors": all_survivors}),
    )?;
    output.text(&table(&rows));
    for (kernel, change) in &all_survivors {
        output.line(format!("survives: {kernel} {change}"));
    }
    Ok(())
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.0} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// Mutants that compile, and those among them that every case lets pass.
fn score(
    global: &Global,
    arguments: &Arguments,
    kernel: &Kernel,
    output: &Output,
) -> Result<(usize, Vec<String>)> {
    let folder = tempfile::tempdir().map_err(Error::write("a temporary folder"))?;
    let path = folder.path().join("mutant.wgsl");
    let mutants: Vec<_> = mutants(kernel.source)
        .into_iter()
        .filter(|mutant| compiles(kernel, &mutant.source))
        .collect();
    let mut survivors = Vec::new();
    for (done, mutant) in mutants.iter().enumerate() {
        interrupt::check()?;
        output.progress(kernel.name, done, mutants.len());
        std::fs::write(&path, &mutant.source).map_err(Error::write(&path))?;
        let program = std::env::current_exe().map_err(Error::read("this program"))?;
        let mut command = Command::new(program);
        command
            .args([
                "verify",
                "--tier",
                "baseline",
                "--fail-fast",
                "--kernel",
                kernel.name,
                "--shader",
            ])
            .arg(&path);
        command.args(["--case-timeout", &arguments.case_timeout.to_string()]);
        if let Some(adapter) = &global.adapter {
            command.args(["--adapter", adapter]);
        }
        if let Some(backend) = &global.backend {
            command.args(["--backend", backend]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = command.status().map_err(Error::read("verify"))?;
        if status.success() {
            survivors.push(mutant.change.clone());
        }
    }
    Ok((mutants.len(), survivors))
}

fn compiles(kernel: &Kernel, source: &str) -> bool {
    let Some(variant) = (kernel.variants)()
        .into_iter()
        .find(|v| !v.uses_f16() && !v.subgroups)
    else {
        return false;
    };
    let accesses: Vec<Access> = kernel
        .bindings
        .iter()
        .map(|binding| binding.access)
        .collect();
    let shader = Shader {
        kernel: kernel.name,
        variant: "mutant",
        source: &compose(source, &variant),
        bindings: &accesses,
        overrides: kernel.overrides,
    };
    check_limits(&shader, &wgpu::Limits::default()).is_ok()
}
