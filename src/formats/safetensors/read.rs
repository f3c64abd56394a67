//! Opening safetensors files and their index.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::path::Path;

use ::safetensors::{Dtype, tensor::Metadata};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::unique::UniqueMap;
use super::{INDEX_FILE, Place, SINGLE_FILE, Safetensors};
use crate::disk;
use crate::error::{Error, Result, shown};
use crate::formats::{Source, StoredType, foreign, memory_allowance};

/// Bytes before the header: its length.
const PREFIX: usize = 8;
/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// Memory that parsing takes for one JSON value, about: a digit and a comma become 32 bytes, in a list that doubles.
const VALUE_MEMORY: u64 = 64;

pub(super) fn single(source: Source) -> Result<Safetensors> {
    let tensors = places(&source, 0)?.into_iter().collect();
    Ok(Safetensors { shards: vec![source], tensors, notes: Vec::new() })
}

pub(super) fn folder(folder: &Path) -> Result<Safetensors> {
    let (file, index) = (folder.join(SINGLE_FILE), folder.join(INDEX_FILE));
    // Where both are there, the single file counts, as it does for the `transformers` library.
    if file.exists() || !index.exists() {
        return single(Source::open(&file)?);
    }
    sharded(folder, &index)
}

/// The used part of the index. `metadata.total_size` is often wrong where tensors are tied, and nothing depends on it.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

fn sharded(folder: &Path, index: &Path) -> Result<Safetensors> {
    let text = disk::read(index, disk::LIST)?;
    check_values(index, "index", &text, text.len() as u64)?;
    let UniqueMap(weight_map) = serde_json::from_slice::<Index>(&text)
        .map_err(|e| {
            foreign(index, &text)
                .unwrap_or_else(|| malformed(index, "index", "an object with a `weight_map`", e))
        })?
        .weight_map;
    let files: BTreeSet<&String> = weight_map.values().collect();
    for file in &files {
        check_file_name(index, file)?;
    }
    let missing: Vec<&str> =
        files.iter().map(|file| file.as_str()).filter(|file| !folder.join(file).exists()).collect();
    if let Some(first) = missing.first() {
        let found = format!(
            "{} of the {} files that the index lists are missing ({})",
            missing.len(),
            files.len(),
            missing.join(", ")
        );
        let advice = "download them into this folder".into();
        return Err(Error::Misplaced { path: folder.join(first), found, advice });
    }
    let mut shards = Vec::new();
    let mut tensors = BTreeMap::new();
    let mut elsewhere = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let shard = Source::open(&folder.join(file))?;
        for (name, place) in places(&shard, number)? {
            // All shards are read, so a tensor is found wherever it stands; transformers does not ask the index either.
            if weight_map.get(&name) != Some(file) {
                elsewhere.push(format!("{} in {file}", shown(&name)));
            }
            match tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(place),
                Entry::Occupied(entry) => {
                    return Err(bad_tensor(shard.path(), entry.key(), "one tensor", "two"));
                }
            };
        }
        shards.push(shard);
    }
    for (name, file) in &weight_map {
        if !tensors.contains_key(name) {
            let path = folder.join(file);
            return Err(bad_tensor(&path, name, "the tensor that the index lists", "none"));
        }
    }
    let mut notes = Vec::new();
    if let Some(first) = elsewhere.first() {
        let file = shown(INDEX_FILE);
        notes.push(format!(
            "{file} is wrong about {} tensors ({first}{}); they are read from where they stand",
            elsewhere.len(),
            if elsewhere.len() > 1 { ", …" } else { "" }
        ));
    }
    Ok(Safetensors { shards, tensors, notes })
}

/// A shard stands beside its index: a name that leads elsewhere would let a download read any file.
fn check_file_name(index: &Path, file: &str) -> Result<()> {
    let leads_elsewhere = file.contains(['/', '\\', ':', '\0']) || file.contains("..");
    if file.is_empty() || leads_elsewhere {
        return Err(malformed(index, "shard file name", "a plain file name", format!("{file:?}")));
    }
    Ok(())
}

