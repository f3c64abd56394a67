//! Gradients of a model's loss with respect to its weights, block by block, with gradient checkpointing (Chen et al. 2016,
//! arXiv 1604.06174): the activations of as many of the last blocks are kept as there is room for; of the others only the input
//! is, and they are recomputed before they are run back.
//!
//! All tokens go through a layer before the next one is looked at, a microbatch of sequences at a time, so that weights may
//! come to the device layer by layer, and never more than a layer's gradients are in flight.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use super::pairs::{LaidOut, lay_out};
use super::resident::{Head, Model, block_counts};
use super::source::WeightSource;
use crate::device::{Device, HostTensor, Reading, Tensor};
use crate::error::{Error, Result};
use crate::families::{
    embedding_name, final_norm_name, head_name, layer_name, module_name, shared_slots, tensor_specs,
};
use crate::graph::{
    Balance, BlockWeights, Compute, Deferred, Gradient, Node, PairedRows, Parameter, Pass,
    RopeTables, Settings, Sink, Slot, Tape, TokenSplit, Weight, output_name,
};
use crate::interrupt;
use crate::kernels::copy::cast::{cast, scaled};
use crate::kernels::copy::gather_rows::{Rows, rows};
use crate::kernels::embed::scatter::scatter;
use crate::kernels::experts::balance;
use crate::kernels::logits::soft_cap::soft_cap;
use crate::kernels::logits::soft_cap_grad::soft_cap_grad;
use crate::kernels::loss::cross_entropy_grad::{UNSCORED, cross_entropy_grad};
pub use crate::kernels::loss::distil::Divergence;
use crate::kernels::loss::distil::distil;
use crate::kernels::loss::distil_top::distil_top;
use crate::kernels::loss::logsumexp::logsumexp;
use crate::kernels::matmul::backward;
use crate::kernels::residual::add::add;
use crate::tensor::DType;

/// The loss to differentiate: a mean over tokens.
#[derive(Clone, Copy)]
pub struct Loss<'l> {
    /// Of each of the pass's tokens, whether it counts: the next one is to be foretold there. `None`: all but the last of each
    /// sequence; all where there is a teacher alone. Only tokens that count go through the head.
    pub scored: Option<&'l [bool]>,
    /// The factor of the cross-entropy of next tokens, in nats.
    pub next_tokens: f32,
    /// A teacher to be near to.
    pub teacher: Option<Teacher<'l>>,
    /// What scores of texts are to be, of a model whose head gives them: then what counts are the tokens that a text is read of,
    /// one of each row, and the loss is this alone.
    pub scores: Option<ScoreLoss<'l>>,
}

/// A loss of scores of texts, one text a row.
#[derive(Clone, Copy, Debug)]
pub enum ScoreLoss<'l> {
    /// Rows come in pairs, and of each the first is to have the higher score: -log sigmoid(first - second), the mean over pairs
    /// (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1).
    Preferences,
    /// The cross-entropy of each row's label, the mean over rows.
    Labels(&'l [u32]),
}

impl ScoreLoss<'_> {
    /// Rows that its terms are made of.
    fn together(&self) -> usize {
        match self {
            ScoreLoss::Preferences => 2,
            ScoreLoss::Labels(_) => 1,
        }
    }
}

/// A model whose distribution of next tokens another one is to have.
#[derive(Clone, Copy)]
pub struct Teacher<'l> {
    /// What it says of some of the pass's tokens. Each token is asked for once.
    pub says: &'l dyn Fn(&[u32]) -> Result<Taught>,
    /// How far from it the model is.
    pub divergence: Divergence,
    /// Logits of both are divided by this; finite and more than 0. The loss is multiplied by its square, which keeps gradients
    /// of one size (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).
    pub temperature: f32,
    /// The factor of the divergence, in nats.
    pub weight: f32,
}

/// What a teacher says of some tokens, on the model's device.
#[derive(Clone, Debug)]
pub enum Taught {
    /// Its logits, f32 (tokens, vocabulary).
    Logits(Tensor),
    /// Its likeliest next tokens, u32 (tokens, top), and their log-probabilities, f32 of the same shape: the forward KL from
    /// these alone.
    Top(Tensor, Tensor),
}

impl std::fmt::Debug for Teacher<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a teacher at {}, times {}", self.temperature, self.weight)
    }
}

impl std::fmt::Debug for Loss<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of next tokens, {:?}", self.next_tokens, self.teacher)
    }
}

impl<'l> Loss<'l> {
    /// The cross-entropy of every next token within its sequence.
    pub const NEXT_TOKENS: Loss<'static> =
        Loss { scored: None, next_tokens: 1.0, teacher: None, scores: None };

    /// The divergence from a teacher at every token.
    pub fn teacher(says: &'l dyn Fn(&[u32]) -> Result<Taught>, temperature: f32) -> Self {
        let divergence = Divergence::Forward;
        let teacher = Teacher { says, divergence, temperature, weight: 1.0 };
        Self { scored: None, next_tokens: 0.0, teacher: Some(teacher), scores: None }
    }

    /// A loss of scores of texts, each read at the one place of its row that `read` marks.
    pub fn scores(scores: ScoreLoss<'l>, read: &'l [bool]) -> Self {
        Self { scored: Some(read), next_tokens: 0.0, teacher: None, scores: Some(scores) }
    }

    /// Tokens that count, in `sequences` of one length.
    fn count(&self, sequences: usize, length: usize) -> Result<usize> {
        let wrong = |argument: &str, expected: String, found: String| {
            Err(Error::Argument { argument: argument.into(), expected, found })
        };
        if let Some(Teacher { temperature, .. }) = self.teacher
            && !(temperature.is_normal() && temperature > 0.0)
        {
            let expected = "a finite number above 0".into();
            return wrong("temperature", expected, temperature.to_string());
        }
        let Some(scored) = self.scored else {
            return Ok(sequences * (length - usize::from(self.next_tokens != 0.0)));
        };
        if scored.len() != sequences * length {
            let expected = format!("one for each of {} tokens", sequences * length);
            return wrong("tokens that count", expected, scored.len().to_string());
        }
        let last = |at: usize| self.next_tokens != 0.0 && (at + 1).is_multiple_of(length);
        if let Some(at) = (0..scored.len()).find(|at| scored[*at] && last(*at)) {
            let expected = "tokens with one behind them in their sequence".into();
            return wrong("tokens that count", expected, format!("token {at}, a sequence's last"));
        }
        match scored.iter().filter(|counts| **counts).count() {
            0 => wrong("tokens that count", "one or more".into(), "none".into()),
            count => match self.scores {
                None => Ok(count),
                Some(scores) => scores.count(scored, sequences),
            },
        }
    }
}

