//! Typed errors: what was wrong, in which file, tensor or offset, what was expected and what was found.
//!
//! A library path never panics on input; it returns one of these. A broken promise of our own is an `assert`.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of everything that can meet bad input or a failing device.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. The message is one line; [`Error::exit_code`] says what a script sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be opened or read.
    #[error("{}: cannot read: {source}", place(path))]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's bytes contradict its format.
    #[error("{}: {}{}: expected {}, found {}", place(path), shown(what), offset.map(|o| format!(" at byte {o}")).unwrap_or_default(), shown(expected), shown(found))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which part of the file.
        what: String,
        /// Where, if one place is at fault.
        offset: Option<u64>,
        /// What the format asks for.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A tensor is missing, or its shape, type or values are not what the model needs.
    #[error(
        "{}: tensor `{}`: expected {}, found {}",
        place(path),
        shown(tensor),
        shown(expected),
        shown(found)
    )]
    Tensor {
        /// The file or model the tensor comes from.
        path: PathBuf,
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// What the model needs.
        expected: String,
        /// What the checkpoint has.
        found: String,
    },
    /// A key of a configuration, recipe or metadata block has a value that cannot be used.
    #[error(
        "{}: `{}`: expected {}, found {}",
        place(path),
        shown(key),
        shown(expected),
        shown(found)
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The allowed values.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A command-line argument or a call's argument has a value that cannot be used.
    #[error("{}: expected {}, found {}", shown(argument), shown(expected), shown(found))]
    Argument {
        /// The argument's name.
        argument: String,
        /// The allowed values.
        expected: String,
        /// What was given.
        found: String,
    },
    /// The input is well formed, but Lopper cannot do this with it (yet).
    #[error("{}: {} is not supported: {}", place(path), shown(what), Shown(why, 4 * SHOWN))]
    Unsupported {
        /// The file or model.
        path: PathBuf,
        /// The feature.
        what: String,
        /// The reason, or what to do instead.
        why: String,
    },
    /// Something else stands where a model, or a file of one, was looked for.
    #[error("{}: {}; {}", place(path), shown(found), shown(advice))]
    Misplaced {
        /// The file or folder.
        path: PathBuf,
        /// What is there, or is not.
        found: String,
        /// What to do.
        advice: String,
    },
    /// The output exists already and `--force` was not given.
    #[error("{}: exists already; give --force to replace it", place(path))]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// A training's loss or gradients stopped being finite.
    #[error(
        "training diverged: loss {loss} at step {step}, {before}; {}",
        kept.map_or("no checkpoint was made yet".into(), |step| format!("the checkpoint of step {step} is kept"))
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// Its loss.
        loss: String,
        /// The last loss that was finite.
        before: String,
        /// The step of the last checkpoint.
        kept: Option<u64>,
    },
    /// An output could not be written.
    #[error("{}: cannot write: {source}", place(path))]
    Write {
        /// The output.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No adapter answers the request.
    #[error("no GPU adapter {wanted}: {found}")]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// What the machine has, and what to install.
        found: String,
    },
    /// The adapter cannot run this kernel variant.
    #[error("kernel {kernel} [{variant}]: needs {needs}, adapter has {has}")]
    Limit {
        /// The kernel's name.
        kernel: String,
        /// The variant's label.
        variant: String,
        /// What the variant needs.
        needs: String,
        /// What the adapter has.
        has: String,
    },
    /// A buffer would exceed the memory budget, or the driver refused to allocate it.
    #[error(
        "out of GPU memory allocating {bytes} bytes for {what}: {used} of {budget} bytes are in use"
    )]
    OutOfMemory {
        /// The buffer's purpose.
        what: String,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes in use.
        used: u64,
        /// The budget in bytes.
        budget: u64,
    },
    /// The device went away or a GPU call failed.
    #[error("GPU device failed during {during}: {reason}")]
    Device {
        /// What was being done.
        during: String,
        /// The driver's reason.
        reason: String,
    },
    /// A device's result differs from the CPU reference by more than the kernel's tolerance.
    #[error("divergence in {case}: {report}")]
    Divergence {
        /// The kernel call, as a case text.
        case: String,
        /// The worst element: index, both values, error, limit.
        report: String,
    },
    /// A loss or a gradient is infinite or no number.
    #[error("{what}: expected finite values, found {found}")]
    NotFinite {
        /// Of which layer.
        what: String,
        /// The value.
        found: String,
    },
    /// A check that the user asked for failed; details were printed.
    #[error("{0} of {1} checks failed")]
    CheckFailed(usize, usize),
    /// The work folder of an unfinished run is where a new one would work.
    #[error(
        "{}: an unfinished run left its work here; give --resume to continue it, or remove the folder",
        place(path)
    )]
    Unfinished {
        /// The work folder.
        path: PathBuf,
    },
    /// A work folder belongs to a run that would give another result.
    #[error(
        "{}: cannot resume: the {} was {} and is {}; remove the folder or choose another --out",
        place(path),
        shown(what),
        shown(before),
        shown(now)
    )]
    OtherRun {
        /// The work folder.
        path: PathBuf,
        /// What differs.
        what: String,
        /// Its value in the run that made the folder.
        before: String,
        /// Its value now.
        now: String,
    },
    /// The user pressed Ctrl-C.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// The user pressed Ctrl-C, and what was found until then has been given.
    #[error("interrupted; what was found until then is given, marked as partial")]
    Partial,
    /// The user pressed Ctrl-C in a run that can be continued.
    #[error("interrupted; run again with --resume to continue from {}", place(work))]
    Suspended {
        /// The work folder.
        work: PathBuf,
    },
}

