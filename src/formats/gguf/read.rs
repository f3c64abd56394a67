//! Reading a GGUF file that may be hostile.
//!
//! Three rules keep it harmless: a count is compared with the bytes that are left before anything is allocated for it;
//! sums and products are checked; and the metadata in memory has a limit of its own (`memory_allowance`), because an
//! empty string is 8 bytes in the file and three times that here.

use std::borrow::Cow;
use std::path::Path;

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, Gguf, MAGIC, MAX_ARRAY_DEPTH,
    MAX_DIMENSIONS, MAX_KEY, MAX_NAME, TensorInfo, VERSION, Value, is_alignment,
};
use crate::error::{Error, Result};
use crate::formats::{Source, foreign, memory_allowance};

/// The smallest key with its value: length, empty key, type, one byte.
const MIN_PAIR: u64 = 8 + 4 + 1;
/// The smallest description of a tensor: length, empty name, one dimension, type, offset.
const MIN_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// Bytes that are read at once while the header is parsed.
const AHEAD: usize = 1 << 20;

pub(super) fn open(source: Source) -> Result<Gguf> {
    let allowance = memory_allowance(source.length());
    if source.length() == 0
        && let Some(error) = foreign(source.path(), &[])
    {
        return Err(error);
    }
    let mut reader =
        Reader { source: &source, ahead: Cow::Borrowed(&[]), ahead_at: 0, at: 0, allowance };
    let version = reader.preamble()?;
    let tensor_count = reader.count("tensor count", MIN_TENSOR)?;
    let pair_count = reader.count("metadata count", MIN_PAIR)?;
    let mut metadata = Vec::new();
    for _ in 0..pair_count {
        metadata.push(reader.pair()?);
    }
    reject_duplicates(source.path(), "metadata key", metadata.iter().map(|(key, _)| key))?;
    let mut described = Vec::new();
    for _ in 0..tensor_count {
        described.push(reader.tensor()?);
    }
    let names = described.iter().map(|(info, _)| &info.name);
    let by_name = reject_duplicates(source.path(), "tensor name", names)?;
    let alignment = alignment(&reader, &metadata)?;
    let tensors = place(&reader, described, alignment)?;
    Ok(Gguf { sources: vec![source], version, metadata, tensors, by_name })
}

/// A file, and the further parts if it is the first of a split model: `NAME-00001-of-00003.gguf`, as llama.cpp names them.
pub(super) fn open_set(path: &Path) -> Result<Gguf> {
    let mut whole = open(Source::open(path)?)?;
    let count = whole.u64("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(whole);
    }
    let number = whole.u64("split.no")?.unwrap_or(0).saturating_add(1);
    let misplaced = |path: &Path, found: String, advice: String| Error::Misplaced {
        path: path.into(),
        found,
        advice,
    };
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = |number: u64| format!("-{number:05}-of-{count:05}.gguf");
    let Some(stem) =
        name.strip_suffix(&ending(number)).filter(|_| number <= count && count < 100_000)
    else {
        let found = format!("is part {number} of {count} of a split GGUF file under another name");
        return Err(misplaced(path, found, format!("name its parts NAME{} and so on", ending(1))));
    };
    if number != 1 {
        let found = format!("is part {number} of {count} of a split GGUF file");
        return Err(misplaced(path, found, format!("give the first, {stem}{}", ending(1))));
    }
    for number in 2..=count {
        let place = path.with_file_name(format!("{stem}{}", ending(number)));
        if !place.exists() {
            let found = format!("part {number} of {count} of this split GGUF file is missing");
            return Err(misplaced(&place, found, "put all parts into one folder".into()));
        }
        let part = open(Source::open(&place)?)?;
        let stated = (part.u64("split.no")?, part.u64("split.count")?);
        if stated != (Some(number - 1), Some(count)) {
            return Err(Error::Malformed {
                path: place,
                what: "split.no and split.count".into(),
                offset: None,
                expected: format!("{} and {count}", number - 1),
                found: format!("{stated:?}"),
            });
        }
        let source = whole.sources.len();
        whole.sources.extend(part.sources);
        whole.tensors.extend(part.tensors.into_iter().map(|info| TensorInfo { source, ..info }));
    }
    whole.by_name =
        reject_duplicates(path, "tensor name", whole.tensors.iter().map(|info| &info.name))?;
    match whole.u64("split.tensors.count")? {
        Some(stated) if stated != whole.tensors.len() as u64 => Err(Error::Malformed {
            path: path.into(),
            what: "split.tensors.count".into(),
            offset: None,
            expected: format!("{} tensors in {count} parts", whole.tensors.len()),
            found: stated.to_string(),
        }),
        _ => Ok(whole),
    }
}

