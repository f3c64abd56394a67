//! Merges of whole tensors: means, arcs, Model Stock ([`crate::methods::merge`]).

use serde::{Deserialize, Serialize};

use super::Mixing;
use crate::methods::BadField;
use crate::methods::merge::{Mix, Own, Rule, Setting};

/// A weighted mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct Average {
    /// The weight of every model that has none of its own: a number, 0,0.5,1 along the depth, or mlp=0.5;0.3 by parts of names
    /// [default: 1]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Setting>,
    /// Whether sums are divided by the weights [default: true for linear and ties]
    #[arg(long, value_name = "BOOL")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    normalize: Option<bool>,
}

impl Mixing for Average {
    fn mix(&self, _: &str, each: Vec<Own>) -> Result<Mix, BadField> {
        let rule = Rule::Linear { normalize: self.normalize.unwrap_or(true) };
        Ok(Mix { all: weights(&self.weight), each, ..mix(rule) })
    }
}

/// An arc from the stage's model to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct Slerp {
    /// The place on the arc, 0 for the first model to 1 for the other: a number, 0,0.5,1 along the depth, or mlp=0.5;0.3 by parts of
    /// names [default: 0.5]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    t: Option<Setting>,
}

impl Mixing for Slerp {
    const FURTHER: (usize, usize, &'static str) = (1, 1, "one further model: an arc has two ends");
    const OWN_NUMBERS: &'static [&'static str] = &[];

    fn mix(&self, _: &str, each: Vec<Own>) -> Result<Mix, BadField> {
        Ok(Mix { t: self.t.clone(), each, ..mix(Rule::Slerp) })
    }
}

/// Between the pretrained model and the mean of its fine-tunes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
pub struct Stock {
    /// Let each row have an angle of its own
    #[arg(long)]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    filter_wise: bool,
}

impl Mixing for Stock {
    const FURTHER: (usize, usize, &'static str) =
        (2, usize::MAX, "two further models or more: the angle is between two");
    const OWN_NUMBERS: &'static [&'static str] = &[];

    fn mix(&self, _: &str, each: Vec<Own>) -> Result<Mix, BadField> {
        Ok(Mix { each, ..mix(Rule::Stock { filter_wise: self.filter_wise }) })
    }
}

/// Weights of models that have none of their own.
fn weights(weight: &Option<Setting>) -> Own {
    Own { weight: weight.clone(), ..Own::default() }
}

/// An expression without numbers.
pub(super) fn mix(rule: Rule) -> Mix {
    Mix {
        rule,
        all: Own::default(),
        each: Vec::new(),
        density: 1.0,
        t: None,
        lambda: None,
        format: None,
        layers: None,
        seed: 0,
    }
}
