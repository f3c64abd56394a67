//! A `tokenizer.json`, checked part by part before the engine sees it: the engine trusts what it is given, and a part that is
//! wrong would end the process or take its memory when a text comes.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value as Json, json};

use super::{bad_key, malformed};
use crate::error::{Error, Result};
use crate::formats::json;

/// Ids are at most this, which no vocabulary comes near.
pub(super) const MAX_ID: u32 = (1 << 24) - 1;
/// Steps of one chain, nested ones counted.
const MAX_STEPS: usize = 64;
/// Bytes of a pattern.
const MAX_PATTERN: usize = 1 << 16;
/// Bytes of what is put in front of or behind words.
const MAX_AFFIX: usize = 64;
/// How many bytes one byte of text may become in a chain. Unicode's own compatibility forms need 11 to 33.
const MAX_GROWTH: u64 = 128;
/// A WordPiece model tries every part of a word, so a word costs the cube of this many characters.
const MAX_WORD: u64 = 256;
/// Bytes of all tokens of a Unigram model, each a node of a tree.
const MAX_UNIGRAM_BYTES: usize = 8 << 20;
/// Bytes of all added tokens.
const MAX_ADDED_BYTES: usize = 4 << 20;

const NORMALIZERS: &[&str] = &[
    "BertNormalizer",
    "ByteLevel",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Prepend",
    "Replace",
    "Sequence",
    "Strip",
    "StripAccents",
];
const PRE_TOKENIZERS: &[&str] = &[
    "BertPreTokenizer",
    "ByteLevel",
    "CharDelimiterSplit",
    "Digits",
    "FixedLength",
    "Metaspace",
    "Punctuation",
    "Sequence",
    "Split",
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
];
const DECODERS: &[&str] = &[
    "BPEDecoder",
    "ByteFallback",
    "ByteLevel",
    "CTC",
    "Fuse",
    "Metaspace",
    "Replace",
    "Sequence",
    "Strip",
    "WordPiece",
];
const MODELS: &[&str] = &["BPE", "Unigram", "WordLevel", "WordPiece"];

/// A document that the engine can take, without what this program does itself: truncation, padding and the post-processor.
pub(super) struct Document {
    /// The document.
    pub json: Json,
    /// What it adds to a text.
    pub post_processor: Json,
}

/// Reads and checks a `tokenizer.json`.
pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Document> {
    let json =
        json::strict(bytes).map_err(|e| malformed(path, "tokenizer.json", "a JSON document", e))?;
    let mut document = match json {
        Json::Object(document) => document,
        other => return Err(malformed(path, "tokenizer.json", "an object", kind_of(&other))),
    };
    document.insert("truncation".into(), Json::Null);
    document.insert("padding".into(), Json::Null);
    let post_processor = document.insert("post_processor".into(), Json::Null).unwrap_or_default();
    let mut document = Json::Object(document);
    let part = |role: &'static str| Part { path, role, steps: 0, growth: 1 };
    part("normalizer").chain(&document["normalizer"], NORMALIZERS)?;
    part("pre_tokenizer").chain(&document["pre_tokenizer"], PRE_TOKENIZERS)?;
    part("decoder").chain(&document["decoder"], DECODERS)?;
    model(path, &mut document["model"])?;
    added(path, &document["added_tokens"])?;
    Ok(Document { json: document, post_processor })
}

fn wrong(
    path: &Path,
    key: &str,
    expected: impl Into<String>,
    found: impl std::fmt::Display,
) -> Error {
    bad_key(path, &format!("tokenizer.json: {key}"), expected, found)
}

