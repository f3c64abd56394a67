//! The log-likelihoods of continuations. What questions have in common is computed once: the examples in front of them, in
//! a cache of their own; each question, whose keys and values its choices go on from; and the choices, side by side.
//!
//! The three run through a block together, layer by layer, so questions and choices need the cache of one layer only.
//! Sequences of several lengths are rows of one length, filled up on the right: attention is causal, so nothing that counts
//! sees what stands behind it, and the next part of a sequence overwrites it.

use std::cmp::Reverse;

use crate::device::{HostTensor, Reading, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::copy::rows::{Rows, rows};
use crate::kernels::loss::argmax::argmax;
use crate::kernels::loss::logsumexp::logsumexp;
use crate::model::{Cache, Llama, Pass};
use crate::tensor::DType;

/// A context and what may follow it, as tokens, at least one each.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What is given.
    pub context: Vec<u32>,
    /// What is scored.
    pub continuation: Vec<u32>,
}

impl Request {
    /// Tokens that the model is given: all but the last, behind which nothing is scored.
    fn input(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self.context.iter().chain(&self.continuation);
        all.copied().take(self.inputs())
    }

    /// How many those are.
    fn inputs(&self) -> usize {
        self.context.len() + self.continuation.len() - 1
    }

    /// How many tokens it has.
    pub fn tokens(&self) -> usize {
        self.inputs() + 1
    }
}

/// The requests of one item.
#[derive(Clone, Debug)]
pub struct Question {
    /// One for each choice, at least one.
    pub requests: Vec<Request>,
    /// Questions of one family share what stands in front of them.
    pub family: usize,
}

/// What came of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Natural log of the continuation's probability, summed in f64.
    pub log_likelihood: f64,
    /// Whether each of its tokens is the likeliest at its place.
    pub greedy: bool,
}

/// How requests are put together.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Questions of a pass at most; `None`: as many as 4096 tokens hold.
    pub batch: Option<usize>,
    /// Whether what questions and choices have in common is computed once.
    pub share: bool,
}

/// Tokens of a pass at most, where the number of questions is not given.
const BATCH_TOKENS: usize = 4096;
/// A common beginning shorter than this is not worth a cache.
const LEAST_PREFIX: usize = 8;

/// Scores every request of every question, in their order. `progress` is told of questions done.
pub fn score(
    model: &Llama,
    pass: &Pass<'_>,
    questions: &[Question],
    batching: Batching,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Score>>> {
    let mut scores: Vec<Vec<Score>> = questions
        .iter()
        .map(|question| {
            let fresh = Score {
                log_likelihood: 0.0,
                greedy: true,
            };
            vec![fresh; question.requests.len()]
        })
        .collect();
    let mut pending: Vec<PendingRows> = Vec::new();
    let mut caches = Caches::default();
    let mut done = 0;
    for family in families(questions) {
        let prefix = if batching.share {
            common_prefix(questions, &family)
        } else {
            0
        };
        let prefix = if prefix < LEAST_PREFIX { 0 } else { prefix };
        let prefix_cache = prefix_cache(model, pass, &questions[family[0]], prefix)?;
        let splits = family.iter().map(|index| {
            let question = &questions[*index];
            let stem = if batching.share {
                common(question.requests.iter())
            } else {
                0
            };
            Split {
                index: *index,
                question,
                stem,
            }
        });
        let mut splits: Vec<Split<'_>> = splits.collect();
        // Rows of a pass are as long as its longest, so those of about one length go together; the longest come first,
        // and whoever runs out of memory does so at once.
        splits.sort_by_key(|split| (Reverse(split.stem), Reverse(split.longest()), split.index));
        let mut rest = splits.as_slice();
        while !rest.is_empty() {
            progress(done, questions.len())?;
            let group;
            (group, rest) = rest.split_at(fitting(model, pass, rest, prefix, batching));
            let rows = record(model, pass, group, prefix_cache.as_ref(), &mut caches)?;
            // The rows of the pass before are fetched while this one runs.
            collect(pass, std::mem::replace(&mut pending, rows), &mut scores)?;
            done += group.len();
        }
    }
    collect(pass, pending, &mut scores)?;
    progress(done, questions.len())?;
    Ok(scores)
}

/// Places of questions by family, in the order of their first; those that are alone are put together.
fn families(questions: &[Question]) -> Vec<Vec<usize>> {
    let count = questions.iter().map(|q| q.family + 1).max().unwrap_or(0);
    let mut families: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (index, question) in questions.iter().enumerate() {
        families[question.family].push(index);
    }
    let (alone, mut families): (Vec<_>, Vec<_>) =
        families.into_iter().partition(|family| family.len() == 1);
    if !alone.is_empty() {
        families.push(alone.concat());
    }
    families.retain(|family| !family.is_empty());
    families
}

/// How many tokens the inputs of requests begin with in common.
fn common<'a>(requests: impl Iterator<Item = &'a Request> + Clone) -> usize {
    let mut others = requests.clone();
    let Some(first) = others.next() else {
        return 0;
    };
    others.fold(first.inputs(), |length, other| {
        let equal = first.input().zip(other.input()).take(length);
        equal.take_while(|(a, b)| a == b).count()
    })
}

