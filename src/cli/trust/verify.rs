//! `lopper verify`: every kernel on every adapter against the CPU reference.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use serde_json::json;

use super::verify_child::{run_child, watch};
use crate::cli::Global;
use crate::cli::output::{Output, table};
use crate::cli::session::replacement;
use crate::error::{Error, Result};
use crate::formats::replace_file;
use crate::gpu::{Adapter, Selector, Tier, adapters, backend_name, choose};
use crate::kernels::TABLE;
use crate::measure::trust::page::page;
use crate::measure::trust::verify::{RandomCases, Row, Selection, Status};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Kernels to run: a pattern of names (matmul/*), or the text of one case as a failure prints it
    #[arg(long, value_name = "GLOB")]
    pub(super) kernel: Option<String>,
    /// Tiers to run; those that an adapter lacks are listed
    #[arg(long, default_value = "all")]
    pub(super) tier: TierChoice,
    /// Cases of random shapes to try besides the table's, of each kernel and variant; --seed says which
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    pub(super) random: usize,
    /// Put this WGSL file in the place of the kernel, or of the fragment shared/NAME, that --kernel names
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(super) shader: Option<PathBuf>,
    /// Instead of running it, write the one case that --kernel names as a page that runs it in any browser with WebGPU
    #[arg(long, value_name = "FILE", requires = "kernel")]
    page: Option<PathBuf>,
    /// Seconds that one case may take before its driver counts as hung
    #[arg(long, default_value_t = 60)]
    pub(super) case_timeout: u64,
    /// Stop at the first failure
    #[arg(long)]
    pub(super) fail_fast: bool,
    /// Run as the child of another verify: cases to leave out, as a number
    #[arg(long, hide = true)]
    pub(super) child: Option<usize>,
    /// Break on purpose at this case, to try the watching: hang:N or abort:N
    #[arg(long, hide = true)]
    pub(super) inject: Option<String>,
}

impl Arguments {
    /// The user's WGSL and what it stands in for.
    pub(super) fn replacement(&self) -> Result<Option<(String, String)>> {
        replacement(self.kernel.as_deref(), self.shader.as_deref())
    }

    /// The random cases that the flags ask for.
    pub(super) fn random(&self, global: &Global) -> RandomCases {
        RandomCases {
            count: self.random,
            seed: global.seed.unwrap_or(0),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TierChoice {
    All,
    Baseline,
    F16,
    Coop,
}

pub(in crate::cli) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let selection = Selection::new(arguments.kernel.as_deref())?;
    if let Some(skip) = arguments.child {
        return run_child(global, arguments, &selection, skip);
    }
    let replacement = arguments.replacement()?;
    if let Some(path) = &arguments.page {
        return write_page(global, arguments, &selection, replacement, path, output);
    }
    let found = select_adapters(global)?;
    let mut rows = Vec::new();
    let mut summary = vec![
        [
            "adapter",
            "backend",
            "tier",
            "passed",
            "failed",
            "skipped",
            "known",
            "worst error",
            "seconds",
        ]
        .map(String::from)
        .to_vec(),
    ];
    for adapter in &found {
        for tier in [Tier::Baseline, Tier::F16, Tier::Coop] {
            if !wanted(arguments.tier, tier) {
                continue;
            }
            let start = Instant::now();
            let mut line = vec![
                adapter.info.name.clone(),
                backend_name(adapter.info.backend).to_string(),
                tier.name().to_string(),
            ];
            if !has_tier(adapter, tier) {
                line.push("absent".into());
                summary.push(line);
                continue;
            }
            let new = watch(global, arguments, adapter, tier, output)?;
            let count = |status: Status| {
                new.iter()
                    .filter(|row| row.status == status)
                    .count()
                    .to_string()
            };
            let worst = new.iter().filter_map(|row| row.error).fold(0.0, f64::max);
            line.extend([Status::Pass, Status::Fail, Status::Skip, Status::Known].map(count));
            line.push(format!("{worst:.2} of bound"));
            line.push(format!("{:.1}", start.elapsed().as_secs_f64()));
            summary.push(line);
            rows.extend(new);
        }
    }
    report(&rows, &summary, output)
}

/// Writes the page of the one selected case. Needs no adapter.
fn write_page(
    global: &Global,
    arguments: &Arguments,
    selection: &Selection,
    replacement: Option<(String, String)>,
    path: &Path,
    output: &Output,
) -> Result<()> {
    let mut found = Vec::new();
    for kernel in TABLE.iter().copied() {
        for variant in (kernel.variants)() {
            let cases = selection.cases(kernel, &variant, arguments.random(global));
            found.extend(
                cases
                    .into_iter()
                    .map(|(_, case)| (kernel, variant.clone(), case)),
            );
        }
    }
    let [(kernel, variant, case)] = found.as_slice() else {
        return Err(Error::Argument {
            argument: "--kernel".into(),
            expected:
                "with --page, the whole text of one case, as a failure prints it or --json lists it"
                    .into(),
            found: format!(
                "{}, which selects {} cases",
                arguments.kernel.as_deref().unwrap_or_default(),
                found.len()
            ),
        });
    };
    let source = replacement.as_ref().filter(|(name, _)| name == kernel.name);
    let source = source.map_or(kernel.source, |(_, text)| text.as_str());
    let html = page(kernel, variant, case, source)?;
    replace_file(path, |file| {
        file.write_all(html.as_bytes()).map_err(Error::write(path))
    })?;
    output.line(format!(
        "written: {} ({} kB)",
        path.display(),
        html.len() / 1000
    ));
    Ok(())
}

fn report(rows: &[Row], summary: &[Vec<String>], output: &Output) -> Result<()> {
    let count = |status: Status| rows.iter().filter(|row| row.status == status).count();
    output.json(&json!({
        "schema": 1, "rows": rows, "passed": count(Status::Pass), "failed": count(Status::Fail),
        "skipped": count(Status::Skip), "known": count(Status::Known),
    }))?;
    for row in rows.iter().filter(|row| row.status == Status::Fail) {
        output.line(format!(
            "FAIL {} {} ({}, {}): {}",
            row.kernel, row.case, row.adapter, row.tier, row.reason
        ));
    }
    output.text(&table(summary));
    let failed = count(Status::Fail);
    if let Some(row) = rows.iter().find(|row| row.status == Status::Fail) {
        output.note(format!(
            "to show a failure to whoever has another device: lopper verify --kernel '{} {}' --page case.html",
            row.kernel, row.case
        ));
    }
    output.line(format!(
        "\n{} passed, {failed} failed, {} skipped",
        count(Status::Pass),
        count(Status::Skip)
    ));
    if rows.is_empty() {
        return Err(Error::Argument {
            argument: "--kernel / --tier".into(),
            expected: "a selection that has cases on this machine".into(),
            found: "none".into(),
        });
    }
    if failed > 0 {
        Err(Error::CheckFailed(failed, rows.len()))
    } else {
        Ok(())
    }
}

fn wanted(choice: TierChoice, tier: Tier) -> bool {
    match choice {
        TierChoice::All => true,
        TierChoice::Baseline => tier == Tier::Baseline,
        TierChoice::F16 => tier == Tier::F16,
        TierChoice::Coop => tier == Tier::Coop,
    }
}

/// Whether opening the adapter with this tier gives more than the tier below.
fn has_tier(adapter: &Adapter, tier: Tier) -> bool {
    match tier {
        Tier::Baseline => true,
        Tier::F16 => adapter.capabilities.f16 || adapter.capabilities.subgroups,
        Tier::Coop => adapter.capabilities.cooperative_matrix > 0,
    }
}

fn select_adapters(global: &Global) -> Result<Vec<Adapter>> {
    let Selector { name, backend } = global.selector()?;
    if name.as_deref() == Some("all") {
        let found = adapters(&Selector {
            name: None,
            backend,
        });
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let name = name.filter(|name| name != "all");
    Ok(vec![choose(&Selector { name, backend }.or_environment()?)?])
}
