//! Numbers of a merge that may differ by tensor: one for all, several along the depth (a gradient), or by filters of names. What
//! a setting means is mergekit's (github.com/arcee-ai/mergekit, `evaluate_setting`).

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::methods::BadField;
use crate::model::TensorSpec;

/// One number, or several along the depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a number, or a list of numbers along the depth")]
pub enum Values {
    /// The same everywhere.
    One(#[serde(deserialize_with = "finite")] f64),
    /// The first for the first block, the last for the last one, between two of them by the line through both. What stands
    /// before and behind the blocks has the first.
    Gradient(#[serde(deserialize_with = "all_finite")] Vec<f64>),
}

/// Values for the tensors that a filter names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filtered {
    /// A part of the tensor's name; with `*` in it a pattern of its module's name; absent or `*`: every tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// For those.
    pub value: Values,
}

/// A number of each tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a number, a list of numbers along the depth, or a list of { filter, value }"
)]
pub enum Setting {
    /// Whatever a tensor's name is.
    All(Values),
    /// Of the first filter that names it; of none, what stands in for it where nothing is set.
    Filters(Vec<Filtered>),
}

fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let number = f64::deserialize(deserializer)?;
    match number.is_finite() {
        true => Ok(number),
        false => Err(D::Error::custom("a number that is not finite")),
    }
}

fn all_finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let list = Vec::<f64>::deserialize(deserializer)?;
    match !list.is_empty() && list.iter().all(|number| number.is_finite()) {
        true => Ok(list),
        false => Err(D::Error::custom("a list without numbers, or with one that is not finite")),
    }
}

impl From<f64> for Setting {
    fn from(value: f64) -> Self {
        Setting::All(Values::One(value))
    }
}

impl Values {
    /// The value at a share of the depth, from 0 to 1.
    fn at(&self, depth: f64) -> f64 {
        let list = match self {
            Values::One(value) => return *value,
            Values::Gradient(list) => list,
        };
        let place = depth * (list.len() - 1) as f64;
        let first = place as usize;
        let next = (first + 1).min(list.len() - 1);
        let share = place - first as f64;
        (1.0 - share) * list[first] + share * list[next]
    }

    fn numbers(&self) -> &[f64] {
        match self {
            Values::One(value) => std::slice::from_ref(value),
            Values::Gradient(list) => list,
        }
    }
}

impl Filtered {
    fn names(&self, spec: &TensorSpec) -> bool {
        match self.filter.as_deref() {
            None | Some("*") => true,
            Some(pattern) if pattern.contains('*') => {
                glob::Pattern::new(pattern).is_ok_and(|glob| glob.matches(spec.module()))
            }
            Some(part) => spec.name.contains(part),
        }
    }
}

impl Setting {
    /// The number of a tensor at a share of the depth, from 0 to 1; `None` if no filter names it.
    pub fn of(&self, spec: &TensorSpec, depth: f64) -> Option<f64> {
        match self {
            Setting::All(values) => Some(values.at(depth)),
            Setting::Filters(list) => {
                let found = list.iter().find(|filtered| filtered.names(spec))?;
                Some(found.value.at(depth))
            }
        }
    }

    /// The number of every tensor, if it is one.
    pub fn constant(&self) -> Option<f64> {
        match self {
            Setting::All(values) => {
                let numbers = values.numbers();
                numbers.iter().all(|number| number == &numbers[0]).then_some(numbers[0])
            }
            Setting::Filters(_) => None,
        }
    }

    /// An error if one of its numbers is none that `allows` does, which `expected` says in words.
    pub fn check(
        &self,
        field: &'static str,
        expected: &str,
        allows: impl Fn(f64) -> bool,
    ) -> Result<(), BadField> {
        let lists: Vec<&Values> = match self {
            Setting::All(values) => vec![values],
            Setting::Filters(list) => list.iter().map(|filtered| &filtered.value).collect(),
        };
        if lists.is_empty() {
            return Err(BadField::new(field, "a number, or more", "an empty list"));
        }
        if let Setting::Filters(list) = self {
            for pattern in list.iter().filter_map(|filtered| filtered.filter.as_deref()) {
                if let Err(error) = glob::Pattern::new(pattern).map(|_| ()) {
                    let found = format!("{pattern}: {}", error.msg);
                    return Err(BadField::new(field, "a pattern", found));
                }
            }
        }
        let mut numbers = lists.iter().flat_map(|values| values.numbers());
        match numbers.find(|number| !allows(**number)) {
            None => Ok(()),
            Some(found) => Err(BadField::new(field, expected, found)),
        }
    }
}

/// As flags have it: `0.5`, `0,0.5,1` along the depth, `self_attn=0,0.5,1;mlp=1;0.5` by filters.
impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let values = |text: &str| -> Result<Values, String> {
            let number =
                |part: &str| part.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            let list: Option<Vec<f64>> = text.split(',').map(number).collect();
            match list {
                Some(list) if list.len() == 1 => Ok(Values::One(list[0])),
                Some(list) => Ok(Values::Gradient(list)),
                None => {
                    Err(format!("`{text}`: write 0.5, or 0,0.5,1 along the depth, or mlp=0.5;0.3"))
                }
            }
        };
        let parts: Vec<&str> = text.split(';').collect();
        if parts.len() == 1 && !text.contains('=') {
            return values(text).map(Setting::All);
        }
        let filtered = |part: &&str| match part.rsplit_once('=') {
            Some((filter, value)) => {
                Ok(Filtered { filter: Some(filter.trim().into()), value: values(value)? })
            }
            None => Ok(Filtered { filter: None, value: values(part)? }),
        };
        parts.iter().map(filtered).collect::<Result<_, String>>().map(Setting::Filters)
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.numbers().iter().map(f64::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::All(values) => write!(f, "{values}"),
            Setting::Filters(list) => {
                let part = |filtered: &Filtered| match &filtered.filter {
                    Some(filter) => format!("{filter}={}", filtered.value),
                    None => filtered.value.to_string(),
                };
                f.write_str(&list.iter().map(part).collect::<Vec<_>>().join(";"))
            }
        }
    }
}
