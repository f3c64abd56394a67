//! `lopper mutate` (hidden): how many mutants of each shader the case table kills. For those who write kernels.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::cli::Global;
use crate::cli::output::{Output, table};
use crate::device::{compose_with, fragment, fragments};
use crate::error::{Error, Result};
use crate::gpu::{Access, Shader, check_limits};
use crate::interrupt;
use crate::kernels::TABLE;
use crate::measure::trust::equivalent::EQUIVALENT;
use crate::measure::trust::mutate::{Mutant, mutants};
use crate::measure::trust::verify::Selection;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Kernels to mutate: a pattern of names
    #[arg(long, value_name = "GLOB")]
    kernel: Option<String>,
    /// Seconds that a mutant's case may take before it counts as killed: it hangs
    #[arg(long, default_value_t = 20)]
    case_timeout: u64,
    /// Try mutants on the cases that match only ('matmul/coop [*weight=f16,*'), where all would take too long
    #[arg(long, value_name = "PATTERN", requires = "kernel")]
    cases: Option<String>,
    /// Mutants tried at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
}

/// How a shader's mutants fared.
struct Score {
    shader: String,
    mutants: usize,
    equivalent: usize,
    survivors: Vec<String>,
    /// Listed as equivalent, yet killed.
    mistaken: Vec<String>,
}

pub(in crate::cli) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let selection = Selection::new(arguments.kernel.as_deref())?;
    let kernels = TABLE
        .iter()
        .filter(|kernel| selection.names_kernel(kernel.name))
        .map(|kernel| (kernel.name.to_string(), kernel.source));
    let shared =
        fragments().map(|(name, text)| (format!("shared/{name}"), text)).filter(|(name, _)| {
            let pattern = arguments.kernel.as_deref().unwrap_or("*");
            glob::Pattern::new(pattern).is_ok_and(|pattern| pattern.matches(name))
        });
    let shaders: Vec<(String, &str)> = kernels.chain(shared).collect();
    let fits = |cases: &String| {
        let name = cases.split(" [").next();
        shaders.len() == 1 && name == shaders.first().map(|shader| shader.0.as_str())
    };
    if let Some(cases) = arguments.cases.as_ref().filter(|cases| !fits(cases)) {
        return Err(Error::Argument {
            argument: "--cases".into(),
            expected: "cases of the one kernel that --kernel names".into(),
            found: cases.clone(),
        });
    }
    let mut scores = Vec::new();
    for (name, source) in shaders {
        scores.push(score(global, arguments, &name, source, output)?);
    }
    report(&scores, output)
}

