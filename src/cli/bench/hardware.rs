//! `lopper bench hardware`: what the device can do, as a WGSL program sees it.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::rows::{device_columns, round, timings};
use crate::cli::output::Output;
use crate::device::{Runner, Variant};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::TABLE;
use crate::measure::speed::kernels::Timing;
use crate::measure::speed::peaks::{self, CLOCK_MARGIN, MEMORY_MARGIN, Peak};

/// A measured figure.
struct Figure {
    what: String,
    value: f64,
    spread: f64,
    unit: &'static str,
    /// The data sheet's, and the factor above it at which the measurement must be wrong.
    ceiling: Option<(f64, f64)>,
    note: &'static str,
}

impl Figure {
    fn excess(&self) -> bool {
        self.ceiling.is_some_and(|(ceiling, margin)| self.value > ceiling * margin)
    }

    fn row(&self, runner: &Runner) -> Map<String, Value> {
        let mut row = Map::new();
        row.insert("what".into(), self.what.as_str().into());
        row.insert("value".into(), json!(round(self.value)));
        row.insert("spread".into(), json!(round(self.spread)));
        row.insert("unit".into(), self.unit.into());
        let percent = self.ceiling.map(|(ceiling, _)| 100.0 * self.value / ceiling);
        row.insert("ceiling".into(), json!(self.ceiling.map(|(ceiling, _)| ceiling)));
        row.insert("percent".into(), json!(percent.map(round)));
        let note = if self.excess() { "ERROR: above the data sheet" } else { self.note };
        row.insert("note".into(), note.into());
        row.extend(device_columns(runner));
        row
    }
}

/// The devices that the figures are taken on.
pub(super) struct Devices {
    /// Without cooperative matrices, which change the memory model of all shaders.
    pub(super) timed: Runner,
    /// With cooperative matrices, where the adapter has them.
    pub(super) coop: Option<Runner>,
}

/// A row per figure, as they come. Wrong results, and rates that the data sheet rules out, are errors.
pub(super) fn hardware(
    devices: &Devices,
    output: &Output,
    tell: &mut dyn FnMut(Map<String, Value>) -> Result<()>,
) -> Result<()> {
    let runner = &devices.timed;
    let peak = peaks::of(&runner.gpu().adapter().info.name);
    let (mut count, mut wrong) = (0, 0);
    let mut tell = |figure: Figure| {
        count += 1;
        if figure.excess() {
            wrong += 1;
            output.note(format!(
                "error: {} of {:.0} {} is above what the data sheet allows: the measurement is wrong, or the clocks were raised",
                figure.what, figure.value, figure.unit
            ));
        }
        tell(figure.row(runner))
    };
    let probes = TABLE.iter().map(|kernel| kernel.name).filter(|name| name.starts_with("probe/"));
    for name in probes {
        let on = match (&devices.coop, name) {
            (Some(coop), "probe/coop") => coop,
            _ => runner,
        };
        let own = |kernel: &str, _: &str, _: &Variant| kernel == name;
        for timing in best_of_sizes(timings(on, own, None, output, &mut |_| Ok(()))?) {
            if !timing.verified {
                return Err(Error::Divergence {
                    case: format!("{} {}", timing.kernel, timing.shape),
                    report: timing.reason,
                });
            }
            tell(probed(&timing, peak))?;
        }
    }
    for (what, samples, unit, note) in
        host_costs(runner)?.into_iter().chain(chained(&devices.timed)?)
    {
        let (value, spread) = median(samples);
        tell(Figure { what: what.into(), value, spread, unit, ceiling: None, note })?;
    }
    if wrong == 0 { Ok(()) } else { Err(Error::CheckFailed(wrong, count)) }
}

