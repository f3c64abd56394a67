//! What a block function runs on. A family's block is written once, over [`Graph`]; who implements it decides what becomes of
//! the operations:
//!
//! - [`Eager`] computes them, fused where kernels are, over a key-value cache: evaluation, generation, calibration;
//! - [`Tape`] computes them and keeps what their gradients need;
//! - [`Counter`] computes nothing and counts products, bytes and operations.
//!
//! [`Graph::linear`] is the one call site of every linear layer: statistics are taken of its input there, and another weight or
//! an adapter stands in for it there. ([`Graph::shortcut`] is that of the few that take the residual stream as it is.)

mod counter;
mod eager;
mod linear;
mod paired;
mod routed;
mod tape;
mod token_split;

pub use counter::{Counter, Counts, Output as ProductOutput, Width as CountedWidth};
pub use eager::{Eager, KeyValueCache, Lazy, Paired, ROUTED_WITHOUT_READING, Tap};
pub use linear::{Adapter, Compute, Factor, Linear, Pass, PositionBias, RmsNormWeight};
pub use paired::{DistanceBuckets, PairedRows, Part};
pub use routed::Routed;
pub use tape::{
    Balance, Deferred, Gradient, Node, Parameter, RopeTables, Routing, Settings, Sink, Tape, Value,
    Weight, output_name,
};
pub use token_split::TokenSplit;

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::Result;
pub use crate::kernels::activation::Activation;
pub use crate::kernels::attention::Attention;
use crate::tensor::DType;

/// A weight's place in a model: in a block, or before or after the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The token embedding.
    Embedding,
    /// The table of what is added to embeddings by a token's place.
    Positions,
    /// The table of what is added to them by the kind of text that a token is of; its first row is that of a single text.
    TokenTypes,
    /// The norm of embeddings.
    EmbeddingNorm,
    /// The norm before attention, or of the stream with attention's result.
    AttentionNorm,
    /// The query projection.
    Query,
    /// The key projection.
    Key,
    /// The value projection.
    Value,
    /// The norm of each head's queries.
    QueryNorm,
    /// The norm of each head's keys.
    KeyNorm,
    /// The output projection of attention.
    Output,
    /// What turns the residual stream into the basis that attention's result is in, where a model's halves have bases of their
    /// own.
    AttentionShortcut,
    /// The norm of attention's result.
    PostAttentionNorm,
    /// The norm before attention over the source.
    CrossNorm,
    /// The query projection of attention over the source.
    CrossQuery,
    /// Its key projection, of what the encoder made of the source.
    CrossKey,
    /// Its value projection.
    CrossValue,
    /// Its output projection.
    CrossOutput,
    /// The norm before the feed-forward.
    FeedForwardNorm,
    /// The gate projection of the feed-forward.
    Gate,
    /// The up projection.
    Up,
    /// The down projection.
    Down,
    /// What turns the residual stream into the basis that the feed-forward's result is in.
    FeedForwardShortcut,
    /// The projection that says which experts a token goes to.
    Router,
    /// The gate projection of an expert's feed-forward.
    ExpertGate(u16),
    /// The up projection of an expert.
    ExpertUp(u16),
    /// The down projection of an expert.
    ExpertDown(u16),
    /// The norm of the feed-forward's result.
    PostFeedForwardNorm,
    /// The bias of scores by the distance between two tokens, which all blocks of a stack have.
    PositionBias,
    /// The norm of what the encoder made of the source, which all blocks of the decoder have.
    SourceNorm,
    /// The norm after the last block.
    FinalNorm,
    /// What takes the token that a text is read at to a head that scores labels: a product, and tanh behind it.
    Pooler,
    /// The output head.
    Head,
}

impl Slot {
    /// Whether what this norm gives is an input of products only, and so comes in their type. What is added to the residual
    /// stream, or rotated, stays f32.
    pub fn feeds_products(self) -> bool {
        matches!(
            self,
            Slot::AttentionNorm
                | Slot::CrossNorm
                | Slot::SourceNorm
                | Slot::FeedForwardNorm
                | Slot::FinalNorm
        )
    }

