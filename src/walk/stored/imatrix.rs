//! Statistics as an imatrix: the squares of inputs, by the names of tensors in GGUF. Layers with one input have equal sums
//! each. The order of a tensor's rows in GGUF does not touch its columns, which the sums are of.

use std::path::Path;

use super::folder::{About, read_block, read_head};
use super::{BlockSums, InputSums, Kind, inputs};
use crate::error::{Error, Result};
use crate::families::{Config, Role, TensorSpec, tensor_specs};
use crate::formats::imatrix::{Entry, Imatrix};
use crate::graph::Slot;
use crate::interrupt;

/// Writes the squares of a folder of statistics, which must have them, as an imatrix.
pub fn write_imatrix(folder: &Path, about: &About, config: &Config, path: &Path) -> Result<()> {
    let mut imatrix = Imatrix {
        path: path.into(),
        datasets: about.parts.iter().map(|part| part.text.clone()).collect(),
        chunks: about.sequences,
        chunk_size: about.tokens / about.sequences.max(1),
        model_sha256: Some(about.model_sha256.clone()),
        tokens_sha256: about.parts.first().map(|part| part.tokens_sha256.clone()),
        ..Imatrix::default()
    };
    let kinds = [Kind::Squares];
    let specs = tensor_specs(config);
    let entry = |input: &InputSums| {
        let sums = input.sums.get(&Kind::Squares).cloned().unwrap_or_default();
        Entry { sums, counts: vec![input.tokens as f32] }
    };
    for layer in 0..config.layers() {
        interrupt::check()?;
        let block = read_block(folder, config, layer, &kinds)?;
        let linear = |spec: &&TensorSpec| spec.layer == Some(layer) && spec.role == Role::Linear;
        for spec in specs.iter().filter(linear) {
            let Some(input) = block.input(spec.slot) else { continue };
            let (name, Entry { sums, counts }) =
                (spec.gguf_stack().unwrap_or_else(|| spec.gguf.clone()), entry(input));
            // Of experts one matrix behind the other, in their order.
            let empty = || Entry { sums: Vec::new(), counts: Vec::new() };
            let all = imatrix.entries.entry(name).or_insert_with(empty);
            all.sums.extend(sums);
            all.counts.extend(counts);
        }
    }
    if let (Some(head), Some(spec)) = (read_head(folder, config, &kinds)?, head_spec(config)) {
        imatrix.entries.insert(spec.gguf, entry(&head));
    }
    imatrix.write(path)
}

/// The tensor of the head's product: the embedding where they are one.
fn head_spec(config: &Config) -> Option<TensorSpec> {
    let slot = if config.tied { Slot::Embedding } else { Slot::Head };
    tensor_specs(config).into_iter().find(|spec| spec.slot == slot)
}

/// An error unless there are sums of every input of this configuration, of its width.
pub(super) fn check(imatrix: &Imatrix, config: &Config) -> Result<()> {
    for layer in 0..config.layers() {
        for spec in inputs(config, layer) {
            entry(imatrix, &spec)?;
        }
    }
    Ok(())
}

pub(super) fn block(imatrix: &Imatrix, config: &Config, layer: usize) -> Result<BlockSums> {
    let mut block = BlockSums::default();
    for spec in inputs(config, layer) {
        block.inputs.insert(spec.slot, sums(imatrix, &entry(imatrix, &spec)?));
    }
    Ok(block)
}

pub(super) fn head(imatrix: &Imatrix, config: &Config) -> Result<Option<InputSums>> {
    let spec = head_spec(config).filter(|spec| imatrix.entries.contains_key(&spec.gguf));
    spec.map(|spec| Ok(sums(imatrix, &entry(imatrix, &spec)?))).transpose()
}

/// The entry of a tensor, of its width and of one matrix: of an expert's tensor its own of those of all.
fn entry(imatrix: &Imatrix, spec: &TensorSpec) -> Result<Entry> {
    let name = spec.gguf_stack().unwrap_or_else(|| spec.gguf.clone());
    let wrong = |found: String| Error::Tensor {
        path: imatrix.path.clone(),
        tensor: name.clone(),
        expected: format!("sums over {} input channels", spec.columns),
        found,
    };
    let entry = imatrix.entries.get(&name).ok_or_else(|| wrong("none".into()))?;
    let (matrices, channels) = (entry.counts.len(), entry.sums.len());
    if let Some(expert) = spec.slot.expert() {
        // No token may have reached it.
        return match entry.counts.get(expert) {
            Some(count) if channels == matrices * spec.columns => Ok(Entry {
                sums: entry.sums[expert * spec.columns..][..spec.columns].to_vec(),
                counts: vec![*count],
            }),
            _ => Err(wrong(format!("{channels} channels of {matrices} experts"))),
        };
    }
    match entry.counts[..] {
        [count] if channels == spec.columns && count > 0.0 => Ok(entry.clone()),
        [count] => Err(wrong(format!("{channels} channels, {count} tokens"))),
        _ => Err(wrong(format!("{matrices} matrices"))),
    }
}

fn sums(imatrix: &Imatrix, entry: &Entry) -> InputSums {
    let tokens = entry.counts[0] as u64;
    let sequences = match imatrix.chunk_size {
        0 => imatrix.chunks,
        size => tokens / size,
    };
    let sums = [(Kind::Squares, entry.sums.clone())].into();
    InputSums { tokens, sequences, sums }
}
