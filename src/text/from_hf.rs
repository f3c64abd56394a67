//! A tokenizer from the files of a model folder.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Value as Json, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::{Merges, Vocab};

use super::document::{self, Document, begins_with, ends_with, first_added, last_added};
use super::{Specials, StoredTokenizer, Tokenizer};
use super::{
    add_tokens, assemble, bad_key, load_engine, makes_token, malformed, one_line, unsupported,
};
use crate::contain::contain;
use crate::error::Result;
use crate::formats;

/// The bytes of the files of a model folder that say how to tokenize; only the first must be there.
#[derive(Clone, Copy, Debug, Default)]
pub struct HfFiles<'a> {
    /// `tokenizer.json`
    pub tokenizer_json: &'a [u8],
    /// `tokenizer_config.json`
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`, which older folders have
    pub special_tokens_map: Option<&'a [u8]>,
    /// `added_tokens.json`, which older folders have
    pub added_tokens: Option<&'a [u8]>,
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
        let parts =
            json!({"normalizer": json["normalizer"], "pre_tokenizer": json["pre_tokenizer"]});
        let mut engine = load_engine(path, json, bpe)?;
        let declared = Declared {
            path,
            tokenizer_config: parse(path, "tokenizer_config.json", files.tokenizer_config)?,
            tokens_map: parse(path, "special_tokens_map.json", files.special_tokens_map)?,
            added_tokens: parse(path, "added_tokens.json", files.added_tokens)?,
            config: parse(path, "config.json", files.config)?,
        };
        declared.add_to(&mut engine)?;
        // It says nothing of how texts become tokens.
        let generation = parse(path, "generation_config.json", files.generation_config);
        let generation = generation.unwrap_or_else(|error| {
            tracing::warn!("{error}; it is left out");
            Json::Null
        });
        let reader = Reader { declared, engine: &engine, post_processor, generation };
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
            ("added_tokens.json", files.added_tokens),
            ("generation_config.json", files.generation_config),
            ("chat_template.jinja", files.chat_template_jinja),
        ];
        let kept = kept.into_iter().filter_map(|(name, bytes)| Some((name, bytes?.to_vec())));
        let stored = StoredTokenizer::of_folder(path, kept.collect());
        Ok(assemble(path, engine, specials, stored, &parts))
    }
}

fn parse(path: &Path, name: &str, bytes: Option<&[u8]>) -> Result<Json> {
    let Some(bytes) = bytes else {
        return Ok(Json::Null);
    };
    formats::json::lenient(bytes).map_err(|e| malformed(path, name, "a JSON document", e))
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

/// What the files beside `tokenizer.json` say of tokens, as transformers reads them.
struct Declared<'a> {
    path: &'a Path,
    tokenizer_config: Json,
    tokens_map: Json,
    added_tokens: Json,
    config: Json,
}

/// The keys under which a special token may stand.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl Declared<'_> {
    /// The tokens that only these files declare, in the order in which they get their ids: those with an id by it, then those
    /// with a role.
    fn tokens(&self) -> Vec<AddedToken> {
        let mut numbered = Vec::new();
        let by_id = self.tokenizer_config["added_tokens_decoder"].as_object();
        for (id, token) in by_id.into_iter().flatten() {
            numbered.extend(id.parse::<u64>().ok().zip(token_of(token)));
        }
        for (token, id) in self.added_tokens.as_object().into_iter().flatten() {
            numbered.extend(id.as_u64().map(|id| (id, AddedToken::from(token.as_str(), false))));
        }
        numbered.sort_by_key(|(id, _)| *id);
        let mut tokens: Vec<AddedToken> = numbered.into_iter().map(|(_, token)| token).collect();
        for file in [&self.tokenizer_config, &self.tokens_map] {
            let further =
                ["additional_special_tokens", "extra_special_tokens"].map(|key| &file[key]);
            let lists = further.into_iter().filter_map(Json::as_array).flatten();
            let named =
                further.into_iter().filter_map(Json::as_object).flat_map(|map| map.values());
            let roles = ROLES.iter().map(|role| &file[*role]);
            tokens.extend(roles.chain(lists).chain(named).filter_map(token_of));
        }
        tokens
    }

    /// Adds them. A token beyond the rows of the model's embedding names nothing and is left out, with a warning.
    fn add_to(&self, engine: &mut tokenizers::Tokenizer) -> Result<()> {
        let rows =
            [&self.config, &self.config["text_config"]].map(|config| config["vocab_size"].as_u64());
        let rows = rows.into_iter().flatten().next();
        let known = engine.get_added_tokens_decoder();
        let mut known: HashSet<String> = known.into_values().map(|token| token.content).collect();
        let beyond = |engine: &tokenizers::Tokenizer| {
            let last = engine.get_added_tokens_decoder().into_keys().max();
            (engine.get_vocab_size(false) as u64).max(last.map_or(0, |id| u64::from(id) + 1))
        };
        let mut next = beyond(engine);
        let rows = rows.unwrap_or(next);
        let (mut added, mut left_out) = (Vec::new(), Vec::new());
        for token in self.tokens() {
            if token.content.is_empty() || !known.insert(token.content.clone()) {
                continue;
            }
            if engine.token_to_id(&token.content).is_none() {
                if next >= rows {
                    left_out.push(token.content);
                    continue;
                }
                next += 1;
            }
            added.push(token);
        }
        if let Some(first) = left_out.first() {
            tracing::warn!(
                "{}: {} tokens ({}) are declared beside tokenizer.json, but the model has {rows} tokens; they are left out",
                self.path.display(),
                left_out.len(),
                one_line(first),
            );
        }
        contain(|| add_tokens(engine, added).map_err(|error| error.to_string()))
            .unwrap_or_else(Err)
            .map_err(|found| malformed(self.path, "tokenizer_config.json", "tokens to add", found))
    }
}

/// A token given as text, which makes it special, or as an object with `content`.
fn token_of(value: &Json) -> Option<AddedToken> {
    let flag = |key: &str, default: bool| value[key].as_bool().unwrap_or(default);
    match value {
        Json::String(text) => Some(AddedToken::from(text.as_str(), true)),
        _ => {
            let special = flag("special", true);
            let token = AddedToken::from(value["content"].as_str()?, special);
            let token = token.lstrip(flag("lstrip", false)).rstrip(flag("rstrip", false));
            let token = token.single_word(flag("single_word", false));
            Some(token.normalized(flag("normalized", !special)))
        }
    }
}

struct Reader<'a> {
    declared: Declared<'a>,
    engine: &'a tokenizers::Tokenizer,
    post_processor: Json,
    generation: Json,
}

impl Reader<'_> {
    fn specials(&self) -> Result<Specials> {
        let main_eos = self.token("eos_token")?;
        let from_generation =
            self.ids(&self.generation, "generation_config.json", "eos_token_id")?;
        let mut eos = match from_generation.is_empty() {
            false => from_generation,
            true => self.ids(&self.declared.config, "config.json", "eos_token_id")?,
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
        let add_bos = match &self.declared.tokenizer_config["add_bos_token"] {
            Json::Null => bos.is_some_and(|bos| begins_with(&self.post_processor, bos)),
            Json::Bool(add) => *add,
            other => {
                let key = "tokenizer_config.json: add_bos_token";
                return Err(bad_key(self.declared.path, key, "true or false", other));
            }
        };
        let unk = self.token("unk_token")?;
        let chat_template = self.chat_template()?;
        let add_eos = main_eos.is_some_and(|eos| ends_with(&self.post_processor, eos));
        let decoder_start = match self.declared.config["is_encoder_decoder"] == true {
            false => None,
            true => match self.configured("decoder_start_token_id")? {
                Some(start) => Some(start),
                None => pad,
            },
        };
        Ok(Specials {
            bos,
            eos,
            main_eos,
            unk,
            pad,
            add_bos,
            add_eos,
            decoder_start,
            around: [first_added(&self.post_processor), last_added(&self.post_processor)],
            chat_template,
        })
    }

    /// A special token by its role, given as text or as an object with `content`.
    fn token(&self, role: &str) -> Result<Option<u32>> {
        for (file, values) in [
            ("tokenizer_config.json", &self.declared.tokenizer_config),
            ("special_tokens_map.json", &self.declared.tokens_map),
        ] {
            let value = &values[role];
            if value.is_null() {
                continue;
            }
            let content = value.as_str().or(value["content"].as_str());
            // Where there is no such token, a warning was given before.
            return match content {
                Some(text) => Ok(self.engine.token_to_id(text)),
                None => {
                    Err(bad_key(self.declared.path, &format!("{file}: {role}"), "a token", value))
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
        Ok(self.ids(&self.declared.config, "config.json", key)?.first().copied())
    }

    /// One id or a list of them.
    fn ids(&self, file: &Json, name: &str, key: &str) -> Result<Vec<u32>> {
        let values = match &file[key] {
            Json::Null => return Ok(Vec::new()),
            Json::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        let mut ids = Vec::new();
        for value in values {
            let Some(number) = value.as_f64() else {
                let key = format!("{name}: {key}");
                return Err(bad_key(self.declared.path, &key, "ids of tokens", value));
            };
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            match id.filter(|&id| self.engine.id_to_token(id).is_some()) {
                Some(id) => ids.push(id),
                // transformers writes -1 where a model has no such token.
                None if number == -1.0 => {}
                None => {
                    let path = self.declared.path.display();
                    tracing::warn!(
                        "{path}: {name}: `{key}` is {value}, which no token has; it is left out"
                    );
                }
            }
        }
        Ok(ids)
    }

    /// One template, or of several named ones the default.
    fn chat_template(&self) -> Result<Option<String>> {
        let value = &self.declared.tokenizer_config["chat_template"];
        let named = value.as_array().into_iter().flatten();
        let default = named.into_iter().find(|entry| entry["name"] == "default");
        match default.map_or(value, |entry| &entry["template"]) {
            Json::Null => Ok(None),
            Json::String(text) => Ok(Some(text.clone())),
            // Several named templates without a default: nothing says which one a chat means.
            Json::Array(_) => Ok(None),
            _ => {
                let key = "tokenizer_config.json: chat_template";
                Err(bad_key(
                    self.declared.path,
                    key,
                    "a template or a list of named ones",
                    "another type",
                ))
            }
        }
    }
}
