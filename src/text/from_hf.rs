//! A tokenizer from the files of a model folder.

use std::path::Path;

use serde_json::Value as Json;
use tokenizers::models::bpe::{Merges, Vocab};

use super::document::{self, Document, begins_with};
use super::{Origin, Specials, Tokenizer};
use super::{assemble, bad_key, load_engine, makes_token, malformed, unsupported};
use crate::error::Result;
use crate::formats::json;

/// The bytes of the files of a model folder that say how to tokenize; only the first must be there.
#[derive(Clone, Copy, Debug, Default)]
pub struct HfFiles<'a> {
    /// `tokenizer.json`
    pub tokenizer_json: &'a [u8],
    /// `tokenizer_config.json`
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`, which older folders have
    pub special_tokens_map: Option<&'a [u8]>,
    /// `generation_config.json`
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`, which goes before the template in `tokenizer_config.json`
    pub chat_template_jinja: Option<&'a [u8]>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder; `path` is for messages.
    ///
    /// EOS are those of `generation_config.json` (without it, of `config.json`), then the tokenizer's own, as
    /// generation in transformers stops at the former and chat templates end turns with the latter.
    pub fn from_hf(path: &Path, files: HfFiles<'_>) -> Result<Self> {
        let Document { mut json, post_processor } = document::read(path, files.tokenizer_json)?;
        let bpe = take_bpe(path, &mut json)?;
        if json["model"]["dropout"].as_f64().is_some_and(|p| p != 0.0) {
            let why = "the same text would get other ids each time";
            return Err(unsupported(path, "tokenizer.json with BPE dropout", why));
        }
        let engine = load_engine(path, json, bpe)?;
        let reader = Reader {
            path,
            engine: &engine,
            post_processor,
            tokenizer_config: parse(path, "tokenizer_config.json", files.tokenizer_config)?,
            tokens_map: parse(path, "special_tokens_map.json", files.special_tokens_map)?,
            generation: parse(path, "generation_config.json", files.generation_config)?,
            config: parse(path, "config.json", files.config)?,
        };
        let mut specials = reader.specials()?;
        if let Some(bytes) = files.chat_template_jinja {
            let text = std::str::from_utf8(bytes)
                .map_err(|e| malformed(path, "chat_template.jinja", "UTF-8 text", e))?;
            specials.chat_template = Some(text.to_string());
        }
        let kept = [
            ("tokenizer.json", Some(files.tokenizer_json)),
            ("tokenizer_config.json", files.tokenizer_config),
            ("special_tokens_map.json", files.special_tokens_map),
            ("generation_config.json", files.generation_config),
            ("chat_template.jinja", files.chat_template_jinja),
        ];
        let kept = kept.into_iter().filter_map(|(name, bytes)| Some((name, bytes?.to_vec())));
        let origin = Origin::Hf(kept.collect());
        Ok(assemble(path, engine, specials, origin))
    }
}

fn parse(path: &Path, name: &str, bytes: Option<&[u8]>) -> Result<Json> {
    let Some(bytes) = bytes else {
        return Ok(Json::Null);
    };
    json::lenient(bytes).map_err(|e| malformed(path, name, "a JSON document", e))
}

/// Moves the vocabulary and the merges out of a byte-pair document. None of a document of another kind.
fn take_bpe(path: &Path, document: &mut Json) -> Result<Option<(Vocab, Merges)>> {
    let model = &mut document["model"];
    if model["type"] != "BPE" {
        return Ok(None);
    }
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("").to_string();
    let (Json::Object(entries), Json::Array(list)) =
        (model["vocab"].take(), model["merges"].take())
    else {
        return Ok(None);
    };
    let mut vocab = Vocab::with_capacity(entries.len());
    for (token, id) in entries {
        vocab.insert(token, id.as_u64().unwrap_or_default() as u32);
    }
    let (mut merges, mut whole) = (Merges::with_capacity(list.len()), String::new());
    for (rank, merge) in list.into_iter().enumerate() {
        match split_merge(&merge) {
            Some((left, right)) if makes_token(&vocab, left, right, &prefix, &mut whole) => {
                merges.push((left.to_string(), right.to_string()));
            }
            _ => {
                let what = format!("tokenizer.json: merge {rank}");
                return Err(malformed(path, &what, "two tokens that make a token", merge));
            }
        }
    }
    Ok(Some((vocab, merges)))
}

