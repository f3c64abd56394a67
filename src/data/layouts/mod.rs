//! Questions as their authors publish them, each file layout with lm-evaluation-harness's prompt for it.

mod choices;
mod labels;

use std::path::Path;

use serde_json::{Map, Value};

use self::choices::{
    arc, hellaswag, is_logiqa_text, is_mmlu_table, logiqa, mmlu, openbookqa, piqa, winogrande,
};
pub(super) use self::labels::headline;
pub(super) use self::labels::last_word;
use self::labels::{SENTIMENTS, boolq, labelled, lambada, phrasebank, twitter};
use super::source::Source;
use super::task::{Item, Record, Scoring, Task};
use crate::error::{Error, Result};

/// A published layout: a row of [`LAYOUTS`].
#[derive(Debug)]
pub struct Layout {
    /// The name before the colon in `LAYOUT:FILE`.
    pub name: &'static str,
    /// The form of such a file.
    pub shape: &'static str,
    /// Where its files come from: data sets on Hugging Face, or the authors' repositories on GitHub. Empty: part of the program.
    pub from: &'static str,
    /// The labels that every item has, if it is a classification.
    labels: &'static [&'static str],
    last_word: bool,
    /// What stands between an example's query and its answer.
    example_delimiter: &'static str,
    detect: fn(&Source) -> bool,
    read: fn(&Source) -> Result<Vec<Item>>,
}

const BASE: Layout = Layout {
    name: "",
    shape: "",
    from: "",
    labels: &[],
    last_word: false,
    example_delimiter: " ",
    detect: |_| false,
    read: |_| Ok(Vec::new()),
};

/// Every published layout.
pub static LAYOUTS: &[Layout] = &[
    Layout {
        name: "mmlu",
        shape: "CSV question,A,B,C,D,letter; or JSONL question, choices, answer (from 0), subject",
        from: "huggingface.co/datasets/cais/mmlu as JSONL, or the CSV files of github.com/hendrycks/test",
        detect: |source| match has(source, &["question", "choices", "answer"]) {
            Some(found) => found,
            None => is_mmlu_table(source),
        },
        read: mmlu,
        ..BASE
    },
    Layout {
        name: "hellaswag",
        shape: "JSONL ctx_a, ctx_b (or ctx), activity_label, endings, label",
        from: "github.com/rowanz/hellaswag, data/hellaswag_val.jsonl; or huggingface.co/datasets/Rowan/hellaswag",
        detect: |source| has(source, &["endings", "label"]) == Some(true),
        read: |source| each(source, hellaswag),
        ..BASE
    },
    Layout {
        name: "arc",
        shape: "JSONL question.stem and question.choices, or question and choices.text; answerKey (A to E, or 1 to 5)",
        from: "huggingface.co/datasets/allenai/ai2_arc as JSONL, or ARC-V1-Feb2018's",
        // With question.stem it could be OpenBookQA too.
        detect: |source| {
            let first = source.first_record().ok().flatten();
            first.is_some_and(|record| {
                record.has(&["choices", "answerKey"]) && record.text("question").is_ok()
            })
        },
        read: |source| each(source, arc),
        ..BASE
    },
    Layout {
        name: "openbookqa",
        shape: "JSONL question.stem and question.choices, or question_stem and choices.text; answerKey",
        from: "huggingface.co/datasets/allenai/openbookqa as JSONL, or OpenBookQA-V1-Sep2018's",
        detect: |source| has(source, &["question_stem", "choices", "answerKey"]) == Some(true),
        read: |source| each(source, openbookqa),
        ..BASE
    },
    Layout {
        name: "logiqa",
        shape: "text: blank line, letter, passage, question, four options; or JSONL context, question (query), options, label (correct_option)",
        from: "github.com/lgw863/LogiQA-dataset, Test.txt; or huggingface.co/datasets/lucasmccabe/logiqa",
        detect: |source| match has(source, &["context", "options"]) {
            Some(found) => found,
            None => is_logiqa_text(source),
        },
        read: logiqa,
        ..BASE
    },
    Layout {
        name: "piqa",
        shape: "JSONL goal, sol1, sol2; label (0 or 1) in it or a line each in NAME-labels.lst beside it",
        from: "huggingface.co/datasets/ybisk/piqa: valid.jsonl with valid-labels.lst beside it",
        detect: |source| has(source, &["goal", "sol1", "sol2"]) == Some(true),
        read: piqa,
        ..BASE
    },
    Layout {
        name: "boolq",
        shape: "JSONL question, passage, answer (true or false) or label (1 or 0)",
        from: "huggingface.co/datasets/google/boolq as JSONL",
        labels: &["no", "yes"],
        detect: |source| has(source, &["question", "passage"]) == Some(true),
        read: |source| each(source, boolq),
        ..BASE
    },
    Layout {
        name: "winogrande",
        shape: "JSONL sentence with _, option1, option2, answer (1 or 2)",
        from: "huggingface.co/datasets/allenai/winogrande as JSONL",
        detect: |source| has(source, &["sentence", "option1", "option2"]) == Some(true),
        read: |source| each(source, winogrande),
        ..BASE
    },
    Layout {
        name: "lambada",
        shape: "JSONL text; or a passage a line",
        from: "huggingface.co/datasets/EleutherAI/lambada_openai, lambada_test.jsonl",
        last_word: true,
        example_delimiter: "  ",
        detect: |source| {
            let first = source.first_record().ok().flatten();
            first.is_some_and(|record| record.has(&["text"]) && !record.has(&["label"]))
        },
        read: lambada,
        ..BASE
    },
    Layout {
        name: "phrasebank",
        shape: "lines sentence@positive, @negative or @neutral; Latin-1 or UTF-8",
        from: "huggingface.co/datasets/takala/financial_phrasebank, Sentences_50Agree.txt",
        labels: SENTIMENTS,
        detect: |source| {
            let mut lines = source.lines().take(3).peekable();
            let labelled =
                |text: &str| SENTIMENTS.iter().any(|l| text.trim_end().ends_with(&format!("@{l}")));
            lines.peek().is_some() && lines.all(|(_, text)| labelled(text))
        },
        read: phrasebank,
        ..BASE
    },
    Layout {
        name: "twitter-financial",
        shape: "CSV with columns text, label (0 bearish, 1 bullish, 2 neutral)",
        from: "huggingface.co/datasets/zeroshot/twitter-financial-news-sentiment, sent_valid.csv",
        labels: &["bearish", "bullish", "neutral"],
        detect: |source| {
            let first = source.text.lines().next().unwrap_or_default();
            first.trim().replace('"', "") == "text,label"
        },
        read: twitter,
        ..BASE
    },
    Layout {
        name: "headlines",
        shape: "JSONL text, label (yes or no: whether the headline is sarcastic)",
        labels: &["no", "yes"],
        read: |source| each(source, headline),
        ..BASE
    },
    Layout {
        name: "labelled",
        shape: "JSONL or CSV text, label (its name, of two or more that the file has)",
        read: labelled,
        ..BASE
    },
];

