//! The folder `OUT.work/`, in which a run keeps what it has done until its result is whole.
//!
//! `work.toml` says which run it is: everything that the result depends on. `NN-name/` is the result of a stage, a packed
//! folder with its own record `done.toml`; it is made as `NN-name.part/`, where a stage saves its progress, and renamed when it
//! is whole and on the disk. `NN-name.report.toml` holds what was measured of it, so that it is not measured again. Records
//! are TOML because its numbers come back bit for bit.

use std::fs::{File, TryLockError};
use std::io::Error as Io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::files::HashedInput;
use crate::disk::{sync, sync_folder, write_record};
use crate::error::{Error, Result};
use crate::formats::sha256;

const RECORD: &str = "work.toml";

/// Something that a run's result depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fact {
    pub(super) what: String,
    pub(super) value: String,
}

/// Which run a work folder is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    fact: Vec<Fact>,
    #[serde(default)]
    input: Vec<HashedInput>,
}

/// A work folder that this process holds.
#[derive(Debug)]
pub(super) struct Work {
    path: PathBuf,
    facts: Vec<Fact>,
    /// Whether an earlier run made it.
    resumed: bool,
    /// Folders above it that this run made, the deepest first.
    made: Vec<PathBuf>,
    lock: File,
}

/// The work folder of a run that writes to `out`.
pub(super) fn work_path(out: &Path) -> Result<PathBuf> {
    let Some(name) = out.file_name() else {
        return Err(Error::Argument {
            argument: "--out".into(),
            expected: "a path that ends with a name".into(),
            found: out.display().to_string(),
        });
    };
    let mut name = name.to_os_string();
    name.push(".work");
    Ok(out.with_file_name(name))
}

/// Whether a work folder is there that has anything in it.
pub(super) fn is_there(path: &Path) -> bool {
    let unborn = |name: &str| name == format!("{RECORD}.new");
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries
            .any(|entry| !entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(unborn))),
        Err(_) => path.symlink_metadata().is_ok(),
    }
}

/// The inputs that the run of a work folder hashed; none if there is no such folder.
pub(super) fn known_inputs(path: &Path) -> Vec<HashedInput> {
    read_record::<Record>(&path.join(RECORD))
        .ok()
        .flatten()
        .map_or_else(Vec::new, |record| record.input)
}

impl Work {
    /// Takes the folder, or makes it. One of another run is an error, and without `resume` any.
    pub(super) fn open(
        path: PathBuf,
        resume: bool,
        facts: Vec<Fact>,
        inputs: Vec<HashedInput>,
    ) -> Result<Self> {
        let resumed = is_there(&path);
        if resumed && !resume {
            return Err(Error::Unfinished { path });
        }
        let mut made = Vec::new();
        if resumed {
            let refuse = || Error::write(&path)(Io::other("this is no work folder of lopper"));
            let record: Record = read_record(&path.join(RECORD))?.ok_or_else(refuse)?;
            compare(&path, &record.fact, &facts)?;
        } else {
            let above = path.ancestors().skip(1);
            let missing = above.take_while(|folder| {
                *folder != Path::new("") && folder.symlink_metadata().is_err()
            });
            made.extend(missing.map(Path::to_path_buf));
            std::fs::create_dir_all(&path).map_err(Error::write(&path))?;
            let fact = facts.clone();
            let record = to_toml(&Record { fact, input: inputs });
            write_record(&path.join(RECORD), &record)?;
        }
        let lock = File::create(path.join("lock")).map_err(Error::write(&path))?;
        // A file system that knows no locks is no reason not to work.
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            let why = "another run is using this work folder";
            return Err(Error::write(&path)(Io::other(why)));
        }
        Ok(Self { path, facts, resumed, made, lock })
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A hash of everything that the result of the first `stages` stages depends on.
    pub(super) fn chain(&self, stages: usize) -> String {
        let last = format!("stage {stages}");
        let end = self.facts.iter().position(|fact| fact.what == last);
        hash(&self.facts[..=end.unwrap_or(0)])
    }

    /// What [`Work::record`] recorded as `name`.
    pub(super) fn recorded<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        read_record(&self.path.join(name))
    }

    /// Records something as `name`, all of it or nothing.
    pub(super) fn record(&self, name: &str, value: &impl Serialize) -> Result<()> {
        write_record(&self.path.join(name), &to_toml(value))
    }

    /// Gives a folder that was made as `part` its name, when it is on the disk.
    pub(super) fn seal(&self, part: &Path, whole: &Path) -> Result<()> {
        sync(part)?;
        std::fs::rename(part, whole).map_err(Error::write(whole))?;
        sync_folder(&self.path)
    }

    /// Removes the folder when its result is out.
    pub(super) fn remove(self) -> Result<()> {
        drop(self.lock);
        let wrong = || Error::write(&self.path);
        for entry in std::fs::read_dir(&self.path).map_err(wrong())? {
            let entry = entry.map_err(wrong())?.path();
            // The record goes last: a folder that is half removed is still known for what it is.
            if entry.ends_with(RECORD) {
                continue;
            }
            match entry.is_dir() {
                true => std::fs::remove_dir_all(&entry),
                false => std::fs::remove_file(&entry),
            }
            .map_err(wrong())?;
        }
        std::fs::remove_dir_all(&self.path).map_err(wrong())
    }

    /// After an error: removes the folder if there is nothing in it that would spare a later run work.
    pub(super) fn leave(self, error: &Error) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        let has = |whole: bool| move |name: &str| name.ends_with(".part") != whole;
        let names: Vec<String> =
            folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let (whole, part) =
            (names.iter().any(|name| has(true)(name)), names.iter().any(|name| has(false)(name)));
        // Bad input is met again at the same place; a device may have room the next time, and what was learned is worth keeping.
        let learned = matches!(error, Error::Diverged { kept: Some(_), .. });
        if self.resumed || whole || (part && (error.exit_code() != 2 || learned)) {
            return;
        }
        let made = self.made.clone();
        if self.remove().is_ok() {
            // Stops at the first that something else has come into.
            let _ = made.iter().try_for_each(std::fs::remove_dir);
        }
    }
}

/// A hash of facts.
pub(super) fn hash(facts: &[Fact]) -> String {
    let lines = facts.iter().map(|fact| format!("{}: {}\n", fact.what, fact.value));
    sha256(lines.collect::<String>())
}

/// An error that names the first fact in which two runs differ.
fn compare(path: &Path, before: &[Fact], now: &[Fact]) -> Result<()> {
    let value = |facts: &[Fact], what: &str| {
        let found = facts.iter().find(|fact| fact.what == what);
        found.map_or("absent".to_string(), |fact| fact.value.clone())
    };
    let differs = |fact: &&Fact| value(before, &fact.what) != value(now, &fact.what);
    match now.iter().chain(before).find(differs) {
        None => Ok(()),
        Some(Fact { what, .. }) => Err(Error::OtherRun {
            path: path.into(),
            what: what.clone(),
            before: value(before, what),
            now: value(now, what),
        }),
    }
}

/// Reads a record; `None` if there is none.
pub(super) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(Error::read(path))?;
    toml::from_str(&text).map(Some).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "record".into(),
        offset: error.span().map(|span| span.start as u64),
        expected: "what this version of lopper writes".into(),
        found: error.message().replace('\n', " "),
    })
}

pub(super) fn to_toml(value: &impl Serialize) -> String {
    toml::to_string(value).expect("records are plain tables and values")
}