/// The parts of a merge, in the old spelling (one string) or the new (a pair).
pub(super) fn split_merge(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(text) => text.split_once(' '),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(left), Json::String(right)] => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

struct Reader<'a> {
    path: &'a Path,
    engine: &'a tokenizers::Tokenizer,
    post_processor: Json,
    tokenizer_config: Json,
    tokens_map: Json,
    generation: Json,
    config: Json,
}

impl Reader<'_> {
    fn specials(&self) -> Result<Specials> {
        let main_eos = self.token("eos_token")?;
        let from_generation =
            self.ids(&self.generation, "generation_config.json", "eos_token_id")?;
        let mut eos = match from_generation.is_empty() {
            false => from_generation,
            true => self.ids(&self.config, "config.json", "eos_token_id")?,
        };
        eos.extend(main_eos);
        let bos = match self.token("bos_token")? {
            Some(id) => Some(id),
            None => self.configured("bos_token_id")?,
        };
        let pad = match self.token("pad_token")? {
            Some(id) => Some(id),
            None => self.configured("pad_token_id")?,
        };
        let add_bos = match &self.tokenizer_config["add_bos_token"] {
            Json::Null => bos.is_some_and(|bos| begins_with(&self.post_processor, bos)),
            Json::Bool(add) => *add,
            other => {
                let key = "tokenizer_config.json: add_bos_token";
                return Err(bad_key(self.path, key, "true or false", other));
            }
        };
        let unk = self.token("unk_token")?;
        let chat_template = self.chat_template()?;
        Ok(Specials { bos, eos, main_eos, unk, pad, add_bos, chat_template })
    }

    /// A special token by its role, given as text or as an object with `content`.
    fn token(&self, role: &str) -> Result<Option<u32>> {
        for (file, values) in [
            ("tokenizer_config.json", &self.tokenizer_config),
            ("special_tokens_map.json", &self.tokens_map),
        ] {
            let value = &values[role];
            if value.is_null() {
                continue;
            }
            let content = value.as_str().or(value["content"].as_str());
            let id = content.and_then(|text| self.engine.token_to_id(text));
            return match id {
                Some(id) => Ok(Some(id)),
                None => {
                    let key = format!("{file}: {role}");
                    Err(bad_key(self.path, &key, "a token of tokenizer.json", value))
                }
            };
        }
        Ok(None)
    }

    /// The first id of a key in generation_config.json or else in config.json.
    fn configured(&self, key: &str) -> Result<Option<u32>> {
        let first = self.ids(&self.generation, "generation_config.json", key)?;
        if let Some(&id) = first.first() {
            return Ok(Some(id));
        }
        Ok(self.ids(&self.config, "config.json", key)?.first().copied())
    }

    /// One id or a list of them.
    fn ids(&self, file: &Json, name: &str, key: &str) -> Result<Vec<u32>> {
        let values = match &file[key] {
            Json::Null => return Ok(Vec::new()),
            Json::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let id = |value: &Json| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let known = id.filter(|&id| self.engine.id_to_token(id).is_some());
            known.ok_or_else(|| {
                let key = format!("{name}: {key}");
                bad_key(self.path, &key, "ids of tokens in tokenizer.json", value)
            })
        };
        // transformers writes -1 where a model has no such token.
        let named = values.iter().filter(|value| value.as_i64() != Some(-1));
        named.map(id).collect()
    }

    /// One template, or of several named ones the default.
    fn chat_template(&self) -> Result<Option<String>> {
        let value = &self.tokenizer_config["chat_template"];
        let named = value.as_array().into_iter().flatten();
        let default = named.into_iter().find(|entry| entry["name"] == "default");
        match default.map_or(value, |entry| &entry["template"]) {
            Json::Null => Ok(None),
            Json::String(text) => Ok(Some(text.clone())),
            // Several named templates without a default: nothing says which one a chat means.
            Json::Array(_) => Ok(None),
            _ => {
                let key = "tokenizer_config.json: chat_template";
                Err(bad_key(self.path, key, "a template or a list of named ones", "another type"))
            }
        }
    }
}
