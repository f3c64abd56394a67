//! Dependency groups: the channels of several tensors that can only be cut together (Ma et al. 2023, LLM-Pruner, arXiv
//! 2305.11627, section 3.1; Fang et al. 2023, DepGraph). They follow from the family's name table, which says what the rows
//! and columns of each tensor are channels of: whatever produces a width, and whatever consumes it, belongs to its group.

use std::fmt;

use serde::Serialize;

use super::config::Config;
use super::names::{Role, TensorSpec};

/// What channels can be cut from, in the order in which several are: the numbers of heads are those before their groups go, those
/// of a block's channels those before blocks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrunableDim {
    /// Channels of a block's feed-forward.
    FeedForward,
    /// Query heads of a block, while its key-value heads stay: of each of them as many.
    Head,
    /// Key-value heads of a block, each with the query heads that read it: contiguous ones.
    KvGroup,
    /// Columns of the residual stream, through the whole model.
    Hidden,
    /// Blocks.
    Layers,
}

impl PrunableDim {
    /// The name in tensors of scores: `NAME.ffn.L`.
    pub fn name(self) -> &'static str {
        match self {
            PrunableDim::FeedForward => "ffn",
            PrunableDim::KvGroup => "kvgroup",
            PrunableDim::Head => "head",
            PrunableDim::Hidden => "hidden",
            PrunableDim::Layers => "layer",
        }
    }

    /// How many a model of this configuration has of it, in a layer where layers have their own.
    pub fn units(self, config: &Config, layer: Option<usize>) -> usize {
        let widths = config.blocks[layer.unwrap_or(0)];
        match self {
            PrunableDim::FeedForward => widths.intermediate_size,
            PrunableDim::KvGroup => widths.kv_heads,
            PrunableDim::Head => widths.heads,
            PrunableDim::Hidden => config.hidden_size,
            PrunableDim::Layers => config.layers(),
        }
    }

    /// Parts of equal size that its units fall into, each of which keeps as many as the others: a block's query heads by the
    /// key-value head that they read, anything else as a whole.
    pub fn parts(self, config: &Config, layer: Option<usize>) -> usize {
        match self {
            PrunableDim::Head => config.blocks[layer.unwrap_or(0)].kv_heads,
            _ => 1,
        }
    }

    /// Whether each block has its own.
    pub fn of_blocks(self) -> bool {
        matches!(self, PrunableDim::FeedForward | PrunableDim::Head | PrunableDim::KvGroup)
    }

    /// Whether channels of `other` go when this is cut: key-value heads take their query heads along.
    pub fn takes(self, other: PrunableDim) -> bool {
        self == other || (self, other) == (PrunableDim::KvGroup, PrunableDim::Head)
    }
}

/// A dimension of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Output features.
    Rows,
    /// Input features; the values of a vector.
    Columns,
}

/// What a tensor does with a width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Its result has that width.
    Produces,
    /// Its input has.
    Consumes,
    /// Both, channel by channel.
    Carries,
}

/// A tensor's part in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// The tensor's name.
    pub tensor: String,
    /// The dimension.
    pub axis: Axis,
    /// Consecutive channels that one unit of the group has there.
    pub span: usize,
    /// What the tensor does with them.
    pub side: Side,
}

/// Channels that can only be cut together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What they are channels of.
    pub width: PrunableDim,
    /// The block, of widths that each block has.
    pub layer: Option<usize>,
    /// How many units there are, each of which can go or stay.
    pub units: usize,
    /// Parts of equal size that the units fall into, of each of which as many stay ([`PrunableDim::parts`]).
    pub parts: usize,
    /// What a unit is made of. None for [`PrunableDim::Layers`]: a unit is all tensors of a block.
    pub members: Vec<Member>,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "{}.{layer}", self.width.name()),
            None => f.write_str(self.width.name()),
        }
    }
}

/// The groups of a model with these tensors, block by block, then those that go through all of it. Query heads are a group of
/// their own beside that of the key-value heads, where several read one. Channels of experts are none, nor are heads and blocks of
/// a model with an encoder.
pub fn groups(config: &Config, specs: &[TensorSpec]) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut add = |width: PrunableDim, layer: Option<usize>| {
        let (units, parts) = (width.units(config, layer), width.parts(config, layer));
        if width == PrunableDim::Head && units == parts {
            // Each is all that reads its key-value head.
            return;
        }
        let mut members = Vec::new();
        for spec in specs {
            if layer.is_some() && spec.layer() != layer {
                continue;
            }
            let axes = [
                (Axis::Rows, spec.row_width, spec.rows),
                (Axis::Columns, spec.column_width, spec.columns),
            ];
            for (axis, of, channels) in axes {
                if of.is_some_and(|of| width.takes(of)) {
                    members.push(Member {
                        tensor: spec.name.clone(),
                        axis,
                        span: channels / units,
                        side: side(spec.role, axis),
                    });
                }
            }
        }
        groups.push(Group { width, layer, units, parts, members });
    };
    for layer in 0..config.layers() {
        // One channel of every expert would be a unit, and has nothing to do with the same channel of another.
        if config.experts.is_none() {
            add(PrunableDim::FeedForward, Some(layer));
        }
        // All blocks of a stack share the biases of its heads, and the first block has them.
        if config.encoder.is_none() {
            add(PrunableDim::KvGroup, Some(layer));
            add(PrunableDim::Head, Some(layer));
        }
    }
    add(PrunableDim::Hidden, None);
    if config.encoder.is_none() {
        add(PrunableDim::Layers, None);
    }
    groups
}

fn side(role: Role, axis: Axis) -> Side {
    match (role, axis) {
        (Role::Norm, _) => Side::Carries,
        // An embedding is looked up by row: its columns are what comes out.
        (Role::Embedding, _) | (Role::Bias, _) | (_, Axis::Rows) => Side::Produces,
        (_, Axis::Columns) => Side::Consumes,
    }
}
