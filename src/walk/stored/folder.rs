//! The folder of statistics: `statistics.json` says what they are of, `block-00000.safetensors` and so on have a block's sums
//! each, `head.safetensors` those of the head's input.
//!
//! A sum is named by its linear layer's module and its kind, `model.layers.0.self_attn.q_proj.squares`, f32; layers with the same
//! input have one, by the name of the first. Beside the sums of an input stand `MODULE.tokens` and `MODULE.sequences`, i64, and
//! beside those of a block its cosines' sum, `model.layers.0.cosine`, f64, and their number, `model.layers.0.tokens`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{BlockSums, InputSums, Kind, head_input, inputs, named};
use crate::disk;
use crate::error::{Error, Result};
use crate::families::{Config, layer_name, module_name};
use crate::formats::safetensors::{NewTensor, Safetensors, write_file};
use crate::formats::{Source, StoredTensor, StoredType};
use crate::model::CONFIG_FILE;
use crate::tensor::DType;

/// The file that says what statistics are of.
pub const FILE: &str = "statistics.json";
/// The file of the head's input.
const HEAD: &str = "head.safetensors";
/// Version of the layout.
const SCHEMA: u32 = 1;

/// What statistics are of: `statistics.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Version of the layout.
    pub schema: u32,
    /// The program that wrote them.
    pub written_by: String,
    /// The model as it was opened.
    pub model: String,
    /// Hash of the model's weights and configuration ([`crate::model::identity`]).
    pub model_sha256: String,
    /// Blocks of the model, a file each.
    pub blocks: usize,
    /// Names of the kinds of sums that there are.
    pub kinds: Vec<String>,
    /// Tokens in all.
    pub tokens: u64,
    /// Sequences in all.
    pub sequences: u64,
    /// Types that activations were computed in.
    pub compute: String,
    /// Devices that they were computed on.
    pub device: String,
    /// The texts that they are over; several where statistics were merged.
    pub parts: Vec<Part>,
}

/// A part of a text that statistics are over: consecutive rows of tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The text's file, or `embedded:NAME`; or a file of token ids.
    pub text: String,
    /// Hash of its token ids, the rows', 4 bytes each.
    pub tokens_sha256: String,
    /// The first token of the text that was used.
    pub offset: usize,
    /// Rows.
    pub samples: usize,
    /// Tokens of a row.
    pub length: usize,
}

impl Part {
    /// Whether both have a token of one text.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let end = |part: &Self| part.offset + part.samples * part.length;
        self.text == other.text && self.offset < end(other) && other.offset < end(self)
    }
}

impl About {
    /// Of a model without merged parts: see the fields.
    pub fn new(model: (&Path, String), blocks: usize, kinds: &[Kind], part: Part) -> Self {
        Self {
            schema: SCHEMA,
            written_by: disk::written_by(),
            model: model.0.display().to_string(),
            model_sha256: model.1,
            blocks,
            kinds: kinds.iter().map(|kind| kind.name().into()).collect(),
            tokens: (part.samples * part.length) as u64,
            sequences: part.samples as u64,
            compute: String::new(),
            device: String::new(),
            parts: vec![part],
        }
    }

    /// The kinds of sums that there are.
    pub fn kinds(&self) -> Vec<Kind> {
        self.kinds.iter().filter_map(|name| Kind::named(name)).collect()
    }
}

