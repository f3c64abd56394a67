//! Where results go: text or JSON on standard output, JSON in a file, progress and complaints on standard error.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::error::{Error, Result};

/// Writes a line to standard error. Nothing can be done if that fails.
pub(super) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The places a command writes to.
pub(super) struct Output {
    json: Option<JsonTarget>,
    bar: Mutex<Option<(String, ProgressBar)>>,
}

enum JsonTarget {
    Stdout,
    File(PathBuf),
}

impl Output {
    /// `json`: a file's path, or `-`. A file that cannot be made is an error now, not after the work.
    pub(super) fn new(json: Option<&str>) -> Result<Self> {
        let json = match json {
            None => None,
            Some("-") => Some(JsonTarget::Stdout),
            Some(path) => {
                let path = PathBuf::from(path);
                check_writable(&path)?;
                Some(JsonTarget::File(path))
            }
        };
        Ok(Self { json, bar: Mutex::new(None) })
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
        self.finish_progress();
        let mut stdout = std::io::stdout();
        // A closed pipe (`| head`) is the reader's choice; there is nobody left to tell.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    /// Tells the user something that is no result.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        self.finish_progress();
        complain(text.as_ref());
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

    /// Shows progress on a terminal; in a pipe, nothing.
    pub(super) fn progress(&self, step: &str, done: usize, total: usize) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if bar.as_ref().is_none_or(|(name, _)| name != step) {
            if let Some((_, old)) = bar.take() {
                old.finish_and_clear();
            }
            let new = ProgressBar::new(total as u64);
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {eta}");
            new.set_style(
                style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "),
            );
            new.set_message(step.to_string());
            *bar = Some((step.to_string(), new));
        }
        if let Some((_, bar)) = bar.as_ref() {
            bar.set_position(done as u64);
        }
        if done >= total
            && let Some((_, bar)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }

    fn finish_progress(&self) {
        if let Some((_, bar)) =
            self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
        {
            bar.finish_and_clear();
        }
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

/// Rows as a table with aligned columns; the first row is the head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|t| t.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        if index == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text.push_str(&rule.join("  "));
            text.push('\n');
        }
    }
    text
}
