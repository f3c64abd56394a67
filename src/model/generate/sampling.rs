//! How the next token is chosen.

use crate::device::{Device, HostTensor, Random, Tensor};
use crate::error::{Error, Result};
use crate::kernels::logits::draw::{Chances, consecutive, draw};
use crate::kernels::logits::penalize::{Penalties, penalize, words};
use crate::kernels::logits::probabilities::{Filter, Filters, probabilities};
use crate::kernels::loss::peaks::{Peaks, peaks};

/// The kind of draw of ordinary tokens.
const DRAW: &str = "draw";

/// How the next token is chosen: the repetition penalty first, then the temperature, top-k, top-p and min-p in the order of Hugging
/// Face transformers ([`probabilities`]).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens are drawn from softmax(logits / temperature); 0: the likeliest is taken.
    pub temperature: f64,
    /// Of the k likeliest tokens; 0: of all.
    pub top_k: usize,
    /// Of the fewest likeliest tokens whose probabilities reach this together, above 0; 1: of all.
    pub top_p: f64,
    /// Of tokens with at least this share of the likeliest one's probability; 0: of all.
    pub min_p: f64,
    /// Logits of tokens that the text has are divided by this, or times it where they are below zero; 1: left as they are.
    pub repetition_penalty: f64,
    /// The seed of what is drawn.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token.
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };

    /// Drawn from softmax(logits / temperature).
    pub fn at(temperature: f64, seed: u64) -> Self {
        Self { temperature, seed, ..Self::GREEDY }
    }

    /// That every value makes sense. Errors name them as the flags that they are.
    pub fn check(&self) -> Result<()> {
        let wrong = |argument: &str, expected: &str, found: f64| {
            let (argument, expected) = (argument.into(), expected.into());
            Err(Error::Argument { argument, expected, found: found.to_string() })
        };
        let Self { temperature, top_p, min_p, repetition_penalty: penalty, .. } = *self;
        // 1 / temperature and what it is multiplied with are f32.
        if !(temperature == 0.0 || (1e-6..=1e6).contains(&temperature)) {
            return wrong("--temperature", "0 or a number from 1e-6 to 1e6", temperature);
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return wrong("--top-p", "a number above 0, at most 1", top_p);
        }
        if !(0.0..=1.0).contains(&min_p) {
            return wrong("--min-p", "a number from 0 to 1", min_p);
        }
        if !(1e-3..=1e3).contains(&penalty) {
            return wrong("--repetition-penalty", "a number from 0.001 to 1000", penalty);
        }
        Ok(())
    }

    /// Whether the likeliest token is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// The filter of tokens that are drawn; of the likeliest, where nothing is.
    pub(super) fn filter(&self) -> Filter {
        if self.is_greedy() {
            return Filter { temperature: 1.0, top_k: 1, top_p: 1.0, min_p: 0.0 };
        }
        Filter {
            temperature: self.temperature,
            top_k: if self.top_k == 0 { usize::MAX } else { self.top_k },
            top_p: self.top_p,
            min_p: self.min_p,
        }
    }

    /// The seed of draws of one kind, so that no two kinds of draw at a place are of the same numbers.
    pub(super) fn seed_of(&self, kind: &str) -> u64 {
        Random::seed_of(self.seed, kind)
    }
}

/// What chooses tokens on a device, for some sequences, each in its own way.
#[derive(Debug)]
pub struct Sampler {
    columns: usize,
    /// Where any sequence's tokens are drawn.
    drawing: Option<Drawing>,
    /// Where any sequence's tokens are penalized.
    penalizing: Option<Penalizing>,
}

#[derive(Debug)]
struct Drawing {
    filters: Filters,
    chances: Chances,
}

#[derive(Debug)]
struct Penalizing {
    /// A bit for each token that a sequence has, u32 (sequences, words).
    seen: Tensor,
    penalties: Penalties,
}

/// Tokens that were chosen.
#[derive(Debug)]
pub(in crate::model) struct Choice {
    /// Of each row; of drawn tokens a row is one part, whose place is the token.
    pub(in crate::model) peaks: Peaks,
    /// What they were drawn by, f32 (rows, columns), if they were.
    pub(in crate::model) drawn_by: Option<Tensor>,
}

impl Sampler {
    /// One for logits of so many `columns`, that has seen the tokens of each sequence's text so far. Row r draws with the seed plus
    /// r 2^32.
    pub fn new(
        device: &Device,
        sampling: Sampling,
        columns: usize,
        texts: &[&[u32]],
    ) -> Result<Self> {
        Self::for_kind(device, sampling, columns, texts, DRAW)
    }

