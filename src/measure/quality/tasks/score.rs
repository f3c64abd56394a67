//! The log-likelihoods of continuations. Shared tokens are computed once: the examples before all questions, in a KV cache
//! of their own; then each question, from whose keys and values its choices continue; then the choices, side by side.
//!
//! The three run through a block together, layer by layer, so questions and choices need the KV cache of one layer only.
//! Sequences of several lengths are padded on the right to rows of one length: attention is causal, so no scored token sees
//! the padding, and the next part of a sequence overwrites it.

use std::cmp::Reverse;

use super::split::{Sizes, Split, common, common_prefix, families, fitting};
use crate::device::{HostTensor, Reading, Tensor};
use crate::error::Result;
use crate::interrupt;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::kernels::loss::argmax::argmax;
use crate::kernels::loss::logsumexp::logsumexp;
use crate::model::{Cache, Ensemble, Model, Pass, paired_row};
use crate::tensor::DType;

/// A context and what may follow it, as tokens, at least one each.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Tokens given.
    pub context: Vec<u32>,
    /// Tokens scored.
    pub continuation: Vec<u32>,
}

impl Request {
    /// Input tokens: all but the last, after which nothing is scored.
    pub fn input(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self.context.iter().chain(&self.continuation);
        all.copied().take(self.inputs())
    }

    /// How many those are.
    pub fn inputs(&self) -> usize {
        self.context.len() + self.continuation.len() - 1
    }
}

/// The requests of one item.
#[derive(Clone, Debug)]
pub struct Question {
    /// One for each choice, at least one.
    pub requests: Vec<Request>,
    /// Questions of one family share the text in front of them.
    pub family: usize,
}

/// The score of a request.
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

/// A common beginning shorter than this is not worth a cache.
const LEAST_PREFIX: usize = 8;

/// Scores every request of every question, in their order. `progress` is told of questions done.
pub fn score(
    models: &Ensemble<'_>,
    pass: &Pass<'_>,
    questions: &[Question],
    batching: Batching,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Score>>> {
    let mut scores: Vec<Vec<Score>> = questions
        .iter()
        .map(|question| {
            let fresh = Score { log_likelihood: 0.0, greedy: true };
            vec![fresh; question.requests.len()]
        })
        .collect();
    let mut pending: Vec<PendingRows> = Vec::new();
    for question in questions {
        for request in &question.requests {
            models.check_tokens(&request.context)?;
            models.check_tokens(&request.continuation)?;
        }
    }
    let member = |model| Member { model, prefix: None, caches: Caches::default() };
    let mut members: Vec<Member<'_>> = models.models().map(member).collect();
    // What an encoder reads it reads as a whole.
    let share = batching.share && models.models().all(|model| model.config().encoder.is_none());
    let mut done = 0;
    for family in families(questions) {
        let prefix = if share { common_prefix(questions, &family) } else { 0 };
        let prefix = if prefix < LEAST_PREFIX { 0 } else { prefix };
        for member in &mut members {
            // The old one goes before the new one comes.
            member.prefix = None;
            member.prefix = prefix_cache(member.model, pass, &questions[family[0]], prefix)?;
        }
        let splits = family.iter().map(|index| {
            let question = &questions[*index];
            let stem = if share { common(question.requests.iter()) } else { 0 };
            Split { index: *index, question, stem }
        });
        let mut splits: Vec<Split<'_>> = splits.collect();
        // Rows of a pass are as long as its longest, so those of about one length go together; the longest come first,
        // so that a lack of memory shows at once.
        splits.sort_by_key(|split| (Reverse(split.stem), Reverse(split.longest()), split.index));
        let mut rest = splits.as_slice();
        while !rest.is_empty() {
            progress(done, questions.len())?;
            let group;
            (group, rest) = rest.split_at(fitting(models.base(), pass, rest, prefix, batching));
            let rows = record(models, &mut members, pass, group)?;
            // The rows of the pass before are fetched while this one runs.
            collect(pass, std::mem::replace(&mut pending, rows), &mut scores)?;
            done += group.len();
        }
    }
    collect(pass, pending, &mut scores)?;
    for (index, (question, scores)) in questions.iter().zip(&scores).enumerate() {
        let wrong = scores.iter().position(|score| !score.log_likelihood.is_finite());
        if let Some(request) = wrong {
            let request = &question.requests[request];
            let config = models.base().config();
            let ids: Vec<u32> = match config.encoder {
                None => request.input().collect(),
                Some(_) => {
                    let read = &request.continuation[..request.continuation.len() - 1];
                    paired_row(config, &request.context, read, request.context.len() + 1)
                }
            };
            let symptom = format!("log-likelihood of question {}", index + 1);
            return Err(models.not_finite(pass, &ids, symptom));
        }
    }
    progress(done, questions.len())?;
    Ok(scores)
}

fn prefix_cache(
    model: &Model,
    pass: &Pass<'_>,
    question: &Question,
    prefix: usize,
) -> Result<Option<Cache>> {
    if prefix == 0 {
        return Ok(None);
    }
    let device = pass.device;
    let mut cache = Cache::new(device, model.config(), 1, prefix, pass.compute)?;
    let ids: Vec<u32> = question.requests[0].input().take(prefix).collect();
    model.hidden(pass, &ids, &cache)?;
    cache.advance(device, prefix)?;
    Ok(Some(cache))
}

/// Caches that passes of the same size use again.
#[derive(Default)]
struct Caches {
    stems: Option<Cache>,
    branches: Option<Cache>,
}

fn ready<'a>(
    slot: &'a mut Option<Cache>,
    model: &Model,
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
        let cache =
            Cache::single_layer(pass.device, model.config(), sequences, capacity, pass.compute)?;
        *slot = Some(cache);
    }
    Ok(slot.as_mut().expect("a cache was just made"))
}