fn report(scores: &[Score], output: &Output) -> Result<()> {
    let sum = |of: fn(&Score) -> usize| scores.iter().map(of).sum::<usize>();
    let (mutants, equivalent) = (sum(|s| s.mutants), sum(|s| s.equivalent));
    let survivors = sum(|s| s.survivors.len());
    let row = |name: &str, mutants: usize, equivalent: usize, survivors: usize| {
        let killed = mutants - equivalent - survivors;
        vec![
            name.to_string(),
            mutants.to_string(),
            killed.to_string(),
            equivalent.to_string(),
            survivors.to_string(),
            percent(killed, mutants - equivalent),
            percent(killed, mutants),
        ]
    };
    let mut rows = vec![
        ["shader", "mutants", "killed", "equivalent", "survive", "rate", "of all mutants"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(scores.iter().map(|s| row(&s.shader, s.mutants, s.equivalent, s.survivors.len())));
    rows.push(row("all", mutants, equivalent, survivors));
    let named = |of: fn(&Score) -> &Vec<String>| -> Vec<String> {
        let each =
            |s: &Score| of(s).iter().map(|text| format!("{} {text}", s.shader)).collect::<Vec<_>>();
        scores.iter().flat_map(each).collect()
    };
    let (alive, mistaken) = (named(|s| &s.survivors), named(|s| &s.mistaken));
    output.json(&json!({
        "schema": 1, "mutants": mutants, "equivalent": equivalent,
        "killed": mutants - equivalent - survivors, "survivors": alive, "mistaken": mistaken,
    }))?;
    output.text(&table(&rows));
    alive.iter().for_each(|text| output.line(format!("survives: {text}")));
    mistaken
        .iter()
        .for_each(|text| output.line(format!("listed as equivalent, but killed: {text}")));
    if mistaken.is_empty() { Ok(()) } else { Err(Error::CheckFailed(mistaken.len(), mutants)) }
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// Tries the mutants that compile, some at a time: a mutant is killed when any case fails, aborts or hangs.
fn score(
    global: &Global,
    arguments: &Arguments,
    shader: &str,
    source: &str,
    output: &Output,
) -> Result<Score> {
    let folder = tempfile::tempdir().map_err(Error::write("a temporary folder"))?;
    let mutants: Vec<Mutant> =
        mutants(source).into_iter().filter(|mutant| compiles(shader, &mutant.source)).collect();
    // A shader that cannot run here would count each of its mutants as killed.
    let path = folder.path().join("original.wgsl");
    std::fs::write(&path, source).map_err(Error::write(&path))?;
    let original = try_mutant(global, arguments, shader, &path).status();
    if !original.map_err(Error::read("verify"))?.success() {
        return Err(Error::Argument {
            argument: "--kernel".into(),
            expected: "a shader whose cases pass on this adapter before it is mutated".into(),
            found: shader.into(),
        });
    }
    let mut score = Score {
        shader: shader.into(),
        mutants: mutants.len(),
        equivalent: 0,
        survivors: Vec::new(),
        mistaken: Vec::new(),
    };
    let jobs = arguments.jobs as usize;
    for (index, some) in mutants.chunks(jobs).enumerate() {
        interrupt::check()?;
        output.progress(shader, jobs * index, mutants.len());
        let mut children = Vec::new();
        for (place, mutant) in some.iter().enumerate() {
            let path = folder.path().join(format!("{place}.wgsl"));
            std::fs::write(&path, &mutant.source).map_err(Error::write(&path))?;
            let child = try_mutant(global, arguments, shader, &path).spawn();
            children.push((mutant, child.map_err(Error::read("verify"))?));
        }
        for (mutant, mut child) in children {
            let survives = child.wait().map_err(Error::read("verify"))?.success();
            let listed = EQUIVALENT.iter().any(|known| known.describes(shader, mutant));
            let text = format!("line {}: `{}` -> `{}`", mutant.line, mutant.before, mutant.after);
            match (survives, listed) {
                (true, true) => score.equivalent += 1,
                (true, false) => score.survivors.push(text),
                (false, true) => score.mistaken.push(text),
                (false, false) => {}
            }
        }
    }
    Ok(score)
}

fn try_mutant(global: &Global, arguments: &Arguments, shader: &str, path: &Path) -> Command {
    // A program that cannot name itself cannot be started either; the caller reports that.
    let program = std::env::current_exe().unwrap_or_default();
    let mut command = Command::new(program);
    let kernel = TABLE.iter().find(|kernel| kernel.name == shader);
    let tier = match kernel {
        // A fragment is part of variants of every tier.
        None => "all",
        Some(kernel) if (kernel.variants)().iter().all(|variant| variant.coop > 0) => "coop",
        Some(_) => "baseline",
    };
    command.args(["verify", "--fail-fast", "--random", "2", "--tier", tier]);
    let cases = arguments.cases.as_deref().unwrap_or(shader);
    command.args(["--kernel", cases, "--shader"]).arg(path);
    command.args(["--case-timeout", &arguments.case_timeout.to_string()]);
    if let Some(adapter) = &global.adapter {
        command.args(["--adapter", adapter]);
    }
    if let Some(backend) = &global.backend {
        command.args(["--backend", backend]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Whether one variant that holds the shader is valid WGSL.
fn compiles(shader: &str, source: &str) -> bool {
    let own = |name: &str| match shader.strip_prefix("shared/") {
        Some(shared) if shared == name => Some(source),
        _ => fragment(name),
    };
    for kernel in TABLE.iter().copied() {
        let holds = |variant: &&crate::device::Variant| match shader.strip_prefix("shared/") {
            Some(name) => kernel.imports(variant, name),
            None => kernel.name == shader,
        };
        let mut variants = (kernel.variants)();
        variants.sort_by_key(|variant| variant.uses_f16() || variant.subgroups);
        let Some(variant) = variants.iter().find(holds) else {
            continue;
        };
        let text = if kernel.name == shader { source } else { kernel.source };
        let accesses: Vec<Access> = kernel.bindings.iter().map(|binding| binding.access).collect();
        let composed = Shader {
            kernel: kernel.name,
            variant: "mutant",
            source: &compose_with(kernel, text, variant, &own),
            bindings: &accesses,
            overrides: kernel.overrides,
            foreign: false,
        };
        // Kernels for matrix units use more workgroup memory than WebGPU guarantees.
        let limits = wgpu::Limits {
            max_compute_workgroup_storage_size: 48 << 10,
            ..wgpu::Limits::default()
        };
        return check_limits(&composed, &limits).is_ok();
    }
    false
}
