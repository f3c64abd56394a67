//! Texts that a model learns from: rows of tokens with a mark on each that is scored, from one source or a mix of several, in a
//! seeded order that goes on from any position.
//!
//! For a model whose head scores texts, rows are whole texts: pairs of which one is preferred, or texts with a label ([`texts`]).
//!
//! A *source* is a text or a file of examples ([`examples`]); an *example* is a prompt and its response, a conversation, or a text
//! of its own, and ends with EOS. A *row* is what the model sees at once ([`pack`]). Rows of several sources are drawn in turn by
//! their weights. All of it is integers: nothing that decides an order is a float.

mod examples;
mod pack;
mod texts;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::examples::{Example, Kind, Read};
use self::pack::{Rows, cut, pack, pairs};
use self::texts::Texts;
pub use self::texts::{
    Candidates, Preference, Reading, candidates, label_places, preferences, prompts,
};
use super::Pooling;
use super::shots::shuffled;
use crate::error::{Error, Result};
use crate::formats::hex;
use crate::text::Tokenizer;

/// Texts to learn from. Part of recipes, and flags of commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Dataset {
    /// Training data, once for each source: a text, JSONL, CSV, a task file (.toml), LAYOUT:FILE of a published task, or
    /// embedded:NAME. SOURCE@WEIGHT gives its share of the rows (default: as many as it has; 1 where another one has a weight)
    #[arg(long, value_name = "SOURCE", default_values_t = Self::default().data)]
    pub data: Vec<String>,
    /// Tokens of a row
    #[arg(long, default_value_t = Self::default().length)]
    pub length: usize,
    /// Whether short examples share a row, EOS between them; else each has a row of its own
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = Self::default().pack)]
    pub pack: bool,
    /// Whether only responses are scored, and not the prompts before them
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = Self::default().mask_prompt)]
    pub mask_prompt: bool,
    /// What of each source is kept apart for evaluation: a share below 1, or a number of examples (of a text: its last rows)
    #[arg(long, value_name = "SHARE or COUNT", default_value_t = Self::default().held_out)]
    pub held_out: f64,
    /// Whether rows come in another order in every epoch
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = Self::default().shuffle)]
    pub shuffle: bool,
    /// Of a head that scores texts: the share of preferences that are turned around, or of labels that become the next one
    #[arg(long, value_name = "SHARE", default_value_t = Self::default().label_noise)]
    #[serde(skip_serializing_if = "is_zero")]
    pub label_noise: f64,
    /// What decides which of them [default: the seed]
    #[arg(long, value_name = "SEED")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_seed: Option<u64>,
}

fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

impl Default for Dataset {
    fn default() -> Self {
        Self {
            data: vec!["embedded:calibration".into()],
            length: 256,
            pack: true,
            mask_prompt: true,
            held_out: 0.05,
            shuffle: true,
            label_noise: 0.0,
            noise_seed: None,
        }
    }
}

impl Dataset {
    /// An error if a field has no sense; nothing is read.
    pub fn check(&self) -> Result<()> {
        let wrong = |field: &str, expected: &str, found: String| {
            let argument = format!("training data, {field}");
            Err(Error::Argument { argument, expected: expected.into(), found })
        };
        if self.data.is_empty() {
            return wrong("data", "one source or more", "none".into());
        }
        if !(2..=MAX_LENGTH).contains(&self.length) {
            return wrong("length", &format!("2 to {MAX_LENGTH}"), self.length.to_string());
        }
        let held = self.held_out;
        if !(0.0..=1e9).contains(&held) || (held >= 1.0 && held.fract() != 0.0) {
            return wrong(
                "held_out",
                "a share from 0 to below 1, or a whole number",
                held.to_string(),
            );
        }
        if !(0.0..=1.0).contains(&self.label_noise) {
            return wrong("label_noise", "a share from 0 to 1", self.label_noise.to_string());
        }
        self.weights().map(|_| ())
    }

    /// The sources without their weights, and those: in millionths, `None` where none has one.
    fn weights(&self) -> Result<(Vec<&str>, Option<Vec<u64>>)> {
        let parts: Vec<_> = self.data.iter().map(|source| weighted(source)).collect();
        for (source, weight) in &parts {
            if source.is_empty() || *weight == Some(0) {
                return Err(Error::Argument {
                    argument: "training data, data".into(),
                    expected: "SOURCE or SOURCE@WEIGHT, a weight of 0.000001 to 1000000".into(),
                    found: format!(
                        "`{source}` of weight {}",
                        weight.map_or(1.0, |w| w as f64 / 1e6)
                    ),
                });
            }
        }
        let any = parts.iter().any(|(_, weight)| weight.is_some());
        let weights = parts.iter().map(|(_, weight)| weight.unwrap_or(MILLION)).collect();
        Ok((parts.iter().map(|(source, _)| *source).collect(), any.then_some(weights)))
    }