    /// The slot that stands for all linear layers with the same input: its own, but the queries' for keys and values, and the
    /// gate's for what it gates. What is known of the input is known of all of them.
    pub fn input(self) -> Slot {
        match self {
            Slot::Key | Slot::Value => Slot::Query,
            Slot::CrossValue => Slot::CrossKey,
            Slot::Up => Slot::Gate,
            Slot::ExpertUp(expert) => Slot::ExpertGate(expert),
            slot => slot,
        }
    }

    /// The expert that it is a part of, if it is one's.
    pub fn expert(self) -> Option<usize> {
        match self {
            Slot::ExpertGate(expert) | Slot::ExpertUp(expert) | Slot::ExpertDown(expert) => {
                Some(usize::from(expert))
            }
            _ => None,
        }
    }

    /// The slot that an expert's has in a block with one feed-forward; itself if it is no expert's.
    pub fn of_no_expert(self) -> Slot {
        match self {
            Slot::ExpertGate(_) => Slot::Gate,
            Slot::ExpertUp(_) => Slot::Up,
            Slot::ExpertDown(_) => Slot::Down,
            slot => slot,
        }
    }

    /// The same slot of another expert; itself if it is no expert's.
    pub fn of_expert(self, expert: usize) -> Slot {
        let number = expert as u16;
        match self {
            Slot::ExpertGate(_) => Slot::ExpertGate(number),
            Slot::ExpertUp(_) => Slot::ExpertUp(number),
            Slot::ExpertDown(_) => Slot::ExpertDown(number),
            slot => slot,
        }
    }

    /// Whether its result is added to the residual stream, and so stays f32.
    pub fn feeds_stream(self) -> bool {
        matches!(self, Slot::Output | Slot::CrossOutput | Slot::Down | Slot::ExpertDown(_))
    }
}

/// A mixture of experts: how many a block has, and how many of them each token goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Experts {
    /// Experts of a block: 1 to [`MAX_EXPERTS`].
    pub count: usize,
    /// Those of a token: at most all.
    pub used: usize,
    /// Whether a token's shares add up to 1; otherwise they are what its experts have of the softmax over all.
    #[serde(default = "add_up")]
    pub normalized: bool,
}

/// What is not said of experts in older records.
fn add_up() -> bool {
    true
}

/// Most experts of a block.
pub const MAX_EXPERTS: usize = 1024;

/// A layer's shape and numbers: all that a block function needs beside the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockShape {
    /// Its attention.
    pub attention: Attention,
    /// Which of the model's rotary encodings it uses.
    pub rope: usize,
    /// The activation that gates its feed-forward.
    pub activation: Activation,
    /// Its experts, if it has some.
    pub experts: Option<Experts>,
    /// The tokens that it takes, of a model whose rows have two parts.
    pub part: Option<Part>,
    /// Whether it is the first.
    pub first: bool,
}

/// The operations of a block. Values have (tokens, width) elements; a slot names a weight of the block.
///
/// Families still to come add operations, not another shape.
pub trait Graph {
    /// A value, computed or not yet.
    type Value;
    /// Which experts the tokens go to, and what each counts.
    type Routing;

    /// `x` / sqrt(mean(x^2) + epsilon) * weight, over as many columns at a time as the weight has: the whole width, or each
    /// head's.
    fn norm(&mut self, x: &Self::Value, slot: Slot) -> Result<Self::Value>;

    /// The residual stream, each row of it less its mean and over the deviation of what is left, times a gain and plus a bias (Ba, Kiros
    /// and Hinton 2016, arXiv 1607.06450): as after each half of a block that normalizes behind them. A graph may reuse its memory.
    fn layer_norm(&mut self, stream: Self::Value, slot: Slot) -> Result<Self::Value>;

    /// The residual stream with a row of a table added to each token: that of its place, or of token types the first. A graph may reuse
    /// its memory.
    fn look_up(&mut self, stream: Self::Value, slot: Slot) -> Result<Self::Value>;

    /// activation(x), of a feed-forward without a gate.
    fn activate(&mut self, x: Self::Value, activation: Activation) -> Result<Self::Value>;

    /// The product of `x` with a weight, plus its bias where it has one.
    fn linear(&mut self, x: &Self::Value, slot: Slot) -> Result<Self::Value>;

    /// Each head's pairs of columns turned by their token's position.
    fn rotary(&mut self, x: Self::Value, rope: usize) -> Result<Self::Value>;

