//! Where results go: text or JSON on standard output, JSON in a file, progress and complaints on standard error.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::progress;
use crate::error::{Error, Result};

/// Writes a line to standard error. Nothing can be done if that fails.
pub(super) fn complain(text: &str) {
    progress::clear(false);
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The places a command writes to.
pub(super) struct Output {
    json: Option<JsonTarget>,
    /// Whether notes are kept back.
    quiet: bool,
}

enum JsonTarget {
    Stdout,
    File(PathBuf),
}

impl Output {
    /// `json`: a file's path, or `-`. A file that cannot be made is an error now, not after the work.
    pub(super) fn new(json: Option<&str>, quiet: bool) -> Result<Self> {
        let json = match json {
            None => None,
            Some("-") => Some(JsonTarget::Stdout),
            Some(path) => {
                let path = PathBuf::from(path);
                check_writable(&path)?;
                Some(JsonTarget::File(path))
            }
        };
        Ok(Self { json, quiet })
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
        let mut stdout = std::io::stdout();
        // A closed pipe (`| head`) is the reader's choice; there is nobody left to tell.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    /// Tells the user something that is no result. `--quiet` keeps back all but warnings.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet || text.as_ref().starts_with("warning: ") {
            complain(text.as_ref());
        }
    }

    /// Writes the results where `--json` asks for them.
    pub(super) fn json(&self, value: &Value) -> Result<()> {
        let text = format!("{value:#}\n");
        match &self.json {
            None => Ok(()),
            Some(JsonTarget::Stdout) => {
                let _ = std::io::stdout().write_all(text.as_bytes());
                Ok(())
            }
            Some(JsonTarget::File(path)) => write_whole(path, &text),
        }
    }

    /// Says what is being done: `done` of `total`, where 0 is a total that is not known.
    pub(super) fn progress(&self, step: &str, done: usize, total: usize) {
        progress::set(step, done, total);
    }
}

/// An error if no file can be made there.
pub(super) fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        let reason = std::io::ErrorKind::IsADirectory;
        return Err(Error::write(path)(reason.into()));
    }
    let made = tempfile::NamedTempFile::new_in(folder_of(path));
    made.map(drop).map_err(Error::write(path))
}

/// Writes a file that appears whole or not at all.
pub(super) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(Error::write(path))?;
    file.write_all(text.as_bytes()).map_err(Error::write(path))?;
    make_ordinary(file.path());
    let kept = file.persist(path);
    kept.map(drop).map_err(|error| Error::write(path)(error.error))
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.into(),
        _ => PathBuf::from("."),
    }
}

/// Temporary files are private; a result is an ordinary file.
fn make_ordinary(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644));
    }
    #[cfg(not(unix))]
    let _ = path;
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
/// goes on below.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    fitted(rows, width(std::io::stdout().is_terminal()))
}

/// Columns are not made narrower than this.
const LEAST_COLUMN: usize = 8;

fn fitted(rows: &[Vec<String>], limit: usize) -> String {
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