    /// The same for draws of another kind, which are of other numbers.
    pub(super) fn for_kind(
        device: &Device,
        sampling: Sampling,
        columns: usize,
        texts: &[&[u32]],
        kind: &str,
    ) -> Result<Self> {
        let seeds: Vec<u64> = consecutive(sampling.seed_of(kind), texts.len()).collect();
        Self::of_rows(device, &vec![sampling; texts.len()], &seeds, columns, texts)
    }

    /// One for sequences each of which draws as it would alone.
    pub fn each(
        device: &Device,
        samplings: &[Sampling],
        columns: usize,
        texts: &[&[u32]],
    ) -> Result<Self> {
        let seeds: Vec<u64> = samplings.iter().map(|sampling| sampling.seed_of(DRAW)).collect();
        Self::of_rows(device, samplings, &seeds, columns, texts)
    }

    fn of_rows(
        device: &Device,
        samplings: &[Sampling],
        seeds: &[u64],
        columns: usize,
        texts: &[&[u32]],
    ) -> Result<Self> {
        assert_eq!(samplings.len(), texts.len(), "a way to choose for each text");
        let (mut drawing, mut penalizing) = (None, None);
        if !samplings.iter().all(Sampling::is_greedy) {
            let filters: Vec<Filter> = samplings.iter().map(Sampling::filter).collect();
            let draws = samplings.iter().zip(seeds);
            let draws: Vec<Option<u64>> =
                draws.map(|(sampling, seed)| (!sampling.is_greedy()).then_some(*seed)).collect();
            drawing = Some(Drawing {
                filters: Filters::upload(device, &filters, columns)?,
                chances: Chances::upload(device, &draws)?,
            });
        }
        let penalties: Vec<f32> =
            samplings.iter().map(|sampling| sampling.repetition_penalty as f32).collect();
        if penalties.iter().any(|penalty| *penalty != 1.0) {
            let bits = HostTensor::from_u32(&[texts.len(), words(columns)], &seen(columns, texts));
            penalizing = Some(Penalizing {
                seen: device.upload(&bits, "tokens seen")?,
                penalties: Penalties::upload(device, &penalties)?,
            });
        }
        Ok(Self { columns, drawing, penalizing })
    }

    /// Says what each sequence's text is now.
    pub(in crate::model) fn see(&self, device: &Device, texts: &[&[u32]]) -> Result<()> {
        match &self.penalizing {
            None => Ok(()),
            Some(Penalizing { seen: bits, .. }) => device.write(bits, &seen(self.columns, texts)),
        }
    }

    /// Chooses a token of each row of logits, which it may change. `read_now`: the tokens that the logits stand behind, u32 (rows);
    /// `places`: their places in their texts, u32 (rows).
    pub(in crate::model) fn choose(
        &self,
        device: &Device,
        logits: &Tensor,
        read_now: &Tensor,
        places: &Tensor,
    ) -> Result<Choice> {
        let rows = read_now.len();
        self.penalize(device, logits, read_now)?;
        let Some(Drawing { filters, chances }) = &self.drawing else {
            return Ok(Choice { peaks: peaks(device, logits, rows)?, drawn_by: None });
        };
        let (weights, peaks) = probabilities(device, logits, filters)?;
        let places = draw(device, &weights, places, chances)?;
        Ok(Choice { peaks: Peaks { peaks, places }, drawn_by: Some(weights) })
    }

    /// The repetition penalty, in place, if there is one.
    pub(super) fn penalize(
        &self,
        device: &Device,
        logits: &Tensor,
        read_now: &Tensor,
    ) -> Result<()> {
        match &self.penalizing {
            None => Ok(()),
            Some(Penalizing { seen, penalties }) => {
                penalize(device, logits, read_now, seen, penalties)
            }
        }
    }
}

/// Bits of the tokens in texts, a row each.
fn seen(columns: usize, texts: &[&[u32]]) -> Vec<u32> {
    let width = words(columns);
    let mut bits = vec![0; texts.len() * width];
    for (row, text) in bits.chunks_exact_mut(width).zip(texts) {
        for token in text.iter().filter(|token| (**token as usize) < columns) {
            row[*token as usize / 32] |= 1 << (token % 32);
        }
    }
    bits
}
