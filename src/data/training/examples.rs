//! The examples of a source, as tokens: what its rows are, by their fields, and what of them is scored.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::super::layouts::{Layout, headline};
use super::super::source::Source;
use super::super::task::{Item, Record, wrong};
use super::super::{BETWEEN, EMBEDDED_TASKS, TEXTS, embedded, mark_gaps, read_task, read_text};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::jinja::{Dialect, Renderer};
use crate::text::Tokenizer;

/// The fields by which a row's form is known, and how it is read.
type Form = (&'static [&'static str], fn(&Record<'_>) -> Result<Raw>);

/// Every form that a row can have. The first whose fields are all there is a row's.
static FORMS: &[Form] = &[
    (&["messages"], conversation),
    (&["instruction", "output"], instruction),
    (&["prompt", "completion"], |record| continued(record, "completion")),
    (&["prompt", "response"], |record| continued(record, "response")),
    (&["question", "answer"], question),
    (&["text", "label"], labelled),
    (&["text"], |record| Ok(Raw::Text(Plain::Whole(record.some_text("text")?.into())))),
];

/// Alpaca's prompts (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca), with and without an input.
const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further context. \
     Write a response that appropriately completes the request.";
const WITHOUT_INPUT: &str = "Below is an instruction that describes a task. \
     Write a response that appropriately completes the request.";

/// Examples that are encoded between two looks at whether the user wants to stop.
const AT_ONCE: usize = 4096;

/// An example's tokens, at least two.
#[derive(Debug)]
pub(super) struct Example {
    /// The line of the file, from 1; the number of a task's question.
    pub line: usize,
    pub ids: Vec<u32>,
    /// Of each token, whether it is scored; never the first.
    pub scored: Vec<bool>,
}

impl Example {
    /// The place of the target's first token, of an example of a source and a target.
    pub fn target(&self) -> Option<usize> {
        self.ids.iter().position(|id| *id == BETWEEN).map(|place| place + 1)
    }
}

/// What a source has.
pub(super) enum Kind {
    /// One text, to be cut anywhere.
    Text(Vec<u32>),
    /// Examples.
    Examples(Vec<Example>),
}

pub(super) struct Read {
    pub kind: Kind,
    /// The token that fills rows.
    pub fill: u32,
    /// Whether rows are a source and a target each, for a model with an encoder.
    pub paired: bool,
}

/// A row of a file.
pub(super) enum Raw {
    /// A text to be encoded.
    Text(Plain),
    /// Turns of a role and a content each, which a chat template makes a text of.
    Turns(Vec<(String, String)>),
}

/// An example as text.
pub(super) enum Plain {
    /// A text throughout.
    Whole(String),
    /// A prompt and its response.
    Pair(String, String),
    /// A conversation, and the parts of its bytes that are responses.
    Chat(String, Vec<Range<usize>>),
}

impl Plain {
    /// The text, of a pair the prompt's and the response's.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Plain::Whole(text) | Plain::Chat(text, _) => Cow::Borrowed(text),
            Plain::Pair(prompt, response) => Cow::Owned(format!("{prompt}{response}")),
        }
    }
}

impl Read {
    /// Reads a source for rows of `length` tokens; with `mask` only responses are scored, else all but an example's first token.
    pub fn source(
        name: &str,
        (mask, length): (bool, usize),
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let Some(raws) = raws(name)? else {
            let mut ids = tokenizer.encode(&text_of(name)?, false)?;
            mark_gaps(&mut ids, length, tokenizer.gap());
            let paired = tokenizer.decoder_start.is_some();
            return Ok(Self { kind: Kind::Text(ids), fill: 0, paired });
        };
        let eos = end_of(name, tokenizer)?;
        let paired = tokenizer.decoder_start.is_some();
        let texts = rendered(name, raws, tokenizer)?;
        let mut examples = Vec::with_capacity(texts.len());
        for part in texts.chunks(AT_ONCE) {
            interrupt::check()?;
            let encode =
                |(line, plain): &(usize, Plain)| encoded(name, *line, plain, tokenizer, eos);
            // Whichever is found first: the error is that of the first line.
            for example in part.par_iter().map(encode).collect::<Vec<_>>() {
                let mut example = example?;
                // An encoder's tokens are not foretold.
                if !mask && !paired {
                    example.scored[1..].fill(true);
                }
                examples.push(example);
            }
        }
        if examples.is_empty() {
            return Err(wrong(name.as_ref(), 1, "an example", "none"));
        }
        let fill = tokenizer.pad.unwrap_or(eos);
        Ok(Self { kind: Kind::Examples(examples), fill, paired })
    }
}

