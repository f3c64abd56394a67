//! The thread that owns the device: lets requests into batches as there is room, and sends each its text.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::Served;
use super::answer::{Done, End, Piece};
use super::failure::Failure;
use super::metrics::{Metrics, Until};
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::interrupt;
use crate::model::{Audience, Batch, Sampling, Start};
use crate::text::{AnswerStream, StopStrings, Tokenizer};

/// How often one who has nothing to do looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);

/// A request on its way to a batch.
#[derive(Debug)]
pub(super) struct Job {
    /// Which model is to answer.
    pub(super) model: usize,
    pub(super) prompt: Vec<u32>,
    /// New tokens at most.
    pub(super) count: usize,
    pub(super) sampling: Sampling,
    pub(super) stops: StopStrings,
    /// Has room for a piece for each token, so that nobody waits for one who reads slowly. Closed where nobody listens any more.
    pub(super) pieces: Sender<Piece>,
    /// When it came.
    pub(super) since: Instant,
    /// Its place in the queue, which is free when this goes.
    pub(super) place: Place,
}

/// What gives a place in the queue back.
pub(super) type Place = tokio::sync::OwnedSemaphorePermit;

/// A model, its sequences and who waits for it.
struct Engine<'m, 't> {
    batch: Batch<'m>,
    waiting: VecDeque<Job>,
    talks: Talks<'t>,
}

/// The requests whose sequences are in a batch.
struct Talks<'t> {
    name: &'t str,
    tokenizer: &'t Tokenizer,
    metrics: &'t Metrics,
    open: HashMap<u64, Talk<'t>>,
}

/// A request whose sequence is in a batch.
struct Talk<'t> {
    pieces: Sender<Piece>,
    answer: AnswerStream<'t>,
    count: usize,
    tokens: usize,
    reused: usize,
    since: Instant,
}

/// Answers jobs until the user wants to stop or the device fails, and says so to all whose answers are not whole.
pub(super) fn work(
    models: &[Served<'_>],
    pass: Pass<'_>,
    (parallel, jobs, metrics): (usize, Receiver<Job>, &Metrics),
) -> Result<()> {
    let mut engines = Vec::with_capacity(models.len());
    for model in models {
        let mut batch = Batch::new(model.ensemble.clone(), pass, parallel, model.context)?;
        if pass.device.gpu().is_some() {
            // The first client need not wait for the driver's compiler.
            batch.warm()?;
        }
        let (name, tokenizer) = (model.name.as_str(), &*model.tokenizer);
        let talks = Talks { name, tokenizer, metrics, open: HashMap::new() };
        metrics.of_model(name, |_| {});
        engines.push(Engine { batch, waiting: VecDeque::new(), talks });
    }
    let mut next_id = 0;
    loop {
        let turn = take_jobs(&mut engines, &jobs)
            .and_then(|()| engines.iter_mut().try_for_each(|engine| engine.turn(&mut next_id)));
        if let Err(error) = turn {
            for job in jobs.try_iter() {
                let _ = job.pieces.try_send(Piece::Failed(Failure::of(&error)));
            }
            engines.iter_mut().for_each(|engine| engine.end(&error));
            return Err(error);
        }
    }
}

/// Takes the jobs that there are; where there is nothing else to do, waits for one.
fn take_jobs(engines: &mut [Engine<'_, '_>], jobs: &Receiver<Job>) -> Result<()> {
    let idle = engines.iter().all(|engine| engine.batch.is_empty() && engine.waiting.is_empty());
    let first = match jobs.recv_timeout(if idle { LOOK } else { Duration::ZERO }) {
        Ok(job) => Some(job),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            return Err(Error::Device {
                during: "serving".into(),
                reason: "the thread that has the connections ended".into(),
            });
        }
    };
    interrupt::check()?;
    for job in first.into_iter().chain(jobs.try_iter()) {
        engines[job.model].waiting.push_back(job);
    }
    Ok(())
}

