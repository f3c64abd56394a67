//! Continuing a text, token by token, with key-value caches.

mod batch;
mod ensemble;
mod sampling;
mod speculative;

pub use batch::{Audience, Batch, Start};
pub use ensemble::{Caches, Ensemble, Steering};
pub use sampling::{Sampler, Sampling};
pub use speculative::{Acceptance, Draft, Speculation};

use std::time::Instant;

use self::speculative::{Checked, Drafter, round};
use super::decode::{Chosen, Decoder};
use crate::data::BETWEEN;
use crate::error::{Error, Result};
use crate::graph::Pass;
use crate::interrupt;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A token that ends texts.
    Token(u32),
    /// Whoever was told of the tokens had enough.
    Told,
    /// As many tokens as were asked for.
    Count,
}

/// How a generation went.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens; an end-of-text token is not among them.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub ending: Ending,
    /// Tokens of the prompt that a cache held already.
    pub reused: usize,
    /// What became of proposed tokens; all 0 where none were.
    pub acceptance: Acceptance,
    /// Seconds until the first new token.
    pub prompt_seconds: f64,
    /// Seconds for the others.
    pub seconds: f64,
}

/// Continues `prompt` by at most `count` tokens. `arrived` is told of each and says whether to go on; `ends` says which tokens
/// end the text.
pub fn generate<'m>(
    models: impl Into<Ensemble<'m>>,
    pass: &Pass<'m>,
    prompt: &[u32],
    count: usize,
    sampling: Sampling,
    ends: impl Fn(u32) -> bool,
    arrived: impl FnMut(u32) -> Result<bool>,
) -> Result<Generation> {
    let capacity = prompt.len() + count;
    Continuation::new(models.into(), *pass, sampling, capacity).run(prompt, count, ends, arrived)
}

/// Continues prompts of any lengths side by side, each by at most `count` tokens, as [`generate`] continues each alone; row r draws with
/// the seed plus r 2^32. `ends` is asked of each prompt's tokens in turn and says which is its last, which is not kept.
pub fn generate_batch<'m>(
    models: impl Into<Ensemble<'m>>,
    pass: &Pass<'m>,
    prompts: &[&[u32]],
    count: usize,
    sampling: Sampling,
    mut ends: impl FnMut(usize, u32) -> Result<bool>,
) -> Result<Vec<Vec<u32>>> {
    sampling.check()?;
    let (ensemble, device) = (models.into(), pass.device);
    let parts: Option<Vec<(&u32, &[u32])>> = prompts.iter().map(|p| p.split_last()).collect();
    let Some(parts) = parts.filter(|parts| !parts.is_empty()) else {
        return Err(Error::Argument {
            argument: "prompts".into(),
            expected: "at least one, and a token in each".into(),
            found: "none".into(),
        });
    };
    // Rows of one length: what a shorter one is filled up with is not seen by it, and is replaced when it goes on.
    let longest = parts.iter().map(|(_, before)| before.len()).max().unwrap_or(0);
    let mut caches = Caches::new(&ensemble, pass, prompts.len(), longest + count.max(1))?;
    if longest > 0 {
        let mut ids = Vec::with_capacity(prompts.len() * longest);
        for (row, (_, before)) in parts.iter().enumerate() {
            ensemble.check_tokens(before)?;
            ids.extend_from_slice(before);
            ids.resize((row + 1) * longest, 0);
        }
        caches.read(&ensemble, pass, &ids)?;
        let lengths: Vec<u32> = parts.iter().map(|(_, before)| before.len() as u32).collect();
        caches.hold(device, &lengths)?;
    }
    let next: Vec<u32> = parts.iter().map(|(last, _)| **last).collect();
    let texts: Vec<&[u32]> = prompts.iter().map(|prompt| own_text(prompt)).collect();
    let sampler = Sampler::new(device, sampling, ensemble.columns(), &texts)?;
    let mut decoder = Decoder::sampling(ensemble.clone(), *pass, caches, sampler, &next)?;
    let mut made = vec![Vec::new(); prompts.len()];
    let mut goes_on = vec![true; prompts.len()];
    decoder.run(count, &mut |chosen| {
        for (row, Chosen { token, lse }) in chosen.iter().enumerate() {
            if !goes_on[row] {
                continue;
            }
            if !lse.is_finite() {
                let text = [prompts[row], &made[row]].concat();
                let symptom = format!("logits of token {} of prompt {row}", text.len());
                return Err(ensemble.not_finite(pass, &text, symptom));
            }
            goes_on[row] = !ends(row, *token)?;
            if goes_on[row] {
                made[row].push(*token);
            }
        }
        Ok(goes_on.contains(&true))
    })?;
    Ok(made)
}

