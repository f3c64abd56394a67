//! Calibration and evaluation text, its cutting into windows of tokens, and tasks: questions with their answers.

mod embedded;
mod layouts;
pub mod shots;
mod source;
mod task;
mod template;

use std::path::Path;

pub use embedded::EMBEDDED_TASKS;
use layouts::name_of;
pub use layouts::{LAYOUTS, Layout};
use source::Source;
pub use task::{Choice, Extract, Generated, Item, Normalize, SEPARATOR, Scoring, Task};

use crate::error::{Error, Result};

/// Texts that are part of the program: speeches in the public domain.
pub static TEXTS: &[(&str, &str)] = &[
    ("calibration", include_str!("../../assets/text/calibration.txt")),
    ("heldout-2026", include_str!("../../assets/text/heldout-2026.txt")),
    ("heldout-older", include_str!("../../assets/text/heldout-older.txt")),
];

/// The text of a file, or of `embedded:NAME`.
pub fn read_text(source: &str) -> Result<String> {
    if let Some(name) = source.strip_prefix("embedded:") {
        let found = TEXTS.iter().find(|(known, _)| *known == name);
        return found.map(|(_, text)| text.to_string()).ok_or_else(|| {
            let names: Vec<_> = TEXTS.iter().map(|(name, _)| format!("embedded:{name}")).collect();
            Error::Argument {
                argument: "text".into(),
                expected: names.join(", "),
                found: source.into(),
            }
        });
    }
    let path = Path::new(source);
    let bytes = std::fs::read(path).map_err(Error::read(path))?;
    String::from_utf8(bytes).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "text".into(),
        offset: Some(error.utf8_error().valid_up_to() as u64),
        expected: "UTF-8".into(),
        found: "another byte".into(),
    })
}

/// Non-overlapping windows of `ctx` tokens; the last partial one is dropped.
pub fn windows(tokens: &[u32], ctx: usize) -> Vec<&[u32]> {
    tokens.chunks_exact(ctx).collect()
}

/// A task: an embedded one's name, a data file, `LAYOUT:FILE`, or a task file (`.toml`). `shots`: where examples are drawn
/// from instead, a file of the same layout.
pub fn read_task(source: &str, shots: Option<&Path>) -> Result<Task> {
    if let Some(task) = embedded::embedded(source) {
        if let Some(shots) = shots {
            return Err(Error::Argument {
                argument: "--shots-from".into(),
                expected: format!("a task that is a file, not the embedded `{source}`"),
                found: shots.display().to_string(),
            });
        }
        return task;
    }
    let named = source.split_once(':').and_then(|(name, path)| Some((Layout::named(name)?, path)));
    let path = Path::new(named.map_or(source, |(_, path)| path));
    if !path.exists() {
        return Err(Error::Argument {
            argument: "--task".into(),
            expected: format!("{}, a file that exists, or LAYOUT:FILE", EMBEDDED_TASKS.join(", ")),
            found: source.into(),
        });
    }
    if named.is_none() && path.extension().is_some_and(|end| end == "toml") {
        return template::read(path, shots);
    }
    let data = Source::read(path)?;
    if data.text.trim().is_empty() {
        return Task::new(path, &name_of(path), Scoring::Choices, Vec::new());
    }
    let layout = match named {
        Some((layout, _)) => layout,
        None => Layout::detect(&data)?,
    };
    layout.task(&name_of(path), &data, shots)
}