    /// How many of so many examples, or rows of a text, are kept apart.
    fn held(&self, count: usize) -> usize {
        match self.held_out {
            share if share < 1.0 => ((count as f64 * share) as usize).max(usize::from(share > 0.0)),
            count => count as usize,
        }
    }
}

const MILLION: u64 = 1_000_000;
/// No model's context is longer.
const MAX_LENGTH: usize = 1 << 24;

/// A source and its weight in millionths, if what stands behind the last @ is a decimal number. Other names may hold an @.
fn weighted(source: &str) -> (&str, Option<u64>) {
    let parse = |text: &str| {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let fits =
            digits(whole) && digits(part) && (1..=7).contains(&whole.len()) && part.len() <= 6;
        fits.then(|| format!("{whole}{part:0<6}").parse::<u64>().ok()).flatten()
    };
    match source.rsplit_once('@') {
        Some((name, weight)) => match parse(weight) {
            // Too large is no weight of use, as 0 is none.
            Some(weight) => (name, Some(if weight > MILLION * MILLION { 0 } else { weight })),
            None => (source, None),
        },
        None => (source, None),
    }
}

/// Where in the rows training is: all that follows is determined by it, the dataset and the seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Epochs that are over: each has as many rows as all sources together.
    pub epoch: u64,
    /// Rows drawn in this epoch.
    pub index: u64,
    /// Rows drawn of each source, in all epochs.
    pub drawn: Vec<u64>,
}

/// Rows of tokens, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Tokens, row after row: (sequences, length).
    pub ids: Vec<u32>,
    /// Of each token, whether it is scored as a target: how likely it is after those before it in its row. Never a row's first.
    pub scored: Vec<bool>,
    /// Rows.
    pub sequences: usize,
    /// Tokens of a row.
    pub length: usize,
    /// What they teach.
    pub goal: Goal,
}

/// What rows teach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The tokens that are scored.
    NextTokens,
    /// Of each two rows the first is preferred; each is read at the one token that is marked as scored.
    Preferences,
    /// A row, read at the token that is marked, has a label: of each its number.
    Labels(Vec<u32>),
}

impl Batch {
    /// Tokens that are scored.
    pub fn targets(&self) -> usize {
        self.scored.iter().filter(|scored| **scored).count()
    }
}

/// What a source gives.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceFigures {
    /// The source, without a weight.
    pub source: String,
    /// Examples to learn from; of a text 1.
    pub examples: usize,
    /// Rows to learn from.
    pub rows: usize,
    /// Tokens of these that are scored.
    pub scored: usize,
    /// Tokens of these that fill a row behind its examples.
    pub padding: usize,
    /// Rows that are kept apart.
    pub held_out: usize,
    /// Of texts that a head scores: those to learn from that are taught wrongly.
    pub noisy: usize,
    /// Its share of the rows that are drawn.
    pub share: f64,
}

/// A dataset as rows.
#[derive(Debug)]
pub struct Examples {
    length: usize,
    seed: u64,
    shuffle: bool,
    /// What batches teach; labels are theirs.
    goal: Goal,
    sources: Vec<Source>,
    figures: Vec<SourceFigures>,
    digest: String,
}

#[derive(Debug)]
struct Source {
    rows: Rows,
    held_out: Rows,
    /// Rows that are drawn of it, for one of each millionth of the others' weights.
    weight: u64,
    /// The order of a pass, which follows from its number: kept, since each batch asks for it.
    order: Mutex<Option<(u64, Arc<Vec<usize>>)>>,
}

/// What a random order is for.
#[derive(Clone, Copy)]
enum Purpose {
    HeldOut,
    Pass,
    Noise,
}

/// A seed of its own for each purpose, source and pass.
fn seed_of(seed: u64, purpose: Purpose, source: usize, pass: u64) -> u64 {
    let parts = [seed, purpose as u64, source as u64, pass];
    let mut bytes = [0; 32];
    for (place, part) in bytes.chunks_exact_mut(8).zip(parts) {
        place.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes).next_u64()
}