    /// Attention of queries over keys and values; in a graph with a cache, over those that it holds too.
    fn attention(
        &mut self,
        query: Self::Value,
        key: Self::Value,
        value: Self::Value,
        shape: &Attention,
    ) -> Result<Self::Value>;

    /// The residual stream of a part's tokens; `None` where the pass has none. A graph may give the stream itself.
    fn take(&mut self, stream: &Self::Value, part: Part) -> Result<Option<Self::Value>>;

    /// The residual stream with what became of a part's tokens in their places. A graph may reuse the stream's memory.
    fn put(&mut self, stream: Self::Value, part: Part, own: Self::Value) -> Result<Self::Value>;

    /// Attention within a part, with the block's bias by distance: of the source over all of it, of the target over what is before
    /// a token; in a graph with a cache, over what that holds too.
    fn attention_within(
        &mut self,
        query: Self::Value,
        key: Self::Value,
        value: Self::Value,
        shape: &Attention,
        part: Part,
    ) -> Result<Self::Value>;

    /// Keys and values of the source for the target, in this pass and in those that go on from it.
    fn remember(&mut self, key: Self::Value, value: Self::Value) -> Result<()>;

    /// Attention of the target over what is remembered.
    fn recall(&mut self, query: Self::Value, shape: &Attention) -> Result<Self::Value>;

    /// activation(gate) * up
    fn gate(
        &mut self,
        gate: Self::Value,
        up: Self::Value,
        activation: Activation,
    ) -> Result<Self::Value>;

    /// The residual stream in another basis: its product with a weight; itself where the block has none in this slot. Of f32
    /// whatever products take otherwise: it is still the stream. A graph may reuse its memory.
    fn shortcut(&mut self, stream: Self::Value, slot: Slot) -> Result<Self::Value>;

    /// The residual stream with `x` added. A graph may reuse the stream's memory.
    fn add(&mut self, stream: Self::Value, x: Self::Value) -> Result<Self::Value>;

    /// The experts that each token goes to, by the router's result, (tokens, experts): the largest few, with shares that are the
    /// softmax of theirs, or what they have of that of all.
    fn route(&mut self, logits: Self::Value, experts: Experts) -> Result<Self::Routing>;

    /// The tokens of `x` that go to an expert; `None` where there are none. A graph may give all of them: what comes of those
    /// that do not go there counts nothing.
    fn to_expert(
        &mut self,
        x: &Self::Value,
        routing: &Self::Routing,
        expert: usize,
    ) -> Result<Option<Self::Value>>;

    /// The residual stream with what experts made of their tokens added, each result times its share. A graph may reuse the
    /// stream's memory.
    fn add_experts(
        &mut self,
        stream: Self::Value,
        routing: Self::Routing,
        results: Vec<(usize, Self::Value)>,
    ) -> Result<Self::Value>;
}

/// An expert's linear layers, by slot.
pub type ExpertLayers = Vec<(Slot, Linear)>;

/// Where the experts are of blocks that do not have them on the device all along.
pub trait ExpertWeights: std::fmt::Debug {
    /// The layers of a block's expert, on the device for as long as they are held.
    fn expert(&self, device: &Device, layer: usize, expert: usize) -> Result<Rc<ExpertLayers>>;
}

/// The weights of a block on a device, by slot.
#[derive(Clone, Debug, Default)]
pub struct BlockWeights {
    linears: Vec<(Slot, Linear)>,
    norms: Vec<(Slot, RmsNormWeight)>,
    position: Option<PositionBias>,
    /// Where its experts are, and its number, if they are not among its layers.
    experts: Option<(Rc<dyn ExpertWeights>, usize)>,
}

impl BlockWeights {
    /// Lets experts, those of block `layer`, come from elsewhere.
    pub fn set_experts(&mut self, from: Rc<dyn ExpertWeights>, layer: usize) {
        self.experts = Some((from, layer));
    }

    /// Whether its experts come from elsewhere.
    pub fn streams_experts(&self) -> bool {
        self.experts.is_some()
    }

    /// An expert's layers, if they come from elsewhere.
    fn streamed(&self, device: &Device, expert: usize) -> Result<Option<Rc<ExpertLayers>>> {
        let from = self.experts.as_ref();
        from.map(|(from, layer)| from.expert(device, *layer, expert)).transpose()
    }

