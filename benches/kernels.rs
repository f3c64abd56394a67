//! `cargo bench`: every kernel's first variant that the device runs, on its first shape of real use (on a software adapter, which would
//! take minutes for it, on a case of the tests), for a tenth of a second each. What has become slower shows; `lopper bench kernels` measures all variants and shapes beside the device's ceilings. An argument is a
//! part of the kernels' names: `cargo bench -- matmul`.

#![expect(clippy::print_stdout, reason = "a bench prints")]

use std::time::Duration;

use lopper::error::Error;
use lopper::gpu::{Gpu, Options, Selector, choose, silence_drivers};
use lopper::kernels::TABLE;
use lopper::measure::speed::kernels::{Load, measure};

const LIMIT: Duration = Duration::from_millis(100);

fn main() -> Result<(), Error> {
    // Cargo says --bench, too.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    silence_drivers();
    let adapter = choose(&Selector::default().or_environment()?)?;
    if !adapter.capabilities.timestamps {
        println!("{}: no timestamps, nothing to measure", adapter.info.name);
        return Ok(());
    }
    let software = adapter.type_name() == "cpu";
    let options = Options { tier: adapter.tier(), ..Options::default() };
    let runner = lopper::device::Runner::new(Gpu::open(adapter, options)?);
    println!("{}", runner.gpu().adapter().info.name);
    println!("{:24} {:>10} {:>8} {:>8}  on", "kernel", "us", "GB/s", "TFLOP/s");
    for kernel in TABLE.iter().copied() {
        if wanted.as_ref().is_some_and(|part| !kernel.name.contains(part)) {
            continue;
        }
        let mut variants = (kernel.variants)().into_iter();
        let found = variants.find(|variant| variant.runs_on(runner.gpu().capabilities()));
        let Some(variant) = found else {
            println!("{:24} no variant for this device", kernel.name);
            continue;
        };
        let shapes = if software { kernel.checks(&variant) } else { kernel.shapes(&variant) };
        let Some(case) = shapes.into_iter().next() else {
            continue;
        };
        match measure(&runner, kernel, &variant, &case, LIMIT, Load::Short) {
            Ok((mut samples, cost)) => {
                samples.sort_by(f64::total_cmp);
                let median = samples[samples.len() / 2];
                println!(
                    "{:24} {:10.1} {:8.2} {:8.4}  [{}] {}",
                    kernel.name,
                    median * 1e6,
                    cost.bytes / median / 1e9,
                    cost.operations / median / 1e12,
                    variant.label(),
                    case.label
                );
            }
            Err(Error::Limit { needs, has, .. }) => {
                println!("{:24} needs {needs}, the device has {has}", kernel.name);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