/// The tokens that all inputs of a family begin with, but for the place behind which the first token is scored.
fn common_prefix(questions: &[Question], family: &[usize]) -> usize {
    let requests = family.iter().flat_map(|index| &questions[*index].requests);
    let shortest = requests.clone().map(|request| request.context.len() - 1);
    common(requests.clone()).min(shortest.min().unwrap_or(0))
}

fn prefix_cache(
    model: &Llama,
    pass: &Pass<'_>,
    question: &Question,
    prefix: usize,
) -> Result<Option<Cache>> {
    if prefix == 0 {
        return Ok(None);
    }
    let (device, dtype) = (pass.device, pass.compute.activation);
    let mut cache = Cache::new(device, model.config(), 1, prefix, dtype)?;
    let ids: Vec<u32> = question.requests[0].input().take(prefix).collect();
    model.hidden(pass, &ids, &cache)?;
    cache.advance(device, prefix)?;
    Ok(Some(cache))
}

/// A question, and how many tokens its choices have in common; 0 where nothing is shared.
struct Split<'a> {
    index: usize,
    question: &'a Question,
    stem: usize,
}

impl Split<'_> {
    fn longest(&self) -> usize {
        let inputs = self.question.requests.iter().map(Request::inputs);
        inputs.max().unwrap_or(0)
    }

    /// Requests that go on behind the stem.
    fn branches(&self) -> impl Iterator<Item = (usize, &Request)> {
        let requests = self.question.requests.iter().enumerate();
        requests.filter(|(_, request)| request.inputs() > self.stem)
    }
}

/// Sizes of the rows that questions make.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    questions: usize,
    /// Most tokens of a stem behind the prefix.
    stem: usize,
    /// Most tokens of a stem with the prefix.
    held: usize,
    branches: usize,
    /// Most tokens of a branch behind its stem.
    branch: usize,
}

impl Sizes {
    fn add(&mut self, split: &Split<'_>, prefix: usize) {
        self.questions += 1;
        self.stem = self.stem.max(split.stem - prefix);
        self.held = self.held.max(split.stem);
        for (_, request) in split.branches() {
            self.branches += 1;
            self.branch = self.branch.max(request.inputs() - split.stem);
        }
        // Where a prefix covers every question whole, a token of filling carries it to the choices.
        if prefix > 0 {
            self.stem = self.stem.max(1);
        }
    }

    fn tokens(&self) -> usize {
        self.questions * self.stem + self.branches * self.branch
    }

    /// Tokens that caches hold: of questions, and of choices.
    fn cached(&self, prefix: usize) -> (usize, usize) {
        let stems = self.questions * (prefix + self.stem);
        (stems, self.branches * (self.held + self.branch))
    }
}

