//! What weights are quantized to, and which: keys and flags of every method.

use serde::{Deserialize, Serialize};

use crate::families::block_patterns;
use crate::methods::BadField;
use crate::methods::quantize::{Grid, Scheme, level_type, prescribed_group_size};
use crate::model::{TensorSpec, Weights};
use crate::stages::Modules;
use crate::tensor::{
    Levels, Scale, Sparsity, WEIGHT_TYPES, WHOLE_ROW, WeightFormat, WeightType, codebook,
    weight_type,
};

/// A type, and the modules whose weights get it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
pub struct Target {
    /// Bits of a code, 1 to 8 (default 4, or what --grid prescribes)
    #[arg(long, conflicts_with = "ty")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits: Option<u32>,
    /// A weight type instead
    #[arg(long = "type", id = "ty", value_name = "TYPE", help = TYPE_HELP)]
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub ty: Option<String>,
    /// Columns that share a scale: a power of two from 16, or 0 for a whole row (default 32, or what --type prescribes)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<u32>,
    /// How a group's range becomes a grid (default float-min, or what --type says)
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<Grid>,
    /// Store only the columns that a pattern keeps, of weights pruned to it: 2:4, of f16 and symmetric codes of 4 and 8 bits
    #[arg(long, value_name = "N:M")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// The entries of the grid `codebook`, 2 to 256 numbers; a group's largest magnitude falls on the largest of them
    ///
    /// lopper codebook finds some
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', allow_hyphen_values = true, conflicts_with_all = ["ty", "grid"])]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codebook: Vec<f32>,
    /// Quantize modules that match (* stands for anything; default: the linear layers of the blocks); norms and biases never
    #[arg(long, default_values_t = default_include(), hide_default_value = true)]
    #[serde(default = "default_include")]
    pub include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    #[serde(default)]
    pub exclude: Vec<String>,
}

/// What types cost: bits of a weight with its scales, and how much the perplexity of the embedded tiny-llama rises
/// (embedded:heldout-2026, windows of 512 tokens, round to nearest).
const TYPE_HELP: &str = "A weight type instead, in any case; bits a weight, and by how much the embedded tiny-llama's perplexity rises:\
\n  q8_0 (int8)      8.5 bits   +0.0 %     as in GGUF, groups of 32\
\n  q5_1 (uint5m)    6   bits   +0.9 %\
\n  q5_0 (int5)      5.5 bits   +1.7 %     \
\n  q4_1 (uint4m)    5   bits   +4.0 %     float minimum; what --bits 4 makes\
\n  q4_0 (int4)      4.5 bits   +5.7 %     symmetric\
\n  uint4z           5   bits   +6.8 %     integer zero point\
\n  q6_k, q5_k, q4_k, q3_k, q2_k           as in GGUF: groups in super-blocks of 256 columns, 6.5625,\
\n                                         5.5, 4.5, 3.4375 and 2.625 bits; iq4_xs 4.25\
\n  iq4_nl           4.5 bits              sixteen levels of GGUF's, and below: packed and GGUF\
\n  nvfp4            4.5 bits   +5.8 %\
\n  mxfp4            4.25 bits  +7.6 %\
\n  tq2_0 (ternary)  2.06 bits             groups of 256\
\n  fp8_e4m3         8.5 bits   +0.7 %     floats and levels: packed only, from here down\
\n  fp8_e5m2         8.5 bits   +2.9 %\
\n  fp4              4.5 bits   +6.2 %\
\n  nf4              4.5 bits   +7.5 %\
\n  uint3m           4   bits  +18.2 %\
\n  int3             3.5 bits  +24.1 %\
\n  ternary          2.5 bits   x 5.8\
\n  int8_2of4        5.5 bits              for weights pruned to 2:4: two codes of every\
\n  int4_2of4        3.5 bits              four, and 4 bits that say where they stand;\
\n  f16_2of4         9   bits              the same with f16 numbers\
\nint1 to int8, uint1z to uint8z and uint1m to uint8m are the same grids at other widths. Behind a name its group: int4-g64, int8-row. Larger models lose less.";

/// The weight type and the group size of a type of blocks that GGUF has, by its name there.
fn gguf_blocks(name: &str) -> Option<(&'static str, u32)> {
    Some(match name.to_ascii_lowercase().as_str() {
        "q4_0" => ("int4", 32),
        "q4_1" => ("uint4m", 32),
        "q5_0" => ("int5", 32),
        "q5_1" => ("uint5m", 32),
        "q8_0" => ("int8", 32),
        "iq4_nl" => ("iq4_nl", 32),
        "tq2_0" => ("ternary", 256),
        _ => return None,
    })
}

