//! Models that are part of the program, by name.

/// A model folder's files.
#[derive(Debug)]
pub struct EmbeddedModel {
    /// What follows `embedded:`.
    pub name: &'static str,
    /// `config.json`
    pub config: &'static [u8],
    /// `generation_config.json`
    pub generation_config: &'static [u8],
    /// `tokenizer.json`
    pub tokenizer: &'static [u8],
    /// `tokenizer_config.json`
    pub tokenizer_config: &'static [u8],
    /// `model.safetensors`
    pub weights: &'static [u8],
}

impl EmbeddedModel {
    /// One of its small files.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        match name {
            "config.json" => Some(self.config),
            "generation_config.json" => Some(self.generation_config),
            "tokenizer.json" => Some(self.tokenizer),
            "tokenizer_config.json" => Some(self.tokenizer_config),
            _ => None,
        }
    }
}

/// Its files under `assets/`, as bytes of the program.
macro_rules! embedded {
    ($name:literal) => {
        EmbeddedModel {
            name: $name,
            config: asset!($name, "/config.json"),
            generation_config: asset!($name, "/generation_config.json"),
            tokenizer: asset!($name, "/tokenizer.json"),
            tokenizer_config: asset!($name, "/tokenizer_config.json"),
            weights: asset!($name, "/model.safetensors"),
        }
    };
}

macro_rules! asset {
    ($name:literal, $file:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/", $name, $file))
    };
}

// The build script lists them: a published package has fewer than the repository.
include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
