//! Blocks of models stacked on each other ([`crate::methods::merge::Stacked`]).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{KIND, OWN};
use crate::error::Result;
use crate::methods::BadField;
use crate::methods::merge::{Named, Setting, Slice, Stacked, alignments};
use crate::model::{Checkpoint, Config, Outline, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Stage, StageKind, keys};

/// Slices of models, one behind the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Passthrough {
    /// How models are merged
    #[arg(skip)]
    #[serde(default)]
    method: String,
    /// Blocks that come next: 0..24 of the first model, MODEL@0..24 of another; again for each slice
    #[arg(long, value_name = "BLOCKS", value_parser = slice)]
    #[serde(default)]
    slice: Vec<SliceOf>,
}

/// Consecutive blocks of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceOf {
    /// `MODEL` of the command line; absent: the model that the stage runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The first block, and the one behind the last.
    pub layers: (usize, usize),
    /// What its weights are multiplied by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Setting>,
}

/// BEGIN..END, or MODEL@BEGIN..END.
fn slice(text: &str) -> Result<SliceOf, String> {
    let (model, blocks) = match text.rsplit_once('@') {
        Some((model, blocks)) => (Some(model.to_string()), blocks),
        None => (None, text),
    };
    let layers = blocks
        .split_once("..")
        .and_then(|(begin, end)| Some((begin.parse().ok()?, end.parse().ok()?)));
    let layers = layers.ok_or_else(|| format!("`{text}`: write 0..24, or MODEL@0..24"))?;
    Ok(SliceOf { model, layers, scale: None })
}

impl OfMethod for Passthrough {
    fn of_method(self, name: &'static str) -> Self {
        Self { method: name.into(), ..self }
    }
}

impl Passthrough {
    /// The slices by the numbers of their models, 0 for the stage's own.
    fn slices(&self) -> Result<Vec<Slice>, BadField> {
        let others = self.others();
        let of = |slice: &SliceOf| {
            if let Some(scale) = &slice.scale {
                scale.check("scale", "a number", |_| true)?;
            }
            let place = |name: &String| others.iter().position(|other| other == name);
            let model = slice.model.as_ref().and_then(place).map_or(0, |place| place + 1);
            let (begin, end) = slice.layers;
            Ok(Slice { model, begin, end, scale: slice.scale.clone() })
        };
        self.slice.iter().map(of).collect()
    }

    fn stacked<'a, W: Weights>(
        first: &'a dyn Weights,
        names: &'a [String],
        others: &'a [W],
        slices: &[Slice],
    ) -> Result<Stacked<'a>> {
        let further = names.iter().zip(others);
        let further = further.map(|(name, weights)| Named { name: name.as_str(), weights });
        Stacked::new(
            std::iter::once(Named { name: OWN, weights: first }).chain(further).collect(),
            slices,
        )
    }
}

impl Stage for Passthrough {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs::default()
    }

    fn others(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in self.slice.iter().filter_map(|slice| slice.model.as_ref()) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    fn check_others(&self, parent: &Checkpoint, others: &[Checkpoint]) -> Result<Vec<String>> {
        let slices = self.slices().map_err(BadField::in_recipe)?;
        let ends = Stacked::ends(&slices).into_iter().filter_map(|model| model.checked_sub(1));
        let ends: Vec<&Checkpoint> = ends.map(|other| &others[other]).collect();
        Ok(alignments(parent, &ends, None)?.1)
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        self.plan_beside(model, &[])
    }

    fn plan_beside(&self, model: &Outline, others: &[Outline]) -> Result<Planned> {
        let slices = self.slices().map_err(BadField::in_recipe)?;
        let names = self.others();
        let stacked = Self::stacked(model, &names, others, &slices)?;
        Ok(Planned {
            outline: stacked.outline(model)?,
            changes: stacked.changes(),
            peak_device_bytes: 0,
            peak_host_bytes: 12 * model.largest(),
            warnings: Vec::new(),
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let slices = self.slices().map_err(BadField::in_recipe)?;
        let names = self.others();
        let stacked = Self::stacked(model, &names, context.others, &slices)?;
        context.write("stacking", &stacked)
    }

    fn loses(&self) -> bool {
        false
    }

    fn keeps_channels(&self) -> bool {
        false
    }
}
