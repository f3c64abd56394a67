//! Gradients at both ends of a model: of the loss through head and final norm, and of the embedding.

use std::ops::Range;

use super::llama::head_rows;
use super::llama_grad::{Batch, EMBEDDING, NORM, Run, weight};
use super::streamed::Head;
use crate::autograd::{Gradient, Parameter, Sink, Split, Tape};
use crate::device::{Device, HostTensor, Reading, Tensor};
use crate::error::{Error, Result};
use crate::kernels::copy::cast::scaled;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::kernels::embed::scatter::scatter;
use crate::kernels::loss::cross_entropy_grad::{UNSCORED, cross_entropy_grad};
use crate::kernels::loss::divergence::divergence;
use crate::kernels::loss::divergence_grad::divergence_grad;
use crate::kernels::loss::logsumexp::logsumexp;
use crate::kernels::matmul::backward;
use crate::kernels::residual::add::add;
use crate::tensor::DType;

/// What a backward pass is the gradient of.
#[derive(Clone, Copy)]
pub enum Loss<'l> {
    /// The mean cross-entropy of every next token within its sequence, in nats.
    NextTokens,
    /// The mean over all tokens of KL(teacher || model) in nats, of both's logits divided by a temperature, times its square,
    /// which keeps gradients of one size (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).
    Teacher {
        /// The teacher's logits of some of the pass's tokens, f32 (tokens, vocabulary) on its device. Each is asked for once.
        logits: &'l dyn Fn(Range<usize>) -> Result<Tensor>,
        /// Finite and more than 0.
        temperature: f32,
    },
}

impl std::fmt::Debug for Loss<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Loss::NextTokens => write!(f, "next tokens"),
            Loss::Teacher { temperature, .. } => write!(f, "a teacher at {temperature}"),
        }
    }
}

impl Loss<'_> {
    /// Tokens whose loss counts, in sequences of one length.
    pub(super) fn scored(&self, sequences: usize, length: usize) -> Result<usize> {
        match self {
            Loss::NextTokens => Ok(sequences * (length - 1)),
            Loss::Teacher { temperature, .. } if temperature.is_normal() && *temperature > 0.0 => {
                Ok(sequences * length)
            }
            Loss::Teacher { temperature, .. } => Err(Error::Argument {
                argument: "temperature".into(),
                expected: "a finite number above 0".into(),
                found: temperature.to_string(),
            }),
        }
    }
}

/// What some tokens' losses are made of, on their way from the device.
enum Losses {
    /// The rows that count, log-sum-exps and the targets' logits.
    NextTokens(Vec<usize>, Reading, Reading),
    /// Each row's, and what each is multiplied by.
    Divergences(Reading, f64),
}

impl Losses {
    fn sum(self, device: &Device) -> Result<f64> {
        match self {
            Losses::NextTokens(scored, lse, picked) => {
                let lse = device.finish(lse)?.to_f32();
                let picked = device.finish(picked)?.to_f32();
                let loss = |row: usize| f64::from(lse[row]) - f64::from(picked[row]);
                Ok(scored.into_iter().map(loss).sum())
            }
            Losses::Divergences(rows, factor) => {
                let rows = device.finish(rows)?.to_f32();
                Ok(rows.into_iter().map(f64::from).sum::<f64>() * factor)
            }
        }
    }
}

/// A head's product that is also the embedding's: its gradient waits for that one's.
pub(super) struct Late {
    part: usize,
    grad: Tensor,
    normed: Tensor,
}

