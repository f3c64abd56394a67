//! Examples by preference: in the pool's order, shuffled, or by likeness to the question.

use std::borrow::Cow;
use std::cmp::Reverse;

use super::encode::asked;
use super::{Event, Options, Setup};
use crate::data::Item;
use crate::data::Task;
use crate::data::shots::{Bm25, Selection, pool, ranked, shuffled};
use crate::error::Result;
use crate::model::Cache;

/// Tokens of a pass at most.
const BATCH_TOKENS: usize = 4096;

/// Places in the pool by preference.
#[derive(Debug)]
pub enum Orders {
    /// One order for all questions.
    One(Vec<usize>),
    /// By the words of the question.
    Words(Bm25),
    /// By the cosine of unit vectors: of the pool, and of the questions.
    Vectors(Vec<Vec<f32>>, Vec<Vec<f32>>),
}

impl Orders {
    /// The orders that the options ask for.
    pub fn new(
        setup: &Setup<'_>,
        task: &Task,
        options: &Options,
        tell: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<Self> {
        let pool = pool(task);
        if options.shots == 0 {
            return Ok(Orders::One(Vec::new()));
        }
        Ok(match options.selection {
            Selection::First => Orders::One((0..pool.len()).collect()),
            Selection::Random => Orders::One(shuffled(pool.len(), options.seed)),
            Selection::Bm25 => Orders::Words(Bm25::new(pool)),
            Selection::Embedding => Orders::Vectors(
                vectors(setup, pool, tell)?,
                vectors(setup, asked(task, options), tell)?,
            ),
        })
    }

    /// A question's.
    pub fn of(&self, index: usize, item: &Item) -> Cow<'_, [usize]> {
        match self {
            Orders::One(order) => Cow::Borrowed(order),
            Orders::Words(words) => Cow::Owned(words.rank(item.topic())),
            Orders::Vectors(pool, questions) => {
                let question = &questions[index];
                let cosine = |other: &Vec<f32>| {
                    let products = question.iter().zip(other);
                    products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                };
                Cow::Owned(ranked(&pool.iter().map(cosine).collect::<Vec<f64>>()))
            }
        }
    }
}

/// Numbers as a vector of length 1.
fn unit(values: impl Iterator<Item = f64> + Clone) -> Vec<f32> {
    let length = values.clone().map(|value| value * value).sum::<f64>().sqrt();
    values.map(|value| (value / length.max(f64::MIN_POSITIVE)) as f32).collect()
}

/// The embedding of each item's topic by the sentence encoder, or else its mean hidden state after the final norm, as a unit vector.
fn vectors(
    setup: &Setup<'_>,
    items: &[Item],
    tell: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<Vec<Vec<f32>>> {
    if let Some((encoder, tokenizer)) = setup.encoder {
        let context = encoder.config().max_positions;
        let read = |item: &Item| Ok(tokenizer.encode_within(item.topic(), context)?.0);
        let texts = items.iter().map(read).collect::<Result<Vec<Vec<u32>>>>()?;
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        tell(Event::Progress("embedding", 0, items.len()))?;
        let all = encoder.embeddings(setup.pass, &texts, &mut |_, _| {})?;
        let width = encoder.config().hidden_size;
        return Ok(all
            .chunks_exact(width)
            .map(|row| unit(row.iter().map(|v| f64::from(*v))))
            .collect());
    }
    let (model, pass) = (setup.models.base(), setup.pass);
    let why =
        "examples are likened by what a decoder makes of them; choose --shot-selection otherwise";
    model.config().without_encoder("--shot-selection", why)?;
    let hidden = model.config().hidden_size;
    let mut texts = Vec::with_capacity(items.len());
    for item in items {
        let mut ids = setup.tokenizer.encode(item.topic(), true)?;
        ids.truncate(model.config().max_positions);
        // A text without tokens is like nothing.
        if ids.is_empty() {
            ids.push(0);
        }
        texts.push(ids);
    }
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|place| Reverse(texts[*place].len()));
    let mut vectors = vec![Vec::new(); items.len()];
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        tell(Event::Progress("embedding", items.len() - rest.len(), items.len()))?;
        let each = texts[rest[0]].len();
        let group;
        (group, rest) = rest.split_at((BATCH_TOKENS / each).clamp(1, rest.len()));
        let mut ids = Vec::with_capacity(group.len() * each);
        for (row, place) in group.iter().enumerate() {
            ids.extend(&texts[*place]);
            ids.resize((row + 1) * each, 0);
        }
        let cache =
            Cache::single_layer(pass.device, model.config(), group.len(), each, pass.compute)?;
        let states = pass.device.read(&model.hidden(pass, &ids, &cache)?)?;
        for (row, place) in group.iter().enumerate() {
            let mut sum = vec![0.0f64; hidden];
            let states = states.view().load(row * each * hidden, texts[*place].len() * hidden);
            for state in states.chunks_exact(hidden) {
                sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(*value));
            }
            vectors[*place] = unit(sum.into_iter());
        }
    }
    tell(Event::Progress("embedding", items.len(), items.len()))?;
    Ok(vectors)
}
