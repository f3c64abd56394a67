//! The choice of examples in front of a question.

use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::task::{Item, Task};
use crate::error::{Error, Result};

/// How examples are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The pool's first.
    First,
    /// The first of a seeded shuffle of the pool, the same for every question.
    Random,
    /// The most similar by BM25, in rising order: the most similar is next to the question.
    Bm25,
    /// The most similar by the cosine of the model's mean final hidden states; likewise.
    Embedding,
}

impl Selection {
    /// The name in flags and reports.
    pub fn name(self) -> &'static str {
        match self {
            Selection::First => "first",
            Selection::Random => "random",
            Selection::Bm25 => "bm25",
            Selection::Embedding => "embedding",
        }
    }

    /// Whether a question has examples of its own.
    pub fn retrieves(self) -> bool {
        matches!(self, Selection::Bm25 | Selection::Embedding)
    }
}

/// The items that examples are drawn from.
pub fn pool(task: &Task) -> &[Item] {
    task.pool.as_deref().unwrap_or(&task.items)
}

/// Examples that every question of a task can have.
pub fn available(task: &Task) -> usize {
    let pool = pool(task);
    let grouped = pool.iter().any(|example| example.group.is_some());
    // How many the pool has in all and of each question, by group; `None`: whatever their group.
    let mut counts: HashMap<_, usize> = HashMap::new();
    for example in pool {
        let group = example.group.as_deref();
        let groups = [None, group.filter(|_| grouped)];
        for group in &groups[..1 + usize::from(groups[1].is_some())] {
            *counts.entry((*group, None)).or_default() += 1;
            *counts.entry((*group, Some(example.question()))).or_default() += 1;
        }
    }
    let examples_for = |item: &Item| {
        let group = item.group.as_deref().filter(|_| grouped);
        let count = |question| counts.get(&(group, question)).copied().unwrap_or(0);
        count(None) - count(Some(item.question()))
    };
    task.items.iter().map(examples_for).min().unwrap_or(0)
}

/// Places in the pool, best first, by the seed: all of them, or a question's ranking.
pub fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    // Fisher and Yates, written out so that a seed means the same in every version of a library.
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let other = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, other as usize);
    }
    order
}

/// The `count` examples of a question, in the order in which they are shown, out of the pool's places by preference. Neither
/// the question itself nor one that asks the same is among them; where items have groups, those of its own only.
pub fn pick<'a>(
    task: &'a Task,
    item: usize,
    order: &[usize],
    count: usize,
    selection: Selection,
) -> Result<Vec<&'a Item>> {
    let (pool, asked) = (pool(task), &task.items[item]);
    let grouped = asked.group.is_some() && pool.iter().any(|example| example.group.is_some());
    let usable = |place: &&usize| {
        let example = &pool[**place];
        // A question as its own example would show its answer, and so would a copy of it.
        !example.same_question(asked) && (!grouped || example.group == asked.group)
    };
    let mut picked: Vec<&Item> =
        order.iter().filter(usable).take(count).map(|place| &pool[*place]).collect();
    if picked.len() < count {
        let of = match (&asked.group, grouped) {
            (Some(group), true) => format!(" of {group}"),
            _ => String::new(),
        };
        return Err(Error::Argument {
            argument: "--shots".into(),
            expected: format!(
                "at most the {} examples{of} that task `{}` has for question {}",
                picked.len(),
                task.name,
                item + 1
            ),
            found: count.to_string(),
        });
    }
    if selection.retrieves() {
        picked.reverse();
    }
    Ok(picked)
}

/// Okapi BM25 (Robertson and Zaragoza 2009) over the pool's topics, with k1 = 1.2 and b = 0.75, and the inverse document
/// frequency ln(1 + (N - n + 1/2) / (n + 1/2)), which is never negative. Words are runs of letters and digits in lower case.
#[derive(Debug)]
pub struct Bm25 {
    /// For each word, the places of the items that have it, each with how often.
    postings: HashMap<String, Vec<(usize, f64)>>,
    lengths: Vec<f64>,
    mean_length: f64,
}

const K1: f64 = 1.2;
const B: f64 = 0.75;

impl Bm25 {
    /// Indexes items.
    pub fn new(items: &[Item]) -> Self {
        let mut postings: HashMap<String, Vec<(usize, f64)>> = HashMap::new();
        let mut lengths = Vec::with_capacity(items.len());
        for (place, item) in items.iter().enumerate() {
            let words = words(item.topic());
            lengths.push(words.len() as f64);
            for word in words {
                let list = postings.entry(word).or_default();
                match list.last_mut() {
                    Some((last, count)) if *last == place => *count += 1.0,
                    _ => list.push((place, 1.0)),
                }
            }
        }
        let mean_length = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
        Self { postings, lengths, mean_length }
    }

    /// The places of all items, the most similar first; equals in their own order.
    pub fn rank(&self, text: &str) -> Vec<usize> {
        let count = self.lengths.len() as f64;
        let mut scores = vec![0.0; self.lengths.len()];
        for word in words(text) {
            let Some(list) = self.postings.get(&word) else {
                continue;
            };
            let having = list.len() as f64;
            let rarity = (1.0 + (count - having + 0.5) / (having + 0.5)).ln();
            for (place, often) in list {
                let length = self.lengths[*place] / self.mean_length;
                scores[*place] +=
                    rarity * often * (K1 + 1.0) / (often + K1 * (1.0 - B + B * length));
            }
        }
        ranked(&scores)
    }
}

fn words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric());
    parts.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Places by falling score; equals in their own order.
pub fn ranked(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}
