//! The loop: batches in their order, steps, looks at what is held out, checkpoints.
//!
//! A course is continued exactly: a checkpoint has what is learned, the optimizer's state, the place in the data and what was
//! told so far, and everything random follows from the seed and the step. Outcomes are read a fixed number of steps late, so
//! that the device never waits and a factor of the loss changes at the same step every time.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::hidden::Pairs;
use super::learner::{
    HeldOut, Learner, Outcome, Step, StepOptions, held_out as measured, scored_places,
};
use super::settings::Settings;
use super::teacher::TeacherModel;
use crate::data::training::{Batch, Examples, Position};
use crate::device::Tensor;
use crate::disk::write_record;
use crate::error::{Error, Result};
use crate::formats::Source;
use crate::formats::safetensors::{NewTensor, Safetensors, write_file};
use crate::graph::Pass;
use crate::interrupt;
use crate::model::{Divergence, HiddenLoss, Teacher};
use crate::tensor::DType;

/// Steps whose outcome is on its way while the next is made.
const LATE: usize = 2;
/// In a row, steps that are not finite and change nothing, before a course is given up. In f16 the loss's factor is halved
/// each time.
const MOST_LOST: u64 = 24;
/// Steps after which the factor of the loss is doubled again, as PyTorch's scaler has it tenfold.
const STEPS_TO_GROW: u64 = 200;

/// What a step makes small.
#[derive(Clone, Copy, Debug)]
pub struct Aim<'a> {
    /// The factor of the cross-entropy of next tokens.
    pub next_tokens: f32,
    /// A teacher to be near to.
    pub teacher: Option<Near<'a>>,
    /// The factor of the load-balancing loss of experts.
    pub balance: f32,
}

/// A teacher to be near to.
#[derive(Clone, Copy, Debug)]
pub struct Near<'a> {
    /// The teacher.
    pub teacher: &'a TeacherModel,
    /// How far from it the model is.
    pub divergence: Divergence,
    /// Logits of both are divided by this.
    pub temperature: f32,
    /// The factor of the divergence.
    pub weight: f32,
    /// Hidden states that are to be near too.
    pub hidden: Option<Hidden<'a>>,
}

/// Hidden states that are to be near to a teacher's.
#[derive(Clone, Copy, Debug)]
pub struct Hidden<'a> {
    /// Which of them.
    pub pairs: &'a Pairs,
    /// The factor of how far they are.
    pub weight: f32,
}

/// A training.
#[derive(Debug)]
pub struct Course<'a> {
    /// How long and how fast.
    pub settings: &'a Settings,
    /// The rate where none is asked for.
    pub usual_rate: f64,
    /// What is learned from.
    pub examples: &'a Examples,
    /// What is made small.
    pub aim: Aim<'a>,
    /// Where and in what it computes.
    pub pass: Pass<'a>,
    /// Of everything random.
    pub seed: u64,
    /// Where checkpoints are kept.
    pub folder: &'a Path,
}

/// A step as it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub step: u64,
    /// Tokens up to it.
    pub tokens: u64,
    /// The mean loss before it.
    pub loss: f64,
    /// The load-balancing loss of experts, which is a part of that but for its factor: the experts of a token, if all are used alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance: Option<f64>,
    /// The rate.
    pub rate: f64,
    /// The norm of all gradients.
    pub norm: f64,
    /// Since the beginning, of all runs together.
    pub seconds: f64,
}

/// A look at what is held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// After so many steps.
    pub step: u64,
    /// Tokens of training up to it.
    pub tokens: u64,
    /// The mean loss: the cross-entropy of next tokens, or that of scores.
    pub loss: f64,
    /// Of scores, the share of pairs, or of texts, that are told right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// What a course came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Every step.
    pub steps: Vec<Record>,
    /// Every look.
    pub looks: Vec<Look>,
    /// Tokens of what is held out that are scored; of scores, pairs or texts.
    pub held_out_tokens: usize,
    /// Steps that were not finite and changed nothing.
    pub lost: u64,
    /// The step whose weights were taken, where that is not the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<u64>,
}

/// A checkpoint, beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// The file of tensors.
    tensors: String,
    steps: u64,
    position: Position,
    scale: Option<f32>,
    since_lost: u64,
    lost_in_a_row: u64,
    seconds: f64,
    done: bool,
    told: Told,
}

const STATE: &str = "state.json";
const BEST: &str = "best.safetensors";

/// How a course stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Steps made, of all.
    pub step: u64,
    /// All.
    pub steps: u64,
    /// The last loss that is known.
    pub loss: Option<f64>,
    /// The last load-balancing loss.
    pub balance: Option<f64>,
    /// The rate.
    pub rate: f64,
    /// Tokens a second since this run began.
    pub tokens_per_second: f64,
    /// The last look's loss.
    pub held_out: Option<f64>,
    /// And its accuracy.
    pub accuracy: Option<f64>,
    /// Most bytes of device buffers in use so far, of a GPU.
    pub memory: Option<u64>,
}

