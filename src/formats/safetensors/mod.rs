//! Checkpoints in safetensors files: one file, or shards with an index.
//!
//! The `safetensors` crate checks a file's header; what it cannot see (shards, the index, names that stand twice) is
//! checked here.

mod read;
mod unique;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use super::{Source, StoredTensor, StoredType};
use crate::error::Result;

pub use write::{NewTensor, continue_folder, folder_files, write_file, write_folder};

/// The file of a checkpoint that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// An open checkpoint.
#[derive(Debug)]
pub struct Safetensors {
    shards: Vec<Source>,
    tensors: BTreeMap<String, Place>,
    notes: Vec<String>,
}

/// Where a tensor stands.
#[derive(Debug)]
struct Place {
    shard: usize,
    ty: StoredType,
    shape: Vec<usize>,
    range: Range<usize>, // bytes of the file
}

impl Safetensors {
    /// Opens a single file.
    pub fn open(source: Source) -> Result<Safetensors> {
        read::single(source)
    }

    /// Opens the checkpoint of a model folder: `model.safetensors`, or else the shards that the index lists.
    pub fn open_folder(folder: &Path) -> Result<Safetensors> {
        read::folder(folder)
    }

    /// The same with each tensor under another name. Where two would have one, nothing is changed.
    pub fn renamed(mut self, name: impl Fn(&str) -> String) -> Safetensors {
        let names: BTreeSet<String> = self.names().map(&name).collect();
        if names.len() == self.len() {
            self.tensors =
                self.tensors.into_iter().map(|(old, place)| (name(&old), place)).collect();
        }
        self
    }

    /// What is odd about the files and does no harm.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The files that the tensors stand in.
    pub fn sources(&self) -> &[Source] {
        &self.shards
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let (name, place) = self.tensors.get_key_value(name)?;
        Some(StoredTensor {
            name,
            ty: place.ty,
            shape: place.shape.clone(),
            source: &self.shards[place.shard],
            range: place.range.clone(),
        })
    }
}
