//! Cross-checking kernels on an adapter: every kernel x variant x case against the CPU reference.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::data::letters_apart;
use crate::device::{
    Case, Failure, Kernel, Random, Runner, Sizes, Variant, check_case, check_cpu_case, fragment,
    fragments,
};
use crate::error::Error;
use crate::gpu::{MOST_ROUNDS, backend_name};
use crate::interrupt;
use crate::kernels::TABLE;

/// How a case went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Within the bound everywhere.
    Pass,
    /// A wrong result, a crash or a hang.
    Fail,
    /// The adapter cannot hold it.
    Skip,
    /// Fails, as the table of known failures says.
    Known,
}

/// One case on one adapter.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The kernel's name.
    pub kernel: String,
    /// Variant and inputs; with the kernel's name in front, a text that `--kernel` accepts.
    pub case: String,
    /// The tier the device was opened with.
    pub tier: String,
    /// The adapter's name.
    pub adapter: String,
    /// Its backend.
    pub backend: String,
    /// Its driver.
    pub driver: String,
    /// How it went.
    pub status: Status,
    /// The largest error as a fraction of its element's bound.
    pub error: Option<f64>,
    /// The limit of `error`.
    pub tolerance: f64,
    /// Normalized mean squared error.
    pub nmse: Option<f64>,
    /// Why it was skipped or failed; empty for a pass.
    pub reason: String,
}

/// A failure that is known, of one driver. It expires itself: when it starts to pass, the run fails.
#[derive(Debug)]
pub struct KnownFailure {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Part of the case's text.
    pub case: &'static str,
    /// Part of the adapter's name.
    pub adapter: &'static str,
    /// The backend.
    pub backend: &'static str,
    /// Part of the driver's text.
    pub driver: &'static str,
    /// The defect, and where it was reported.
    pub reason: &'static str,
}

/// Failures that are known.
pub static KNOWN: &[KnownFailure] = &[];

/// The cases that a pattern selects: `*`-patterns of kernel names, the kernels that hold a fragment (`shared/NAME`), or
/// the text of one case, which may hold `*` too.
#[derive(Clone, Debug)]
pub struct Selection {
    pattern: Option<glob::Pattern>,
    /// The pattern with its brackets escaped, for whole texts.
    texts: Option<glob::Pattern>,
    text: String,
}

impl Selection {
    /// Everything, for `None`. An error lists the kernels whose names are nearest to a pattern that selects none.
    pub fn new(pattern: Option<&str>) -> Result<Self, Error> {
        let Some(text) = pattern else {
            return Ok(Self { pattern: None, texts: None, text: String::new() });
        };
        let selection = Self {
            pattern: glob::Pattern::new(text).ok(),
            texts: glob::Pattern::new(&text.replace('[', "[[]")).ok(),
            text: text.to_string(),
        };
        let any =
            TABLE.iter().any(|kernel| selection.names(kernel) || text.starts_with(kernel.name));
        if any || selection.fragment().is_some() {
            return Ok(selection);
        }
        let shared = fragments().map(|(name, _)| format!("shared/{name}"));
        let kernels = TABLE.iter().map(|kernel| kernel.name.to_string());
        let mut near: Vec<String> = kernels.chain(shared).collect();
        near.sort_by_key(|name| letters_apart(name, text));
        near.truncate(4);
        Err(Error::Argument {
            argument: "--kernel".into(),
            expected: format!("a pattern of kernel names, such as {}", near.join(", ")),
            found: text.into(),
        })
    }

    fn names(&self, kernel: &Kernel) -> bool {
        self.text.is_empty()
            || self.pattern.as_ref().is_some_and(|pattern| pattern.matches(kernel.name))
    }

    /// Whether a kernel's name is selected.
    pub fn names_kernel(&self, name: &str) -> bool {
        TABLE.iter().any(|kernel| kernel.name == name && self.names(kernel))
    }

    /// The shared fragment that the pattern names.
    fn fragment(&self) -> Option<&str> {
        let name = self.text.strip_prefix("shared/")?;
        fragment(name).map(|_| name)
    }

    fn selects(&self, kernel: &Kernel, variant: &Variant, text: &str) -> bool {
        self.names(kernel)
            || self.text == text
            || self.texts.as_ref().is_some_and(|texts| texts.matches(text))
            || self.fragment().is_some_and(|name| kernel.imports(variant, name))
    }

    /// Every selected case of a variant, with its whole text: the table's, `random` ones, and the one of random sizes
    /// that the text names.
    pub fn cases(
        &self,
        kernel: &Kernel,
        variant: &Variant,
        random: RandomCases,
    ) -> Vec<(String, Case)> {
        let mut cases = kernel.checks(variant);
        let named = Sizes::parse(&self.text).filter(|_| self.text.starts_with(kernel.name));
        let mut numbers = Random::new(random.seed);
        let drawn = (0..random.count).map(|_| Sizes::random(&mut numbers));
        let sized = named.into_iter().chain(drawn);
        cases.extend(sized.map(|sizes| kernel.sized(&sizes)).filter(|case| (case.fits)(variant)));
        let text = |case: &Case| format!("{} [{}] {}", kernel.name, variant.label(), case.label);
        cases
            .into_iter()
            .map(|case| (text(&case), case))
            .filter(|(text, _)| self.selects(kernel, variant, text))
            .collect()
    }
}

/// Cases of random shapes that are tried besides the table's.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomCases {
    /// Of each variant.
    pub count: usize,
    /// The seed of the shapes.
    pub seed: u64,
}