    /// Puts a linear layer in a slot, in place of what was there.
    pub fn set_linear(&mut self, slot: Slot, linear: Linear) {
        match self.linears.iter_mut().find(|(known, _)| *known == slot) {
            Some((_, old)) => *old = linear,
            None => self.linears.push((slot, linear)),
        }
    }

    /// The linear layers, to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.linears.iter_mut().map(|(_, linear)| linear)
    }

    /// The norms.
    pub fn norms(&self) -> impl Iterator<Item = &RmsNormWeight> {
        self.norms.iter().map(|(_, norm)| norm)
    }

    /// The bias of its scores, if it has one.
    pub fn position(&self) -> Option<&PositionBias> {
        self.position.as_ref()
    }

    /// Gives it a bias of scores.
    pub fn set_position(&mut self, bias: PositionBias) {
        self.position = Some(bias);
    }

    /// Puts a norm in a slot that has none.
    pub fn set_norm(&mut self, slot: Slot, norm: RmsNormWeight) {
        self.norms.push((slot, norm));
    }

    /// The linear layers, in the order in which the block uses them.
    pub fn linears(&self) -> impl Iterator<Item = (Slot, &Linear)> {
        self.linears.iter().map(|(slot, linear)| (*slot, linear))
    }

    /// The linear layer of a slot, if the block has one there.
    pub fn find(&self, slot: Slot) -> Option<&Linear> {
        self.linears().find(|(known, _)| *known == slot).map(|(_, linear)| linear)
    }

    /// The linear layer of a slot. The family's rows list every slot that its block function uses; a test runs each.
    pub fn linear(&self, slot: Slot) -> &Linear {
        self.find(slot).expect("a family's rows list its linear layers")
    }

    /// The type in which a block asks for the product of a slot where that is fused with nothing: what is normalized or gated next is
    /// f32, the rest is as activations are.
    pub fn result_type(&self, slot: Slot, activation: DType) -> DType {
        let normed = |norm: Slot| self.norms.iter().any(|(known, _)| *known == norm);
        match slot {
            Slot::Query if normed(Slot::QueryNorm) => DType::F32,
            Slot::Key if normed(Slot::KeyNorm) => DType::F32,
            Slot::Gate | Slot::Up | Slot::ExpertGate(_) | Slot::ExpertUp(_) => DType::F32,
            _ => activation,
        }
    }

    /// The linear layers whose products may be one with a slot's, its own among them: they have the same input and nothing beside, and
    /// the block asks for all in that type.
    pub fn beside(
        &self,
        slot: Slot,
        output: DType,
        activation: DType,
    ) -> impl Iterator<Item = (Slot, &Linear)> {
        self.linears().filter(move |(other, linear)| {
            let alike = other.input() == slot.input() && linear.adapter.is_none();
            alike && self.result_type(*other, activation) == output
        })
    }

    /// The norm of a slot.
    pub fn norm(&self, slot: Slot) -> &RmsNormWeight {
        let found = self.norms.iter().find(|(known, _)| *known == slot);
        &found.expect("a family's rows list its norms").1
    }
}

/// A block function, for each kind of graph.
#[derive(Clone, Copy)]
pub struct Blocks {
    /// Computes.
    pub eager: for<'a, 'g> fn(&'a mut Eager<'g>, Lazy, &BlockShape) -> Result<Lazy>,
    /// Records.
    pub tape: for<'a, 'g> fn(&'a mut Tape<'g>, Deferred<'g>, &BlockShape) -> Result<Deferred<'g>>,
    /// Counts.
    pub counter:
        for<'a, 'g> fn(&'a mut Counter<'g>, CountedWidth, &BlockShape) -> Result<CountedWidth>,
}

/// [`Blocks`] of a function over any graph, with the arguments behind its first three.
macro_rules! blocks {
    ($block:path $(, $argument:expr)*) => {
        $crate::graph::Blocks {
            eager: |g, x, shape| $block(g, x, shape $(, $argument)*),
            tape: |g, x, shape| $block(g, x, shape $(, $argument)*),
            counter: |g, x, shape| $block(g, x, shape $(, $argument)*),
        }
    };
}
pub(crate) use blocks;
