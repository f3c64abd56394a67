//! Where results go: text or JSON on standard output, JSON in a file, progress and complaints on standard error.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::signals::end;
use super::{Global, progress};
use crate::disk::{claim, write_own, written_by};
use crate::error::{Error, Result};

/// The exit code where standard output is a pipe that was closed (`| head`): what a shell shows of programs that its signal
/// ends, 128 and SIGPIPE's number.
pub(super) const CLOSED_PIPE: u8 = 141;

/// Writes a line to standard error. Nothing can be done if that fails.
pub(super) fn complain(text: &str) {
    progress::clear(false);
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The places a command writes to.
pub(super) struct Output {
    json: Option<JsonTarget>,
    force: bool,
    /// Whether notes are kept back.
    quiet: bool,
    so_far: Mutex<Option<SoFar>>,
    /// Why standard output could not be written, the first time.
    failed: Mutex<Option<std::io::Error>>,
}

enum JsonTarget {
    Stdout,
    File(PathBuf),
}

/// The results of a command that finds them one after the other.
struct SoFar {
    document: Value,
    /// Whether anything was added.
    any: bool,
    text: fn(&Value) -> String,
    saved: Instant,
}

/// How often results so far go to the file that `--json` names.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(2);

static OF_PROCESS: OnceLock<Output> = OnceLock::new();

impl Output {
    /// A file of JSON that cannot be made, or must not be replaced, is an error now, not after the
    /// work.
    pub(super) fn new(global: &Global) -> Result<&'static Self> {
        let (json, force, quiet) = (global.json.as_deref(), global.force, global.quiet);
        let json = match json {
            None => None,
            Some("-") => Some(JsonTarget::Stdout),
            Some(path) => {
                let path = PathBuf::from(path);
                claim(&path, force)?;
                Some(JsonTarget::File(path))
            }
        };
        let (so_far, failed) = Default::default();
        Ok(OF_PROCESS.get_or_init(|| Self { json, force, quiet, so_far, failed }))
    }

    /// The output of this process, once there is one.
    pub(super) fn of_process() -> Option<&'static Self> {
        OF_PROCESS.get()
    }

    /// Whether `--force` was given.
    pub(super) fn force(&self) -> bool {
        self.force
    }

    /// Begins results that come one after the other, [`Output::add`]ed to `document`. If the command fails or is interrupted,
    /// those that there are by then are given, marked with `"partial": true`, and `text` of them is printed.
    pub(super) fn begin(&self, document: Value, text: fn(&Value) -> String) {
        let saved = Instant::now();
        *locked(&self.so_far) = Some(SoFar { document, any: false, text, saved });
    }

    /// Adds a result to those that were begun. A file that `--json` names has them soon.
    pub(super) fn add(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut so_far = locked(&self.so_far);
        let Some(so_far) = so_far.as_mut() else {
            return Ok(());
        };
        change(&mut so_far.document);
        so_far.any = true;
        match &self.json {
            Some(JsonTarget::File(_)) if so_far.saved.elapsed() > SAVE_EVERY => {
                so_far.saved = Instant::now();
                self.json(&partial(so_far.document.clone()))
            }
            _ => Ok(()),
        }
    }

    /// The results that were begun, all of them there.
    pub(super) fn finish(&self) -> Value {
        locked(&self.so_far).take().map_or(Value::Null, |so_far| so_far.document)
    }

    /// Writes and prints the results that were begun, all of them there.
    pub(super) fn give(&self) -> Result<()> {
        let Some(SoFar { document, text, .. }) = locked(&self.so_far).take() else {
            return Ok(());
        };
        self.json(&document)?;
        self.text(&text(&document));
        Ok(())
    }

    /// Gives the results so far, if there are any.
    pub(super) fn give_partial(&self) -> bool {
        let so_far = locked(&self.so_far).take().filter(|so_far| so_far.any);
        let Some(SoFar { document, text, .. }) = so_far else {
            return false;
        };
        let text = text(&document);
        if let Err(error) = self.json(&partial(document)) {
            complain(&format!("error: {error}"));
        }
        self.text(&text);
        true
    }

    /// An error if something of what was printed could not be written.
    pub(super) fn check_printed(&self) -> Result<()> {
        match locked(&self.failed).take() {
            None => Ok(()),
            Some(error) => Err(Error::write("standard output")(error)),
        }
    }

    /// Prints a line for a person, unless standard output belongs to JSON.
    pub(super) fn line(&self, text: impl AsRef<str>) {
        self.text(&format!("{}\n", text.as_ref()));
    }

    /// Prints text for a person without a line's end.
    pub(super) fn text(&self, text: &str) {
        if matches!(self.json, Some(JsonTarget::Stdout)) {
            return;
        }
        progress::clear(!text.is_empty() && !text.ends_with('\n'));
        self.put(text);
    }

    /// Writes to standard output. Where nobody reads any more, the program ends at once, as one that knows no signals would.
    fn put(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        if let Err(error) = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                end(CLOSED_PIPE);
            }
            locked(&self.failed).get_or_insert(error);
        }
    }

    /// Tells the user something that is no result. `--quiet` keeps back all but warnings.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet || text.as_ref().starts_with("warning: ") {
            complain(text.as_ref());
        }
    }

    /// Writes the results where `--json` asks for them, marked as Lopper's.
    pub(super) fn json(&self, value: &Value) -> Result<()> {
        let Some(target) = &self.json else {
            return Ok(());
        };
        let text = format!("{:#}\n", marked(value));
        match target {
            JsonTarget::Stdout => self.put(&text),
            JsonTarget::File(path) => write_own(path, text.as_bytes())?,
        }
        Ok(())
    }

    /// Says what is being done: `done` of `total`, where 0 is a total that is not known.
    pub(super) fn progress(&self, step: &str, done: usize, total: usize) {
        progress::set(step, done, total);
    }

    /// Says no more what is being done.
    pub(super) fn end_progress(&self) {
        progress::end();
    }
}

