//! The disk: every input is opened here and every output is made here.
//!
//! An input is a regular file, of a size that its kind can have, read by its descriptor and never mapped: a file that
//! shrinks is an error and no crash. An output takes its name when it is whole and safe on the disk, in one step, so that
//! whoever looks finds the old one or the new one. Links are followed, devices and pipes are written into, and what
//! somebody else made is replaced only where the user says so.
//!
//! What a process reads and writes is a fact of the process, so it is remembered here ([`is_input`]) and not passed through
//! every call: an output is then never an input of the same run, under whatever name.

mod input;
mod output;
mod target;
mod temporary;

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use input::{Input, bounded_values, check_unchanged, is_input, read, read_json, read_string};
pub use output::{claim, replace_file, write_own, write_record, written_by};
pub use target::{Target, write_manifest};
pub use temporary::{remove_temporaries, sweep, swept};

/// Most bytes of a file of settings: a configuration, a recipe, a task file, a template.
pub const SETTINGS: u64 = 4 << 20;
/// Most bytes of a file that lists many small things: an index, a tokenizer's settings, tables of numbers.
pub const LIST: u64 = 64 << 20;
/// Most bytes of a tokenizer.
pub const TOKENIZER: u64 = 256 << 20;
/// Most bytes of a text.
pub const TEXT: u64 = 1 << 30;

/// What stands at a path, links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, or a link to nothing.
    Missing,
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A pipe with a name, or an open one.
    Pipe,
    /// A device of characters: a terminal, the null device.
    Device,
    /// A device of blocks: a disk.
    Disk,
    /// A socket.
    Socket,
    /// None of these.
    Other,
}

impl Kind {
    /// What stands there; an error where that cannot be told.
    pub fn of(path: &Path) -> std::io::Result<Kind> {
        match std::fs::metadata(path) {
            Ok(about) => Ok(Kind::from(&about)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Kind::Missing),
            Err(error) => Err(error),
        }
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Missing => "nothing",
            Kind::File => "a regular file",
            Kind::Folder => "a folder",
            Kind::Pipe => "a pipe",
            Kind::Device => "a terminal or another device",
            Kind::Disk => "a disk",
            Kind::Socket => "a socket",
            Kind::Other => "no regular file",
        }
    }

    /// Whether bytes are written into it as it stands: nothing in it can be replaced.
    pub fn is_stream(self) -> bool {
        matches!(self, Kind::Pipe | Kind::Device)
    }
}

impl From<&Metadata> for Kind {
    fn from(about: &Metadata) -> Kind {
        let kind = about.file_type();
        if kind.is_file() {
            return Kind::File;
        }
        if kind.is_dir() {
            return Kind::Folder;
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileTypeExt;
            let kinds = [
                (kind.is_fifo(), Kind::Pipe),
                (kind.is_char_device(), Kind::Device),
                (kind.is_block_device(), Kind::Disk),
                (kind.is_socket(), Kind::Socket),
            ];
            if let Some((_, kind)) = kinds.into_iter().find(|(is, _)| *is) {
                return kind;
            }
        }
        Kind::Other
    }
}

/// What tells a file from every other one, whatever it is called.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity(u64, u64, PathBuf);

impl Identity {
    /// Of what stands there, links followed.
    fn of(path: &Path) -> Option<Identity> {
        let about = std::fs::metadata(path).ok()?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            Some(Identity(about.dev(), about.ino(), PathBuf::new()))
        }
        #[cfg(not(unix))]
        {
            let _ = about;
            Some(Identity(0, 0, path.canonicalize().ok()?))
        }
    }
}

/// The path that a chain of links ends at, whether or not anything stands there.
fn resolved(path: &Path) -> PathBuf {
    let mut path = path.to_path_buf();
    // As many as Linux follows; a longer chain is met again as an error of whatever uses the path.
    for _ in 0..40 {
        match std::fs::read_link(&path) {
            Ok(next) => path = folder_of(&path).join(next),
            Err(_) => break,
        }
    }
    path
}

/// The folder that a path's name stands in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Flushes a file, or a folder with everything in it, to the disk: to be called before it is renamed.
pub fn sync(path: &Path) -> crate::error::Result<()> {
    use crate::error::Error;
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(Error::read(path))? {
            sync(&entry.map_err(Error::read(path))?.path())?;
        }
        return sync_folder(path);
    }
    let file = std::fs::File::open(path).map_err(Error::read(path))?;
    file.sync_all().map_err(Error::write(path))
}

/// Flushes the names in a folder to the disk, where a folder can be opened.
pub fn sync_folder(folder: &Path) -> crate::error::Result<()> {
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    if cfg!(not(unix)) {
        return Ok(());
    }
    let synced = std::fs::File::open(folder).and_then(|file| file.sync_all());
    synced.map_err(crate::error::Error::write(folder))
}

/// A lock that a panic elsewhere does not spoil: what it guards is whole between any two statements.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes from `6GiB`, `800MiB`, `2GB` or a plain number.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => {
            return Err(format!(
                "`{text}` is not a size; write 6GiB, 800MiB, 2GB or a number of bytes"
            ));
        }
    };
    match number.parse::<f64>() {
        Ok(value) if value > 0.0 => Ok((value * factor) as u64),
        _ => Err(format!("`{text}` is not a size; write 6GiB, 800MiB, 2GB or a number of bytes")),
    }
}
