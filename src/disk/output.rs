//! Files: written whole under another name, or straight into a device or a pipe.

use std::fs::File;
use std::io::{BufWriter, Error as Io, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::temporary::Temporary;
use super::{Identity, Kind, is_input, locked, resolved, sweep, sync_folder};
use crate::error::{Error, Result};

/// What files carry that Lopper may replace without `--force`: JSON has this key with a value that begins with `lopper`, a
/// page this name of its generator. It stands in the first bytes, [`HEAD`] at most.
const MARKS: [&str; 3] = [
    "\"written_by\": \"lopper",
    "\"written_by\":\"lopper",
    "<meta name=\"generator\" content=\"lopper",
];
const HEAD: u64 = 4096;

/// The value of the mark.
pub fn written_by() -> String {
    format!("lopper {}", env!("CARGO_PKG_VERSION"))
}

/// A file that a run is going to write, and what stood there when that was said.
#[derive(Clone, Debug)]
struct Claim {
    path: PathBuf,
    stood: Option<Identity>,
}

static CLAIMS: Mutex<Vec<Claim>> = Mutex::new(Vec::new());

/// Whether a run is going to write the file that stands there.
pub(super) fn claimed(path: &Path) -> bool {
    let claims = locked(&CLAIMS).clone();
    let mut stood = claims.into_iter().filter_map(|claim| claim.stood).peekable();
    stood.peek().is_some() && Identity::of(path).is_some_and(|own| stood.any(|s| s == own))
}

/// Says, before any work, that a file will be written beside the command's main output: a report, a page, a list of answers.
/// What stands there may go if it is empty or Lopper wrote it, and with `force` if it is any regular file; never if the run
/// reads it.
pub fn claim(path: &Path, force: bool) -> Result<()> {
    let place = resolved(path);
    let stood = match Kind::of(path).map_err(Error::write(path))? {
        kind if kind.is_stream() || is_own_stream(path) => None,
        Kind::Missing => {
            writable(path, &place)?;
            None
        }
        Kind::File => {
            check_replaceable(path, force)?;
            writable(path, &place)?;
            Identity::of(path)
        }
        Kind::Folder => {
            return Err(Error::write(path)(std::io::ErrorKind::IsADirectory.into()));
        }
        kind => return Err(refused(path, kind)),
    };
    let mut claims = locked(&CLAIMS);
    if claims.iter().any(|claim| claim.path == place) && !Kind::of(path).is_ok_and(Kind::is_stream)
    {
        return Err(Error::write(path)(Io::other("two outputs of this run have this path")));
    }
    claims.push(Claim { path: place, stood });
    Ok(())
}

/// Writes a file that was claimed. It appears whole or not at all; a later call replaces what an earlier one wrote.
pub fn write_own(path: &Path, bytes: &[u8]) -> Result<()> {
    let put = |file: &mut dyn Write| file.write_all(bytes).map_err(Error::write(path));
    if Kind::of(path).is_ok_and(Kind::is_stream) || is_own_stream(path) {
        return write_into(path, put);
    }
    let place = resolved(path);
    let claimed = locked(&CLAIMS).iter().position(|claim| claim.path == place);
    let Some(index) = claimed else {
        claim(path, false)?;
        return write_own(path, bytes);
    };
    if is_input(path) {
        return Err(read_too(path));
    }
    let stood = locked(&CLAIMS)[index].stood.clone();
    // What came there since, from whomever, stays.
    let over = stood.is_some() && Identity::of(path) == stood;
    write_beside(path, &place, over, put)?;
    locked(&CLAIMS)[index].stood = Identity::of(path);
    Ok(())
}

/// Writes a file, whatever regular file stands there: the caller has a right to the place, such as a folder of its own.
pub fn replace_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    if Kind::of(path).is_ok_and(Kind::is_stream) || is_own_stream(path) {
        return write_into(path, write);
    }
    write_beside(path, &resolved(path), true, write)
}

/// Writes a small file of a folder that only this process writes to: after a crash it has its old contents or the new
/// ones. (The temporary name is fixed, so a crash leaves no stray files either.)
pub fn write_record(path: &Path, contents: &(impl AsRef<[u8]> + ?Sized)) -> Result<()> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".new");
    let new = PathBuf::from(name);
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(contents.as_ref())?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&new, path)).map_err(Error::write(path))
}

/// An error that says why nothing is written over this.
pub(super) fn refused(path: &Path, kind: Kind) -> Error {
    Error::write(path)(Io::other(format!("{} stands there", kind.name())))
}

/// The error of an output that the run reads.
pub(super) fn read_too(path: &Path) -> Error {
    Error::write(path)(Io::other("this run reads it; choose another place"))
}

fn check_replaceable(path: &Path, force: bool) -> Result<()> {
    if is_input(path) {
        return Err(read_too(path));
    }
    match force || is_own(path) {
        true => Ok(()),
        false => Err(Error::Exists { path: path.into() }),
    }
}

/// Whether a file is empty or carries one of [`MARKS`]. One that cannot be read is somebody else's.
fn is_own(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
    let text = String::from_utf8_lossy(&head);
    read.is_ok() && (["", "[]"].contains(&text.trim()) || MARKS.iter().any(|m| text.contains(m)))
}

/// Whether a path is this process's own standard output or error, sent to a file: that is added to, as by any other write.
fn is_own_stream(path: &Path) -> bool {
    let own =
        || ["/dev/fd/1", "/dev/fd/2"].into_iter().filter_map(|own| Identity::of(own.as_ref()));
    cfg!(unix) && Identity::of(path).is_some_and(|id| own().any(|own| own == id))
}

/// An error if no file can be made beside `place`.
fn writable(path: &Path, place: &Path) -> Result<()> {
    let folder = super::folder_of(place);
    std::fs::metadata(folder).map_err(Error::write(path))?;
    sweep(folder);
    Temporary::beside(place).map(drop).map_err(Error::write(path))
}

/// Into a device or a pipe, as it comes.
fn write_into(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = File::options().append(true).open(path).map_err(Error::write(path))?;
    let mut buffered = BufWriter::with_capacity(1 << 16, file);
    write(&mut buffered)?;
    buffered.flush().map_err(Error::write(path))
}

/// Under another name beside `place`, which `path` leads to, and then in one step under its own. `over`: whether a file that
/// stands there goes.
fn write_beside(
    path: &Path,
    place: &Path,
    over: bool,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let failed = || Error::write(path);
    let temporary = Temporary::beside(place).map_err(failed())?;
    let whole = temporary.whole();
    let file = File::create_new(&whole).map_err(failed())?;
    let mut buffered = BufWriter::with_capacity(1 << 20, &file);
    write(&mut buffered)?;
    buffered.flush().map_err(failed())?;
    drop(buffered);
    file.sync_all().map_err(failed())?;
    temporary.take(place, over).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Error::Exists { path: path.into() },
        _ => failed()(error),
    })?;
    sync_folder(super::folder_of(place))
}
