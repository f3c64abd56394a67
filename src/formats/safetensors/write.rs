//! Writing safetensors files, tensor by tensor.
//!
//! The crate's own writer is not used: its tensors cannot fail, and a failure to compute one must leave no file. The
//! header is the crate's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::{INDEX_FILE, SINGLE_FILE};
use crate::error::{Error, Result};
use crate::formats::{LazyBytes, produce, replace_file};
use crate::tensor::DType;

/// A tensor to be written.
pub struct NewTensor<'a> {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Lengths along each dimension, outermost first.
    pub shape: Vec<usize>,
    /// Its elements, row-major, little-endian; asked for once.
    pub data: LazyBytes<'a>,
}

impl NewTensor<'_> {
    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }
}

/// Writes a checkpoint into a folder: one file, or shards of at most `max_shard_bytes` (or one tensor) and their index.
///
/// Tensors keep their order, but those of wider elements come first in each file, which aligns all of them. Returns the
/// paths written, the index last. Files that stood in the folder before are not removed.
pub fn write_folder(
    folder: &Path,
    tensors: Vec<NewTensor<'_>>,
    max_shard_bytes: u64,
) -> Result<Vec<PathBuf>> {
    assert_unique(&tensors);
    let total: u64 = tensors.iter().map(NewTensor::bytes).sum();
    if total <= max_shard_bytes || tensors.len() <= 1 {
        let path = folder.join(SINGLE_FILE);
        write_file(&path, tensors)?;
        return Ok(vec![path]);
    }
    let shards = split(tensors, max_shard_bytes);
    let count = shards.len();
    let mut weight_map = BTreeMap::new();
    let mut paths = Vec::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        for tensor in &shard {
            weight_map.insert(tensor.name.clone(), file.clone());
        }
        let path = folder.join(file);
        write_file(&path, shard)?;
        paths.push(path);
    }
    let path = folder.join(INDEX_FILE);
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    let text = format!("{index:#}\n");
    replace_file(&path, |file| {
        file.write_all(text.as_bytes()).map_err(Error::write(&path))
    })?;
    paths.push(path);
    Ok(paths)
}

/// Writes one file. It appears under its name when it is whole.
pub fn write_file(path: &Path, mut tensors: Vec<NewTensor<'_>>) -> Result<()> {
    assert_unique(&tensors);
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size()));
    let header = header(path, &tensors)?;
    replace_file(path, |file| {
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::write(path));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        for tensor in &tensors {
            put(&produce(&tensor.name, &tensor.data, tensor.bytes())?)?;
        }
        Ok(())
    })
}

fn assert_unique(tensors: &[NewTensor<'_>]) {
    let mut seen = HashSet::new();
    for NewTensor { name, .. } in tensors {
        assert!(seen.insert(name), "tensor `{name}` is written once");
        assert_ne!(name, "__metadata__", "the format keeps this name");
    }
}

fn split(tensors: Vec<NewTensor<'_>>, max_shard_bytes: u64) -> Vec<Vec<NewTensor<'_>>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let bytes = tensor.bytes();
        if filled > 0 && filled + bytes > max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

/// The header, padded with spaces so that the data begins at a multiple of 8.
fn header(path: &Path, tensors: &[NewTensor<'_>]) -> Result<Vec<u8>> {
    let mut offset = 0;
    let mut infos = Vec::new();
    for tensor in tensors {
        let end = offset + tensor.bytes() as usize;
        let info = TensorInfo {
            dtype: crate_dtype(tensor.dtype),
            shape: tensor.shape.clone(),
            data_offsets: (offset, end),
        };
        infos.push((tensor.name.clone(), info));
        offset = end;
    }
    // Loaders of Hugging Face's libraries refuse a file that does not say which framework it is for.
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let failed = |reason: String| Error::write(path)(std::io::Error::other(reason));
    let metadata = Metadata::new(Some(format), infos).map_err(|e| failed(e.to_string()))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|e| failed(e.to_string()))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

fn crate_dtype(ty: DType) -> Dtype {
    match ty {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        DType::U32 => Dtype::U32,
        DType::I64 => Dtype::I64,
    }
}