/// JSON with the mark by which its file may be replaced later: first in an object, in each row of an array.
pub(super) fn marked(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mark = ("written_by".to_string(), Value::from(written_by()));
            let schema = fields.get_key_value("schema").map(|(k, v)| (k.clone(), v.clone()));
            let rest = fields.iter().map(|(key, value)| (key.clone(), value.clone()));
            let mut fields: Map<String, Value> = schema.into_iter().chain([mark]).collect();
            fields.extend(rest);
            Value::Object(fields)
        }
        Value::Array(rows) => rows.iter().map(marked).collect(),
        other => other.clone(),
    }
}

/// JSON that says it is not all: an object itself, an array in each row.
fn partial(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => _ = fields.insert("partial".into(), true.into()),
        Value::Array(rows) => rows.iter_mut().for_each(|row| *row = partial(row.take())),
        _ => {}
    }
    value
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes as a person reads them.
pub(super) fn bytes(count: u64) -> String {
    let value = count as f64;
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} kB", value / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

/// Columns of the terminal, if one reads; else 80.
pub(super) fn width(terminal: bool) -> usize {
    let size = terminal.then(terminal_size::terminal_size).flatten();
    size.map_or(80, |(terminal_size::Width(width), _)| usize::from(width).max(40))
}

/// Rows as a table with aligned columns; the first row is the head. It is as wide as the terminal at most, or 80: what is longer
/// goes on below, and columns of long words, as the names of variants are, stand under their rows.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    fitted(rows, width(std::io::stdout().is_terminal()))
}

/// Columns are not made narrower than this.
const LEAST_COLUMN: usize = 8;

/// A column whose words are longer stands under the rows where they do not fit.
const LONG_WORD: usize = 24;

fn fitted(rows: &[Vec<String>], limit: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let longest = |column: usize, part: fn(&str) -> usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| part(cell)).max().unwrap_or(0)
    };
    let whole = |cell: &str| cell.chars().count();
    let word = |cell: &str| cell.split(' ').map(|word| word.chars().count()).max().unwrap_or(0);
    let needed = (0..columns).map(|column| longest(column, whole) + 2).sum::<usize>();
    let is_under = |column: &usize| *column > 0 && longest(*column, word) > LONG_WORD;
    let (under, beside): (Vec<usize>, Vec<usize>) = match needed > limit + 2 {
        true => (0..columns).partition(is_under),
        false => (Vec::new(), (0..columns).collect()),
    };
    let kept = |row: &Vec<String>| beside.iter().filter_map(|c| row.get(*c)).cloned().collect();
    let below = |row: &Vec<String>| -> String {
        let cells = under.iter().filter_map(|column| Some((&rows[0][*column], row.get(*column)?)));
        let lines = cells.filter(|(_, cell)| !cell.is_empty()).flat_map(|(name, cell)| {
            let lines = wrapped(&format!("{name}: {cell}"), limit - 4);
            lines
                .into_iter()
                .enumerate()
                .map(|(index, line)| format!("{}{line}\n", if index == 0 { "  " } else { "    " }))
        });
        lines.collect()
    };
    let rows_beside: Vec<Vec<String>> = rows.iter().map(kept).collect();
    aligned(&rows_beside, limit, &|index| {
        if index == 0 { String::new() } else { below(&rows[index]) }
    })
}

/// Rows whose columns are made narrower until they fit; behind each what else there is of it.
fn aligned(rows: &[Vec<String>], limit: usize, behind: &dyn Fn(usize) -> String) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|t| t.chars().count()).max()
    };
    let mut widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let word = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.flat_map(|cell| cell.split(' ')).map(|word| word.chars().count()).max()
    };
    let room = limit.saturating_sub(2 * columns.saturating_sub(1));
    // Between words first; only then within them.
    let words: Vec<usize> = (0..columns).map(|column| word(column).unwrap_or(0)).collect();
    for least in [words, vec![LEAST_COLUMN; columns]] {
        while widths.iter().sum::<usize>() > room {
            let above = widths.iter_mut().zip(&least).filter(|(width, least)| **width > **least);
            match above.max_by_key(|(width, _)| **width) {
                Some((widest, _)) => *widest -= 1,
                None => break,
            }
        }
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<Vec<String>> =
            row.iter().zip(&widths).map(|(cell, width)| wrapped(cell, *width)).collect();
        for line in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
            let parts = cells.iter().zip(&widths).map(|(cell, width)| {
                let part = cell.get(line).map_or("", String::as_str);
                format!("{part:width$}")
            });
            text.push_str(parts.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        if index == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text.push_str(&rule.join("  "));
            text.push('\n');
        }
        text.push_str(&behind(index));
    }
    text
}

/// A cell in lines of `width` characters at most: broken at spaces, in a longer word behind punctuation, else anywhere.
fn wrapped(cell: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest: Vec<char> = cell.chars().collect();
    while rest.len() > width {
        let most = &rest[..=width];
        let space = most.iter().rposition(|c| *c == ' ').filter(|place| *place > 0);
        let mark = most[..width].iter().rposition(|c| "/._-,:;)]".contains(*c));
        let end = space.or(mark.map(|place| place + 1)).unwrap_or(width.max(1));
        lines.push(rest[..end].iter().collect());
        let next = end + usize::from(space.is_some());
        rest.drain(..next);
    }
    lines.push(rest.into_iter().collect());
    lines
}
