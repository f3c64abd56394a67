//! `lopper bench`: what the device can do, and what the kernels make of it.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::Global;
use super::output::{Output, table};
use super::{bench_compare, bench_model};
use crate::device::Runner;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Options, Selector, Tier, backend_name, choose, parse_backend};
use crate::interrupt;
use crate::kernels::TABLE;
use crate::measure::bench::{Ceilings, Timing, time};
use crate::measure::speed::Test;
use crate::measure::verify::Selection;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(super) struct Arguments {
    /// Show two runs' JSON files side by side
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"])]
    compare: Vec<PathBuf>,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Bandwidth, arithmetic rates, dispatch and transfer costs, as a WGSL program sees them
    Hardware {
        /// How the table is written
        #[arg(short, long, default_value = "md")]
        output: Format,
    },
    /// Each kernel's time on shapes of real use, beside what the hardware's measured rates allow
    Kernels {
        /// Kernels to time: a pattern of names (matmul/*)
        #[arg(long, value_name = "GLOB")]
        kernel: Option<String>,
        /// Only shapes that contain this text
        #[arg(long)]
        shape: Option<String>,
        /// Put this WGSL file in the place of the kernel that --kernel names
        #[arg(long, value_name = "FILE", requires = "kernel")]
        shader: Option<PathBuf>,
        /// How the table is written
        #[arg(short, long, default_value = "md")]
        output: Format,
    },
    /// A model's prompt and generation rates, with llama-bench's columns
    Model {
        /// A Hugging Face folder, a .gguf file, or embedded:NAME
        model: String,
        /// Prompt tokens: 512, or a list; 0 leaves the test out
        #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
        n_prompt: Vec<usize>,
        /// Generated tokens: 128, or a list; 0 leaves the test out
        #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
        n_gen: Vec<usize>,
        /// Tokens in the cache before: 0, or a list
        #[arg(short = 'd', long, value_delimiter = ',', default_value = "0")]
        n_depth: Vec<usize>,
        /// Times that each test is repeated, after one that is not counted
        #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
        repetitions: u64,
        /// How the table is written
        #[arg(short, long, default_value = "md")]
        output: Format,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Md,
    Csv,
    Json,
    Jsonl,
    Sql,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let Some(what) = &arguments.what else {
        return bench_compare::run(&arguments.compare, output);
    };
    match what {
        What::Hardware { output: format } => {
            let runner = open(global, true)?;
            let rows = hardware(&runner, output)?;
            print(&rows, *format, output)
        }
        What::Kernels {
            kernel,
            shape,
            shader,
            output: format,
        } => {
            let selection = Selection::new(kernel.as_deref())?;
            let runner = open(global, true)?;
            let ceilings = ceilings(&runner, output)?;
            let runner = match shader {
                Some(path) => replace(runner, kernel.as_deref().unwrap_or_default(), path)?,
                None => runner,
            };
            let rows = kernels(&runner, &selection, shape.as_deref(), ceilings, output)?;
            print(&rows, *format, output)
        }
        What::Model {
            model,
            n_prompt,
            n_gen,
            n_depth,
            repetitions,
            output: format,
        } => {
            let mut tests = Vec::new();
            for depth in n_depth {
                let prompts = n_prompt.iter().map(|prompt| (*prompt, 0));
                for (n_prompt, n_gen) in
                    prompts.chain(n_gen.iter().map(|generated| (0, *generated)))
                {
                    tests.push(Test {
                        n_prompt,
                        n_gen,
                        n_depth: *depth,
                    });
                }
            }
            tests.retain(|test| test.tokens() > 0);
            let rows = bench_model::rows(global, model, &tests, *repetitions as usize, output)?;
            print(&rows, *format, output)
        }
    }
}

fn open(global: &Global, profile: bool) -> Result<Runner> {
    let backend = global.backend.as_deref().map(parse_backend).transpose()?;
    let adapter = choose(
        &Selector {
            name: global.adapter.clone(),
            backend,
        }
        .or_environment()?,
    )?;
    if !adapter.capabilities.timestamps {
        return Err(Error::Limit {
            kernel: "bench".into(),
            variant: adapter.info.name.clone(),
            needs: "timestamps".into(),
            has: "none".into(),
        });
    }
    let options = Options {
        tier: Tier::F16,
        budget: global.vram_budget,
        profile,
        ..Options::default()
    };
    Gpu::open(adapter, options).map(Runner::new)
}

fn replace(runner: Runner, name: &str, path: &PathBuf) -> Result<Runner> {
    let text = std::fs::read_to_string(path).map_err(Error::read(path))?;
    let kernel = TABLE.iter().copied().find(|kernel| kernel.name == name);
    let kernel = kernel.ok_or_else(|| Error::Argument {
        argument: "--kernel".into(),
        expected: "with --shader, the name of one kernel".into(),
        found: name.into(),
    })?;
    Ok(runner.with_source(kernel, text))
}

/// Every variant of the selected kernels that the device runs, on every shape.
fn timings(
    runner: &Runner,
    selected: impl Fn(&str, &str) -> bool,
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
                if selected(kernel.name, &case.label) {
                    output.progress(
                        &format!("timing {}", kernel.name),
                        rows.len(),
                        rows.len() + 1,
                    );
                    rows.extend(time(runner, kernel, &variant, &case, ceilings)?);
                }
            }
        }
    }
    Ok(rows)
}

