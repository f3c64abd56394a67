//! `lopper bench hardware`: what the device can do, as a WGSL program sees it.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::bench::{place, round, timings};
use super::output::Output;
use crate::device::Runner;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::measure::bench::Timing;

/// A row per figure.
pub(super) fn hardware(runner: &Runner, output: &Output) -> Result<Vec<Map<String, Value>>> {
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
