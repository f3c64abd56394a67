//! llama.cpp's importance matrices: of each tensor the squares of its product's inputs, summed over tokens by input channel.
//!
//! They are GGUF files (`general.type` is `imatrix`; llama.cpp since PR 9400, `tools/imatrix/imatrix.cpp`): of a tensor `NAME`
//! the sums `NAME.in_sum2`, f32 (matrices, input features), and `NAME.counts`, f32 (matrices, 1), tokens; several matrices where
//! experts share a tensor. Before that they were files of their own layout, usually `.dat`: the mean of the squares times the
//! number of chunks, without the number of tokens. Both are read; the first is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::gguf::{Array, GgmlType, Gguf, NewGgufTensor, Value, write as write_gguf};
use super::{Source, StoredType};
use crate::disk;
use crate::error::{Error, Result};

/// What `general.type` says of one.
const TYPE: &str = "imatrix";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
/// The hash of the model, which Lopper adds and llama.cpp does not read.
const MODEL: &str = "lopper.model.sha256";
/// The hash of the token ids, likewise.
const TOKENS: &str = "lopper.tokens.sha256";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// An importance matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    /// The file.
    pub path: PathBuf,
    /// The texts it is over.
    pub datasets: Vec<String>,
    /// Chunks of text.
    pub chunks: u64,
    /// Tokens of a chunk; 0: the file does not say.
    pub chunk_size: u64,
    /// The hash of the model, where Lopper wrote it ([`crate::model::identity`]).
    pub model_sha256: Option<String>,
    /// The hash of the token ids, likewise.
    pub tokens_sha256: Option<String>,
    /// By the tensor's name in GGUF, `blk.0.ffn_up.weight`.
    pub entries: BTreeMap<String, Entry>,
}

/// The sums of a tensor's input.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The sums of squares by channel, of one matrix after the other.
    pub sums: Vec<f32>,
    /// The tokens of each matrix; of the old layout, chunks.
    pub counts: Vec<f32>,
}

impl Imatrix {
    /// Reads a file of either layout.
    pub fn open(path: &Path) -> Result<Self> {
        let source = Source::open(path)?;
        match source.beginning()?.starts_with(b"GGUF") {
            true => read(Gguf::open(source)?),
            false => read_old(path, &source),
        }
    }

    /// Tokens that were summed: the most of any tensor.
    pub fn tokens(&self) -> u64 {
        let counts = self.entries.values().flat_map(|entry| &entry.counts);
        counts.copied().fold(0.0, f32::max) as u64
    }

    /// Writes it as GGUF.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut metadata = vec![
            ("general.type".to_string(), Value::String(TYPE.into())),
            (DATASETS.into(), Value::Array(Array::String(self.datasets.clone()))),
            (CHUNK_COUNT.into(), Value::U32(u32::try_from(self.chunks).unwrap_or(u32::MAX))),
            (CHUNK_SIZE.into(), Value::U32(u32::try_from(self.chunk_size).unwrap_or(u32::MAX))),
        ];
        for (key, hash) in [(MODEL, &self.model_sha256), (TOKENS, &self.tokens_sha256)] {
            if let Some(hash) = hash {
                metadata.push((key.into(), Value::String(hash.clone())));
            }
        }
        let mut tensors = Vec::new();
        for (name, entry) in &self.entries {
            let matrices = entry.counts.len().max(1);
            let width = entry.sums.len() / matrices;
            let lists = [(SUMS, width, &entry.sums), (COUNTS, 1, &entry.counts)];
            for (suffix, columns, values) in lists {
                tensors.push(NewGgufTensor {
                    name: format!("{name}{suffix}"),
                    ty: GgmlType::F32,
                    shape: vec![matrices, columns],
                    data: Box::new(move || Ok(bytemuck::cast_slice(values).to_vec())),
                });
            }
        }
        write_gguf(path, &metadata, tensors)
    }
}

