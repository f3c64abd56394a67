//! The adapters of the machine the tests run on, opened once, and how trials that need one are listed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Runner};
use lopper::gpu::{Gpu, Options, Selector, Tier, choose};

/// Runners of a tier: trials of one wait for each other, and so leave processors idle.
const RUNNERS: usize = 2;

/// A runner on the machine's best adapter, with shader checks on: the one of the trial's thread.
pub fn runner(tier: Tier) -> Result<&'static Runner, String> {
    static BASELINE: [OnceLock<Result<Runner, String>>; RUNNERS] =
        [const { OnceLock::new() }; RUNNERS];
    static F16: [OnceLock<Result<Runner, String>>; RUNNERS] = [const { OnceLock::new() }; RUNNERS];
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = THREADS.fetch_add(1, Ordering::Relaxed) % RUNNERS);
    let cells = if tier == Tier::Baseline { &BASELINE } else { &F16 };
    OWN.with(|own| &cells[*own])
        .get_or_init(|| open(Options { tier, checked: true, ..Options::default() }))
        .as_ref()
        .map_err(Clone::clone)
}

/// A runner of its own.
pub fn open(options: Options) -> Result<Runner, String> {
    let adapter =
        Selector::default().or_environment().and_then(|s| choose(&s)).map_err(|e| e.to_string())?;
    Gpu::open(adapter, options).map(Runner::new).map_err(|error| error.to_string())
}

/// A GPU device of its own.
pub fn device(options: Options) -> Result<Device, Failed> {
    open(options).map(Device::Gpu).map_err(Failed::from)
}

/// A trial on the CPU and one on the adapter, with shader checks on.
pub fn on_each(
    name: &str,
    run: impl Fn(&Device) -> Result<(), Failed> + Send + Copy + 'static,
) -> [Trial; 2] {
    let options = Options { checked: true, ..Options::default() };
    let on_gpu = move || run(&device(options)?);
    [
        Trial::test(format!("{name}::cpu"), move || run(&Device::Cpu)),
        gpu_trial(format!("{name}::gpu"), on_gpu),
    ]
}

/// Whether the machine has an adapter.
pub fn has_gpu() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| Selector::default().or_environment().and_then(|s| choose(&s)).is_ok())
}

/// A trial that needs an adapter: ignored where there is none, unless one is required.
pub fn gpu_trial(name: String, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Trial {
    let required = std::env::var("LOPPER_REQUIRE_GPU").is_ok_and(|value| value == "1");
    Trial::test(name, run).with_ignored_flag(!has_gpu() && !required)
}

/// A trial of a function that panics or returns an error where it fails.
pub fn trial<R: Outcome>(name: &str, run: fn() -> R) -> Trial {
    Trial::test(name, move || run().outcome())
}

/// What a test returns.
pub trait Outcome: 'static {
    fn outcome(self) -> Result<(), Failed>;
}

impl Outcome for () {
    fn outcome(self) -> Result<(), Failed> {
        Ok(())
    }
}

impl Outcome for Result<(), Failed> {
    fn outcome(self) -> Result<(), Failed> {
        self
    }
}
