//! Timing kernels: verified first, warmed up, over inputs that rotate through more memory than a cache holds, by device
//! timestamps; beside the time that this device's own measured ceilings allow.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::device::{
    Args, Case, Failure, HostTensor, Kernel, Runner, Variant, check_case, upload_case,
};
use crate::error::{Error, Result};
use crate::gpu::Cost;
use crate::interrupt;

/// Seconds of load before a measurement: after a second of idleness a card's clocks are down, and a short test reads
/// several times too slow.
const WARM_UP: Duration = Duration::from_millis(700);

/// Seconds of load before a measurement on a software adapter, whose clocks are the processor's.
const WARM_UP_SOFTWARE: Duration = Duration::from_millis(100);

/// Seconds of measurement.
const MEASURE: Duration = Duration::from_millis(400);

/// Bytes that the rotating inputs of a kernel fill at least: more than any cache.
const ROTATED_BYTES: u64 = 256 << 20;

/// Inputs that rotate at most.
const MAX_SETS: u64 = 24;

/// How a device is made ready for a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The host has compiled, checked or waited in between: loaded until its clocks are up.
    Full,
    /// It was measured a moment ago.
    Short,
}

/// Measured peak rates of a device.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ceilings {
    /// Bytes per second, reading.
    pub read: f64,
    /// Bytes per second, read and written, copying.
    pub copy: f64,
    /// f32 operations per second.
    pub f32: f64,
}

/// A kernel's time on one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// The kernel's name.
    pub kernel: String,
    /// The variant's label.
    pub variant: String,
    /// The shape, as the case names it.
    pub shape: String,
    /// Type of the activations.
    pub dtype: &'static str,
    /// Median microseconds.
    pub us: f64,
    /// Half the distance between the first and third quartile, in microseconds.
    pub us_spread: f64,
    /// Bytes that must move, per median time, in 1e9 per second.
    pub gbps: f64,
    /// Operations per median time, in 1e12 per second.
    pub tflops: f64,
    /// The least time that the ceilings allow, as a percentage of the median.
    pub percent_of_ceiling: Option<f64>,
    /// Whether the result was within its bound before it was timed. What is wrong is not timed.
    pub verified: bool,
    /// Why it was not verified.
    pub reason: String,
}

/// Times one variant of a kernel on one shape; `None` if the adapter cannot hold it. The runner's device times whole
/// submits: calls follow one another, each waiting for the one before, as in a model, and share the time of their submit.
pub fn time(
    runner: &Runner,
    kernel: &'static Kernel,
    variant: &Variant,
    case: &Case,
    ceilings: Option<Ceilings>,
) -> Result<Option<Timing>> {
    let mut timing = Timing {
        kernel: kernel.name.into(),
        variant: variant.label(),
        shape: case.label.clone(),
        dtype: variant.activation.name(),
        us: 0.0,
        us_spread: 0.0,
        gbps: 0.0,
        tflops: 0.0,
        percent_of_ceiling: None,
        verified: false,
        reason: String::new(),
    };
    match check_case(runner, kernel, variant, case) {
        Ok(_) => timing.verified = true,
        Err(Failure::Error(Error::Limit { .. })) => return Ok(None),
        Err(failure) => {
            timing.reason = failure.to_string();
            return Ok(Some(timing));
        }
    }
    let (mut samples, cost) = measure(runner, kernel, variant, case, MEASURE, Load::Full)?;
    fill(&mut timing, &mut samples, cost, ceilings);
    Ok(Some(timing))
}

/// Seconds of calls of a variant on a case, one per submit, measured for about `limit`; and what a call costs. The result is
/// not checked.
pub fn measure(
    runner: &Runner,
    kernel: &'static Kernel,
    variant: &Variant,
    case: &Case,
    limit: Duration,
    load: Load,
) -> Result<(Vec<f64>, Cost)> {
    let data = (case.make)(variant);
    let args = Args {
        variant,
        parameters: &data.parameters,
        tensors: data.tensors.iter().map(HostTensor::view).collect(),
    };
    let cost = (kernel.cost)(&args);
    let bytes: u64 = data.tensors.iter().map(|tensor| 4 * tensor.words.len() as u64).sum();
    let sets = (ROTATED_BYTES / bytes.max(1) + 1).clamp(2, MAX_SETS);
    let mut calls = vec![upload_case(runner, kernel, variant, &data)?];
    for _ in 1..sets {
        calls.push(upload_case(runner, kernel, variant, &data)?.writing_to(&calls[0]));
    }
    // Submits of about 20 ms, so that what a timestamp costs does not count, nor a slow call repeated for nothing.
    let start = Instant::now();
    calls[0].run(runner)?;
    runner.gpu().profile()?;
    let batch = (0.02 / start.elapsed().as_secs_f64()).clamp(1.0, 16.0) as usize;
    let mut next = 0;
    let mut submit = |batch: usize| -> Result<f64> {
        let before = runner.gpu().profile()?.seconds();
        for _ in 0..batch {
            calls[next % calls.len()].run(runner)?;
            next += 1;
        }
        Ok((runner.gpu().profile()?.seconds() - before) / batch as f64)
    };
    let once = submit(batch)?;
    let batch = (0.02 / once.max(1e-7)).clamp(1.0, 240.0) as usize;
    let mut run = |limit: Duration| -> Result<Vec<f64>> {
        let start = Instant::now();
        let mut samples = Vec::new();
        // At least three batches, or there is no spread.
        while samples.len() < 3 || start.elapsed() < limit {
            interrupt::check()?;
            samples.push(submit(batch)?);
        }
        Ok(samples)
    };
    let software = runner.gpu().adapter().type_name() == "cpu";
    run(match load {
        _ if software => WARM_UP_SOFTWARE.min(limit * 2),
        Load::Full => WARM_UP,
        Load::Short => WARM_UP.min(limit * 2),
    })?;
    Ok((run(limit)?, cost))
}

fn fill(timing: &mut Timing, samples: &mut [f64], cost: Cost, ceilings: Option<Ceilings>) {
    samples.sort_by(f64::total_cmp);
    let quartile = |quarter: usize| samples[(samples.len() - 1) * quarter / 4];
    let median = quartile(2);
    timing.us = median * 1e6;
    timing.us_spread = (quartile(3) - quartile(1)) / 2.0 * 1e6;
    timing.gbps = cost.bytes / median / 1e9;
    timing.tflops = cost.operations / median / 1e12;
    timing.percent_of_ceiling = ceilings.map(|ceilings| {
        let floor =
            (cost.bytes / ceilings.read.max(ceilings.copy)).max(cost.operations / ceilings.f32);
        100.0 * floor / median
    });
}