/// What a value is, for messages: a vocabulary itself would fill the screen.
fn kind_of(value: &Json) -> String {
    match value {
        Json::Array(list) => format!("a list of {}", list.len()),
        Json::Object(map) => format!("an object of {} keys", map.len()),
        Json::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// A chain of steps of one role, as it is walked through.
struct Part<'a> {
    path: &'a Path,
    role: &'static str,
    steps: usize,
    growth: u64,
}

impl Part<'_> {
    fn wrong(
        &self,
        key: &str,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Error {
        wrong(self.path, &format!("{}.{key}", self.role), expected, found)
    }

    fn chain(&mut self, step: &Json, known: &[&str]) -> Result<()> {
        if step.is_null() {
            return Ok(());
        }
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(self.wrong("type", format!("at most {MAX_STEPS} steps"), "more"));
        }
        let Some(kind) = step["type"].as_str().filter(|kind| known.contains(kind)) else {
            return Err(self.wrong("type", known.join(", "), kind_of(&step["type"])));
        };
        if kind == "Sequence" {
            let list = ["normalizers", "pretokenizers", "decoders"]
                .iter()
                .find_map(|key| step[key].as_array());
            let list = list.ok_or_else(|| self.wrong("Sequence", "a list of steps", "none"))?;
            return list.iter().try_for_each(|step| self.chain(step, known));
        }
        let growth = self.step(kind, step)?;
        self.growth = self.growth.saturating_mul(growth);
        if self.growth > MAX_GROWTH {
            let expected = format!("steps that make a text at most {MAX_GROWTH} times as long");
            return Err(self.wrong(kind, expected, "longer ones"));
        }
        Ok(())
    }

    /// How many bytes a step makes of one byte at most.
    fn step(&self, kind: &str, step: &Json) -> Result<u64> {
        let count = |key: &str, from: u64, to: u64| match step[key].as_u64() {
            Some(value) if (from..=to).contains(&value) => Ok(()),
            _ => Err(self.wrong(
                &format!("{kind}.{key}"),
                format!("{from} to {to}"),
                kind_of(&step[key]),
            )),
        };
        match kind {
            "Replace" | "Split" => {
                let pattern = &step["pattern"];
                let text = pattern["String"].as_str().or(pattern["Regex"].as_str()).unwrap_or("");
                if text.is_empty() || text.len() > MAX_PATTERN {
                    let expected = format!("a pattern of 1 to {MAX_PATTERN} bytes");
                    return Err(self.wrong(&format!("{kind}.pattern"), expected, kind_of(pattern)));
                }
                let content = step["content"].as_str().unwrap_or("").len();
                let shortest = pattern["String"].as_str().map_or(1, str::len);
                return Ok(content.div_ceil(shortest).max(1) as u64);
            }
            "Precompiled" => {
                let map = step["precompiled_charsmap"].as_str().unwrap_or("");
                return charsmap(map).map_err(|found| {
                    self.wrong(
                        "Precompiled.precompiled_charsmap",
                        "a double array and the texts it leads to",
                        found,
                    )
                });
            }
            "NFKC" | "NFKD" => return Ok(11),
            "NFC" | "NFD" => return Ok(3),
            "ByteLevel" => return Ok(2),
            "Prepend" if step["prepend"].as_str().is_none_or(|text| text.len() > MAX_AFFIX) => {
                return Err(self.wrong(
                    "Prepend.prepend",
                    format!("a text of at most {MAX_AFFIX} bytes"),
                    kind_of(&step["prepend"]),
                ));
            }
            "FixedLength" if !step["length"].is_null() => count("length", 1, 1 << 20)?,
            "Strip" if self.role == "decoder" => {
                count("start", 0, MAX_AFFIX as u64)?;
                count("stop", 0, MAX_AFFIX as u64)?;
            }
            "CTC" => {
                return Ok(step["word_delimiter_token"]
                    .as_str()
                    .map_or(1, |text| if text.is_empty() { 2 } else { 1 }));
            }
            _ => {}
        }
        Ok(1)
    }
}

/// The longest text that a SentencePiece character map puts in the place of characters, after every path through it was
/// checked: the engine follows them without looking at bounds. `Err`: what is wrong.
fn charsmap(text: &str) -> Result<u64, String> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|error| error.to_string())?;
    let (size, rest) = bytes.split_first_chunk().ok_or("less than 4 bytes")?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
        return Err(format!("an array of {size} bytes in {}", rest.len()));
    }
    let (array, texts) = rest.split_at(size);
    let texts = std::str::from_utf8(texts).map_err(|error| error.to_string())?;
    let units: Vec<u32> = array
        .chunks_exact(4)
        .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]))
        .collect();
    let offset = |unit: u32| (unit as usize >> 10) << ((unit & (1 << 9)) >> 6);
    let mut seen = vec![false; units.len()];
    let (mut open, mut longest) = (vec![(offset(units[0]), false)], 1);
    while let Some((base, leaf)) = open.pop() {
        // Any byte may come next, so the whole block has to be there.
        if base | 0xff >= units.len() {
            return Err(format!("a step to {base} in an array of {}", units.len()));
        }
        if leaf {
            let at = units[base] as usize & ((1 << 31) - 1);
            let tail =
                texts.get(at..).ok_or_else(|| format!("text {at} of {} bytes", texts.len()))?;
            longest = longest.max(tail.find('\0').unwrap_or(tail.len()));
        }
        for byte in 1..256 {
            let at = base ^ byte;
            let unit = units[at];
            if unit as usize & ((1 << 31) | 0xff) == byte && !std::mem::replace(&mut seen[at], true)
            {
                open.push((at ^ offset(unit), unit >> 8 & 1 == 1));
            }
        }
    }
    Ok(longest as u64)
}

