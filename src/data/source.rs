//! A data file as lines with named fields, or as rows of a table.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::task::{Record, wrong};
use crate::disk;
use crate::error::Result;

/// A data file's text.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub path: PathBuf,
    pub text: String,
    /// Whether its bytes were not UTF-8 and were read as Latin-1, which has a character for every byte.
    pub latin: bool,
}

impl Source {
    /// Reads a file; a byte-order mark at its beginning is no text.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = disk::read(path, disk::TEXT)?;
        let (text, latin) = match String::from_utf8(bytes) {
            Ok(text) => (text, false),
            Err(error) => {
                let bytes = error.into_bytes();
                (bytes.into_iter().map(char::from).collect(), true)
            }
        };
        Ok(Self::new(path, text, latin))
    }

    /// A text that is part of the program.
    pub fn embedded(path: &str, text: &str) -> Self {
        Self::new(Path::new(path), text.to_string(), false)
    }

    fn new(path: &Path, text: String, latin: bool) -> Self {
        let text = match text.strip_prefix('\u{feff}') {
            Some(rest) => rest.to_string(),
            None => text,
        };
        Self { path: path.into(), text, latin }
    }

    /// That the file is UTF-8.
    pub fn unicode(&self) -> Result<()> {
        if !self.latin {
            return Ok(());
        }
        let bad = self.text.lines().position(|line| !line.is_ascii());
        let line = bad.map_or(1, |line| line + 1);
        Err(wrong(&self.path, line, "UTF-8", "another byte"))
    }

    /// Lines that are not blank, counted from 1.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(line, text)| (line + 1, text));
        lines.filter(|(_, text)| !text.trim().is_empty())
    }

    /// Whether the first line begins as a JSON object does.
    pub fn is_json(&self) -> bool {
        self.text.trim_start().starts_with('{')
    }

    /// JSON objects, one a line.
    pub fn records(&self) -> Result<Vec<Record<'_>>> {
        self.unicode()?;
        self.lines().map(|(line, text)| self.record(line, text)).collect()
    }

    /// The first of them.
    pub fn first_record(&self) -> Result<Option<Record<'_>>> {
        let first = self.lines().next();
        first.map(|(line, text)| self.record(line, text)).transpose()
    }

    fn record(&self, line: usize, text: &str) -> Result<Record<'_>> {
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            // The position within the text that was parsed is always its line 1.
            let reason = error.to_string().replace(" at line 1 column", ", column");
            wrong(&self.path, line, "a JSON object", reason)
        })?;
        Ok(Record { path: &self.path, line, fields })
    }

    /// Rows of a table of comma-separated values, with the line on which each begins.
    pub fn rows(&self) -> Result<Vec<(usize, Vec<String>)>> {
        self.unicode()?;
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(self.text.as_bytes());
        let mut rows = Vec::new();
        for row in reader.records() {
            let row = row.map_err(|error| {
                let line = error.position().map_or(1, |position| position.line() as usize);
                wrong(&self.path, line, "comma-separated values", error.to_string())
            })?;
            let line = row.position().map_or(1, |position| position.line() as usize);
            rows.push((line, row.iter().map(str::to_string).collect()));
        }
        Ok(rows)
    }

    /// Rows as records of texts, named by the first row.
    pub fn named_rows(&self) -> Result<Vec<Record<'_>>> {
        let mut rows = self.rows()?.into_iter();
        let (_, names) =
            rows.next().ok_or_else(|| wrong(&self.path, 1, "a row of column names", "nothing"))?;
        rows.map(|(line, row)| {
            if row.len() != names.len() {
                let expected = format!("{} columns, as the first line has", names.len());
                return Err(wrong(&self.path, line, expected, row.len().to_string()));
            }
            let fields = names
                .iter()
                .map(|name| name.trim().to_string())
                .zip(row.into_iter().map(Value::String))
                .collect();
            Ok(Record { path: &self.path, line, fields })
        })
        .collect()
    }
}
