//! The compression maths: a folder per verb, a file per method.

pub mod calibration;
pub mod guided;
pub mod linalg;
pub mod merge;
pub mod obs;
pub mod prune;
pub mod quantize;
pub mod sequential;
pub mod transform;
pub mod tune;

use crate::error::Error;

/// A field of a recipe's stage whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadField {
    /// The field at fault.
    pub field: &'static str,
    /// The allowed values.
    pub expected: String,
    /// What was asked.
    pub found: String,
}

impl BadField {
    /// A field that should be `expected` and is `found`.
    pub fn new(field: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self { field, expected: expected.into(), found: found.to_string() }
    }

    /// The error that a user of the recipe sees.
    pub fn in_recipe(self) -> Error {
        Error::Key {
            path: "recipe".into(),
            key: format!("stage.{}", self.field),
            expected: self.expected,
            found: self.found,
        }
    }
}
