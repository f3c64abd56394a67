//! Ctrl-C: noticed between pieces of work, so that the stack unwinds and no partial output stays.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

static PRESSED: AtomicBool = AtomicBool::new(false);

/// Notes that the user wants to stop. Async-signal-safe.
pub fn press() {
    PRESSED.store(true, Ordering::SeqCst);
}

/// An error once the user wants to stop. Long work calls this between its pieces.
pub fn check() -> Result<()> {
    if PRESSED.load(Ordering::SeqCst) { Err(Error::Interrupted) } else { Ok(()) }
}
