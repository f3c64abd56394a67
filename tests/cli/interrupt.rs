//! Ctrl-C at any time: exit code 130, what stood there before, nothing else.

use std::path::Path;
use std::process::Command;

use libtest_mimic::{Failed, Trial};
use tempfile::TempDir;

use crate::program::{Run, TEXT, TINY, command, snapshot};

pub fn trials() -> Vec<Trial> {
    if !cfg!(unix) {
        return Vec::new();
    }
    suite!("cli_interrupt": eval)
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

fn eval() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for delay in [0.0, 0.1, 0.3] {
        let run = interrupted(folder.path(), &format!("eval {TINY} --ppl {TEXT}"), delay)?;
        assert!(run.code == Some(130) && run.out.is_empty(), "after {delay} s: {run}");
    }
    let left = snapshot(&folder)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
