//! Writing a GGUF file, tensor by tensor.

use std::collections::HashSet;
use std::path::Path;

use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, GgmlType, MAGIC, MAX_DIMENSIONS, MAX_KEY, MAX_NAME,
    VERSION, Value, alignment_error, is_alignment,
};
use crate::disk::replace_file;
use crate::error::{Error, Result};
use crate::formats::{LazyBytes, produce};

/// A tensor to be written.
pub struct NewGgufTensor<'a> {
    /// Its name, of less than 64 bytes.
    pub name: String,
    /// The type of its blocks.
    pub ty: GgmlType,
    /// Lengths along each dimension, outermost first; one to four.
    pub shape: Vec<usize>,
    /// Its blocks, asked for once.
    pub data: LazyBytes<'a>,
}

/// Writes a file of version 3. Tensors stand in the order given, aligned to `general.alignment` where the metadata
/// has it, to 32 bytes otherwise. The file appears under its name when it is whole.
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: Vec<NewGgufTensor<'_>>,
) -> Result<()> {
    check_keys(path, metadata)?;
    let alignment = alignment(path, metadata)?;
    let sizes = check_tensors(path, &tensors)?;
    let header = header(metadata, &tensors, &sizes, alignment);
    replace_file(path, |file| {
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::write(path));
        put(&header)?;
        for (tensor, &size) in tensors.iter().zip(&sizes) {
            put(&produce(&tensor.name, &tensor.data, size)?)?;
            let padding = size.next_multiple_of(alignment) - size;
            put(&vec![0; padding as usize])?; // less than the alignment
        }
        Ok(())
    })
}

/// Bytes of the file that [`write`] writes.
pub fn file_bytes(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[NewGgufTensor<'_>],
) -> Result<u64> {
    let alignment = alignment(path, metadata)?;
    let sizes = check_tensors(path, tensors)?;
    let data: u64 = sizes.iter().map(|size| size.next_multiple_of(alignment)).sum();
    Ok(header(metadata, tensors, &sizes, alignment).len() as u64 + data)
}

fn check_keys(path: &Path, metadata: &[(String, Value)]) -> Result<()> {
    let mut seen = HashSet::new();
    for (key, _) in metadata {
        let (expected, found) = if key.len() as u64 > MAX_KEY {
            (format!("at most {MAX_KEY} bytes"), key.len().to_string())
        } else if !seen.insert(key) {
            ("one value".to_string(), "two".to_string())
        } else {
            continue;
        };
        return Err(Error::Key { path: path.to_path_buf(), key: key.clone(), expected, found });
    }
    Ok(())
}

fn alignment(path: &Path, metadata: &[(String, Value)]) -> Result<u64> {
    match metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, value)) => match value.as_u64() {
            Some(alignment) if is_alignment(alignment) => Ok(alignment),
            _ => Err(alignment_error(path, value)),
        },
    }
}

/// The tensors' sizes in bytes. Names and shapes come from a checkpoint, so what GGUF cannot hold is an error.
fn check_tensors(path: &Path, tensors: &[NewGgufTensor<'_>]) -> Result<Vec<u64>> {
    let mut seen = HashSet::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    for NewGgufTensor { name, ty, shape, .. } in tensors {
        let fail = |expected: &str, found: String| Error::Tensor {
            path: path.to_path_buf(),
            tensor: name.clone(),
            expected: expected.to_string(),
            found,
        };
        // llama.cpp keeps names with a closing zero in 64 bytes, so it refuses the longest that the format allows.
        if name.len() as u64 >= MAX_NAME {
            let found = format!("{} bytes", name.len());
            return Err(fail("a name of less than 64 bytes", found));
        }
        if !seen.insert(name) {
            return Err(fail("one tensor of that name", "two".to_string()));
        }
        let dimensions = shape.len() <= MAX_DIMENSIONS as usize && !shape.contains(&0);
        match ty.bytes_of(shape).filter(|_| dimensions) {
            Some(size) => sizes.push(size),
            None => {
                let expected = format!("1 to 4 positive dimensions, rows of whole {ty} blocks");
                return Err(fail(&expected, format!("shape {shape:?}")));
            }
        }
    }
    Ok(sizes)
}

/// Everything before the tensors' bytes, padding included.
fn header(
    metadata: &[(String, Value)],
    tensors: &[NewGgufTensor<'_>],
    sizes: &[u64],
    alignment: u64,
) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for (tensor, size) in tensors.iter().zip(sizes) {
        put_string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for &length in tensor.shape.iter().rev() {
            out.extend((length as u64).to_le_bytes());
        }
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += size.next_multiple_of(alignment);
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    out
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |id: u32, bytes: &[u8]| {
        out.extend(id.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[u8::from(*v)]),
        Value::String(text) => {
            put(8, &[]);
            put_string(out, text);
        }
        Value::Array(array) => {
            put(9, &[]);
            put_array(out, array);
        }
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    match array {
        Array::U8(list) => put_list(out, 0, list, |out, v| out.extend(v.to_le_bytes())),
        Array::I8(list) => put_list(out, 1, list, |out, v| out.extend(v.to_le_bytes())),
        Array::U16(list) => put_list(out, 2, list, |out, v| out.extend(v.to_le_bytes())),
        Array::I16(list) => put_list(out, 3, list, |out, v| out.extend(v.to_le_bytes())),
        Array::U32(list) => put_list(out, 4, list, |out, v| out.extend(v.to_le_bytes())),
        Array::I32(list) => put_list(out, 5, list, |out, v| out.extend(v.to_le_bytes())),
        Array::F32(list) => put_list(out, 6, list, |out, v| out.extend(v.to_le_bytes())),
        Array::Bool(list) => put_list(out, 7, list, |out, &v| out.push(u8::from(v))),
        Array::String(list) => put_list(out, 8, list, |out, text| put_string(out, text)),
        Array::Array(list) => put_list(out, 9, list, put_array),
        Array::U64(list) => put_list(out, 10, list, |out, v| out.extend(v.to_le_bytes())),
        Array::I64(list) => put_list(out, 11, list, |out, v| out.extend(v.to_le_bytes())),
        Array::F64(list) => put_list(out, 12, list, |out, v| out.extend(v.to_le_bytes())),
    }
}

fn put_list<T>(out: &mut Vec<u8>, id: u32, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    out.extend(id.to_le_bytes());
    out.extend((list.len() as u64).to_le_bytes());
    for element in list {
        put(out, element);
    }
}
