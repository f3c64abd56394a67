//! `lopper verify`: every kernel on every adapter against the CPU reference.
//!
//! Each adapter and tier runs in a child process that reports line by line, so that a driver that hangs in its compiler or
//! aborts gives a failed row, and a new child goes on after it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::list::{count, list};
use crate::cli::output::{Output, table};
use crate::cli::session::replacement;
use crate::cli::{DeviceChoice, Global};
use crate::device::Runner;
use crate::disk::{claim, write_own};
use crate::error::{Error, Result};
use crate::gpu::{Adapter, Gpu, Options, Selector, Tier, adapters, backend_name, choose};
use crate::interrupt;
use crate::kernels::TABLE;
use crate::measure::trust::page::page;
use crate::measure::trust::verify::{
    RandomCases, Row, Selection, Status, judge_known, verify, verify_cpu,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// Kernels to run: a pattern of names (matmul/*), or the text of one case as a failure prints it
    #[arg(long, value_name = "GLOB")]
    kernel: Option<String>,
    /// Tiers to run; those that an adapter lacks are listed
    #[arg(long, default_value = "all")]
    tier: TierChoice,
    /// Cases of random shapes to try besides the table's, of each kernel and variant; --seed says which
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    random: usize,
    /// Put this WGSL file in the place of the kernel, or of the fragment shared/NAME, that --kernel names
    #[arg(long, value_name = "FILE", requires = "kernel")]
    shader: Option<PathBuf>,
    /// Run nothing: list the cases that --kernel selects, as --kernel takes each
    #[arg(long, conflicts_with = "page")]
    list: bool,
    /// Instead of running it, write the one case that --kernel names as a page that runs it in any browser with WebGPU
    #[arg(long, value_name = "FILE", requires = "kernel")]
    page: Option<PathBuf>,
    /// Seconds that one case may take before its driver counts as hung
    #[arg(long, default_value_t = 60)]
    case_timeout: u64,
    /// Stop at the first failure
    #[arg(long)]
    fail_fast: bool,
    /// Run as the child of another verify: cases to leave out, as a number
    #[arg(long, hide = true)]
    child: Option<usize>,
    /// Break on purpose at this case, to try the watching: hang:N or abort:N
    #[arg(long, hide = true)]
    inject: Option<String>,
}

impl Arguments {
    /// The user's WGSL and the name of the kernel or fragment that it replaces.
    fn replacement(&self) -> Result<Option<(String, String)>> {
        replacement(self.kernel.as_deref(), self.shader.as_deref())
    }