impl ScoreLoss<'_> {
    /// Its terms, for rows that are read at these places.
    fn count(&self, read: &[bool], sequences: usize) -> Result<usize> {
        let wrong = |argument: &str, expected: String, found: String| {
            Err(Error::Argument { argument: argument.into(), expected, found })
        };
        let once = |row: &[bool]| row.iter().filter(|read| **read).count() == 1;
        if let Some(row) = read.chunks(read.len() / sequences).position(|row| !once(row)) {
            let found = format!("another number in row {row}");
            return wrong("tokens that are read", "one of each row".into(), found);
        }
        match self {
            ScoreLoss::Preferences if !sequences.is_multiple_of(2) => {
                wrong("preferences", "rows in pairs".into(), format!("{sequences} rows"))
            }
            ScoreLoss::Preferences => Ok(sequences / 2),
            ScoreLoss::Labels(labels) if labels.len() != sequences => wrong(
                "labels",
                format!("one for each of {sequences} rows"),
                labels.len().to_string(),
            ),
            ScoreLoss::Labels(_) => Ok(sequences),
        }
    }
}

/// A loss of hidden states, that is added to the loss of the logits: given a layer, the pass's tokens (row by row) and that
/// layer's output of them, f32 (tokens, hidden), its part. `None`: none at this layer.
pub type HiddenLoss<'l> = dyn Fn(usize, Range<usize>, &Tensor) -> Result<Option<HiddenPart>> + 'l;

/// A layer's part of a loss of hidden states.
#[derive(Debug)]
pub struct HiddenPart {
    /// Numbers whose sum is the part, but for a factor, on their way back: it is not waited for.
    pub losses: Reading,
    /// What that sum is multiplied by.
    pub factor: f64,
    /// The gradient at the layer's output, f32 of its shape, in a tensor of its own.
    pub gradient: Tensor,
}

/// The options of a backward pass.
#[derive(Clone, Copy)]
pub struct BackwardOptions<'w> {
    /// The loss of the logits to differentiate.
    pub loss: Loss<'w>,
    /// A loss of hidden states beside it.
    pub hidden: Option<&'w HiddenLoss<'w>>,
    /// The factor of the load-balancing loss of experts, which is added too; 0: none. A model without experts has none.
    pub balance: f32,
    /// Whether a tensor's gradient, by its name, is wanted. Others are not computed; a tied head is its embedding's.
    pub tensor: &'w dyn Fn(&str) -> bool,
    /// Whether each sequence's part of a gradient is handed out apart, numbered as the sequences are. Otherwise a part is a
    /// microbatch's.
    pub by_sequence: bool,
    /// Tokens of a microbatch; at least one sequence goes through a layer at a time.
    pub tokens: usize,
    /// Bytes of activations that may be kept; blocks beyond that are recomputed. None are kept of a model whose layers are
    /// streamed.
    pub activation_budget: u64,
    /// Gradients are handed out as those of so many times the loss, for the receiver to undo. `None`: as those of the loss,
    /// which costs a pass over each where they are in f16 on their way.
    pub scale: Option<f32>,
    /// Whether what is not finite is looked for on the way, and is an error that names the layer.
    pub checks: bool,
    /// Whether gradients of what linear layers give are handed out, too, where `tensor` wants them by
    /// [`output_name`](crate::graph::output_name).
    pub outputs: bool,
    /// Which inputs of adapters are left out, where they have a rate of it.
    pub dropout_seed: Option<u64>,
}

impl std::fmt::Debug for BackwardOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { loss, by_sequence, .. } = self;
        write!(f, "gradients of {loss:?}, by sequence: {by_sequence}")
    }
}

impl BackwardOptions<'_> {
    /// Every gradient of the next tokens' loss, each in one part, in the memory of one block.
    pub const ALL: BackwardOptions<'static> = BackwardOptions {
        loss: Loss::NEXT_TOKENS,
        hidden: None,
        balance: 0.0,
        tensor: &|_| true,
        by_sequence: false,
        tokens: usize::MAX,
        activation_budget: 0,
        scale: None,
        checks: true,
        outputs: false,
        dropout_seed: None,
    };

    /// The factor of the loss of so many tokens that keeps gradients in f16 from underflowing: sums of losses instead of
    /// their mean, and somewhat more, lie well within f16.
    pub fn safe_scale(compute: Compute, scored: usize) -> f32 {
        match compute.activation {
            DType::F16 => 16.0 * scored.next_power_of_two() as f32,
            _ => 1.0,
        }
    }

    /// Parts of each gradient, for so many sequences of one length.
    pub fn parts(&self, sequences: usize, length: usize) -> usize {
        if self.by_sequence {
            return sequences;
        }
        sequences.div_ceil(self.at_once(sequences, length))
    }

    /// Sequences of a microbatch, those of a loss's term together.
    fn at_once(&self, sequences: usize, length: usize) -> usize {
        let together = self.loss.scores.map_or(1, |scores| scores.together());
        (self.tokens / length.max(1)).clamp(1, sequences.max(1)).next_multiple_of(together)
    }
}

impl Model {
    /// [`gradients`] of a model that is on its device, all of them, each in one part. Activations take at most half of the
    /// memory that is left.
    pub fn gradients(
        &self,
        pass: &Pass<'_>,
        ids: &[u32],
        sequences: usize,
        sink: &mut Sink<'_>,
    ) -> Result<f64> {
        gradients(
            WeightSource::Resident(self),
            pass,
            ids,
            sequences,
            BackwardOptions {
                activation_budget: pass.device.spare_bytes() / 2,
                ..BackwardOptions::ALL
            },
            &mut |_, _| {},
            sink,
        )
    }
}

