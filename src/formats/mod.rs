//! Files that hold tensors: safetensors and GGUF. Bytes in, bytes out; what a tensor means to a model is not known here.
//!
//! Every file is untrusted: a length or count is compared with the bytes that are there before it is used.

pub mod gguf;
pub mod imatrix;
pub mod json;
pub mod peft;
pub mod quantized;
pub mod safetensors;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use crate::disk::Input;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::tensor::{DType, Packed, WeightFormat};
use gguf::GgmlType;

/// The bytes of a tensor to be written, made when their turn comes, so that only one tensor is in memory at a time.
pub type LazyBytes<'a> = Box<dyn Fn() -> Result<Vec<u8>> + 'a>;

/// Bytes that are hashed between two looks at whether the user wants to stop.
const HASHED_AT_ONCE: usize = 16 << 20;

/// The SHA-256 of bytes, in hexadecimal digits.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file, or bytes that are built into the program. Clones share it.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    bytes: Bytes,
    /// Of all bytes, once it was asked for.
    sha256: Arc<OnceLock<String>>,
}

#[derive(Clone, Debug)]
enum Bytes {
    File(Arc<Input>),
    Embedded(&'static [u8]),
}

impl Source {
    /// Opens a file. Nothing is read yet, and what is read later is read once: it is not mapped, so that a file that shrinks
    /// is an error and does not end the process.
    pub fn open(path: &Path) -> Result<Source> {
        let file = Arc::new(Input::open(path)?);
        Ok(Source { path: path.to_path_buf(), bytes: Bytes::File(file), sha256: Arc::default() })
    }

    /// Bytes that are part of the program; `name` stands for the path in messages.
    pub fn embedded(name: impl AsRef<Path>, bytes: &'static [u8]) -> Source {
        let path = name.as_ref().to_path_buf();
        Source { path, bytes: Bytes::Embedded(bytes), sha256: Arc::default() }
    }

    /// Its name in messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        match &self.bytes {
            Bytes::File(file) => file.length(),
            Bytes::Embedded(bytes) => bytes.len() as u64,
        }
    }

    /// Some of them. The range is within the length.
    pub fn read(&self, range: Range<usize>) -> Result<Cow<'_, [u8]>> {
        match &self.bytes {
            Bytes::File(file) => {
                let mut bytes = vec![0; range.len()];
                file.read_at(range.start as u64, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
            Bytes::Embedded(bytes) => Ok(Cow::Borrowed(&bytes[range])),
        }
    }

    /// The SHA-256 of all of them, in hexadecimal digits. They are read once.
    pub fn sha256(&self) -> Result<String> {
        if let Some(known) = self.sha256.get() {
            return Ok(known.clone());
        }
        let length = self.length() as usize;
        let mut hash = Sha256::new();
        for from in (0..length).step_by(HASHED_AT_ONCE) {
            interrupt::check()?;
            hash.update(self.read(from..(from + HASHED_AT_ONCE).min(length))?);
        }
        Ok(self.sha256.get_or_init(|| hex(&hash.finalize())).clone())
    }

    /// The first of them, by which a file of another kind is known.
    pub fn beginning(&self) -> Result<Cow<'_, [u8]>> {
        self.read(0..self.length().min(256) as usize)
    }

    /// An error if the file was shortened or written to since it was opened.
    pub fn unchanged(&self) -> Result<()> {
        match &self.bytes {
            Bytes::File(file) => file.unchanged(),
            Bytes::Embedded(_) => Ok(()),
        }
    }
}

/// The type of the elements of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE binary64.
    F64,
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// A type of GGUF that is none of the above.
    Ggml(GgmlType),
    /// A type of safetensors that is none of the above, by name: narrow floats, complex numbers.
    Other(&'static str),
}

impl StoredType {
    /// The name used in messages.
    pub const fn name(self) -> &'static str {
        match self {
            StoredType::F32 => DType::F32.name(),
            StoredType::F16 => DType::F16.name(),
            StoredType::Bf16 => DType::Bf16.name(),
            StoredType::F64 => "f64",
            StoredType::Bool => "bool",
            StoredType::U8 => "u8",
            StoredType::I8 => "i8",
            StoredType::U16 => "u16",
            StoredType::I16 => "i16",
            StoredType::U32 => DType::U32.name(),
            StoredType::I32 => "i32",
            StoredType::U64 => "u64",
            StoredType::I64 => "i64",
            StoredType::Ggml(ty) => ty.name(),
            StoredType::Other(name) => name,
        }
    }
}

impl StoredType {
    /// The format that [`StoredTensor::to_packed`] gives for this type, if it has a decoder.
    pub fn weight_format(self) -> Option<WeightFormat> {
        match self {
            StoredType::F32 | StoredType::F64 => Some(WeightFormat::f32()),
            StoredType::F16 => Some(WeightFormat::f16()),
            StoredType::Bf16 => Some(WeightFormat::bf16()),
            StoredType::Ggml(ty) => gguf::weight_format(ty),
            _ => None,
        }
    }
}

impl From<GgmlType> for StoredType {
    fn from(ty: GgmlType) -> StoredType {
        match ty {
            GgmlType::F32 => StoredType::F32,
            GgmlType::F16 => StoredType::F16,
            GgmlType::Bf16 => StoredType::Bf16,
            GgmlType::F64 => StoredType::F64,
            GgmlType::I8 => StoredType::I8,
            GgmlType::I16 => StoredType::I16,
            GgmlType::I32 => StoredType::I32,
            GgmlType::I64 => StoredType::I64,
            other => StoredType::Ggml(other),
        }
    }
}