fn ceilings(runner: &Runner, output: &Output) -> Result<Ceilings> {
    let probes = timings(
        runner,
        |kernel, _| ["probe/read", "probe/copy", "probe/fma"].contains(&kernel),
        None,
        output,
    )?;
    // The best of the sizes: a small one is partly launch.
    let rate = |kernel: &str, of: fn(&Timing) -> f64| {
        let same = probes
            .iter()
            .filter(|row| row.kernel == kernel && row.dtype == "f32");
        same.map(of).fold(0.0, f64::max)
    };
    Ok(Ceilings {
        read: rate("probe/read", |row| row.gbps * 1e9),
        copy: rate("probe/copy", |row| row.gbps * 1e9),
        f32: rate("probe/fma", |row| row.tflops * 1e12),
    })
}

/// What every row says of where it was measured.
fn place(runner: &Runner) -> Map<String, Value> {
    let adapter = runner.gpu().adapter();
    let mut row = Map::new();
    row.insert("gpu_info".into(), adapter.info.name.clone().into());
    row.insert("backends".into(), backend_name(adapter.info.backend).into());
    row.insert("driver".into(), adapter.driver().into());
    row
}

fn kernels(
    runner: &Runner,
    selection: &Selection,
    shape: Option<&str>,
    ceilings: Ceilings,
    output: &Output,
) -> Result<Vec<Map<String, Value>>> {
    let selected = |kernel: &str, label: &str| {
        !kernel.starts_with("probe/")
            && selection.names_kernel(kernel)
            && shape.is_none_or(|shape| label.contains(shape))
    };
    let timings = timings(runner, selected, Some(ceilings), output)?;
    output.note(format!(
        "measured ceilings: read {:.0} GB/s, copy {:.0} GB/s, f32 {:.2} TFLOP/s",
        ceilings.read / 1e9,
        ceilings.copy / 1e9,
        ceilings.f32 / 1e12
    ));
    let row = |timing: &Timing| {
        let mut row = Map::new();
        if let Ok(Value::Object(fields)) = serde_json::to_value(timing) {
            row.extend(fields);
        }
        row.extend(place(runner));
        row
    };
    let failed = timings.iter().filter(|timing| !timing.verified).count();
    if failed > 0 {
        for timing in timings.iter().filter(|timing| !timing.verified) {
            output.note(format!(
                "not timed: {} [{}] {}: {}",
                timing.kernel, timing.variant, timing.shape, timing.reason
            ));
        }
        return Err(Error::CheckFailed(failed, timings.len()));
    }
    Ok(timings.iter().map(row).collect())
}

