//! Quantization: grids, and the methods that put weights on them.

pub mod rtn;

use crate::recipe::Grid;
use crate::tensor::{Scale, WHOLE_ROW, WeightFormat};

/// A grid at a width and group size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// How a group's range becomes a grid.
    pub grid: Grid,
    /// Bits of a code.
    pub bits: u32,
    /// Columns of a group: a power of two from 16, or [`WHOLE_ROW`].
    pub group_size: u32,
}

/// What a scheme cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadScheme {
    /// The field at fault.
    pub field: &'static str,
    /// What is allowed.
    pub expected: String,
    /// What was asked.
    pub found: String,
}

impl Scheme {
    /// The format of the result.
    pub fn format(self) -> Result<WeightFormat, BadScheme> {
        let Scheme {
            grid,
            bits,
            group_size,
        } = self;
        let scale = match grid {
            Grid::AbsmaxSymmetric | Grid::SignedMax => Scale::Symmetric,
            Grid::ZeroPoint => Scale::ZeroPoint,
            Grid::FloatMin => Scale::Offset,
        };
        // One symmetric bit has no step to divide the largest magnitude by.
        let least = if grid == Grid::AbsmaxSymmetric { 2 } else { 1 };
        if !(least..=8).contains(&bits) {
            let expected = format!("{least} to 8 for the grid {}", grid.name());
            return Err(BadScheme {
                field: "bits",
                expected,
                found: bits.to_string(),
            });
        }
        if group_size != WHOLE_ROW
            && (group_size < 16 || !group_size.is_power_of_two() || group_size > 1 << 20)
        {
            let expected = "a power of two from 16, or 0 for a whole row".into();
            return Err(BadScheme {
                field: "group_size",
                expected,
                found: group_size.to_string(),
            });
        }
        Ok(WeightFormat::affine(bits, scale, group_size)
            .expect("the table has every width and scale kind"))
    }
}
