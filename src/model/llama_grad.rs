//! Gradients of a Llama's loss, that of the next tokens or of a teacher's, with respect to its weights, block by block. Of the forward pass as many of the last blocks' activations are kept as there is room for; of the
//! other blocks only the input is, and the backward pass recomputes such a block before it runs it back (Chen et al. 2016).
//!
//! All tokens go through a layer before the next one is looked at, some sequences at a time, so that weights may come to
//! the device layer by layer, and never more than a layer's gradients are under way.

use std::ops::Range;

use super::head_grad::Late;
use super::linear::{Linear, Pass};
use super::llama::{Block, Llama};
use super::names::tensor_specs;
use super::streamed::Layers;
use super::wanted::Wanted;
use crate::autograd::{Gain, Node, Rotations, Settings, Sink, Split, Tape, Value, Weight};
use crate::device::{HostTensor, Reading, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::attention::Attention;
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::tensor::DType;

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const NORM: &str = "model.norm.weight";

impl Llama {
    /// [`gradients`] of a model that is on its device, all of them, each in one part. Activations take at most half of what
    /// memory there is.
    pub fn gradients(
        &self,
        pass: &Pass<'_>,
        ids: &[u32],
        sequences: usize,
        sink: &mut Sink<'_>,
    ) -> Result<f64> {
        gradients(
            Layers::Held(self),
            pass,
            ids,
            sequences,
            Wanted {
                keep: pass.device.spare_bytes() / 2,
                ..Wanted::ALL
            },
            &mut |_, _| {},
            sink,
        )
    }
}

/// The mean loss of the tokens in `ids`, `sequences` rows of one length, and its gradients, given to `sink` part by part:
/// of the head, the final norm, the blocks from the last to the first, and the embedding. `progress` is told of layers
/// done, of those there and back.
///
/// A loss or gradient that is not finite is an error that names the layer.
pub fn gradients(
    layers: Layers<'_>,
    pass: &Pass<'_>,
    ids: &[u32],
    sequences: usize,
    wanted: Wanted<'_>,
    progress: &mut dyn FnMut(usize, usize),
    sink: &mut Sink<'_>,
) -> Result<f64> {
    let run = Run::new(layers, pass, ids, sequences, wanted)?;
    let count = layers.config().layers();
    let first_kept = match layers {
        Layers::Held(_) => {
            let element = pass.compute.activation.size();
            wanted.first_kept(layers.config(), run.lowest(), ids.len(), element)
        }
        Layers::Streamed(..) => count,
    };
    let blocks = (first_kept..count).map(|layer| layers.block(layer));
    let (blocks, mut kept) = (blocks.collect::<Result<Vec<_>>>()?, Vec::new());
    let mut inputs = Vec::with_capacity(count);
    let streams = run.forward(&blocks, &mut kept, &mut |layer, recorded| {
        if layer == inputs.len() {
            inputs.push(Vec::new());
        }
        inputs[layer].push(recorded.input.tensor.clone());
        progress(layer, 2 * count);
        Ok(())
    })?;
    let head = layers.head()?;
    let mut checks: Vec<(String, Reading)> = Vec::new();
    let (mut loss, mut grads, mut late) = (0.0, Vec::<Tensor>::new(), Vec::<Late>::new());
    for (batch, x) in run.batches.iter().zip(&streams) {
        let (its, grad) = run.head(&head, batch, x, &mut late, &mut checks, sink)?;
        loss += its;
        grads.push(grad);
    }
    drop(head);
    if !loss.is_finite() {
        inputs.push(streams);
        return Err(run.first_broken(&inputs)?);
    }
    drop(streams);
    let lowest = run.lowest();
    for layer in (lowest..count).rev() {
        interrupt::check()?;
        progress(2 * count - 1 - layer, 2 * count);
        let inputs = inputs.pop().expect("each block's inputs were kept");
        let mut readings = Vec::new();
        if let Some(recordings) = kept.pop() {
            for (recording, grad) in recordings.into_iter().zip(&mut grads) {
                run.block_back(layer, recording, grad, &mut readings, sink)?;
            }
        } else {
            let block = layers.block(layer)?;
            for ((batch, input), grad) in run.batches.iter().zip(&inputs).zip(&mut grads) {
                let recording = run.again(&block, layer, batch, input)?;
                run.block_back(layer, recording, grad, &mut readings, sink)?;
            }
        }
        // A layer's are looked at when the next one's are on their way.
        for (layer, reading) in checks.drain(..) {
            finite(&layer, &pass.device.finish(reading)?)?;
        }
        let name = format!("model.layers.{layer}");
        checks.extend(readings.into_iter().map(|r| (name.clone(), r)));
    }
    for (layer, reading) in checks {
        finite(&layer, &pass.device.finish(reading)?)?;
    }
    if (wanted.tensor)(EMBEDDING) {
        run.embedding(&grads, &late, sink)?;
    }
    Ok(loss / run.scored as f64)
}

/// Runs tokens forward and shows each linear layer's input, (tokens, input features), to `tap` with the layer's name.
pub fn activations(
    layers: Layers<'_>,
    pass: &Pass<'_>,
    ids: &[u32],
    sequences: usize,
    tokens: usize,
    tap: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
) -> Result<()> {
    let wanted = Wanted {
        tokens,
        ..Wanted::ALL
    };
    let run = Run::new(layers, pass, ids, sequences, wanted)?;
    run.forward(&[], &mut Vec::new(), &mut |layer, recorded| {
        let inputs = [
            ("self_attn.q_proj", &recorded.attention_normed),
            ("self_attn.k_proj", &recorded.attention_normed),
            ("self_attn.v_proj", &recorded.attention_normed),
            ("self_attn.o_proj", &recorded.mixed),
            ("mlp.gate_proj", &recorded.normed),
            ("mlp.up_proj", &recorded.normed),
            ("mlp.down_proj", &recorded.gated),
        ];
        for (module, input) in inputs {
            tap(&format!("model.layers.{layer}.{module}"), &input.tensor)?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Sequences that go through a layer at once.
pub(super) struct Batch {
    pub(super) sequences: Range<usize>,
    pub(super) rotations: Rotations,
    pub(super) split: Split,
}

/// A block up to its last product, on a tape.
struct Recorded {
    input: Value,
    attention_normed: Value,
    mixed: Value,
    /// What the last product is added to.
    stream: Value,
    normed: Value,
    /// The last product's input.
    gated: Value,
}

/// A block's pass over a batch, to be run back.
struct Recording<'t> {
    tape: Tape<'t>,
    input: Node,
    output: Node,
}

/// A pass there and back.
pub(super) struct Run<'a> {
    pub(super) layers: Layers<'a>,
    pub(super) pass: &'a Pass<'a>,
    pub(super) wanted: Wanted<'a>,
    pub(super) ids: &'a [u32],
    pub(super) length: usize,
    pub(super) batches: Vec<Batch>,
    /// Tokens whose loss counts.
    pub(super) scored: usize,
    /// What the loss is multiplied by.
    pub(super) scale: f32,
}

impl<'a> Run<'a> {
    fn new(
        layers: Layers<'a>,
        pass: &'a Pass<'a>,
        ids: &'a [u32],
        sequences: usize,
        wanted: Wanted<'a>,
    ) -> Result<Self> {
        let length = ids.len() / sequences.max(1);
        if length < 2 || length * sequences != ids.len() {
            return Err(Error::Argument {
                argument: "tokens".into(),
                expected: "rows of one length, of two tokens or more".into(),
                found: format!("{} tokens in {sequences} rows", ids.len()),
            });
        }
        let scored = wanted.loss.scored(sequences, length)?;
        // Sums of losses instead of their mean, and somewhat more, lie well within f16.
        let scale = if pass.compute.activation == DType::F16 {
            16.0 * scored.next_power_of_two() as f32
        } else {
            1.0
        };
        let table = layers.config().rotations(length);
        let at_once = wanted.at_once(sequences, length);
        let batch = |first: usize| {
            let sequences = first..(first + at_once).min(sequences);
            let split = if wanted.by_sequence {
                Split::even(pass.device, sequences.len(), length, first)?
            } else {
                Split::whole(first / at_once)
            };
            let rotations = Rotations::upload(pass.device, &table, length, sequences.len())?;
            Ok(Batch {
                sequences,
                rotations,
                split,
            })
        };
        let batches = (0..sequences).step_by(at_once).map(batch);
        Ok(Self {
            batches: batches.collect::<Result<_>>()?,
            layers,
            pass,
            wanted,
            ids,
            length,
            scored,
            scale,
        })
    }

    pub(super) fn settings<'s>(&self, split: &'s Split) -> Settings<'s> {
        Settings {
            activation: self.pass.compute.activation,
            integer_bytes: self.pass.compute.integer_bytes,
            scale: self.scale,
            split,
        }
    }

    pub(super) fn gain<'g>(&self, name: String, gain: &'g Tensor) -> Gain<'g> {
        let epsilon = self.layers.config().rms_norm_eps as f32;
        Gain {
            name,
            gain,
            epsilon,
        }
    }

    /// The streams behind the last block, one a batch. `see` is shown every batch's pass through every block. Those through
    /// the last blocks, which `blocks` are, are kept.
    fn forward<'t>(
        &'t self,
        blocks: &'t [Block],
        kept: &mut Vec<Vec<Recording<'t>>>,
        see: &mut dyn FnMut(usize, &Recorded) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let ids = |batch: &Batch| {
            let Range { start, end } = batch.sequences;
            &self.ids[start * self.length..end * self.length]
        };
        let embedded = self.layers.embed(self.pass, self.ids)?;
        let mut streams = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            let tokens = ids(batch).len();
            let first = batch.sequences.start * self.length;
            streams.push(self.cut(&embedded, first..first + tokens)?);
        }
        drop(embedded);
        let first_kept = self.layers.config().layers() - blocks.len();
        for layer in 0..first_kept {
            interrupt::check()?;
            let block = self.layers.block(layer)?;
            for (batch, x) in self.batches.iter().zip(&mut streams) {
                self.through(&block, layer, batch, x, see)?;
            }
        }
        for (layer, block) in (first_kept..).zip(blocks) {
            interrupt::check()?;
            let pairs = self.batches.iter().zip(&mut streams);
            let pass = pairs.map(|(batch, x)| self.through(block, layer, batch, x, see));
            kept.push(pass.collect::<Result<_>>()?);
        }
        Ok(streams)
    }

    /// A batch's pass through a block, whose output takes the place of its input `x`.
    fn through<'t>(
        &'t self,
        block: &'t Block,
        layer: usize,
        batch: &'t Batch,
        x: &mut Tensor,
        see: &mut dyn FnMut(usize, &Recorded) -> Result<()>,
    ) -> Result<Recording<'t>> {
        let mut tape = Tape::new(self.pass.device, self.settings(&batch.split));
        let recorded = self.record(&mut tape, block, layer, x, &batch.rotations)?;
        see(layer, &recorded)?;
        let (gated, stream) = (&recorded.gated, &recorded.stream);
        let output = tape.linear_onto(gated, weight(&block.down), stream)?;
        *x = output.tensor;
        Ok(Recording {
            tape,
            input: recorded.input.node,
            output: output.node,
        })
    }

    /// The same again, to be run back, without the output itself.
    fn again<'t>(
        &'t self,
        block: &'t Block,
        layer: usize,
        batch: &'t Batch,
        input: &Tensor,
    ) -> Result<Recording<'t>> {
        let mut tape = Tape::new(self.pass.device, self.settings(&batch.split));
        let recorded = self.record(&mut tape, block, layer, input, &batch.rotations)?;
        let (gated, stream) = (&recorded.gated, &recorded.stream);
        Ok(Recording {
            output: tape.ends_onto(gated, weight(&block.down), stream)?,
            input: recorded.input.node,
            tape,
        })
    }

    /// Some rows of f32 (rows, columns): a copy, unless they are all.
    pub(super) fn cut(&self, all: &Tensor, tokens: Range<usize>) -> Result<Tensor> {
        let width = self.layers.config().hidden_size;
        if tokens.len() * width == all.len() {
            return Ok(all.clone());
        }
        let device = self.pass.device;
        let part = device.allocate(DType::F32, &[tokens.len(), width], "a part")?;
        let first = tokens.start as u32;
        let pairs = (0..tokens.len() as u32).map(|t| (first + t, t));
        let list = Rows::upload(device, &pairs.collect::<Vec<_>>())?;
        rows(device, all, &part, width, &list)?;
        Ok(part)
    }

    fn record<'t>(
        &self,
        tape: &mut Tape<'t>,
        block: &'t Block,
        layer: usize,
        input: &Tensor,
        rotations: &'t Rotations,
    ) -> Result<Recorded> {
        let config = self.layers.config();
        let dim = config.head_dim;
        let widths = config.blocks[layer];
        let heads = Attention::new(widths.heads, widths.kv_heads, dim);
        let name = |norm: &str| format!("model.layers.{layer}.{norm}.weight");
        let (first, second) = (name("input_layernorm"), name("post_attention_layernorm"));
        let input = tape.input(input);
        let attention_normed = tape.rms(&input, self.gain(first, &block.attention_norm))?;
        let query = tape.linear(&attention_normed, weight(&block.query))?;
        let key = tape.linear(&attention_normed, weight(&block.key))?;
        let value = tape.linear(&attention_normed, weight(&block.value))?;
        let query = tape.rotate(&query, dim, rotations)?;
        let key = tape.rotate(&key, dim, rotations)?;
        let mixed = tape.attention(&query, (&key, &value), &rotations.past, heads)?;
        let stream = tape.linear_onto(&mixed, weight(&block.output), &input)?;
        let normed = tape.rms(&stream, self.gain(second, &block.feed_forward_norm))?;
        let gate = tape.linear(&normed, weight(&block.gate))?;
        let up = tape.linear(&normed, weight(&block.up))?;
        let gated = tape.silu(&gate, &up)?;
        Ok(Recorded {
            input,
            attention_normed,
            mixed,
            stream,
            normed,
            gated,
        })
    }

    /// Replaces the gradient of a block's output by that of its input, f32 (tokens, hidden).
    fn block_back(
        &self,
        layer: usize,
        recording: Recording<'_>,
        grad: &mut Tensor,
        readings: &mut Vec<Reading>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let first = format!("model.layers.{layer}.input_layernorm.weight");
        let wants = |name: &str| name == first || (self.wanted.tensor)(name);
        let Recording {
            tape,
            input,
            output,
        } = recording;
        *grad = tape.run_back(output, grad.clone(), input, &wants, &mut |gradient| {
            // Whatever is not finite in a block's backward pass reaches this one, the sum of all tokens.
            if gradient.name == first {
                readings.push(self.pass.device.read_later(&gradient.values)?);
            }
            if (self.wanted.tensor)(&gradient.name) {
                sink(gradient)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The lowest layer to run back to: below it nothing is wanted.
    fn lowest(&self) -> usize {
        let config = self.layers.config();
        if (self.wanted.tensor)(EMBEDDING) {
            return 0;
        }
        let specs = tensor_specs(config);
        let wanted = specs.iter().filter(|spec| (self.wanted.tensor)(&spec.name));
        let layers = wanted.filter_map(|spec| spec.layer());
        layers.min().unwrap_or(config.layers())
    }

    /// Why a loss is not finite: the first block whose output is not. `streams`: each block's inputs, and the last's outputs.
    fn first_broken(&self, streams: &[Vec<Tensor>]) -> Result<Error> {
        for (place, streams) in streams.iter().enumerate() {
            for stream in streams {
                let values = self.pass.device.read(stream)?.to_f32();
                if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                    let what = match place {
                        0 => "output of model.embed_tokens".into(),
                        _ => format!("output of model.layers.{}", place - 1),
                    };
                    let found = value.to_string();
                    return Ok(Error::NotFinite { what, found });
                }
            }
        }
        Ok(Error::NotFinite {
            what: "loss, behind the last layer".into(),
            found: "NaN".into(),
        })
    }
}

pub(super) fn weight(linear: &Linear) -> Weight<'_> {
    Weight {
        name: &linear.name,
        matrix: &linear.weight,
        bias: linear.bias.as_ref(),
    }
}

fn finite(layer: &str, gradient: &HostTensor) -> Result<()> {
    match gradient.to_f32().iter().find(|value| !value.is_finite()) {
        Some(value) => Err(Error::NotFinite {
            what: format!("gradient of {layer}"),
            found: value.to_string(),
        }),
        None => Ok(()),
    }
}
