//! Calibration, evaluation and training text, its cutting into windows and rows of tokens, and tasks: questions with their answers.

mod embedded;
mod layouts;
pub mod shots;
mod source;
mod task;
mod template;
pub mod training;

use std::path::Path;

pub use embedded::EMBEDDED_TASKS;
use layouts::name_of;
pub use layouts::{LAYOUTS, Layout};
use source::Source;
pub use task::{Choice, Extract, Generated, Item, Normalize, SEPARATOR, Scoring, Task};

use crate::disk;
use crate::error::{Error, Result};

/// Which of a text's tokens stand for it, where it is read as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The last one, which has seen all of it where attention is causal.
    Last,
    /// The first one, which the vocabulary puts in front (`[CLS]`), where all tokens see each other.
    First,
    /// All of them: their mean.
    Mean,
    /// All of them: of each column the largest value.
    Max,
}

impl Pooling {
    /// The place of the one token of so many that a text is read at; `None`: at all of them.
    pub fn place(self, tokens: usize) -> Option<usize> {
        match self {
            Pooling::Last => Some(tokens.saturating_sub(1)),
            Pooling::First => Some(0),
            Pooling::Mean | Pooling::Max => None,
        }
    }

    /// Whether it is of models whose tokens all see each other: a text then stands between the tokens that its vocabulary puts
    /// around it. Otherwise the token that ends a text stands behind it.
    pub fn sees_all(self) -> bool {
        self != Pooling::Last
    }
}

/// What transformers calls a label of a head that has no name.
pub fn unnamed_label(place: usize) -> String {
    format!("LABEL_{place}")
}

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
    disk::read_string(Path::new(source), disk::TEXT)
}

/// What stands in a row of tokens between a source, which an encoder reads, and its target, which a decoder writes; also what fills
/// sources up to one length. No vocabulary has it.
pub const BETWEEN: u32 = u32::MAX;

/// Where the target begins in rows of plain text of so many tokens, for a model with an encoder.
pub fn text_target_place(length: usize) -> usize {
    length / 2
}

/// Puts the token for a gap into rows of plain text of so many tokens, whose first half an encoder reads: at the first half's end,
/// and behind the token that gives its place to the decoder's start. So the second half is what the gap stands for, as T5 was trained
/// (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4). Nothing where `gap` is none.
pub fn mark_gaps(ids: &mut [u32], length: usize, gap: Option<u32>) {
    let place = text_target_place(length);
    let Some(gap) = gap.filter(|_| place > 1 && place + 2 < length) else { return };
    for row in ids.chunks_exact_mut(length) {
        row[place - 1] = gap;
        row[place + 1] = gap;
    }
}

/// The first place of such a row that the decoder foretells.
pub fn first_foretold(length: usize) -> usize {
    text_target_place(length) + 2
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
        return Err(no_task(source, named.map(|(layout, _)| layout)));
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

/// What a name that is neither a task nor a file should have been.
fn no_task(source: &str, named: Option<&Layout>) -> Error {
    let published = LAYOUTS.iter().filter(|layout| !layout.from.is_empty());
    let layout = named.or_else(|| published.clone().find(|layout| layout.name == source));
    let embedded = EMBEDDED_TASKS.join(", ");
    let names: Vec<_> = published.map(|layout| layout.name).collect();
    let near = EMBEDDED_TASKS.iter().chain(&names);
    let near = near
        .min_by_key(|name| letters_apart(name, source))
        .filter(|name| letters_apart(name, source) <= 2);
    let (expected, found) = match (layout, near) {
        (Some(layout), _) => (
            format!(
                "{0}:FILE with a file that exists, from {1} ({embedded} need none)",
                layout.name, layout.from
            ),
            format!("no file `{}`", source.split_once(':').map_or(source, |(_, file)| file)),
        ),
        (None, near) => (
            format!(
                "{embedded}, or the file of a published task ({}): `lopper tasks` says where they come from",
                names.join(", ")
            ),
            near.map_or(format!("`{source}`, which is no file"), |near| {
                format!("`{source}`; {near}?")
            }),
        ),
    };
    Error::Argument { argument: "--task".into(), expected, found }
}

/// What is wrong with a file of TOML, with the line, the column and the text that stands there.
pub fn toml_error(path: &Path, expected: &str, text: &str, error: &toml::de::Error) -> Error {
    let message = error.message().replace('\n', " ");
    let mut start = error.span().map_or(0, |span| span.start.min(text.len()));
    // What a table as a whole is told of belongs to one of its keys, which the message names.
    let named = message.split('`').nth(1).and_then(|key| {
        let mut offset = start;
        text.get(start..)?.split_inclusive('\n').find_map(|line| {
            let place = offset;
            offset += line.len();
            let (name, _) = line.split_once('=')?;
            (name.trim() == key).then(|| place + line.len() - line.trim_start().len())
        })
    });
    let whole = text.get(start..).is_some_and(|rest| rest.starts_with('['));
    start = named.filter(|_| whole).unwrap_or(start);
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count();
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count());
    let shown: String = text.lines().nth(line).unwrap_or("").trim().chars().take(80).collect();
    Error::Malformed {
        path: path.into(),
        what: format!("line {}, column {}", line + 1, column + 1),
        offset: None,
        expected: expected.into(),
        found: format!("`{shown}`: {message}"),
    }
}

/// Letters to insert, remove or change to turn one text into the other (Levenshtein).
pub fn letters_apart(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
