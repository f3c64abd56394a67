//! The files of a model folder.

use serde_json::{Map, Value as Json, json};

use super::{Tokenizer, malformed};
use crate::error::Result;

impl Tokenizer {
    /// The tokenizer files of a model folder as name and bytes. What came from a folder is returned unchanged.
    pub fn to_hf_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        match self.stored.gguf_pairs() {
            None => self.stored.to_hf_files(),
            Some(_) => self.hf_files(),
        }
    }

    /// Files that say what this tokenizer does.
    pub(super) fn hf_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let engine = self.inner.to_string(false);
        let engine = engine.map_err(|e| malformed(&self.path, "tokenizer", "one to write", e))?;
        Ok(vec![
            ("tokenizer.json", engine.into_bytes()),
            ("tokenizer_config.json", pretty(&self.tokenizer_config())),
            ("generation_config.json", pretty(&self.generation_config())),
        ])
    }

    /// `PreTrainedTokenizerFast` makes transformers 4 and 5 take the tokenizer.json as it is; the model families' own
    /// classes would rebuild its parts.
    fn tokenizer_config(&self) -> Json {
        let mut config = Map::new();
        config.insert("add_bos_token".into(), self.add_bos.into());
        let roles = [
            ("bos_token", self.bos),
            ("eos_token", self.main_eos),
            ("unk_token", self.unk),
            ("pad_token", self.pad),
        ];
        for (role, id) in roles {
            if let Some(token) = id.and_then(|id| self.token(id)) {
                config.insert(role.into(), token.into());
            }
        }
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".into(), template.as_str().into());
        }
        // The clean-up joins punctuation to words, which loses spaces that were in the text.
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        Json::Object(config)
    }

    fn generation_config(&self) -> Json {
        let mut config = Map::new();
        config.insert("_from_model_config".into(), true.into());
        if let Some(bos) = self.bos {
            config.insert("bos_token_id".into(), bos.into());
        }
        match self.eos.as_slice() {
            [] => {}
            [one] => drop(config.insert("eos_token_id".into(), (*one).into())),
            several => drop(config.insert("eos_token_id".into(), json!(several))),
        }
        if let Some(pad) = self.pad {
            config.insert("pad_token_id".into(), pad.into());
        }
        Json::Object(config)
    }
}

fn pretty(value: &Json) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
