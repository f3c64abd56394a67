//! The files that a run reads and writes, with the hashes that its manifest names.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::data::read_text;
use crate::error::{Error, Result};
use crate::formats::{Source, hex, sha256};
use crate::interrupt;
use crate::model::Checkpoint;
use crate::recipe::Recipe;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A file of the artifact.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OutputFile {
    /// Relative to the artifact.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Of its contents.
    pub sha256: String,
}

/// Something that was read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputFile {
    /// Its path, or the name of a part of the program.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Of its contents.
    pub sha256: String,
}

/// An input as it was when it was hashed, so that a resumed run need not read a large file that is the same still.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct HashedInput {
    #[serde(flatten)]
    pub(super) file: InputFile,
    /// When it was last modified, in nanoseconds since 1970; of parts of the program nothing.
    modified: Option<String>,
}

/// The hash of a file; `known`: what an earlier run hashed.
pub(super) fn hashed(path: String, source: &Source, known: &[HashedInput]) -> Result<HashedInput> {
    let (modified, length) = (modified(&path), source.length());
    let same = |old: &&HashedInput| {
        (&old.file.path, old.file.bytes, &old.modified) == (&path, length, &modified)
    };
    if let (Some(_), Some(old)) = (&modified, known.iter().find(same)) {
        return Ok(old.clone());
    }
    let file = InputFile { path, bytes: length, sha256: source.sha256()? };
    Ok(HashedInput { file, modified })
}

/// The parent's weight files, the calibrations' texts and the evaluation's, and what says which statistics are taken. `known`: what
/// an earlier run hashed.
pub(super) fn list_inputs(
    parent: &Checkpoint,
    recipe: &Recipe,
    statistics: &[PathBuf],
    known: &[HashedInput],
) -> Result<Vec<HashedInput>> {
    let input = |path: String, source: &Source| hashed(path, source, known);
    let mut inputs = Vec::new();
    for source in parent.sources() {
        inputs.push(input(source.path().display().to_string(), source)?);
    }
    for text in texts(recipe) {
        let source = match text.strip_prefix("embedded:") {
            Some(_) => {
                let contents = read_text(text)?;
                let (bytes, sha256) = (contents.len() as u64, sha256(contents));
                let file = InputFile { path: text.into(), bytes, sha256 };
                inputs.push(HashedInput { file, modified: None });
                continue;
            }
            None => Source::open(Path::new(text))?,
        };
        inputs.push(input(text.into(), &source)?);
    }
    for path in statistics {
        inputs.push(input(path.display().to_string(), &Source::open(path)?)?);
    }
    Ok(inputs)
}

/// The texts that a recipe's stages calibrate on, and that of its evaluation, each once.
fn texts(recipe: &Recipe) -> Vec<&str> {
    let stages = recipe.stage.iter();
    let calibrations = stages.filter_map(|stage| Some(stage.needs().calibration?.text.as_str()));
    let evaluation = recipe.evaluate.iter().map(|evaluate| evaluate.text.as_str());
    let mut texts = Vec::new();
    for text in calibrations.chain(evaluation) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    texts
}

fn modified(path: &str) -> Option<String> {
    let time = std::fs::metadata(path).and_then(|about| about.modified()).ok()?;
    let since = time.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(since.as_nanos().to_string())
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
            let relative =
                path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            outputs.push(OutputFile { path: relative, bytes, sha256: file_sha256(&path)? });
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
