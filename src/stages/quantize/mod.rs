//! `quantize`: weights become codes, by one of several methods: a file and rows of [`METHODS`] each.

mod calibrated;
mod gptq;
mod mix;
mod nearest;
mod target;

use serde::Deserialize;
use serde_json::Value;

use super::method::{Method, flags, method, stage};
use super::{RecipeStage, StageKind};
use crate::methods::BadField;

pub use gptq::Gptq;
pub use mix::Mix;
pub use nearest::Nearest;
pub use target::Target;

pub(super) const KIND: StageKind = StageKind {
    name: "quantize",
    result: "quantized",
    parse: |table| {
        let mixes = table.get("method").and_then(toml::Value::as_str) == Some("mix");
        if !mixes && !table.contains_key("bits") && !table.contains_key("type") {
            return Err(serde::de::Error::custom("missing field `bits` (or `type`)"));
        }
        super::method::parse(METHODS, table)
    },
};

/// Every method.
pub static METHODS: &[Method] = &[
    method!(Nearest, "rtn", "each weight to the nearest point of its group's grid"),
    method!(
        Nearest,
        "hqq",
        "likewise, offsets by a measure of the error that outliers count less in (HQQ)"
    ),
    method!(
        Gptq,
        "gptq",
        "column by column; what one loses, those behind it make up for, by calibration (GPTQ)"
    ),
    method!(
        Mix,
        "mix",
        "a type for each tensor, by what it loses in each, so that all take a number of bytes"
    ),
];

/// The flags of `lopper quantize`, and the stage that they ask for.
#[derive(Clone, Debug)]
pub struct Flags(pub RecipeStage);

impl Flags {
    /// What is quantized to what; `None` where each tensor has a type of its own.
    pub fn target(&self) -> Option<Target> {
        let keys = self.0.keys();
        if keys.get("method").is_some_and(|method| method == "mix") {
            return None;
        }
        let keys = Value::Object(keys);
        Some(Target::deserialize(keys).expect("the method's keys have a target's among them"))
    }

    /// The same stage with what the target leaves open stated.
    pub fn explicit(&self) -> Result<Self, BadField> {
        let Some(target) = self.target() else { return Ok(self.clone()) };
        let mut all = self.0.keys();
        let own = super::keys(&target);
        let target = target.explicit()?;
        for key in own.keys() {
            all.remove(key);
        }
        all.extend(super::keys(&target));
        let stage = self
            .0
            .parsed(all)
            .map_err(|error| BadField::new("type", "keys that make a stage", error.message()))?;
        Ok(Self(stage))
    }
}

const ABOUT: &str = "How codes are found:";

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