/// As short as a line of a terminal asks for, which has count and time behind it.
impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(loss) = self.loss {
            write!(f, "loss {loss:.3} ")?;
        }
        if let Some(balance) = self.balance {
            write!(f, "balance {balance:.2} ")?;
        }
        if let Some(loss) = self.held_out {
            write!(f, "held out {loss:.3} ")?;
        }
        if let Some(accuracy) = self.accuracy {
            write!(f, "{:.1} % right ", 100.0 * accuracy)?;
        }
        write!(f, "lr {:.1e} ", self.rate)?;
        match self.tokens_per_second {
            speed if speed < 1e3 => write!(f, "{speed:.0} tok/s")?,
            speed if speed < 1e4 => write!(f, "{:.1}k tok/s", speed / 1e3)?,
            speed => write!(f, "{:.0}k tok/s", speed / 1e3)?,
        }
        match self.memory {
            None => Ok(()),
            Some(bytes) if bytes < 1_000_000_000 => write!(f, " {} MB", bytes / 1_000_000),
            Some(bytes) => write!(f, " {:.1} GB", bytes as f64 / 1e9),
        }
    }
}

/// The part of a course that changes.
struct State {
    position: Position,
    told: Told,
    since_lost: u64,
    lost_in_a_row: u64,
    pending: VecDeque<(Record, Step)>,
    seconds: f64,
    began: Instant,
}

