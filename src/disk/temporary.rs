//! Where an output is made until it is whole: a hidden folder beside its place, `.lopper-` and some letters, which a lock
//! tells from one that a dead process left.

use std::fs::File;
use std::io::{Error as Io, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;

use super::{folder_of, locked};

const PREFIX: &str = ".lopper-";
/// Where a replaced output stands, under its own name, while the new one takes its place in two steps.
const ASIDE: &str = "replaced";

/// The folders of this process.
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// What [`sweep`] did, in words.
static SWEPT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A hidden folder that goes when it is dropped, with whatever is in it then.
#[derive(Debug)]
pub(super) struct Temporary {
    folder: TempDir,
    _lock: Option<File>,
}

impl Temporary {
    /// On the file system of a path that is to be made: in its folder, or in the nearest one above that is there.
    pub(super) fn beside(place: &Path) -> Result<Temporary> {
        let mut above = place.ancestors().skip(1).filter(|folder| *folder != Path::new(""));
        let there = above.find(|folder| folder.symlink_metadata().is_ok());
        let there = there.unwrap_or(Path::new("."));
        loop {
            let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(there)?;
            let lock = File::open(folder.path()).ok().filter(|file| file.try_lock().is_ok());
            // Before it was locked, somebody else may have taken it for a dead one's.
            if folder.path().exists() {
                locked(&LIVE).push(folder.path().into());
                return Ok(Temporary { folder, _lock: lock });
            }
        }
    }

    /// The path at which the output is made.
    pub(super) fn whole(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    /// Gives the output its place. With `over`, what stands there goes; without, it is an error that something does.
    pub(super) fn take(&self, place: &Path, over: bool) -> Result<()> {
        take(&self.whole(), place, over, &self.folder.path().join(ASIDE))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        locked(&LIVE).retain(|path| path != self.folder.path());
    }
}

/// Gives `whole`, on the same file system, the path `place`, in one step wherever the system has one: a file is renamed over
/// a file, a folder changes places with a folder. `aside`: a folder for what is replaced where it has none.
pub(super) fn take(whole: &Path, place: &Path, over: bool, aside: &Path) -> Result<()> {
    if !over {
        return rename_new(whole, place);
    }
    if !whole.is_dir() {
        if let Ok(about) = std::fs::metadata(place) {
            // Who may read it stays as it was.
            let _ = std::fs::set_permissions(whole, about.permissions());
        }
        return std::fs::rename(whole, place);
    }
    if place.symlink_metadata().is_err() {
        return rename_new(whole, place);
    }
    match exchange(whole, place) {
        Err(error) if has_no_such_step(&error) => {}
        exchanged => return exchanged,
    }
    std::fs::create_dir_all(aside)?;
    let aside = aside.join(place.file_name().unwrap_or_default());
    std::fs::rename(place, &aside)?;
    std::fs::rename(whole, place).map_err(|error| match std::fs::rename(&aside, place) {
        Ok(()) => error,
        Err(stuck) => {
            let at = aside.display();
            Io::other(format!("{error}; the earlier result is in {at} ({stuck})"))
        }
    })
}

/// Renames to a path at which nothing stands.
fn rename_new(from: &Path, to: &Path) -> Result<()> {
    match rename_with(from, to, false) {
        Err(error) if has_no_such_step(&error) => {}
        renamed => return renamed,
    }
    // A second name is an error too where something stands.
    if from.is_file() {
        match std::fs::hard_link(from, to) {
            Ok(()) => return std::fs::remove_file(from),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(error),
            Err(_) => {}
        }
    }
    match to.symlink_metadata() {
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => std::fs::rename(from, to),
    }
}

/// Lets two paths change places.
fn exchange(one: &Path, other: &Path) -> Result<()> {
    rename_with(one, other, true)
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn rename_with(from: &Path, to: &Path, exchange: bool) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let flags = if exchange { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    Ok(renameat_with(CWD, from, CWD, to, flags)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn rename_with(_: &Path, _: &Path, _: bool) -> Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Whether the system or the file system does not know how.
fn has_no_such_step(error: &Io) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput)
}

/// Removes what dead processes left in a folder. What they had set aside comes back if nothing is in its place.
pub fn sweep(folder: &Path) {
    let mine = locked(&LIVE).clone();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) || mine.contains(&path) {
            continue;
        }
        let Some(_lock) = File::open(&path).ok().filter(|file| file.try_lock().is_ok()) else {
            continue;
        };
        for aside in std::fs::read_dir(path.join(ASIDE)).into_iter().flatten().flatten() {
            let place = folder_of(&path).join(aside.file_name());
            if rename_new(&aside.path(), &place).is_ok() {
                let text =
                    format!("restored {}, which a killed run had set aside", place.display());
                locked(&SWEPT).push(text);
            }
        }
        if std::fs::remove_dir_all(&path).is_ok() {
            locked(&SWEPT).push(format!("removed {}, which a killed run had left", path.display()));
        }
    }
}

/// What was swept since the last call, a line each.
pub fn swept() -> Vec<String> {
    std::mem::take(&mut locked(&SWEPT))
}

/// Removes every temporary folder of this process, which is about to end without unwinding.
pub fn remove_temporaries() {
    for path in locked(&LIVE).drain(..) {
        // Another thread may be adding to it.
        for _ in 0..3 {
            if std::fs::remove_dir_all(&path).is_ok() || !path.exists() {
                break;
            }
        }
    }
}