impl std::fmt::Display for StoredType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor in a file: where its bytes are and how to read them. Its file has been checked: shape, type and length agree.
#[derive(Clone, Debug)]
pub struct StoredTensor<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// The type of its elements.
    pub ty: StoredType,
    /// Lengths along each dimension, outermost first, as PyTorch counts them.
    pub shape: Vec<usize>,
    /// The file.
    pub source: &'a Source,
    /// The place of its elements in the file, in bytes.
    pub range: Range<usize>,
}

impl<'a> StoredTensor<'a> {
    /// Its elements, row-major, little-endian, read now.
    pub fn bytes(&self) -> Result<Cow<'a, [u8]>> {
        self.source.read(self.range.clone())
    }

    /// A matrix, or a vector as a matrix of one row, in the weight format that holds it without loss.
    pub fn to_packed(&self) -> Result<Packed> {
        let (rows, columns) = match self.shape[..] {
            [columns] => (1, columns),
            [rows, columns] => (rows, columns),
            _ => return Err(self.unfit("a vector or a matrix", format!("shape {:?}", self.shape))),
        };
        if rows == 0 || columns == 0 {
            return Err(self.unfit("at least one element", format!("shape {:?}", self.shape)));
        }
        let bytes = self.bytes()?;
        let packed = match self.ty {
            StoredType::F32 => Some(gguf::words_32bit(&bytes, rows, columns)),
            StoredType::F16 => {
                let format = WeightFormat::f16();
                Some(Packed::from_16bit(format, &bytes, rows, columns))
            }
            StoredType::Bf16 => {
                let format = WeightFormat::bf16();
                Some(Packed::from_16bit(format, &bytes, rows, columns))
            }
            StoredType::F64 => Some(self.narrowed(&bytes, rows, columns)?),
            StoredType::Ggml(ty) => gguf::unpack(ty, &bytes, rows, columns),
            _ => None,
        };
        packed.ok_or_else(|| self.unfit("a float type or a block type with a decoder", self.ty))
    }

    /// f64 values rounded to f32; an error where one becomes infinite.
    fn narrowed(&self, bytes: &[u8], rows: usize, columns: usize) -> Result<Packed> {
        let (values, _) = bytes.as_chunks::<8>();
        let values = values.iter().map(|bytes| f64::from_le_bytes(*bytes));
        if let Some(value) = values.clone().find(|v| v.is_finite() && !(*v as f32).is_finite()) {
            return Err(self.unfit("values that f32 holds", value));
        }
        let values: Vec<f32> = values.map(|value| value as f32).collect();
        Ok(Packed::from_f32(&values, rows, columns))
    }

    fn unfit(&self, expected: &str, found: impl ToString) -> Error {
        Error::Tensor {
            path: self.source.path().to_path_buf(),
            tensor: self.name.to_string(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// What a file is that was taken for one of a model's and is none, with what to do, where its bytes tell.
pub fn foreign(path: &Path, bytes: &[u8]) -> Option<Error> {
    let again = "download the file again, by the address of the file itself";
    let convert = "this program reads safetensors and GGUF: convert the model with transformers (save_pretrained)";
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
    let text = text.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    let begins = |magic: &[u8]| bytes.starts_with(magic);
    let (found, advice) = if bytes.is_empty() {
        ("is empty", again)
    } else if text.starts_with("version https://git-lfs") {
        (
            "is a pointer of Git LFS, not the file it stands for",
            "run `git lfs pull` in its folder, or download the file itself",
        )
    } else if text.starts_with("<!doctype")
        || text.starts_with("<html")
        || text.starts_with("<?xml")
    {
        ("is a web page, not a file of a model", again)
    } else if [
        "entry not found",
        "repository not found",
        "invalid username",
        "access to model",
        "not found",
        "{\"error\"",
    ]
    .iter()
    .any(|start| text.starts_with(start))
    {
        ("is a server's message, not a file of a model", again)
    } else if begins(b"PK\x03\x04") || (begins(b"\x80\x02") && !begins(b"\x80\x02\0")) {
        // Behind those two bytes an opcode comes, which is none of 0; a safetensors header of 640 bytes begins like it.
        ("holds Python objects (PyTorch's .bin or .pt) or is an archive", convert)
    } else if [&b"tjgg"[..], b"lmgg", b"fmgg", b"algg", b"ggml"].iter().any(|magic| begins(magic)) {
        (
            "is a GGML file, from before GGUF",
            "convert it with llama.cpp's convert_llama_ggml_to_gguf.py, or download the GGUF file",
        )
    } else if begins(b"\x1f\x8b\x08")
        || begins(b"\x28\xb5\x2f\xfd")
        || begins(b"\xfd7zXZ")
        || begins(b"BZh")
    {
        ("is compressed", "unpack it first")
    } else if begins(b"\x89HDF") {
        ("is an HDF5 file (TensorFlow or Keras)", convert)
    } else {
        return None;
    };
    Some(Error::Misplaced { path: path.into(), found: found.into(), advice: advice.into() })
}

/// Bytes of memory that the description of a file's tensors may take: what a small thing in the file can become in memory
/// is limited by this, so a file cannot claim many times its size. Small files are allowed some anyway, and large ones no
/// more than any tokenizer needs.
fn memory_allowance(file_bytes: u64) -> u64 {
    file_bytes.saturating_mul(2).clamp(64 << 20, 2 << 30)
}

/// The bytes of the next tensor, which must be as many as its shape and type make.
fn produce(name: &str, data: &LazyBytes<'_>, expected: u64) -> Result<Vec<u8>> {
    let bytes = data()?;
    assert_eq!(
        bytes.len() as u64,
        expected,
        "tensor `{name}` has as many bytes as its shape and type make"
    );
    Ok(bytes)
}
