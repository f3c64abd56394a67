//! Merges of what models changed of the one that they began with ([`crate::methods::merge::Deltas`]): a row of [`WAYS`] each.

use serde::{Deserialize, Serialize};

use super::Mixing;
use super::average::mix;
use crate::methods::BadField;
use crate::methods::merge::{Deltas, Keep, Mix, Own, Rescale, Rule, Setting, Trim};

/// Changes added up, thinned out before or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct Changes {
    /// The weight of every model that has none of its own: a number, 0,0.5,1 along the depth, or mlp=0.5;0.3 by parts of names
    /// [default: 1]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Setting>,
    /// What the sum of all changes is multiplied by in the end [default: 1]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lambda: Option<Setting>,
    /// Whether sums are divided by the weights [default: true for linear and ties]
    #[arg(long, value_name = "BOOL")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    normalize: Option<bool>,
    /// The share of a model's changes that stay [default: ties 0.2, dare 0.5, breadcrumbs 0.1; not of task_arithmetic]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    density: Option<Setting>,
    /// What those that stay are multiplied by [default: dare density, others none; not of task_arithmetic]
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rescale: Option<Rescale>,
    /// Of ties, over what the largest changes are found [default: tensor]
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trim: Option<Trim>,
    /// Of breadcrumbs, the share of a model's largest changes that go [default: 0.01]
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gamma: Option<Setting>,
}

/// A method.
struct Way {
    name: &'static str,
    keep: Keep,
    /// The density where none is set.
    density: f64,
    elect: bool,
}

const WAYS: &[Way] = &[
    Way { name: "task_arithmetic", keep: Keep::All, density: 1.0, elect: false },
    Way { name: "ties", keep: Keep::Largest, density: 0.2, elect: true },
    Way { name: "dare_linear", keep: Keep::Random, density: 0.5, elect: false },
    Way { name: "dare_ties", keep: Keep::Random, density: 0.5, elect: true },
    Way { name: "breadcrumbs", keep: Keep::Middle, density: 0.1, elect: false },
    Way { name: "breadcrumbs_ties", keep: Keep::Middle, density: 0.1, elect: true },
];

impl Way {
    /// An error if something is set that the method has no use for.
    fn check(&self, changes: &Changes, each: &[Own]) -> Result<(), BadField> {
        let any = |of: fn(&Own) -> bool| each.iter().any(of);
        let density = changes.density.is_some() || any(|own| own.density.is_some());
        let gamma = changes.gamma.is_some() || any(|own| own.gamma.is_some());
        let unused = [
            ("density", density && self.keep == Keep::All),
            ("rescale", changes.rescale.is_some() && self.keep == Keep::All),
            ("trim", changes.trim.is_some() && self.keep != Keep::Largest),
            ("gamma", gamma && self.keep != Keep::Middle),
        ];
        match unused.into_iter().find(|(_, is)| *is) {
            None => Ok(()),
            Some((field, _)) => {
                Err(BadField::new(field, format!("none of method {}", self.name), "one"))
            }
        }
    }
}

impl Mixing for Changes {
    const OWN_NUMBERS: &'static [&'static str] = &["weight", "density", "gamma"];

    fn mix(&self, method: &str, each: Vec<Own>) -> Result<Mix, BadField> {
        let way = WAYS.iter().find(|way| way.name == method).unwrap_or(&WAYS[0]);
        way.check(self, &each)?;
        let trim = self.trim.unwrap_or_default();
        let varies = |density: &Option<Setting>| {
            density.as_ref().is_some_and(|density| density.constant().is_none())
        };
        let several = varies(&self.density) || each.iter().any(|own| varies(&own.density));
        if trim == Trim::Model && several {
            let expected = "one density for all of a model, with trim = \"model\"";
            return Err(BadField::new("density", expected, "several"));
        }
        let usual = match way.keep {
            Keep::Random => Rescale::Density,
            _ => Rescale::None,
        };
        let deltas = Deltas {
            keep: way.keep,
            rescale: self.rescale.unwrap_or(usual),
            elect: way.elect,
            normalize: self.normalize.unwrap_or(way.keep == Keep::Largest),
            trim,
        };
        let all = Own {
            weight: self.weight.clone(),
            density: self.density.clone(),
            gamma: self.gamma.clone(),
        };
        let (density, lambda) = (way.density, self.lambda.clone());
        Ok(Mix { all, each, density, lambda, ..mix(Rule::Deltas(deltas)) })
    }

    fn is_random(method: &str) -> bool {
        method.starts_with("dare")
    }
}
