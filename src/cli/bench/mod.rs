//! `lopper bench` and `lopper tune-device`: what the device can do, and what the kernels make of it.

mod compare;
mod hardware;
mod html;
mod lut;
mod model;
mod products;
mod rows;
pub(super) mod tune;
mod types;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Subcommand, ValueEnum};
use serde_json::{Map, Value};

use self::hardware::Devices;
use self::rows::{Rows, device_columns, round, timings, timings_until};
use super::output::Output;
use super::session::{CacheArguments, replacement};
use super::{DeviceChoice, Global};
use crate::device::{Runner, Variant};
use crate::disk::{claim, write_own};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Options, Tier, choose};
use crate::measure::speed::kernels::{Ceilings, Timing};
use crate::measure::speed::model::Test;
use crate::measure::trust::verify::Selection;

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(super) struct Arguments {
    /// Write the figures as one self-contained page, with a roofline of the kernels
    #[arg(long, global = true, value_name = "FILE")]
    html: Option<PathBuf>,
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
        /// Only variants that contain this text (weight=uint4m)
        #[arg(long)]
        variant: Option<String>,
        /// Put this WGSL file in the place of the kernel that --kernel names
        #[arg(long, value_name = "FILE", requires = "kernel")]
        shader: Option<PathBuf>,
        /// Do not measure the device's own rates first: quicker, for trying one kernel after another
        #[arg(long)]
        no_ceilings: bool,
        /// Begin no further case after this time (90s, 5m); what was measured is shown, and how much was not
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        time: Option<Duration>,
        /// How the table is written
        #[arg(short, long, default_value = "md")]
        output: Format,
    },
    /// Products by weight type, each by its quickest kernel, beside this device's own f16 product
    Types {
        #[command(flatten)]
        arguments: types::Arguments,
        /// How the table is written
        #[arg(short, long, default_value = "md")]
        output: Format,
    },
    /// Weights of 1 to 4 bits, and ternary ones, by lookup and by multiplying, beside this device's own f16 product
    Lut {
        #[command(flatten)]
        arguments: lut::Arguments,
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
        /// Sequences side by side, each with such a prompt, depth and new tokens: 1, or a list
        #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=1024))]
        parallel: Vec<u64>,
        #[command(flatten)]
        cache: CacheArguments,
        /// Forward and backward passes of whole batches, all gradients: 10x64 (sequences x tokens), or a list
        #[arg(long, value_delimiter = ',', value_parser = model::batch, value_name = "SxT")]
        backward: Vec<(usize, usize)>,
        /// Times that each test is repeated, after one that is not counted
        #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
        repetitions: u64,
        /// How the table is written
        #[arg(short, long, default_value = "md")]
        output: Format,
    },
}

impl Arguments {
    /// Whether a model runs, rather than kernels.
    pub(super) fn runs_a_model(&self) -> bool {
        matches!(self.what, Some(What::Model { .. }))
    }
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
    if let Some(path) = &arguments.html {
        // Fail now rather than after minutes of measuring.
        claim(path, output.force())?;
    }
    let Some(what) = &arguments.what else {
        if arguments.compare.is_empty() {
            return Err(Error::Argument {
                argument: "bench".into(),
                expected: "hardware, kernels, model MODEL, or --compare A.json B.json".into(),
                found: "none of them".into(),
            });
        }
        return compare::run(&arguments.compare, output);
    };
    match what {
        What::Hardware { output: format } => {
            let timed = open(global, Some(Tier::F16))?;
            let has_coop = timed.gpu().adapter().capabilities.cooperative_matrix > 0;
            let coop = has_coop.then(|| open(global, Some(Tier::Coop))).transpose()?;
            let devices = Devices { timed, coop };
            let mut rows = Rows::new(*format, output);
            hardware::hardware(&devices, output, &mut |row| rows.push(row))?;
            write_page(arguments, output, || html::hardware(rows.all()))?;
            rows.finish()
        }
        What::Kernels { kernel, shape, variant, shader, no_ceilings, time, output: format } => {
            let until = time.map(|time| Instant::now() + time);
            if *no_ceilings && arguments.html.is_some() {
                return Err(Error::Argument {
                    argument: "--no-ceilings".into(),
                    expected: "no --html, whose page shows them".into(),
                    found: "both".into(),
                });
            }
            let selection = Selection::new(kernel.as_deref())?;
            let replaced = replacement(kernel.as_deref(), shader.as_deref())?;
            // With everything that the adapter has, as a model would run.
            let runner = open(global, None)?;
            let ceilings = match no_ceilings {
                true => None,
                false => Some(ceilings(&runner, output)?),
            };
            let runner = match replaced {
                Some((name, source)) => runner.with_source(&name, source),
                None => runner,
            };
            let mut rows = Rows::new(*format, output);
            let asked = [shape.as_deref(), variant.as_deref()];
            let timings = kernels(&runner, &selection, asked, (ceilings, until), &mut rows)?;
            write_page(arguments, output, || {
                let right = timings.iter().filter(|timing| timing.verified);
                let right: Vec<Timing> = right.cloned().collect();
                let rows: Vec<_> = right.iter().map(|timing| row(&runner, timing)).collect();
                html::kernels(&rows, &right, ceilings.unwrap_or_default())
            })?;
            rows.finish()?;
            // Kernels with right results are timed and shown; wrong ones still fail the run.
            match timings.iter().filter(|timing| !timing.verified).count() {
                0 => Ok(()),
                failed => Err(Error::CheckFailed(failed, timings.len())),
            }
        }
        What::Types { arguments: types, output: format } => {
            let runner = open(global, None)?;
            let mut rows = Rows::new(*format, output);
            types::rows(global, &runner, types, &mut rows)?;
            write_page(arguments, output, || {
                html::products("Products by weight type", rows.all(), "weight", &[])
            })?;
            rows.finish()
        }
        What::Lut { arguments: lut, output: format } => {
            let runner = open(global, None)?;
            let mut rows = Rows::new(*format, output);
            lut::rows(global, &runner, lut, &mut rows)?;
            write_page(arguments, output, || {
                let title = "Products by lookup and by multiplying";
                html::products(title, rows.all(), "weight", &lut::ENGINES)
            })?;
            rows.finish()
        }
        What::Model {
            model,
            n_prompt,
            n_gen,
            n_depth,
            parallel,
            cache,
            backward,
            repetitions,
            output: format,
        } => {
            let mut tests = Vec::new();
            for (sequences, depth) in
                parallel.iter().flat_map(|s| n_depth.iter().map(move |d| (s, d)))
            {
                let prompts = n_prompt.iter().map(|prompt| (*prompt, 0));
                for (n_prompt, n_gen) in
                    prompts.chain(n_gen.iter().map(|generated| (0, *generated)))
                {
                    let (n_depth, sequences) = (*depth, *sequences as usize);
                    tests.push(Test { n_prompt, n_gen, n_depth, sequences, backward: false });
                }
            }
            tests.retain(|test| test.tokens() > 0);
            tests.extend(backward.iter().map(|(sequences, length)| Test {
                n_prompt: *length,
                n_gen: 0,
                n_depth: 0,
                sequences: *sequences,
                backward: true,
            }));
            let mut rows = Rows::new(*format, output);
            model::rows(global, (model, cache), &tests, *repetitions as usize, &mut rows)?;
            write_page(arguments, output, || html::model(rows.all()))?;
            rows.finish()
        }
    }
}