/// The token that ends a text.
pub(super) fn end_of(name: &str, tokenizer: &Tokenizer) -> Result<u32> {
    tokenizer.eos.first().copied().ok_or_else(|| Error::Argument {
        argument: format!("training data {name}"),
        expected: "a vocabulary with a token that ends a text, to stand behind examples".into(),
        found: "none".into(),
    })
}

/// The examples of a source, with their lines; `None` if it is one text.
fn raws(name: &str) -> Result<Option<Vec<(usize, Raw)>>> {
    if let Some(task) = name.strip_prefix("embedded:") {
        if !EMBEDDED_TASKS.contains(&task) {
            return Ok(None);
        }
        let pool = embedded::embedded(task).transpose()?.and_then(|task| task.pool);
        let pool = pool.ok_or_else(|| Error::Argument {
            argument: "training data".into(),
            expected: "a task with questions apart from those it is measured by".into(),
            found: format!("{name}, which has none"),
        })?;
        return Ok(Some(questions(&pool)));
    }
    let path = Path::new(name);
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or("").to_ascii_lowercase();
    let layout = name.split_once(':').and_then(|(layout, _)| Layout::named(layout));
    if layout.is_some() || end == "toml" {
        return Ok(Some(questions(&read_task(name, None)?.items)));
    }
    if ["txt", "md"].contains(&end.as_str()) {
        return Ok(None);
    }
    let source = Source::read(path)?;
    let records = match end.as_str() {
        "csv" => source.named_rows()?,
        "jsonl" | "json" | "ndjson" => lines(&source)?,
        _ if source.is_json() => lines(&source)?,
        _ => return Ok(None),
    };
    let read = |record: Record<'_>| Ok((record.line, raw(&record)?));
    records.into_iter().map(read).collect::<Result<_>>().map(Some)
}

/// A text without examples.
fn text_of(name: &str) -> Result<String> {
    if name
        .strip_prefix("embedded:")
        .is_some_and(|text| TEXTS.iter().all(|(known, _)| *known != text))
    {
        let names = TEXTS.iter().map(|(name, _)| *name).chain(["headlines"]);
        let names: Vec<_> = names.map(|name| format!("embedded:{name}")).collect();
        return Err(Error::Argument {
            argument: "training data".into(),
            expected: names.join(", "),
            found: name.into(),
        });
    }
    read_text(name)
}

/// The records of JSON lines. A blank line is one without a record, but for blank lines at the end.
pub(super) fn lines(source: &Source) -> Result<Vec<Record<'_>>> {
    let mut blank = None;
    for (line, text) in source.text.lines().enumerate() {
        match (text.trim().is_empty(), blank) {
            (true, None) => blank = Some(line + 1),
            (false, Some(blank)) => {
                return Err(wrong(&source.path, blank, "a JSON object", "an empty line"));
            }
            _ => {}
        }
    }
    source.records()
}

/// Questions as `eval` asks them: the prompt, the space behind it and the right answer, a rationale before it where there is one.
fn questions(items: &[Item]) -> Vec<(usize, Raw)> {
    let raw = |(place, item): (usize, &Item)| (place + 1, asked(item));
    items.iter().enumerate().map(raw).collect()
}

fn asked(item: &Item) -> Raw {
    let query = format!("{}{}", item.front, item.query_of(item.answer));
    pair(query, format!(" {}", item.shown.as_deref().unwrap_or(item.target())))
}