impl Error {
    /// A reading error of the given path.
    pub fn read(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Read { path, source }
    }

    /// A writing error of the given path.
    pub fn write(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Write { path, source: without_temporary_path(source) }
    }

    /// The process exit code of the command contract.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Divergence { .. } | Error::CheckFailed(..) => 1,
            Error::Read { .. }
            | Error::Malformed { .. }
            | Error::Tensor { .. }
            | Error::Key { .. }
            | Error::Argument { .. }
            | Error::NotFinite { .. }
            | Error::Diverged { .. }
            | Error::Misplaced { .. }
            | Error::Unsupported { .. } => 2,
            Error::NoAdapter { .. }
            | Error::Limit { .. }
            | Error::OutOfMemory { .. }
            | Error::Device { .. } => 3,
            Error::Exists { .. }
            | Error::Unfinished { .. }
            | Error::OtherRun { .. }
            | Error::Write { .. } => 4,
            Error::Interrupted | Error::Partial | Error::Suspended { .. } => 130,
        }
    }
}

/// Characters of a text from a file that a message shows.
const SHOWN: usize = 400;

/// A text that may come from a file, as a message shows it: in one line, of bounded length, without anything that a terminal
/// would obey (control characters, and those that turn the direction of writing).
pub fn shown(text: &str) -> impl fmt::Display + '_ {
    Shown(text, SHOWN)
}

/// A path, which is not cut.
fn place(path: &Path) -> String {
    Shown(&path.to_string_lossy(), usize::MAX).to_string()
}

struct Shown<'a>(&'a str, usize);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text, most) = *self;
        let end = text.char_indices().nth(most).map(|(end, _)| end);
        for character in text[..end.unwrap_or(text.len())].chars() {
            let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            match character.is_control() || turns {
                true => write!(f, "{}", character.escape_default())?,
                false => write!(f, "{character}")?,
            }
        }
        match end {
            Some(_) => write!(f, "… ({} bytes)", text.len()),
            None => Ok(()),
        }
    }
}

/// The system's own error: `tempfile` wraps it to add a temporary path, which tells the user nothing.
fn without_temporary_path(error: std::io::Error) -> std::io::Error {
    let wrapped = error.get_ref().and_then(std::error::Error::source);
    let code = wrapped
        .and_then(|inner| inner.downcast_ref::<std::io::Error>())
        .and_then(std::io::Error::raw_os_error);
    code.map_or(error, std::io::Error::from_raw_os_error)
}
