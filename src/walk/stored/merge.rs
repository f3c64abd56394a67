//! Statistics of several parts of a text, or of several texts, added up: what the whole gives, but for the order of sums.

use std::path::{Path, PathBuf};

use super::folder::{block_file, head_file, open, read_about};
use super::{About, write_about};
use crate::error::{Error, Result};
use crate::formats::safetensors::{NewTensor, Safetensors, write_file};
use crate::formats::{StoredTensor, StoredType};
use crate::interrupt;
use crate::tensor::DType;
use crate::walk::Kind;

/// What was merged.
#[derive(Clone, Debug)]
pub struct Merged {
    /// What the sums are of.
    pub about: About,
    /// What the user should know of it.
    pub warnings: Vec<String>,
}

/// Adds the statistics of `folders` up, tensor by tensor, into `out`, a folder that is there. They must be of one model and have
/// the same kinds. `progress`: files done and in all.
pub fn merge(
    folders: &[PathBuf],
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Merged> {
    let merged = check(folders)?;
    let heads = folders.iter().filter(|folder| head_file(folder).exists()).count();
    if heads != 0 && heads != folders.len() {
        let lacks = folders.iter().find(|folder| !head_file(folder).exists());
        return Err(Error::Tensor {
            path: lacks.cloned().unwrap_or_default(),
            tensor: "head.safetensors".into(),
            expected: "sums of the head's input, as the others have".into(),
            found: "no such file".into(),
        });
    }
    let here = Path::new("");
    let blocks = 0..merged.about.blocks;
    let mut files: Vec<PathBuf> = blocks.map(|layer| block_file(here, layer)).collect();
    if heads > 0 {
        files.push(head_file(here));
    }
    for (done, file) in files.iter().enumerate() {
        interrupt::check()?;
        progress(done, files.len());
        let parts: Vec<PathBuf> = folders.iter().map(|folder| folder.join(file)).collect();
        add_files(&parts, &out.join(file))?;
    }
    write_about(out, &merged.about)?;
    Ok(merged)
}

/// What the merged statistics are of; an error unless all can be added.
pub fn check(folders: &[PathBuf]) -> Result<Merged> {
    let abouts = folders.iter().map(|folder| read_about(folder)).collect::<Result<Vec<_>>>()?;
    let Some(first) = abouts.first() else {
        return Err(Error::Argument {
            argument: "--merge".into(),
            expected: "two folders of statistics or more".into(),
            found: "none".into(),
        });
    };
    let mut about = first.clone();
    let mut warnings = Vec::new();
    for (folder, next) in folders.iter().zip(&abouts).skip(1) {
        if next.model_sha256 != first.model_sha256 {
            return Err(Error::Misplaced {
                path: folder.clone(),
                found: format!(
                    "these statistics are of {}, sha256 {}, and those of {} of {}, sha256 {}",
                    next.model,
                    next.model_sha256,
                    folders[0].display(),
                    first.model,
                    first.model_sha256,
                ),
                advice: "only statistics of one model can be added".into(),
            });
        }
        let same = |what: &str, expected: String, found: String| match expected == found {
            true => Ok(()),
            false => Err(Error::Key {
                path: folder.join(super::FILE),
                key: what.into(),
                expected: format!("{expected}, as in {}", folders[0].display()),
                found,
            }),
        };
        same("kinds", first.kinds.join(", "), next.kinds.join(", "))?;
        same("blocks", first.blocks.to_string(), next.blocks.to_string())?;
        about.tokens += next.tokens;
        about.sequences += next.sequences;
        for (own, its) in [(&mut about.compute, &next.compute), (&mut about.device, &next.device)] {
            if !own.split("; ").any(|known| known == its) {
                *own = format!("{own}; {its}");
            }
        }
        let twice = next.parts.iter().find(|part| about.parts.iter().any(|own| own.meets(part)));
        if let Some(part) = twice {
            warnings.push(format!(
                "{}: some of the {} tokens of {} from token {} on are counted twice",
                folder.display(),
                part.samples * part.length,
                part.text,
                part.offset,
            ));
        }
        about.parts.extend(next.parts.iter().cloned());
    }
    Ok(Merged { about, warnings })
}

/// Adds files of the same tensors up.
fn add_files(parts: &[PathBuf], out: &Path) -> Result<()> {
    let files = parts.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    let (first, others) = files.split_first().expect("there are parts");
    for (file, path) in others.iter().zip(&parts[1..]) {
        let lacks = |a: &Safetensors, b: &Safetensors| {
            a.names().find(|name| b.get(name).is_none()).map(str::to_string)
        };
        if let Some(tensor) = lacks(first, file).or_else(|| lacks(file, first)) {
            return Err(Error::Tensor {
                path: path.clone(),
                tensor,
                expected: format!("the tensors of {}", parts[0].display()),
                found: "another set of them".into(),
            });
        }
    }
    let mut tensors = Vec::new();
    for name in first.names() {
        let same: Vec<StoredTensor<'_>> = files.iter().filter_map(|file| file.get(name)).collect();
        let dtype = dtype(&same)?;
        let shape = same[0].shape.clone();
        // What is no sum of a kind (tokens, cosines) adds up.
        let kind = name.rsplit('.').next().and_then(Kind::named).unwrap_or(Kind::Values);
        let data = Box::new(move || joined(&same, kind));
        tensors.push(NewTensor { name: name.into(), dtype, shape, data });
    }
    write_file(out, tensors)
}

/// The type of some tensors, which must have one type and one shape.
fn dtype(same: &[StoredTensor<'_>]) -> Result<DType> {
    let first = &same[0];
    let wrong = |tensor: &StoredTensor<'_>, expected: String| Error::Tensor {
        path: tensor.source.path().into(),
        tensor: tensor.name.into(),
        expected,
        found: format!("{} {:?}", tensor.ty, tensor.shape),
    };
    if let Some(other) = same.iter().find(|t| (t.ty, &t.shape) != (first.ty, &first.shape)) {
        return Err(wrong(other, format!("{} {:?}", first.ty, first.shape)));
    }
    match first.ty {
        StoredType::F32 => Ok(DType::F32),
        StoredType::F64 => Ok(DType::F64),
        StoredType::I64 => Ok(DType::I64),
        _ => Err(wrong(first, "f32, f64 or i64".into())),
    }
}

/// What some tensors of one type and shape are together, each step rounded to it.
fn joined(same: &[StoredTensor<'_>], kind: Kind) -> Result<Vec<u8>> {
    let mut bytes = same[0].bytes()?.into_owned();
    for tensor in &same[1..] {
        let its = tensor.bytes()?;
        match tensor.ty {
            StoredType::F32 => add(&mut bytes, &its, |own, its| {
                kind.joined(f32::from_le_bytes(own), f32::from_le_bytes(its)).to_le_bytes()
            }),
            StoredType::F64 => add(&mut bytes, &its, |own, its| {
                (f64::from_le_bytes(own) + f64::from_le_bytes(its)).to_le_bytes()
            }),
            _ => add(&mut bytes, &its, |own, its| {
                i64::from_le_bytes(own).saturating_add(i64::from_le_bytes(its)).to_le_bytes()
            }),
        }
    }
    Ok(bytes)
}

fn add<const N: usize>(bytes: &mut [u8], its: &[u8], sum: impl Fn([u8; N], [u8; N]) -> [u8; N]) {
    let own = bytes.as_chunks_mut::<N>().0.iter_mut();
    own.zip(its.as_chunks::<N>().0).for_each(|(own, its)| *own = sum(*own, *its));
}
