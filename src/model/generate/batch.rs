//! Sequences that come and go while others run (continuous batching; Yu et al. 2022, "Orca", OSDI): each has its own length, its own way
//! of choosing tokens, and its own end.
//!
//! A sequence has a slot of the caches from when its prompt was read until it leaves. Slots are rows of every step, as far as the highest
//! one in use; a free one between them computes what nobody sees. Whenever a sequence comes or goes the steps under way are waited for,
//! and the next step is one of the new rows: nothing is copied but the prompt of who comes.

use std::collections::VecDeque;

use super::ensemble::{Caches, Ensemble};
use super::sampling::{Sampler, Sampling};
use crate::device::Reading;
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::interrupt;
use crate::model::decode::{AHEAD, Chosen, Decoder};

/// Tokens of a prompt that are read between two steps of the others.
const PROMPT_PART: usize = 512;

/// Tokens of the prompt that a batch is warmed with: as many as most kernels for prompts are for.
const WARMING: usize = 64;

/// A batch that sequences enter and leave.
#[derive(Debug)]
pub struct Batch<'m> {
    ensemble: Ensemble<'m>,
    pass: Pass<'m>,
    /// Of all slots.
    caches: Caches,
    slots: Vec<Option<Sequence>>,
    entering: Option<Entering>,
    /// A prompt while it is read, and the one before it until then.
    prompt: Caches,
    /// The tokens that `prompt` holds.
    held: Vec<u32>,
    /// Of the rows as they are; none where they changed.
    decoder: Option<Decoder<'m>>,
    /// Steps that were not read back, the oldest first.
    under_way: VecDeque<Reading>,
    /// Whether a row is not what `decoder` takes it for.
    changed: bool,
}

/// A text that is to be continued.
#[derive(Clone, Debug)]
pub struct Start {
    /// What it is told of by.
    pub id: u64,
    /// Its tokens, one at least.
    pub prompt: Vec<u32>,
    /// New tokens at most, one at least; with the prompt no more than a slot holds.
    pub count: usize,
    /// How they are chosen.
    pub sampling: Sampling,
}

/// A sequence in a slot.
#[derive(Debug)]
struct Sequence {
    id: u64,
    text: Vec<u32>,
    /// Tokens that may yet come.
    left: usize,
    sampling: Sampling,
}

/// A sequence whose prompt is being read.
#[derive(Debug)]
struct Entering {
    slot: usize,
    /// Tokens of its prompt that were known.
    reused: usize,
    start: Start,
}

/// What is told of sequences: of a token whether there may be more; and why a sequence ended that had to.
pub trait Audience {
    /// A sequence's prompt was read, so much of it out of what was known already.
    fn entered(&mut self, id: u64, reused: usize);
    /// A token of a sequence; whether it goes on.
    fn token(&mut self, id: u64, token: u32) -> Result<bool>;
    /// A sequence is gone, since this happened to it alone.
    fn failed(&mut self, id: u64, error: Error);
}

/// Who hears of nothing.
struct Nobody;

impl Audience for Nobody {
    fn entered(&mut self, _: u64, _: usize) {}

    fn token(&mut self, _: u64, _: u32) -> Result<bool> {
        Ok(true)
    }

    fn failed(&mut self, _: u64, _: Error) {}
}

impl<'m> Batch<'m> {
    /// Room for so many `sequences` of at most `capacity` tokens each.
    ///
    /// Errors: a model with an encoder; memory.
    pub fn new(
        ensemble: Ensemble<'m>,
        pass: Pass<'m>,
        sequences: usize,
        capacity: usize,
    ) -> Result<Self> {
        for model in ensemble.models() {
            let why = "sequences that enter one by one are one text each";
            model.config().without_encoder("a batch that sequences enter", why)?;
            model.config().foretells("a batch that sequences enter")?;
        }
        let caches = Caches::new(&ensemble, &pass, sequences, capacity)?;
        let prompt = Caches::new(&ensemble, &pass, 1, capacity)?;
        Ok(Self {
            ensemble,
            pass,
            caches,
            slots: (0..sequences).map(|_| None).collect(),
            entering: None,
            prompt,
            held: Vec::new(),
            decoder: None,
            under_way: VecDeque::new(),
            changed: false,
        })
    }