/// The figure that follows from a probe's time.
fn probed(timing: &Timing, peak: Option<&Peak>) -> Figure {
    let of =
        |get: fn(&Peak) -> f64, margin| peak.map(get).filter(|v| *v > 0.0).map(|v| (v, margin));
    let memory = of(|peak| peak.memory, MEMORY_MARGIN);
    let (what, arithmetic, ceiling, note) = match timing.kernel.as_str() {
        "probe/copy" => ("copy bandwidth", false, memory, "read and written"),
        "probe/read" => ("read bandwidth", false, memory, ""),
        "probe/write" => ("write bandwidth", false, memory, ""),
        "probe/shared" => ("workgroup-memory bandwidth", false, None, "reads of 16 bytes"),
        "probe/fma" if timing.dtype == "f16" => {
            ("f16 multiply-adds", true, of(|peak| peak.f16, CLOCK_MARGIN), "4-wide vectors")
        }
        "probe/fma" => {
            ("f32 multiply-adds", true, of(|peak| peak.f32, CLOCK_MARGIN), "4-wide vectors")
        }
        "probe/imad" => ("i32 multiply-adds", true, None, "4-wide vectors"),
        "probe/dot4" => ("packed int8 dot", true, None, "dot4I8Packed"),
        _ => (
            "f16 matrix multiply-adds",
            true,
            of(|peak| peak.matrix, CLOCK_MARGIN),
            "cooperative matrices, f32 sums",
        ),
    };
    let (value, unit) = match (arithmetic, timing.kernel.as_str()) {
        (false, _) => (timing.gbps, "GB/s"),
        (true, "probe/imad" | "probe/dot4") => (timing.tflops, "TOP/s"),
        (true, _) => (timing.tflops, "TFLOP/s"),
    };
    Figure {
        what: what.into(),
        value,
        spread: value * timing.us_spread / timing.us,
        unit,
        ceiling,
        note,
    }
}

/// Device time of a dispatch that waits for the one before it: both write the same words.
fn chained(runner: &Runner) -> Result<Vec<HostCost>> {
    const CHAIN: usize = 200;
    let gpu = runner.gpu();
    let kernel = &crate::kernels::probe::copy::KERNEL;
    let variant = (kernel.variants)().remove(0);
    let case = kernel.checks(&variant).remove(0);
    let call = crate::device::upload_case(runner, kernel, &variant, &(case.make)(&variant))?;
    let mut samples = Vec::new();
    let mut before = gpu.profile()?.seconds();
    for turn in 0..25 {
        interrupt::check()?;
        for _ in 0..CHAIN {
            call.run(runner)?;
        }
        let after = gpu.profile()?.seconds();
        // The first ones compile and warm up.
        if turn >= 5 {
            samples.push((after - before) / CHAIN as f64 * 1e6);
        }
        before = after;
    }
    Ok(vec![("chained dispatch", samples, "us", "device time, each waits for the one before")])
}

/// Of each probe and type, the size with the best rate: a small one is partly launch. What failed stays.
fn best_of_sizes(timings: Vec<Timing>) -> Vec<Timing> {
    let mut best: Vec<Timing> = Vec::new();
    for timing in timings {
        let same =
            |known: &&mut Timing| known.kernel == timing.kernel && known.dtype == timing.dtype;
        match best.iter_mut().find(same) {
            Some(known) if known.verified && timing.gbps > known.gbps && timing.verified => {
                *known = timing;
            }
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
    repeat("recording a dispatch", "us", "host time, submits included", 20, &mut || {
        let start = Instant::now();
        for _ in 0..200 {
            call.run(runner)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        gpu.profile()?;
        Ok(seconds / 200.0 * 1e6)
    })?;
    repeat("submit and wait", "us", "one dispatch, one word read back", 50, &mut || {
        let start = Instant::now();
        call.run(runner)?;
        gpu.read(&small)?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    })?;
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
    repeat("pipeline creation", "ms", "norm/rms, a new text each time", 5, &mut || {
        // The text differs, so that no cache of the driver knows it.
        turn += 1;
        let salt = std::process::id().wrapping_mul(1000) + turn;
        let kernel = &crate::kernels::norm::rms::KERNEL;
        let variant = (kernel.variants)().remove(0);
        let source = crate::device::compose(kernel, kernel.source, &variant);
        let source =
            source.replace("var squares = 0.0;", &format!("var squares = f32({salt}u) * 0.0;"));
        let accesses: Vec<_> = kernel.bindings.iter().map(|binding| binding.access).collect();
        let shader = crate::gpu::Shader {
            kernel: kernel.name,
            variant: "bench",
            source: &source,
            bindings: &accesses,
            overrides: kernel.overrides,
            foreign: false,
        };
        let start = Instant::now();
        gpu.compile(&shader)?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })?;
    Ok(costs)
}
