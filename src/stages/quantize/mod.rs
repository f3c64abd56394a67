//! `quantize`: weights become codes, by one of several methods: a file and rows of [`METHODS`] each.

mod calibrated;
mod gptq;
mod mix;
mod nearest;
mod target;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use serde::Deserialize;
use serde_json::Value;

use super::method::{Method, flags, method, stage};
use super::{RecipeStage, StageKind};
use crate::methods::BadField;

pub use gptq::Gptq;
pub use mix::Mix;
pub use nearest::Nearest;
pub(super) use target::Rule;
pub use target::Target;

pub(super) const KIND: StageKind = StageKind {
    name: "quantize",
    result: "quantized",
    methods: METHODS,
    command: "lopper quantize MODEL --method METHOD",
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

/// The stage of `--type Q4_K_M`: the mix of that name.
fn like(name: &str, matches: &clap::ArgMatches) -> Result<Flags, clap::Error> {
    let mut table = toml::Table::new();
    table.insert("method".into(), "mix".into());
    table.insert("like".into(), name.to_ascii_lowercase().into());
    let own = ["ty", "include", "exclude"];
    for id in matches.ids().map(|id| id.as_str()) {
        let given = matches.value_source(id) == Some(ValueSource::CommandLine);
        let is_flag = METHODS.iter().any(|method| {
            (method.command)().get_arguments().any(|arg| arg.get_id().as_str() == id)
        });
        if given && is_flag && !own.contains(&id) {
            let text = format!(
                "--type {name} is a mix of types: --{} is none of its flags; give --method mix --like {name}\n",
                id.replace('_', "-")
            );
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, text));
        }
    }
    for id in ["include", "exclude"] {
        if matches.value_source(id) == Some(ValueSource::CommandLine) {
            let texts = matches.get_many::<OsString>(id).into_iter().flatten();
            let texts = texts.map(|text| toml::Value::from(text.to_string_lossy().into_owned()));
            table.insert(id.into(), toml::Value::Array(texts.collect()));
        }
    }
    let stage = super::method::parse(METHODS, table)
        .map_err(|error| clap::Error::raw(ErrorKind::InvalidValue, format!("{error}\n")))?;
    Ok(Flags(RecipeStage::of(stage)))
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
        // llama-quantize's names that are no types.
        let ty = matches.get_one::<OsString>("ty").and_then(|ty| ty.to_str()).map(str::to_owned);
        if let Some(name) = ty.filter(|ty| ty.contains("_K_") || ty.contains("_k_"))
            && matches.value_source("method") != Some(ValueSource::CommandLine)
        {
            return like(&name, matches);
        }
        stage(KIND.name, METHODS, matches).map(|stage| Self(RecipeStage::of(stage)))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