fn hardware(runner: &Runner, output: &Output) -> Result<Vec<Map<String, Value>>> {
    let mut rows = Vec::new();
    let mut add = |what: &str, value: f64, spread: f64, unit: &str, note: &str| {
        let mut row = Map::new();
        row.insert("what".into(), what.into());
        row.insert("value".into(), json!(round(value)));
        row.insert("spread".into(), json!(round(spread)));
        row.insert("unit".into(), unit.into());
        row.insert("note".into(), note.into());
        row.extend(place(runner));
        rows.push(row);
    };
    let probes = timings(
        runner,
        |kernel, _| kernel.starts_with("probe/"),
        None,
        output,
    )?;
    for timing in best_of_sizes(probes) {
        if !timing.verified {
            return Err(Error::Divergence {
                case: format!("{} {}", timing.kernel, timing.shape),
                report: timing.reason,
            });
        }
        let name = timing.kernel.trim_start_matches("probe/");
        let spread = timing.us_spread / timing.us;
        match name {
            "copy" => add(
                "copy bandwidth",
                timing.gbps,
                timing.gbps * spread,
                "GB/s",
                "read and written",
            ),
            "read" => add(
                "read bandwidth",
                timing.gbps,
                timing.gbps * spread,
                "GB/s",
                "",
            ),
            "write" => add(
                "write bandwidth",
                timing.gbps,
                timing.gbps * spread,
                "GB/s",
                "",
            ),
            "fma" => {
                let what = format!("{} multiply-adds", timing.dtype);
                add(
                    &what,
                    timing.tflops,
                    timing.tflops * spread,
                    "TFLOP/s",
                    "4-wide vectors",
                );
            }
            _ => add(
                "packed int8 dot",
                timing.tflops,
                timing.tflops * spread,
                "TOP/s",
                "dot4I8Packed",
            ),
        }
    }
    let costs = host_costs(runner)?;
    for (what, samples, unit, note) in costs {
        let (median, spread) = median(samples);
        add(what, median, spread, unit, note);
    }
    Ok(rows)
}

/// Of each probe and type, the size with the best rate: a small one is partly launch. What failed stays.
fn best_of_sizes(timings: Vec<Timing>) -> Vec<Timing> {
    let mut best: Vec<Timing> = Vec::new();
    for timing in timings {
        let same =
            |known: &&mut Timing| known.kernel == timing.kernel && known.variant == timing.variant;
        match best.iter_mut().find(same) {
            Some(known) if known.verified && timing.gbps > known.gbps => *known = timing,
            Some(known) if !timing.verified => *known = timing,
            Some(_) => {}
            None => best.push(timing),
        }
    }
    best
}

fn median(mut samples: Vec<f64>) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    let quartile = |quarter: usize| samples[(samples.len() - 1) * quarter / 4];
    (quartile(2), (quartile(3) - quartile(1)) / 2.0)
}