fn raw(record: &Record<'_>) -> Result<Raw> {
    match FORMS.iter().find(|(fields, _)| record.has(fields)) {
        Some((_, read)) => read(record),
        None => {
            let forms: Vec<_> = FORMS.iter().map(|(fields, _)| fields.join(" and ")).collect();
            let fields: Vec<_> = record.fields.keys().map(String::as_str).collect();
            let found = match fields.is_empty() {
                true => "none".to_string(),
                false => fields.join(", "),
            };
            Err(record.wrong(format!("fields {}", forms.join(", or ")), found))
        }
    }
}

fn pair(prompt: String, response: String) -> Raw {
    Raw::Text(Plain::Pair(prompt, response))
}

/// Alpaca's form.
fn instruction(record: &Record<'_>) -> Result<Raw> {
    let input = match record.fields.get("input") {
        None | Some(Value::Null) => "",
        Some(_) => record.text("input")?,
    };
    let (instruction, output) = (record.some_text("instruction")?, record.some_text("output")?);
    let prompt = match input.trim().is_empty() {
        true => format!("{WITHOUT_INPUT}\n\n### Instruction:\n{instruction}\n\n### Response:\n"),
        false => format!(
            "{WITH_INPUT}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
        ),
    };
    Ok(pair(prompt, output.into()))
}

/// A prompt and its continuation as they are: a space between them is part of one of them.
fn continued(record: &Record<'_>, response: &str) -> Result<Raw> {
    Ok(pair(record.some_text("prompt")?.into(), record.some_text(response)?.into()))
}

fn question(record: &Record<'_>) -> Result<Raw> {
    let (question, answer) = (record.some_text("question")?, record.some_text("answer")?);
    Ok(pair(format!("Question: {question}\nAnswer:"), format!(" {}", answer.trim())))
}

/// A text and yes or no: a headline, with the prompt of that task. Other labels need a form that says what they mean.
fn labelled(record: &Record<'_>) -> Result<Raw> {
    record.some_text("text")?;
    match record.fields.get("label").and_then(Value::as_str) {
        Some("yes" | "no") => Ok(asked(&headline(record)?)),
        _ => Err(record.wrong(
            "a label yes or no, as headlines have; for others LAYOUT:FILE of a published task, such as twitter-financial:FILE, \
             or a .toml task file with a prompt",
            record.value("label")?.to_string(),
        )),
    }
}

fn conversation(record: &Record<'_>) -> Result<Raw> {
    let turns = turns_of(record, "messages")?;
    if !turns.iter().any(|(role, _)| role == ASSISTANT) {
        return Err(record.wrong("a message by `assistant` to learn from", "none"));
    }
    Ok(Raw::Turns(turns))
}

/// The messages in a field: roles and contents.
pub(super) fn turns_of(record: &Record<'_>, key: &str) -> Result<Vec<(String, String)>> {
    let wrong = |found: String| {
        let expected = "a list of messages, each a text in `role` and one in `content`";
        record.wrong(format!("{expected}, in `{key}`"), found)
    };
    let value = record.value(key)?;
    let list = value.as_array().ok_or_else(|| wrong(value.to_string()))?;
    let mut turns = Vec::with_capacity(list.len());
    for message in list {
        let [role, content] =
            ["role", "content"].map(|key| message.get(key).and_then(Value::as_str));
        let (Some(role), Some(content)) = (role, content) else {
            return Err(wrong(message.to_string()));
        };
        if content.trim().is_empty() {
            return Err(record.wrong("messages with a content", format!("an empty one by {role}")));
        }
        turns.push((role.to_string(), content.to_string()));
    }
    Ok(turns)
}

const ASSISTANT: &str = "assistant";

/// Conversations through the vocabulary's chat template, one process for all of them.
pub(super) fn rendered(
    name: &str,
    raws: Vec<(usize, Raw)>,
    tokenizer: &Tokenizer,
) -> Result<Vec<(usize, Plain)>> {
    let mut renderer = Renderer::new(Dialect::Chat);
    let mut render = |(line, raw): (usize, Raw)| match raw {
        Raw::Text(plain) => Ok((line, plain)),
        Raw::Turns(turns) => {
            Ok((line, turns_as_text(name, line, &turns, tokenizer, &mut renderer)?))
        }
    };
    raws.into_iter().map(&mut render).collect()
}