/// Runs the selected cases in the table's order, but the first `skip`. `starting` gets each case's text before it
/// runs, so that a watching process knows which case a crash belongs to; `done` gets its row.
pub fn verify(
    runner: &Runner,
    selection: &Selection,
    random: RandomCases,
    skip: usize,
    mut starting: impl FnMut(&str),
    mut done: impl FnMut(Row),
) -> Result<(), Error> {
    let mut index = 0;
    for kernel in TABLE.iter().copied() {
        let mut work: Vec<(Variant, Vec<(String, Case)>)> = Vec::new();
        for variant in (kernel.variants)() {
            if variant.runs_on(runner.gpu().capabilities()) {
                let cases = selection.cases(kernel, &variant, random);
                work.push((variant, cases));
            }
        }
        work.retain(|(_, cases)| !cases.is_empty());
        // Drivers take longer to compile a variant than to run its cases. After a break (cases to skip) nothing is compiled
        // ahead, so that whatever breaks next is the case that was named.
        let alone = skip > 0 || runner.gpu().adapter().one_thread;
        let ahead = if alone { 0 } else { compilers() };
        let (next, work) = (AtomicUsize::new(0), &work);
        std::thread::scope(|scope| {
            for _ in 0..ahead {
                let compile = || {
                    while let Some((variant, _)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // The run that uses it meets the error again and reports it.
                        let _ = runner.prepare(kernel, variant);
                    }
                };
                // Where there are no more threads, what is needed is compiled when it is.
                let _ = std::thread::Builder::new().spawn_scoped(scope, compile);
            }
            let mut run = || {
                for (variant, cases) in work {
                    for (text, case) in cases {
                        index += 1;
                        if index > skip {
                            interrupt::check()?;
                            starting(text);
                            done(row(runner, kernel, variant, case)?);
                        }
                    }
                }
                Ok(())
            };
            let result = run();
            next.store(usize::MAX / 2, Ordering::Relaxed);
            result
        })?;
    }
    Ok(())
}

/// Threads that compile ahead.
fn compilers() -> usize {
    std::thread::available_parallelism().map_or(0, |count| count.get().saturating_sub(1).min(12))
}

fn row(
    runner: &Runner,
    kernel: &'static Kernel,
    variant: &Variant,
    case: &Case,
) -> Result<Row, Error> {
    let adapter = runner.gpu().adapter();
    let mut row = Row {
        kernel: kernel.name.into(),
        case: format!("[{}] {}", variant.label(), case.label),
        tier: runner.gpu().tier().name().into(),
        adapter: adapter.info.name.clone(),
        backend: backend_name(adapter.info.backend).into(),
        driver: adapter.driver(),
        status: Status::Pass,
        error: None,
        tolerance: 1.0,
        nmse: None,
        reason: String::new(),
    };
    match check_case(runner, kernel, variant, case) {
        Ok(agreement) => (row.error, row.nmse) = (Some(agreement.worst), Some(agreement.nmse)),
        Err(Failure::Error(Error::Limit { needs, has, .. })) => {
            (row.status, row.reason) =
                (Status::Skip, format!("skipped: needs {needs}, adapter has {has}"));
        }
        // A lost device fails every case after it; the run ends here and is taken up in a fresh process.
        Err(Failure::Error(error @ Error::Device { .. })) => return Err(error),
        Err(failure) => {
            fail(&mut row, &failure);
            if matches!(failure, Failure::OutOfBounds(_)) && runner.foreign() {
                row.reason += &format!(", or a loop did not end within {MOST_ROUNDS} rounds");
            }
        }
    }
    judge_known(&mut row);
    Ok(row)
}

fn fail(row: &mut Row, failure: &Failure) {
    if let Failure::Differs { worst, .. } = failure {
        row.error = Some(*worst).filter(|worst| worst.is_finite());
    }
    (row.status, row.reason) = (Status::Fail, failure.to_string());
}

/// Runs the selected cases on the CPU device, which every variant runs on. `done` gets each case's row, and how many there are.
pub fn verify_cpu(
    selection: &Selection,
    random: RandomCases,
    mut done: impl FnMut(Row, usize),
) -> Result<(), Error> {
    let mut work = Vec::new();
    for kernel in TABLE.iter().copied() {
        for variant in (kernel.variants)() {
            let cases = selection.cases(kernel, &variant, random).into_iter();
            work.extend(cases.map(|(_, case)| (kernel, variant.clone(), case)));
        }
    }
    for (kernel, variant, case) in &work {
        interrupt::check()?;
        let mut row = Row {
            kernel: kernel.name.into(),
            case: format!("[{}] {}", variant.label(), case.label),
            tier: "cpu".into(),
            adapter: "cpu".into(),
            backend: "cpu".into(),
            driver: format!("lopper {}", env!("CARGO_PKG_VERSION")),
            status: Status::Pass,
            error: None,
            tolerance: 1.0,
            nmse: None,
            reason: String::new(),
        };
        match check_cpu_case(kernel, variant, case) {
            Ok(agreement) => (row.error, row.nmse) = (Some(agreement.worst), Some(agreement.nmse)),
            Err(failure) => fail(&mut row, &failure),
        }
        done(row, work.len());
    }
    Ok(())
}

/// Compares a row with the table of known failures.
pub fn judge_known(row: &mut Row) {
    let known = KNOWN.iter().find(|known| {
        row.kernel == known.kernel
            && row.case.contains(known.case)
            && row.adapter.contains(known.adapter)
            && row.backend == known.backend
            && row.driver.contains(known.driver)
    });
    let Some(known) = known else { return };
    match row.status {
        Status::Fail => {
            (row.status, row.reason) = (Status::Known, format!("{} ({})", known.reason, row.reason))
        }
        Status::Pass => {
            row.status = Status::Fail;
            row.reason = format!("passes now, but the table says: {}; take it out", known.reason);
        }
        Status::Skip | Status::Known => {}
    }
}
