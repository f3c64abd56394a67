//! Ctrl-C at any time: exit code 130, what stood there before, nothing else.

use std::path::Path;
use std::process::Command;

use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;

use crate::program::{NANO, Run, SHORT, TEXT, TINY, command, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    if !cfg!(unix) {
        return Vec::new();
    }
    suite!("cli_interrupt": compress, eval)
}

/// Starts the program, presses Ctrl-C after a while, and says how it ended.
fn interrupted(folder: &Path, arguments: &str, delay: f64) -> Result<Run, Failed> {
    let mut command = command(folder, &format!("{arguments} --device cpu"));
    let pipe = std::process::Stdio::piped;
    let child = command.stdout(pipe()).stderr(pipe()).spawn()?;
    let id = child.id().to_string();
    // Before the program listens, the signal simply ends it.
    for _ in 0..200 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        if listens(&id) {
            break;
        }
    }
    std::thread::sleep(std::time::Duration::from_secs_f64(delay));
    Command::new("kill").args(["-INT", &id]).output()?;
    Ok(child.wait_with_output()?.into())
}

/// Whether a process has a handler for SIGINT, as far as Linux tells.
fn listens(id: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap_or(0) & 2 != 0)
}

fn compress() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let job = format!("quantize {TINY} {SHORT} --force --out");
    let start = std::time::Instant::now();
    succeeds(&folder, &format!("{job} whole"))?;
    let full = start.elapsed().as_secs_f64();
    succeeds(&folder, &format!("quantize {NANO} --no-eval --out old"))?;
    let stands = snapshot(&folder)?;
    let mut stopped = 0;
    for (share, out) in [
        (0.0, "new"),
        (0.2, "old"),
        (0.4, "deep/er"),
        (0.6, "old"),
        (0.75, "new"),
        (0.9, "old"),
    ] {
        let run = interrupted(folder.path(), &format!("{job} {out}"), share * full)?;
        if run.code == Some(0) {
            // It was quicker this time: the result is whole, and the last one looked at.
            succeeds(&folder, &format!("inspect {out}"))?;
            break;
        }
        let message = run.err.lines().any(|line| line.contains("interrupted"));
        assert!(run.code == Some(130) && message, "after {share}: {run}");
        let left = snapshot(&folder)?;
        assert!(left == stands, "after {share}: {left:?}");
        stopped += 1;
    }
    assert!(stopped >= 3, "stopped {stopped} times only");
    Ok(())
}

fn eval() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for delay in [0.0, 0.1, 0.3] {
        let run = interrupted(folder.path(), &format!("eval {TINY} --ppl {TEXT}"), delay)?;
        assert!(
            run.code == Some(130) && run.out.is_empty(),
            "after {delay} s: {run}"
        );
    }
    let left = snapshot(&folder)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