    /// Makes what the first sequence would wait for, as pipelines are: a short text goes through an empty batch, and nobody is told.
    ///
    /// Errors: the device's.
    pub fn warm(&mut self) -> Result<()> {
        assert!(self.is_empty(), "only an empty batch is warmed");
        let tokens = WARMING.min(self.caches.capacity().saturating_sub(2));
        if tokens > 0 {
            let (prompt, sampling) = (vec![0; tokens], Sampling::GREEDY);
            self.enter(Start { id: 0, prompt, count: 2, sampling })?;
            while !self.is_empty() {
                self.advance(&mut Nobody)?;
            }
            self.settle(&mut Nobody)?;
            // Of the next prompt nothing is known.
            self.held.clear();
        }
        Ok(())
    }

    /// Whether a sequence may enter now.
    pub fn has_room(&self) -> bool {
        self.entering.is_none() && self.slots.iter().any(Option::is_none)
    }

    /// Sequences that are here, one that enters included.
    pub fn len(&self) -> usize {
        self.slots.iter().flatten().count() + usize::from(self.entering.is_some())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets a sequence in; there is room. Its prompt is read by the next turns.
    ///
    /// Errors: settings or tokens that cannot be, and more of them than a slot holds, which leave the batch as it was; the device's.
    pub fn enter(&mut self, start: Start) -> Result<()> {
        start.sampling.check()?;
        self.ensemble.check_tokens(&start.prompt)?;
        let (tokens, capacity) = (start.prompt.len() + start.count, self.caches.capacity());
        if start.prompt.is_empty() || start.count == 0 || tokens > capacity {
            return Err(Error::Argument {
                argument: "prompt".into(),
                expected: format!("1 token or more, and with new ones {capacity} at most"),
                found: format!("{} and {} new ones", start.prompt.len(), start.count),
            });
        }
        let slot = self.slots.iter().position(Option::is_none);
        let slot = slot.filter(|_| self.entering.is_none()).expect("there is room");
        let before = &start.prompt[..start.prompt.len() - 1];
        let same = self.held.iter().zip(before).take_while(|(held, new)| held == new).count();
        self.prompt.hold(self.pass.device, &[same as u32])?;
        self.held.truncate(same);
        self.entering = Some(Entering { slot, reused: same, start });
        Ok(())
    }

    /// Takes a sequence out, wherever it is.
    pub fn leave(&mut self, id: u64) {
        if self.entering.as_ref().is_some_and(|entering| entering.start.id == id) {
            self.entering = None;
        }
        for slot in &mut self.slots {
            if slot.take_if(|sequence| sequence.id == id).is_some() {
                self.changed = true;
            }
        }
    }

    /// A turn: some of a prompt is read, and every sequence goes on by a token, of which the audience may be told a few turns later.
    ///
    /// Errors: what ends all, as of the device. What concerns one sequence is told of it.
    pub fn advance(&mut self, audience: &mut dyn Audience) -> Result<()> {
        interrupt::check()?;
        self.read_on(audience)?;
        if self.changed {
            self.settle(audience)?;
        }
        if self.slots.iter().all(Option::is_none) {
            return Ok(());
        }
        if self.decoder.is_none() {
            self.decoder = Some(self.decoder_of_rows()?);
        }
        let decoder = self.decoder.as_mut().expect("it was just made");
        // Not beyond the last token of any.
        let left = self.slots.iter().flatten().map(|sequence| sequence.left).min().unwrap_or(0);
        // A processor computes a step before it returns; more of them would come for nothing.
        let ahead = if self.pass.device.gpu().is_some() { AHEAD } else { 0 };
        let more = self.under_way.len() < left;
        if more {
            self.under_way.push_back(decoder.step_later()?);
        }
        if !more || self.under_way.len() > ahead {
            self.take_step(audience)?;
        }
        Ok(())
    }

    /// Reads some of the prompt of who enters; with its last token but one it has its slot.
    fn read_on(&mut self, audience: &mut dyn Audience) -> Result<()> {
        let Some(entering) = self.entering.take() else { return Ok(()) };
        let Entering { slot, reused, ref start } = entering;
        let before = &start.prompt[..start.prompt.len() - 1];
        // What fails leaves nothing that is known to be held.
        let held = std::mem::take(&mut self.held);
        let part = &before[held.len()..before.len().min(held.len() + PROMPT_PART)];
        let read = match part {
            [] => Ok(()),
            part => self.prompt.read(&self.ensemble, &self.pass, part),
        };
        let whole = held.len() + part.len() == before.len();
        let read = read.and_then(|()| match whole {
            false => Ok(()),
            true => {
                // Steps under way may still write to the slot.
                self.settle(audience)?;
                let from = (&self.prompt, before.len());
                self.caches.put(&self.ensemble, &self.pass, slot, from)
            }
        });
        match read {
            Ok(()) => self.held = [&held, part].concat(),
            Err(error @ Error::OutOfMemory { .. }) => {
                audience.failed(start.id, error);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        if !whole {
            self.entering = Some(entering);
            return Ok(());
        }
        audience.entered(start.id, reused);
        let Start { id, prompt, count, sampling } = entering.start;
        self.slots[slot] = Some(Sequence { id, text: prompt, left: count, sampling });
        self.changed = true;
        Ok(())
    }

    /// Waits for the steps under way, and forgets what rows were.
    fn settle(&mut self, audience: &mut dyn Audience) -> Result<()> {
        while !self.under_way.is_empty() {
            self.take_step(audience)?;
        }
        self.decoder = None;
        self.changed = false;
        Ok(())
    }

    /// Tells of the oldest step under way.
    fn take_step(&mut self, audience: &mut dyn Audience) -> Result<()> {
        let Some(reading) = self.under_way.pop_front() else { return Ok(()) };
        let chosen = Decoder::finish(&self.pass, reading)?;
        for (slot, Chosen { token, lse }) in self.slots.iter_mut().zip(chosen) {
            let Some(sequence) = slot else { continue };
            let goes_on = if lse.is_finite() {
                sequence.text.push(token);
                sequence.left -= 1;
                audience.token(sequence.id, token)? && sequence.left > 0
            } else {
                let symptom = format!("logits of token {}", sequence.text.len());
                let error = self.ensemble.not_finite(&self.pass, &sequence.text, symptom);
                audience.failed(sequence.id, error);
                false
            };
            if !goes_on {
                *slot = None;
                self.changed = true;
            }
        }
        Ok(())
    }

    /// A decoder whose rows are the slots up to the last one in use. A free one begins an empty text.
    fn decoder_of_rows(&self) -> Result<Decoder<'m>> {
        let rows = self.slots.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let rows = &self.slots[..rows];
        let texts: Vec<&[u32]> =
            rows.iter().map(|row| row.as_ref().map_or(&[][..], |s| &s.text)).collect();
        let samplings: Vec<Sampling> =
            rows.iter().map(|row| row.as_ref().map_or(Sampling::GREEDY, |s| s.sampling)).collect();
        let lengths: Vec<u32> =
            texts.iter().map(|text| text.len().saturating_sub(1) as u32).collect();
        let next: Vec<u32> = texts.iter().map(|text| text.last().copied().unwrap_or(0)).collect();
        let (ensemble, device) = (self.ensemble.clone(), self.pass.device);
        let caches = self.caches.leading(device, &lengths)?;
        let sampler = Sampler::each(device, &samplings, ensemble.columns(), &texts)?;
        Decoder::sampling(ensemble, self.pass, caches, sampler, &next)
    }
}
