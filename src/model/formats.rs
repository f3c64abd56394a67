//! How the formats of a packed folder stand in its `config.json`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::tensor::{Levels, WeightFormat, codebook, weight_type};

/// How codes stand in a packed folder. Version 1 had them as one string of bits.
pub(super) const PACKED_VERSION: u32 = 2;

/// A format in `config.json`. A user's codebook has no name of its own: its entries stand there.
pub(super) fn described(format: WeightFormat) -> Value {
    match format.ty.levels {
        Levels::Table(table) if weight_type(format.ty.name).is_none() => {
            json!({"type": "codebook", "codebook": table, "group_size": format.group_size})
        }
        _ => json!({"type": format.ty.name, "group_size": format.group_size}),
    }
}

/// The formats of a folder that Lopper wrote: `quantization_config.tensors.NAME = {type, group_size}`, for a user's codebook
/// with its entries.
pub(super) fn packed_formats(
    path: &Path,
    quantization: &Value,
) -> Result<HashMap<String, WeightFormat>> {
    let wrong = |key: &str, expected: &str, found: &Value| Error::Key {
        path: path.into(),
        key: format!("quantization_config.{key}"),
        expected: expected.into(),
        found: found.to_string(),
    };
    if quantization["version"] != PACKED_VERSION {
        return Err(Error::Unsupported {
            path: path.into(),
            what: format!("packed version {}", quantization["version"]),
            why: format!(
                "codes are ordered as in version {PACKED_VERSION}; quantize the model again"
            ),
        });
    }
    let Some(tensors) = quantization["tensors"].as_object() else {
        return Err(wrong("tensors", "an object", &quantization["tensors"]));
    };
    let mut formats = HashMap::new();
    for (name, entry) in tensors {
        let key = format!("tensors.{name}");
        let ty = match entry["type"].as_str() {
            Some("codebook") => {
                let number = |value: &Value| value.as_f64().map(|number| number as f32);
                let entries = entry["codebook"].as_array();
                let entries: Option<Vec<f32>> =
                    entries.and_then(|list| list.iter().map(number).collect());
                entries.and_then(|entries| codebook(&entries).ok())
            }
            other => other.and_then(weight_type),
        };
        let ty = ty.ok_or_else(|| wrong(&key, "a weight type", entry))?;
        let group = entry["group_size"].as_u64().and_then(|group| u32::try_from(group).ok());
        let group_size = group.filter(|&size| ty.allows_group_size(size)).ok_or_else(|| {
            let expected = match ty.super_block() {
                Some(of) => format!("groups of {}", of.group),
                None => "a power of two from 16, or 0 for a row".into(),
            };
            wrong(&key, &expected, entry)
        })?;
        formats.insert(name.clone(), WeightFormat { ty, group_size });
    }
    Ok(formats)
}