/// The mean loss of the tokens in `ids`, `sequences` rows of one length, and its gradients, given to `sink` part by part:
/// of the head, the final norm, the blocks from the last to the first, and the embedding. `progress` is told of layers
/// done, out of those of the forward and the backward pass.
///
/// A loss or gradient that is not finite is an error that names the layer, if the options say that it is looked for.
pub fn gradients(
    source: WeightSource<'_>,
    pass: &Pass<'_>,
    ids: &[u32],
    sequences: usize,
    options: BackwardOptions<'_>,
    progress: &mut dyn FnMut(usize, usize),
    sink: &mut Sink<'_>,
) -> Result<f64> {
    gradients_later(source, pass, ids, sequences, options, progress, sink)?.finish(pass.device)
}

/// The loss of a pass whose calls are all made: it is read back.
#[derive(Debug)]
pub struct PendingLoss {
    parts: Vec<Losses>,
    /// Of hidden states, each with its factor.
    hidden: Vec<(Reading, f64)>,
    /// What the load-balancing loss of experts is made of: its sums, their tokens and its factor.
    balance: Option<(Reading, usize, f32)>,
    known: f64,
    scored: usize,
}

impl PendingLoss {
    /// Waits for it.
    pub fn finish(self, device: &Device) -> Result<f64> {
        self.finish_parts(device).map(|(loss, _)| loss)
    }

    /// The same, and how evenly experts are used: the load-balancing loss, without the factor with which it is a part of the first.
    pub fn finish_parts(self, device: &Device) -> Result<(f64, Option<f64>)> {
        let mut sum = 0.0;
        for part in self.parts {
            sum += part.sum(device)?;
        }
        let mut sum = sum / self.scored as f64 + self.known;
        for (losses, factor) in self.hidden {
            let losses = device.finish(losses)?.to_f32();
            sum += factor * losses.into_iter().map(f64::from).sum::<f64>();
        }
        let Some((sums, tokens, factor)) = self.balance else { return Ok((sum, None)) };
        let balance = balance::loss(&device.finish(sums)?.to_f32(), tokens);
        Ok((sum + f64::from(factor) * balance, Some(balance)))
    }
}

/// [`gradients`], with a loss that is still on its way: nothing is waited for, but where what is not finite is looked for.
pub fn gradients_later(
    source: WeightSource<'_>,
    pass: &Pass<'_>,
    ids: &[u32],
    sequences: usize,
    options: BackwardOptions<'_>,
    progress: &mut dyn FnMut(usize, usize),
    sink: &mut Sink<'_>,
) -> Result<PendingLoss> {
    let run = BackwardPass::new(source, pass, ids, sequences, options)?;
    let count = source.config().layers();
    let first_kept = match source {
        WeightSource::Resident(_) => run.first_kept(ids.len()),
        WeightSource::Streamed(..) => count,
    };
    let blocks = (first_kept..count).map(|layer| source.block(layer));
    let (blocks, mut kept) = (blocks.collect::<Result<Vec<_>>>()?, Vec::new());
    let mut inputs = Vec::with_capacity(count);
    let streams = run.forward(&blocks, &mut kept, &mut |layer, input| {
        if layer == inputs.len() {
            inputs.push(Vec::new());
        }
        inputs[layer].push(input.clone());
        progress(layer, 2 * count);
        Ok(())
    })?;
    let head = source.head()?;
    let mut checks: Vec<(String, Reading)> = Vec::new();
    let (mut losses, mut grads) = (Vec::new(), Vec::<Tensor>::new());
    let mut tied = Vec::<TiedHeadGrad>::new();
    for (batch, x) in run.batches.iter().zip(&streams) {
        grads.push(run.head(&head, batch, x, (&mut tied, &mut losses, &mut checks), sink)?);
    }
    drop(head);
    let balance = match run.balance(false) {
        Some(of) => Some((pass.device.read_later(of.sums)?, of.tokens, of.factor)),
        None => None,
    };
    let (hidden, known, scored) = (Vec::new(), 0.0, run.scored);
    let mut pending = PendingLoss { parts: losses, hidden, balance, known, scored };
    if options.checks {
        let mut loss = 0.0;
        for part in pending.parts.drain(..) {
            loss += part.sum(pass.device)?;
        }
        if !loss.is_finite() {
            inputs.push(streams);
            return Err(run.first_non_finite_layer(&inputs)?);
        }
        pending.known = loss / run.scored as f64;
    }
    let mut outputs = streams;
    for layer in (run.lowest()..count).rev() {
        interrupt::check()?;
        progress(2 * count - 1 - layer, 2 * count);
        run.hidden_loss(layer, &outputs, &mut grads, &mut pending.hidden)?;
        let inputs = inputs.pop().expect("each block's inputs were kept");
        let mut readings = Vec::new();
        if let Some(recordings) = kept.pop() {
            for (recording, grad) in recordings.into_iter().zip(&mut grads) {
                run.block_backward(layer, recording, grad, &mut readings, sink)?;
            }
        } else {
            let block = source.block(layer)?;
            for ((batch, input), grad) in run.batches.iter().zip(&inputs).zip(&mut grads) {
                let recording = run.recompute(&block, layer, batch, input)?;
                run.block_backward(layer, recording, grad, &mut readings, sink)?;
            }
        }
        if layer == source.config().first_of_stack(layer) {
            // The last of the stack to be run back.
            run.shared.take().into_iter().try_for_each(&mut *sink)?;
        }
        outputs = inputs;
        // A layer's are looked at when the next one's are on their way.
        for (layer, reading) in checks.drain(..) {
            finite(&layer, &pass.device.finish(reading)?)?;
        }
        let name = layer_name(source.config(), layer);
        checks.extend(readings.into_iter().map(|r| (name.clone(), r)));
    }
    for (layer, reading) in checks {
        finite(&layer, &pass.device.finish(reading)?)?;
    }
    if (options.tensor)(&embedding_name(source.config())) {
        run.embedding(&grads, &tied, sink)?;
    }
    Ok(pending)
}

