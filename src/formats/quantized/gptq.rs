//! GPTQ (Frantar et al. 2022, arXiv 2210.17323) as AutoGPTQ and GPT-QModel store it.
//!
//! A linear layer of `n` inputs and `m` outputs has `qweight` (i32, n/32*bits x m: codes along the inputs, the lowest bits first,
//! over the ends of words where 3 bits ask for it), `qzeros` (i32, groups x m/32*bits: along the outputs), `scales` (f16, groups
//! x m) and `g_idx` (i32, n: the group of each input). `w = scale * (code - zero)`, which GPT-QModel's readers compute in the
//! type of the scales. The first version of the format stores zero points less one, the second (`gptq_v2`) as they are.

use regex::Regex;
use serde_json::{Map, Value, json};

use super::layout::{Along, Codes, FLOATS, Grid, Layout, Numbers, Stored};
use super::{
    Arranged, Contents, Method, Module, Settings, Stated, Unarranged, columns_of, even_groups,
    group_of, group_value, integer_bits,
};
use crate::error::{Error, Result};
use crate::formats::safetensors::Safetensors;
use crate::tensor::{DType, Scale, WeightFormat};

pub(super) static METHOD: Method = Method {
    name: "gptq",
    quant_methods: &["gptq"],
    sidecar: Some("quantize_config.json"),
    says_inputs: false,
    settings: |stated| Ok(Box::new(Gptq::read(stated)?)),
    holds,
    arrange,
};

/// Widths of codes that are read and written.
const BITS: &[u32] = &[2, 3, 4, 8];

#[derive(Debug)]
struct Gptq {
    base: Rule,
    /// What is said of some modules, by patterns of their names; the first that matches counts. `None`: not quantized.
    dynamic: Vec<(Regex, Option<Rule>)>,
    zeros: Stored,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rule {
    bits: u32,
    group: Option<usize>,
}

impl Gptq {
    fn read(stated: &Stated<'_>) -> Result<Self> {
        let format = stated.text("checkpoint_format")?.or(stated.text("format")?);
        let zeros = match format.as_deref() {
            None | Some("gptq") => Stored::LessOne,
            Some("gptq_v2") => Stored::Unsigned,
            Some(other) => {
                return Err(Error::Unsupported {
                    path: stated.path.into(),
                    what: format!("checkpoint_format {other}"),
                    why: "this version reads gptq and gptq_v2".into(),
                });
            }
        };
        if let Some(ty) = stated.text("pack_dtype")?.filter(|ty| ty != "int32") {
            return Err(stated.wrong("pack_dtype", "int32", ty));
        }
        let bits = stated.bits("bits", stated.get("bits"), BITS)?;
        let group = stated.group_size("group_size", stated.get("group_size"))?;
        let base = Rule { bits, group };
        let rules = stated.get("dynamic").map(|value| {
            value.as_object().ok_or_else(|| stated.wrong("dynamic", "an object", value))
        });
        let rules = rules.transpose()?.into_iter().flatten();
        let dynamic = rules.map(|(pattern, changes)| Self::rule(stated, base, pattern, changes));
        Ok(Self { base, dynamic: dynamic.collect::<Result<_>>()?, zeros })
    }