fn default_include() -> Vec<String> {
    // The linear layers of the blocks; the embedding and the head stay as they are unless they are named.
    block_patterns()
}

impl Target {
    /// The linear layers of the blocks, and a type.
    pub fn of_type(ty: &str) -> Self {
        Self {
            bits: None,
            ty: Some(ty.into()),
            group_size: None,
            grid: None,
            pattern: None,
            codebook: Vec::new(),
            include: default_include(),
            exclude: Vec::new(),
        }
    }

    /// The same with `bits`, `group_size`, `grid` and `pattern` stated, whatever they followed from; with the type where
    /// it has no grid.
    pub fn explicit(self) -> Result<Self, BadField> {
        let scheme = match self.scheme()? {
            // A type that no grid and number of bits stand for.
            Some(scheme) if scheme.ty.is_none() || !self.codebook.is_empty() => scheme,
            _ => {
                let ty = self.format()?.ty.name.to_string();
                let own = Self { ty: Some(ty), bits: None, grid: None, pattern: None, ..self };
                let of_super_blocks = own.format()?.ty.super_block().is_some();
                return Ok(if of_super_blocks { Self { group_size: None, ..own } } else { own });
            }
        };
        Ok(Self {
            bits: Some(scheme.bits),
            ty: None,
            group_size: Some(scheme.group_size),
            grid: Some(scheme.grid),
            pattern: self.sparsity()?.map(Sparsity::label),
            ..self
        })
    }

    /// The format of the result.
    pub fn format(&self) -> Result<WeightFormat, BadField> {
        let dense = match self.scheme()? {
            Some(scheme) => scheme.format()?,
            None => WeightFormat::f16(),
        };
        let Some(sparsity) = self.sparsity()? else {
            return Ok(dense);
        };
        dense.with_sparsity(Some(sparsity)).ok_or_else(|| {
            let names = WEIGHT_TYPES.iter().filter(|row| row.sparsity == Some(sparsity));
            let names: Vec<&str> = names.map(|row| row.name).collect();
            let expected = format!("none beside {}: there are {}", dense.ty.name, names.join(", "));
            BadField::new("pattern", expected, sparsity.label())
        })
    }

    /// The type's name in lower case, without the group behind it, and the columns of that: `int4-g64` and `int8-row`, as tables have them.
    fn parted(&self) -> Option<(String, Option<u32>)> {
        let lower = self.ty.as_ref()?.to_ascii_lowercase();
        let group = lower.rsplit_once('-').and_then(|(name, group)| {
            let columns = match group {
                "row" => WHOLE_ROW,
                _ => group.strip_prefix('g')?.parse().ok()?,
            };
            Some((name.to_string(), Some(columns)))
        });
        Some(group.unwrap_or((lower, None)))
    }