/// How many of the next questions make a pass: at least one.
fn fitting(
    model: &Llama,
    pass: &Pass<'_>,
    splits: &[Split<'_>],
    prefix: usize,
    batching: Batching,
) -> usize {
    let config = model.config();
    let widest = config.hidden_size.max(config.intermediate_size);
    let cached = config.kv_heads * config.head_dim;
    let most = (pass.device.max_tensor_bytes() / 4) as usize;
    let mut sizes = Sizes::default();
    for (count, split) in splits.iter().enumerate() {
        sizes.add(split, prefix);
        let full = match batching.batch {
            Some(batch) => count >= batch.max(1),
            None => sizes.tokens() > BATCH_TOKENS,
        };
        let (stems, branches) = sizes.cached(prefix);
        let large = stems.max(branches) * cached > most || sizes.tokens() * widest > most;
        if count > 0 && (full || large) {
            return count;
        }
    }
    splits.len()
}

/// Caches that passes of the same size use again.
#[derive(Default)]
struct Caches {
    stems: Option<Cache>,
    branches: Option<Cache>,
}

fn ready<'a>(
    slot: &'a mut Option<Cache>,
    model: &Llama,
    pass: &Pass<'_>,
    sequences: usize,
    capacity: usize,
) -> Result<&'a mut Cache> {
    let fits = slot.as_ref().is_some_and(|cache| {
        cache.lengths().len() == sequences && (capacity..=2 * capacity).contains(&cache.capacity())
    });
    if !fits {
        // The old one goes before the new one comes.
        *slot = None;
        let dtype = pass.compute.activation;
        let cache = Cache::passing(pass.device, model.config(), sequences, capacity, dtype)?;
        *slot = Some(cache);
    }
    Ok(slot.as_mut().expect("a cache was just made"))
}

/// Rows of equal length, filled up on the right with the token 0.
struct Segment<'a> {
    x: Tensor,
    cache: &'a mut Cache,
    copies: Option<Rows>,
}

/// A row of a pass whose next token is scored: (row of a segment, token, question, request).
type Wanted = (u32, u32, usize, usize);

