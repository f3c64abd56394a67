//! MLX, the folders of mlx-lm.
//!
//! A layer of `n` inputs and `m` outputs, or an embedding, has `weight` (u32, m x n*bits/32: codes along the inputs, the lowest
//! bits first) and, by the mode:
//!
//! | mode | codes | beside |
//! |---|---|---|
//! | affine | integers | `scales` and `biases`, floats, m x groups: `w = scale * code + bias` |
//! | mxfp4 | E2M1 | `scales` u8 (E8M0), m x n/32 |
//! | mxfp8 | E4M3 | the same |
//! | nvfp4 | E2M1 | `scales` u8 (E4M3), m x n/16 |
//!
//! mlx.core's `dequantize` computes in the type of the scales, product and sum rounded one after the other, and in bf16 where
//! scales are bytes.

use serde_json::{Map, Value, json};

use super::layout::{Codes, FLOATS, Grid, Layout, Numbers};
use super::{Arranged, Contents, Method, Module, Settings, Stated, Unarranged, columns_of};
use crate::error::Result;
use crate::formats::safetensors::Safetensors;
use crate::tensor::{DType, WeightFormat};

pub(super) static METHOD: Method = Method {
    name: "mlx",
    quant_methods: &["mlx"],
    sidecar: None,
    says_inputs: false,
    settings: |stated| Ok(Box::new(Mlx::read(stated)?)),
    holds: |module, format| rule_of(module, format).is_some(),
    arrange,
};

const BITS: &[u32] = &[1, 2, 3, 4, 5, 6, 8];
/// Group sizes of affine codes that MLX has kernels for, the largest first.
const GROUPS: [usize; 3] = [128, 64, 32];