    /// The row of the table that `type` names.
    fn named(&self) -> Result<Option<&'static WeightType>, BadField> {
        let (Some(name), Some((lower, _))) = (&self.ty, self.parted()) else {
            return Ok(None);
        };
        // Numbers that stay numbers are no quantization, but for the zeros that are left out.
        let plain = |row: &WeightType| row.levels == Levels::F16 && self.pattern.is_some();
        let row = weight_type(gguf_blocks(&lower).map_or(&*lower, |(name, _)| name))
            .filter(|row| row.has_scales() || row.is_sparse() || plain(row));
        let row = row.ok_or_else(|| {
            let expected =
                "int1 to int8, uint1z to uint8z, uint1m to uint8m, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, tq2_0, ternary, nf4, fp4, fp8_e4m3, fp8_e5m2, mxfp4, nvfp4, f16_2of4, int8_2of4 or int4_2of4";
            BadField::new("type", expected, name)
        })?;
        Ok(Some(row))
    }

    /// The pattern that is asked for, by itself or with the type.
    fn sparsity(&self) -> Result<Option<Sparsity>, BadField> {
        let of_type = self.named()?.and_then(|row| row.sparsity);
        match (&self.pattern, of_type) {
            (None, of_type) => Ok(of_type),
            (Some(text), None) => match Sparsity::from_label(text) {
                Some(sparsity) => Ok(Some(sparsity)),
                None => Err(BadField::new("pattern", "2:4", text)),
            },
            (Some(text), Some(_)) => {
                let ty = self.ty.as_deref().unwrap_or_default();
                Err(BadField::new("pattern", format!("none beside type {ty}"), text))
            }
        }
    }

    /// Grid, bits and group size; `None` where numbers stay numbers.
    pub fn scheme(&self) -> Result<Option<Scheme>, BadField> {
        if let Some(row) = self.named()?.filter(|row| !row.has_scales()) {
            let none = |field, found: &dyn std::fmt::Display| {
                Err(BadField::new(field, format!("none beside type {}", row.name), found))
            };
            return match (self.bits, self.grid, self.group_size) {
                (Some(bits), ..) => none("bits", &bits),
                (_, Some(grid), _) => none("grid", &grid.name()),
                (.., Some(size)) => none("group_size", &size),
                _ if !self.codebook.is_empty() => none("codebook", &self.codebook.len()),
                _ => Ok(None),
            };
        }
        let (bits, grid) = self.bits_and_grid()?;
        let (name, own) = self.parted().unzip();
        let (own, blocks) =
            (own.flatten(), name.and_then(|name| Some((gguf_blocks(&name)?.1, name))));
        if let (Some(own), Some(size)) = (own, self.group_size)
            && size != own
        {
            let name = self.ty.as_deref().unwrap_or_default();
            return Err(BadField::new("group_size", format!("{own} beside type {name}"), size));
        }
        let group_size = self.group_size.or(own);
        if let (Some((blocks, name)), Some(size)) = (&blocks, group_size)
            && size != *blocks
        {
            let expected = format!("{blocks} beside type {name}, or a type like int4 or uint4m");
            return Err(BadField::new("group_size", expected, size));
        }
        let of_type = self.named()?;
        let prescribed = || match blocks {
            Some((size, _)) => Some(size),
            None => level_type(grid).or(of_type).and_then(prescribed_group_size),
        };
        let entries = (!self.codebook.is_empty()).then(|| codebook(&self.codebook));
        let entries = entries.transpose().map_err(|found| {
            BadField::new("codebook", "2 to 256 finite numbers, not all 0", found)
        })?;
        Ok(Some(Scheme {
            grid,
            bits,
            group_size: group_size.or_else(prescribed).unwrap_or(32),
            // A codebook's own entries, or the table's row that is one.
            ty: entries.or(of_type.filter(|_| matches!(grid, Grid::Codebook | Grid::SuperBlock))),
        }))
    }

    fn bits_and_grid(&self) -> Result<(u32, Grid), BadField> {
        let (Some(name), Some(row)) = (&self.ty, self.named()?) else {
            let own = if self.codebook.is_empty() { Grid::default() } else { Grid::Codebook };
            let grid = self.grid.unwrap_or(own);
            let entries = codebook(&self.codebook).ok();
            let natural = level_type(grid).or(entries).map_or(4, |ty| ty.bits);
            return Ok((self.bits.unwrap_or(natural), grid));
        };
        if let Some(bits) = self.bits {
            return Err(BadField::new("bits", format!("none beside type {name}"), bits));
        }
        let fits = |grid: &Grid| match row.scale {
            _ if row.super_block().is_some() => *grid == Grid::SuperBlock,
            _ if !row.is_affine() => level_type(*grid) == Some(row),
            Scale::ZeroPoint => *grid == Grid::ZeroPoint,
            Scale::Offset => *grid == Grid::FloatMin,
            _ => matches!(grid, Grid::SignedMax | Grid::AbsmaxSymmetric),
        };
        match self.grid {
            Some(grid) if fits(&grid) => Ok((row.bits, grid)),
            Some(grid) => {
                let expected = format!("a type that the grid {} makes", grid.name());
                Err(BadField::new("type", expected, name))
            }
            None => {
                let even = [Grid::SignedMax, Grid::ZeroPoint, Grid::FloatMin].into_iter();
                let natural = even.chain(Grid::LEVELED).chain([Grid::SuperBlock]).find(fits);
                Ok((row.bits, natural.unwrap_or(Grid::Codebook)))
            }
        }
    }

    /// The tensors of a model that it names.
    pub fn tensors<'m>(&self, model: &'m dyn Weights) -> Result<Vec<&'m TensorSpec>, BadField> {
        Ok(self.rule()?.of(model))
    }

    /// The same with the patterns compiled.
    pub(in crate::stages) fn rule(&self) -> Result<Rule, BadField> {
        Ok(Rule {
            modules: Modules::new(&self.include, &self.exclude)?,
            format: self.format()?,
            scheme: self.scheme()?,
        })
    }
}

/// A target with its patterns compiled.
#[derive(Clone, Debug)]
pub(in crate::stages) struct Rule {
    pub modules: Modules,
    /// `None` where numbers stay numbers.
    pub scheme: Option<Scheme>,
    pub format: WeightFormat,
}

impl Rule {
    /// The tensors of a model that it names.
    pub fn of<'a>(&self, model: &'a dyn Weights) -> Vec<&'a TensorSpec> {
        model.specs().iter().filter(|spec| self.modules.have(spec)).collect()
    }
}
