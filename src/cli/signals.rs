//! How the program ends before its work is done: by a signal, in a second at most, or because nobody reads what it prints.

use std::sync::atomic::{AtomicBool, Ordering};

use super::output::{Output, complain};
use crate::disk::remove_temporaries;
use crate::interrupt;

/// Whether the command has returned: what is left is to say how it ended.
static UNWOUND: AtomicBool = AtomicBool::new(false);

/// Says that the command has returned.
pub(super) fn unwound() {
    UNWOUND.store(true, Ordering::SeqCst);
}

/// Listens for Ctrl-C (SIGINT), SIGTERM and SIGHUP. The first asks the work to stop; what has not stopped in about a second is
/// ended, and at once by a second signal. The exit code is 128 and the signal's number.
///
/// The signals are blocked, here before there is any other thread, and waited for: no code runs inside a handler.
#[cfg(unix)]
pub(super) fn listen() {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use nix::sys::signal::{SigSet, Signal};

    /// For the work to unwind.
    const WORK: Duration = Duration::from_millis(700);
    /// For a summary of what there is so far.
    const SUMMARY: Duration = Duration::from_millis(200);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if !ignores_hangups() {
        signals.add(Signal::SIGHUP);
    }
    if signals.thread_block().is_err() {
        return;
    }
    let (send, pressed) = channel();
    let wait = move || {
        loop {
            match signals.wait() {
                Ok(signal) if send.send(128 + signal as i32 as u8).is_err() => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    };
    let watch = move || {
        let code = loop {
            let Ok(code) = pressed.recv() else { return };
            // The first Ctrl-C during an answer of a conversation is about that.
            let about_answer =
                code == 128 + Signal::SIGINT as i32 as u8 && interrupt::stop_answer();
            if !about_answer {
                break code;
            }
        };
        interrupt::press(code);
        if let Ok(code) = pressed.recv_timeout(WORK) {
            end(code);
        }
        if UNWOUND.load(Ordering::SeqCst) {
            // The main thread gives what there is and says so.
            let _ = pressed.recv_timeout(4 * WORK);
            end(code);
        }
        let (send, given) = channel();
        let summary = std::thread::Builder::new().spawn(move || {
            let partial = Output::of_process().is_some_and(Output::give_partial);
            let _ = send.send(partial);
        });
        let partial = summary.is_ok() && given.recv_timeout(SUMMARY).unwrap_or(false);
        let error = if partial { crate::error::Error::Partial } else { interrupt::error() };
        complain(&format!("error: {error}"));
        end(code);
    };
    let spawned =
        [("signals", Box::new(wait) as Box<dyn FnOnce() + Send>), ("ending", Box::new(watch))]
            .into_iter()
            .all(|(name, run)| std::thread::Builder::new().name(name.into()).spawn(run).is_ok());
    if !spawned {
        // Without threads they do what they do to any program.
        let _ = signals.thread_unblock();
    }
}

/// Listens for Ctrl-C; a second one ends the program at once.
#[cfg(not(unix))]
pub(super) fn listen() {
    let pressed = AtomicBool::new(false);
    let handler = move || {
        if interrupt::stop_answer() {
            return;
        }
        if pressed.swap(true, Ordering::SeqCst) {
            end(130);
        }
        interrupt::press(130);
    };
    if ctrlc::set_handler(handler).is_err() {
        tracing::warn!("Ctrl-C cannot be caught; it will stop the program at once");
    }
}

/// Whether whoever started the program wants it to outlive its terminal (`nohup`), as far as Linux tells.
#[cfg(unix)]
fn ignores_hangups() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap_or(0) & 1 != 0)
}

/// Ends the program without unwinding. Its temporary folders go.
pub(super) fn end(code: u8) -> ! {
    remove_temporaries();
    end_now(code)
}

/// Ends the program and does nothing else.
pub(super) fn end_now(code: u8) -> ! {
    #[cfg(unix)]
    #[expect(
        unsafe_code,
        reason = "ending without what other threads' libraries do at exit has no safe call"
    )]
    // SAFETY: `_exit` takes a number, touches no memory of this process and does not return.
    unsafe {
        nix::libc::_exit(code.into())
    }
    #[cfg(not(unix))]
    std::process::exit(code.into())
}