fn read(gguf: Gguf) -> Result<Imatrix> {
    let path = gguf.source().path().to_path_buf();
    let ty = gguf.str("general.type")?;
    if ty != Some(TYPE) {
        return Err(Error::Misplaced {
            path,
            found: match ty {
                Some(ty) => format!("is a GGUF file of type {ty}, no imatrix"),
                None => "is a GGUF file without general.type, no imatrix".into(),
            },
            advice: "give a folder that `lopper calibrate` wrote, or a file that it or llama-imatrix did".into(),
        });
    }
    let mut imatrix = Imatrix {
        datasets: gguf.strings(DATASETS)?.unwrap_or_default().to_vec(),
        chunks: gguf.u64(CHUNK_COUNT)?.unwrap_or(0),
        chunk_size: gguf.u64(CHUNK_SIZE)?.unwrap_or(0),
        model_sha256: gguf.str(MODEL)?.map(str::to_string),
        tokens_sha256: gguf.str(TOKENS)?.map(str::to_string),
        path: path.clone(),
        ..Imatrix::default()
    };
    let wrong = |tensor: &str, expected: &str, found: String| Error::Tensor {
        path: path.clone(),
        tensor: tensor.into(),
        expected: expected.into(),
        found,
    };
    let values = |name: &str| -> Result<Option<(Vec<f32>, Vec<usize>)>> {
        let Some(tensor) = gguf.tensor(name) else { return Ok(None) };
        if tensor.ty != StoredType::F32 {
            return Err(wrong(name, "f32", tensor.ty.to_string()));
        }
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.bytes()?);
        match values.iter().find(|value| !value.is_finite() || **value < 0.0) {
            None => Ok(Some((values, tensor.shape))),
            Some(value) => Err(wrong(name, "finite values, 0 or more", value.to_string())),
        }
    };
    for tensor in gguf.names() {
        let Some(name) = tensor.strip_suffix(SUMS) else { continue };
        let counts_name = format!("{name}{COUNTS}");
        let (sums, _) = values(tensor)?.expect("it is among the names");
        let Some((counts, shape)) = values(&counts_name)? else {
            return Err(wrong(&counts_name, "the tokens of the sums", "no such tensor".into()));
        };
        if !sums.len().is_multiple_of(counts.len().max(1)) {
            let expected = format!("a divisor of the {} sums", sums.len());
            return Err(wrong(&counts_name, &expected, format!("shape {shape:?}")));
        }
        imatrix.entries.insert(name.into(), Entry { sums, counts });
    }
    match imatrix.entries.is_empty() {
        true => Err(wrong(SUMS, "sums of squares of a tensor or more", "none".into())),
        false => Ok(imatrix),
    }
}

/// The layout before GGUF: numbers of entries, of chunks and of bytes as i32; of each entry its name, its chunks and its values.
fn read_old(path: &Path, source: &Source) -> Result<Imatrix> {
    let bytes = disk::read(path, disk::TEXT)?;
    let mut reader = Old { path, bytes: &bytes, at: 0 };
    if source.length() < 4 {
        return Err(reader.wrong("file", "an imatrix", format!("{} bytes", source.length())));
    }
    let mut imatrix = Imatrix { path: path.into(), ..Imatrix::default() };
    for _ in 0..reader.count("number of tensors", 12)? {
        let length = reader.count("length of a name", 1)?;
        let name = reader.text("name", length)?;
        let chunks = reader.number("chunks")?;
        let length = reader.count("number of values", 4)?;
        let what = format!("values of {name}");
        let (values, _) = reader.take(&what, 4 * length)?.as_chunks::<4>();
        let sums: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if let Some(value) = sums.iter().find(|value| !value.is_finite() || **value < 0.0) {
            return Err(reader.wrong(&what, "finite values, 0 or more", value.to_string()));
        }
        if chunks < 1 {
            return Err(reader.wrong(
                &format!("chunks of {name}"),
                "1 or more",
                chunks.to_string(),
            ));
        }
        imatrix.entries.insert(name, Entry { sums, counts: vec![chunks as f32] });
    }
    if imatrix.entries.is_empty() {
        return Err(reader.wrong("number of tensors", "1 or more", "0".into()));
    }
    // Later versions of the layout end with the number of chunks and the text.
    if reader.at < bytes.len() {
        imatrix.chunks = reader.number("chunks")?.try_into().unwrap_or(0);
    }
    if reader.at < bytes.len() {
        let length = reader.count("length of the text's name", 1)?;
        imatrix.datasets.push(reader.text("text's name", length)?);
    }
    Ok(imatrix)
}

/// A place in a file of the old layout.
struct Old<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Old<'a> {
    fn wrong(&self, what: &str, expected: &str, found: String) -> Error {
        Error::Malformed {
            path: self.path.into(),
            what: format!("{what} of an imatrix"),
            offset: Some(self.at as u64),
            expected: expected.into(),
            found,
        }
    }

    fn take(&mut self, what: &str, count: usize) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        if count > left.len() {
            let found = format!("{} bytes to the end of the file", left.len());
            return Err(self.wrong(what, &format!("{count} bytes"), found));
        }
        self.at += count;
        Ok(&left[..count])
    }

    fn number(&mut self, what: &str) -> Result<i32> {
        let bytes = self.take(what, 4)?;
        Ok(i32::from_le_bytes(bytes.try_into().expect("4 bytes")))
    }

    /// A number of things to follow, each of at least `smallest` bytes.
    fn count(&mut self, what: &str, smallest: usize) -> Result<usize> {
        let count = self.number(what)?;
        let most = (self.bytes.len() - self.at) / smallest;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => {
                self.at -= 4;
                let expected = format!("0 to {most}, for the bytes to the end of the file");
                Err(self.wrong(what, &expected, count.to_string()))
            }
        }
    }

    fn text(&mut self, what: &str, length: usize) -> Result<String> {
        let at = self.at;
        let text = std::str::from_utf8(self.take(what, length)?);
        let text = text.map(str::to_string);
        text.map_err(|_| {
            self.at = at;
            self.wrong(what, "UTF-8", "other bytes".into())
        })
    }
}
