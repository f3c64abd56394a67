//! `quantize`: weights to low-bit codes.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Context, Modules, Needs, Planned, Stage, StageKind, keys};
use crate::device::Device;
use crate::error::Result;
use crate::families::LAYERS;
use crate::methods::BadField;
use crate::methods::quantize::kept::kept;
use crate::methods::quantize::rtn::rtn;
use crate::methods::quantize::{Grid, Scheme, level_type, prescribed_group_size};
use crate::model::{Config, CopyOf, Outline, TensorSpec, Weights};
use crate::tensor::{
    Levels, Packed, Scale, Sparsity, WEIGHT_TYPES, WeightFormat, WeightType, codebook, weight_type,
};

pub(super) const KIND: StageKind = StageKind {
    name: "quantize",
    result: "quantized",
    parse: |table| {
        if !table.contains_key("bits") && !table.contains_key("type") {
            return Err(serde::de::Error::custom("missing field `bits` (or `type`)"));
        }
        super::parse::<Quantize>(table)
    },
};

/// Quantization of the weights whose names match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// How codes are found
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub method: QuantizeMethod,
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
    #[arg(skip)]
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

/// How codes are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizeMethod {
    /// Round to nearest.
    #[default]
    Rtn,
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
\nint1 to int8, uint1z to uint8z and uint1m to uint8m are the same grids at other widths. Larger models lose less.";

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
    vec![format!("{LAYERS}*")]
}

impl Quantize {
    /// Of the linear layers of the blocks, to a type.
    pub fn of_type(ty: &str) -> Self {
        Self {
            method: QuantizeMethod::default(),
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

    /// The same stage with `bits`, `group_size`, `grid` and `pattern` stated, whatever they followed from; with the type where
    /// it has no grid.
    pub fn explicit(self) -> Result<Self, BadField> {
        let Some(scheme) = self.scheme()? else {
            let ty = self.format()?.ty.name.to_string();
            return Ok(Self { ty: Some(ty), pattern: None, ..self });
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

    /// The row of the table that `type` names.
    fn named(&self) -> Result<Option<&'static WeightType>, BadField> {
        let Some(name) = &self.ty else {
            return Ok(None);
        };
        let lower = name.to_ascii_lowercase();
        // Numbers that stay numbers are no quantization, but for the zeros that are left out.
        let plain = |row: &WeightType| row.levels == Levels::F16 && self.pattern.is_some();
        let row = weight_type(gguf_blocks(&lower).map_or(&*lower, |(name, _)| name))
            .filter(|row| row.has_scales() || row.is_sparse() || plain(row));
        let row = row.ok_or_else(|| {
            let expected =
                "int1 to int8, uint1z to uint8z, uint1m to uint8m, q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, tq2_0, ternary, nf4, fp4, fp8_e4m3, fp8_e5m2, mxfp4, nvfp4, f16_2of4, int8_2of4 or int4_2of4";
            BadField::new("type", expected, name)
        })?;
        if row.super_block().is_some() {
            let expected = "a type whose scales can be found: those of super-blocks are read and kept, not made";
            return Err(BadField::new("type", expected, name));
        }
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
        let blocks = self.ty.as_deref().and_then(|name| Some((name, gguf_blocks(name)?.1)));
        if let (Some((name, blocks)), Some(size)) = (blocks, self.group_size)
            && size != blocks
        {
            let expected = format!("{blocks} beside type {name}, or a type like int4 or uint4m");
            return Err(BadField::new("group_size", expected, size));
        }
        let prescribed = || match blocks {
            Some((_, size)) => Some(size),
            None => level_type(grid).and_then(prescribed_group_size),
        };
        let entries = (!self.codebook.is_empty()).then(|| codebook(&self.codebook));
        let entries = entries.transpose().map_err(|found| {
            BadField::new("codebook", "2 to 256 finite numbers, not all 0", found)
        })?;
        Ok(Some(Scheme {
            grid,
            bits,
            group_size: self.group_size.or_else(prescribed).unwrap_or(32),
            codebook: entries,
        }))
    }

    fn bits_and_grid(&self) -> Result<(u32, Grid), BadField> {
        let (Some(name), Some(row)) = (&self.ty, self.named()?) else {
            let grid = self.grid.unwrap_or_default();
            let natural = level_type(grid).map_or(4, |ty| ty.bits);
            return Ok((self.bits.unwrap_or(natural), grid));
        };
        if let Some(bits) = self.bits {
            return Err(BadField::new("bits", format!("none beside type {name}"), bits));
        }
        let fits = |grid: &Grid| match row.scale {
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
                let natural = even.chain(Grid::LEVELED).find(fits);
                Ok((row.bits, natural.unwrap_or_default()))
            }
        }
    }

    fn rule(&self) -> Result<Rule, BadField> {
        Ok(Rule {
            modules: Modules::new(&self.include, &self.exclude)?,
            format: self.format()?,
            scheme: self.scheme()?,
        })
    }
}

/// A stage with its patterns compiled.
struct Rule {
    modules: Modules,
    /// `None` where numbers stay numbers.
    scheme: Option<Scheme>,
    format: WeightFormat,
}

impl Stage for Quantize {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs::default()
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let rule = self.rule().map_err(BadField::in_recipe)?;
        let mut outline = model.clone();
        let mut changes = HashMap::new();
        let mut largest = 0;
        let label = rule.format.label();
        let text = match rule.scheme {
            Some(scheme) => format!("rtn {} {label}", scheme.grid.name()),
            None => format!("pack {label}"),
        };
        let formats = outline.formats.iter_mut().zip(&mut outline.copies);
        for (spec, (format, copy)) in outline.specs.iter().zip(formats) {
            if rule.modules.have(spec) {
                (*format, *copy) = (rule.format, None);
                changes.insert(spec.name.clone(), text.clone());
                largest = largest.max(4 * (spec.rows * spec.columns) as u64);
            }
        }
        if changes.is_empty() {
            let found = format!("{:?}, which match none", self.include);
            return Err(BadField::new("include", "patterns that match a weight", found).in_recipe());
        }
        Ok(Planned {
            outline,
            changes,
            peak_device_bytes: 2 * largest,
            peak_host_bytes: 3 * largest.max(4 * model.largest()),
            warnings: Vec::new(),
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let quantized = Quantized {
            model,
            device: context.pass.device,
            rule: self.rule().map_err(BadField::in_recipe)?,
        };
        context.write("quantizing", &quantized)
    }
}

/// A model that is quantized tensor by tensor, when each is asked for.
struct Quantized<'a> {
    model: &'a dyn Weights,
    device: &'a Device,
    rule: Rule,
}

impl Weights for Quantized<'_> {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.model.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let weight = self.model.load(spec)?;
        if !self.rule.modules.have(spec) {
            return Ok(weight);
        }
        match (self.rule.scheme, self.rule.format.ty.sparsity) {
            (scheme, Some(pattern)) => kept(self.device, &weight, scheme, pattern, &spec.name),
            (Some(scheme), None) => rtn(self.device, &weight, scheme, &spec.name),
            (None, None) => Ok(weight),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        if self.rule.modules.have(spec) {
            return Ok(self.rule.format);
        }
        self.model.format(spec)
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        self.model.copy_of(spec).filter(|_| !self.rule.modules.have(spec))
    }
}
