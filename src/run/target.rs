//! Where a result goes: it is written whole or not at all, and never takes the place of something that must stay.

use std::io::Error as Io;
use std::path::Path;

use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::interrupt;

/// A file or folder that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its path. Folders above it are made when the result is whole.
    pub path: &'a Path,
    /// Replace an earlier result.
    pub force: bool,
    /// Whether it is a folder.
    pub folder: bool,
    /// The model it is made from, which is read until the end.
    pub model: &'a Path,
}

impl Target<'_> {
    /// Refuses, before any work, what [`Target::write`] would refuse after it. Leaves nothing behind.
    pub fn check(&self) -> Result<()> {
        self.check_standing()?;
        self.temporary().map(drop)
    }

    /// `write` fills a temporary path near the target, which then takes its place.
    pub fn write(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        self.check_standing()?;
        let temporary = self.temporary()?;
        let whole = temporary.path().join("output");
        write(&whole)?;
        interrupt::check()?;
        let aside = temporary.path().join("replaced");
        let taken = self.take(&whole, &aside);
        if taken.is_err() && aside.exists() {
            // Better a folder with a strange name than a lost result.
            let _ = temporary.keep();
        }
        taken
    }

    /// Renames `whole`, on the same file system, to the target. An earlier result steps aside to `aside` first and comes
    /// back if the new one cannot take its place, so that one of the two is always there whole.
    pub fn take(&self, whole: &Path, aside: &Path) -> Result<()> {
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::write(self.path))?;
        }
        let replaces = self.path.exists();
        if replaces {
            std::fs::rename(self.path, aside).map_err(Error::write(self.path))?;
        }
        std::fs::rename(whole, self.path).map_err(|error| {
            if replaces && let Err(stuck) = std::fs::rename(aside, self.path) {
                let at = aside.display();
                let text = format!("{error}; the earlier result is in {at} ({stuck})");
                return Error::write(self.path)(Io::other(text));
            }
            Error::write(self.path)(error)
        })
    }

    /// Whether what stands there now, if anything, may go.
    pub(super) fn check_standing(&self) -> Result<()> {
        if self.path.symlink_metadata().is_err() {
            return Ok(());
        }
        if !self.force {
            return Err(Error::Exists { path: self.path.into() });
        }
        let refuse = |why: &str| Err(Error::write(self.path)(Io::other(why)));
        match (self.folder, self.path.is_dir()) {
            (true, false) => return refuse("a folder is to be made, and a file stands there"),
            (false, true) => return refuse("a file is to be made, and a folder stands there"),
            _ => {}
        }
        let (out, model) = (self.path.canonicalize(), self.model.canonicalize());
        if out.is_ok_and(|out| model.is_ok_and(|model| model.starts_with(out))) {
            return refuse("the model itself is there; choose another place");
        }
        if self.folder && !is_result(self.path) {
            return refuse("--force replaces models, and this folder holds something else");
        }
        Ok(())
    }

    /// A temporary folder on the target's file system: in the nearest folder above it that is there already.
    fn temporary(&self) -> Result<TempDir> {
        let mut above = self.path.ancestors().skip(1);
        let there = |folder: &&Path| *folder == Path::new("") || folder.symlink_metadata().is_ok();
        let place =
            above.find(there).filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        tempfile::Builder::new()
            .prefix(".lopper-")
            .tempdir_in(place)
            .map_err(Error::write(self.path))
    }
}

/// Whether a folder looks like an earlier result: `compress` writes a manifest, `export` a configuration.
fn is_result(folder: &Path) -> bool {
    let known = ["manifest.json", "config.json"];
    let empty = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    empty || known.iter().any(|name| folder.join(name).is_file())
}
