//! Ctrl-C and the other signals at any time: the right exit code in a second, what stood there before, and what was found.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;

use crate::program::{NANO, Run, TEXT, TINY, command, read_json, snapshot};

pub fn trials() -> Vec<Trial> {
    if !cfg!(unix) {
        return Vec::new();
    }
    suite!("cli_interrupt": eval, signals, partial, everywhere, twice; gpu: rows)
}

/// Starts the program and waits until it listens.
fn start(folder: &Path, arguments: &str) -> Result<Child, Failed> {
    let mut command = command(folder, arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let id = child.id().to_string();
    // Before the program listens, the signal simply ends it.
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(5));
        if listens(&id) {
            break;
        }
    }
    Ok(child)
}

fn press(child: &Child, signal: &str) -> Result<(), Failed> {
    Command::new("kill").args([signal, &child.id().to_string()]).output()?;
    Ok(())
}

/// Starts the program, sends a signal after a while, and says how it ended. It may take a second, and what a loaded machine
/// adds to that.
fn interrupted(folder: &Path, arguments: &str, signal: &str, delay: f64) -> Result<Run, Failed> {
    let child = start(folder, arguments)?;
    std::thread::sleep(Duration::from_secs_f64(delay));
    press(&child, signal)?;
    let pressed = Instant::now();
    let run = Run::from(child.wait_with_output()?);
    let seconds = pressed.elapsed().as_secs_f64();
    assert!(seconds < 2.5, "{arguments}: ended {seconds:.1} s after the signal: {run}");
    Ok(run)
}

/// Whether a process waits for SIGINT or has a handler for it, as far as Linux tells.
fn listens(id: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let masks = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigCgt:").or_else(|| line.strip_prefix("SigBlk:")));
    masks.into_iter().any(|mask| u64::from_str_radix(mask.trim(), 16).unwrap_or(0) & 2 != 0)
}

fn eval() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for delay in [0.0, 0.1, 0.3] {
        let arguments = format!("eval {TINY} --ppl {TEXT} --device cpu");
        let run = interrupted(folder.path(), &arguments, "-INT", delay)?;
        assert!(run.code == Some(130), "after {delay} s: {run}");
    }
    let left = snapshot(&folder)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

/// The exit code says which signal it was.
fn signals() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let own = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = own.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0");
    // Under nohup the program lives on, as whoever started it asks.
    let outlives = u64::from_str_radix(ignored.trim(), 16).unwrap_or(0) & 1 != 0;
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        if signal == "-HUP" && outlives {
            continue;
        }
        let arguments = format!("eval {TINY} --ppl {TEXT} --device cpu");
        let run = interrupted(folder.path(), &arguments, signal, 0.1)?;
        assert!(run.code == Some(code) && run.err.contains("interrupted"), "{signal}: {run}");
    }
    Ok(())
}

/// What was found until then is given, in text and in JSON, and says that it is not all.
fn partial() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("text"), "the quick brown fox ".repeat(60_000))?;
    let arguments = format!("eval {TINY} --ppl text --ctx 128 --device cpu --json=x.json");
    let child = start(folder.path(), &arguments)?;
    let path = folder.path().join("x.json");
    let begun = Instant::now();
    // The file has what there is long before the end.
    while !path.exists() && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let early = read_json(&path)?;
    press(&child, "-INT")?;
    let run = Run::from(child.wait_with_output()?);
    let last = read_json(&path)?;
    for found in [&early, &last] {
        let scored = found["perplexity"]["tokens_scored"].as_u64().unwrap_or(0);
        assert!(found["partial"] == true && scored > 0, "{found}");
    }
    assert!(run.code == Some(130) && run.err.contains("partial"), "{run}");
    assert!(run.out.contains("so far: perplexity"), "{run}");
    let left: Vec<_> = snapshot(&folder)?.into_keys().collect();
    assert_eq!(left, ["text", "x.json"].map(std::path::PathBuf::from).to_vec());
    Ok(())
}

/// No part of any command is longer than the second that is allowed.
fn everywhere() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("text"), "the quick brown fox ".repeat(400_000))?;
    // Tokenizing, and writing.
    for arguments in ["eval MODEL --ppl text --device cpu", "synth tinyllama --layers 2 --out s"] {
        let arguments = &arguments.replace("MODEL", NANO);
        let run = interrupted(folder.path(), arguments, "-INT", 0.5)?;
        assert!(run.code == Some(130), "{run}");
        let left: Vec<_> = snapshot(&folder)?.into_keys().collect();
        assert_eq!(left, [Path::new("text").to_path_buf()], "{arguments}");
    }
    Ok(())
}

/// A second signal ends the program at once.
fn twice() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("text"), "the quick brown fox ".repeat(400_000))?;
    let child = start(folder.path(), &format!("eval {NANO} --ppl text --device cpu"))?;
    std::thread::sleep(Duration::from_millis(300));
    let pressed = Instant::now();
    press(&child, "-INT")?;
    std::thread::sleep(Duration::from_millis(50));
    press(&child, "-INT")?;
    let run = Run::from(child.wait_with_output()?);
    assert!(run.code == Some(130) && pressed.elapsed() < Duration::from_secs(1), "{run}");
    Ok(())
}

/// Rows of checks are printed and written as they come.
fn rows() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for arguments in [
        "verify --tier baseline --json=x.json",
        "bench kernels --no-ceilings -o jsonl --json=x.json",
        "bench hardware -o jsonl --json=x.json",
    ] {
        let mut child = start(folder.path(), arguments)?;
        let path = folder.path().join("x.json");
        let begun = Instant::now();
        while !path.exists() && begun.elapsed() < Duration::from_secs(90) {
            std::thread::sleep(Duration::from_millis(20));
            assert!(child.try_wait()?.is_none(), "{arguments} ended");
        }
        press(&child, "-TERM")?;
        let run = Run::from(child.wait_with_output()?);
        let found = read_json(&path)?;
        let rows = if found.is_array() { &found } else { &found["rows"] };
        let marked = found["partial"] == true || rows[0]["partial"] == true;
        let count = rows.as_array().map_or(0, Vec::len);
        assert!(run.code == Some(143) && marked && count > 0, "{run}");
        let printed = run.out.lines().filter(|line| line.starts_with('{')).count();
        assert!(arguments.starts_with("verify") || printed == count, "{run}");
        std::fs::remove_file(path)?;
    }
    Ok(())
}
