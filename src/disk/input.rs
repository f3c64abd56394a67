//! Inputs: regular files only, bounded, and watched for changes while they are read.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use super::output::claimed;
use super::{Identity, Kind, locked};
use crate::error::{Error, Result};

/// Most values of a JSON file: each takes 32 bytes in memory and more while a list of them grows.
const VALUES: usize = 8 << 20;

/// The paths of everything that was opened.
static INPUTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Files that had changed when they were closed, with how.
static CHANGED: Mutex<Vec<(PathBuf, String)>> = Mutex::new(Vec::new());

/// A file that is read in parts, when they are asked for.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    file: File,
    opened: Stamp,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    fn of(file: &File) -> std::io::Result<Stamp> {
        let about = file.metadata()?;
        Ok(Stamp { length: about.len(), modified: about.modified().ok() })
    }
}

impl Input {
    /// Opens a regular file. Anything else is an error that names its kind, and is not waited for.
    pub fn open(path: &Path) -> Result<Input> {
        // Asked before opening: opening a pipe would wait for its writer.
        let about = std::fs::metadata(path).map_err(Error::read(path))?;
        let kind = Kind::from(&about);
        if kind != Kind::File {
            let reason = format!("{}, not a regular file", kind.name());
            return Err(Error::read(path)(std::io::Error::other(reason)));
        }
        if claimed(path) {
            let reason = "this run reads it and was to write it too; choose another place";
            return Err(Error::write(path)(std::io::Error::other(reason)));
        }
        let file = File::open(path).map_err(Error::read(path))?;
        let opened = Stamp::of(&file).map_err(Error::read(path))?;
        let mut inputs = locked(&INPUTS);
        if !inputs.iter().any(|known| known == path) {
            inputs.push(path.to_path_buf());
        }
        Ok(Input { path: path.to_path_buf(), file, opened })
    }

    /// Its bytes when it was opened.
    pub fn length(&self) -> u64 {
        self.opened.length
    }

    /// Fills `bytes` from a place in the file on.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let read = read_exact_at(&self.file, bytes, offset);
        read.or_else(|error| self.unchanged().and(Err(Error::read(&self.path)(error))))
    }

    /// An error if it is not as long as it was when it was opened, or was written to since.
    pub fn unchanged(&self) -> Result<()> {
        match self.change() {
            None => Ok(()),
            Some(how) => Err(changed(&self.path, &how)),
        }
    }

    fn change(&self) -> Option<String> {
        let now = Stamp::of(&self.file).ok()?;
        let (was, is) = (self.opened.length, now.length);
        match now == self.opened {
            true => None,
            false if was == is => Some("it was written to".into()),
            false => Some(format!("it had {was} bytes and has {is} now")),
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let from = offset + done as u64;
        match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[done..], from)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

impl Drop for Input {
    fn drop(&mut self) {
        if let Some(how) = self.change() {
            locked(&CHANGED).push((self.path.clone(), how));
        }
    }
}

fn changed(path: &Path, how: &str) -> Error {
    let reason = format!("the file changed while it was read: {how}");
    Error::read(path)(std::io::Error::other(reason))
}

/// An error that names a file that had changed by the time it was closed, if there is one.
pub fn check_unchanged() -> Result<()> {
    match locked(&CHANGED).first() {
        None => Ok(()),
        Some((path, how)) => Err(changed(path, how)),
    }
}

/// Whether this process has read the file that stands there, under whatever name; or a file below that folder.
pub fn is_input(path: &Path) -> bool {
    let Some(wanted) = Identity::of(path) else {
        return false;
    };
    let inputs = locked(&INPUTS).clone();
    let folder = path.is_dir().then(|| path.canonicalize().ok()).flatten();
    inputs.iter().any(|input| match &folder {
        Some(folder) => input.canonicalize().is_ok_and(|input| input.starts_with(folder)),
        None => Identity::of(input) == Some(wanted.clone()),
    })
}

/// All of a file of at most so many bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let input = Input::open(path)?;
    if input.length() > most {
        let expected = format!("at most {most} bytes");
        return Err(malformed(path, "file", expected, format!("{} bytes", input.length())));
    }
    let mut bytes = vec![0; input.length() as usize];
    input.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// All of a file of at most so many bytes that is a text in UTF-8.
pub fn read_string(path: &Path, most: u64) -> Result<String> {
    String::from_utf8(read(path, most)?).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "text".into(),
        offset: Some(error.utf8_error().valid_up_to() as u64),
        expected: "UTF-8".into(),
        found: "another byte".into(),
    })
}

/// All of a file of at most so many bytes that is JSON, of no more values than memory has room for. It is not parsed.
pub fn read_json(path: &Path, most: u64) -> Result<Vec<u8>> {
    let bytes = read(path, most)?;
    bounded_values(path, &bytes, VALUES)?;
    Ok(bytes)
}

/// An error if a JSON text may have more values than this: at most one stands before each sign that parts them.
pub fn bounded_values(path: &Path, json: &[u8], most: usize) -> Result<()> {
    let values = json.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count();
    match values > most {
        true => Err(malformed(path, "JSON", format!("at most {most} values"), values.to_string())),
        false => Ok(()),
    }
}

fn malformed(path: &Path, what: &str, expected: String, found: String) -> Error {
    Error::Malformed { path: path.into(), what: what.into(), offset: None, expected, found }
}