fn model(path: &Path, model: &mut Json) -> Result<()> {
    let wrong = |key: &str, expected: String, found: &Json| {
        Err(wrong(path, &format!("model.{key}"), expected, kind_of(found)))
    };
    if !model.is_object() {
        return wrong("type", MODELS.join(", "), model);
    }
    if model["type"].is_null() && model["merges"].is_array() {
        // Documents of old versions do not say.
        model["type"] = "BPE".into();
    }
    let kind = model["type"].as_str().unwrap_or("");
    if !MODELS.contains(&kind) {
        return wrong("type", MODELS.join(", "), &model["type"]);
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[key].as_str().map_or(!model[key].is_null(), |affix| affix.len() > MAX_AFFIX) {
            return wrong(key, format!("a text of at most {MAX_AFFIX} bytes"), &model[key]);
        }
    }
    let length = &model["max_input_chars_per_word"];
    if kind == "WordPiece"
        && !length.is_null()
        && length.as_u64().is_none_or(|length| length > MAX_WORD)
    {
        return wrong("max_input_chars_per_word", format!("at most {MAX_WORD}"), length);
    }
    let vocab = &model["vocab"];
    match (vocab, kind) {
        (Json::Array(entries), "Unigram") => {
            let bytes: usize =
                entries.iter().filter_map(|entry| Some(entry[0].as_str()?.len())).sum();
            if bytes > MAX_UNIGRAM_BYTES {
                return wrong(
                    "vocab",
                    format!("tokens of at most {MAX_UNIGRAM_BYTES} bytes"),
                    &json!(bytes),
                );
            }
        }
        (Json::Object(entries), "BPE" | "WordLevel" | "WordPiece") => {
            let id = |id: &Json| id.as_u64().is_some_and(|id| id <= u64::from(MAX_ID));
            if let Some((token, found)) = entries.iter().find(|(_, found)| !id(found)) {
                let key = format!("vocab[{token:?}]");
                return wrong(&key, format!("a token id of at most {MAX_ID}"), found);
            }
        }
        _ => return wrong("vocab", "the tokens of the model".into(), vocab),
    }
    if kind == "BPE" && !model["merges"].is_array() {
        return wrong("merges", "a list of pairs".into(), &model["merges"]);
    }
    Ok(())
}

fn added(path: &Path, added: &Json) -> Result<()> {
    let Some(list) = added.as_array() else {
        return if added.is_null() {
            Ok(())
        } else {
            Err(wrong(path, "added_tokens", "a list", kind_of(added)))
        };
    };
    let mut bytes = 0;
    for token in list {
        let content = token["content"].as_str().unwrap_or("");
        bytes += content.len();
        if content.is_empty() || bytes > MAX_ADDED_BYTES {
            let expected = format!("tokens with a text, of at most {MAX_ADDED_BYTES} bytes in all");
            return Err(wrong(path, "added_tokens", expected, kind_of(token)));
        }
    }
    Ok(())
}

/// Whether a post-processor puts this token in front of a text.
pub(super) fn begins_with(post_processor: &Json, token: u32) -> bool {
    first_added(post_processor) == Some(token)
}

/// Whether a post-processor puts this token behind a text.
pub(super) fn ends_with(post_processor: &Json, token: u32) -> bool {
    last_added(post_processor) == Some(token)
}

/// The token that a post-processor puts behind a text.
pub(super) fn last_added(post_processor: &Json) -> Option<u32> {
    let id = |id: &Json| id.as_u64().and_then(|id| u32::try_from(id).ok());
    match post_processor["type"].as_str()? {
        // The later of two stands behind the earlier.
        "Sequence" => post_processor["processors"].as_array()?.iter().rev().find_map(last_added),
        "TemplateProcessing" => {
            let last =
                post_processor["single"].as_array()?.last()?["SpecialToken"]["id"].as_str()?;
            id(&post_processor["special_tokens"][last]["ids"][0])
        }
        "RobertaProcessing" | "BertProcessing" => id(&post_processor["sep"][1]),
        _ => None,
    }
}

/// The token that a post-processor puts in front of a text.
pub(super) fn first_added(post_processor: &Json) -> Option<u32> {
    let id = |id: &Json| id.as_u64().and_then(|id| u32::try_from(id).ok());
    match post_processor["type"].as_str()? {
        // The later of two stands before the earlier.
        "Sequence" => post_processor["processors"].as_array()?.iter().rev().find_map(first_added),
        "TemplateProcessing" => {
            let first = post_processor["single"].get(0)?["SpecialToken"]["id"].as_str()?;
            id(&post_processor["special_tokens"][first]["ids"][0])
        }
        "RobertaProcessing" | "BertProcessing" => id(&post_processor["cls"][1]),
        _ => None,
    }
}
