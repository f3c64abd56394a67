//! Speculative decoding: something quick proposes tokens, the models check them in one pass. Greedily the text is what it would have
//! been; drawn tokens are distributed as they would have been (Leviathan, Kalman and Matias 2023, arXiv 2211.17192, algorithm 1).

use super::ensemble::{Caches, Ensemble};
use super::sampling::{Sampler, Sampling};
use crate::device::{HostTensor, Reading, Tensor};
use crate::error::Result;
use crate::graph::Pass;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::kernels::logits::accept::{Drafted, accept};
use crate::kernels::logits::probabilities::{Filters, probabilities};
use crate::kernels::loss::argmax::argmax;
use crate::kernels::loss::logsumexp::logsumexp;
use crate::model::decode::{Chosen, Decoder};
use crate::model::finite::not_finite;
use crate::model::resident::Model;
use crate::tensor::DType;

/// What proposes tokens.
#[derive(Clone, Copy, Debug)]
pub enum Draft<'m> {
    /// A smaller model with the same tokens.
    Model(&'m Model),
    /// What followed the last few tokens earlier in the text (prompt lookup; Saxena 2023).
    Lookup,
}

/// How tokens are proposed.
#[derive(Clone, Copy, Debug)]
pub struct Speculation<'m> {
    /// By what.
    pub draft: Draft<'m>,
    /// So many at a time at most, from 1. How many it is follows from how many of the last were accepted.
    pub most: usize,
}

/// How many tokens were proposed, and how many of them stayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// Passes of the models, each of which gave one token more than were accepted.
    pub passes: usize,
    /// Tokens proposed.
    pub drafted: usize,
    /// Tokens accepted.
    pub accepted: usize,
}

/// Proposals at first.
const FIRST: usize = 4;
/// Tokens by which a continuation is looked up, at most.
const LOOKUP: usize = 3;

/// What proposes tokens of one text, and what it keeps from one time to the next.
#[derive(Debug)]
pub(super) struct Drafter<'m> {
    source: Source<'m>,
    /// Tokens that are proposed next, at most.
    now: usize,
    most: usize,
}

#[derive(Debug)]
enum Source<'m> {
    Lookup,
    Model(Box<DraftModel<'m>>),
}

#[derive(Debug)]
struct DraftModel<'m> {
    model: &'m Model,
    pass: Pass<'m>,
    decoder: Decoder<'m>,
    /// The tokens that its cache holds.
    held: Vec<u32>,
    /// What proposals were drawn by, f32 (most, columns), where they are drawn; and for each the copy of its row there.
    drawn_by: Option<(Tensor, Vec<Rows>)>,
}

/// Proposed tokens.
pub(super) struct Proposal<'a> {
    tokens: Vec<u32>,
    /// The probabilities that they were drawn with, f32 (at least as many, columns), if they were.
    drawn_by: Option<&'a Tensor>,
}

impl<'m> Drafter<'m> {
    /// For texts of at most `capacity` tokens of which there are `columns`.
    pub(super) fn new(
        speculation: Speculation<'m>,
        pass: Pass<'m>,
        sampling: Sampling,
        (capacity, columns): (usize, usize),
    ) -> Result<Self> {
        let most = speculation.most.max(1);
        let source = match speculation.draft {
            Draft::Lookup => Source::Lookup,
            Draft::Model(model) => {
                let ensemble = Ensemble::from(model).limited(columns);
                let drawn_by = match sampling.is_greedy() {
                    true => None,
                    false => Some(room(&pass, most, ensemble.columns())?),
                };
                let caches = Caches::new(&ensemble, &pass, 1, capacity)?;
                let (device, columns) = (pass.device, ensemble.columns());
                let sampler = Sampler::for_kind(device, sampling, columns, &[&[]], "draft")?;
                let decoder = Decoder::sampling(ensemble, pass, caches, sampler, &[0])?;
                let held = Vec::new();
                Source::Model(Box::new(DraftModel { model, pass, decoder, held, drawn_by }))
            }
        };
        Ok(Self { source, now: FIRST.min(most), most })
    }

    /// At most so many tokens that may follow a text.
    fn propose(&mut self, text: &[u32], most: usize) -> Result<Proposal<'_>> {
        let most = most.min(self.now);
        match &mut self.source {
            Source::Lookup => Ok(Proposal { tokens: look_up(text, most), drawn_by: None }),
            Source::Model(draft) => draft.propose(text, most),
        }
    }

    /// More are proposed where all stayed, fewer where not (the schedule of transformers' assisted generation).
    fn learn(&mut self, drafted: usize, accepted: usize) {
        self.now = match drafted {
            0 => self.now,
            _ if accepted == drafted => (self.now + 2).min(self.most),
            _ => (self.now - 1).max(1),
        };
    }
}

/// Room for what proposals were drawn by, a row each.
fn room(pass: &Pass<'_>, most: usize, columns: usize) -> Result<(Tensor, Vec<Rows>)> {
    let store = pass.device.allocate(DType::F32, &[most, columns], "a draft's probabilities")?;
    let list = |row: usize| Rows::upload(pass.device, &[(0, row as u32)]);
    Ok((store, (0..most).map(list).collect::<Result<_>>()?))
}

/// What followed the last tokens of a text where they last stood before: of the longest run of up to [`LOOKUP`] that did.
fn look_up(text: &[u32], most: usize) -> Vec<u32> {
    for length in (1..=LOOKUP.min(text.len().saturating_sub(1))).rev() {
        let (before, last) = (&text[..text.len() - 1], &text[text.len() - length..]);
        if let Some(place) = before.windows(length).rposition(|window| window == last) {
            return text[place + length..].iter().copied().take(most).collect();
        }
    }
    Vec::new()
}

