//! Texts that a head scores as a whole: pairs of which one is preferred, and texts with a label. A row is a text, read at the one token
//! that stands for it; the rows of a pair stand together, the preferred one first.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::super::shots::shuffled;
use super::super::source::Source;
use super::super::task::{Choice, Item, Record, wrong};
use super::super::{BETWEEN, EMBEDDED_TASKS, Layout, Pooling, embedded, read_task, unnamed_label};
use super::examples::{Plain, Raw, encoded, end_of, lines, rendered, turns_of};
use super::pack::Rows;
use super::{Dataset, Purpose, seed_of};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// How a head reads texts as a whole.
#[derive(Clone, Copy)]
pub struct Reading<'t> {
    /// The vocabulary.
    pub tokenizer: &'t Tokenizer,
    /// The token of a text that stands for it.
    pub pooling: Pooling,
    /// Tokens of a text at most.
    pub most: usize,
}

impl Reading<'_> {
    /// A text's tokens, and how many it lost of `most`: where it is read at its last token EOS stands behind it and it loses its
    /// beginning; where all tokens see each other it stands between the vocabulary's own and loses its end.
    pub fn whole(&self, text: &str) -> Result<(Vec<u32>, usize)> {
        self.tokens("text", 1, &Plain::Whole(text.into()))
    }

    /// The same of an example, which is named in errors.
    fn tokens(&self, name: &str, line: usize, plain: &Plain) -> Result<(Vec<u32>, usize)> {
        if self.pooling.sees_all() {
            let (ids, lost) = self.tokenizer.encode_within(&plain.text(), self.most)?;
            return match ids.is_empty() {
                true => Err(wrong(name.as_ref(), line, "a text of a token or more", "none")),
                false => Ok((ids, lost)),
            };
        }
        let eos = end_of(name, self.tokenizer)?;
        let mut ids = encoded(name, line, plain, self.tokenizer, eos)?.ids;
        let lost = ids.len().saturating_sub(self.most);
        ids.drain(..lost);
        Ok((ids, lost))
    }

    /// The token that fills rows behind texts.
    fn fill(&self, name: &str) -> Result<u32> {
        match (self.pooling.sees_all(), self.tokenizer.pad) {
            (true, _) => Ok(BETWEEN),
            (false, Some(pad)) => Ok(pad),
            (false, None) => end_of(name, self.tokenizer),
        }
    }
}

/// A text that is preferred to another one, as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// The one that is preferred.
    pub chosen: Vec<u32>,
    /// The other.
    pub rejected: Vec<u32>,
}

/// Texts that may follow a prompt, and what each is worth by another judge.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    /// The texts, each behind the prompt.
    pub texts: Vec<Vec<u32>>,
    /// What they are worth.
    pub rewards: Vec<f64>,
}

/// Which questions of a task are meant, where some are apart from those it is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Questions {
    /// Those to learn from.
    Pool,
    /// Those it is measured by.
    Asked,
}

/// Texts that a head learns to score together, and their label.
#[derive(Debug)]
struct Lesson {
    /// A pair, or a text alone.
    texts: Vec<Vec<u32>>,
    label: u32,
}

/// What a source of texts gives.
#[derive(Debug)]
pub(super) struct Texts {
    lessons: Vec<Lesson>,
    together: usize,
    fill: u32,
    pooling: Pooling,
    /// Texts that are longer than a row.
    cut: usize,
    /// Places of those that are taught wrongly.
    noisy: HashSet<usize>,
    /// Labels that there are; 1: pairs.
    labels: usize,
}

/// Preferences to measure a model by: a file of pairs, or a task, whose right answers are preferred to others.
pub fn preferences(name: &str, reading: Reading<'_>) -> Result<Vec<Preference>> {
    let (lessons, _) = pairs(name, Questions::Asked, reading)?;
    let preference = |lesson: Lesson| {
        let mut texts = lesson.texts.into_iter();
        let mut next = || texts.next().unwrap_or_default();
        Preference { chosen: next(), rejected: next() }
    };
    Ok(lessons.into_iter().map(preference).collect())
}

