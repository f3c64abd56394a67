//! The program as a script runs it: a command in a folder, what it prints and returns, what it leaves behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use libtest_mimic::Failed;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub const TINY: &str = "embedded:tiny-llama";
pub const NANO: &str = "embedded:nano-llama";
pub const TEXT: &str = "embedded:heldout-2026";
/// A quick measurement.
pub const SHORT: &str = "--ctx 128 --max-tokens 1024";

/// The exit code of a run of the program, and what it printed.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn json(&self) -> Result<Value, Failed> {
        let value = serde_json::from_str(&self.out);
        value.map_err(|error| format!("standard output is not JSON: {error}: {}", self.out).into())
    }
}

impl Run {
    /// It must have ended with this code and said this on standard error, each text between ` & `.
    pub fn refused(&self, code: i32, said: &str) {
        let refused =
            self.code == Some(code) && said.split(" & ").all(|text| self.err.contains(text));
        assert!(refused, "expected exit {code} and `{said}`, found {self}");
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit {:?}: {}{}", self.code, self.out, self.err)
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program in a folder, with arguments separated by spaces.
pub fn command(folder: &Path, arguments: &str) -> Command {
    static DISPLAY: OnceLock<TempDir> = OnceLock::new();
    let display = DISPLAY.get_or_init(|| TempDir::new().expect("a temporary folder"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_lopper"));
    command
        .current_dir(folder)
        .args(arguments.split_whitespace())
        .env("XDG_RUNTIME_DIR", display.path())
        // Whoever runs the tests may have tuned the machine.
        .env("LOPPER_CACHE", folder);
    command
}

pub fn lopper(folder: impl AsRef<Path>, arguments: &str) -> Result<Run, Failed> {
    Ok(command(folder.as_ref(), arguments).output()?.into())
}

/// As [`lopper`], and it must succeed.
pub fn runs(folder: impl AsRef<Path>, arguments: &str) -> Result<Run, Failed> {
    let run = lopper(folder, arguments)?;
    assert!(run.code == Some(0), "lopper {arguments}: {run}");
    Ok(run)
}

/// As [`runs`], on the CPU.
pub fn succeeds(folder: impl AsRef<Path>, arguments: &str) -> Result<Run, Failed> {
    runs(folder, &format!("{arguments} --device cpu"))
}

/// The JSON of a file.
pub fn read_json(path: impl AsRef<Path>) -> Result<Value, Failed> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Every file below a folder with its bytes' hash, and every folder.
pub fn snapshot(folder: impl AsRef<Path>) -> Result<BTreeMap<PathBuf, String>, Failed> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.as_ref().to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            let about = path.symlink_metadata()?;
            let what = if about.is_file() {
                sha256(&std::fs::read(&path)?)
            } else if about.is_dir() {
                folders.push(path.clone());
                "folder".into()
            } else {
                "other".into()
            };
            found.insert(path.strip_prefix(&folder)?.to_path_buf(), what);
        }
    }
    Ok(found)
}

pub fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The perplexity of a quantized model by each of two engines on the GPU: near, and not the same number.
pub fn engines_agree(quantize: &str, engines: [&str; 2], limit: f64) -> Result<(), Failed> {
    let perplexity = |engine: &str| -> Result<f64, Failed> {
        let folder = TempDir::new()?;
        let flags = "--device gpu --max-tokens 512 --ctx 256 --out out --json=-";
        let report = runs(&folder, &format!("{quantize} --engine {engine} {flags}"))?.json()?;
        let found = report["stages"][0]["figures"]["perplexity"]["value"].as_f64();
        Ok(found.ok_or_else(|| report.to_string())?)
    };
    let (first, second) = (perplexity(engines[0])?, perplexity(engines[1])?);
    let near = (first / second - 1.0).abs() < limit && first != second;
    assert!(near, "{engines:?}: {first}, {second}");
    Ok(())
}

/// Rows of a table of tests, one a line: what is tried, `=>`, and what must come of it.
pub fn rows(table: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = table.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| {
        let (left, right) = line.split_once(" => ").expect("a row has two sides");
        (left.trim(), right.trim_end())
    })
}

/// The value has each field of a list.
pub fn has_fields(value: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        assert!(value.get(field).is_some(), "no field `{field}` in {value}");
    }
}
