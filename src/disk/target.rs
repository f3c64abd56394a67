//! Where a command's result goes: it is written whole or not at all, and never takes the place of something that must stay.

use std::collections::HashSet;
use std::io::Error as Io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::output::{read_too, refused};
use super::temporary::{Temporary, take};
use super::{Kind, LIST, folder_of, is_input, resolved, sweep, sync, sync_folder};
use crate::error::{Error, Result};
use crate::interrupt;

/// A file or folder that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its path. Folders above it are made when the result is whole. A link is followed; into a device or a pipe a file is
    /// written as it comes.
    pub path: &'a Path,
    /// Replace an earlier result.
    pub force: bool,
    /// Whether it is a folder.
    pub folder: bool,
    /// The model it is made from, which is read until the end.
    pub model: &'a Path,
}

/// What a folder's `manifest.json` says of the files that Lopper wrote there; a run's has more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub lopper: String,
    /// The files, in order of path.
    pub outputs: Vec<Written>,
}

/// A file of a folder that Lopper wrote.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    /// Relative to the folder.
    pub path: String,
    /// Its length.
    pub bytes: u64,
}

const MANIFEST: &str = "manifest.json";

impl Target<'_> {
    /// Refuses, before any work, what [`Target::write`] would refuse after it. Leaves nothing behind.
    pub fn check(&self) -> Result<()> {
        self.check_standing()?;
        if self.is_stream() {
            return Ok(());
        }
        let place = resolved(self.path);
        sweep(folder_of(&place));
        Temporary::beside(&place).map(drop).map_err(Error::write(self.path))
    }

    /// `write` fills a temporary path near the target, which then takes its place. Returns what `write` does.
    pub fn write<T>(&self, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        self.check_standing()?;
        if self.is_stream() {
            return write(self.path);
        }
        let temporary = Temporary::beside(&resolved(self.path)).map_err(Error::write(self.path))?;
        let whole = temporary.whole();
        let written = write(&whole).map_err(|error| match error {
            Error::Write { path, source } => {
                // The user knows the output by its own name.
                let below = path.strip_prefix(&whole).map(|below| self.path.join(below));
                Error::Write { path: below.unwrap_or(path), source }
            }
            other => other,
        })?;
        if self.folder {
            write_manifest(&whole)?;
        }
        sync(&whole)?;
        interrupt::check()?;
        self.take(&whole, &whole.with_file_name("replaced"))?;
        Ok(written)
    }

    /// Gives `whole`, which is on the same file system and on the disk, the target's place. An earlier result is at `whole`
    /// then, or in the folder `aside`.
    pub fn take(&self, whole: &Path, aside: &Path) -> Result<()> {
        self.check_standing()?;
        let place = resolved(self.path);
        let folder = folder_of(&place);
        std::fs::create_dir_all(folder).map_err(Error::write(self.path))?;
        take(whole, &place, self.force, aside).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => Error::Exists { path: self.path.into() },
            _ => Error::write(self.path)(error),
        })?;
        sync_folder(folder)
    }

    /// Whether bytes go straight into what stands there.
    fn is_stream(&self) -> bool {
        !self.folder && Kind::of(self.path).is_ok_and(Kind::is_stream)
    }

    /// Whether what stands there now, if anything, may go.
    pub fn check_standing(&self) -> Result<()> {
        let kind = Kind::of(self.path).map_err(Error::write(self.path))?;
        match kind {
            Kind::Missing => return Ok(()),
            kind if kind.is_stream() && !self.folder => return Ok(()),
            Kind::File | Kind::Folder => {}
            kind => return Err(refused(self.path, kind)),
        }
        if !self.force {
            return Err(Error::Exists { path: self.path.into() });
        }
        let refuse = |why: &str| Err(Error::write(self.path)(Io::other(why)));
        match (self.folder, kind == Kind::Folder) {
            (true, false) => return refuse("a folder is to be made, and a file stands there"),
            (false, true) => return refuse("a file is to be made, and a folder stands there"),
            _ => {}
        }
        let (out, model) = (self.path.canonicalize(), self.model.canonicalize());
        if out.is_ok_and(|out| model.is_ok_and(|model| model.starts_with(out))) {
            return refuse("the model itself is there; choose another place");
        }
        if is_input(self.path) {
            return Err(read_too(self.path));
        }
        match self.folder {
            true => check_own(self.path),
            false => Ok(()),
        }
    }
}

/// An error that names files of a folder that its manifest does not name. An empty folder has none.
fn check_own(folder: &Path) -> Result<()> {
    let refuse = |why: String| Err(Error::write(folder)(Io::other(why)));
    let found = files_below(folder)?;
    if found.is_empty() {
        return Ok(());
    }
    let path = folder.join(MANIFEST);
    // No input of the run: it only says what may go.
    let small = path.metadata().is_ok_and(|about| about.is_file() && about.len() <= LIST);
    let text = small.then(|| std::fs::read(&path).ok()).flatten();
    let manifest = text.and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
    let Some(manifest) = manifest else {
        let why = "--force replaces folders that lopper wrote, and this one has no manifest.json of its; remove it yourself";
        return refuse(why.into());
    };
    let own: HashSet<&str> = manifest.outputs.iter().map(|file| file.path.as_str()).collect();
    let foreign = found.iter().filter(|(name, _)| name != MANIFEST && !own.contains(name.as_str()));
    let foreign: Vec<&str> = foreign.map(|(name, _)| name.as_str()).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let (count, few) = (foreign.len(), foreign[..foreign.len().min(3)].join(", "));
    let more = if count > 3 { ", …" } else { "" };
    refuse(format!(
        "--force replaces only what lopper wrote, and {count} files there are not in its manifest.json ({few}{more}); move them first"
    ))
}

/// Files below a folder, and folders that are empty, by path relative to it with `/`, and their lengths, in order; links are
/// not followed.
fn files_below(folder: &Path) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let mut empty = next != folder;
        for entry in std::fs::read_dir(&next).map_err(Error::read(&next))? {
            empty = false;
            let path = entry.map_err(Error::read(&next))?.path();
            let about = path.symlink_metadata().map_err(Error::read(&path))?;
            match about.is_dir() {
                true => folders.push(path),
                false => files.push((relative(&path, folder), about.len())),
            }
        }
        if empty {
            files.push((relative(&next, folder), 0));
        }
    }
    files.sort();
    Ok(files)
}

fn relative(path: &Path, folder: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

/// Writes into a folder which files it has, so that a later `--force` knows them. One that is there stays.
pub fn write_manifest(folder: &Path) -> Result<()> {
    let path = folder.join(MANIFEST);
    if path.exists() {
        return Ok(());
    }
    let outputs = files_below(folder)?.into_iter().map(|(path, bytes)| Written { path, bytes });
    let lopper = env!("CARGO_PKG_VERSION").into();
    let manifest = Manifest { schema: 1, lopper, outputs: outputs.collect() };
    let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain values");
    std::fs::write(&path, text + "\n").map_err(Error::write(&path))
}
