//! A task: questions and their answers, as text. Every question of every layout becomes an [`Item`]; what a model then sees
//! is the same text for all of them: `front`, examples joined by a blank line, the query, a space and a choice.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The text between two examples, and between the last one and the question.
pub const SEPARATOR: &str = "\n\n";

/// A set of questions.
#[derive(Clone, Debug)]
pub struct Task {
    /// The key of every report.
    pub name: String,
    /// How answers are found.
    pub scoring: Scoring,
    /// The questions.
    pub items: Vec<Item>,
    /// The items that examples are drawn from; `None`: the questions themselves, without the one that is asked.
    pub pool: Option<Vec<Item>>,
    /// The text between a query and its continuation: a space.
    pub delimiter: String,
    /// The text between an example's query and its answer. Of LAMBADA two spaces: lm-evaluation-harness has one in the target
    /// too, which a question's own target needs not.
    pub example_delimiter: String,
}

/// How a task's answers are found.
#[derive(Clone, Debug, PartialEq)]
pub enum Scoring {
    /// The likeliest choice.
    Choices,
    /// The likeliest choice, where every item has these choices.
    Labels(Vec<String>),
    /// The one choice is what greedy decoding gives.
    LastWord,
    /// A text is generated and compared with the one choice.
    Generated(Generated),
}

/// How a generated text becomes an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Tokens at most.
    pub max_tokens: usize,
    /// Texts that end it; they are not part of it.
    pub stop: Vec<String>,
    /// The part of the generated text that is the answer.
    pub extract: Extract,
    /// Differences to remove before answers are compared.
    pub normalize: Vec<Normalize>,
}

/// The place of the answer in a generated text.
#[derive(Clone, Debug, PartialEq)]
pub enum Extract {
    /// All of it is the answer.
    Whole,
    /// The text after the last of these markers; empty if there is none.
    After(String),
    /// The first group of the pattern's last match, or the whole match if it has no group. A text that compiles.
    Pattern(String),
}

/// A difference between a generated answer and its target that does not count. White space at both ends never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// Upper and lower case.
    Case,
    /// A run of white space and a single space.
    Spaces,
    /// ASCII punctuation is left out.
    Punctuation,
    /// The English articles `a`, `an`, `the` are left out.
    Articles,
    /// Commas and currency signs are left out of numbers, and a full stop after them.
    Numbers,
}

/// A question.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// The text in front of the examples.
    pub front: String,
    /// The question as the model sees it, without a space at its end.
    pub query: String,
    /// The possible continuations; the target alone where nothing is chosen.
    pub choices: Vec<Choice>,
    /// The place of the right one.
    pub answer: usize,
    /// The text that is to be classified, without a prompt, where there is such a text.
    pub text: Option<String>,
    /// The text after an example's query in place of the right choice: a rationale that ends in the answer.
    pub shown: Option<String>,
    /// Examples come from items of the same group, where the pool has groups.
    pub group: Option<String>,
    /// The fields of the file's record, as they are. Files without names have the names that lm-evaluation-harness's data set has.
    pub doc: Map<String, Value>,
}

/// A text that may follow a query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Choice {
    /// The query in front of this choice, where the choices differ in that and not in what follows (WinoGrande).
    pub query: Option<String>,
    /// The text, without the space between it and the query.
    pub text: String,
}

impl Choice {
    /// A choice that follows its item's query.
    pub fn new(text: impl Into<String>) -> Self {
        Self { query: None, text: text.into() }
    }
}

impl Item {
    /// The text of the right choice.
    pub fn target(&self) -> &str {
        &self.choices[self.answer].text
    }

    /// The query in front of a choice.
    pub fn query_of(&self, choice: usize) -> &str {
        self.choices[choice].query.as_ref().unwrap_or(&self.query)
    }

    /// Whether both ask the same and have the same answer, so that one shows the other's. The numbers that data sets give their
    /// records, and subjects, do not count.
    pub fn same_question(&self, other: &Item) -> bool {
        self.question() == other.question()
    }

    /// What [`Item::same_question`] compares.
    pub(super) fn question(&self) -> (&str, &[Choice], usize) {
        (&self.query, &self.choices, self.answer)
    }

    /// The item as an example: its query and its answer.
    pub fn example(&self, delimiter: &str) -> String {
        let answer = self.shown.as_deref().unwrap_or(self.target());
        format!("{}{delimiter}{answer}", self.query_of(self.answer))
    }

    /// Whether it has a choice of this text.
    pub fn has_choice(&self, text: &str) -> bool {
        self.choices.iter().any(|choice| choice.text == text)
    }

