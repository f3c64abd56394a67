//! Quantization: grids, and the methods that put weights on them.

mod levels;
pub mod rtn;

use crate::recipe::Grid;
use crate::tensor::{Scale, WHOLE_ROW, WeightFormat, WeightType, weight_type};

/// A grid at a width and group size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// How a group's range becomes a grid.
    pub grid: Grid,
    /// Bits of a code.
    pub bits: u32,
    /// Columns of a group: a power of two from 16, or [`WHOLE_ROW`].
    pub group_size: u32,
    /// The type of [`Grid::Codebook`], of no other grid.
    pub codebook: Option<&'static WeightType>,
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
            codebook,
        } = self;
        if (grid == Grid::Codebook) != codebook.is_some() {
            return Err(BadScheme {
                field: "codebook",
                expected: "entries with the grid codebook, none with another".into(),
                found: grid.name().into(),
            });
        }
        if let Some(ty) = codebook.or_else(|| level_type(grid)) {
            return leveled(ty, bits, group_size);
        }
        let scale = match grid {
            Grid::AbsmaxSymmetric | Grid::SignedMax => Scale::Symmetric,
            Grid::ZeroPoint => Scale::ZeroPoint,
            _ => Scale::Offset,
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
        check_group_size(group_size)?;
        Ok(WeightFormat::affine(bits, scale, group_size)
            .expect("the table has every width and scale kind"))
    }
}

fn check_group_size(group_size: u32) -> Result<(), BadScheme> {
    let fits = group_size >= 16 && group_size.is_power_of_two() && group_size <= 1 << 20;
    if group_size == WHOLE_ROW || fits {
        return Ok(());
    }
    Err(BadScheme {
        field: "group_size",
        expected: "a power of two from 16, or 0 for a whole row".into(),
        found: group_size.to_string(),
    })
}

/// The weight type of a grid of levels; `None` for an evenly spaced one.
pub fn level_type(grid: Grid) -> Option<&'static WeightType> {
    Grid::LEVELED
        .contains(&grid)
        .then(|| weight_type(&grid.name().replace('-', "_")))
        .flatten()
}

/// The group size that a format prescribes.
pub fn prescribed_group_size(ty: &WeightType) -> Option<u32> {
    match ty.scale {
        Scale::PowerOfTwo => Some(32),
        Scale::TwoLevel => Some(16),
        _ => None,
    }
}

fn leveled(ty: &'static WeightType, bits: u32, group_size: u32) -> Result<WeightFormat, BadScheme> {
    let wrong = |field, expected: u32, found: u32| BadScheme {
        field,
        expected: format!("{expected} for {}", ty.name),
        found: found.to_string(),
    };
    if bits != ty.bits {
        return Err(wrong("bits", ty.bits, bits));
    }
    if let Some(prescribed) = prescribed_group_size(ty).filter(|size| *size != group_size) {
        return Err(wrong("group_size", prescribed, group_size));
    }
    check_group_size(group_size)?;
    Ok(WeightFormat { ty, group_size })
}
