//! Gradients of a Llama's mean next-token loss with respect to every weight, block by block: of the forward pass only each
//! block's input is kept, and the backward pass recomputes a block before it runs it back (Chen et al. 2016).

use super::cache::Cache;
use super::linear::{Linear, Pass};
use super::llama::Llama;
use crate::autograd::{Gain, Gradient, Rotations, Sink, Tape, Weight};
use crate::device::{HostTensor, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::attention::causal::Heads;
use crate::kernels::copy::cast::scaled;
use crate::kernels::copy::rows::{Rows, rows};
use crate::kernels::embed::scatter::scatter;
use crate::kernels::loss::cross_entropy_grad::{UNSCORED, cross_entropy_grad};
use crate::kernels::loss::logsumexp::logsumexp;
use crate::kernels::residual::add::add;
use crate::tensor::DType;

const EMBEDDING: &str = "model.embed_tokens";

impl Llama {
    /// The mean loss of every next token within `ids`, `sequences` rows of one length, and its gradients, given to `sink`
    /// one by one: of the head, the final norm, the blocks from the last to the first, and the embedding. A tied head's
    /// gradient is part of the embedding's, and held until then; of the others one at a time is.
    ///
    /// A loss or gradient that is not finite is an error that names the layer.
    pub fn gradients(
        &self,
        pass: &Pass<'_>,
        ids: &[u32],
        sequences: usize,
        sink: &mut Sink<'_>,
    ) -> Result<f64> {
        let (config, device) = (self.config(), pass.device);
        let length = ids.len() / sequences.max(1);
        if length < 2 || length * sequences != ids.len() {
            return Err(Error::Argument {
                argument: "tokens".into(),
                expected: "rows of one length, of two tokens or more".into(),
                found: format!("{} tokens in {sequences} rows", ids.len()),
            });
        }
        let scored = sequences * (length - 1);
        // Sums of losses instead of their mean, and somewhat more, lie well within f16.
        let scale = if pass.compute.activation == DType::F16 {
            16.0 * scored.next_power_of_two() as f32
        } else {
            1.0
        };
        let activation = pass.compute.activation;
        let cache = Cache::passing(device, config, sequences, length, activation)?;
        let x = self.embed(pass, ids)?;
        let mut inputs = Vec::with_capacity(config.layers());
        for layer in 0..config.layers() {
            interrupt::check()?;
            inputs.push(scaled(device, &x, 1.0, DType::F32)?);
            self.block(pass, layer, &x, &cache)?;
        }
        drop(cache);
        let targets: Vec<u32> = (0..ids.len())
            .map(|at| match (at + 1) % length {
                0 => UNSCORED,
                _ => ids[at + 1],
            })
            .collect();
        let (loss, mut grad, mut held) = self.head_gradients(pass, &x, &targets, scale)?;
        if !loss.is_finite() {
            inputs.push(x);
            return Err(self.first_broken(pass, &inputs)?);
        }
        drop(x);
        let tied = config.tied.then(|| held.remove(0).values);
        for gradient in held {
            if gradient.name == "model.norm.weight" {
                finite(pass, &gradient, "the head")?;
            }
            sink(gradient)?;
        }
        let table = config.rotations(length);
        let rotations = Rotations::upload(device, &table, length, sequences)?;
        for layer in (0..config.layers()).rev() {
            interrupt::check()?;
            let input = inputs.pop().expect("each block's input was kept");
            grad = self.block_gradients(pass, layer, &input, grad, &rotations, scale, sink)?;
        }
        let grad = scaled(device, &grad, 1.0 / scale, DType::F32)?;
        let (values, accumulate) = match tied {
            Some(values) => (values, true),
            None => {
                let shape = [config.vocab_size, config.hidden_size];
                (device.allocate(DType::F32, &shape, EMBEDDING)?, false)
            }
        };
        scatter(device, &grad, ids, &values, accumulate)?;
        let name = format!("{EMBEDDING}.weight");
        sink(Gradient { name, values })?;
        Ok(loss)
    }

    /// The mean loss, the gradient of the last block's output `x`, f32 (tokens, hidden), times `scale`, and those of the
    /// head and the final norm. As many tokens at a time as logits fit.
    fn head_gradients(
        &self,
        pass: &Pass<'_>,
        x: &Tensor,
        targets: &[u32],
        scale: f32,
    ) -> Result<(f64, Tensor, Vec<Gradient>)> {
        let (device, width) = (pass.device, self.config().hidden_size);
        let count = targets.iter().filter(|t| **t != UNSCORED).count();
        let step = self.head_rows(device);
        let whole = step >= targets.len();
        let mut grad = None;
        if !whole {
            grad = Some(device.allocate(DType::F32, x.shape(), "a gradient")?);
        }
        let (mut loss, mut held) = (0.0, Vec::<Gradient>::new());
        for first in (0..targets.len()).step_by(step) {
            let targets = &targets[first..(first + step).min(targets.len())];
            let part = if whole {
                x.clone()
            } else {
                let part = device.allocate(DType::F32, &[targets.len(), width], "a part")?;
                let pairs = (0..targets.len() as u32).map(|t| (first as u32 + t, t));
                let list = Rows::upload(device, &pairs.collect::<Vec<_>>())?;
                rows(device, x, &part, width, &list)?;
                part
            };
            let mut tape = self.tape(pass, scale);
            let part = tape.input(&part);
            let normed = tape.rms(&part, self.gain("model.norm.weight".into(), &self.norm))?;
            let logits = tape.linear(&normed, weight(&self.head), DType::F32)?;
            let on_device = |targets: &[u32]| {
                let targets = HostTensor::from_u32(&[targets.len()], targets);
                device.upload(&targets, "targets")
            };
            // Every row needs a column to pick; what rows without a target pick is left out below.
            let picks: Vec<u32> = targets
                .iter()
                .map(|t| if *t == UNSCORED { 0 } else { *t })
                .collect();
            let (lse, picked) = logsumexp(device, &logits.tensor, &on_device(&picks)?)?;
            let (lse_values, picked) =
                (device.read(&lse)?.to_f32(), device.read(&picked)?.to_f32());
            for (target, (lse, picked)) in targets.iter().zip(lse_values.iter().zip(picked)) {
                if *target != UNSCORED {
                    loss += f64::from(*lse) - f64::from(picked);
                }
            }
            let of_logits = cross_entropy_grad(
                device,
                &logits.tensor,
                &lse,
                &on_device(targets)?,
                scale / count as f32,
                pass.compute.activation,
            )?;
            let mut keep = |gradient: Gradient| {
                match held.iter().find(|held| held.name == gradient.name) {
                    Some(sum) => add(device, &gradient.values, &sum.values)?,
                    None => held.push(gradient),
                }
                Ok(())
            };
            let of_part = tape.run_back(logits.node, of_logits, &part, &mut keep)?;
            match &grad {
                Some(grad) => {
                    let pairs = (0..targets.len() as u32).map(|t| (t, first as u32 + t));
                    let list = Rows::upload(device, &pairs.collect::<Vec<_>>())?;
                    rows(device, &of_part, grad, width, &list)?;
                }
                None => grad = Some(of_part),
            }
        }
        let grad = grad.expect("there is a token");
        Ok((loss / count as f64, grad, held))
    }

    /// The gradient of a block's input, from the input, f32 (tokens, hidden), and the gradient of its output.
    #[allow(
        clippy::too_many_arguments,
        reason = "a step of one loop, given a name"
    )]
    fn block_gradients(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        input: &Tensor,
        grad: Tensor,
        rotations: &Rotations,
        scale: f32,
        sink: &mut Sink<'_>,
    ) -> Result<Tensor> {
        let (block, config) = (&self.blocks[layer], self.config());
        let (dim, dtype) = (config.head_dim, pass.compute.activation);
        let heads = Heads {
            query: config.blocks[layer].heads,
            kv: config.blocks[layer].kv_heads,
            dim,
        };
        let name = |norm: &str| format!("model.layers.{layer}.{norm}.weight");
        let (first, second) = (name("input_layernorm"), name("post_attention_layernorm"));
        let mut tape = self.tape(pass, scale);
        let x = tape.input(input);
        let normed = tape.rms(&x, self.gain(first.clone(), &block.attention_norm))?;
        let query = tape.linear(&normed, weight(&block.query), dtype)?;
        let key = tape.linear(&normed, weight(&block.key), dtype)?;
        let value = tape.linear(&normed, weight(&block.value), dtype)?;
        let query = tape.rotate(&query, dim, rotations)?;
        let key = tape.rotate(&key, dim, rotations)?;
        let mixed = tape.attention(&query, (&key, &value), &rotations.past, heads)?;
        let stream = tape.linear_onto(&mixed, weight(&block.output), &x)?;
        let normed = tape.rms(&stream, self.gain(second, &block.feed_forward_norm))?;
        let gate = tape.linear(&normed, weight(&block.gate), dtype)?;
        let up = tape.linear(&normed, weight(&block.up), dtype)?;
        let gated = tape.silu(&gate, &up)?;
        let last = tape.ends_onto(&gated, weight(&block.down), &stream);
        tape.run_back(last, grad, &x, &mut |gradient| {
            // Whatever is not finite in a block's backward pass reaches this one, the sum of all tokens.
            if gradient.name == first {
                finite(pass, &gradient, &format!("model.layers.{layer}"))?;
            }
            sink(gradient)
        })
    }

    fn tape<'a>(&self, pass: &Pass<'a>, scale: f32) -> Tape<'a> {
        let compute = pass.compute;
        Tape::new(
            pass.device,
            compute.activation,
            compute.integer_bytes,
            scale,
        )
    }

    fn gain<'a>(&self, name: String, gain: &'a Tensor) -> Gain<'a> {
        let epsilon = self.config().rms_norm_eps as f32;
        Gain {
            name,
            gain,
            epsilon,
        }
    }

    /// Why a loss is not finite: the first block whose output is not. `streams`: each block's input, and the last's output.
    fn first_broken(&self, pass: &Pass<'_>, streams: &[Tensor]) -> Result<Error> {
        for (place, stream) in streams.iter().enumerate() {
            let values = pass.device.read(stream)?.to_f32();
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                let what = match place {
                    0 => "output of model.embed_tokens".into(),
                    _ => format!("output of model.layers.{}", place - 1),
                };
                let found = value.to_string();
                return Ok(Error::NotFinite { what, found });
            }
        }
        Ok(Error::NotFinite {
            what: "loss, behind the last layer".into(),
            found: "NaN".into(),
        })
    }
}

fn weight(linear: &Linear) -> Weight<'_> {
    Weight {
        name: &linear.name,
        matrix: &linear.weight,
        bias: linear.bias.as_ref(),
    }
}

fn finite(pass: &Pass<'_>, gradient: &Gradient, layer: &str) -> Result<()> {
    let values = pass.device.read(&gradient.values)?.to_f32();
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::NotFinite {
            what: format!("gradient of {layer}"),
            found: value.to_string(),
        }),
        None => Ok(()),
    }
}
