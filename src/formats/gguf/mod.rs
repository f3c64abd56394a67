//! GGUF files: metadata and tensors, read with every number checked, and written.

mod affine;
mod blocks;
mod fp4;
mod iq;
mod iq4;
mod k_quants;
mod read;
mod ternary;
mod types;
mod value;
mod write;

use std::ops::Range;
use std::path::Path;

use super::{Source, StoredTensor};
use crate::error::{Error, Result};

pub(super) use blocks::words_32bit;
pub use blocks::{holds, pack, unpack, weight_format};
pub use types::GgmlType;
pub use value::{Array, Value};
pub use write::{NewGgufTensor, file_bytes, write};

/// The key of the alignment of tensor data.
const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment where that key is absent.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Larger alignments have no use but to make a small file claim much space.
const MAX_ALIGNMENT: u64 = 64 << 10;
/// The first four bytes of a file.
const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;
/// Bytes of a key.
const MAX_KEY: u64 = 65535;
/// Bytes of a tensor's name.
const MAX_NAME: u64 = 64;
/// Dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;
/// Arrays in arrays, the outermost counted.
const MAX_ARRAY_DEPTH: u32 = 4;

/// An open file.
#[derive(Debug)]
pub struct Gguf {
    sources: Vec<Source>,
    version: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>, // in file order
    by_name: Vec<usize>,      // indices into `tensors`, sorted by name
}

/// A tensor's entry in the file's header, checked.
#[derive(Debug)]
struct TensorInfo {
    name: String,
    ty: GgmlType,
    shape: Vec<usize>,   // outermost first
    source: usize,       // which of the files
    range: Range<usize>, // bytes of that file
}

macro_rules! typed_lookups {
    ($($name:ident $require:ident -> $ty:ty, $as:ident, $what:literal;)*) => {
        $(
            #[doc = concat!("The value of a key, which must be ", $what, "; `None` if the key is absent.")]
            pub fn $name(&self, key: &str) -> Result<Option<$ty>> {
                self.typed(key, Value::$as, $what)
            }

            #[doc = concat!("The value of a key, which must be there and be ", $what, ".")]
            pub fn $require(&self, key: &str) -> Result<$ty> {
                self.$name(key)?.ok_or_else(|| self.key_error(key, $what, "no such key".to_string()))
            }
        )*
    };
}

impl Gguf {
    /// Reads and checks everything but the tensors' values.
    pub fn open(source: Source) -> Result<Gguf> {
        read::open(source)
    }

    /// Opens a file, and where it is the first of a split model the others, which stand beside it.
    pub fn open_set(path: &Path) -> Result<Gguf> {
        read::open_set(path)
    }

    /// The file; of a split model the first.
    pub fn source(&self) -> &Source {
        &self.sources[0]
    }

    /// All files of the model.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The format's version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All keys and values in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let found = self.metadata.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value)
    }

    typed_lookups! {
        u64 require_u64 -> u64, as_u64, "an unsigned integer";
        f64 require_f64 -> f64, as_f64, "a float";
        bool require_bool -> bool, as_bool, "a truth value";
        str require_str -> &str, as_str, "a string";
        strings require_strings -> &[String], as_strings, "an array of strings";
    }

    /// The tensors' names in file order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor: a file of metadata alone, such as a vocabulary.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let info = self.info(name)?;
        let source = &self.sources[info.source];
        Some(StoredTensor {
            name: &info.name,
            ty: info.ty.into(),
            shape: info.shape.clone(),
            source,
            range: info.range.clone(),
        })
    }

    /// The type of the tensor of that name, as the file has it.
    pub fn tensor_type(&self, name: &str) -> Option<GgmlType> {
        self.info(name).map(|info| info.ty)
    }

    /// Takes a tensor apart along its outermost dimension, if the file has it: into as many as there are names. An error if that
    /// is not its length.
    pub fn take_apart(&mut self, name: &str, parts: &[String]) -> Result<()> {
        let Some(place) = self.tensors.iter().position(|info| info.name == name) else {
            return Ok(());
        };
        let whole = &self.tensors[place];
        if whole.shape.len() < 2 || whole.shape[0] != parts.len() {
            return Err(Error::Tensor {
                path: self.sources[whole.source].path().to_path_buf(),
                tensor: name.to_string(),
                expected: format!("{} matrices", parts.len()),
                found: format!("shape {:?}", whole.shape),
            });
        }
        // Rows are whole blocks, so that each part has as many bytes.
        let bytes = whole.range.len() / parts.len();
        let part = |(index, name): (usize, &String)| {
            let start = whole.range.start + index * bytes;
            TensorInfo {
                name: name.clone(),
                ty: whole.ty,
                shape: whole.shape[1..].to_vec(),
                source: whole.source,
                range: start..start + bytes,
            }
        };
        let apart: Vec<TensorInfo> = parts.iter().enumerate().map(part).collect();
        self.tensors.splice(place..=place, apart);
        let path = self.source().path().to_path_buf();
        let names = self.tensors.iter().map(|info| &info.name);
        self.by_name = read::reject_duplicates(&path, "tensor name", names)?;
        Ok(())
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        let by_name = |&index: &usize| self.tensors[index].name.as_str().cmp(name);
        let place = self.by_name.binary_search_by(by_name).ok()?;
        Some(&self.tensors[self.by_name[place]])
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
        expected: &str,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(self.key_error(key, expected, describe(value))),
        }
    }

    fn key_error(&self, key: &str, expected: &str, found: String) -> Error {
        Error::Key {
            path: self.source().path().to_path_buf(),
            key: key.to_string(),
            expected: expected.to_string(),
            found,
        }
    }
}

/// Whether a file's alignment can be used.
fn is_alignment(value: u64) -> bool {
    value.is_power_of_two() && value <= MAX_ALIGNMENT
}

/// A value in a message: numbers as they are, the rest by type.
fn describe(value: &Value) -> String {
    match value {
        Value::String(_) => "a string".to_string(),
        Value::Array(_) => "an array".to_string(),
        Value::Bool(value) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn alignment_error(path: &Path, value: &Value) -> Error {
    Error::Key {
        path: path.to_path_buf(),
        key: ALIGNMENT_KEY.to_string(),
        expected: format!("a power of two up to {MAX_ALIGNMENT}"),
        found: describe(value),
    }
}