/// A text that is continued, and continued again after more was added: what caches hold of it is not read twice.
#[derive(Debug)]
pub struct Continuation<'m> {
    ensemble: Ensemble<'m>,
    pass: Pass<'m>,
    sampling: Sampling,
    capacity: usize,
    /// Tokens that the caches have room for.
    room: usize,
    speculation: Option<Speculation<'m>>,
    drafter: Option<Drafter<'m>>,
    caches: Option<Caches>,
    /// The tokens that the caches hold.
    held: Vec<u32>,
}

impl<'m> Continuation<'m> {
    /// Of texts of at most `capacity` tokens, new ones included. Caches are as large as texts so far, to a power of two.
    pub fn new(
        ensemble: Ensemble<'m>,
        pass: Pass<'m>,
        sampling: Sampling,
        capacity: usize,
    ) -> Self {
        let (speculation, drafter, caches, held) = (None, None, None, Vec::new());
        let room = 0;
        Self { ensemble, pass, sampling, capacity, room, speculation, drafter, caches, held }
    }

    /// The same with tokens proposed by something quicker.
    #[must_use]
    pub fn speculating(self, speculation: Option<Speculation<'m>>) -> Self {
        Self { speculation, ..self }
    }

    /// Continues `prompt` by at most `count` tokens, as [`generate`] does. If it begins as the text before went, that much of it is in
    /// the caches.
    pub fn run(
        &mut self,
        prompt: &[u32],
        count: usize,
        ends: impl Fn(u32) -> bool,
        mut arrived: impl FnMut(u32) -> Result<bool>,
    ) -> Result<Generation> {
        self.sampling.check()?;
        let Some((last, before)) = prompt.split_last() else {
            return Err(Error::Argument {
                argument: "prompt".into(),
                expected: "at least one token".into(),
                found: "none".into(),
            });
        };
        assert!(prompt.len() + count <= self.capacity, "a text fits its caches");
        let start = Instant::now();
        let (caches, reused) = self.read(before, prompt.len() + count)?;
        let generation = Generation {
            tokens: Vec::new(),
            ending: Ending::Count,
            reused,
            acceptance: Acceptance::default(),
            prompt_seconds: 0.0,
            seconds: 0.0,
        };
        let mut taking =
            Taking { prompt, count, start, ends: &ends, arrived: &mut arrived, generation };
        let (ensemble, pass) = (self.ensemble.clone(), self.pass);
        let own = own_text(prompt);
        let sampler = Sampler::new(pass.device, self.sampling, ensemble.columns(), &[own])?;
        let mut decoder = Decoder::sampling(ensemble, pass, caches, sampler, &[*last])?;
        let found = match self.speculation {
            None => self.decode(&mut decoder, &mut taking),
            Some(speculation) => self.speculate(speculation, &mut decoder, &mut taking),
        };
        let mut generation = taking.generation;
        self.keep(decoder.into_caches(), [prompt, &generation.tokens].concat())?;
        found?;
        generation.seconds = start.elapsed().as_secs_f64() - generation.prompt_seconds;
        Ok(generation)
    }

    /// A token a pass, several passes under way.
    fn decode(&self, decoder: &mut Decoder<'_>, taking: &mut Taking<'_>) -> Result<()> {
        decoder.run(taking.count, &mut |chosen| {
            let Chosen { token, lse } = chosen[0];
            if !lse.is_finite() {
                return Err(self.broken(&taking.text()));
            }
            taking.take(token)
        })
    }