/// Gradients of a loss of one block's output alone, of a given input, f32 (tokens, hidden), `sequences` rows of one length, in
/// the memory of that block. The options' losses are not asked.
pub fn block_gradients(
    source: WeightSource<'_>,
    pass: &Pass<'_>,
    layer: usize,
    (input, sequences): (&Tensor, usize),
    loss: &HiddenLoss<'_>,
    options: BackwardOptions<'_>,
    sink: &mut Sink<'_>,
) -> Result<PendingLoss> {
    // Which tokens went in is known by the input alone.
    let ids = vec![0; input.shape()[0]];
    let run = BackwardPass::new(source, pass, &ids, sequences, options)?;
    let block = source.block(layer)?;
    let (parts, hidden) = (Vec::new(), Vec::new());
    let mut pending = PendingLoss { parts, hidden, balance: None, known: 0.0, scored: 1 };
    for batch in &run.batches {
        let mut x = run.cut(input, run.tokens(batch))?;
        let recording = run.through(&block, layer, batch, &mut x)?;
        let Some(part) = loss(layer, run.tokens(batch), &x)? else { continue };
        pending.hidden.push((part.losses, part.factor));
        let mut grad = scaled(pass.device, &part.gradient, run.scale, DType::F32)?;
        let mut readings = Vec::new();
        run.block_backward(layer, recording, &mut grad, &mut readings, sink)?;
    }
    run.shared.take().into_iter().try_for_each(sink)?;
    Ok(pending)
}

/// A microbatch: sequences that go through a layer at once.
struct Microbatch {
    sequences: Range<usize>,
    ropes: Vec<RopeTables>,
    /// The parts of its rows, of a model with an encoder.
    paired: Option<PairedRows>,
    split: TokenSplit,
}

/// A block's forward pass over a microbatch, to be run back.
struct Recording<'t> {
    tape: Tape<'t>,
    input: Node,
    output: Node,
}

/// The parts of some tokens' losses, being read back from the device.
#[derive(Debug)]
enum Losses {
    /// The rows that count, log-sum-exps and the targets' logits, and what each difference is multiplied by.
    CrossEntropies(Vec<usize>, Reading, Reading, f64),
    /// Each row's, and what each is multiplied by.
    Divergences(Reading, f64),
}

impl Losses {
    fn sum(self, device: &Device) -> Result<f64> {
        match self {
            Losses::CrossEntropies(scored, lse, picked, factor) => {
                let lse = device.finish(lse)?.to_f32();
                let picked = device.finish(picked)?.to_f32();
                let loss = |row: usize| f64::from(lse[row]) - f64::from(picked[row]);
                Ok(scored.into_iter().map(loss).sum::<f64>() * factor)
            }
            Losses::Divergences(rows, factor) => {
                let rows = device.finish(rows)?.to_f32();
                Ok(rows.into_iter().map(f64::from).sum::<f64>() * factor)
            }
        }
    }
}

/// The gradient of a head that is also the embedding: it waits for that of the embedding.
struct TiedHeadGrad {
    part: usize,
    grad: Tensor,
    normed: Tensor,
}

/// A forward and a backward pass.
struct BackwardPass<'a> {
    source: WeightSource<'a>,
    pass: &'a Pass<'a>,
    options: BackwardOptions<'a>,
    /// As the model embeds them.
    ids: Cow<'a, [u32]>,
    length: usize,
    /// Of each token whether it counts, where that is not said of all.
    scored_places: Option<Cow<'a, [bool]>>,
    /// Gradients of tensors that several blocks have, until the last of those is done.
    shared: RefCell<Vec<Gradient>>,
    batches: Vec<Microbatch>,
    /// Tokens whose loss counts.
    scored: usize,
    /// The factor of the loss, so that gradients in f16 do not underflow.
    scale: f32,
    /// What the load-balancing loss is made of, f32 (2, experts), where it is asked for.
    balance: Option<Tensor>,
}

impl<'a> BackwardPass<'a> {
    fn new(
        source: WeightSource<'a>,
        pass: &'a Pass<'a>,
        ids: &'a [u32],
        sequences: usize,
        options: BackwardOptions<'a>,
    ) -> Result<Self> {
        let length = ids.len() / sequences.max(1);
        if length < 2 || length * sequences != ids.len() {
            return Err(Error::Argument {
                argument: "tokens".into(),
                expected: "rows of one length, of two tokens or more".into(),
                found: format!("{} tokens in {sequences} rows", ids.len()),
            });
        }
        let config = source.config();
        match options.loss.scores {
            // A loss of hidden states alone asks no head.
            None if options.loss.next_tokens == 0.0 && options.loss.teacher.is_none() => {}
            None => config.foretells("a loss of next tokens")?,
            Some(ScoreLoss::Preferences) => config.rewards("a loss of preferences")?,
            Some(ScoreLoss::Labels(labels)) => {
                let count = config.reads_out("a loss of labels")?.labels.len();
                if let Some(label) = labels.iter().find(|label| **label as usize >= count) {
                    return Err(Error::Argument {
                        argument: "label".into(),
                        expected: format!("one of the head's {count}, from 0"),
                        found: label.to_string(),
                    });
                }
            }
        }
        let LaidOut { ids, paired } = lay_out(config, ids, sequences)?;
        let scored_places = match (options.loss.scored, &paired) {
            (Some(scored), _) => Some(Cow::Borrowed(scored)),
            (None, None) => None,
            // Rows without targets are read as they are.
            (None, Some(parts)) if parts.width == length => None,
            // Of rows with a source those of the target alone.
            (None, Some(parts)) => {
                let counts = |at: usize| at >= parts.width && at + 1 < length;
                Some((0..ids.len()).map(|at| counts(at % length)).collect())
            }
        };
        if paired.is_some() && options.by_sequence && sequences > 1 {
            let why = "gradients of each row apart are not made of rows with a source";
            config.without_encoder("scores by single rows", why)?;
        }
        if options.by_sequence && options.loss.scores.is_some() {
            return Err(Error::Argument {
                argument: "gradients of each row apart".into(),
                expected: "a loss of next tokens".into(),
                found: "one of scores of texts".into(),
            });
        }
        let loss = Loss { scored: scored_places.as_deref(), ..options.loss };
        let scored = loss.count(sequences, length)?;
        let safe = || BackwardOptions::safe_scale(pass.compute, scored);
        let scale = options.scale.unwrap_or_else(safe);
        let tables = config.ropes.iter().map(|r| r.table(config.head_dim, length));
        let tables: Vec<_> = tables.collect();
        let at_once = options.at_once(sequences, length);
        let batch = |first: usize| {
            let sequences = first..(first + at_once).min(sequences);
            let split = if options.by_sequence {
                TokenSplit::even(pass.device, sequences.len(), length, first)?
            } else {
                TokenSplit::whole(first / at_once)
            };
            let upload =
                |table: &Vec<f32>| RopeTables::upload(pass.device, table, length, sequences.len());
            Ok(Microbatch {
                ropes: tables.iter().map(upload).collect::<Result<_>>()?,
                paired: match &paired {
                    Some(parts) => Some(parts.upload(pass.device, sequences.clone())?),
                    None => None,
                },
                sequences,
                split,
            })
        };
        let batches = (0..sequences).step_by(at_once).map(batch);
        let balance = match config.experts.filter(|_| options.balance != 0.0) {
            Some(experts) => {
                let sums = HostTensor::zeros(DType::F32, &[2, experts.count]);
                Some(pass.device.upload(&sums, "the balance of experts")?)
            }
            None => None,
        };
        Ok(Self {
            batches: batches.collect::<Result<_>>()?,
            source,
            pass,
            options,
            ids,
            length,
            scored_places,
            shared: RefCell::default(),
            scored,
            scale,
            balance,
        })
    }