/// Lists of texts with what each is worth, from JSON lines with `prompt`, `completions` and `rewards`, as `generate --best-of`
/// writes them.
pub fn candidates(path: &Path, reading: Reading<'_>) -> Result<Vec<Candidates>> {
    let source = Source::read(path)?;
    let name = path.display().to_string();
    let mut all = Vec::new();
    for record in lines(&source)? {
        let prompt = record.text("prompt")?;
        let texts = record.value("completions")?.as_array();
        let texts: Option<Vec<&str>> =
            texts.and_then(|texts| texts.iter().map(Value::as_str).collect());
        let rewards = record.value("rewards")?.as_array();
        let rewards: Option<Vec<f64>> =
            rewards.and_then(|numbers| numbers.iter().map(Value::as_f64).collect());
        let both = texts.zip(rewards);
        let (texts, rewards) = both
            .filter(|(texts, rewards)| !texts.is_empty() && texts.len() == rewards.len())
            .ok_or_else(|| {
                record.wrong(
                    "a list of texts in `completions` and a number for each in `rewards`",
                    "another value",
                )
            })?;
        let encode = |text: &&str| {
            let whole = Plain::Whole(format!("{prompt}{text}"));
            Ok(reading.tokens(&name, record.line, &whole)?.0)
        };
        let texts = texts.iter().map(encode).collect::<Result<_>>()?;
        all.push(Candidates { texts, rewards });
    }
    match all.is_empty() {
        true => Err(wrong(path, 1, "a prompt with completions", "none")),
        false => Ok(all),
    }
}

/// The prompts of a file of JSON lines with `prompt`, or those of a task's questions.
pub fn prompts(name: &str) -> Result<Vec<String>> {
    if let Some(items) = questions(name, Questions::Asked)? {
        return Ok(items.iter().map(|item| format!("{}{}", item.front, item.query)).collect());
    }
    let source = Source::read(Path::new(name))?;
    let prompts = lines(&source)?.into_iter();
    prompts.map(|record| Ok(record.some_text("prompt")?.to_string())).collect()
}

