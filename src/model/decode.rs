//! Decoding: one token of every sequence at a time. The calls of a token are the same each time, over the same
//! buffers: positions and tokens stand in buffers, too. So they are recorded once, until the cache's depth outgrows what they look at,
//! and then run again for a few calls of the driver each. Nothing is read back but the tokens, and those some steps late: the device
//! does not wait for the processor.

use std::collections::VecDeque;

use super::cache::Cache;
use super::generate::{Caches, Ensemble, Sampler, Sampling};
use super::resident::Model;
use crate::device::{HostTensor, Reading, Recording, Tensor};
use crate::error::Result;
use crate::graph::{Pass, ROUTED_WITHOUT_READING};
use crate::interrupt;
use crate::kernels::kv::advance::advance;
use crate::tensor::DType;

/// Steps that are under way before the first of them is read.
pub(super) const AHEAD: usize = 4;

/// A batch of sequences that grow token by token.
#[derive(Debug)]
pub struct Decoder<'m> {
    ensemble: Ensemble<'m>,
    pass: Pass<'m>,
    caches: Caches,
    sampler: Sampler,
    /// What the next pass reads, u32 (sequences).
    ids: Tensor,
    /// The token chosen last, and its logits' log-sum-exp, f32 (sequences, 2).
    told: Tensor,
    /// What the token chosen last was drawn by, f32 (sequences, columns), if it was.
    drawn_by: Option<Tensor>,
    /// A step, for caches that hold no more than so many tokens.
    recorded: Option<(usize, Recording)>,
}

/// What a step chose for a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The token.
    pub token: u32,
    /// The log-sum-exp of its logits, over the temperature; not finite where one of them is not.
    pub lse: f32,
}

impl<'m> Decoder<'m> {
    /// Goes on greedily after what a cache holds. `next`: a token of each sequence that it does not hold yet.
    pub fn new(model: &'m Model, pass: Pass<'m>, cache: Cache, next: &[u32]) -> Result<Self> {
        let ensemble = Ensemble::from(model);
        let texts: Vec<&[u32]> = next.chunks_exact(1).collect();
        let sampler = Sampler::new(pass.device, Sampling::GREEDY, ensemble.columns(), &texts)?;
        Self::sampling(ensemble, pass, cache.into(), sampler, next)
    }

    /// Goes on after what caches hold, by tokens that a sampler chooses.
    pub fn sampling(
        ensemble: Ensemble<'m>,
        pass: Pass<'m>,
        caches: Caches,
        sampler: Sampler,
        next: &[u32],
    ) -> Result<Self> {
        assert_eq!(next.len(), caches.lengths().len(), "a token a sequence");
        ensemble.check_tokens(next)?;
        let ids = pass.device.upload(&HostTensor::from_u32(&[next.len()], next), "token ids")?;
        let told = pass.device.allocate(DType::F32, &[next.len(), 2], "chosen tokens")?;
        let (drawn_by, recorded) = (None, None);
        Ok(Self { ensemble, pass, caches, sampler, ids, told, drawn_by, recorded })
    }

    /// Dispatches of a step, as the last one was recorded; `None` where nothing is.
    pub fn dispatches(&self) -> Option<usize> {
        self.recorded.as_ref().map(|(_, recording)| recording.dispatches())
    }

    /// The base's cache, with all that was decoded.
    pub fn into_cache(self) -> Cache {
        self.caches.into_first()
    }

    /// The caches, with all that was decoded.
    pub fn into_caches(self) -> Caches {
        self.caches
    }

    /// `count` steps. `see` is shown what each chose, sequence by sequence, and says whether to go on; a few more steps may have been
    /// made then.
    pub fn run(
        &mut self,
        count: usize,
        see: &mut dyn FnMut(&[Chosen]) -> Result<bool>,
    ) -> Result<()> {
        let (mut under_way, mut made) = (VecDeque::<Reading>::new(), 0);
        loop {
            interrupt::check()?;
            if made < count {
                under_way.push_back(self.step_later()?);
                made += 1;
            }
            if made < count && under_way.len() <= AHEAD {
                continue;
            }
            let Some(reading) = under_way.pop_front() else { return Ok(()) };
            if !see(&Self::finish(&self.pass, reading)?)? {
                return Ok(());
            }
        }
    }

