//! Any JSONL or CSV file as a task: a TOML file says which, and how its fields become questions and answers.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value as Json;

use super::layouts::{Layout, name_of};
use super::source::Source;
use super::task::{Choice, Extract, Generated, Item, Normalize, Record, Scoring, Task};
use crate::disk;
use crate::error::{Error, Result};
use crate::jinja::{Dialect, Renderer};

/// A task file. Texts in it are Jinja templates over a line's fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    /// The key of reports; the file's name if absent.
    name: Option<String>,
    /// The questions, beside the task file: JSONL, or CSV with a row of names.
    data: PathBuf,
    /// The file that examples are drawn from, in the same form.
    shots: Option<PathBuf>,
    /// A published layout; then nothing below is given.
    layout: Option<String>,
    form: Option<FormName>,
    /// The text in front of the examples.
    #[serde(default)]
    front: String,
    /// The question.
    prompt: Option<String>,
    /// Templates, one for each choice; or the name of a field that is a list of texts.
    choices: Option<Choices>,
    /// The right choice.
    answer: Option<String>,
    /// How `answer` names a choice: by place, letter or text.
    answer_is: Option<AnswerIs>,
    /// The right text, where nothing is chosen.
    target: Option<String>,
    /// The text after an example's prompt in place of the bare target: a chain of thought that ends in it.
    rationale: Option<String>,
    text: Option<String>,
    /// Examples come from lines of the same group.
    group: Option<String>,
    delimiter: Option<String>,
    max_tokens: Option<usize>,
    stop: Option<Vec<String>>,
    answer_after: Option<String>,
    answer_pattern: Option<String>,
    normalize: Option<Vec<Normalize>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FormName {
    MultipleChoice,
    Classification,
    Cloze,
    Generation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AnswerIs {
    Index,
    IndexFrom1,
    Letter,
    Text,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Choices {
    Field(String),
    Templates(Vec<String>),
}

/// Reads a task file and what it names. `shots`: examples from there instead.
pub(super) fn read(path: &Path, shots: Option<&Path>) -> Result<Task> {
    let text = disk::read_string(path, disk::SETTINGS)?;
    let file: TaskFile = toml::from_str(&text)
        .map_err(|error| super::toml_error(path, "a task file", &text, &error))?;
    let name = file.name.clone().unwrap_or_else(|| name_of(path));
    let beside = |file: &Path| path.parent().unwrap_or(Path::new("")).join(file);
    let data = beside(&file.data);
    let pool = shots.map(Path::to_path_buf).or_else(|| file.shots.as_deref().map(beside));
    if let Some(layout) = &file.layout {
        let known = Layout::named(layout).ok_or_else(|| key(path, "layout", names(), layout))?;
        if file.prompt.is_some() || file.choices.is_some() || file.form.is_some() {
            let expected = "no prompt, choices or form beside a published layout";
            return Err(key(path, "layout", expected, layout));
        }
        return known.task(&name, &Source::read(&data)?, pool.as_deref());
    }
    let renderer = RefCell::new(Renderer::new(Dialect::Task));
    let template = Template { path, file: &file, renderer };
    let items = template.items(&data)?;
    let scoring = template.scoring(&items)?;
    let task = Task::new(&data, &name, scoring, items)?;
    let pool = pool.map(|pool| template.items(&pool)).transpose()?;
    let delimiter = file.delimiter.clone().unwrap_or(task.delimiter);
    let example_delimiter = delimiter.clone();
    Ok(Task { pool, delimiter, example_delimiter, ..task })
}

fn names() -> String {
    let names: Vec<_> = super::LAYOUTS.iter().map(|layout| layout.name).collect();
    names.join(", ")
}

fn key(path: &Path, key: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Key {
        path: path.into(),
        key: key.into(),
        expected: expected.into(),
        found: found.into(),
    }
}

struct Template<'a> {
    path: &'a Path,
    file: &'a TaskFile,
    renderer: RefCell<Renderer>,
}

impl Template<'_> {
    fn form(&self) -> FormName {
        self.file.form.unwrap_or(FormName::MultipleChoice)
    }

    fn chooses(&self) -> bool {
        matches!(self.form(), FormName::MultipleChoice | FormName::Classification)
    }

    fn missing(&self, name: &str) -> Error {
        key(self.path, name, "a template", "none")
    }

    fn scoring(&self, items: &[Item]) -> Result<Scoring> {
        let file = self.file;
        let generates = file.max_tokens.is_some()
            || file.stop.is_some()
            || file.answer_after.is_some()
            || file.answer_pattern.is_some()
            || file.normalize.is_some();
        if generates && self.form() != FormName::Generation {
            let expected = "`generation`, where max_tokens, stop, answer_after, answer_pattern or normalize is given";
            return Err(key(self.path, "form", expected, format!("{:?}", self.form())));
        }
        Ok(match self.form() {
            FormName::MultipleChoice => Scoring::Choices,
            FormName::Cloze => Scoring::LastWord,
            FormName::Classification => {
                let labels = |item: &Item| -> Vec<String> {
                    item.choices.iter().map(|c| c.text.clone()).collect()
                };
                let first = items.first().map(labels).unwrap_or_default();
                if let Some(other) = items.iter().map(labels).find(|other| *other != first) {
                    let expected = format!("the same labels for every line: {}", first.join(", "));
                    return Err(key(self.path, "choices", expected, other.join(", ")));
                }
                Scoring::Labels(first)
            }
            FormName::Generation => Scoring::Generated(Generated {
                max_tokens: file.max_tokens.unwrap_or(64),
                stop: file.stop.clone().unwrap_or_else(|| vec!["\n\n".into()]),
                extract: self.extract()?,
                normalize: file
                    .normalize
                    .clone()
                    .unwrap_or_else(|| vec![Normalize::Case, Normalize::Spaces]),
            }),
        })
    }

    fn extract(&self) -> Result<Extract> {
        Ok(match (&self.file.answer_after, &self.file.answer_pattern) {
            (None, None) => Extract::Whole,
            (Some(marker), None) if !marker.is_empty() => Extract::After(marker.clone()),
            (None, Some(pattern)) => match regex::Regex::new(pattern) {
                Ok(_) => Extract::Pattern(pattern.clone()),
                Err(_) => {
                    return Err(key(self.path, "answer_pattern", "a regular expression", pattern));
                }
            },
            _ => {
                let expected = "a text, or answer_pattern instead of it";
                return Err(key(self.path, "answer_after", expected, "another"));
            }
        })
    }

    fn items(&self, data: &Path) -> Result<Vec<Item>> {
        let source = Source::read(data)?;
        let records = if source.is_json() { source.records()? } else { source.named_rows()? };
        records.iter().map(|record| self.item(record)).collect()
    }

    fn item(&self, record: &Record<'_>) -> Result<Item> {
        let file = self.file;
        let optional = |name: &str, template: &Option<String>| {
            let rendered = template.as_ref().map(|text| self.render(record, name, text));
            rendered.transpose()
        };
        let prompt = file.prompt.as_ref().ok_or_else(|| self.missing("prompt"))?;
        let query = self.render(record, "prompt", prompt)?;
        let query = query.trim_end_matches(' ').to_string();
        let (choices, answer) = if self.chooses() {
            if file.target.is_some() {
                let expected = "nothing, where an answer is chosen";
                return Err(key(self.path, "target", expected, "a template"));
            }
            self.choices(record)?
        } else {
            if file.choices.is_some() || file.answer.is_some() {
                let expected = "no choices and no answer, but a target, where nothing is chosen";
                return Err(key(self.path, "choices", expected, "some"));
            }
            let target = file.target.as_ref().ok_or_else(|| self.missing("target"))?;
            let target = self.render(record, "target", target)?;
            if target.trim().is_empty() {
                return Err(record.wrong("a `target`", "an empty one"));
            }
            (vec![Choice::new(target.trim())], 0)
        };
        Ok(Item {
            front: self.render(record, "front", &file.front)?,
            query,
            choices,
            answer,
            text: optional("text", &file.text)?,
            shown: optional("rationale", &file.rationale)?,
            group: optional("group", &file.group)?,
            doc: record.fields.clone(),
        })
    }

    fn choices(&self, record: &Record<'_>) -> Result<(Vec<Choice>, usize)> {
        let file = self.file;
        let texts = match &file.choices {
            None => {
                let expected = "templates, or the name of a field with a list";
                return Err(key(self.path, "choices", expected, "none"));
            }
            Some(Choices::Field(field)) => record.texts(field)?,
            Some(Choices::Templates(templates)) => templates
                .iter()
                .map(|template| self.render(record, "choices", template))
                .collect::<Result<_>>()?,
        };
        if texts.len() < 2 || texts.iter().any(|text| text.trim().is_empty()) {
            let expected = "two choices or more, none of them empty";
            return Err(record.wrong(expected, format!("{texts:?}")));
        }
        let answer = file.answer.as_ref().ok_or_else(|| self.missing("answer"))?;
        let answer = self.render(record, "answer", answer)?;
        let answer = answer.trim();
        let number = |first: usize| {
            let place = answer.parse::<usize>().ok();
            let place = place.and_then(|number| number.checked_sub(first));
            let last = texts.len() - 1 + first;
            let place = place.filter(|place| *place < texts.len());
            place.ok_or_else(|| {
                record.wrong(
                    format!("an answer from {first} to {last}, for {} choices", texts.len()),
                    answer,
                )
            })
        };
        // Labels of a classification are their own names.
        let default =
            if self.form() == FormName::Classification { AnswerIs::Text } else { AnswerIs::Index };
        let place = match file.answer_is.unwrap_or(default) {
            AnswerIs::Index => number(0)?,
            AnswerIs::IndexFrom1 => number(1)?,
            AnswerIs::Letter => record.letter("answer", answer, texts.len())?,
            AnswerIs::Text => {
                let place = texts.iter().position(|text| text.trim() == answer);
                let expected = format!("an answer out of {}", texts.join(", "));
                place.ok_or_else(|| record.wrong(expected, answer))?
            }
        };
        Ok((texts.iter().map(|text| Choice::new(text.trim())).collect(), place))
    }

    fn render(&self, record: &Record<'_>, name: &str, template: &str) -> Result<String> {
        let fields = Json::Object(record.fields.clone());
        self.renderer.borrow_mut().render(template, &fields)?.map_err(|error| {
            let fields: Vec<_> = record.fields.keys().map(String::as_str).collect();
            let expected =
                format!("fields that the template `{name}` of {} asks for", self.path.display());
            let reason = error.replace('\n', " ");
            record.wrong(expected, format!("{reason}; fields: {}", fields.join(", ")))
        })
    }
}