/// Reads what the statistics of a folder are of.
pub fn read_about(folder: &Path) -> Result<About> {
    let path = folder.join(FILE);
    if !path.exists() {
        let (found, advice) = match folder.join(CONFIG_FILE).exists() {
            true => (
                "this is a model, not statistics of one",
                "give the folder that `lopper calibrate MODEL --out FOLDER` wrote",
            ),
            false => (
                "there is no statistics.json in this folder",
                "give one that `lopper calibrate MODEL --out FOLDER` wrote, or an imatrix file",
            ),
        };
        return Err(Error::Misplaced {
            path: folder.into(),
            found: found.into(),
            advice: advice.into(),
        });
    }
    let text = disk::read_json(&path, disk::LIST)?;
    let wrong = |expected: String, found: String| Error::Malformed {
        path: path.clone(),
        what: "statistics".into(),
        offset: None,
        expected,
        found,
    };
    let about: About = serde_json::from_slice(&text)
        .map_err(|error| wrong("what lopper calibrate writes".into(), error.to_string()))?;
    if about.schema != SCHEMA {
        return Err(wrong(format!("schema {SCHEMA}"), about.schema.to_string()));
    }
    if let Some(unknown) = about.kinds.iter().find(|name| Kind::named(name).is_none()) {
        let known = Kind::ALL.map(Kind::name).join(", ");
        return Err(wrong(format!("kinds of {known}"), unknown.clone()));
    }
    Ok(about)
}

/// Writes what the statistics of a folder are of.
pub fn write_about(folder: &Path, about: &About) -> Result<()> {
    let path = folder.join(FILE);
    let text = serde_json::to_string_pretty(about).expect("statistics.json is plain values") + "\n";
    disk::replace_file(&path, |file| file.write_all(text.as_bytes()).map_err(Error::write(&path)))
}

/// The file of a block's sums. It has its name when it is whole.
pub fn block_file(folder: &Path, layer: usize) -> PathBuf {
    folder.join(format!("block-{layer:05}.safetensors"))
}

/// The file of the sums of the head's input.
pub fn head_file(folder: &Path) -> PathBuf {
    folder.join(HEAD)
}

/// Writes a block's sums.
pub fn write_block(folder: &Path, config: &Config, layer: usize, sums: &BlockSums) -> Result<()> {
    let mut tensors = Vec::new();
    for (slot, input) in &sums.inputs {
        add(&mut tensors, &module_name(config, layer, *slot), input);
    }
    if sums.tokens > 0 {
        let name = layer_name(config, layer);
        tensors.push(number(format!("{name}.cosine"), DType::F64, sums.cosines.to_le_bytes()));
        tensors.push(count(format!("{name}.tokens"), sums.tokens));
    }
    write_file(&block_file(folder, layer), tensors)
}

/// Writes the sums of the head's input.
pub fn write_head(folder: &Path, config: &Config, sums: &InputSums) -> Result<()> {
    let mut tensors = Vec::new();
    add(&mut tensors, head_input(config).0, sums);
    write_file(&head_file(folder), tensors)
}

fn add<'a>(tensors: &mut Vec<NewTensor<'a>>, module: &str, input: &'a InputSums) {
    for (kind, sum) in &input.sums {
        tensors.push(NewTensor {
            name: named(module, *kind),
            dtype: DType::F32,
            shape: kind.shape(features(*kind, sum.len())),
            data: Box::new(move || Ok(bytemuck::cast_slice(sum).to_vec())),
        });
    }
    tensors.push(count(format!("{module}.tokens"), input.tokens));
    tensors.push(count(format!("{module}.sequences"), input.sequences));
}

/// The features of an input, by the length of a sum over it.
fn features(kind: Kind, length: usize) -> usize {
    match kind {
        Kind::Gram => length.isqrt(),
        _ => length,
    }
}

fn number(name: String, dtype: DType, bytes: [u8; 8]) -> NewTensor<'static> {
    NewTensor { name, dtype, shape: vec![1], data: Box::new(move || Ok(bytes.to_vec())) }
}

fn count(name: String, value: u64) -> NewTensor<'static> {
    number(name, DType::I64, value.to_le_bytes())
}

/// An error unless every block's file is whole and has what `about` says, of this configuration's widths. Reads headers.
pub(super) fn check(folder: &Path, about: &About, config: &Config) -> Result<()> {
    if about.blocks != config.layers() {
        return Err(Error::Key {
            path: folder.join(FILE),
            key: "blocks".into(),
            expected: format!("{}, as many as the model has", config.layers()),
            found: about.blocks.to_string(),
        });
    }
    let kinds = about.kinds();
    for layer in 0..config.layers() {
        let file = open(&block_file(folder, layer))?;
        for spec in inputs(config, layer) {
            for kind in kinds.iter().filter(|kind| **kind != Kind::Cosine) {
                sum(&file, &named(spec.module(), *kind), &kind.shape(spec.columns))?;
            }
        }
    }
    Ok(())
}

