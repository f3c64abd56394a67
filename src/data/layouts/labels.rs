//! Questions that all have the same choices, and passages without their last word.

use std::collections::BTreeSet;

use super::super::source::Source;
use super::super::task::{Choice, Item, Record, wrong};
use super::{Layout, doc, with_docs};
use crate::error::Result;

/// Financial PhraseBank's.
pub const SENTIMENTS: &[&str] = &["negative", "neutral", "positive"];

pub fn boolq(record: &Record<'_>) -> Result<Item> {
    let key = if record.has(&["answer"]) { "answer" } else { "label" };
    let answer = match record.value(key)?.as_bool() {
        Some(yes) => usize::from(yes),
        None => record.place(key, 0, 2)?,
    };
    Ok(Item {
        query: format!(
            "{}\nQuestion: {}?\nAnswer:",
            record.some_text("passage")?,
            record.some_text("question")?
        ),
        choices: vec![Choice::new("no"), Choice::new("yes")],
        answer,
        ..Item::default()
    })
}

/// A passage without its last word, and that word.
pub fn last_word(passage: &str) -> Option<Item> {
    let (query, word) = passage.trim_end().rsplit_once(' ')?;
    let choices = vec![Choice::new(word)];
    Some(Item {
        query: query.into(),
        choices,
        doc: doc([("text", passage.into())]),
        ..Item::default()
    })
}

pub fn lambada(source: &Source) -> Result<Vec<Item>> {
    let item = |line: usize, text: &str| {
        last_word(text)
            .ok_or_else(|| wrong(&source.path, line, "a passage of two words or more", text))
    };
    if source.is_json() {
        return with_docs(source.records()?, |_, record| {
            item(record.line, record.some_text("text")?)
        });
    }
    source.unicode()?;
    source.lines().map(|(line, text)| item(line, text)).collect()
}

fn sentiment(text: &str, labels: &[&str], answer: usize) -> Item {
    Item {
        query: format!("Sentence: {}\nSentiment:", text.trim()),
        text: Some(text.trim().into()),
        choices: labels.iter().map(|label| Choice::new(*label)).collect(),
        answer,
        ..Item::default()
    }
}

pub fn phrasebank(source: &Source) -> Result<Vec<Item>> {
    let item = |(line, text): (usize, &str)| {
        let expected = format!("a sentence, @ and one of {}", SENTIMENTS.join(", "));
        let Some((sentence, label)) = text.trim_end().rsplit_once('@') else {
            return Err(wrong(&source.path, line, expected, text));
        };
        let answer = SENTIMENTS.iter().position(|known| *known == label);
        let answer = answer.ok_or_else(|| wrong(&source.path, line, expected, label))?;
        let doc = doc([("sentence", sentence.into()), ("label", answer.into())]);
        Ok(Item { doc, ..sentiment(sentence, SENTIMENTS, answer) })
    };
    source.lines().map(item).collect()
}

pub fn twitter(source: &Source) -> Result<Vec<Item>> {
    let labels = Layout::named("twitter-financial").map_or(&[] as &[&str], |layout| layout.labels);
    with_docs(source.named_rows()?, |_, record| {
        let answer = record.place("label", 0, labels.len())?;
        Ok(sentiment(record.some_text("text")?, labels, answer))
    })
}

/// Texts with any labels: the choices are those that the file has, in the order of their letters.
pub fn labelled(source: &Source) -> Result<Vec<Item>> {
    let records = if source.is_json() { source.records()? } else { source.named_rows()? };
    let mut labels = BTreeSet::new();
    for record in &records {
        labels.insert(record.some_text("label")?.trim().to_string());
    }
    if labels.len() == 1 {
        return Err(wrong(&source.path, 1, "two labels or more", "one"));
    }
    let labels: Vec<String> = labels.into_iter().collect();
    with_docs(records, |_, record| {
        let (text, label) = (record.some_text("text")?.trim(), record.some_text("label")?.trim());
        Ok(Item {
            query: format!("Text: {text}\nLabel:"),
            text: Some(text.into()),
            choices: labels.iter().map(Choice::new).collect(),
            answer: labels.iter().position(|known| known == label).unwrap_or_default(),
            ..Item::default()
        })
    })
}

pub fn headline(record: &Record<'_>) -> Result<Item> {
    let answer = match record.text("label")? {
        "no" => 0,
        "yes" => 1,
        other => return Err(record.wrong("yes or no in `label`", other)),
    };
    let text = record.some_text("text")?;
    Ok(Item {
        query: format!("Headline: {text}\nSarcastic:"),
        text: Some(text.into()),
        choices: vec![Choice::new("no"), Choice::new("yes")],
        answer,
        ..Item::default()
    })
}