impl Layout {
    /// The layout of this name.
    pub fn named(name: &str) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|layout| layout.name == name)
    }

    /// The layout that a file's content shows, if it is one's alone.
    pub(super) fn detect(source: &Source) -> Result<&'static Layout> {
        // A broken first line is no other layout but a broken line.
        if source.is_json() {
            source.first_record()?;
        }
        let mut fitting = LAYOUTS.iter().filter(|layout| (layout.detect)(source));
        if let (Some(layout), None) = (fitting.next(), fitting.next()) {
            return Ok(layout);
        }
        let list: Vec<_> = LAYOUTS
            .iter()
            .map(|layout| format!("{}:FILE ({})", layout.name, layout.shape))
            .collect();
        Err(Error::Unsupported {
            path: source.path.clone(),
            what: "a layout that its content does not tell for sure".into(),
            why: format!(
                "say which with one of {}; or describe it in a .toml task file",
                list.join("; ")
            ),
        })
    }

    /// How its answers are found.
    pub(super) fn scoring(&self) -> Scoring {
        if self.last_word {
            Scoring::LastWord
        } else if self.labels.is_empty() {
            Scoring::Choices
        } else {
            Scoring::Labels(self.labels.iter().map(|label| label.to_string()).collect())
        }
    }

    /// The questions of a file.
    pub(super) fn read(&self, source: &Source) -> Result<Vec<Item>> {
        (self.read)(source)
    }

    /// A file as a task, with examples from a file of the same layout if there is one.
    pub(super) fn task(&self, name: &str, source: &Source, shots: Option<&Path>) -> Result<Task> {
        let task = Task::new(&source.path, name, self.scoring(), self.read(source)?)?;
        let pool = shots.map(|shots| self.read(&Source::read(shots)?)).transpose()?;
        Ok(Task { pool, example_delimiter: self.example_delimiter.into(), ..task })
    }
}

/// Whether the first record has these fields; `None` where the file has no JSON records.
fn has(source: &Source, keys: &[&str]) -> Option<bool> {
    if !source.is_json() {
        return None;
    }
    let first = source.first_record().ok().flatten();
    Some(first.is_some_and(|record| record.has(keys)))
}

fn each(source: &Source, item: fn(&Record<'_>) -> Result<Item>) -> Result<Vec<Item>> {
    with_docs(source.records()?, |_, record| item(record))
}

/// An item of each record, which keeps its fields.
fn with_docs(
    records: Vec<Record<'_>>,
    item: impl Fn(usize, &Record<'_>) -> Result<Item>,
) -> Result<Vec<Item>> {
    let each = records.into_iter().enumerate();
    each.map(|(index, record)| {
        let item = item(index, &record)?;
        Ok(Item { doc: record.fields, ..item })
    })
    .collect()
}

/// The fields of a record of a file that does not name them.
fn doc<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.map(|(name, value)| (name.to_string(), value)).into_iter().collect()
}

/// The task's name, from its file's name.
pub(super) fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
