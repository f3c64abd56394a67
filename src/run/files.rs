//! The files that a run reads and writes, with the hashes that its manifest names.

use std::io::Read;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::data::read_text;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::Checkpoint;
use crate::recipe::{Recipe, Stage};

/// A file of the artifact.
#[derive(Clone, Debug, Serialize)]
pub struct OutputFile {
    /// Relative to the artifact.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Of its contents.
    pub sha256: String,
}

/// Something that was read.
#[derive(Clone, Debug, Serialize)]
pub struct InputFile {
    /// Its path, or the name of a part of the program.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Of its contents.
    pub sha256: String,
}

/// The parent's weight files, the calibrations' texts and the evaluation's.
pub(super) fn list_inputs(parent: &Checkpoint, recipe: &Recipe) -> Result<Vec<InputFile>> {
    let input = |path: String, bytes: &[u8]| -> Result<InputFile> {
        let mut hash = Sha256::new();
        for chunk in bytes.chunks(64 << 20) {
            interrupt::check()?;
            hash.update(chunk);
        }
        Ok(InputFile {
            path,
            bytes: bytes.len() as u64,
            sha256: hex(&hash.finalize()),
        })
    };
    let mut inputs = Vec::new();
    for source in parent.sources() {
        inputs.push(input(source.path().display().to_string(), source.bytes())?);
    }
    let mut texts: Vec<&str> = Vec::new();
    for stage in &recipe.stage {
        if let Stage::Prune(prune) = stage {
            texts.push(&prune.calibration.text);
        }
    }
    texts.extend(
        recipe
            .evaluate
            .as_ref()
            .map(|evaluate| evaluate.text.as_str()),
    );
    texts.dedup();
    for text in texts {
        inputs.push(input(text.into(), read_text(text)?.as_bytes())?);
    }
    Ok(inputs)
}

/// Every file of a folder, in order of path.
pub(super) fn list_outputs(folder: &Path) -> Result<Vec<OutputFile>> {
    let mut outputs = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).map_err(Error::read(&next))? {
            let path = entry.map_err(Error::read(&next))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::metadata(&path).map_err(Error::read(&path))?.len();
            let relative = path
                .strip_prefix(folder)
                .unwrap_or(&path)
                .to_string_lossy()
                .replace('\\', "/");
            outputs.push(OutputFile {
                path: relative,
                bytes,
                sha256: file_sha256(&path)?,
            });
        }
    }
    outputs.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(outputs)
}

fn file_sha256(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(Error::read(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        interrupt::check()?;
        let count = file.read(&mut buffer).map_err(Error::read(path))?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
