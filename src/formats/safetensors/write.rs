//! Writing safetensors files, tensor by tensor.
//!
//! The crate's own writer is not used: its tensors cannot fail, and a failure to compute one must leave no file. The
//! header is the crate's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::safetensors::Dtype;
use ::safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::{INDEX_FILE, SINGLE_FILE};
use crate::disk::{replace_file, write_record};
use crate::error::{Error, Result};
use crate::formats::{LazyBytes, produce};
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
    write_files(folder, tensors, max_shard_bytes, write_file)
}

/// [`write_folder`], continuing where an earlier call with the same tensors stopped, killed or not. Calls `progress` with
/// the tensors written and in all before each one; an error of it, or of a tensor's data, keeps what is there.
pub fn continue_folder(
    folder: &Path,
    tensors: Vec<NewTensor<'_>>,
    max_shard_bytes: u64,
    progress: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<PathBuf>> {
    let (mut before, all) = (0, tensors.len());
    write_files(folder, tensors, max_shard_bytes, |path, shard| {
        let count = shard.len();
        // A file has its name only when it is whole.
        if !path.exists() {
            continue_file(path, shard, &mut |done| progress(before + done, all))?;
        }
        before += count;
        Ok(())
    })
}

/// Names and bytes of the files with tensors that [`write_folder`] writes.
pub fn folder_files(
    tensors: Vec<NewTensor<'_>>,
    max_shard_bytes: u64,
) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    shards(Path::new(""), tensors, max_shard_bytes, &mut |path, mut shard| {
        shard.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size()));
        let data: u64 = shard.iter().map(NewTensor::bytes).sum();
        let bytes = 8 + header(path, &shard)?.len() as u64 + data;
        files.push((path.to_string_lossy().into_owned(), bytes));
        Ok(())
    })?;
    Ok(files)
}

fn write_files<'a>(
    folder: &Path,
    tensors: Vec<NewTensor<'a>>,
    max_shard_bytes: u64,
    mut write: impl FnMut(&Path, Vec<NewTensor<'a>>) -> Result<()>,
) -> Result<Vec<PathBuf>> {
    let total: u64 = tensors.iter().map(NewTensor::bytes).sum();
    let (mut paths, weight_map) = shards(folder, tensors, max_shard_bytes, &mut write)?;
    if !weight_map.is_empty() {
        let path = folder.join(INDEX_FILE);
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let text = format!("{index:#}\n");
        replace_file(&path, |file| file.write_all(text.as_bytes()).map_err(Error::write(&path)))?;
        paths.push(path);
    }
    Ok(paths)
}

/// Gives the tensors of each file to `write`. Returns the files, and where there are several which tensor is in which.
fn shards<'a>(
    folder: &Path,
    tensors: Vec<NewTensor<'a>>,
    max_shard_bytes: u64,
    write: &mut dyn FnMut(&Path, Vec<NewTensor<'a>>) -> Result<()>,
) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    assert_unique(&tensors);
    let total: u64 = tensors.iter().map(NewTensor::bytes).sum();
    if total <= max_shard_bytes || tensors.len() <= 1 {
        let path = folder.join(SINGLE_FILE);
        write(&path, tensors)?;
        return Ok((vec![path], BTreeMap::new()));
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
        write(&path, shard)?;
        paths.push(path);
    }
    Ok((paths, weight_map))
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

/// What is flushed to the disk at once in a file that can be continued: this many bytes, or whatever came in this time.
const CHECKPOINT_BYTES: u64 = 64 << 20;
const CHECKPOINT_TIME: Duration = Duration::from_millis(500);

/// Writes one file as `NAME.part`, with the number of tensors that are safely in it in `NAME.part.done`.
fn continue_file(
    path: &Path,
    mut tensors: Vec<NewTensor<'_>>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.size()));
    let mut begin = header(path, &tensors)?;
    begin.splice(..0, (begin.len() as u64).to_le_bytes());
    let (part, record) = (path.with_extension("part"), path.with_extension("part.done"));
    let failed = || Error::write(path);
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&part).map_err(failed())?;
    let end = |count: usize| {
        begin.len() as u64 + tensors[..count].iter().map(NewTensor::bytes).sum::<u64>()
    };
    let recorded = std::fs::read_to_string(&record).ok();
    let recorded = recorded.and_then(|text| text.trim().parse::<usize>().ok());
    let there = file.metadata().map_err(failed())?.len();
    let mut found = Vec::new();
    let read = (&mut file).take(begin.len() as u64).read_to_end(&mut found);
    read.map_err(failed())?;
    let usable = |count: &usize| *count <= tensors.len() && end(*count) <= there && found == begin;
    let first = recorded.filter(usable).unwrap_or(0);
    file.set_len(if first == 0 { 0 } else { end(first) }).map_err(failed())?;
    file.seek(SeekFrom::End(0)).map_err(failed())?;
    if first == 0 {
        file.write_all(&begin).map_err(failed())?;
    }
    let checkpoint = |done: usize| {
        file.sync_data().map_err(failed())?;
        write_record(&record, &format!("{done}\n"))
    };
    let (mut last, mut bytes) = (Instant::now(), 0);
    for (done, tensor) in tensors.iter().enumerate().skip(first) {
        let data =
            progress(done).and_then(|()| produce(&tensor.name, &tensor.data, tensor.bytes()));
        let data = data.or_else(|error| checkpoint(done).and(Err(error)))?;
        (&file).write_all(&data).map_err(failed())?;
        bytes += data.len() as u64;
        if bytes >= CHECKPOINT_BYTES || last.elapsed() >= CHECKPOINT_TIME {
            checkpoint(done + 1)?;
            (last, bytes) = (Instant::now(), 0);
        }
    }
    file.sync_all().map_err(failed())?;
    std::fs::rename(&part, path).map_err(failed())?;
    match std::fs::remove_file(&record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed()(error)),
        _ => Ok(()),
    }
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
        DType::F64 => Dtype::F64,
        DType::I32 => Dtype::I32,
        DType::U8 => Dtype::U8,
        DType::I8 => Dtype::I8,
        DType::F8E4m3 => Dtype::F8_E4M3,
    }
}