    /// `-:PATTERN` leaves modules alone; `+:PATTERN`, or a pattern alone, changes bits and group size.
    fn rule(
        stated: &Stated<'_>,
        base: Rule,
        pattern: &str,
        changes: &Value,
    ) -> Result<(Regex, Option<Rule>)> {
        let key = format!("dynamic.{pattern}");
        if let Some(pattern) = pattern.strip_prefix("-:") {
            return Ok((stated.pattern(&key, pattern)?, None));
        }
        let regex = stated.pattern(&key, pattern.strip_prefix("+:").unwrap_or(pattern))?;
        let mut rule = base;
        if let Some(bits) = changes.get("bits") {
            rule.bits = stated.bits(&format!("{key}.bits"), Some(bits), BITS)?;
        }
        if let Some(group) = changes.get("group_size") {
            rule.group = stated.group_size(&format!("{key}.group_size"), Some(group))?;
        }
        Ok((regex, Some(rule)))
    }
}

impl Settings for Gptq {
    fn layout(&self, tensors: &Safetensors, module: &Module<'_>) -> Result<Option<Layout>> {
        let there = |end: &str| tensors.get(&module.part(end)).is_some();
        if module.embedding || !["qweight", "qzeros", "scales"].into_iter().any(there) {
            return Ok(None);
        }
        let rule = self.dynamic.iter().find(|(pattern, _)| pattern.is_match(module.name));
        let rule = match rule {
            None => self.base,
            Some((_, Some(rule))) => *rule,
            // Said to be left alone, and there all the same: the plain tensor is asked for, and missed by name.
            Some((_, None)) => return Ok(None),
        };
        let mut layout = layout(module, rule, self.zeros);
        // AutoGPTQ's oldest files have none: groups are in order.
        if !there("g_idx") {
            layout.group_index = None;
        }
        Ok(Some(layout))
    }
}

fn layout(module: &Module<'_>, Rule { bits, group }: Rule, stored: Stored) -> Layout {
    let codes = |end: &str, along, stored| Codes {
        name: module.part(end),
        bits,
        word: DType::I32,
        along,
        columns_first: true,
        order: None,
        stored,
    };
    Layout {
        rows: module.rows,
        columns: module.columns,
        codes: codes("qweight", Along::Columns, Stored::Unsigned),
        grid: Grid::Integers {
            scales: Numbers { name: module.part("scales"), types: FLOATS, columns_first: true },
            zeros: Some(codes("qzeros", Along::Rows, stored)),
        },
        group: columns_of(group, module.columns),
        block_rows: 1,
        group_index: Some(module.part("g_idx")),
        shape: None,
    }
}

/// Linear layers whose codes and zero points fill whole words.
fn holds(module: &Module<'_>, format: WeightFormat) -> bool {
    let words = module.rows.is_multiple_of(32) && module.columns.is_multiple_of(32);
    !module.embedding && words && even_groups(module, format) && integer_bits(format, BITS)
}

/// Bits and group size that most modules have stand as the rule, others by their names. Zero points as they are (`gptq_v2`) where
/// there are some: the first version has no word for 0. Without them it is written, which older readers know too.
fn arrange(contents: &Contents<'_>) -> Result<Arranged, Unarranged> {
    let rule = |format: &WeightFormat| Rule { bits: format.ty.bits, group: group_of(*format) };
    let rules = || contents.quantized.iter().map(|(_, format)| rule(format));
    let base = rules().max_by_key(|one| rules().filter(|other| other == one).count());
    let base = base.unwrap_or(Rule { bits: 4, group: Some(128) });
    let symmetric = contents.quantized.iter().all(|(_, f)| f.ty.scale == Scale::Symmetric);
    let stored = if symmetric { Stored::LessOne } else { Stored::Unsigned };
    let mut dynamic = Map::new();
    let mut layouts = Vec::new();
    for (module, format) in &contents.quantized {
        let own = rule(format);
        layouts.push(layout(module, own, stored));
        let columns = |rule: Rule| columns_of(rule.group, module.columns);
        if own.bits != base.bits || columns(own) != columns(base) {
            let changes = json!({"bits": own.bits, "group_size": group_value(own.group)});
            dynamic.insert(format!("+:{}$", regex::escape(module.name)), changes);
        }
    }
    for name in contents.plain_linear() {
        dynamic.insert(format!("-:{}$", regex::escape(name)), json!({}));
    }
    // The head is outside of the blocks, and has a key of its own.
    let head = contents.quantized.iter().any(|(module, _)| !module.name.contains(".layers."));
    let mut settings = json!({
        "quant_method": "gptq",
        "bits": base.bits,
        "group_size": group_value(base.group),
        "desc_act": false,
        "sym": symmetric,
        "lm_head": head,
        "checkpoint_format": if symmetric { "gptq" } else { "gptq_v2" },
        "pack_dtype": "int32",
    });
    if !dynamic.is_empty() {
        settings["dynamic"] = dynamic.into();
    }
    Ok(Arranged {
        layouts,
        keys: vec![("quantization_config", settings.clone())],
        files: vec![("quantize_config.json", settings)],
        notes: Vec::new(),
    })
}