impl Course<'_> {
    /// Trains, from the last checkpoint in the folder if there is one. In the end the learner has what the course came to.
    pub fn run(
        &self,
        learner: &mut Learner,
        progress: &mut dyn FnMut(&Standing) -> Result<()>,
    ) -> Result<Told> {
        let length = self.length();
        let steps = self.settings.all_steps(self.examples.rows_per_epoch(), length);
        let schedule = self.settings.schedule(steps, self.usual_rate);
        std::fs::create_dir_all(self.folder).map_err(Error::write(self.folder))?;
        let held_out = self.examples.held_out(self.rows_at_once());
        let look_every = self.settings.evaluate_every.unwrap_or(steps.div_ceil(10).max(1));
        let mut state = match self.resume(learner)? {
            Some((_, told, true)) => return Ok(told),
            Some((state, _, false)) => state,
            None => State {
                position: self.examples.start(),
                told: Told::default(),
                since_lost: 0,
                lost_in_a_row: 0,
                pending: VecDeque::new(),
                seconds: 0.0,
                began: Instant::now(),
            },
        };
        let first = learner.steps();
        let rows = self.settings.batch;
        if learner.steps() == 0 && state.told.looks.is_empty() {
            self.look(learner, &held_out, &mut state)?;
        }
        while learner.steps() < steps {
            interrupt::check()?;
            let number = learner.steps();
            let (batch, position) = self.examples.batch(&state.position, rows)?;
            let rate = schedule.rate(number);
            let step = self.step(learner, (&batch, &state.position), rate, number)?;
            state.position = position;
            let tokens = (number + 1) * (rows * length) as u64;
            let record = Record {
                step: number + 1,
                tokens,
                loss: 0.0,
                balance: None,
                rate,
                norm: 0.0,
                seconds: 0.0,
            };
            state.pending.push_back((record, step));
            if state.pending.len() > LATE {
                self.settle(learner, &mut state)?;
            }
            let done = learner.steps();
            let taken = ((done - first) * (rows * length) as u64) as f64;
            progress(&Standing {
                step: done,
                steps,
                loss: state.told.steps.last().map(|record| record.loss),
                balance: state.told.steps.last().and_then(|record| record.balance),
                rate,
                tokens_per_second: taken / state.began.elapsed().as_secs_f64().max(1e-9),
                held_out: state.told.looks.last().map(|look| look.loss),
                accuracy: state.told.looks.last().and_then(|look| look.accuracy),
                memory: self.pass.device.gpu().map(|gpu| gpu.memory().1),
            })?;
            let end = done == steps;
            if done.is_multiple_of(look_every) || end {
                self.settle_all(learner, &mut state)?;
                if self.look(learner, &held_out, &mut state)? && !end {
                    self.finish(learner, &mut state)?;
                    return Ok(state.told);
                }
            }
            if done.is_multiple_of(self.settings.checkpoint_every) && !end {
                self.settle_all(learner, &mut state)?;
                self.save(learner, &state, false)?;
            }
        }
        self.finish(learner, &mut state)?;
        Ok(state.told)
    }

    /// Whether there is a checkpoint that it goes on from.
    pub fn has_begun(&self) -> bool {
        self.folder.join(STATE).exists()
    }

    /// Tokens of a row.
    fn length(&self) -> usize {
        self.examples.tokens_per_epoch() / self.examples.rows_per_epoch().max(1)
    }

    /// Rows that are evaluated at once.
    fn rows_at_once(&self) -> usize {
        (self.settings.tokens_at_once() / self.length().max(1)).max(1)
    }

    /// A step on a batch, which is what stands behind that position.
    fn step(
        &self,
        learner: &mut Learner,
        (batch, position): (&Batch, &Position),
        rate: f64,
        number: u64,
    ) -> Result<Step> {
        let pass = &self.pass;
        let says = |tokens: &[u32]| match self.aim.teacher {
            Some(near) => near.teacher.says(pass, tokens),
            None => unreachable!("only a teacher is asked"),
        };
        let teacher = match self.aim.teacher {
            None => None,
            Some(Near { teacher, divergence, temperature, weight, .. }) => {
                let rows = match teacher.wants_rows() {
                    true => self.examples.drawn(position, batch.sequences)?,
                    false => Vec::new(),
                };
                teacher.read(pass, &batch.ids, batch.sequences, &rows)?;
                Some(Teacher { says: &says, divergence, temperature, weight })
            }
        };
        let counts = scored_places(batch);
        let near = self.aim.teacher.and_then(|near| Some((near.teacher, near.hidden?)));
        let states = near.map(|(teacher, Hidden { pairs, weight })| {
            let counts = &counts;
            move |layer: usize, tokens: Range<usize>, x: &Tensor| {
                pairs.part(pass.device, teacher, weight, counts, (layer, tokens, x))
            }
        });
        learner.step(
            pass,
            batch,
            StepOptions {
                rate,
                next_tokens: self.aim.next_tokens,
                teacher,
                hidden: states.as_ref().map(|states| states as &HiddenLoss<'_>),
                balance: self.aim.balance,
                tokens: self.settings.tokens_at_once(),
                activation_budget: pass.device.spare_bytes() / 2,
                dropout_seed: Some(self.seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            },
        )
    }

    /// Takes up the outcome of the oldest step that is on its way.
    fn settle(&self, learner: &mut Learner, state: &mut State) -> Result<()> {
        let Some((mut record, step)) = state.pending.pop_front() else { return Ok(()) };
        let Outcome { loss, balance, norm, finite } = step.finish(self.pass.device)?;
        record.loss = loss;
        record.balance = balance;
        record.norm = norm;
        record.seconds = state.seconds + state.began.elapsed().as_secs_f64();
        let number = record.step;
        let half = self.pass.compute.activation == DType::F16;
        if finite && loss.is_finite() {
            state.told.steps.push(record);
            state.lost_in_a_row = 0;
            state.since_lost += 1;
            if half && state.since_lost >= STEPS_TO_GROW {
                state.since_lost = 0;
                learner.set_scale(learner.scale().map(|scale| scale * 2.0));
            }
            return Ok(());
        }
        if !finite {
            learner.lost();
            state.told.lost += 1;
        }
        state.lost_in_a_row += 1;
        state.since_lost = 0;
        // Weights that gradients have changed are not to be had back.
        if half && !finite && state.lost_in_a_row <= MOST_LOST {
            learner.set_scale(learner.scale().map(|scale| scale / 2.0));
            return Ok(());
        }
        Err(self.diverged(number, loss, state))
    }

    fn diverged(&self, step: u64, loss: f64, state: &State) -> Error {
        let before = match state.told.steps.last() {
            Some(last) => format!("{:.4} at step {}", last.loss, last.step),
            None => "none before".into(),
        };
        Error::Diverged { step, loss: loss.to_string(), before, kept: self.checkpoint() }
    }

    fn settle_all(&self, learner: &mut Learner, state: &mut State) -> Result<()> {
        while !state.pending.is_empty() {
            self.settle(learner, state)?;
        }
        Ok(())
    }

    /// The step of the last checkpoint, where there is one.
    fn checkpoint(&self) -> Option<u64> {
        let text = std::fs::read(self.folder.join(STATE)).ok()?;
        serde_json::from_slice::<Saved>(&text).ok().map(|saved| saved.steps)
    }

    /// Looks at what is held out. Returns whether that is enough: nothing has got better for long.
    fn look(&self, learner: &Learner, held_out: &[Batch], state: &mut State) -> Result<bool> {
        if held_out.is_empty() {
            return Ok(false);
        }
        let HeldOut { loss, count, accuracy } = measured(learner.model(), &self.pass, held_out)?;
        state.told.held_out_tokens = count;
        if !loss.is_finite() {
            return Err(self.diverged(learner.steps(), loss, state));
        }
        let step = learner.steps();
        let tokens = step * (self.settings.batch * self.length()) as u64;
        let best =
            |looks: &[Look]| looks.iter().map(|look| look.loss).fold(f64::INFINITY, f64::min);
        let better = loss < best(&state.told.looks);
        state.told.looks.push(Look { step, tokens, loss, accuracy });
        let Some(patience) = self.settings.patience else { return Ok(false) };
        if better {
            self.write(learner, &self.folder.join(BEST), false)?;
            return Ok(false);
        }
        let looks = &state.told.looks;
        let at = looks.iter().position(|look| look.loss <= best(looks)).unwrap_or(0);
        Ok(looks.len() - 1 - at >= patience)
    }

    /// Ends the course: with the best weights, where looks decide.
    fn finish(&self, learner: &mut Learner, state: &mut State) -> Result<()> {
        self.settle_all(learner, state)?;
        let looks = &state.told.looks;
        if self.settings.patience.is_some() && !looks.is_empty() {
            let least = looks.iter().map(|look| look.loss).fold(f64::INFINITY, f64::min);
            let best = looks.iter().find(|look| look.loss <= least).map(|look| look.step);
            if best != Some(learner.steps()) {
                self.read(learner, &self.folder.join(BEST), false)?;
                let (steps, lost) = (learner.steps(), state.told.lost);
                learner.resume(self.pass.device, steps, lost)?;
                state.told.best = best;
            }
        }
        self.save(learner, state, true)
    }

    /// Writes all that is learned; to go on, the optimizer's state too.
    fn write(&self, learner: &Learner, path: &Path, going_on: bool) -> Result<()> {
        let device = self.pass.device;
        let tensors = learner.saved(going_on).into_iter().map(|(name, tensor)| NewTensor {
            name,
            dtype: tensor.dtype(),
            shape: tensor.shape().to_vec(),
            data: Box::new(move || Ok(bytemuck::cast_slice(&device.read(tensor)?.words).to_vec())),
        });
        write_file(path, tensors.collect())
    }

    /// Reads what [`Course::write`] wrote.
    fn read(&self, learner: &mut Learner, path: &Path, going_on: bool) -> Result<()> {
        let stored = Safetensors::open(Source::open(path)?)?;
        for (name, tensor) in learner.saved(going_on) {
            let wrong = |found: String| Error::Tensor {
                path: path.into(),
                tensor: name.clone(),
                expected: format!("{:?}, as this training has it", tensor.shape()),
                found,
            };
            let found = stored.get(&name).ok_or_else(|| wrong("none".into()))?;
            if found.shape != tensor.shape() {
                return Err(wrong(format!("{:?}", found.shape)));
            }
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&found.bytes()?);
            self.pass.device.write(tensor, &words)?;
        }
        Ok(())
    }

    fn save(&self, learner: &Learner, state: &State, done: bool) -> Result<()> {
        let steps = learner.steps();
        let tensors = format!("step-{steps}.safetensors");
        self.write(learner, &self.folder.join(&tensors), !done)?;
        let saved = Saved {
            tensors: tensors.clone(),
            steps,
            position: state.position.clone(),
            scale: learner.scale(),
            since_lost: state.since_lost,
            lost_in_a_row: state.lost_in_a_row,
            seconds: state.seconds + state.began.elapsed().as_secs_f64(),
            done,
            told: state.told.clone(),
        };
        let text = serde_json::to_string(&saved).expect("a checkpoint is plain values");
        write_record(&self.folder.join(STATE), &text)?;
        // The one before is not needed any more.
        for entry in std::fs::read_dir(self.folder).map_err(Error::read(self.folder))? {
            let path: PathBuf = entry.map_err(Error::read(self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("step-") && name != tensors {
                std::fs::remove_file(&path).map_err(Error::write(&path))?;
            }
        }
        Ok(())
    }

    /// How the last checkpoint stands, and whether it is the end.
    fn resume(&self, learner: &mut Learner) -> Result<Option<(State, Told, bool)>> {
        let path = self.folder.join(STATE);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).map_err(Error::read(&path))?;
        let saved: Saved = serde_json::from_slice(&text).map_err(|error| Error::Malformed {
            path: path.clone(),
            what: "checkpoint".into(),
            offset: None,
            expected: "what this version writes".into(),
            found: error.to_string(),
        })?;
        self.examples.check(&saved.position)?;
        self.read(learner, &self.folder.join(&saved.tensors), !saved.done)?;
        learner.resume(self.pass.device, saved.steps, saved.told.lost)?;
        learner.set_scale(saved.scale);
        let state = State {
            position: saved.position,
            told: saved.told.clone(),
            since_lost: saved.since_lost,
            lost_in_a_row: saved.lost_in_a_row,
            pending: VecDeque::new(),
            seconds: saved.seconds,
            began: Instant::now(),
        };
        Ok(Some((state, saved.told, saved.done)))
    }
}