impl Examples {
    /// Reads every source of a dataset and makes rows of it. What is kept apart, and the order of everything, follow from `seed`.
    pub fn read(dataset: &Dataset, tokenizer: &Tokenizer, seed: u64) -> Result<Self> {
        dataset.check()?;
        if dataset.label_noise > 0.0 {
            return Err(Error::Argument {
                argument: "training data, label_noise".into(),
                expected: "0, but for a model whose head scores texts".into(),
                found: dataset.label_noise.to_string(),
            });
        }
        let (names, _) = dataset.weights()?;
        let mut made = Vec::new();
        let read =
            |name: &&str| Read::source(name, (dataset.mask_prompt, dataset.length), tokenizer);
        let reads = names.iter().map(read).collect::<Result<Vec<_>>>()?;
        let target = target_place(&reads, dataset.length);
        for ((place, name), read) in names.iter().enumerate().zip(reads) {
            let (rows, held_out, examples) = match read.kind {
                Kind::Text(ids) => {
                    let (rows, held_out) = halves_of_text(dataset, name, &ids, read.paired)?;
                    (rows, held_out, 1)
                }
                Kind::Examples(examples) => {
                    let order = shuffled(examples.len(), seed_of(seed, Purpose::HeldOut, place, 0));
                    let rows = (read.fill, target.filter(|_| read.paired));
                    halves_of_examples(dataset, name, examples, &order, rows)?
                }
            };
            made.push((rows, held_out, examples, 0));
        }
        Self::of_rows(dataset, Goal::NextTokens, made, seed)
    }

    /// Reads every source for a model whose head scores texts by these labels: preferences where there is one, or else texts with
    /// a label each. `pooling`: where it reads them.
    pub fn texts(
        dataset: &Dataset,
        (labels, pooling): (&[String], Pooling),
        tokenizer: &Tokenizer,
        seed: u64,
    ) -> Result<Self> {
        dataset.check()?;
        let reading = Reading { tokenizer, pooling, most: dataset.length };
        if tokenizer.decoder_start.is_some() {
            return Err(Error::Argument {
                argument: "training data".into(),
                expected: "a model without an encoder, whose last token has seen the text".into(),
                found: "one with an encoder".into(),
            });
        }
        let (names, _) = dataset.weights()?;
        let read = |source: (usize, &&str)| {
            let source = (source.0, *source.1);
            Texts::read(dataset, source, (labels, reading), seed)?.halves(dataset, source, seed)
        };
        let made = names.iter().enumerate().map(read).collect::<Result<_>>()?;
        let goal = if labels.len() == 1 { Goal::Preferences } else { Goal::Labels(Vec::new()) };
        Self::of_rows(dataset, goal, made, seed)
    }

    /// Of every source its rows, those kept apart, its examples, and how many of these are taught wrongly.
    fn of_rows(
        dataset: &Dataset,
        goal: Goal,
        made: Vec<(Rows, Rows, usize, usize)>,
        seed: u64,
    ) -> Result<Self> {
        let (names, weights) = dataset.weights()?;
        let (mut sources, mut figures) = (Vec::new(), Vec::new());
        for ((place, name), (rows, held_out, examples, noisy)) in names.iter().enumerate().zip(made)
        {
            figures.push(SourceFigures {
                source: name.to_string(),
                examples,
                rows: rows.count(),
                scored: rows.scored.iter().filter(|scored| **scored).count(),
                padding: rows.padding,
                held_out: held_out.count(),
                noisy,
                share: 0.0,
            });
            let weight = weights.as_ref().map_or(rows.count() as u64, |weights| weights[place]);
            sources.push(Source { rows, held_out, weight, order: Mutex::new(None) });
        }
        let all: f64 = sources.iter().map(|source| source.weight as f64).sum();
        for (figures, source) in figures.iter_mut().zip(&sources) {
            figures.share = source.weight as f64 / all;
        }
        let digest = digest(dataset, seed, &sources);
        let (length, shuffle) = (dataset.length, dataset.shuffle);
        Ok(Self { length, seed, shuffle, goal, sources, figures, digest })
    }

    /// What each source gives.
    pub fn figures(&self) -> &[SourceFigures] {
        &self.figures
    }

    /// A hash of the rows and of what decides their order: a run is continued with the same ones only.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Rows of an epoch: as many as all sources have. With weights some of them come more than once, or in a later epoch.
    pub fn rows_per_epoch(&self) -> usize {
        self.sources.iter().map(|source| source.rows.count()).sum()
    }

    /// Tokens of these.
    pub fn tokens_per_epoch(&self) -> usize {
        let tokens = |source: &Source| source.rows.count() * source.rows.together() * self.length;
        self.sources.iter().map(tokens).sum()
    }

    /// The position before the first row.
    pub fn start(&self) -> Position {
        Position { epoch: 0, index: 0, drawn: vec![0; self.sources.len()] }
    }