/// Records a pass over some questions and starts reading their losses back.
fn record(
    model: &Llama,
    pass: &Pass<'_>,
    group: &[Split<'_>],
    prefix: Option<&Cache>,
    caches: &mut Caches,
) -> Result<Vec<PendingRows>> {
    let device = pass.device;
    let held = prefix.map_or(0, |cache| cache.lengths()[0] as usize);
    let mut wanted: [Vec<Wanted>; 2] = Default::default();
    let mut sizes = Sizes::default();
    group.iter().for_each(|split| sizes.add(split, held));
    let stems = if sizes.stem > 0 {
        let (count, each) = (sizes.questions, sizes.stem);
        let cache = ready(&mut caches.stems, model, pass, count, held + each)?;
        cache.hold(device, &vec![held as u32; count])?;
        let copies = match prefix {
            Some(prefix) => cache.copies(device, prefix, &vec![(0, held); count])?,
            None => None,
        };
        let mut ids = Vec::with_capacity(count * each);
        for (row, split) in group.iter().enumerate() {
            let input = split.question.requests[0].input();
            ids.extend(input.take(split.stem).skip(held));
            ids.resize((row + 1) * each, 0);
            for (number, request) in split.question.requests.iter().enumerate() {
                want(
                    split,
                    number,
                    request,
                    (held, split.stem),
                    row * each,
                    &mut wanted[0],
                );
            }
        }
        let x = model.embed(pass, &ids)?;
        Some(Segment { x, cache, copies })
    } else {
        None
    };
    let branches = if sizes.branches > 0 {
        let (count, each) = (sizes.branches, sizes.branch);
        let cache = ready(&mut caches.branches, model, pass, count, sizes.held + each)?;
        let (mut ids, mut sources) = (Vec::with_capacity(count * each), Vec::new());
        for (place, split) in group.iter().enumerate() {
            for (number, request) in split.branches() {
                let row = sources.len();
                sources.push((place, split.stem));
                ids.extend(request.input().skip(split.stem));
                ids.resize((row + 1) * each, 0);
                let span = (split.stem, request.inputs());
                want(split, number, request, span, row * each, &mut wanted[1]);
            }
        }
        let lengths: Vec<u32> = sources.iter().map(|(_, stem)| *stem as u32).collect();
        cache.hold(device, &lengths)?;
        let copies = match &stems {
            Some(stems) => cache.copies(device, stems.cache, &sources)?,
            None => None,
        };
        let x = model.embed(pass, &ids)?;
        Some(Segment { x, cache, copies })
    } else {
        None
    };
    for layer in 0..model.config().layers {
        interrupt::check()?;
        if let Some(stems) = &stems {
            if let (Some(prefix), Some(copies)) = (prefix, &stems.copies) {
                stems.cache.copy(device, layer, prefix, copies)?;
            }
            model.block(pass, layer, &stems.x, stems.cache)?;
        }
        if let Some(branches) = &branches {
            if let (Some(stems), Some(copies)) = (&stems, &branches.copies) {
                branches.cache.copy(device, layer, stems.cache, copies)?;
            }
            model.block(pass, layer, &branches.x, branches.cache)?;
        }
    }
    losses(model, pass, [stems, branches], &wanted)
}

/// Lists the rows of a segment's span of positions behind which tokens of a request are scored. `base`: the row of the
/// span's first position.
fn want(
    split: &Split<'_>,
    number: usize,
    request: &Request,
    (from, to): (usize, usize),
    base: usize,
    list: &mut Vec<Wanted>,
) {
    for (order, token) in request.continuation.iter().enumerate() {
        let position = request.context.len() - 1 + order;
        if (from..to).contains(&position) {
            let row = (base + position - from) as u32;
            list.push((row, *token, split.index, number));
        }
    }
}

/// Losses on their way back: of the rows of a head's call, in the order of `wanted`.
struct PendingRows {
    wanted: Vec<Wanted>,
    lse: Reading,
    picked: Reading,
    best: Reading,
}

/// The head over the wanted rows of both segments.
fn losses(
    model: &Llama,
    pass: &Pass<'_>,
    segments: [Option<Segment<'_>>; 2],
    wanted: &[Vec<Wanted>; 2],
) -> Result<Vec<PendingRows>> {
    let (device, hidden) = (pass.device, model.config().hidden_size);
    let total = wanted[0].len() + wanted[1].len();
    let gathered = device.allocate(DType::F32, &[total, hidden], "scored rows")?;
    let mut first = 0;
    for (segment, list) in segments.iter().zip(wanted) {
        if let (Some(segment), false) = (segment, list.is_empty()) {
            let to = first as u32..;
            let pairs: Vec<(u32, u32)> = list.iter().map(|row| row.0).zip(to).collect();
            let list = Rows::upload(device, &pairs)?;
            rows(device, &segment.x, &gathered, hidden, &list)?;
        }
        first += list.len();
    }
    let normed = model.final_norm(pass, &gathered)?;
    let all: Vec<Wanted> = wanted.concat();
    let mut pending = Vec::new();
    let step = model.head_rows(device);
    for first in (0..total).step_by(step) {
        let range = first..(first + step).min(total);
        let logits = model.head(pass, &normed, range.clone())?;
        let part = &all[range];
        let targets: Vec<u32> = part.iter().map(|row| row.1).collect();
        let targets = HostTensor::from_u32(&[targets.len()], &targets);
        let targets = device.upload(&targets, "targets")?;
        let (lse, picked) = logsumexp(device, &logits, &targets)?;
        let best = argmax(device, &logits, part.len())?;
        pending.push(PendingRows {
            wanted: part.to_vec(),
            lse: device.read_later(&lse)?,
            picked: device.read_later(&picked)?,
            best: device.read_later(&best)?,
        });
    }
    Ok(pending)
}

/// Adds losses that have come back to their requests.
fn collect(pass: &Pass<'_>, pending: Vec<PendingRows>, scores: &mut [Vec<Score>]) -> Result<()> {
    for PendingRows {
        wanted,
        lse,
        picked,
        best,
    } in pending
    {
        let device = pass.device;
        let (lse, picked) = (device.finish(lse)?, device.finish(picked)?);
        let best = device.finish(best)?;
        for (index, (_, token, question, request)) in wanted.iter().enumerate() {
            let value = picked.view().get(index) - lse.view().get(index);
            if !value.is_finite() {
                return Err(Error::Device {
                    during: "evaluation".into(),
                    reason: format!(
                        "the log-likelihood of a token of question {} is {value}; try --compute f32",
                        question + 1
                    ),
                });
            }
            let score = &mut scores[*question][*request];
            score.log_likelihood += value;
            score.greedy &= best.view().u32s()[index] == *token;
        }
    }
    Ok(())
}