/// Rows of equal length, filled up on the right with the token 0.
struct Segment<'a> {
    x: Tensor,
    cache: &'a mut Cache,
    copies: Option<Rows>,
    wanted: Vec<Wanted>,
}

/// A row of a pass whose next token is scored: (row of a segment, token, question, request).
type Wanted = (u32, u32, usize, usize);

/// A model and its caches.
struct Member<'m> {
    model: &'m Model,
    prefix: Option<Cache>,
    caches: Caches,
}

/// Records a pass of every model over some questions and starts reading their losses back.
fn record(
    models: &Ensemble<'_>,
    members: &mut [Member<'_>],
    pass: &Pass<'_>,
    group: &[Split<'_>],
) -> Result<Vec<PendingRows>> {
    let (mut normed, mut all) = (Vec::new(), Vec::new());
    for Member { model, prefix, caches } in members.iter_mut() {
        let (rows, wanted) = scored_rows(model, pass, group, prefix.as_ref(), caches)?;
        normed.push(rows);
        all = wanted;
    }
    losses(models, pass, &normed, &all)
}

/// A pass of a model over some questions: the head's input for each token that is scored, and which those are.
fn scored_rows(
    model: &Model,
    pass: &Pass<'_>,
    group: &[Split<'_>],
    prefix: Option<&Cache>,
    caches: &mut Caches,
) -> Result<(Tensor, Vec<Wanted>)> {
    if model.config().encoder.is_some() {
        return paired_rows(model, pass, group, caches);
    }
    let device = pass.device;
    let mut sizes = Sizes::default();
    let held = prefix.map_or(0, |cache| cache.lengths()[0] as usize);
    group.iter().for_each(|split| sizes.add(split, held));
    let stems = match sizes.stem {
        0 => None,
        _ => Some(stems(model, pass, group, sizes, prefix, &mut caches.stems)?),
    };
    let branches = match sizes.branches {
        0 => None,
        _ => {
            let from = stems.as_ref().map(|stems| &*stems.cache);
            Some(branches(model, pass, group, sizes, from, &mut caches.branches)?)
        }
    };
    for layer in 0..model.config().layers() {
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
    let segments: Vec<Segment<'_>> = stems.into_iter().chain(branches).collect();
    gather(model, pass, &segments)
}

/// The same of a model with an encoder, which reads the contexts: a row for each continuation, but for those of one question that
/// differ in their last token only.
fn paired_rows(
    model: &Model,
    pass: &Pass<'_>,
    group: &[Split<'_>],
    caches: &mut Caches,
) -> Result<(Tensor, Vec<Wanted>)> {
    let config = model.config();
    /// A question's place in the group, its source, and the tokens of the target that are read.
    type Row<'a> = (usize, &'a [u32], &'a [u32]);
    let mut rows: Vec<Row<'_>> = Vec::new();
    let mut scored = Vec::new();
    for (place, split) in group.iter().enumerate() {
        for (number, request) in split.question.requests.iter().enumerate() {
            let read = &request.continuation[..request.continuation.len() - 1];
            let row = (place, request.context.as_slice(), read);
            let known = rows.iter().position(|known| *known == row);
            let row = known.unwrap_or_else(|| {
                rows.push(row);
                rows.len() - 1
            });
            scored.push((row, split.index, number, request));
        }
    }
    let most = |of: fn(&Row<'_>) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let width = most(|(_, source, _)| source.len()) + 1;
    let length = width + 1 + most(|(.., read)| read.len());
    let mut ids = Vec::with_capacity(rows.len() * length);
    for (row, (_, source, read)) in rows.iter().enumerate() {
        ids.extend(paired_row(config, source, read, width));
        ids.resize((row + 1) * length, 0);
    }
    let mut wanted = Vec::new();
    for (row, question, number, request) in scored {
        let first = row * length + width;
        let tokens = (first..).zip(&request.continuation);
        wanted.extend(tokens.map(|(at, token)| (at as u32, *token, question, number)));
    }
    let cache = ready(&mut caches.branches, model, pass, rows.len(), length)?;
    cache.clear(pass.device)?;
    let x = model.begin(pass, &ids, cache)?;
    for layer in 0..config.layers() {
        interrupt::check()?;
        model.block(pass, layer, &x, cache)?;
    }
    gather(model, pass, &[Segment { x, cache, copies: None, wanted }])
}

/// The tokens after the prefix that a question's choices share: a row for each question.
fn stems<'a>(
    model: &Model,
    pass: &Pass<'_>,
    group: &[Split<'_>],
    sizes: Sizes,
    prefix: Option<&Cache>,
    slot: &'a mut Option<Cache>,
) -> Result<Segment<'a>> {
    let (count, each) = (sizes.questions, sizes.stem);
    let held = prefix.map_or(0, |cache| cache.lengths()[0] as usize);
    let cache = ready(slot, model, pass, count, held + each)?;
    cache.hold(pass.device, &vec![held as u32; count])?;
    let copies = match prefix {
        Some(prefix) => cache.copies(pass.device, prefix, &vec![(0, held); count])?,
        None => None,
    };
    let (mut ids, mut wanted) = (Vec::with_capacity(count * each), Vec::new());
    for (row, split) in group.iter().enumerate() {
        let input = split.question.requests[0].input();
        ids.extend(input.take(split.stem).skip(held));
        ids.resize((row + 1) * each, 0);
        for (number, request) in split.question.requests.iter().enumerate() {
            let span = (held, split.stem);
            want(split, number, request, span, row * each, &mut wanted);
        }
    }
    Ok(Segment { x: model.embed(pass, &ids)?, cache, copies, wanted })
}

/// The choices after their questions, whose keys and values are in `from`: a row for each choice that continues.
fn branches<'a>(
    model: &Model,
    pass: &Pass<'_>,
    group: &[Split<'_>],
    sizes: Sizes,
    from: Option<&Cache>,
    slot: &'a mut Option<Cache>,
) -> Result<Segment<'a>> {
    let (count, each) = (sizes.branches, sizes.branch);
    let cache = ready(slot, model, pass, count, sizes.held + each)?;
    let (mut ids, mut wanted) = (Vec::with_capacity(count * each), Vec::new());
    let mut sources = Vec::with_capacity(count);
    for (place, split) in group.iter().enumerate() {
        for (number, request) in split.branches() {
            let row = sources.len();
            sources.push((place, split.stem));
            ids.extend(request.input().skip(split.stem));
            ids.resize((row + 1) * each, 0);
            let span = (split.stem, request.inputs());
            want(split, number, request, span, row * each, &mut wanted);
        }
    }
    let lengths: Vec<u32> = sources.iter().map(|(_, stem)| *stem as u32).collect();
    cache.hold(pass.device, &lengths)?;
    let copies = match from {
        Some(from) => cache.copies(pass.device, from, &sources)?,
        None => None,
    };
    Ok(Segment { x: model.embed(pass, &ids)?, cache, copies, wanted })
}

/// Lists the rows of a segment whose next token is a scored token of a request. `base`: the row of the span's first
/// position.
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

/// Losses that are being read back: of the rows of a head's call, in the order of `wanted`.
struct PendingRows {
    wanted: Vec<Wanted>,
    lse: Reading,
    picked: Reading,
    best: Reading,
}

/// The head's input for the wanted rows of all segments.
fn gather(
    model: &Model,
    pass: &Pass<'_>,
    segments: &[Segment<'_>],
) -> Result<(Tensor, Vec<Wanted>)> {
    let (device, hidden) = (pass.device, model.config().hidden_size);
    let total: usize = segments.iter().map(|segment| segment.wanted.len()).sum();
    let gathered = device.allocate(DType::F32, &[total, hidden], "scored rows")?;
    let mut all: Vec<Wanted> = Vec::with_capacity(total);
    for Segment { x, wanted, .. } in segments {
        if !wanted.is_empty() {
            let to = all.len() as u32..;
            let pairs: Vec<(u32, u32)> = wanted.iter().map(|row| row.0).zip(to).collect();
            rows(device, x, &gathered, hidden, &Rows::upload(device, &pairs)?)?;
        }
        all.extend(wanted);
    }
    Ok((model.final_norm(pass, &gathered)?, all))
}

/// The heads over the rows that are scored, as one.
fn losses(
    models: &Ensemble<'_>,
    pass: &Pass<'_>,
    normed: &[Tensor],
    all: &[Wanted],
) -> Result<Vec<PendingRows>> {
    let (device, total) = (pass.device, all.len());
    let mut pending = Vec::new();
    let steps = models.models().map(|model| model.head_rows(device));
    let step = steps.min().expect("there is a base");
    for first in (0..total).step_by(step) {
        let range = first..(first + step).min(total);
        let heads = models.models().zip(normed);
        let logits = heads.map(|(model, normed)| model.head(pass, normed, range.clone()));
        let logits = models.combine(device, logits.collect::<Result<_>>()?)?;
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
    for PendingRows { wanted, lse, picked, best } in pending {
        let device = pass.device;
        let (lse, picked) = (device.finish(lse)?, device.finish(picked)?);
        let best = device.finish(best)?;
        for (index, (_, token, question, request)) in wanted.iter().enumerate() {
            let value = picked.view().get(index) - lse.view().get(index);
            let score = &mut scores[*question][*request];
            score.log_likelihood += value;
            score.greedy &= best.view().u32s()[index] == *token;
        }
    }
    Ok(())
}
