//! The formats that a model is written in, each by one row of matches: its name, where it goes, what it takes, writing it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, Weights};
use super::save::{
    Wide, export_gguf, export_hf, export_packed, gguf_bytes, hf_files, packed_files,
};
use crate::error::{Error, Result};
use crate::text::StoredTokenizer;

/// A format a model is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// A file for llama.cpp and what is built on it
    Gguf,
    /// A Hugging Face folder for transformers, weights dequantized to f16
    Hf,
    /// A folder with codes and scales as they are, which Lopper opens
    Packed,
}

impl ExportFormat {
    /// The name in recipes, flags and JSON.
    pub fn name(self) -> &'static str {
        match self {
            ExportFormat::Gguf => "gguf",
            ExportFormat::Hf => "hf",
            ExportFormat::Packed => "packed",
        }
    }

    /// Where it stands in an artifact.
    pub fn path(self) -> &'static str {
        match self {
            ExportFormat::Gguf => "model.gguf",
            ExportFormat::Hf => "hf",
            ExportFormat::Packed => "packed",
        }
    }

    /// The format of a model's own files.
    pub fn of(model: &Checkpoint) -> Self {
        match model.container() {
            "gguf" => ExportFormat::Gguf,
            "lopper" => ExportFormat::Packed,
            _ => ExportFormat::Hf,
        }
    }

    /// Whether a file of an artifact holds weights in this format.
    pub fn holds(self, file: &str) -> bool {
        match self {
            ExportFormat::Gguf => file == self.path(),
            _ => file
                .strip_prefix(self.path())
                .is_some_and(|name| name.starts_with('/') && name.ends_with(".safetensors")),
        }
    }

    /// Bytes of the files with weights that [`ExportFormat::write`] would write. Needs no values: `weights` may be an outline.
    pub fn bytes(
        self,
        parent: &Checkpoint,
        weights: &dyn Weights,
        tokenizer: Option<&StoredTokenizer>,
        wide: &Wide,
    ) -> Result<u64> {
        let files = match self {
            ExportFormat::Gguf => return gguf_bytes(parent, weights, tokenizer, wide),
            ExportFormat::Hf => hf_files(weights, wide)?,
            ExportFormat::Packed => packed_files(weights)?,
        };
        Ok(files.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Writes `weights`, which come from `parent`, to a file or a folder that is not there yet. Returns what it holds in a wider
    /// type than is usual.
    pub fn write(
        self,
        path: &Path,
        parent: &Checkpoint,
        weights: &dyn Weights,
        tokenizer: Option<&StoredTokenizer>,
    ) -> Result<Wide> {
        let folder = || std::fs::create_dir(path).map_err(Error::write(path));
        match self {
            ExportFormat::Gguf => export_gguf(path, parent, weights, tokenizer),
            ExportFormat::Hf => {
                folder()?;
                export_hf(path, parent.config_json()?, weights, tokenizer)
            }
            ExportFormat::Packed => {
                folder()?;
                export_packed(path, parent.config_json()?, weights, tokenizer)?;
                Ok(Wide::default())
            }
        }
    }
}