impl Engine<'_, '_> {
    fn turn(&mut self, next_id: &mut u64) -> Result<()> {
        for id in self.talks.left() {
            self.batch.leave(id);
        }
        self.waiting.retain(|job| {
            let listens = !job.pieces.is_closed();
            if !listens {
                self.talks.metrics.of_model(self.talks.name, |m| m.ended("cancelled"));
            }
            listens
        });
        while self.batch.has_room() {
            let Some(job) = self.waiting.pop_front() else { break };
            *next_id += 1;
            let Job { prompt, count, sampling, stops, pieces, since, place, .. } = job;
            drop(place);
            let tokens = prompt.len() as u64;
            match self.batch.enter(Start { id: *next_id, prompt, count, sampling }) {
                Ok(()) => {}
                Err(error @ Error::Argument { .. }) => {
                    let _ = pieces.try_send(Piece::Failed(Failure::of(&error)));
                    continue;
                }
                Err(error) => {
                    let _ = pieces.try_send(Piece::Failed(Failure::of(&error)));
                    return Err(error);
                }
            }
            self.talks.metrics.of_model(self.talks.name, |m| m.prompt_tokens += tokens);
            let answer = AnswerStream::new(self.talks.tokenizer, stops);
            let talk = Talk { pieces, answer, count, tokens: 0, reused: 0, since };
            self.talks.open.insert(*next_id, talk);
        }
        let (waiting, running) = (self.waiting.len() as u64, self.batch.len() as u64);
        self.talks.metrics.of_model(self.talks.name, |m| {
            (m.waiting, m.running) = (waiting, running);
        });
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch.advance(&mut self.talks)
    }

    fn end(&mut self, error: &Error) {
        let waiting = self.waiting.drain(..).map(|job| job.pieces);
        let running = self.talks.open.drain().map(|(_, talk)| talk.pieces);
        for pieces in waiting.chain(running) {
            let _ = pieces.try_send(Piece::Failed(Failure::of(error)));
        }
    }
}

impl<'t> Talks<'t> {
    /// Those that nobody listens to any more, which are closed.
    fn left(&mut self) -> Vec<u64> {
        let closed = |(id, talk): (&u64, &Talk<'_>)| talk.pieces.is_closed().then_some(*id);
        let left: Vec<u64> = self.open.iter().filter_map(closed).collect();
        left.iter().for_each(|id| drop(self.close(*id, "cancelled")));
        left
    }

    fn close(&mut self, id: u64, why: &'static str) -> Option<Talk<'t>> {
        let talk = self.open.remove(&id)?;
        self.metrics.of_model(self.name, |m| {
            m.ended(why);
            m.passed(Until::End, talk.since.elapsed());
        });
        Some(talk)
    }

    /// Sends what was held back, and how it ended.
    fn finish(&mut self, id: u64, end: End) -> Result<()> {
        let Some(talk) = self.close(id, end.name()) else { return Ok(()) };
        let rest = talk.answer.finish()?.0;
        if !rest.is_empty() {
            let _ = talk.pieces.try_send(Piece::Text(rest));
        }
        let done = Done { end, tokens: talk.tokens, reused: talk.reused };
        let _ = talk.pieces.try_send(Piece::Done(done));
        Ok(())
    }
}

impl Audience for Talks<'_> {
    fn entered(&mut self, id: u64, reused: usize) {
        let Some(talk) = self.open.get_mut(&id) else { return };
        talk.reused = reused;
        self.metrics.of_model(self.name, |m| {
            m.reused_tokens += reused as u64;
            m.passed(Until::Entered, talk.since.elapsed());
        });
    }

    fn token(&mut self, id: u64, token: u32) -> Result<bool> {
        let Some(talk) = self.open.get_mut(&id) else { return Ok(false) };
        if talk.tokens == 0 {
            let time = talk.since.elapsed();
            self.metrics.of_model(self.name, |m| m.passed(Until::FirstToken, time));
        }
        if self.tokenizer.is_eos(token) {
            self.finish(id, End::Stop)?;
            return Ok(false);
        }
        talk.tokens += 1;
        self.metrics.of_model(self.name, |m| m.new_tokens += 1);
        let text = talk.answer.push(token)?;
        let heard = text.is_empty() || talk.pieces.try_send(Piece::Text(text)).is_ok();
        let end = match talk.answer.stopped() {
            true => Some(End::Stop),
            false => (talk.tokens == talk.count).then_some(End::Length),
        };
        match (heard, end) {
            (false, _) => drop(self.close(id, "cancelled")),
            (true, Some(end)) => self.finish(id, end)?,
            (true, None) => return Ok(true),
        }
        Ok(false)
    }

    fn failed(&mut self, id: u64, error: Error) {
        tracing::warn!("a request to {} failed: {error}", self.name);
        if let Some(talk) = self.close(id, "failed") {
            let _ = talk.pieces.try_send(Piece::Failed(Failure::of(&error)));
        }
    }
}