/// A place in the file.
struct Reader<'a> {
    source: &'a Source,
    /// Bytes that have been read already, and where they begin.
    ahead: Cow<'a, [u8]>,
    ahead_at: usize,
    at: usize,
    /// Bytes of memory that may still be allocated.
    allowance: u64,
}

impl Reader<'_> {
    fn error(&self, what: &str, at: usize, expected: impl ToString, found: impl ToString) -> Error {
        Error::Malformed {
            path: self.source.path().to_path_buf(),
            what: what.to_string(),
            offset: Some(at as u64),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    fn remaining(&self) -> u64 {
        self.source.length() - self.at as u64
    }

    /// An error if there are not so many bytes left.
    fn has(&self, what: &str, length: u64) -> Result<usize> {
        let left = self.remaining();
        match usize::try_from(length) {
            Ok(length) if length as u64 <= left => Ok(length),
            _ => {
                let found = format!("{left} bytes to the end of the file");
                Err(self.error(what, self.at, format!("{length} bytes"), found))
            }
        }
    }

    /// The next `length` bytes.
    fn take(&mut self, what: &str, length: u64) -> Result<&[u8]> {
        let length = self.has(what, length)?;
        let from = self.at - self.ahead_at;
        if from + length > self.ahead.len() {
            let end = self.at + length.max(AHEAD).min(self.remaining() as usize);
            self.ahead = self.source.read(self.at..end)?;
            self.ahead_at = self.at;
        }
        let from = self.at - self.ahead_at;
        self.at += length;
        Ok(&self.ahead[from..from + length])
    }

    fn fixed<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut fixed = [0; N];
        fixed.copy_from_slice(self.take(what, N as u64)?);
        Ok(fixed)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.fixed(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.fixed(what)?))
    }

    /// A number of things to follow, each of at least `smallest` bytes.
    fn count(&mut self, what: &str, smallest: u64) -> Result<u64> {
        let at = self.at;
        let count = self.u64(what)?;
        let most = self.remaining() / smallest;
        if count > most {
            let expected = format!("at most {most}, for the bytes to the end of the file");
            return Err(self.error(what, at, expected, count));
        }
        Ok(count)
    }

    /// Asks for memory. `bytes` is a multiple of a count that has passed [`Reader::count`], so it is no wild number.
    fn allow(&mut self, what: &str, count: u64, size: usize) -> Result<()> {
        let bytes = count.saturating_mul(size as u64);
        let Some(left) = self.allowance.checked_sub(bytes) else {
            let expected = format!("at most {} more bytes in memory", self.allowance);
            return Err(self.error(what, self.at, expected, bytes));
        };
        self.allowance = left;
        Ok(())
    }

    fn string(&mut self, what: &str, longest: u64) -> Result<String> {
        let start = self.at;
        let length = self.u64(what)?;
        if length > longest {
            return Err(self.error(what, start, format!("at most {longest} bytes"), length));
        }
        let at = self.at;
        self.has(what, length)?;
        self.allow(what, length, 1)?;
        let text = std::str::from_utf8(self.take(what, length)?).map(str::to_string);
        text.map_err(|e| self.error(what, at + e.valid_up_to(), "UTF-8", "other bytes"))
    }

    /// Magic and version.
    fn preamble(&mut self) -> Result<u32> {
        let magic: [u8; 4] = self.fixed("magic")?;
        if magic != MAGIC
            && let Some(error) = foreign(self.source.path(), &self.source.beginning()?)
        {
            return Err(error);
        }
        if magic != MAGIC {
            return Err(self.error("magic", 0, "GGUF", format!("bytes {magic:?}")));
        }
        let version = self.u32("version")?;
        if version == VERSION.swap_bytes() {
            return Err(Error::Unsupported {
                path: self.source.path().to_path_buf(),
                what: "big-endian GGUF".to_string(),
                why: "convert it to little-endian first".to_string(),
            });
        }
        // Version 2 differs from 3 only in what it says of byte order; version 1 had shorter counts.
        if !(2..=VERSION).contains(&version) {
            return Err(self.error("version", 4, "2 or 3", version));
        }
        Ok(version)
    }

    fn pair(&mut self) -> Result<(String, Value)> {
        self.allow("metadata", 1, size_of::<(String, Value)>())?;
        let key = self.string("metadata key", MAX_KEY)?;
        let at = self.at;
        let ty = self.u32("metadata type")?;
        let what = format!("metadata value of `{key}`");
        let value = match ty {
            0 => Value::U8(u8::from_le_bytes(self.fixed(&what)?)),
            1 => Value::I8(i8::from_le_bytes(self.fixed(&what)?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed(&what)?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed(&what)?)),
            4 => Value::U32(u32::from_le_bytes(self.fixed(&what)?)),
            5 => Value::I32(i32::from_le_bytes(self.fixed(&what)?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed(&what)?)),
            7 => Value::Bool(self.truth(&what)?),
            8 => Value::String(self.string(&what, u64::MAX)?),
            9 => Value::Array(self.array(&what, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.fixed(&what)?)),
            11 => Value::I64(i64::from_le_bytes(self.fixed(&what)?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed(&what)?)),
            _ => return Err(self.error(&what, at, "a type from 0 to 12", ty)),
        };
        Ok((key, value))
    }

    fn truth(&mut self, what: &str) -> Result<bool> {
        match self.fixed(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.error(what, self.at - 1, "0 or 1", other)),
        }
    }

    fn array(&mut self, what: &str, depth: u32) -> Result<Array> {
        let at = self.at;
        if depth > MAX_ARRAY_DEPTH {
            let expected = format!("at most {MAX_ARRAY_DEPTH} arrays in one another");
            return Err(self.error(what, at, expected, "one more"));
        }
        let ty = self.u32(what)?;
        let array = match ty {
            0 => Array::U8(self.numbers(what, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(what, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(what, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(what, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(what, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(what, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(what, f32::from_le_bytes)?),
            7 => Array::Bool(self.list(what, 1, |reader| reader.truth(what))?),
            8 => Array::String(self.list(what, 8, |reader| reader.string(what, u64::MAX))?),
            9 => Array::Array(self.list(what, 4 + 8, |reader| reader.array(what, depth + 1))?),
            10 => Array::U64(self.numbers(what, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(what, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(what, f64::from_le_bytes)?),
            _ => return Err(self.error(what, at, "an element type from 0 to 12", ty)),
        };
        Ok(array)
    }

    fn numbers<T, const N: usize>(
        &mut self,
        what: &str,
        convert: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let count = self.count(what, N as u64)?;
        self.allow(what, count, N)?;
        let (numbers, _) = self.take(what, count * N as u64)?.as_chunks::<N>();
        Ok(numbers.iter().map(|&bytes| convert(bytes)).collect())
    }

    fn list<T>(
        &mut self,
        what: &str,
        smallest: u64,
        mut element: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.count(what, smallest)?;
        self.allow(what, count, size_of::<T>())?;
        // The count has been compared with the bytes left, so it fits memory and `usize`.
        let mut list = Vec::with_capacity(count as usize);
        for _ in 0..count {
            list.push(element(self)?);
        }
        Ok(list)
    }

    /// A tensor's description and its offset from the start of the data. Its range is not known yet.
    fn tensor(&mut self) -> Result<(TensorInfo, u64)> {
        self.allow("tensor", 1, size_of::<(TensorInfo, u64)>())?;
        let name = self.string("tensor name", MAX_NAME)?;
        let what = format!("tensor `{name}`");
        let at = self.at;
        let dimensions = self.u32(&what)?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let expected = format!("1 to {MAX_DIMENSIONS} dimensions");
            return Err(self.error(&what, at, expected, dimensions));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let length = self.u64(&what)?;
            match usize::try_from(length) {
                Ok(length) if length > 0 => shape.push(length),
                _ => return Err(self.error(&what, self.at - 8, "a positive dimension", length)),
            }
        }
        shape.reverse();
        let id = self.u32(&what)?;
        let Some(ty) = GgmlType::from_id(id) else {
            return Err(self.error(&what, self.at - 4, "a known tensor type", format!("id {id}")));
        };
        let offset = self.u64(&what)?;
        let range = 0..0;
        let info = TensorInfo { name, ty, shape, source: 0, range };
        Ok((info, offset))
    }
}

/// The indices of `names` in sorted order, if no two are equal.
pub(super) fn reject_duplicates<'s>(
    path: &Path,
    what: &str,
    names: impl Iterator<Item = &'s String>,
) -> Result<Vec<usize>> {
    let names: Vec<&String> = names.collect();
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_unstable_by_key(|&index| names[index]);
    match order.windows(2).find(|pair| names[pair[0]] == names[pair[1]]) {
        None => Ok(order),
        Some(pair) => Err(Error::Malformed {
            path: path.to_path_buf(),
            what: what.to_string(),
            offset: None,
            expected: "no duplicates".to_string(),
            found: format!("`{}` twice", names[pair[0]]),
        }),
    }
}

fn alignment(reader: &Reader<'_>, metadata: &[(String, Value)]) -> Result<u64> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    match value.as_u64() {
        Some(alignment) if is_alignment(alignment) => Ok(alignment),
        _ => Err(super::alignment_error(reader.source.path(), value)),
    }
}

/// Gives each tensor its range of the file: aligned, inside, and shared with no other.
fn place(
    reader: &Reader<'_>,
    described: Vec<(TensorInfo, u64)>,
    alignment: u64,
) -> Result<Vec<TensorInfo>> {
    let file = reader.source.length();
    // `at` is at most the file's length and the alignment is small, so this cannot overflow.
    let data = (reader.at as u64).next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(described.len());
    for (mut info, offset) in described {
        let fail = |expected: String, found: String| Error::Tensor {
            path: reader.source.path().to_path_buf(),
            tensor: info.name.clone(),
            expected,
            found,
        };
        let Some(length) = info.ty.bytes_of(&info.shape) else {
            let expected = format!("rows of whole {} blocks, in all less than 2^64 bytes", info.ty);
            return Err(fail(expected, format!("shape {:?}", info.shape)));
        };
        if offset % alignment != 0 {
            let expected = format!("an offset that is a multiple of {alignment}");
            return Err(fail(expected, offset.to_string()));
        }
        let start = data.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(end)) = (start, end.filter(|&end| end <= file)) else {
            let expected = format!("its bytes within the file of {file} bytes");
            let found = format!("{length} bytes at {data} + {offset}");
            return Err(fail(expected, found));
        };
        info.range = start as usize..end as usize; // both at most the file's length
        tensors.push(info);
    }
    reject_overlaps(reader, &tensors)?;
    Ok(tensors)
}

fn reject_overlaps(reader: &Reader<'_>, tensors: &[TensorInfo]) -> Result<()> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_unstable_by_key(|info| info.range.start);
    match order.windows(2).find(|pair| pair[1].range.start < pair[0].range.end) {
        None => Ok(()),
        Some(pair) => Err(Error::Tensor {
            path: reader.source.path().to_path_buf(),
            tensor: pair[1].name.clone(),
            expected: "bytes of its own".to_string(),
            found: format!("bytes {:?}, shared with `{}`", pair[1].range, pair[0].name),
        }),
    }
}