/// A conversation's text, and the parts that its assistant says: what a turn adds to the text of those before it with the
/// template's beginning of an answer, its end included.
fn turns_as_text(
    name: &str,
    line: usize,
    turns: &[(String, String)],
    tokenizer: &Tokenizer,
    renderer: &mut Renderer,
) -> Result<Plain> {
    let mut render =
        |turns: &[(String, String)], answer| tokenizer.render_chat_with(renderer, turns, answer);
    let whole = render(turns, false)?;
    let mut parts = Vec::new();
    for (place, _) in turns.iter().enumerate().filter(|(_, (role, _))| role == ASSISTANT) {
        let before = render(&turns[..place], true)?;
        let through = render(&turns[..=place], false)?;
        if !whole.starts_with(&through) || !through.starts_with(&before) {
            return Err(wrong(
                name.as_ref(),
                line,
                "a chat template that leaves the text of earlier messages as it is when others follow",
                format!("another text before or behind message {}", place + 1),
            ));
        }
        parts.push(before.len()..through.len());
    }
    Ok(Plain::Chat(whole, parts))
}

/// An example's tokens, EOS at their end.
pub(super) fn encoded(
    name: &str,
    line: usize,
    plain: &Plain,
    tokenizer: &Tokenizer,
    eos: u32,
) -> Result<Example> {
    let short =
        |found: String| wrong(name.as_ref(), line, "an example of tokens to learn from", found);
    let (mut ids, mut scored, ended) = match plain {
        Plain::Whole(text) => {
            let ids = tokenizer.encode(text, true)?;
            let scored = vec![true; ids.len()];
            let ended = ids.last().is_some_and(|last| tokenizer.is_eos(*last));
            (ids, scored, ended)
        }
        Plain::Pair(prompt, response) => {
            let pair = tokenizer.encode_continuation(prompt, response, false);
            let (mut ids, behind) = pair.map_err(|error| match error {
                Error::Argument { expected, found, .. } => {
                    wrong(name.as_ref(), line, expected, found)
                }
                error => error,
            })?;
            let mut scored = vec![false; ids.len()];
            ids.extend_from_slice(&behind);
            scored.resize(ids.len(), true);
            let ended = ids.last().is_some_and(|last| tokenizer.is_eos(*last));
            (ids, scored, ended)
        }
        Plain::Chat(text, parts) => {
            let (ids, ends) = tokenizer.encode_with_ends(text, true, usize::MAX)?;
            let scored = within(&ends, parts);
            // A template ends a turn itself, and may put a line's end behind that.
            let end = text.trim_end().len();
            let last = ends.iter().position(|place| *place >= end);
            let ended = last.is_some_and(|last| tokenizer.is_eos(ids[last]));
            (ids, scored, ended)
        }
    };
    if ids.is_empty() {
        return Err(short("none".into()));
    }
    if let Some(start) = tokenizer.decoder_start {
        // What is scored is the decoder's, the rest the encoder's.
        let Plain::Pair(..) = plain else {
            let expected = "a prompt and its response, for a model whose encoder reads the prompt";
            return Err(wrong(name.as_ref(), line, expected, "another form of example"));
        };
        let source = scored.iter().take_while(|scored| !**scored).count();
        ids.splice(source..source, [BETWEEN, start]);
        scored.splice(source..source, [false, false]);
    }
    if !ended {
        ids.push(eos);
        // It belongs to what was said last.
        scored.push(scored.last() == Some(&true));
    }
    scored[0] = false;
    if !scored.iter().any(|scored| *scored) {
        return Err(short("none that is scored".into()));
    }
    Ok(Example { line, ids, scored })
}

/// Of each token, given the places up to which tokens have spelled a text, whether it is part of one of some parts. One that
/// begins before a part is not; one without bytes goes with the token before it.
fn within(ends: &[usize], parts: &[Range<usize>]) -> Vec<bool> {
    let (mut begin, mut last) = (0, false);
    let scored = ends.iter().map(|&end| {
        if end > begin {
            last = parts.iter().any(|part| part.start <= begin && end <= part.end);
        }
        begin = end;
        last
    });
    scored.collect()
}
