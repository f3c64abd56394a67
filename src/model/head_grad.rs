//! Gradients at both ends of a model: of the loss through head and final norm, and of the embedding.

use std::ops::Range;

use super::llama::head_rows;
use super::llama_grad::{Batch, EMBEDDING, NORM, Run, weight};
use super::streamed::Head;
use crate::autograd::{Gradient, Parameter, Sink, Split, Tape};
use crate::device::{HostTensor, Reading, Tensor};
use crate::error::Result;
use crate::kernels::copy::cast::scaled;
use crate::kernels::copy::rows::{Rows, rows};
use crate::kernels::embed::scatter::scatter;
use crate::kernels::loss::cross_entropy_grad::{UNSCORED, cross_entropy_grad};
use crate::kernels::loss::logsumexp::logsumexp;
use crate::kernels::matmul::backward;
use crate::kernels::residual::add::add;
use crate::tensor::DType;

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
                let mut tape = Tape::new(device, self.settings(&split, &wants));
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
                let of_part = tape.run_back(logits.node, of_logits, &some, &mut hold)?;
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
        for (scored, lse, picked) in losses {
            let (lse, picked) = (
                device.finish(lse)?.to_f32(),
                device.finish(picked)?.to_f32(),
            );
            for row in scored {
                loss += f64::from(lse[row]) - f64::from(picked[row]);
            }
        }
        Ok((loss, grad.expect("there is a token")))
    }

    /// The gradient of some tokens' logits, in the type of products, and what their losses are made of: the rows that count,
    /// log-sum-exps and the targets' logits.
    #[allow(clippy::type_complexity, reason = "one caller takes it apart at once")]
    fn loss(
        &self,
        batch: &Batch,
        tokens: Range<usize>,
        logits: &Tensor,
    ) -> Result<(Tensor, (Vec<usize>, Reading, Reading))> {
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
        let readings = (device.read_later(&lse)?, device.read_later(&picked)?);
        Ok((grad, (scored.collect(), readings.0, readings.1)))
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
                    backward::weight(device, &product.grad, &product.normed, &values, accumulate)?;
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