impl Run<'_> {
    /// The sum of a batch's losses and the gradient of the last block's output `x`, f32 (tokens, hidden), times the scale.
    /// As many tokens at a time as logits fit.
    #[allow(
        clippy::too_many_arguments,
        reason = "a step of one loop, given a name"
    )]
    pub(super) fn head(
        &self,
        head: &Head,
        batch: &Batch,
        x: &Tensor,
        late: &mut Vec<Late>,
        checks: &mut Vec<(String, Reading)>,
        sink: &mut Sink<'_>,
    ) -> Result<(f64, Tensor)> {
        let (device, config) = (self.pass.device, self.layers.config());
        let (width, tied) = (config.hidden_size, config.tied);
        let asked = |name: &str| (self.wanted.tensor)(name) && !(tied && name == "lm_head.weight");
        let keep = tied && asked(EMBEDDING);
        let tokens = batch.sequences.len() * self.length;
        let apart = self.wanted.by_sequence && (keep || asked(NORM) || asked("lm_head.weight"));
        let part_tokens = if apart { self.length } else { tokens };
        let step = head_rows(device, config).min(part_tokens);
        let mut grad = None;
        if step < tokens {
            grad = Some(device.allocate(DType::F32, x.shape(), "a gradient")?);
        }
        let mut losses = Vec::new();
        for start in (0..tokens).step_by(part_tokens) {
            let part = match apart {
                true => batch.sequences.start + start / self.length,
                false => batch.split.first(),
            };
            let mut sums = Vec::<Gradient>::new();
            for first in (start..start + part_tokens).step_by(step) {
                let here = first..(first + step).min(start + part_tokens);
                let split = Split::whole(part);
                // The final norm's gradient tells whether all is finite.
                let wants = |name: &str| name == NORM || asked(name);
                let mut tape = Tape::new(device, self.settings(&split));
                let some = tape.input(&self.cut(x, here.clone())?);
                let normed = tape.rms(&some, self.gain(NORM.into(), &head.norm))?;
                let logits = tape.linear(&normed, weight(&head.linear))?;
                let (of_logits, sum) = self.loss(batch, here.clone(), &logits.tensor)?;
                losses.push(sum);
                if keep {
                    let (grad, normed) = (of_logits.clone(), normed.tensor.clone());
                    late.push(Late { part, grad, normed });
                }
                let mut hold = |gradient: Gradient| {
                    match sums.iter().find(|sum| sum.name == gradient.name) {
                        Some(sum) => add(device, &gradient.values, &sum.values)?,
                        None => sums.push(gradient),
                    }
                    Ok(())
                };
                let of_part =
                    tape.run_back(logits.node, of_logits, some.node, &wants, &mut hold)?;
                match &grad {
                    Some(grad) => {
                        let count = here.len() as u32;
                        let pairs = (0..count).map(|t| (t, here.start as u32 + t));
                        let list = Rows::upload(device, &pairs.collect::<Vec<_>>())?;
                        rows(device, &of_part, grad, width, &list)?;
                    }
                    None => grad = Some(of_part),
                }
            }
            for gradient in sums {
                if gradient.name == NORM {
                    checks.push(("the head".into(), device.read_later(&gradient.values)?));
                }
                if asked(&gradient.name) {
                    sink(gradient)?;
                }
            }
        }
        let mut loss = 0.0;
        for some in losses {
            loss += some.sum(device)?;
        }
        Ok((loss, grad.expect("there is a token")))
    }

    /// The gradient of some of a batch's tokens' logits, in the type of products, and their losses.
    fn loss(
        &self,
        batch: &Batch,
        tokens: Range<usize>,
        logits: &Tensor,
    ) -> Result<(Tensor, Losses)> {
        match self.wanted.loss {
            Loss::NextTokens => self.next_tokens(batch, tokens, logits),
            Loss::Teacher {
                logits: teacher,
                temperature,
            } => {
                let first = batch.sequences.start * self.length;
                let parent = teacher(first + tokens.start..first + tokens.end)?;
                self.divergences(&parent, logits, temperature)
            }
        }
    }

    fn divergences(
        &self,
        parent: &Tensor,
        child: &Tensor,
        temperature: f32,
    ) -> Result<(Tensor, Losses)> {
        let device = self.pass.device;
        let of = |logits: &Tensor| (logits.dtype(), logits.shape().to_vec());
        if of(parent) != of(child) {
            return Err(Error::Argument {
                argument: "a teacher's logits".into(),
                expected: format!("{:?}", of(child)),
                found: format!("{:?}", of(parent)),
            });
        }
        let square = temperature * temperature;
        let grad = divergence_grad(
            device,
            parent,
            child,
            temperature,
            square * self.scale / self.scored as f32,
            self.pass.compute.activation,
        )?;
        let cooled = |logits: &Tensor| match temperature {
            1.0 => Ok(logits.clone()),
            _ => scaled(device, logits, 1.0 / temperature, DType::F32),
        };
        let (rows, _) = divergence(device, &cooled(parent)?, &cooled(child)?)?;
        let reading = device.read_later(&rows)?;
        Ok((grad, Losses::Divergences(reading, f64::from(square))))
    }

    fn next_tokens(
        &self,
        batch: &Batch,
        tokens: Range<usize>,
        logits: &Tensor,
    ) -> Result<(Tensor, Losses)> {
        let (device, base) = (self.pass.device, batch.sequences.start * self.length);
        let target = |token: usize| match (token + 1) % self.length {
            0 => UNSCORED,
            _ => self.ids[base + token + 1],
        };
        let targets: Vec<u32> = tokens.map(target).collect();
        let scored = (0..targets.len()).filter(|row| targets[*row] != UNSCORED);
        // Every row needs a column to pick; what rows without a target pick is left out.
        let picks: Vec<u32> = targets
            .iter()
            .map(|t| if *t == UNSCORED { 0 } else { *t })
            .collect();
        let on_device = |targets: &[u32]| {
            let targets = HostTensor::from_u32(&[targets.len()], targets);
            device.upload(&targets, "targets")
        };
        let (lse, picked) = logsumexp(device, logits, &on_device(&picks)?)?;
        let grad = cross_entropy_grad(
            device,
            logits,
            &lse,
            &on_device(&targets)?,
            self.scale / self.scored as f32,
            self.pass.compute.activation,
        )?;
        let (lse, picked) = (device.read_later(&lse)?, device.read_later(&picked)?);
        Ok((grad, Losses::NextTokens(scored.collect(), lse, picked)))
    }

    /// Hands out the embedding's gradient, of which a tied head's is a part.
    pub(super) fn embedding(
        &self,
        grads: &[Tensor],
        late: &[Late],
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let (device, config) = (self.pass.device, self.layers.config());
        let table = self.layers.embedding()?;
        for (batch, grad) in self.batches.iter().zip(grads) {
            let parts = if self.wanted.by_sequence {
                batch.sequences.clone()
            } else {
                batch.split.first()..batch.split.first() + 1
            };
            let tokens = batch.sequences.len() * self.length / parts.len();
            for (place, part) in parts.enumerate() {
                let shape = [config.vocab_size, config.hidden_size];
                let values = device.allocate(DType::F32, &shape, EMBEDDING)?;
                let mut accumulate = false;
                for product in late.iter().filter(|late| late.part == part) {
                    let (grad, normed) = (&product.grad, &product.normed);
                    backward::weight(device, grad, normed, &mut None, &values, accumulate)?;
                    accumulate = true;
                }
                let here = place * tokens..(place + 1) * tokens;
                let first = batch.sequences.start * self.length;
                let ids = &self.ids[first + here.start..first + here.end];
                scatter(device, &self.cut(grad, here)?, ids, &values, accumulate)?;
                sink(Gradient {
                    name: EMBEDDING.into(),
                    part,
                    weight: Parameter::Matrix(table.clone()),
                    values: scaled(device, &values, 1.0 / self.scale, DType::F32)?,
                })?;
            }
        }
        Ok(())
    }
}
