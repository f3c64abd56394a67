//! Examples into rows of one length.
//!
//! Examples stand in rows in the order in which they are given. One that does not fit into what is left of a row begins the next, and the rest is
//! filled with tokens that are not scored; so a row never begins inside an example, unless the example is longer than a row: it
//! then goes on over as many rows as it takes. One that is text throughout begins at once in that case, since it is cut anyway; one
//! with a prompt begins a row, so that its prompt and what it asks for stay together as far as they can. Examples in one row see
//! those before them, as in pretraining; nothing masks that. The first token of an example is not scored: what stands before it
//! does not tell it. A row in which nothing is scored is left out.

use super::super::task::wrong;
use super::super::{BETWEEN, first_foretold};
use super::examples::Example;
use super::{Batch, Dataset, Goal};
use crate::error::Result;

/// Rows of one length.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Tokens, row after row.
    pub ids: Vec<u32>,
    /// Of each, whether it is scored.
    pub scored: Vec<bool>,
    /// Tokens that fill rows behind their examples.
    pub padding: usize,
    /// Where filling begins in each row that has any: the place of its first token.
    filled: Vec<usize>,
    /// Labels of texts, where they have some.
    pub labels: Vec<u32>,
    length: usize,
    /// Rows that stand together, as those of a pair do; 0: each alone.
    together: usize,
    /// The token that fills rows of texts.
    filling: u32,
}

impl Rows {
    /// No rows yet, of texts that are read as a whole: those of so many stand together.
    pub fn of_texts(length: usize, together: usize, filling: u32) -> Self {
        Self { length, together, filling, ..Self::default() }
    }

    /// Adds a row of a text of at most as many tokens, marked where it is read.
    pub fn push_text(&mut self, text: &[u32], read: usize) {
        self.scored.extend((0..text.len()).map(|place| place == read));
        self.ids.extend_from_slice(text);
        self.padding += self.length - text.len();
        self.fill(self.filling);
    }

    /// Rows that stand together.
    pub fn together(&self) -> usize {
        self.together.max(1)
    }

    /// Rows, those that stand together counted once.
    pub fn count(&self) -> usize {
        self.ids.len() / (self.together() * self.length).max(1)
    }

    /// Adds a row, or those that stand together, to a batch.
    pub fn append(&self, row: usize, batch: &mut Batch) {
        let all = self.together() * self.length;
        let range = row * all..(row + 1) * all;
        batch.ids.extend_from_slice(&self.ids[range.clone()]);
        batch.scored.extend_from_slice(&self.scored[range]);
        batch.sequences += self.together();
        if let Goal::Labels(labels) = &mut batch.goal {
            labels.push(self.labels[row]);
        }
    }

    fn fill(&mut self, fill: u32) {
        let whole = self.ids.len().next_multiple_of(self.length);
        if whole > self.ids.len() {
            self.filled.push(self.ids.len());
            self.ids.resize(whole, fill);
            self.scored.resize(whole, false);
        }
    }

    /// Takes the mark of each row's first token, before which nothing stands, and leaves out rows without any.
    fn finish(mut self) -> Self {
        let length = self.length;
        let mut kept = Rows { length, ..Rows::default() };
        let mut filled = self.filled.iter().peekable();
        let rows = self.ids.chunks(length).zip(self.scored.chunks_mut(length));
        for (row, (ids, scored)) in rows.enumerate() {
            scored[0] = false;
            let end = (row + 1) * length;
            let padding = filled.next_if(|from| **from < end).map_or(0, |from| end - from);
            if scored.iter().any(|scored| *scored) {
                kept.ids.extend_from_slice(ids);
                kept.scored.extend_from_slice(scored);
                kept.padding += padding;
            }
        }
        kept
    }
}

/// A text's tokens as rows, whole ones; all of each is scored but its first; of rows whose first half an encoder reads, what the
/// decoder foretells.
pub(super) fn cut(ids: &[u32], length: usize, paired: bool) -> Rows {
    let first = if paired { first_foretold(length) } else { 1 };
    let scored = (0..ids.len()).map(|at| at % length >= first).collect();
    Rows { ids: ids.to_vec(), scored, length, ..Rows::default() }.finish()
}

/// Examples of a source and a target each as rows of one length, a row each: targets begin at one place in all of them. A source that
/// is too long loses its beginning, as questions do in evaluation; without `pack` it is an error.
pub(super) fn pairs(
    name: &str,
    examples: &[&Example],
    (dataset, place): (&Dataset, usize),
    fill: u32,
) -> Result<Rows> {
    let length = dataset.length;
    let room = place.saturating_sub(1);
    let (mut rows, mut cut) = (Rows { length, ..Rows::default() }, 0);
    for example in examples {
        let target = example.target().unwrap_or(0);
        let source = target.saturating_sub(1);
        if room == 0 || (source > room && !dataset.pack) {
            let expected = format!(
                "a prompt of at most {room} tokens, in rows of {length} of which the longest response takes {}",
                length - place
            );
            return Err(wrong(name.as_ref(), example.line, expected, format!("{source} tokens")));
        }
        let first = source.saturating_sub(room);
        cut += usize::from(first > 0);
        let end = rows.ids.len() + place;
        rows.ids.extend_from_slice(&example.ids[first..source]);
        rows.ids.resize(end, BETWEEN);
        rows.scored.resize(end, false);
        rows.ids.extend_from_slice(&example.ids[target..]);
        rows.scored.extend_from_slice(&example.scored[target..]);
        rows.fill(fill);
    }
    if cut > 0 {
        tracing::warn!(
            "{name}: {cut} prompts are longer than {room} tokens and lose their beginning"
        );
    }
    Ok(rows.finish())
}

/// Examples as rows.
pub(super) fn pack(
    name: &str,
    examples: &[&Example],
    dataset: &Dataset,
    fill: u32,
) -> Result<Rows> {
    let length = dataset.length;
    let mut rows = Rows { length, ..Rows::default() };
    for example in examples {
        let tokens = example.ids.len();
        if !dataset.pack && tokens > length {
            let expected = format!("an example of at most {length} tokens, one row, without pack");
            let found = format!("{tokens} tokens");
            return Err(wrong(name.as_ref(), example.line, expected, found));
        }
        let room = length - rows.ids.len() % length;
        let throughout = tokens > length && example.scored[1..].iter().all(|scored| *scored);
        if !dataset.pack || (tokens > room && !throughout) {
            rows.fill(fill);
        }
        rows.ids.extend_from_slice(&example.ids);
        rows.scored.extend_from_slice(&example.scored);
    }
    rows.fill(fill);
    Ok(rows.finish())
}