type HostCost = (&'static str, Vec<f64>, &'static str, &'static str);

/// Costs on the host's clock: dispatches, round trips, transfers, pipeline creation.
fn host_costs(runner: &Runner) -> Result<Vec<HostCost>> {
    let gpu = runner.gpu();
    let kernel = &crate::kernels::probe::copy::KERNEL;
    let variant = (kernel.variants)().remove(0);
    let case = kernel.checks(&variant).remove(0);
    let call = crate::device::upload_case(runner, kernel, &variant, &(case.make)(&variant))?;
    let small = gpu.allocate(4, "a round trip")?;
    let mut costs: Vec<HostCost> = Vec::new();
    let mut repeat =
        |what, unit, note, count: usize, piece: &mut dyn FnMut() -> Result<f64>| -> Result<()> {
            let mut samples = Vec::new();
            for _ in 0..count {
                interrupt::check()?;
                samples.push(piece()?);
            }
            costs.push((what, samples, unit, note));
            Ok(())
        };
    repeat(
        "recording a dispatch",
        "us",
        "host time, submits included",
        20,
        &mut || {
            let start = Instant::now();
            for _ in 0..200 {
                call.run(runner)?;
            }
            let seconds = start.elapsed().as_secs_f64();
            gpu.profile()?;
            Ok(seconds / 200.0 * 1e6)
        },
    )?;
    repeat(
        "submit and wait",
        "us",
        "one dispatch, one word read back",
        50,
        &mut || {
            let start = Instant::now();
            call.run(runner)?;
            gpu.read(&small)?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        },
    )?;
    const BLOCK: usize = 64 << 20;
    let block = gpu.allocate(BLOCK as u64, "a transfer")?;
    let bytes = vec![1u8; BLOCK];
    repeat("upload", "GB/s", "64 MiB", 5, &mut || {
        let start = Instant::now();
        gpu.write(&block, &bytes)?;
        gpu.read(&small)?;
        Ok(BLOCK as f64 / start.elapsed().as_secs_f64() / 1e9)
    })?;
    repeat("readback", "GB/s", "64 MiB", 5, &mut || {
        let start = Instant::now();
        gpu.read(&block)?;
        Ok(BLOCK as f64 / start.elapsed().as_secs_f64() / 1e9)
    })?;
    let mut turn = 0u32;
    repeat(
        "pipeline creation",
        "ms",
        "norm/rms, a new text each time",
        5,
        &mut || {
            // The text differs, so that no cache of the driver knows it.
            turn += 1;
            let salt = std::process::id().wrapping_mul(1000) + turn;
            let kernel = &crate::kernels::norm::rms::KERNEL;
            let variant = (kernel.variants)().remove(0);
            let source = crate::device::compose(kernel.source, &variant);
            let source = source.replace(
                "var squares = 0.0;",
                &format!("var squares = f32({salt}u) * 0.0;"),
            );
            let accesses: Vec<_> = kernel
                .bindings
                .iter()
                .map(|binding| binding.access)
                .collect();
            let shader = crate::gpu::Shader {
                kernel: kernel.name,
                variant: "bench",
                source: &source,
                bindings: &accesses,
                overrides: kernel.overrides,
            };
            let start = Instant::now();
            gpu.compile(&shader)?;
            Ok(start.elapsed().as_secs_f64() * 1e3)
        },
    )?;
    Ok(costs)
}

/// Four significant digits: what a measurement is worth.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

fn print(rows: &[Map<String, Value>], format: Format, output: &Output) -> Result<()> {
    output.json(&Value::Array(
        rows.iter().cloned().map(Value::Object).collect(),
    ))?;
    let keys: Vec<&String> = rows
        .first()
        .map_or_else(Vec::new, |row| row.keys().collect());
    let cell = |row: &Map<String, Value>, key: &str| match row.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number
            .as_f64()
            .map_or_else(|| number.to_string(), |v| round(v).to_string()),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    match format {
        // A row of a model brings its own columns.
        Format::Md if rows.iter().any(|row| row.contains_key("test")) => {
            output.text(&bench_model::markdown(rows))
        }
        Format::Md => {
            let shown = |key: &&String| {
                !["reason", "verified", "gpu_info", "backends", "driver"].contains(&key.as_str())
            };
            let keys: Vec<&String> = keys.into_iter().filter(shown).collect();
            let mut lines = vec![keys.iter().map(|key| key.to_string()).collect()];
            lines.extend(
                rows.iter()
                    .map(|row| keys.iter().map(|key| cell(row, key)).collect::<Vec<_>>()),
            );
            output.text(&table(&lines));
        }
        Format::Csv => {
            output.line(
                keys.iter()
                    .map(|key| key.as_str())
                    .collect::<Vec<_>>()
                    .join(","),
            );
            for row in rows {
                output.line(
                    keys.iter()
                        .map(|key| quoted(&cell(row, key)))
                        .collect::<Vec<_>>()
                        .join(","),
                );
            }
        }
        Format::Json => {
            output.line(format!(
                "{:#}",
                Value::Array(rows.iter().cloned().map(Value::Object).collect())
            ));
        }
        Format::Jsonl => rows
            .iter()
            .for_each(|row| output.line(Value::Object(row.clone()).to_string())),
        Format::Sql => {
            let columns: Vec<String> = keys.iter().map(|key| format!("{key} TEXT")).collect();
            output.line(format!(
                "CREATE TABLE IF NOT EXISTS bench ({});",
                columns.join(", ")
            ));
            for row in rows {
                let values: Vec<String> = keys
                    .iter()
                    .map(|key| format!("'{}'", cell(row, key).replace('\'', "''")))
                    .collect();
                output.line(format!("INSERT INTO bench VALUES ({});", values.join(", ")));
            }
        }
    }
    Ok(())
}
