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

macro_rules! embedded {
    ($name:literal) => {
        EmbeddedModel {
            name: $name,
            config: include_bytes!(concat!("../../assets/", $name, "/config.json")),
            generation_config: include_bytes!(concat!(
                "../../assets/",
                $name,
                "/generation_config.json"
            )),
            tokenizer: include_bytes!(concat!("../../assets/", $name, "/tokenizer.json")),
            tokenizer_config: include_bytes!(concat!(
                "../../assets/",
                $name,
                "/tokenizer_config.json"
            )),
            weights: include_bytes!(concat!("../../assets/", $name, "/model.safetensors")),
        }
    };
}

/// Every embedded model.
pub static EMBEDDED: &[EmbeddedModel] = &[
    embedded!("tiny-llama"),
    embedded!("nano-llama"),
    embedded!("tiny-mixtral"),
    embedded!("tiny-t5"),
];
