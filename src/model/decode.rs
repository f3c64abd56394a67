//! Decoding: one token of every sequence at a time, each the likeliest. The calls of a token are the same each time, over the same
//! buffers: positions and tokens stand in buffers, too. So they are recorded once, until the cache's depth outgrows what they look at,
//! and then run again for a few calls of the driver each. Nothing is read back but the tokens, and those some steps late: the device
//! does not wait for the processor.

use std::collections::VecDeque;

use super::cache::Cache;
use super::resident::{Model, embed_ids};
use crate::device::{HostTensor, Reading, Recording, Tensor};
use crate::error::Result;
use crate::graph::Pass;
use crate::interrupt;
use crate::kernels::kv::advance::advance;
use crate::kernels::loss::peaks::peaks;
use crate::tensor::DType;

/// Steps that are under way before the first of them is read.
const AHEAD: usize = 4;

/// A batch of sequences that grow token by token.
#[derive(Debug)]
pub struct Decoder<'m> {
    model: &'m Model,
    pass: Pass<'m>,
    cache: Cache,
    /// What the next pass reads, u32 (sequences).
    ids: Tensor,
    /// The token chosen last, and its logits' log-sum-exp, f32 (sequences, 2).
    told: Tensor,
    /// A step, for caches that hold no more than so many tokens.
    recorded: Option<(usize, Recording)>,
}

/// What a step chose for a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The likeliest token.
    pub token: u32,
    /// The log-sum-exp of its logits; not finite where one of them is not.
    pub lse: f32,
}

impl<'m> Decoder<'m> {
    /// Goes on after what a cache holds. `next`: a token of each sequence that it does not hold yet.
    pub fn new(model: &'m Model, pass: Pass<'m>, cache: Cache, next: &[u32]) -> Result<Self> {
        assert_eq!(next.len(), cache.lengths().len(), "a token a sequence");
        let ids = pass.device.upload(&HostTensor::from_u32(&[next.len()], next), "token ids")?;
        let told = pass.device.allocate(DType::F32, &[next.len(), 2], "chosen tokens")?;
        Ok(Self { model, pass, cache, ids, told, recorded: None })
    }

    /// Dispatches of a step, as the last one was recorded; `None` where nothing is.
    pub fn dispatches(&self) -> Option<usize> {
        self.recorded.as_ref().map(|(_, recording)| recording.dispatches())
    }

    /// The cache, with all that was decoded.
    pub fn into_cache(self) -> Cache {
        self.cache
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
                self.step()?;
                under_way.push_back(self.pass.device.read_later(&self.told)?);
                made += 1;
            }
            if made < count && under_way.len() <= AHEAD {
                continue;
            }
            let Some(reading) = under_way.pop_front() else { return Ok(()) };
            let pairs = self.pass.device.finish(reading)?.to_f32();
            let told = |pair: &[f32]| Chosen { token: pair[0] as u32, lse: pair[1] };
            let chosen: Vec<Chosen> = pairs.chunks_exact(2).map(told).collect();
            if !see(&chosen)? {
                return Ok(());
            }
        }
    }

    /// One token of every sequence.
    fn step(&mut self) -> Result<()> {
        let bound = self.cache.bound(1);
        let device = self.pass.device;
        match &self.recorded {
            Some((of, recording)) if *of == bound => device.replay(recording)?,
            _ => {
                // The old one's buffers first, so that they are there for the new one.
                self.recorded = None;
                let ((), recording) = device.record(|| self.calls())?;
                self.recorded = recording.map(|recording| (bound, recording));
            }
        }
        self.cache.count(1);
        Ok(())
    }

    fn calls(&self) -> Result<()> {
        let (model, pass) = (self.model, &self.pass);
        let x = embed_ids(pass, model.config(), &model.embedding, &self.ids)?;
        model.through(pass, &x, &self.cache, &mut |_, _| Ok(()))?;
        let logits = model.head.logits_of(pass, &x)?;
        let peaks = peaks(pass.device, &logits, self.ids.len())?;
        advance(pass.device, &peaks, &self.ids, self.cache.past(), &self.told)
    }
}
