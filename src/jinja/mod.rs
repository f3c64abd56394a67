//! Templates that come with models and tasks: Jinja, in the dialect that transformers gives them.
//!
//! A template is a program by a stranger. It sees nothing but what it is given, but a line of it can overflow the stack, fill
//! the memory or take for ever, and the engine bounds none of these completely. So a child process of the same program renders
//! ([`serve`]), with little memory and stack and for [`MAX_SECONDS`] at most, and what ends it is an error of that template.

mod child;
mod python;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::error::Result;
use crate::interrupt;

/// One rendering takes around a millisecond, and never more than this.
pub const MAX_SECONDS: u64 = 2;
/// Memory of the child, where the system lets a process limit its own.
const MAX_BYTES: u64 = 256 << 20;
/// Its stack.
const STACK_BYTES: usize = 16 << 20;
/// Bytes of a template.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Bytes of one rendering beyond a small multiple of its values.
const MAX_EXTRA_BYTES: usize = 1 << 20;
/// The child ends itself in time; this is for a machine that is too busy for it, and for its start.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often somebody who waits looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);
/// The only argument of the child.
const ARGUMENT: &str = "render-templates";
/// The child's exit code where a rendering took too long.
const TOO_LONG: i32 = 75;

/// Whether this program renders when it is started with [`ARGUMENT`].
static SERVES: AtomicBool = AtomicBool::new(false);

/// Who wrote a template, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// A chat template: blocks take their line's indentation and end with them, what is not defined is nothing.
    Chat,
    /// A template of a task file: what is not defined is an error.
    Task,
}

/// Must be called first by the `main` of every program that renders templates, before it looks at its arguments: a child
/// process renders here and gets its exit code, which is to be the program's; everybody else gets none.
pub fn serve() -> Option<u8> {
    let mut arguments = std::env::args_os().skip(1);
    let asked =
        arguments.next().is_some_and(|first| first == ARGUMENT) && arguments.next().is_none();
    if asked {
        return Some(child::serve());
    }
    SERVES.store(true, Ordering::SeqCst);
    None
}

/// A child process that renders one template after the other.
#[derive(Debug)]
pub struct Renderer {
    dialect: Dialect,
    process: Option<Process>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    requests: ChildStdin,
    replies: Receiver<Vec<u8>>,
}

impl Renderer {
    /// One that starts its process when there is something to render.
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, process: None }
    }

    /// The text that a template makes of an object's values; the inner error says what is wrong with the template.
    pub fn render(&mut self, source: &str, values: &Json) -> Result<Result<String, String>> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Ok(Err(format!(
                "a template of {} bytes, more than {MAX_TEMPLATE_BYTES}",
                source.len()
            )));
        }
        let chat = self.dialect == Dialect::Chat;
        let request = json!({"chat": chat, "source": source, "values": values});
        let process = match self.process.take() {
            Some(process) => process,
            None => match Process::start() {
                Ok(process) => process,
                Err(why) => return Ok(Err(why)),
            },
        };
        let (left, reply) = process.ask(&request)?;
        self.process = left;
        Ok(reply)
    }
}

impl Process {
    fn start() -> Result<Self, String> {
        if !SERVES.load(Ordering::SeqCst) {
            return Err(
                "a program that does not call lopper::jinja::serve and so cannot render".into()
            );
        }
        let fails = |error: std::io::Error| format!("no process to render it: {error}");
        // This stays the running program even if its file was replaced meanwhile.
        let running = PathBuf::from("/proc/self/exe");
        let program =
            if running.exists() { running } else { std::env::current_exe().map_err(fails)? };
        let mut command = Command::new(program);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(fails)?;
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no process to render it: no pipes".into());
        };
        let (send, receive) = sync_channel(1);
        let mut lines = BufReader::new(replies);
        let read = move || loop {
            let mut line = Vec::new();
            match lines.read_until(b'\n', &mut line) {
                Ok(1..) if line.ends_with(b"\n") && send.send(line).is_ok() => {}
                _ => break,
            }
        };
        std::thread::Builder::new().spawn(read).map_err(fails)?;
        Ok(Self { child, requests, replies: receive })
    }

    /// The reply to a request, and the process if it can take another.
    fn ask(mut self, request: &Json) -> Result<(Option<Self>, Result<String, String>)> {
        // A failure shows as an end without a reply.
        let _ = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        let start = Instant::now();
        let line = loop {
            match self.replies.recv_timeout(LOOK) {
                Ok(line) => break line,
                Err(RecvTimeoutError::Disconnected) => return self.ended(),
                Err(RecvTimeoutError::Timeout) if start.elapsed() > PATIENCE => {
                    return self.ended();
                }
                Err(RecvTimeoutError::Timeout) => interrupt::check()?,
            }
        };
        let reply: Json = serde_json::from_slice(&line).unwrap_or_default();
        match (&reply["text"], &reply["error"]) {
            (Json::String(text), _) => Ok((Some(self), Ok(text.clone()))),
            (_, Json::String(error)) => Ok((Some(self), Err(error.clone()))),
            _ => self.ended(),
        }
    }

    fn ended(mut self) -> Result<(Option<Self>, Result<String, String>)> {
        // Ctrl-C in a terminal ends the child too.
        interrupt::check()?;
        let _ = self.child.kill();
        let code = self.child.wait().ok().and_then(|status| status.code());
        let why = match code {
            Some(TOO_LONG) => format!("one that takes more than {MAX_SECONDS} s"),
            _ => "one that ends the process that renders it: too deep, or too large".to_string(),
        };
        Ok((None, Err(why)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