    /// The random cases that the flags ask for.
    fn random(&self, global: &Global) -> RandomCases {
        RandomCases { count: self.random, seed: global.seed.unwrap_or(0) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum TierChoice {
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
    if arguments.list {
        return list(&selection, arguments.random(global), output);
    }
    let replacement = arguments.replacement()?;
    if let Some(path) = &arguments.page {
        claim(path, output.force())?;
        return write_page(global, arguments, &selection, replacement, path, output);
    }
    let on_cpu = global.device == DeviceChoice::Cpu;
    if on_cpu && (arguments.shader.is_some() || arguments.tier != TierChoice::All) {
        return Err(Error::Argument {
            argument: "--device".into(),
            expected: "a GPU beside --shader and --tier: the CPU runs no WGSL".into(),
            found: "cpu".into(),
        });
    }
    let found = if on_cpu { Vec::new() } else { select_adapters(global)? };
    output.begin(
        json!({"schema": 1, "rows": [], "passed": 0, "failed": 0, "skipped": 0, "known": 0}),
        |found| format!("\n{} so far\n", totals(found)),
    );
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
    if on_cpu {
        let start = Instant::now();
        let mut told = Ok(());
        verify_cpu(&selection, arguments.random(global), |row, all| {
            if told.is_ok() {
                told = tell(&row, output);
            }
            rows.push(row);
            output.progress("cpu", rows.len(), all);
        })?;
        told?;
        let mut line = ["cpu"; 3].map(String::from).to_vec();
        line.extend(counts(&rows, start));
        summary.push(line);
    }
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
            line.extend(counts(&new, start));
            summary.push(line);
            rows.extend(new);
        }
    }
    report(&rows, &summary, arguments, output)
}

/// How many passed, failed, were skipped, are known to fail; the worst error; the seconds.
fn counts(rows: &[Row], start: Instant) -> Vec<String> {
    let count = |status: Status| rows.iter().filter(|row| row.status == status).count().to_string();
    let mut line = [Status::Pass, Status::Fail, Status::Skip, Status::Known].map(count).to_vec();
    let worst = rows.iter().filter_map(|row| row.error).fold(0.0, f64::max);
    // A wrong result that is no number, or none at all, has no error that could be told beside the others.
    let beyond = |row: &Row| row.status == Status::Fail && row.error.is_none();
    let told = if worst < 1e4 { format!("{worst:.2}") } else { format!("{worst:.1e}") };
    line.push(match (rows.iter().any(beyond), worst > 1.0) {
        (false, _) => format!("{told} of bound"),
        (true, true) => format!("{told} of bound, and NaN"),
        (true, false) => "no number".into(),
    });
    line.push(format!("{:.1}", start.elapsed().as_secs_f64()));
    line
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
            found.extend(cases.into_iter().map(|(_, case)| (kernel, variant.clone(), case)));
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
    write_own(path, html.as_bytes())?;
    output.line(format!("written: {} ({} kB)", path.display(), html.len() / 1000));
    Ok(())
}

fn report(
    rows: &[Row],
    summary: &[Vec<String>],
    arguments: &Arguments,
    output: &Output,
) -> Result<()> {
    let count = |status: Status| rows.iter().filter(|row| row.status == status).count();
    let found = output.finish();
    output.json(&found)?;
    output.text(&table(summary));
    let failed = count(Status::Fail);
    let shader = arguments.shader.as_ref();
    let shader = shader.map_or(String::new(), |path| format!(" --shader {}", path.display()));
    // A page holds a kernel's own text, not that of a fragment in its place.
    let shared = arguments.kernel.as_ref().is_some_and(|name| name.starts_with("shared/"));
    let on_gpu = |row: &&Row| row.status == Status::Fail && row.tier != "cpu";
    if let Some(row) = rows.iter().find(on_gpu).filter(|_| !shared || shader.is_empty()) {
        output.note(format!(
            "to show a failure to whoever has another device: lopper verify --kernel '{} {}'{shader} --page case.html",
            row.kernel, row.case
        ));
    }
    output.line(format!("\n{}", totals(&found)));
    if rows.is_empty() {
        return Err(Error::Argument {
            argument: "--kernel / --tier".into(),
            expected: "a selection that has cases on this machine".into(),
            found: "none".into(),
        });
    }
    if failed > 0 { Err(Error::CheckFailed(failed, rows.len())) } else { Ok(()) }
}

/// How many there are, in words.
fn totals(found: &Value) -> String {
    format!("{} passed, {} failed, {} skipped", found["passed"], found["failed"], found["skipped"])
}

/// Counts a row, and prints it if it failed.
fn tell(row: &Row, output: &Output) -> Result<()> {
    if row.status == Status::Fail {
        output.line(format!(
            "FAIL {} {} ({}, {}): {}",
            row.kernel, row.case, row.adapter, row.tier, row.reason
        ));
    }
    output.add(|found| {
        let count = match row.status {
            Status::Pass => "passed",
            Status::Fail => "failed",
            Status::Skip => "skipped",
            Status::Known => "known",
        };
        found[count] = (found[count].as_u64().unwrap_or(0) + 1).into();
        found["rows"].as_array_mut().into_iter().for_each(|rows| rows.push(json!(row)));
    })
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
        let found = adapters(&Selector { name: None, backend });
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let name = name.filter(|name| name != "all");
    Ok(vec![choose(&Selector { name, backend }.or_environment()?)?])
}

/// A line that a child writes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// This case begins.
    Start(String),
    /// It ended.
    Row(Box<Row>),
    /// The device is gone, or could not be opened.
    Lost(String),
}

