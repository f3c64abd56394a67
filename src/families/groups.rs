//! Dependency groups: the channels of several tensors that can only be cut together (Ma et al. 2023, LLM-Pruner, arXiv
//! 2305.11627, section 3.1; Fang et al. 2023, DepGraph). They follow from the family's name table, which says what the rows
//! and columns of each tensor are channels of: whatever produces a width, and whatever consumes it, belongs to its group.

use std::fmt;

use serde::Serialize;

use super::config::Config;
use super::names::{Role, TensorSpec};

/// What channels can be cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrunableDim {
    /// Channels of a block's feed-forward.
    FeedForward,
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
            PrunableDim::Hidden => config.hidden_size,
            PrunableDim::Layers => config.layers(),
        }
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

/// The groups of a model with these tensors, block by block, then those that go through all of it.
pub fn groups(config: &Config, specs: &[TensorSpec]) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut add = |width: PrunableDim, layer: Option<usize>| {
        let units = width.units(config, layer);
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
                if of == Some(width) {
                    members.push(Member {
                        tensor: spec.name.clone(),
                        axis,
                        span: channels / units,
                        side: side(spec.role, axis),
                    });
                }
            }
        }
        groups.push(Group { width, layer, units, members });
    };
    for layer in 0..config.layers() {
        add(PrunableDim::FeedForward, Some(layer));
        add(PrunableDim::KvGroup, Some(layer));
    }
    add(PrunableDim::Hidden, None);
    add(PrunableDim::Layers, None);
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