/// The device to time on, at a tier or the highest the adapter has.
fn open(global: &Global, tier: Option<Tier>) -> Result<Runner> {
    if global.device == DeviceChoice::Cpu {
        return Err(Error::Argument {
            argument: "--device".into(),
            expected: "a GPU: what is measured here are shaders".into(),
            found: "cpu".into(),
        });
    }
    let adapter = choose(&global.selector()?.or_environment()?)?;
    if !adapter.capabilities.timestamps {
        return Err(Error::Limit {
            kernel: "bench".into(),
            variant: adapter.info.name.clone(),
            needs: "timestamps".into(),
            has: "none".into(),
        });
    }
    let options = Options {
        tier: tier.unwrap_or(adapter.tier()),
        budget: global.vram_budget,
        ..Options::default()
    };
    Gpu::open(adapter, options).map(Runner::new)
}

fn ceilings(runner: &Runner, output: &Output) -> Result<Ceilings> {
    let probes = timings(
        runner,
        |kernel, _, _| ["probe/read", "probe/copy", "probe/fma"].contains(&kernel),
        None,
        output,
        &mut |_| Ok(()),
    )?;
    // The best of the sizes: a small one is partly launch.
    let rate = |kernel: &str, of: fn(&Timing) -> f64| {
        let same = probes.iter().filter(|row| row.kernel == kernel && row.dtype == "f32");
        same.map(of).fold(0.0, f64::max)
    };
    Ok(Ceilings {
        read: rate("probe/read", |row| row.gbps * 1e9),
        copy: rate("probe/copy", |row| row.gbps * 1e9),
        f32: rate("probe/fma", |row| row.tflops * 1e12),
    })
}

fn kernels(
    runner: &Runner,
    selection: &Selection,
    [shape, variant]: [Option<&str>; 2],
    (ceilings, until): (Option<Ceilings>, Option<Instant>),
    rows: &mut Rows<'_>,
) -> Result<Vec<Timing>> {
    let output = rows.output;
    let selected = |kernel: &str, label: &str, of: &Variant| {
        !kernel.starts_with("probe/")
            && selection.names_kernel(kernel)
            && shape.is_none_or(|shape| label.contains(shape))
            && variant.is_none_or(|variant| of.label().contains(variant))
    };
    let mut tell = |timing: &Timing| rows.push(row(runner, timing));
    let timings = timings_until(runner, selected, (ceilings, until), output, &mut tell)?;
    if timings.is_empty() {
        return Err(Error::Argument {
            argument: "--kernel / --shape / --variant".into(),
            expected: "texts that name a variant this device runs, and a shape to time it on"
                .into(),
            found: "none such".into(),
        });
    }
    if let Some(ceilings) = ceilings {
        output.note(format!(
            "measured ceilings: read {} GB/s, copy {} GB/s, f32 {} TFLOP/s",
            round(ceilings.read / 1e9),
            round(ceilings.copy / 1e9),
            round(ceilings.f32 / 1e12)
        ));
    }
    for timing in timings.iter().filter(|timing| !timing.verified) {
        output.note(format!(
            "not timed: {} [{}] {}: {}",
            timing.kernel, timing.variant, timing.shape, timing.reason
        ));
    }
    Ok(timings)
}

fn row(runner: &Runner, timing: &Timing) -> Map<String, Value> {
    let mut row = Map::new();
    if let Ok(Value::Object(fields)) = serde_json::to_value(timing) {
        row.extend(fields);
    }
    row.extend(device_columns(runner));
    row
}

/// Writes the page that `--html` asks for, whole or not at all.
fn write_page(arguments: &Arguments, output: &Output, page: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = &arguments.html else {
        return Ok(());
    };
    write_own(path, page().as_bytes())?;
    output.note(format!("written: {}", path.display()));
    Ok(())
}
