//! A tokenizer as its model has it. Work on weights passes it on without reading it, so that nothing in it can stop that work;
//! it is read when there is text.

use std::path::{Path, PathBuf};

use super::{HfFiles, Tokenizer, malformed, spiece};
use crate::error::{Error, Result};
use crate::formats::gguf::Value;

/// The files of a folder that say something of text, `config.json` last, which others write.
pub const FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    super::spiece::FILE,
    "config.json",
];

/// Most tokens for gaps.
const MOST_GAPS: u64 = 10_000;

/// A tokenizer that was not read yet, and the way back to what it was read from.
#[derive(Clone)]
pub struct StoredTokenizer {
    path: PathBuf,
    form: Form,
    /// The token that the decoder begins with, where a GGUF says so outside the vocabulary.
    decoder_start: Option<u32>,
}

#[derive(Clone)]
enum Form {
    Hf(Vec<(&'static str, Vec<u8>)>),
    /// The `tokenizer.*` pairs.
    Gguf(Vec<(String, Value)>),
}

impl std::fmt::Debug for StoredTokenizer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "StoredTokenizer({})", self.path.display())
    }
}

impl StoredTokenizer {
    /// One from the contents of those of a folder's [`FILES`] that are there; `path` is for messages.
    pub fn of_folder(path: &Path, files: Vec<(&'static str, Vec<u8>)>) -> Self {
        Self { path: path.into(), form: Form::Hf(files), decoder_start: None }
    }

    /// One from a GGUF's metadata; of keys outside `tokenizer.` only the decoder's first token is looked at.
    pub fn of_gguf(path: &Path, metadata: &[(String, Value)]) -> Self {
        let pairs = metadata.iter().filter(|(key, _)| key.starts_with("tokenizer."));
        let start = metadata.iter().find(|(key, _)| key.ends_with(".decoder_start_token_id"));
        let start = start.and_then(|(_, value)| value.as_u64());
        Self {
            path: path.into(),
            form: Form::Gguf(pairs.cloned().collect()),
            decoder_start: start.and_then(|start| u32::try_from(start).ok()),
        }
    }

    /// Reads it.
    pub fn read(&self) -> Result<Tokenizer> {
        let files = match &self.form {
            Form::Gguf(pairs) => {
                let decoder_start = self.decoder_start;
                return Ok(Tokenizer { decoder_start, ..Tokenizer::from_gguf(&self.path, pairs)? });
            }
            Form::Hf(files) => files,
        };
        let bytes = |name: &str| {
            files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| bytes.as_slice())
        };
        let made = match (bytes("tokenizer.json"), bytes(spiece::FILE)) {
            (None, Some(pieces)) => Some(self.of_pieces(pieces, &bytes)?),
            _ => None,
        };
        let Some(tokenizer_json) = bytes("tokenizer.json").or(made.as_deref()) else {
            let why = "text needs the model's tokenizer";
            let missing = std::io::Error::new(std::io::ErrorKind::NotFound, why);
            return Err(Error::read(self.path.join("tokenizer.json"))(missing));
        };
        Tokenizer::from_hf(
            &self.path,
            HfFiles {
                tokenizer_json,
                tokenizer_config: bytes("tokenizer_config.json"),
                special_tokens_map: bytes("special_tokens_map.json"),
                added_tokens: bytes("added_tokens.json"),
                generation_config: bytes("generation_config.json"),
                config: bytes("config.json"),
                chat_template_jinja: bytes("chat_template.jinja"),
            },
        )
    }

    /// The `tokenizer.json` of a folder that has a `spiece.model` instead. T5 has 100 tokens for gaps behind the pieces where
    /// `tokenizer_config.json` does not say how many, and ends what its encoder reads.
    fn of_pieces<'f>(
        &self,
        pieces: &[u8],
        file: &dyn Fn(&str) -> Option<&'f [u8]>,
    ) -> Result<Vec<u8>> {
        let json = |name: &str| {
            let bytes = file(name)?;
            serde_json::from_slice::<serde_json::Value>(bytes).ok()
        };
        let pairs = json("config.json").is_some_and(|config| config["is_encoder_decoder"] == true);
        let stated = json("tokenizer_config.json").and_then(|config| config["extra_ids"].as_u64());
        let gaps = stated.unwrap_or(if pairs { 100 } else { 0 }).min(MOST_GAPS) as usize;
        let document = spiece::document(&self.path, pieces, gaps, pairs)?;
        Ok(document.to_string().into_bytes())
    }

    /// The files of a model folder as name and bytes. What came from a folder is given as it was, read or not.
    pub fn to_hf_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        match &self.form {
            Form::Hf(files) => {
                Ok(files.iter().filter(|(name, _)| *name != "config.json").cloned().collect())
            }
            Form::Gguf(_) => self.read()?.hf_files(),
        }
    }

    /// The `tokenizer.*` metadata of a GGUF whose embedding has `vocab_size` rows. What came from a GGUF is given as it was,
    /// read or not.
    pub fn to_gguf_metadata(&self, vocab_size: usize) -> Result<Vec<(String, Value)>> {
        match &self.form {
            Form::Gguf(pairs) => Ok(pairs.clone()),
            Form::Hf(_) => self.read()?.to_gguf_metadata(vocab_size),
        }
    }

    pub(super) fn gguf_pairs(&self) -> Option<&[(String, Value)]> {
        match &self.form {
            Form::Gguf(pairs) => Some(pairs),
            Form::Hf(_) => None,
        }
    }

    /// The `tokenizer.json` as it was, of a tokenizer that was read.
    pub(super) fn document(&self) -> Result<serde_json::Value> {
        let files = match &self.form {
            Form::Hf(files) => files.as_slice(),
            Form::Gguf(_) => &[],
        };
        let bytes = |name: &str| {
            files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| bytes.as_slice())
        };
        if let (None, Some(pieces)) = (bytes("tokenizer.json"), bytes(spiece::FILE)) {
            let made = self.of_pieces(pieces, &bytes)?;
            return crate::formats::json::lenient(&made)
                .map_err(|e| malformed(&self.path, spiece::FILE, "a tokenizer", e));
        }
        let document = files.iter().find(|(name, _)| *name == "tokenizer.json");
        crate::formats::json::lenient(document.map_or(&[], |(_, bytes)| bytes))
            .map_err(|e| malformed(&self.path, "tokenizer.json", "a JSON document", e))
    }
}