impl Texts {
    /// Reads a source for a head of these labels: of one, pairs. `place` is that of the source in the dataset.
    pub fn read(
        dataset: &Dataset,
        (place, name): (usize, &str),
        (labels, reading): (&[String], Reading<'_>),
        seed: u64,
    ) -> Result<Self> {
        let (lessons, cut) = match labels {
            [_] => pairs(name, Questions::Pool, reading)?,
            labels => labelled(name, labels, reading)?,
        };
        // The same ones are wrong whatever is kept apart, and in whatever order they come.
        let seed = seed_of(dataset.noise_seed.unwrap_or(seed), Purpose::Noise, place, 0);
        let noisy = (lessons.len() as f64 * dataset.label_noise).round() as usize;
        let noisy = shuffled(lessons.len(), seed).into_iter().take(noisy).collect();
        let together = if labels.len() == 1 { 2 } else { 1 };
        let (fill, pooling) = (reading.fill(name)?, reading.pooling);
        Ok(Self { lessons, together, fill, pooling, cut, noisy, labels: labels.len() })
    }

    /// Rows of what is to be learned, and of what is kept apart; how many are learned, and how many of these are wrong. What is
    /// kept apart is not, and nothing of it is learned.
    pub fn halves(
        &self,
        dataset: &Dataset,
        (place, name): (usize, &str),
        seed: u64,
    ) -> Result<(Rows, Rows, usize, usize)> {
        let order = shuffled(self.lessons.len(), seed_of(seed, Purpose::HeldOut, place, 0));
        let (held, learned) = order.split_at(dataset.held(order.len()).min(order.len()));
        let kept: HashSet<&Vec<u32>> =
            held.iter().flat_map(|place| &self.lessons[*place].texts).collect();
        let known = |place: &usize| self.lessons[*place].texts.iter().any(|t| kept.contains(t));
        let mut learned: Vec<usize> = learned.iter().copied().filter(|p| !known(p)).collect();
        let mut held = held.to_vec();
        held.sort_unstable();
        if !dataset.shuffle {
            learned.sort_unstable();
        }
        if learned.is_empty() {
            return Err(Error::Argument {
                argument: format!("training data {name}"),
                expected: format!("a text or more to learn from, beside {} kept apart", held.len()),
                found: format!("{} in all", self.lessons.len()),
            });
        }
        let wrong = learned.iter().filter(|place| self.noisy.contains(place)).count();
        if wrong > 0 {
            let of =
                if self.together == 2 { "pairs are turned around" } else { "labels are wrong" };
            tracing::warn!("{name}: {wrong} of {} {of} (label noise)", learned.len());
        }
        if self.cut > 0 {
            let (cut, length) = (self.cut, dataset.length);
            let part = if self.pooling.sees_all() { "end" } else { "beginning" };
            tracing::warn!(
                "{name}: {cut} texts are longer than {length} tokens and lose their {part}"
            );
        }
        let rows = self.rows(dataset.length, &learned, true);
        Ok((rows, self.rows(dataset.length, &held, false), learned.len(), wrong))
    }

    fn rows(&self, length: usize, places: &[usize], noisy: bool) -> Rows {
        let mut rows = Rows::of_texts(length, self.together, self.fill);
        for place in places {
            let Lesson { texts, label } = &self.lessons[*place];
            let wrong = noisy && self.noisy.contains(place);
            let mut texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            if wrong {
                texts.reverse();
            }
            for text in texts {
                let read = self.pooling.place(text.len()).expect("a head reads one token");
                rows.push_text(text, read);
            }
            // The next label, where it is the wrong one.
            let label = (label + u32::from(wrong)) % self.labels as u32;
            rows.labels.extend((self.together == 1).then_some(label));
        }
        rows
    }
}

/// The questions of a task; `None`: the name is that of no task.
fn questions(name: &str, which: Questions) -> Result<Option<Vec<Item>>> {
    let own = name.strip_prefix("embedded:").unwrap_or(name);
    if EMBEDDED_TASKS.contains(&own) {
        let Some(task) = embedded::embedded(own).transpose()? else { return Ok(None) };
        return match which {
            Questions::Asked => Ok(Some(task.items)),
            Questions::Pool => task.pool.map(Some).ok_or_else(|| Error::Argument {
                argument: "training data".into(),
                expected: "a task with questions apart from those it is measured by".into(),
                found: format!("{name}, which has none"),
            }),
        };
    }
    let layout = name.split_once(':').and_then(|(layout, _)| Layout::named(layout));
    match layout.is_some() || name.ends_with(".toml") {
        true => Ok(Some(read_task(name, None)?.items)),
        false => Ok(None),
    }
}

/// A question's prompt with one of its choices.
fn answered(item: &Item, choice: usize) -> Raw {
    let query = format!("{}{}", item.front, item.query_of(choice));
    Raw::Text(Plain::Whole(format!("{query} {}", item.choices[choice].text)))
}

/// Pairs of texts, and how many of the texts lost a part.
fn pairs(name: &str, which: Questions, reading: Reading<'_>) -> Result<(Vec<Lesson>, usize)> {
    let mut raws: Vec<(usize, Raw)> = Vec::new();
    match questions(name, which)? {
        // The right answer, and the choice behind it.
        Some(items) => {
            for (place, item) in items.iter().enumerate().filter(|(_, i)| i.choices.len() > 1) {
                let other = (item.answer + 1) % item.choices.len();
                raws.extend([item.answer, other].map(|choice| (place + 1, answered(item, choice))));
            }
        }
        None => {
            let source = Source::read(Path::new(name))?;
            for record in lines(&source)? {
                raws.extend(preference(&record)?.map(|raw| (record.line, raw)));
            }
        }
    }
    let (texts, cut) = encode_all(name, raws, reading)?;
    let lesson = |pair: &[(usize, Vec<u32>)]| match pair {
        [(line, chosen), (_, rejected)] if chosen == rejected => {
            Err(wrong(name.as_ref(), *line, "two different texts", "the same text twice"))
        }
        pair => Ok(Lesson { texts: pair.iter().map(|(_, ids)| ids.clone()).collect(), label: 0 }),
    };
    Ok((texts.chunks_exact(2).map(lesson).collect::<Result<_>>()?, cut))
}

/// TRL's forms (huggingface.co/docs/trl, dataset formats): a prompt and two continuations, or two whole texts that begin alike; each a
/// text or a list of messages.
fn preference(record: &Record<'_>) -> Result<[Raw; 2]> {
    if !record.has(&["chosen", "rejected"]) {
        let fields: Vec<_> = record.fields.keys().map(String::as_str).collect();
        return Err(
            record.wrong("fields chosen and rejected, and prompt perhaps", fields.join(", "))
        );
    }
    let prompt = record.fields.get("prompt").filter(|prompt| !prompt.is_null());
    let raw = |key: &str| -> Result<Raw> {
        match (record.value(key)?, prompt) {
            (Value::Array(_), prompt) => {
                let mut turns = match prompt {
                    None => Vec::new(),
                    Some(_) => turns_of(record, "prompt")?,
                };
                turns.extend(turns_of(record, key)?);
                Ok(Raw::Turns(turns))
            }
            (_, None) => Ok(Raw::Text(Plain::Whole(record.some_text(key)?.into()))),
            (_, Some(_)) => {
                let (prompt, text) = (record.some_text("prompt")?, record.some_text(key)?);
                Ok(Raw::Text(Plain::Whole(format!("{prompt}{text}"))))
            }
        }
    };
    Ok([raw("chosen")?, raw("rejected")?])
}

/// Texts with a label each, and how many of them lost a part.
fn labelled(name: &str, labels: &[String], reading: Reading<'_>) -> Result<(Vec<Lesson>, usize)> {
    let (mut raws, mut found) = (Vec::new(), Vec::new());
    let expected = || format!("a label out of {}", labels.join(", "));
    match questions(name, Questions::Pool)? {
        Some(items) => {
            for (line, item) in (1..).zip(&items) {
                let places = label_places(item, labels).map_err(|choice| {
                    wrong(name.as_ref(), line, expected(), format!("`{choice}`"))
                })?;
                found.push(places[item.answer] as u32);
                raws.push((line, Raw::Text(Plain::Whole(item.text()))));
            }
        }
        None => {
            let source = Source::read(Path::new(name))?;
            let records = match Path::new(name).extension() {
                Some(end) if end.eq_ignore_ascii_case("csv") => source.named_rows()?,
                _ => lines(&source)?,
            };
            for record in records {
                let value = record.value("label")?;
                let number = match value {
                    Value::String(text) => text.trim().parse().ok(),
                    value => value.as_u64(),
                };
                let named = value.as_str().and_then(|text| label_place(text, labels));
                let number = number.filter(|at| *at < labels.len() as u64).map(|at| at as usize);
                let label = named.or(number).map(|at| at as u32);
                let text = Plain::Whole(record.some_text("text")?.into());
                raws.push((record.line, Raw::Text(text)));
                found.push(label.ok_or_else(|| {
                    let expected = format!("{} (or its number from 0) in `label`", expected());
                    record.wrong(expected, value.to_string())
                })?);
            }
        }
    }
    let (texts, cut) = encode_all(name, raws, reading)?;
    let lesson = |((_, ids), label): ((usize, Vec<u32>), u32)| Lesson { texts: vec![ids], label };
    Ok((texts.into_iter().zip(found).map(lesson).collect(), cut))
}

/// The place of a name among a head's labels: as it is written, or else whatever the case of its letters.
fn label_place(name: &str, labels: &[String]) -> Option<usize> {
    let folded = |text: &str| text.trim().to_lowercase();
    let exact = labels.iter().position(|label| label == name);
    exact.or_else(|| labels.iter().position(|label| folded(label) == folded(name)))
}

/// The places of a question's choices among a head's labels: those of their names, or where the head's labels have none and are as
/// many, choice by choice in the order of the data's own numbers. The first choice that has no place as an error.
pub fn label_places<'i>(item: &'i Item, labels: &[String]) -> Result<Vec<usize>, &'i str> {
    let mut numbered = labels.iter().enumerate();
    if labels.len() == item.choices.len() && numbered.all(|(at, name)| *name == unnamed_label(at)) {
        return Ok((0..labels.len()).collect());
    }
    let place = |choice: &'i Choice| label_place(&choice.text, labels).ok_or(choice.text.as_str());
    item.choices.iter().map(place).collect()
}

/// Tokens of texts with their lines, and how many lost a part.
type Encoded = (Vec<(usize, Vec<u32>)>, usize);

/// Texts as they are read.
fn encode_all(name: &str, raws: Vec<(usize, Raw)>, reading: Reading<'_>) -> Result<Encoded> {
    if raws.is_empty() {
        return Err(wrong(name.as_ref(), 1, "a text", "none"));
    }
    let (mut texts, mut cut) = (Vec::with_capacity(raws.len()), 0);
    for (line, plain) in rendered(name, raws, reading.tokenizer)? {
        let (ids, lost) = reading.tokens(name, line, &plain)?;
        cut += usize::from(lost > 0);
        texts.push((line, ids));
    }
    Ok((texts, cut))
}
