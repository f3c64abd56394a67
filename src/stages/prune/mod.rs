//! `prune`: what matters least goes, by one of several methods: a file and rows of [`METHODS`] each.

pub mod channels;
mod cut;
pub mod depth;
pub mod experts;
pub mod minitron;
pub mod slicegpt;
pub mod sparse;

use super::method::{Method, flags, method, stage};
use super::{RecipeStage, StageKind};

pub use channels::{Prune, PruneMethod, Ranking, RatioOf, ReductionName, Scope};
pub use cut::{Requantize, kept};
pub use depth::Depth;
pub use experts::Experts;
pub use minitron::Minitron;
pub use slicegpt::{Form, SliceGpt, SliceMethod};
pub use sparse::{Allocate, SparseMethod, Sparsify};

pub(super) const KIND: StageKind = StageKind {
    name: "prune",
    result: "pruned",
    methods: METHODS,
    command: "lopper prune MODEL --method METHOD --then TYPE",
    parse: |table| super::method::parse(METHODS, table),
};

/// Every method.
pub static METHODS: &[Method] = &[
    method!(
        Prune,
        "llm-pruner",
        "channels and heads, or blocks, by weights or gradients (LLM-Pruner)"
    ),
    method!(
        Minitron,
        "minitron",
        "channels, heads, hidden width and blocks by activations, to a ratio, shape or size"
    ),
    method!(Depth, "depth", "blocks left out, by cosine or perplexity, or merged"),
    method!(
        Experts,
        "experts",
        "whole experts of a mixture, by use or by what they give their tokens (gate-norm, REAP)"
    ),
    method!(
        SliceGpt,
        "slicegpt",
        "the residual stream's principal components, but the least of them (SliceGPT)"
    ),
    method!(Sparsify, "magnitude", "single weights: the smallest become zero"),
    method!(
        Sparsify,
        "wanda",
        "single weights, by magnitude times the norm of their input (Wanda)"
    ),
    method!(Sparsify, "sparsegpt", "single weights; those that stay make up for them (SparseGPT)"),
];

/// The flags of `lopper prune`, and the stage that they ask for.
#[derive(Clone, Debug)]
pub struct Flags(pub RecipeStage);

impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        flags(METHODS, "How what goes is found:", command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        flags(METHODS, "How what goes is found:", command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        stage(KIND.name, METHODS, matches).map(|stage| Self(RecipeStage::of(stage)))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