#[derive(Debug)]
struct Mlx {
    base: Rule,
    /// What is said of single modules. `None`: not quantized.
    modules: Vec<(String, Option<Rule>)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rule {
    mode: Mode,
    bits: u32,
    group: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Affine,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

const MODES: &[(&str, Mode)] = &[
    ("affine", Mode::Affine),
    ("mxfp4", Mode::Mxfp4),
    ("mxfp8", Mode::Mxfp8),
    ("nvfp4", Mode::Nvfp4),
];

impl Mlx {
    fn read(stated: &Stated<'_>) -> Result<Self> {
        let base = Rule::read(stated, "", stated.object, None)?;
        let mut modules = Vec::new();
        for (name, value) in stated.object.iter().filter(|(name, _)| name.contains('.')) {
            let rule = match value {
                Value::Bool(false) => None,
                Value::Bool(true) => Some(base),
                Value::Object(own) => {
                    Some(Rule::read(stated, &format!("{name}."), own, Some(base))?)
                }
                other => return Err(stated.wrong(name, "settings of a module, or false", other)),
            };
            modules.push((name.clone(), rule));
        }
        Ok(Self { base, modules })
    }
}

impl Rule {
    fn read(
        stated: &Stated<'_>,
        prefix: &str,
        object: &Map<String, Value>,
        base: Option<Rule>,
    ) -> Result<Self> {
        let key = |name: &str| format!("{prefix}{name}");
        let get = |name: &str| object.get(name).filter(|value| !value.is_null());
        let mode = match get("mode") {
            None => base.map_or(Mode::Affine, |base| base.mode),
            Some(value) => {
                let named = MODES.iter().find(|(name, _)| value == name);
                let names: Vec<&str> = MODES.iter().map(|(name, _)| *name).collect();
                named.ok_or_else(|| stated.wrong(&key("mode"), names.join(", "), value))?.1
            }
        };
        // A module in a mode of its own need not repeat what that prescribes.
        let other = base.is_some_and(|base| base.mode != mode);
        let natural = Rule::natural(mode);
        let base = if other { Some(natural) } else { base };
        let known: &[u32] = match mode {
            Mode::Affine => BITS,
            Mode::Mxfp4 | Mode::Nvfp4 => &[4],
            Mode::Mxfp8 => &[8],
        };
        let bits = match (get("bits"), base) {
            (None, Some(base)) => base.bits,
            (bits, _) => stated.bits(&key("bits"), bits, known)?,
        };
        let group = match (get("group_size"), base) {
            (None, Some(base)) => base.group,
            (group, _) => {
                let size = stated.group_size(&key("group_size"), group)?;
                let fits = |size: &usize| mode == Mode::Affine || *size == natural.group;
                let wrong = || {
                    let expected = match mode {
                        Mode::Affine => "a number of columns".to_string(),
                        _ => natural.group.to_string(),
                    };
                    stated.wrong(&key("group_size"), expected, group.unwrap_or(&Value::Null))
                };
                size.filter(fits).ok_or_else(wrong)?
            }
        };
        Ok(Self { mode, bits, group })
    }

    /// Bits and group size that a mode has, or MLX takes for it.
    fn natural(mode: Mode) -> Self {
        let (bits, group) = match mode {
            Mode::Affine => (4, 64),
            Mode::Mxfp4 => (4, 32),
            Mode::Mxfp8 => (8, 32),
            Mode::Nvfp4 => (4, 16),
        };
        Self { mode, bits, group }
    }

    fn value(self) -> Value {
        let named = MODES.iter().find(|(_, mode)| *mode == self.mode);
        let mode = named.map_or("affine", |(name, _)| *name);
        json!({"group_size": self.group, "bits": self.bits, "mode": mode})
    }
}

impl Settings for Mlx {
    fn layout(&self, tensors: &Safetensors, module: &Module<'_>) -> Result<Option<Layout>> {
        let weight = tensors.get(&module.part("weight"));
        let words = weight.is_some_and(|weight| weight.ty.name() == DType::U32.name());
        if !words && tensors.get(&module.part("scales")).is_none() {
            return Ok(None);
        }
        let own = self.modules.iter().find(|(name, _)| name == module.name);
        let rule = own.map_or(Some(self.base), |(_, rule)| *rule);
        Ok(rule.map(|rule| layout(module, rule)))
    }
}

fn layout(module: &Module<'_>, Rule { mode, bits, group }: Rule) -> Layout {
    let numbers =
        |end: &str, types| Numbers { name: module.part(end), types, columns_first: false };
    let bytes = || numbers("scales", &[DType::U8]);
    let grid = match mode {
        Mode::Affine => {
            let (scales, biases) = (numbers("scales", FLOATS), numbers("biases", FLOATS));
            Grid::Offset { scales, biases }
        }
        Mode::Mxfp4 | Mode::Mxfp8 => Grid::Exponents { scales: bytes() },
        Mode::Nvfp4 => Grid::TwoLevel { scales: bytes(), whole: None },
    };
    Layout {
        rows: module.rows,
        columns: module.columns,
        codes: Codes::of_rows(module.part("weight"), bits, DType::U32),
        grid,
        group: columns_of(Some(group), module.columns),
        block_rows: 1,
        group_index: None,
        shape: None,
    }
}

/// How MLX has a weight of ours: integers as affine codes, in groups that it has kernels for.
fn rule_of(module: &Module<'_>, format: WeightFormat) -> Option<Rule> {
    let own = format.group_columns(module.columns);
    let fits = |group: &usize| own.is_multiple_of(*group) && module.columns.is_multiple_of(*group);
    let mode = match (format.ty.name, format.group_size) {
        ("mxfp4", _) => Mode::Mxfp4,
        ("fp8_e4m3", _) => Mode::Mxfp8,
        ("nvfp4", _) => Mode::Nvfp4,
        _ if format.ty.is_affine() && BITS.contains(&format.ty.bits) => Mode::Affine,
        _ => return None,
    };
    let natural = Rule::natural(mode);
    match mode {
        Mode::Affine => {
            let group = GROUPS.into_iter().find(fits)?;
            Some(Rule { mode, bits: format.ty.bits, group })
        }
        _ => fits(&natural.group).then_some(natural),
    }
}

/// What most modules have stands for all, others by name.
fn arrange(contents: &Contents<'_>) -> Result<Arranged, Unarranged> {
    let mut rules = Vec::new();
    for (index, (module, format)) in contents.quantized.iter().enumerate() {
        let unheld = || Unarranged { index, expected: "a type of MLX".into() };
        rules.push(rule_of(module, *format).ok_or_else(unheld)?);
    }
    let most = rules.iter().max_by_key(|one| rules.iter().filter(|other| other == one).count());
    let base = most.copied().unwrap_or(Rule::natural(Mode::Affine));
    let mut settings = base.value();
    for ((module, _), rule) in contents.quantized.iter().zip(&rules) {
        if *rule != base {
            settings[module.name] = rule.value();
        }
    }
    for module in &contents.plain {
        settings[module.name] = false.into();
    }
    let modules = contents.quantized.iter().zip(&rules);
    Ok(Arranged {
        layouts: modules.map(|((module, _), rule)| layout(module, *rule)).collect(),
        keys: vec![("quantization", settings.clone()), ("quantization_config", settings)],
        files: Vec::new(),
        notes: Vec::new(),
    })
}