    /// Several tokens a pass, those of proposals that stay.
    fn speculate(
        &mut self,
        speculation: Speculation<'m>,
        decoder: &mut Decoder<'_>,
        taking: &mut Taking<'_>,
    ) -> Result<()> {
        let mut drafter = match self.drafter.take() {
            Some(drafter) => drafter,
            None => {
                let size = (self.room, self.ensemble.columns());
                Drafter::new(speculation, self.pass, self.sampling, size)?
            }
        };
        while taking.left() > 0 {
            interrupt::check()?;
            let (text, how) = (taking.text(), (&self.pass, &self.sampling));
            let most = (taking.left() - 1, &mut taking.generation.acceptance);
            let Checked { tokens, finite } = round(decoder, &mut drafter, how, &text, most)?;
            if !finite {
                return Err(self.broken(&text));
            }
            for token in tokens {
                if !taking.take(token)? {
                    self.drafter = Some(drafter);
                    return Ok(());
                }
            }
        }
        self.drafter = Some(drafter);
        Ok(())
    }

    /// Why the logits behind a text are not finite.
    fn broken(&self, text: &[u32]) -> Error {
        self.ensemble.not_finite(&self.pass, text, format!("logits of token {}", text.len()))
    }

    /// Caches that hold a text and have room for so many tokens, and how many of the text's they held already.
    fn read(&mut self, text: &[u32], room: usize) -> Result<(Caches, usize)> {
        let (pass, ensemble) = (&self.pass, &self.ensemble);
        ensemble.check_tokens(text)?;
        if self.caches.is_none() {
            // Those that a failure took, if there were any.
            self.held.clear();
        }
        let same = self.held.iter().zip(text).take_while(|(held, new)| held == new).count();
        // A source is read as a whole, or not again.
        let source = text.len() - own_text(text).len();
        let same = if same < source { 0 } else { same };
        let mut caches = match self.caches.take() {
            Some(caches) if caches.capacity() >= room => caches,
            known => {
                self.room = room.next_power_of_two().min(self.capacity);
                self.drafter = None;
                match known {
                    Some(small) => small.grown(ensemble, pass, self.room, same)?,
                    None => Caches::new(ensemble, pass, 1, self.room)?,
                }
            }
        };
        caches.hold(pass.device, &[same as u32])?;
        if same < text.len() {
            caches.read(ensemble, pass, &text[same..])?;
        }
        Ok((caches, same))
    }

    /// Takes caches back. They hold the first tokens of a text; what was decoded ahead of it is cut off.
    fn keep(&mut self, mut caches: Caches, mut text: Vec<u32>) -> Result<()> {
        text.truncate(caches.lengths()[0] as usize);
        caches.hold(self.pass.device, &[text.len() as u32])?;
        (self.held, self.caches) = (text, Some(caches));
        Ok(())
    }
}

/// What of a prompt is the decoder's: all of it, but for a source in front.
fn own_text(prompt: &[u32]) -> &[u32] {
    let end = prompt.iter().rposition(|id| *id == BETWEEN).map_or(0, |last| last + 1);
    &prompt[end..]
}

/// Tokens as they arrive.
struct Taking<'a> {
    prompt: &'a [u32],
    count: usize,
    start: Instant,
    ends: &'a dyn Fn(u32) -> bool,
    arrived: &'a mut dyn FnMut(u32) -> Result<bool>,
    generation: Generation,
}

impl Taking<'_> {
    /// The prompt and all tokens so far.
    fn text(&self) -> Vec<u32> {
        [self.prompt, &self.generation.tokens].concat()
    }

    /// Tokens that may yet come.
    fn left(&self) -> usize {
        self.count - self.generation.tokens.len()
    }

    /// Takes a token; whether there may be more.
    fn take(&mut self, token: u32) -> Result<bool> {
        let Generation { tokens, ending, prompt_seconds, .. } = &mut self.generation;
        if *prompt_seconds == 0.0 {
            *prompt_seconds = self.start.elapsed().as_secs_f64();
        }
        if (self.ends)(token) {
            *ending = Ending::Token(token);
            return Ok(false);
        }
        tokens.push(token);
        if !(self.arrived)(token)? {
            *ending = Ending::Told;
            return Ok(false);
        }
        Ok(true)
    }
}