/// Runs the cases of one adapter and tier from number `skip` on, and writes a line for each event.
fn run_child(
    global: &Global,
    arguments: &Arguments,
    selection: &Selection,
    skip: usize,
) -> Result<()> {
    let tier = match arguments.tier {
        TierChoice::Baseline => Tier::Baseline,
        TierChoice::Coop => Tier::Coop,
        TierChoice::F16 | TierChoice::All => Tier::F16,
    };
    let mut lines = std::io::stdout().lock();
    let mut say = |line: &Line| {
        let text = serde_json::to_string(line).expect("a line is plain values");
        if writeln!(lines, "{text}").and_then(|()| lines.flush()).is_err() {
            // Whoever started this process is gone.
            crate::cli::signals::end(crate::cli::output::CLOSED_PIPE);
        }
    };
    let runner = match open(global, tier, arguments) {
        Ok(runner) => runner,
        Err(error) => {
            say(&Line::Lost(error.to_string()));
            return Ok(());
        }
    };
    let say = std::cell::RefCell::new(&mut say);
    let started = std::cell::Cell::new(skip);
    let starting = |text: &str| {
        say.borrow_mut()(&Line::Start(text.to_string()));
        started.set(started.get() + 1);
        inject(arguments.inject.as_deref(), started.get());
    };
    let done = |row: Row| say.borrow_mut()(&Line::Row(Box::new(row)));
    let random = arguments.random(global);
    match verify(&runner, selection, random, skip, starting, done) {
        Ok(()) => Ok(()),
        Err(error @ Error::Device { .. }) => {
            say.borrow_mut()(&Line::Lost(error.to_string()));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn inject(how: Option<&str>, index: usize) {
    match how.and_then(|text| text.split_once(':')) {
        Some(("hang", at)) if at == index.to_string() => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Some(("abort", at)) if at == index.to_string() => std::process::abort(),
        _ => {}
    }
}

fn open(global: &Global, tier: Tier, arguments: &Arguments) -> Result<Runner> {
    let adapter = choose(&global.selector()?)?;
    let options = Options { tier, checked: true, budget: global.vram_budget, ..Options::default() };
    let runner = Runner::new(Gpu::open(adapter, options)?);
    Ok(match arguments.replacement()? {
        Some((name, source)) => runner.with_source(&name, source),
        None => runner,
    })
}

/// Runs children over one adapter and tier until every case has a row.
fn watch(
    global: &Global,
    arguments: &Arguments,
    adapter: &Adapter,
    tier: Tier,
    output: &Output,
) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let selection = Selection::new(arguments.kernel.as_deref())?;
    let has = adapter.capabilities.within(tier);
    let total = count(&selection, arguments.random(global), has);
    let step =
        format!("{} {} {}", adapter.info.name, backend_name(adapter.info.backend), tier.name());
    loop {
        let mut child = spawn(global, arguments, adapter, tier, rows.len())?;
        let lines = listen(&mut child).inspect_err(|_| end(&mut child))?;
        let mut current: Option<String> = None;
        let broken = loop {
            let line = next(&lines, Duration::from_secs(arguments.case_timeout));
            let line = line.inspect_err(|_| end(&mut child))?;
            match line {
                Ok(Line::Start(text)) => {
                    output.progress(&step, rows.len(), total);
                    current = Some(text);
                }
                Ok(Line::Row(row)) => {
                    let stop = arguments.fail_fast && row.status == Status::Fail;
                    tell(&row, output)?;
                    rows.push(*row);
                    if stop {
                        end(&mut child);
                        return Ok(rows);
                    }
                    current = None;
                }
                Ok(Line::Lost(reason)) => break Some(reason),
                Err(RecvTimeoutError::Timeout) => {
                    break Some(format!("hung: no answer in {} s", arguments.case_timeout));
                }
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        let _ = child.kill();
        let status = child.wait().map_err(Error::read("verify's child process"))?;
        let reason = match (broken, &current) {
            (Some(reason), _) => reason,
            (None, Some(_)) => format!("the process ended: {status}"),
            (None, None) => return Ok(rows),
        };
        let text = current.unwrap_or_else(|| "opening the device".into());
        let opened = text != "opening the device";
        let row = broken_row(adapter, tier, &text, reason);
        tell(&row, output)?;
        rows.push(row);
        if !opened || arguments.fail_fast {
            return Ok(rows);
        }
    }
}

/// Ends a child that is not wanted any more.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// The next line; an error once the user wants to stop.
fn next(
    lines: &Receiver<Line>,
    limit: Duration,
) -> Result<std::result::Result<Line, RecvTimeoutError>> {
    let start = Instant::now();
    loop {
        interrupt::check()?;
        match lines.recv_timeout(Duration::from_millis(50)) {
            Err(RecvTimeoutError::Timeout) if start.elapsed() < limit => {}
            line => return Ok(line),
        }
    }
}

/// The lines of a child, read by a thread so that waiting for them can end.
fn listen(child: &mut Child) -> Result<Receiver<Line>> {
    let (send, lines) = channel();
    if let Some(stdout) = child.stdout.take() {
        let read = move || {
            for text in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                let Ok(line) = serde_json::from_str(&text) else {
                    continue;
                };
                if send.send(line).is_err() {
                    return;
                }
            }
        };
        let reader = std::thread::Builder::new().spawn(read);
        reader.map_err(Error::read("verify's child process"))?;
    }
    Ok(lines)
}

fn spawn(
    global: &Global,
    arguments: &Arguments,
    adapter: &Adapter,
    tier: Tier,
    skip: usize,
) -> Result<Child> {
    let program = std::env::current_exe().map_err(Error::read("this program"))?;
    let mut command = Command::new(program);
    command.args(["verify", "--child", &skip.to_string(), "--tier", tier.name()]);
    command.args([
        "--adapter",
        &adapter.info.name,
        "--backend",
        backend_name(adapter.info.backend),
    ]);
    if let Some(kernel) = &arguments.kernel {
        command.args(["--kernel", kernel]);
    }
    if let Some(shader) = &arguments.shader {
        command.arg("--shader").arg(shader);
    }
    if let Some(inject) = &arguments.inject {
        command.args(["--inject", inject]);
    }
    command.args(["--random", &arguments.random.to_string()]);
    if let Some(seed) = global.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    if let Some(budget) = global.vram_budget {
        command.args(["--vram-budget", &budget.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().map_err(Error::read("verify's child process"))
}

fn broken_row(adapter: &Adapter, tier: Tier, text: &str, reason: String) -> Row {
    let (kernel, case) = text.split_once(' ').unwrap_or((text, ""));
    let mut row = Row {
        kernel: kernel.into(),
        case: case.into(),
        tier: tier.name().into(),
        adapter: adapter.info.name.clone(),
        backend: backend_name(adapter.info.backend).into(),
        driver: adapter.driver(),
        status: Status::Fail,
        error: None,
        tolerance: 1.0,
        nmse: None,
        reason,
    };
    judge_known(&mut row);
    row
}
