//! Quantization: grids, and the methods that put weights on them.

pub mod budget;
pub mod clusters;
pub mod fit;
pub mod gptq;
mod hqq;
pub mod kept;
mod levels;
pub mod mixes;
pub mod rtn;
mod super_blocks;

use serde::{Deserialize, Serialize};

use super::BadField;
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
    /// The type, where neither the grid nor the bits name it: of [`Grid::Codebook`] and [`Grid::SuperBlock`].
    pub ty: Option<&'static WeightType>,
}

/// How a group's range becomes a grid.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Grid {
    /// Symmetric, scale = max|w| / (2^(bits-1) - 1).
    AbsmaxSymmetric,
    /// Symmetric, scale = w_extreme / -2^(bits-1): the value of largest magnitude falls on the lowest code, as in GGUF's
    /// symmetric types.
    SignedMax,
    /// scale = (max - min) / (2^bits - 1), integer zero point = round(-min / scale), not clamped to the code range.
    ZeroPoint,
    /// scale = (max - min) / (2^bits - 1), offset = min in f16, as in GGUF's types with a minimum.
    #[default]
    FloatMin,
    /// -1, 0, 1 times the group's mean magnitude (BitNet b1.58). 2 bits.
    Ternary,
    /// Quantiles of a normal distribution, times the largest magnitude (QLoRA). 4 bits.
    Nf4,
    /// E2M1 floats, the largest magnitude at 6. 4 bits.
    Fp4,
    /// E4M3 floats, the largest magnitude at 448. 8 bits.
    #[serde(rename = "fp8-e4m3")]
    #[value(name = "fp8-e4m3")]
    Fp8E4m3,
    /// E5M2 floats, the largest magnitude at 448. 8 bits.
    #[serde(rename = "fp8-e5m2")]
    #[value(name = "fp8-e5m2")]
    Fp8E5m2,
    /// E2M1 floats with a power of two as the scale of 32 (OCP Microscaling). 4 bits.
    Mxfp4,
    /// E2M1 floats with an E4M3 scale of 16, under one f32 scale of the tensor. 4 bits.
    Nvfp4,
    /// The sixteen values of GGUF's IQ4_NL, the value of largest magnitude at the lowest. 4 bits.
    Iq4Nl,
    /// The entries of `codebook`. As many bits as they need.
    #[value(skip)]
    Codebook,
    /// Groups in super-blocks of 256 columns, whose scales they share, as GGUF's K types have them. The type says which.
    #[value(skip)]
    SuperBlock,
}

impl Grid {
    /// The grids of levels that are not evenly spaced, each of one width.
    pub const LEVELED: [Grid; 8] = [
        Grid::Ternary,
        Grid::Nf4,
        Grid::Fp4,
        Grid::Fp8E4m3,
        Grid::Fp8E5m2,
        Grid::Mxfp4,
        Grid::Nvfp4,
        Grid::Iq4Nl,
    ];

    /// Every evenly spaced grid, in the order of the command contract.
    pub const ALL: [Grid; 4] =
        [Grid::AbsmaxSymmetric, Grid::SignedMax, Grid::ZeroPoint, Grid::FloatMin];

    /// The name in recipes and flags.
    pub fn name(self) -> &'static str {
        match self {
            Grid::AbsmaxSymmetric => "absmax-symmetric",
            Grid::SignedMax => "signed-max",
            Grid::ZeroPoint => "zero-point",
            Grid::FloatMin => "float-min",
            Grid::Ternary => "ternary",
            Grid::Nf4 => "nf4",
            Grid::Fp4 => "fp4",
            Grid::Fp8E4m3 => "fp8-e4m3",
            Grid::Fp8E5m2 => "fp8-e5m2",
            Grid::Mxfp4 => "mxfp4",
            Grid::Nvfp4 => "nvfp4",
            Grid::Iq4Nl => "iq4-nl",
            Grid::Codebook => "codebook",
            Grid::SuperBlock => "super-block",
        }
    }

    /// Whether there are several types of the grid with the same bits, so that the scheme must name one.
    fn needs_type(self) -> bool {
        matches!(self, Grid::Codebook | Grid::SuperBlock)
    }
}

impl Scheme {
    /// A scheme whose results have this format; of two grids the one that the type's name stands for. `None` without scales.
    pub fn of(format: WeightFormat) -> Option<Self> {
        let ty = format.ty;
        let grid = match ty.scale {
            Scale::None => return None,
            Scale::SuperOffset(_) | Scale::SuperSymmetric(_) => Grid::SuperBlock,
            Scale::Symmetric => Grid::SignedMax,
            Scale::ZeroPoint => Grid::ZeroPoint,
            Scale::Offset => Grid::FloatMin,
            _ => {
                let leveled = Grid::LEVELED.into_iter().find(|grid| level_type(*grid) == Some(ty));
                leveled.unwrap_or(Grid::Codebook)
            }
        };
        let named = grid.needs_type().then_some(ty);
        Some(Self { grid, bits: ty.bits, group_size: format.group_size, ty: named })
    }

    /// The format of the result.
    pub fn format(self) -> Result<WeightFormat, BadField> {
        let Scheme { grid, bits, group_size, ty } = self;
        if grid.needs_type() != ty.is_some() {
            let expected = "entries with the grid codebook, none with another";
            return Err(BadField::new("codebook", expected, grid.name()));
        }
        if let Some(ty) = ty.or_else(|| level_type(grid)) {
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
            return Err(BadField::new("bits", expected, bits));
        }
        check_group_size(group_size)?;
        Ok(WeightFormat::affine(bits, scale, group_size)
            .expect("the table has every width and scale kind"))
    }
}

fn check_group_size(group_size: u32) -> Result<(), BadField> {
    let fits = group_size >= 16 && group_size.is_power_of_two() && group_size <= 1 << 20;
    if group_size == WHOLE_ROW || fits {
        return Ok(());
    }
    let expected = "a power of two from 16, or 0 for a whole row";
    Err(BadField::new("group_size", expected, group_size))
}

/// The weight type of a grid of levels; `None` for an evenly spaced one.
pub fn level_type(grid: Grid) -> Option<&'static WeightType> {
    Grid::LEVELED.contains(&grid).then(|| weight_type(&grid.name().replace('-', "_"))).flatten()
}

/// The group size that a format prescribes.
pub fn prescribed_group_size(ty: &WeightType) -> Option<u32> {
    match ty.scale {
        Scale::PowerOfTwo => Some(32),
        Scale::TwoLevel => Some(16),
        Scale::SuperOffset(of) | Scale::SuperSymmetric(of) => Some(of.group),
        _ => None,
    }
}

fn leveled(ty: &'static WeightType, bits: u32, group_size: u32) -> Result<WeightFormat, BadField> {
    let wrong = |field, expected: u32, found: u32| {
        BadField::new(field, format!("{expected} for {}", ty.name), found)
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
