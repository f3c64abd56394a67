//! The processes of `lopper verify`: each adapter and tier runs in a child that reports line by line, so that a driver that
//! hangs in its compiler or aborts is a failed row, and a fresh child goes on behind it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::verify::{Arguments, TierChoice};
use crate::cli::Global;
use crate::cli::output::Output;
use crate::device::Runner;
use crate::error::{Error, Result};
use crate::gpu::{Adapter, Gpu, Options, Tier, backend_name, choose};
use crate::interrupt;
use crate::measure::trust::verify::{Row, Selection, Status, judge_known, verify};

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

/// The part of a child.
pub(super) fn run_child(
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
        let _ = writeln!(lines, "{text}").and_then(|()| lines.flush());
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
    let options = Options {
        tier,
        checked: true,
        budget: global.vram_budget,
        ..Options::default()
    };
    let runner = Runner::new(Gpu::open(adapter, options)?);
    Ok(match arguments.replacement()? {
        Some((name, source)) => runner.with_source(&name, source),
        None => runner,
    })
}

/// Runs children over one adapter and tier until every case has a row.
pub(super) fn watch(
    global: &Global,
    arguments: &Arguments,
    adapter: &Adapter,
    tier: Tier,
    output: &Output,
) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    let step = format!(
        "{} {} {}",
        adapter.info.name,
        backend_name(adapter.info.backend),
        tier.name()
    );
    loop {
        let mut child = spawn(global, arguments, adapter, tier, rows.len())?;
        let lines = listen(&mut child);
        let mut current: Option<String> = None;
        let broken = loop {
            if let Err(error) = interrupt::check() {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error);
            }
            match next(&lines, Duration::from_secs(arguments.case_timeout)) {
                Ok(Line::Start(text)) => current = Some(text),
                Ok(Line::Row(row)) => {
                    let stop = arguments.fail_fast && row.status == Status::Fail;
                    rows.push(*row);
                    if stop {
                        let _ = child.kill();
                        let _ = child.wait();
                        return Ok(rows);
                    }
                    current = None;
                    output.progress(&step, rows.len(), rows.len() + 1);
                }
                Ok(Line::Lost(reason)) => break Some(reason),
                Err(RecvTimeoutError::Timeout) => {
                    break Some(format!("hung: no answer in {} s", arguments.case_timeout));
                }
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        let _ = child.kill();
        let status = child
            .wait()
            .map_err(Error::read("verify's child process"))?;
        let reason = match (broken, &current) {
            (Some(reason), _) => reason,
            (None, Some(_)) => format!("the process ended: {status}"),
            (None, None) => return Ok(rows),
        };
        let text = current.unwrap_or_else(|| "opening the device".into());
        let opened = text != "opening the device";
        rows.push(broken_row(adapter, tier, &text, reason));
        if !opened || arguments.fail_fast {
            return Ok(rows);
        }
    }
}

fn next(lines: &Receiver<Line>, limit: Duration) -> std::result::Result<Line, RecvTimeoutError> {
    lines.recv_timeout(limit)
}

/// The lines of a child, read by a thread so that waiting for them can end.
fn listen(child: &mut Child) -> Receiver<Line> {
    let (send, lines) = channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            for text in BufReader::new(stdout)
                .lines()
                .map_while(std::result::Result::ok)
            {
                let Ok(line) = serde_json::from_str(&text) else {
                    continue;
                };
                if send.send(line).is_err() {
                    return;
                }
            }
        });
    }
    lines
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
    command.args([
        "verify",
        "--child",
        &skip.to_string(),
        "--tier",
        tier.name(),
    ]);
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
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
        .spawn()
        .map_err(Error::read("verify's child process"))
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
