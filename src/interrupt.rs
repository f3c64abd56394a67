//! The user's wish to stop: noticed between pieces of work, so that the stack unwinds and no partial output stays.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{Error, Result};

/// The exit code that is due; 0: nobody wants to stop.
static CODE: AtomicU8 = AtomicU8::new(0);
/// The work folder from which the run that goes on now can be continued.
static WORK: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Notes that the user wants to stop, and the exit code that says how: 128 and the signal's number.
pub fn press(code: u8) {
    CODE.store(code, Ordering::SeqCst);
}

/// Whether an answer is under way that may be stopped by itself, and whether it is to stop.
static ANSWER: AtomicU8 = AtomicU8::new(NO_ANSWER);
const NO_ANSWER: u8 = 0;
const ANSWERING: u8 = 1;
const STOPPED: u8 = 2;

/// Says that an answer begins, which the next wish to stop is about, instead of the program.
pub fn answer_begins() {
    ANSWER.store(ANSWERING, Ordering::SeqCst);
}

/// Says that it ended.
pub fn answer_ends() {
    ANSWER.store(NO_ANSWER, Ordering::SeqCst);
}

/// Asks an answer that is under way to stop; whether there was one that had not been asked.
pub fn stop_answer() -> bool {
    ANSWER.compare_exchange(ANSWERING, STOPPED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

/// Whether the answer that is under way is to stop.
pub fn answer_stopped() -> bool {
    ANSWER.load(Ordering::SeqCst) == STOPPED
}

/// The exit code of an interrupted run.
pub fn code() -> u8 {
    match CODE.load(Ordering::SeqCst) {
        0 => 130,
        code => code,
    }
}

/// An error once the user wants to stop. Long work calls this between its pieces.
pub fn check() -> Result<()> {
    if CODE.load(Ordering::SeqCst) != 0 { Err(Error::Interrupted) } else { Ok(()) }
}

/// Says that what is done from now on can be continued from this work folder; `None`: that it cannot.
pub fn resumable(work: Option<PathBuf>) {
    *WORK.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = work;
}

/// What an interrupted run that cannot unwind in time says.
pub fn error() -> Error {
    let work = WORK.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    work.map_or(Error::Interrupted, |work| Error::Suspended { work })
}
