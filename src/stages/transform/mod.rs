//! `transform`: weights become others that compute the same and round better, by one of several methods: a file and rows of
//! [`METHODS`] each. A `quantize` stage of any method comes behind it.

mod awq;
mod inputs;
mod rotate;
mod scaled;
mod smooth;

use super::method::{Method, flags, method, stage};
use super::{RecipeStage, StageKind};

pub use awq::Awq;
pub use inputs::{InputScales, Inputs};
pub use rotate::{Only, Rotate};
pub use smooth::Smooth;

pub(super) const KIND: StageKind = StageKind {
    name: "transform",
    result: "transformed",
    methods: METHODS,
    command: "lopper transform MODEL --method METHOD --then TYPE",
    parse: |table| super::method::parse(METHODS, table),
};

/// Every method.
pub static METHODS: &[Method] = &[
    method!(
        Awq,
        "awq",
        "channels scaled by their activations, so that little is lost in a type (AWQ)"
    ),
    method!(
        Smooth,
        "smooth",
        "outliers of activations moved into weights, for products that round both (SmoothQuant)"
    ),
    method!(
        Rotate,
        "rotate",
        "the residual stream and heads in the basis of random Hadamard matrices (QuaRot)"
    ),
    method!(
        Inputs,
        "inputs",
        "the same weights, whose inputs are rounded to 8 bits when the model runs (W8A8)"
    ),
];

/// The report of every method.
const REPORT: &str = "transform.json";

/// The flags of `lopper transform`, and the stage that they ask for.
#[derive(Clone, Debug)]
pub struct Flags(pub RecipeStage);

const ABOUT: &str = "What becomes of the weights:";

impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        flags(METHODS, ABOUT, command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        flags(METHODS, ABOUT, command)
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