/// The tensors of a file.
fn places(source: &Source, shard: usize) -> Result<Vec<(String, Place)>> {
    if let Some(error) = foreign(source.path(), &source.beginning()?) {
        return Err(error);
    }
    let malformed =
        |what, expected: String, found: String| malformed(source.path(), what, expected, found);
    let whole = source.length();
    let found = || format!("{whole} bytes");
    if whole < PREFIX as u64 {
        return Err(malformed("file", format!("at least {PREFIX} bytes"), found()));
    }
    let mut prefix = [0; PREFIX];
    prefix.copy_from_slice(&source.read(0..PREFIX)?);
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        let expected = format!("at most {MAX_HEADER} bytes of header");
        return Err(malformed("header", expected, format!("{length} bytes")));
    }
    // Both small enough for `usize`.
    let start = PREFIX + length as usize;
    if start as u64 > whole {
        return Err(malformed("file", format!("at least {start} bytes"), found()));
    }
    let header = source.read(PREFIX..start)?;
    check_values(source.path(), "header", &header, whole)?;
    if header.first() != Some(&b'{') {
        return Err(malformed("header", "{".into(), "another byte".into()));
    }
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|e| malformed("header", "a valid safetensors header".into(), e.to_string()))?;
    let end = start as u64 + metadata.data_len() as u64;
    if end != whole {
        return Err(malformed("file", format!("{end} bytes"), found()));
    }
    // The crate keeps the last of two equal names; they are looked for here.
    serde_json::from_slice::<UniqueMap<IgnoredAny>>(&header)
        .map_err(|e| malformed("header", "each name once".into(), e.to_string()))?;
    let infos = metadata.tensors().into_iter();
    let places = infos.map(|(name, info)| {
        let (from, to) = info.data_offsets;
        let place = Place {
            shard,
            ty: stored_type(info.dtype),
            shape: info.shape.clone(),
            range: start + from..start + to,
        };
        (name, place)
    });
    Ok(places.collect())
}

/// Limits the number of JSON values, which is at most that of the signs that part them.
fn check_values(path: &Path, what: &str, json: &[u8], file_bytes: u64) -> Result<()> {
    let parts = |byte: &&u8| matches!(byte, b',' | b':' | b'[' | b'{');
    let (values, most) =
        (json.iter().filter(parts).count() as u64, memory_allowance(file_bytes) / VALUE_MEMORY);
    if values > most {
        let expected = format!("at most {most} values");
        return Err(malformed(path, what, expected, format!("{values}")));
    }
    Ok(())
}

fn malformed(path: &Path, what: &str, expected: impl ToString, found: impl ToString) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        what: what.to_string(),
        offset: None,
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

fn bad_tensor(path: &Path, tensor: &str, expected: &str, found: impl ToString) -> Error {
    Error::Tensor {
        path: path.to_path_buf(),
        tensor: tensor.to_string(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

fn stored_type(ty: Dtype) -> StoredType {
    match ty {
        Dtype::F32 => StoredType::F32,
        Dtype::F16 => StoredType::F16,
        Dtype::BF16 => StoredType::Bf16,
        Dtype::F64 => StoredType::F64,
        Dtype::BOOL => StoredType::Bool,
        Dtype::U8 => StoredType::U8,
        Dtype::I8 => StoredType::I8,
        Dtype::U16 => StoredType::U16,
        Dtype::I16 => StoredType::I16,
        Dtype::U32 => StoredType::U32,
        Dtype::I32 => StoredType::I32,
        Dtype::U64 => StoredType::U64,
        Dtype::I64 => StoredType::I64,
        Dtype::F4 => StoredType::Other("f4"),
        Dtype::F6_E2M3 => StoredType::Other("f6_e2m3"),
        Dtype::F6_E3M2 => StoredType::Other("f6_e3m2"),
        Dtype::F8_E5M2 => StoredType::Other("f8_e5m2"),
        Dtype::F8_E4M3 => StoredType::Other("f8_e4m3"),
        Dtype::F8_E8M0 => StoredType::Other("f8_e8m0"),
        Dtype::F8_E4M3FNUZ => StoredType::Other("f8_e4m3fnuz"),
        Dtype::F8_E5M2FNUZ => StoredType::Other("f8_e5m2fnuz"),
        Dtype::C64 => StoredType::Other("c64"),
        _ => StoredType::Other("a type unknown to this version"),
    }
}