    /// The next `sequences` rows behind a position, and the position behind them. A batch may end one epoch and begin the next.
    pub fn batch(&self, position: &Position, sequences: usize) -> Result<(Batch, Position)> {
        self.check(position)?;
        let all = self.rows_per_epoch();
        if !(1..=all).contains(&sequences) {
            return Err(Error::Argument {
                argument: "training data".into(),
                expected: format!(
                    "{sequences} rows of {} tokens or more, one batch, and 1 row at least",
                    self.length
                ),
                found: format!("{all} rows, {} tokens", self.tokens_per_epoch()),
            });
        }
        let mut next = position.clone();
        let mut batch = self.no_rows();
        for _ in 0..sequences {
            let (place, row) = self.draw(&mut next);
            self.sources[place].rows.append(row, &mut batch);
        }
        Ok((batch, next))
    }

    /// A batch to be filled.
    fn no_rows(&self) -> Batch {
        let (ids, scored) = (Vec::new(), Vec::new());
        Batch { ids, scored, sequences: 0, length: self.length, goal: self.goal.clone() }
    }

    /// The source whose turn it is at a position, and which of its rows; the position goes behind it.
    fn draw(&self, position: &mut Position) -> (usize, usize) {
        let place = self.turn(&position.drawn);
        let rows = self.sources[place].rows.count() as u64;
        let drawn = position.drawn[place];
        let row = self.order(place, drawn / rows)[(drawn % rows) as usize];
        position.drawn[place] += 1;
        position.index += 1;
        if position.index == self.rows_per_epoch() as u64 {
            (position.epoch, position.index) = (position.epoch + 1, 0);
        }
        (place, row)
    }

    /// Which of all rows those of [`Examples::batch`] are, numbered as in [`Examples::rows`].
    pub fn drawn(&self, position: &Position, sequences: usize) -> Result<Vec<usize>> {
        self.check(position)?;
        let mut next = position.clone();
        let first = |place: usize| -> usize {
            self.sources[..place].iter().map(|source| source.rows.count()).sum()
        };
        let mut number = |_| {
            let (place, row) = self.draw(&mut next);
            first(place) + row
        };
        Ok((0..sequences).map(&mut number).collect())
    }

    /// Some of all rows, which are those of the first source, of the second and so on, whatever the order that they are drawn in.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Batch {
        let mut batch = self.no_rows();
        let mut first = 0;
        for source in &self.sources {
            let end = first + source.rows.count();
            for row in rows.start.max(first)..rows.end.min(end) {
                source.rows.append(row - first, &mut batch);
            }
            first = end;
        }
        batch
    }

    /// The rows that were kept apart, in batches of one source each, with `sequences` rows but for the last of a source.
    pub fn held_out(&self, sequences: usize) -> Vec<Batch> {
        let mut batches = Vec::new();
        for source in &self.sources {
            let rows: Vec<usize> = (0..source.held_out.count()).collect();
            for rows in rows.chunks(sequences.max(1)) {
                let mut batch = self.no_rows();
                rows.iter().for_each(|row| source.held_out.append(*row, &mut batch));
                batches.push(batch);
            }
        }
        batches
    }

    /// The source whose turn it is: the one that is furthest behind its share of the rows drawn so far and this one; of several the
    /// first. (Smooth weighted round robin: after as many rows as all weights sum up to, each has exactly its share.)
    fn turn(&self, drawn: &[u64]) -> usize {
        let wide = |numbers: &mut dyn Iterator<Item = u64>| numbers.map(i128::from).sum::<i128>();
        let all = wide(&mut self.sources.iter().map(|source| source.weight));
        let rows = wide(&mut drawn.iter().copied()) + 1;
        let behind = |place: usize| {
            i128::from(self.sources[place].weight) * rows - all * i128::from(drawn[place])
        };
        let places = 1..self.sources.len();
        places.fold(0, |best, place| if behind(place) > behind(best) { place } else { best })
    }

    /// The order of a source's rows the `pass`th time that it is gone through.
    fn order(&self, place: usize, pass: u64) -> Arc<Vec<usize>> {
        let source = &self.sources[place];
        let mut kept = source.order.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            // Without shuffling every pass has the same.
            Some((of, order)) if *of == pass || !self.shuffle => Arc::clone(order),
            _ => {
                let count = source.rows.count();
                let order = Arc::new(match self.shuffle {
                    true => shuffled(count, seed_of(self.seed, Purpose::Pass, place, pass)),
                    false => (0..count).collect(),
                });
                *kept = Some((pass, Arc::clone(&order)));
                order
            }
        }
    }

    /// An error if a position, which may come from a file, is none of this dataset's.
    pub fn check(&self, position: &Position) -> Result<()> {
        let all = self.rows_per_epoch() as u128;
        let drawn: u128 = position.drawn.iter().map(|drawn| u128::from(*drawn)).sum();
        let rows = u128::from(position.epoch) * all + u128::from(position.index);
        let fits = position.drawn.len() == self.sources.len()
            && u128::from(position.index) < all
            && rows == drawn
            && rows < u128::from(u64::MAX >> 1);
        if fits {
            return Ok(());
        }
        Err(Error::Argument {
            argument: "position in the training data".into(),
            expected: format!(
                "one within epochs of {all} rows, as many as were drawn of {} sources",
                self.sources.len()
            ),
            found: format!(
                "epoch {}, index {}, drawn {:?}",
                position.epoch, position.index, position.drawn
            ),
        })
    }
}