/// Reads the sums of some kinds of a block.
pub(super) fn read_block(
    folder: &Path,
    config: &Config,
    layer: usize,
    kinds: &[Kind],
) -> Result<BlockSums> {
    let file = open(&block_file(folder, layer))?;
    let mut block = BlockSums::default();
    for spec in inputs(config, layer) {
        block.inputs.insert(spec.slot, read_input(&file, spec.module(), spec.columns, kinds)?);
    }
    if kinds.contains(&Kind::Cosine) {
        let name = layer_name(config, layer);
        let cosines = get(&file, &format!("{name}.cosine"))?;
        block.cosines = f64::from_le_bytes(eight(&cosines, StoredType::F64)?);
        block.tokens =
            u64::from_le_bytes(eight(&get(&file, &format!("{name}.tokens"))?, StoredType::I64)?);
    }
    Ok(block)
}

/// Reads the sums of some kinds of the head's input; `None` where it was not observed.
pub(super) fn read_head(
    folder: &Path,
    config: &Config,
    kinds: &[Kind],
) -> Result<Option<InputSums>> {
    let path = head_file(folder);
    if !path.exists() {
        return Ok(None);
    }
    let (module, _, width) = head_input(config);
    read_input(&open(&path)?, module, width, kinds).map(Some)
}

fn read_input(
    file: &Safetensors,
    module: &str,
    features: usize,
    kinds: &[Kind],
) -> Result<InputSums> {
    let number = |what: &str| -> Result<u64> {
        let tensor = get(file, &format!("{module}.{what}"))?;
        Ok(u64::from_le_bytes(eight(&tensor, StoredType::I64)?))
    };
    let (tokens, sequences) = (number("tokens")?, number("sequences")?);
    let mut input = InputSums { tokens, sequences, ..InputSums::default() };
    for kind in kinds.iter().filter(|kind| **kind != Kind::Cosine) {
        let tensor = sum(file, &named(module, *kind), &kind.shape(features))?;
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.bytes()?);
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(wrong(&tensor, "finite values".into(), value.to_string()));
        }
        input.sums.insert(*kind, values);
    }
    Ok(input)
}

pub(super) fn open(path: &Path) -> Result<Safetensors> {
    Safetensors::open(Source::open(path)?)
}

fn get<'f>(file: &'f Safetensors, name: &str) -> Result<StoredTensor<'f>> {
    file.get(name).ok_or_else(|| Error::Tensor {
        path: file.sources()[0].path().into(),
        tensor: name.into(),
        expected: "a sum over the calibration tokens".into(),
        found: "no such tensor".into(),
    })
}

/// A tensor of f32 of this shape.
fn sum<'f>(file: &'f Safetensors, name: &str, shape: &[usize]) -> Result<StoredTensor<'f>> {
    let tensor = get(file, name)?;
    if tensor.ty != StoredType::F32 || tensor.shape != shape {
        let found = format!("{} {:?}", tensor.ty, tensor.shape);
        return Err(wrong(&tensor, format!("f32 {shape:?}"), found));
    }
    Ok(tensor)
}

/// The bytes of one number.
fn eight(tensor: &StoredTensor<'_>, ty: StoredType) -> Result<[u8; 8]> {
    let bytes = tensor.bytes()?;
    match <[u8; 8]>::try_from(&*bytes) {
        Ok(bytes) if tensor.ty == ty => Ok(bytes),
        _ => Err(wrong(tensor, format!("{ty} [1]"), format!("{} {:?}", tensor.ty, tensor.shape))),
    }
}

fn wrong(tensor: &StoredTensor<'_>, expected: String, found: String) -> Error {
    Error::Tensor { path: tensor.source.path().into(), tensor: tensor.name.into(), expected, found }
}
