//! What tells a model from every other one: a hash of its files.

use super::checkpoint::Checkpoint;
use crate::disk;
use crate::error::Result;
use crate::formats::{Source, sha256};

/// A Hugging Face folder's configuration.
pub const CONFIG_FILE: &str = "config.json";

/// A hash of what a model computes with, its weights and its configuration, in hexadecimal digits: the same for the same files,
/// wherever they stand. All weights are read.
pub fn identity(model: &Checkpoint) -> Result<String> {
    let weights = model.sources().into_iter().map(Source::sha256).collect::<Result<Vec<_>>>()?;
    identity_of(model, &weights)
}

/// The same by the hashes of [`Checkpoint::sources`], in order.
pub fn identity_of(model: &Checkpoint, weights: &[impl AsRef<str>]) -> Result<String> {
    hash_of_files(model, weights, &[CONFIG_FILE])
}

/// A hash of the hashes of [`Checkpoint::sources`], in order, and of those of `files` that stand in the model's folder.
pub fn hash_of_files(
    model: &Checkpoint,
    weights: &[impl AsRef<str>],
    files: &[&str],
) -> Result<String> {
    let mut hashes: String = weights.iter().map(AsRef::as_ref).collect();
    for name in files {
        let path = model.path().join(name);
        if path.is_file() {
            hashes += &sha256(disk::read(&path, disk::TOKENIZER)?);
        }
    }
    Ok(sha256(hashes))
}