/// The place in rows of so many tokens where the targets of all examples begin, if they have some: as far back as the longest of them
/// fits.
fn target_place(reads: &[Read], length: usize) -> Option<usize> {
    let examples = reads.iter().filter_map(|read| match &read.kind {
        Kind::Examples(examples) => Some(examples),
        Kind::Text(_) => None,
    });
    let longest = examples.flatten().filter_map(|one| Some(one.ids.len() - one.target()?)).max();
    longest.map(|longest| length.saturating_sub(longest))
}

/// A text's rows, the last ones kept apart; tokens behind the last whole row are left out.
fn halves_of_text(
    dataset: &Dataset,
    name: &str,
    ids: &[u32],
    paired: bool,
) -> Result<(Rows, Rows)> {
    let length = dataset.length;
    let rows = ids.len() / length;
    let held = dataset.held(rows);
    if rows <= held {
        return Err(Error::Argument {
            argument: format!("training data {name}"),
            expected: format!(
                "a row of {length} tokens or more to learn from, beside {held} kept apart"
            ),
            found: format!("{} tokens, {rows} rows", ids.len()),
        });
    }
    let (learned, rest) = ids.split_at((rows - held) * length);
    Ok((cut(learned, length, paired), cut(&rest[..held * length], length, paired)))
}

/// Rows of examples, others of those that are kept apart, and how many examples are to be learned from: none that says the same
/// as one kept apart.
fn halves_of_examples(
    dataset: &Dataset,
    name: &str,
    examples: Vec<Example>,
    order: &[usize],
    (fill, target): (u32, Option<usize>),
) -> Result<(Rows, Rows, usize)> {
    let held = dataset.held(examples.len()).min(examples.len());
    let texts: HashSet<&[u32]> =
        order[..held].iter().map(|place| examples[*place].ids.as_slice()).collect();
    let learned = |place: &usize| !texts.contains(examples[*place].ids.as_slice());
    let mut learned: Vec<usize> = order[held..].iter().copied().filter(learned).collect();
    if !dataset.shuffle {
        learned.sort_unstable();
    }
    let mut kept = order[..held].to_vec();
    kept.sort_unstable();
    let count = learned.len();
    let packed = |places: &[usize]| {
        let examples: Vec<_> = places.iter().map(|place| &examples[*place]).collect();
        match target {
            Some(target) => pairs(name, &examples, (dataset, target), fill),
            None => pack(name, &examples, dataset, fill),
        }
    };
    let (rows, held_out) = (packed(&learned)?, packed(&kept)?);
    if rows.count() == 0 {
        return Err(Error::Argument {
            argument: format!("training data {name}"),
            expected: format!("an example or more to learn from, beside {held} kept apart"),
            found: format!("{} examples, {count} of them to learn from", examples.len()),
        });
    }
    Ok((rows, held_out, count))
}

fn digest(dataset: &Dataset, seed: u64, sources: &[Source]) -> String {
    let mut hash = Sha256::new();
    let number = |hash: &mut Sha256, number: u64| hash.update(number.to_le_bytes());
    for value in [seed, dataset.length as u64, u64::from(dataset.shuffle), sources.len() as u64] {
        number(&mut hash, value);
    }
    for source in sources {
        number(&mut hash, source.weight);
        for rows in [&source.rows, &source.held_out] {
            number(&mut hash, rows.ids.len() as u64);
            for (id, scored) in rows.ids.iter().zip(&rows.scored) {
                hash.update(id.to_le_bytes());
                hash.update([u8::from(*scored)]);
            }
            rows.labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
        }
    }
    hex(&hash.finalize())
}