impl DraftModel<'_> {
    fn propose(&mut self, text: &[u32], most: usize) -> Result<Proposal<'_>> {
        // Beyond its context a draft knows nothing.
        let room = self.model.config().max_positions.saturating_sub(text.len());
        let most = most.min(room);
        if most == 0 {
            return Ok(Proposal { tokens: Vec::new(), drawn_by: None });
        }
        let (last, before) = text.split_last().expect("a text has a token");
        let same = self.held.iter().zip(before).take_while(|(held, new)| held == new).count();
        self.decoder.rewind(same)?;
        self.decoder.read(&before[same..])?;
        self.decoder.go_on(text, *last)?;
        let mut readings: Vec<Reading> = Vec::with_capacity(most);
        for place in 0..most {
            readings.push(self.decoder.step_later()?);
            if let (Some((store, lists)), Some(drawn)) = (&self.drawn_by, self.decoder.drawn_by()) {
                let columns = store.shape()[1];
                rows(self.pass.device, drawn, store, columns, &lists[place])?;
            }
        }
        let mut tokens = Vec::with_capacity(most);
        for reading in readings {
            let Chosen { token, lse } = Decoder::finish(&self.pass, reading)?[0];
            if !lse.is_finite() {
                let read = [text, &tokens].concat();
                let symptom = format!("the draft's logits of token {}", read.len());
                return Err(not_finite(self.model.into(), &self.pass, &read, symptom));
            }
            tokens.push(token);
        }
        self.held = [text, &tokens[..tokens.len() - 1]].concat();
        Ok(Proposal { tokens, drawn_by: self.drawn_by.as_ref().map(|(store, _)| store) })
    }
}

/// Tokens that a draft proposed and the models checked.
pub(super) struct Checked {
    /// Those that stay, and one more.
    pub(super) tokens: Vec<u32>,
    /// Whether the logits were finite.
    pub(super) finite: bool,
}

/// A round: proposals for what may follow a text, of at most so many tokens, and one pass of the models over them. `target` holds
/// all of the text but its last token, and afterwards all but the last of the text with the round's tokens.
pub(super) fn round(
    target: &mut Decoder<'_>,
    drafter: &mut Drafter<'_>,
    (pass, sampling): (&Pass<'_>, &Sampling),
    text: &[u32],
    (most, acceptance): (usize, &mut Acceptance),
) -> Result<Checked> {
    let last = *text.last().expect("a text has a token");
    let proposal = drafter.propose(text, most)?;
    acceptance.passes += 1;
    let count = proposal.tokens.len();
    if count == 0 {
        target.go_on(text, last)?;
        let reading = target.step_later()?;
        let Chosen { token, lse } = Decoder::finish(pass, reading)?[0];
        return Ok(Checked { tokens: vec![token], finite: lse.is_finite() });
    }
    let input = [&[last], &proposal.tokens[..]].concat();
    let logits = target.check(&input)?;
    let (device, rows) = (pass.device, input.len());
    penalize(pass, sampling, &logits, (text, &proposal.tokens))?;
    let (finite, accepted, next) = if sampling.is_greedy() {
        let best = argmax(device, &logits, rows)?;
        let (lse, _) = logsumexp(device, &logits, &best)?;
        let (lse, best) = (device.read_later(&lse)?, device.read_later(&best)?);
        let (lse, best) = (device.finish(lse)?, device.finish(best)?.words);
        let same = proposal.tokens.iter().zip(&best).take_while(|(drafted, best)| drafted == best);
        let accepted = same.count();
        (all_finite(&lse, accepted + 1), accepted, best[accepted])
    } else {
        let filters = vec![sampling.filter(); rows];
        let filters = Filters::upload(device, &filters, logits.len() / rows)?;
        let (likely, peaks) = probabilities(device, &logits, &filters)?;
        let tokens = device.upload(&HostTensor::from_u32(&[count], &proposal.tokens), "drafts")?;
        let drafted = Drafted { tokens: &tokens, count, by: proposal.drawn_by };
        let (place, seed) = (text.len() - 1, sampling.seed_of("accept"));
        let result = accept(device, &likely, drafted, place, seed)?;
        let (peaks, result) = (device.read_later(&peaks)?, device.read_later(&result)?);
        let (peaks, result) = (device.finish(peaks)?, device.finish(result)?.words);
        let accepted = result[0] as usize;
        (all_finite(&peaks, 2 * (accepted + 1)), accepted, result[1])
    };
    let mut tokens = proposal.tokens;
    tokens.truncate(accepted);
    tokens.push(next);
    target.rewind(text.len() + accepted)?;
    acceptance.drafted += count;
    acceptance.accepted += accepted;
    drafter.learn(count, accepted);
    Ok(Checked { tokens, finite })
}

/// Whether the first so many numbers are finite.
fn all_finite(numbers: &HostTensor, count: usize) -> bool {
    numbers.to_f32()[..count].iter().all(|number| number.is_finite())
}

/// The repetition penalty on the logits behind a text and each of its proposals, in place.
fn penalize(
    pass: &Pass<'_>,
    sampling: &Sampling,
    logits: &Tensor,
    (text, drafted): (&[u32], &[u32]),
) -> Result<()> {
    if sampling.repetition_penalty == 1.0 {
        return Ok(());
    }
    let whole = [text, drafted].concat();
    let texts: Vec<&[u32]> = (text.len()..=whole.len()).map(|length| &whole[..length]).collect();
    let last: Vec<u32> = whole[text.len() - 1..].to_vec();
    let sampler = Sampler::new(pass.device, *sampling, logits.shape()[1], &texts)?;
    let last = pass.device.upload(&HostTensor::from_u32(&[last.len()], &last), "tokens read")?;
    sampler.penalize(pass.device, logits, &last)
}