    /// A step whose tokens are being read back.
    pub(super) fn step_later(&mut self) -> Result<Reading> {
        self.step()?;
        self.pass.device.read_later(&self.told)
    }

    /// What a step chose, once it is there.
    pub(super) fn finish(pass: &Pass<'_>, reading: Reading) -> Result<Vec<Chosen>> {
        let pairs = pass.device.finish(reading)?.to_f32();
        let told = |pair: &[f32]| Chosen { token: pair[0] as u32, lse: pair[1] };
        Ok(pairs.chunks_exact(2).map(told).collect())
    }

    /// What the last step drew its tokens by, f32 (sequences, columns), if it drew.
    pub(super) fn drawn_by(&self) -> Option<&Tensor> {
        self.drawn_by.as_ref()
    }

    /// Cuts the one sequence back to its first `length` tokens.
    pub(super) fn rewind(&mut self, length: usize) -> Result<()> {
        self.caches.hold(self.pass.device, &[length as u32])
    }

    /// Reads tokens behind those that the caches hold, and chooses none.
    pub(super) fn read(&mut self, tokens: &[u32]) -> Result<()> {
        match tokens {
            [] => Ok(()),
            tokens => self.caches.read(&self.ensemble, &self.pass, tokens),
        }
    }

    /// Takes the last token of the one sequence, `text` with it, to be read next.
    pub(super) fn go_on(&mut self, text: &[u32], last: u32) -> Result<()> {
        self.sampler.see(self.pass.device, &[text])?;
        self.pass.device.write(&self.ids, &[last])
    }

    /// The logits behind each of some tokens, which are read after those that the caches hold, f32 (tokens, columns).
    pub(super) fn check(&mut self, tokens: &[u32]) -> Result<Tensor> {
        let ids = HostTensor::from_u32(&[tokens.len()], tokens);
        let ids = self.pass.device.upload(&ids, "token ids")?;
        self.ensemble.check_tokens(tokens)?;
        let logits = self.ensemble.logits(&self.pass, &ids, &self.caches)?;
        self.caches.count(tokens.len());
        Ok(logits)
    }

    /// One token of every sequence.
    fn step(&mut self) -> Result<()> {
        let bound = self.caches.bound(1);
        let device = self.pass.device;
        match &self.recorded {
            Some((of, recording)) if *of == bound => device.replay(recording)?,
            _ if !self.is_recordable() => self.drawn_by = self.calls()?,
            _ => {
                // The old one's buffers first, so that they are there for the new one.
                (self.recorded, self.drawn_by) = (None, None);
                let (drawn_by, recording) = device.record(|| self.calls())?;
                self.recorded = recording.map(|recording| (bound, recording));
                self.drawn_by = drawn_by;
            }
        }
        self.caches.count(1);
        Ok(())
    }

    /// Whether the calls of a step are the same each time. Where many tokens go to experts of their own, or experts are copied to the
    /// device, they are not: the processor reads which tokens an expert has, and calls accordingly.
    fn is_recordable(&self) -> bool {
        let few = self.ids.len() <= ROUTED_WITHOUT_READING;
        !self.ensemble.models().any(|model| {
            let reads = !few || model.streamed_experts().is_some();
            reads && model.config().experts.is_some()
        })
    }

    /// The calls of a step; what its tokens were drawn by.
    fn calls(&self) -> Result<Option<Tensor>> {
        let (pass, past) = (&self.pass, self.caches.past());
        let logits = self.ensemble.logits(pass, &self.ids, &self.caches)?;
        let choice = self.sampler.choose(pass.device, &logits, &self.ids, past)?;
        advance(pass.device, &choice.peaks, &self.ids, past, &self.told)?;
        Ok(choice.drawn_by)
    }
}
