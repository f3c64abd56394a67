//! Tasks that are part of the program.

use std::path::Path;

use super::TEXTS;
use super::layouts::{Layout, last_word};
use super::source::Source;
use super::task::{Item, Scoring, Task};
use crate::error::Result;

/// Names of the embedded tasks.
pub const EMBEDDED_TASKS: &[&str] = &["headlines", "mmlu-mini", "cloze"];

/// Fewest and most words of a cloze passage.
const CLOZE_WORDS: std::ops::RangeInclusive<usize> = 20..=90;

/// The embedded task of a name.
pub(super) fn embedded(name: &str) -> Option<Result<Task>> {
    let read = |layout: &str, text: &str| {
        let layout = Layout::named(layout).expect("the table has the embedded layouts");
        let items = layout.read(&Source::embedded("embedded", text))?;
        Ok((layout.scoring(), items))
    };
    let path = Path::new("embedded");
    let task = || -> Result<Option<Task>> {
        let (scoring, items, pool) = match name {
            "headlines" => {
                let test = include_str!("../../assets/tasks/headlines_test.jsonl");
                let train = include_str!("../../assets/tasks/headlines_train.jsonl");
                let (scoring, items) = read("headlines", test)?;
                (scoring, items, Some(read("headlines", train)?.1))
            }
            "mmlu-mini" => {
                let text = include_str!("../../assets/tasks/mmlu_mini.jsonl");
                let (scoring, items) = read("mmlu", text)?;
                (scoring, items, None)
            }
            "cloze" => (Scoring::LastWord, cloze(), None),
            _ => return Ok(None),
        };
        let task = Task::new(path, name, scoring, items)?;
        Ok(Some(Task { pool, ..task }))
    };
    task().transpose()
}

/// Passages of the held-out speeches, the older ones first, without their last word (LAMBADA's form, made by rule and not
/// chosen by people). A passage is the fewest whole sentences in a row of one paragraph, up to the sentence that ends it,
/// that have 20 words; it has at most 90. Its last word is of lower-case letters, four at least, ends with a full stop,
/// which is left out, and occurs earlier in the passage too, as most of LAMBADA's do: a model that reads back can find it.
/// No two passages share a sentence.
fn cloze() -> Vec<Item> {
    let mut items = Vec::new();
    for name in ["heldout-older", "heldout-2026"] {
        let text = TEXTS.iter().find(|(known, _)| *known == name);
        let (_, text) = text.expect("the held-out texts are embedded");
        for paragraph in text.lines() {
            let mut passage: Vec<Vec<&str>> = Vec::new();
            for sentence in sentences(paragraph) {
                passage.push(sentence);
                let words = |sentences: &[Vec<&str>]| sentences.iter().map(Vec::len).sum::<usize>();
                while words(&passage[1..]) >= *CLOZE_WORDS.start() {
                    passage.remove(0);
                }
                if !CLOZE_WORDS.contains(&words(&passage)) {
                    continue;
                }
                let words = passage.concat();
                if let Some(text) = guessable(&words) {
                    items.extend(last_word(&text));
                    passage.clear();
                }
            }
        }
    }
    items
}

/// Words up to each that ends a sentence.
fn sentences(paragraph: &str) -> Vec<Vec<&str>> {
    let mut sentences = vec![Vec::new()];
    for word in paragraph.split_whitespace() {
        let last = sentences.len() - 1;
        sentences[last].push(word);
        if word.ends_with(['.', '?', '!']) {
            sentences.push(Vec::new());
        }
    }
    // The last piece is no whole sentence.
    sentences.pop();
    sentences
}

/// The words without the last one's full stop, if that word is one to guess.
fn guessable(words: &[&str]) -> Option<String> {
    let (last, before) = words.split_last()?;
    let target = last.strip_suffix('.')?;
    let plain = target.len() >= 4 && target.bytes().all(|b| b.is_ascii_lowercase());
    let letters = |word: &str| {
        let letters = word.chars().filter(char::is_ascii_alphabetic);
        letters.collect::<String>().to_ascii_lowercase()
    };
    let known = before.iter().any(|word| letters(word) == target);
    (plain && known).then(|| format!("{} {target}", before.join(" ")))
}