    /// What a head that scores texts reads: the text that is to be classified, or else the question.
    pub fn text(&self) -> String {
        self.text.clone().unwrap_or_else(|| format!("{}{}", self.front, self.query))
    }

    /// The text by which similar items are found: the question without its choices.
    pub fn topic(&self) -> &str {
        self.query_of(0)
    }
}

impl Task {
    /// Gives a choice of all its questions another name, wherever it is one of theirs.
    pub fn rename_choice(&mut self, choice: &str, name: &str) {
        let rename = |text: &mut String| {
            if text == choice {
                *text = name.into();
            }
        };
        let items = self.items.iter_mut().chain(self.pool.iter_mut().flatten());
        items.flat_map(|item| &mut item.choices).for_each(|choice| rename(&mut choice.text));
        if let Scoring::Labels(labels) = &mut self.scoring {
            labels.iter_mut().for_each(rename);
        }
    }

    /// A task that has items, each with a right choice.
    pub fn new(path: &Path, name: &str, scoring: Scoring, items: Vec<Item>) -> Result<Self> {
        if items.is_empty() {
            return Err(Error::Malformed {
                path: path.into(),
                what: format!("task `{name}`"),
                offset: None,
                expected: "at least one question".into(),
                found: "none".into(),
            });
        }
        let delimiter = String::from(" ");
        let example_delimiter = delimiter.clone();
        Ok(Self { name: name.into(), scoring, items, pool: None, delimiter, example_delimiter })
    }
}

/// A mistake in a line, counted from 1.
pub(super) fn wrong(
    path: &Path,
    line: usize,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> Error {
    let mut found: String = found.into();
    if found.chars().count() > 120 {
        found = found.chars().take(120).chain(['…']).collect();
    }
    Error::Malformed {
        path: path.into(),
        what: format!("line {line}"),
        offset: None,
        expected: expected.into(),
        found,
    }
}

/// A line of a file with named fields.
#[derive(Clone, Debug)]
pub(super) struct Record<'a> {
    pub path: &'a Path,
    pub line: usize,
    pub fields: Map<String, Value>,
}

impl Record<'_> {
    pub fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        wrong(self.path, self.line, expected, found)
    }

    pub fn has(&self, keys: &[&str]) -> bool {
        keys.iter().all(|key| self.fields.contains_key(*key))
    }

    pub fn value(&self, key: &str) -> Result<&Value> {
        let value = self.fields.get(key);
        value.ok_or_else(|| self.wrong(format!("a field `{key}`"), "none"))
    }

    pub fn text(&self, key: &str) -> Result<&str> {
        let value = self.value(key)?;
        let text = value.as_str();
        text.ok_or_else(|| self.wrong(format!("a text in `{key}`"), value.to_string()))
    }

    /// A text that is not blank.
    pub fn some_text(&self, key: &str) -> Result<&str> {
        let text = self.text(key)?;
        if text.trim().is_empty() {
            return Err(self.wrong(format!("a text in `{key}`"), "an empty one"));
        }
        Ok(text)
    }

    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        let value = self.value(key)?;
        let list = value.as_array().filter(|list| !list.is_empty());
        let texts = list
            .and_then(|list| list.iter().map(|text| text.as_str().map(str::to_string)).collect());
        texts.ok_or_else(|| self.wrong(format!("a list of texts in `{key}`"), value.to_string()))
    }

    /// A whole number, written as one or as a text.
    pub fn integer(&self, key: &str) -> Result<i64> {
        let value = self.value(key)?;
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            _ => value.as_i64(),
        };
        number.ok_or_else(|| self.wrong(format!("a whole number in `{key}`"), value.to_string()))
    }

    /// The place of an answer among `count` choices, from a number that begins at `first`.
    pub fn place(&self, key: &str, first: i64, count: usize) -> Result<usize> {
        let number = self.integer(key)?;
        let place = usize::try_from(number - first).ok();
        place.filter(|place| *place < count).ok_or_else(|| {
            let last = first + count as i64 - 1;
            let expected =
                format!("an answer from {first} to {last} in `{key}`, for {count} choices");
            self.wrong(expected, number.to_string())
        })
    }

    /// The place of a letter (`A`, `b`) among `count` choices.
    pub fn letter(&self, key: &str, letter: &str, count: usize) -> Result<usize> {
        let upper = letter.trim().to_ascii_uppercase();
        let place = match upper.as_bytes() {
            [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
            _ => None,
        };
        place.filter(|place| *place < count).ok_or_else(|| {
            let last = char::from(b'A' + count.clamp(1, 26) as u8 - 1);
            let expected = format!("a letter from A to {last} in `{key}`, for {count} choices");
            self.wrong(expected, letter)
        })
    }
}