    /// The load-balancing loss, if it is asked for; `counts`: whether tokens are added to its sums.
    fn balance(&self, counts: bool) -> Option<Balance<'_>> {
        let (tokens, factor) =
            (self.ids.len() * self.source.config().layers(), self.options.balance);
        self.balance.as_ref().map(|sums| Balance { sums, tokens, factor, counts })
    }

    fn settings<'s>(&'s self, split: &'s TokenSplit, counts: bool) -> Settings<'s> {
        Settings {
            activation: self.pass.compute.activation,
            activation_bytes: self.pass.compute.activation_bytes,
            scale: self.scale,
            keeps_scale: self.options.scale.is_some(),
            outputs: self.options.outputs,
            dropout_seed: self.options.dropout_seed,
            split,
            balance: self.balance(counts),
        }
    }

    /// A microbatch's tokens among the pass's.
    fn tokens(&self, batch: &Microbatch) -> Range<usize> {
        batch.sequences.start * self.length..batch.sequences.end * self.length
    }

    /// The first of the blocks whose activations are kept: as many as the budget has room for, none below the lowest that is
    /// run back.
    fn first_kept(&self, tokens: usize) -> usize {
        let config = self.source.config();
        let specs = tensor_specs(config);
        let bytes = |layer: usize| {
            let counts = block_counts(config, &specs, layer);
            (tokens * counts.kept_bytes(self.pass.compute.activation)) as u64
        };
        let (mut first, mut left) = (config.layers(), self.options.activation_budget);
        let lowest = self.lowest();
        while first > lowest {
            let bytes = bytes(first - 1);
            if bytes > left {
                break;
            }
            first -= 1;
            left -= bytes;
        }
        first
    }

    /// The streams after the last block, one a microbatch. `see` is shown every microbatch's input of every block. Recordings
    /// through the last blocks, which `blocks` are, are kept.
    fn forward<'t>(
        &'t self,
        blocks: &'t [Cow<'_, BlockWeights>],
        kept: &mut Vec<Vec<Recording<'t>>>,
        see: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<Vec<Tensor>> {
        let embedded = self.source.embed(self.pass, &self.ids)?;
        let mut streams = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            streams.push(self.cut(&embedded, self.tokens(batch))?);
        }
        drop(embedded);
        let first_kept = self.source.config().layers() - blocks.len();
        for layer in 0..first_kept {
            interrupt::check()?;
            let block = self.source.block(layer)?;
            for (batch, x) in self.batches.iter().zip(&mut streams) {
                see(layer, x)?;
                self.through(&block, layer, batch, x)?;
            }
        }
        for (layer, block) in (first_kept..).zip(blocks) {
            interrupt::check()?;
            let mut recordings = Vec::with_capacity(self.batches.len());
            for (batch, x) in self.batches.iter().zip(&mut streams) {
                see(layer, x)?;
                recordings.push(self.through(block, layer, batch, x)?);
            }
            kept.push(recordings);
        }
        Ok(streams)
    }

    fn record<'t>(
        &'t self,
        block: &'t BlockWeights,
        layer: usize,
        batch: &'t Microbatch,
        input: &Tensor,
        counts: bool,
    ) -> Result<(Tape<'t>, Node, Deferred<'t>)> {
        let config = self.source.config();
        let settings = self.settings(&batch.split, counts);
        let paired = batch.paired.as_ref();
        let mut tape = Tape::for_block(self.pass.device, settings, block, &batch.ropes, paired);
        let x = tape.input(input);
        let node = x.node;
        let shape = config.block_shape(layer);
        let output = (config.family.blocks.tape)(&mut tape, Deferred::Known(x), &shape)?;
        Ok((tape, node, output))
    }

    /// A microbatch's pass through a block, whose output takes the place of its input `x`.
    fn through<'t>(
        &'t self,
        block: &'t BlockWeights,
        layer: usize,
        batch: &'t Microbatch,
        x: &mut Tensor,
    ) -> Result<Recording<'t>> {
        let (mut tape, input, output) = self.record(block, layer, batch, x, true)?;
        let output = tape.force(&output)?;
        *x = output.tensor;
        let output = output.node;
        Ok(Recording { tape, input, output })
    }

    /// The same again, to be run back, without the output itself.
    fn recompute<'t>(
        &'t self,
        block: &'t BlockWeights,
        layer: usize,
        batch: &'t Microbatch,
        input: &Tensor,
    ) -> Result<Recording<'t>> {
        let (mut tape, input, output) = self.record(block, layer, batch, input, false)?;
        let output = tape.place(&output)?;
        Ok(Recording { tape, input, output })
    }

    /// Some rows of f32 (rows, hidden): a copy, unless they are all.
    fn cut(&self, all: &Tensor, tokens: Range<usize>) -> Result<Tensor> {
        if tokens.len() * self.source.config().hidden_size == all.len() {
            return Ok(all.clone());
        }
        self.pick(all, &tokens.map(|token| token as u32).collect::<Vec<_>>())
    }

    /// The rows of f32 (rows, hidden) at these places, a copy.
    fn pick(&self, all: &Tensor, places: &[u32]) -> Result<Tensor> {
        let (device, width) = (self.pass.device, self.source.config().hidden_size);
        let part = device.allocate(DType::F32, &[places.len(), width], "a part")?;
        let pairs = places.iter().zip(0..).map(|(place, row)| (*place, row));
        let list = Rows::upload(device, &pairs.collect::<Vec<_>>())?;
        rows(device, all, &part, width, &list)?;
        Ok(part)
    }

    /// Adds the gradient of a loss of a layer's outputs to theirs. What that is summed from is put to the list.
    fn hidden_loss(
        &self,
        layer: usize,
        outputs: &[Tensor],
        grads: &mut [Tensor],
        losses: &mut Vec<(Reading, f64)>,
    ) -> Result<()> {
        let Some(hidden) = self.options.hidden else {
            return Ok(());
        };
        let device = self.pass.device;
        for ((batch, output), grad) in self.batches.iter().zip(outputs).zip(grads) {
            if let Some(part) = hidden(layer, self.tokens(batch), output)? {
                losses.push((part.losses, part.factor));
                add(device, &scaled(device, &part.gradient, self.scale, DType::F32)?, grad)?;
            }
        }
        Ok(())
    }

    /// Replaces the gradient of a block's output by that of its input, f32 (tokens, hidden).
    fn block_backward(
        &self,
        layer: usize,
        recording: Recording<'_>,
        grad: &mut Tensor,
        readings: &mut Vec<Reading>,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let config = self.source.config();
        let norm = module_name(config, layer, Slot::AttentionNorm);
        let first = format!("{norm}.weight");
        let wants =
            |name: &str| (self.options.checks && name == first) || (self.options.tensor)(name);
        let slots = shared_slots(config, layer).into_iter();
        let shared: Vec<String> =
            slots.map(|slot| format!("{}.weight", module_name(config, layer, slot))).collect();
        let Recording { tape, input, output } = recording;
        let results = vec![(output, grad.clone())];
        let found = tape.backward(results, &[input], &wants, &mut |gradient| {
            // Whatever is not finite in a block's backward pass reaches this one, the sum of all tokens.
            if self.options.checks && gradient.name == first {
                readings.push(self.pass.device.read_later(&gradient.values)?);
            }
            if !(self.options.tensor)(&gradient.name) {
                return Ok(());
            }
            if shared.contains(&gradient.name) { self.hold(gradient) } else { sink(gradient) }
        })?;

        let [Some(of_input)] = &found[..] else {
            unreachable!("a block's output depends on its input");
        };
        *grad = of_input.clone();
        Ok(())
    }

    /// Adds up gradients of a tensor that several blocks have.
    fn hold(&self, gradient: Gradient) -> Result<()> {
        let mut held = self.shared.borrow_mut();
        let same = |sum: &&Gradient| (&sum.name, sum.part) == (&gradient.name, gradient.part);
        match held.iter().find(same) {
            Some(sum) => add(self.pass.device, &gradient.values, &sum.values),
            None => {
                held.push(gradient);
                Ok(())
            }
        }
    }

    /// The lowest layer to run back to: below it nothing is wanted.
    fn lowest(&self) -> usize {
        let config = self.source.config();
        if (self.options.tensor)(&embedding_name(config)) {
            return 0;
        }
        let specs = tensor_specs(config);
        let wanted = specs.iter().filter(|spec| {
            let output = || (self.options.tensor)(&output_name(spec.module()));
            (self.options.tensor)(&spec.name) || (self.options.outputs && output())
        });
        let layers = wanted.filter_map(|spec| spec.layer);
        let adapted = match self.source {
            WeightSource::Resident(model) => model.blocks.iter().position(|block| {
                let mut adapters =
                    block.linears().filter_map(|(_, linear)| linear.adapter.as_ref());
                adapters.any(|adapter| adapter.names().iter().any(|n| (self.options.tensor)(n)))
            }),
            WeightSource::Streamed(..) => None,
        };
        layers.chain(adapted).min().unwrap_or(config.layers())
    }

    /// Why a loss is not finite: the first block whose output is not. `streams`: each block's inputs, and the last's outputs.
    fn first_non_finite_layer(&self, streams: &[Vec<Tensor>]) -> Result<Error> {
        let config = self.source.config();
        for (place, streams) in streams.iter().enumerate() {
            for stream in streams {
                let values = self.pass.device.read(stream)?.to_f32();
                if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                    let module = match place {
                        0 => embedding_name(config).trim_end_matches(".weight").to_string(),
                        _ => layer_name(config, place - 1),
                    };
                    return Ok(Error::NotFinite {
                        what: format!("output of {module}"),
                        found: value.to_string(),
                    });
                }
            }
        }
        Ok(Error::NotFinite { what: "loss, behind the last layer".into(), found: "NaN".into() })
    }

    /// The places within a microbatch of the tokens that go through the head.
    fn head_tokens(&self, batch: &Microbatch) -> Vec<u32> {
        let tokens = self.tokens(batch);
        let places = 0..tokens.len();
        match &self.scored_places {
            None => places.map(|place| place as u32).collect(),
            Some(scored) => {
                let scored = &scored[tokens];
                places.filter(|place| scored[*place]).map(|place| place as u32).collect()
            }
        }
    }

    /// The gradient of the last block's output `x`, f32 (tokens, hidden), times the scale. What a microbatch's losses are summed
    /// from, what a tied head's gradient waits for and what tells that all is finite is put to the lists. As many tokens at a
    /// time as logits fit.
    fn head(
        &self,
        head: &Head,
        batch: &Microbatch,
        x: &Tensor,
        (tied_grads, losses, checks): (
            &mut Vec<TiedHeadGrad>,
            &mut Vec<Losses>,
            &mut Vec<(String, Reading)>,
        ),
        sink: &mut Sink<'_>,
    ) -> Result<Tensor> {
        let (device, config) = (self.pass.device, self.source.config());
        let (width, tied) = (config.hidden_size, config.tied);
        let (norm_name, head_weight) =
            (final_norm_name(config), format!("{}.weight", head_name(config)));
        let asked = |name: &str| (self.options.tensor)(name) && !(tied && name == head_weight);
        let keep = tied && asked(&embedding_name(config));
        let places = self.head_tokens(batch);
        let all = self.tokens(batch).len();
        let tokens = places.len();
        let apart = self.options.by_sequence && (keep || asked(&norm_name) || asked(&head_weight));
        assert!(!apart || tokens == all, "parts are those of whole sequences");
        let part_tokens = if apart { self.length } else { tokens.max(1) };
        let together = self.options.loss.scores.map_or(1, |scores| scores.together());
        let step = head.rows_at_once(device).min(part_tokens).next_multiple_of(together);
        let mut grad = None;
        if tokens < all {
            // What does not count has no gradient.
            grad = Some(scaled(device, x, 0.0, DType::F32)?);
        } else if step < tokens {
            grad = Some(device.allocate(DType::F32, x.shape(), "a gradient")?);
        }
        for start in (0..tokens).step_by(part_tokens) {
            let part = match apart {
                true => batch.sequences.start + start / self.length,
                false => batch.split.first(),
            };
            let mut sums = Vec::<Gradient>::new();
            for first in (start..start + part_tokens).step_by(step) {
                let here = &places[first..(first + step).min(start + part_tokens)];
                let split = TokenSplit::whole(part);
                // The final norm's gradient tells whether all is finite.
                let wants = |name: &str| (self.options.checks && name == norm_name) || asked(name);
                let mut tape = Tape::new(device, self.settings(&split, false));
                let some = if here.len() == all { x.clone() } else { self.pick(x, here)? };
                let some = tape.input(&some);
                let activation = self.pass.compute.activation;
                let mut normed = match &head.norm {
                    Some(norm) => tape.rms(&some, norm, activation)?,
                    None => some.clone(),
                };
                if let Some(pooler) = &head.pooler {
                    let product = tape.linear(&normed, Weight::of(pooler))?;
                    normed = tape.tanh(product)?;
                }
                let logits = tape.linear(&normed, Weight::of(&head.linear))?;
                if let Some(cap) = head.soft_cap {
                    soft_cap(device, &logits.tensor, cap)?;
                }
                let mut of_logits = self.loss(batch, here, &logits.tensor, losses)?;
                if let Some(cap) = head.soft_cap {
                    of_logits = cast(device, &of_logits, DType::F32)?;
                    soft_cap_grad(device, &logits.tensor, &of_logits, cap)?;
                    of_logits = cast(device, &of_logits, activation)?;
                }
                let mut hold = |gradient: Gradient| {
                    match sums.iter().find(|sum| sum.name == gradient.name) {
                        Some(sum) => add(device, &gradient.values, &sum.values)?,
                        None => sums.push(gradient),
                    }
                    Ok(())
                };
                if keep {
                    let (grad, normed) = (of_logits.clone(), normed.tensor.clone());
                    tied_grads.push(TiedHeadGrad { part, grad, normed });
                }
                let results = vec![(logits.node, of_logits)];
                let found = tape.backward(results, &[some.node], &wants, &mut hold)?;
                let of_part = found.into_iter().next().flatten();
                let of_part = of_part.expect("the loss depends on the stream");
                match &grad {
                    Some(grad) => {
                        let pairs = (0..).zip(here).map(|(row, place)| (row, *place));
                        let list = Rows::upload(device, &pairs.collect::<Vec<_>>())?;
                        rows(device, &of_part, grad, width, &list)?;
                    }
                    None => grad = Some(of_part),
                }
            }
            for gradient in sums {
                if self.options.checks && gradient.name == norm_name {
                    checks.push(("the head".into(), device.read_later(&gradient.values)?));
                }
                if asked(&gradient.name) {
                    sink(gradient)?;
                }
            }
        }
        Ok(grad.expect("there is a token"))
    }

    /// The gradient of some of a microbatch's tokens' logits, in the type of products. Their losses are put to the list.
    fn loss(
        &self,
        batch: &Microbatch,
        places: &[u32],
        logits: &Tensor,
        losses: &mut Vec<Losses>,
    ) -> Result<Tensor> {
        let (device, output) = (self.pass.device, self.pass.compute.activation);
        let Loss { next_tokens, teacher, scores, .. } = self.options.loss;
        let first = self.tokens(batch).start;
        if let Some(scores) = scores {
            return self.scores(scores, first, places, logits, losses);
        }
        // The sum of two parts is rounded once.
        let both = next_tokens != 0.0 && teacher.is_some();
        let each = if both { DType::F32 } else { output };
        let mut grad = None;
        if next_tokens != 0.0 {
            grad = Some(self.next_tokens(first, places, logits, each, losses)?);
        }
        if let Some(teacher) = teacher {
            let tokens: Vec<u32> = places.iter().map(|place| first as u32 + place).collect();
            let taught = (teacher.says)(&tokens)?;
            let of_teacher = self.divergences(&teacher, &taught, logits, each, losses)?;
            grad = Some(match grad {
                None => of_teacher,
                Some(sum) => {
                    add(device, &of_teacher, &sum)?;
                    cast(device, &sum, output)?
                }
            });
        }
        grad.ok_or_else(|| Error::Argument {
            argument: "the loss".into(),
            expected: "next tokens, a teacher or both".into(),
            found: "neither".into(),
        })
    }

    fn divergences(
        &self,
        teacher: &Teacher<'_>,
        taught: &Taught,
        child: &Tensor,
        output: DType,
        losses: &mut Vec<Losses>,
    ) -> Result<Tensor> {
        let device = self.pass.device;
        let wrong = |expected: String, found: String| {
            Err(Error::Argument { argument: "what a teacher says".into(), expected, found })
        };
        let temperature = teacher.temperature;
        let factor = teacher.weight * temperature * temperature;
        let weight = factor * self.scale / self.scored as f32;
        let rows = child.shape()[0];
        let every = device.upload(&HostTensor::from_u32(&[rows], &vec![1; rows]), "rows")?;
        let (grad, losses_of_rows) = match taught {
            Taught::Logits(parent) => {
                let of = |logits: &Tensor| (logits.dtype(), logits.shape().to_vec());
                if of(parent) != of(child) {
                    return wrong(format!("{:?}", of(child)), format!("{:?}", of(parent)));
                }
                let divergence = teacher.divergence;
                distil(device, divergence, parent, child, &every, temperature, weight, output)?
            }
            Taught::Top(tokens, logs) => {
                if teacher.divergence != Divergence::Forward {
                    let found = format!("{:?}", teacher.divergence);
                    return wrong("the forward divergence from a teacher's top".into(), found);
                }
                distil_top(device, (tokens, logs), child, &every, temperature, weight, output)?
            }
        };
        let reading = device.read_later(&losses_of_rows)?;
        losses.push(Losses::Divergences(reading, f64::from(factor)));
        Ok(grad)
    }

    fn next_tokens(
        &self,
        first: usize,
        places: &[u32],
        logits: &Tensor,
        output: DType,
        losses: &mut Vec<Losses>,
    ) -> Result<Tensor> {
        let factor = self.options.loss.next_tokens;
        let target = |place: &u32| match (*place as usize + 1) % self.length {
            0 => UNSCORED,
            _ => self.ids[first + *place as usize + 1],
        };
        let targets: Vec<u32> = places.iter().map(target).collect();
        self.cross_entropies(logits, &targets, (factor, output), losses)
    }

    /// The gradient of scores of the rows that are read at some places.
    fn scores(
        &self,
        loss: ScoreLoss<'_>,
        first: usize,
        places: &[u32],
        scores: &Tensor,
        losses: &mut Vec<Losses>,
    ) -> Result<Tensor> {
        let as_products = (1.0, self.pass.compute.activation);
        match loss {
            // Of two scores, the first is the one to be chosen: the cross-entropy of that is the loss.
            ScoreLoss::Preferences => {
                let pairs = places.len() / 2;
                let grad = self.cross_entropies(
                    &scores.reshaped(&[pairs, 2]),
                    &vec![0; pairs],
                    as_products,
                    losses,
                )?;
                Ok(grad.reshaped(scores.shape()))
            }
            ScoreLoss::Labels(labels) => {
                let label = |place: &u32| labels[(first + *place as usize) / self.length];
                let labels: Vec<u32> = places.iter().map(label).collect();
                self.cross_entropies(scores, &labels, as_products, losses)
            }
        }
    }

    /// The gradient of `factor` times the mean cross-entropy of a target column in each row, in type `output`.
    fn cross_entropies(
        &self,
        logits: &Tensor,
        targets: &[u32],
        (factor, output): (f32, DType),
        losses: &mut Vec<Losses>,
    ) -> Result<Tensor> {
        let device = self.pass.device;
        let scored = (0..targets.len()).filter(|row| targets[*row] != UNSCORED);
        // Every row needs a column to pick; what rows without a target pick is left out.
        let picks: Vec<u32> = targets.iter().map(|t| if *t == UNSCORED { 0 } else { *t }).collect();
        let on_device = |targets: &[u32]| {
            let targets = HostTensor::from_u32(&[targets.len()], targets);
            device.upload(&targets, "targets")
        };
        let (lse, picked) = logsumexp(device, logits, &on_device(&picks)?)?;
        let grad = cross_entropy_grad(
            device,
            logits,
            &lse,
            &on_device(targets)?,
            factor * self.scale / self.scored as f32,
            output,
        )?;
        let (lse, picked) = (device.read_later(&lse)?, device.read_later(&picked)?);
        losses.push(Losses::CrossEntropies(scored.collect(), lse, picked, f64::from(factor)));
        Ok(grad)
    }

    /// Hands out the embedding's gradient, of which a tied head's is a part.
    fn embedding(
        &self,
        grads: &[Tensor],
        tied: &[TiedHeadGrad],
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let (device, config) = (self.pass.device, self.source.config());
        let table = self.source.embedding()?;
        let name = embedding_name(config);
        let factor = config.embedding_scale();
        for (batch, grad) in self.batches.iter().zip(grads) {
            let parts = if self.options.by_sequence {
                batch.sequences.clone()
            } else {
                batch.split.first()..batch.split.first() + 1
            };
            let tokens = self.tokens(batch);
            let each = tokens.len() / parts.len();
            for (place, part) in parts.enumerate() {
                let shape = [config.vocab_size, config.hidden_size];
                let values = device.allocate(DType::F32, &shape, &name)?;
                let mut accumulate = false;
                for product in tied.iter().filter(|tied| tied.part == part) {
                    let (grad, normed) = (&product.grad, &product.normed);
                    backward::weight(device, grad, normed, &mut None, &values, accumulate)?;
                    accumulate = true;
                }
                let here = place * each..(place + 1) * each;
                let ids = &self.ids[tokens.start + here.start..tokens.start + here.end];
                let mut of_rows = self.cut(grad, here)?;
                if let Some(factor) = factor {
                    of_rows = scaled(device, &of_rows, factor, DType::F32)?;
                }
                scatter(device, &of_rows, ids, &values, accumulate)?;
                sink(Gradient {
                    name: name.clone(),
                    part,
                    weight: Parameter::Matrix(table.clone()),
                    values: match self.options.scale {
                        Some(_) => values,
                        None => scaled(device, &values, 1.0 / self.scale, DType::F32)?,
                    },
                })?;
            }
        }
        Ok(())
    }
}

fn finite(layer: &str, gradient: &HostTensor) -> Result<()> {
    match gradient.to_f32().iter().find(|value| !value.is_finite()) {
        Some(value) => {
            Err(Error::NotFinite { what: format!("gradient of {layer}"), found: value.to_string() })
        }
        None => Ok(()),
    }
}
