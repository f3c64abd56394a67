//! A tokenizer from the `tokenizer.*` pairs of a GGUF.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value as Json, json};
use tokenizers::models::bpe::{self, Merges};

use super::pre::Pre;
use super::{Specials, StoredTokenizer, Tokenizer};
use super::{assemble, bad_key, load_engine, makes_token, spm, unsupported};
use crate::error::Result;
use crate::formats::gguf::{Array, Value};

/// The token types of `tokenizer.ggml.token_type`.
pub(super) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

/// A vocabulary of WordPiece.
pub(super) const BERT: &str = "bert";
/// What its parts of words begin with that no word begins with.
pub(super) const PART: &str = "##";

/// The vocabulary of Gemma 4, as a model and as a pre-tokenizer.
const GEMMA4: &str = "gemma4";

/// The pre-tokenizers of vocabularies with a list of merges whose tokens are text: spaces are `▁`, and what no token spells is
/// bytes (`<0x0A>`). llama.cpp cuts before and after line ends for all of them.
const SPELLED: [&str; 3] = [GEMMA4, "granite-embed-multi-311m", "sarvam-moe"];

/// Tokens that end a turn in the families' chat templates.
const END_OF_TURN: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|endoftext|>"];

impl Tokenizer {
    /// Reads the vocabulary of a GGUF from its metadata; keys outside `tokenizer.` are not looked at.
    pub fn from_gguf(path: &Path, metadata: &[(String, Value)]) -> Result<Self> {
        let keys = Keys { path, metadata };
        let kind = keys.text("tokenizer.ggml.model")?;
        let kind = kind.ok_or_else(|| keys.missing("tokenizer.ggml.model", "gpt2 or llama"))?;
        if !["gpt2", "llama", GEMMA4, BERT].contains(&kind) {
            let what = format!("tokenizer.ggml.model `{}`", super::one_line(kind));
            return Err(unsupported(path, what, "known models are gpt2, llama, gemma4, bert"));
        }
        let vocab = Vocab::read(&keys)?;
        if kind == BERT {
            return word_piece(&keys, &vocab, metadata);
        }
        let (engine, defaults) = match kind {
            "gpt2" => match keys.text("tokenizer.ggml.pre")? {
                Some(pre) if SPELLED.contains(&pre) => spelled(&keys, &vocab)?,
                _ => byte_level(&keys, &vocab)?,
            },
            GEMMA4 => spelled(&keys, &vocab)?,
            _ => sentencepiece(&keys, &vocab)?,
        };
        let specials = read_specials(&keys, &vocab, defaults)?;
        let document = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": vocab.added_tokens(),
            "normalizer": engine.normalizer, "pre_tokenizer": engine.pre_tokenizer,
            "post_processor": post_processor(&vocab, &specials),
            "decoder": engine.decoder, "model": engine.model,
        });
        let length = vocab.tokens.len();
        let parts = json!({"normalizer": document["normalizer"], "pre_tokenizer": document["pre_tokenizer"]});
        let engine = load_engine(path, document, Some((vocab.ids, engine.merges)))?;
        let stored = StoredTokenizer::of_gguf(path, metadata);
        let mut made = assemble(path, engine, specials, stored, &parts);
        made.vocab_size = length;
        Ok(made)
    }
}

/// A vocabulary of words and their parts, as llama.cpp has it: the begin of a word is marked (`▁`), and not what goes on in it (`##`).
/// Texts are lower-cased and lose their accents.
fn word_piece(
    keys: &Keys<'_>,
    vocab: &Vocab<'_>,
    metadata: &[(String, Value)],
) -> Result<Tokenizer> {
    let path = keys.path;
    let mut words = serde_json::Map::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        let word = match token.strip_prefix('▁') {
            Some(word) => word.to_string(),
            None if token.starts_with('[') && token.ends_with(']') => token.to_string(),
            None => format!("{PART}{token}"),
        };
        if words.insert(word.clone(), json!(id)).is_some() {
            let found = format!("`{word}` twice");
            return Err(bad_key(path, "tokenizer.ggml.tokens", "distinct tokens", found));
        }
    }
    let mut specials = read_specials(keys, vocab, Specials::default())?;
    let id = |name: &str, usual: u32| {
        let found = keys.id(&format!("tokenizer.ggml.{name}_token_id"), vocab)?;
        Ok::<_, crate::error::Error>(
            found.or(Some(usual).filter(|id| (*id as usize) < vocab.tokens.len())),
        )
    };
    let front = match keys.id("tokenizer.ggml.cls_token_id", vocab)? {
        Some(id) => Some(id),
        None => id("bos", 101)?,
    };
    specials.around = [front, id("seperator", 102)?];
    specials.unk = id("unknown", 100)?;
    (specials.add_bos, specials.add_eos) = (false, false);
    let text = |id: u32| vocab.tokens[id as usize].as_ref();
    let processor = match specials.around {
        [Some(front), Some(end)] => {
            json!({"type": "BertProcessing", "sep": [text(end), end], "cls": [text(front), front]})
        }
        _ => Json::Null,
    };
    let document = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": vocab.added_tokens(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": processor,
        "decoder": {"type": "WordPiece", "prefix": PART, "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": specials.unk.map_or("[UNK]", text), "continuing_subword_prefix": PART,
            "max_input_chars_per_word": 100, "vocab": words},
    });
    let parts =
        json!({"normalizer": document["normalizer"], "pre_tokenizer": document["pre_tokenizer"]});
    let engine = load_engine(path, document, None)?;
    let stored = StoredTokenizer::of_gguf(path, metadata);
    let mut made = assemble(path, engine, specials, stored, &parts);
    made.vocab_size = vocab.tokens.len();
    Ok(made)
}

/// The parts of a `tokenizer.json` that differ between the two kinds of vocabulary.
struct Parts {
    model: Json,
    merges: Merges,
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
}

/// A `gpt2` vocabulary, and the special tokens it has where the file names none.
fn byte_level(keys: &Keys<'_>, vocab: &Vocab<'_>) -> Result<(Parts, Specials)> {
    let pre = Pre::from_name(keys.path, keys.text("tokenizer.ggml.pre")?)?;
    let parts = Parts {
        model: bpe_settings(None, pre.ignore_merges, false),
        merges: listed_merges(keys, vocab)?,
        normalizer: pre.normalizer(),
        pre_tokenizer: pre.definition(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
    };
    let defaults = Specials { add_bos: pre.adds_bos, ..Specials::default() };
    Ok((parts, defaults))
}

/// A vocabulary of text with merges, one of [`SPELLED`].
fn spelled(keys: &Keys<'_>, vocab: &Vocab<'_>) -> Result<(Parts, Specials)> {
    let unknown = keys.id("tokenizer.ggml.unknown_token_id", vocab)?;
    let unknown = unknown.map(|id| vocab.tokens[id as usize].as_ref());
    let lines = json!({"type": "Split", "pattern": {"Regex": r"[^\n]+|[\n]+"}, "behavior": "Isolated", "invert": false});
    let parts = Parts {
        model: bpe_settings(unknown, false, true),
        merges: listed_merges(keys, vocab)?,
        normalizer: space_normalizer(false),
        pre_tokenizer: lines,
        decoder: space_decoder(false),
    };
    Ok((parts, Specials::default()))
}

/// A `llama` vocabulary, and the special tokens that llama.cpp gives it where the file names none.
fn sentencepiece(keys: &Keys<'_>, vocab: &Vocab<'_>) -> Result<(Parts, Specials)> {
    let present = |id: u32| Some(id).filter(|&id| (id as usize) < vocab.tokens.len());
    let prefix = keys.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let named = keys.id("tokenizer.ggml.unknown_token_id", vocab)?;
    let unknown = named.or(present(0));
    let unknown = unknown.map(|id| vocab.tokens[id as usize].as_ref());
    let parts = Parts {
        model: bpe_settings(unknown, false, unknown.is_some()),
        merges: scored_merges(keys, vocab)?,
        normalizer: space_normalizer(prefix),
        pre_tokenizer: Json::Null,
        decoder: space_decoder(prefix),
    };
    let defaults = Specials {
        unk: present(0),
        bos: present(1),
        main_eos: present(2),
        add_bos: true,
        ..Specials::default()
    };
    Ok((parts, defaults))
}

/// Typed access to the metadata.
struct Keys<'a> {
    path: &'a Path,
    metadata: &'a [(String, Value)],
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    fn missing(&self, key: &str, expected: &str) -> crate::error::Error {
        bad_key(self.path, key, expected, "no such key")
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let text = value.as_str();
        text.map(Some).ok_or_else(|| bad_key(self.path, key, "a string", "another type"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let flag = value.as_bool();
        flag.map(Some).ok_or_else(|| bad_key(self.path, key, "true or false", "another type"))
    }

    fn strings(&self, key: &str) -> Result<&'a [String]> {
        let value = self.get(key).ok_or_else(|| self.missing(key, "a list of strings"))?;
        value
            .as_strings()
            .ok_or_else(|| bad_key(self.path, key, "a list of strings", "another type"))
    }

    /// A token id of the vocabulary. One that names nothing is left out, with a warning: the weights do not need it.
    fn id(&self, key: &str, vocab: &Vocab<'_>) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let count = vocab.tokens.len();
        let integer = match *value {
            Value::I8(id) => Some(i128::from(id)),
            Value::I16(id) => Some(i128::from(id)),
            Value::I32(id) => Some(i128::from(id)),
            Value::I64(id) => Some(i128::from(id)),
            _ => value.as_u64().map(i128::from),
        };
        let Some(id) = integer else {
            let expected = format!("a token id below {count}");
            return Err(bad_key(self.path, key, expected, format!("{value:?}")));
        };
        let known = u32::try_from(id).ok().filter(|&id| (id as usize) < count);
        if known.is_none() {
            // Minus one, or all bits set, is how some say that there is none.
            tracing::warn!(
                "{}: `{key}` is {id}, which none of {count} tokens has; it is left out",
                self.path.display()
            );
        }
        Ok(known)
    }

    fn check_length(&self, key: &str, length: usize, tokens: usize) -> Result<()> {
        if length == tokens {
            return Ok(());
        }
        let expected = format!("one entry for each of {tokens} tokens");
        Err(bad_key(self.path, key, expected, format!("{length} entries")))
    }
}

/// The token list with its types.
struct Vocab<'a> {
    tokens: Vec<Cow<'a, str>>,
    types: Vec<i32>,
    ids: bpe::Vocab,
}

impl<'a> Vocab<'a> {
    fn read(keys: &Keys<'a>) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let list = keys.strings(key)?;
        if list.is_empty() || u32::try_from(list.len()).is_err() {
            let found = format!("{} tokens", list.len());
            return Err(bad_key(keys.path, key, "1 to 2^32 tokens", found));
        }
        let mut tokens: Vec<Cow<'a, str>> = Vec::with_capacity(list.len());
        let mut ids = bpe::Vocab::with_capacity(list.len());
        for (id, token) in (0..).zip(list) {
            // llama.cpp names empty tokens so, too.
            let token = match token.as_str() {
                "" => Cow::Owned(format!("[EMPTY_{id}]")),
                token => Cow::Borrowed(token),
            };
            if ids.insert(token.to_string(), id).is_some() {
                let found = format!("`{token}` twice");
                return Err(bad_key(keys.path, key, "distinct tokens", found));
            }
            tokens.push(token);
        }
        let key = "tokenizer.ggml.token_type";
        let types = match keys.get(key) {
            None => vec![token_type::NORMAL; tokens.len()],
            Some(Value::Array(Array::I32(types))) => types.clone(),
            Some(_) => return Err(bad_key(keys.path, key, "a list of int32", "another type")),
        };
        keys.check_length(key, types.len(), tokens.len())?;
        Ok(Vocab { tokens, types, ids })
    }

    /// The control token that ends a turn by its text, as llama.cpp finds it where a file does not name one.
    fn end_of_turn(&self) -> Option<u32> {
        let known = END_OF_TURN.iter().filter_map(|&text| self.ids.get(text));
        let mut control = known.filter(|&&id| self.types[id as usize] == token_type::CONTROL);
        control.next().copied()
    }

    /// Control tokens are special; user-defined ones are only cut out of the text before anything else.
    fn added_tokens(&self) -> Vec<Json> {
        let mut added = Vec::new();
        for (id, (token, &kind)) in self.tokens.iter().zip(&self.types).enumerate() {
            let special = matches!(kind, token_type::CONTROL | token_type::UNKNOWN);
            if special || kind == token_type::USER_DEFINED {
                added.push(json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                }));
            }
        }
        added
    }
}

fn listed_merges(keys: &Keys<'_>, vocab: &Vocab<'_>) -> Result<Merges> {
    let key = "tokenizer.ggml.merges";
    let (mut merges, mut whole) = (Merges::new(), String::new());
    for (rank, merge) in keys.strings(key)?.iter().enumerate() {
        // The first character belongs to the left part even if it is a space.
        let after_first = merge.chars().next().map_or(0, char::len_utf8);
        let parts = merge[after_first..].find(' ').map(|at| merge.split_at(after_first + at));
        let (left, right) = parts.map_or((merge.as_str(), ""), |(l, r)| (l, &r[1..]));
        if right.is_empty() || !makes_token(&vocab.ids, left, right, "", &mut whole) {
            let found = format!("`{merge}` at {rank}");
            let expected = "two tokens that make a token";
            return Err(bad_key(keys.path, key, expected, found));
        }
        merges.push((left.into(), right.into()));
    }
    Ok(merges)
}

fn scored_merges(keys: &Keys<'_>, vocab: &Vocab<'_>) -> Result<Merges> {
    let key = "tokenizer.ggml.scores";
    let scores = match keys.get(key) {
        Some(Value::Array(Array::F32(scores))) => scores,
        Some(_) => return Err(bad_key(keys.path, key, "a list of float32", "another type")),
        None => return Err(keys.missing(key, "a list of float32")),
    };
    keys.check_length(key, scores.len(), vocab.tokens.len())?;
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(bad_key(keys.path, key, "numbers", format!("NaN at {at}")));
    }
    let plain = |&kind: &i32| kind == token_type::NORMAL || kind == 0;
    let normal: Vec<bool> = vocab.types.iter().map(plain).collect();
    let tokens: Vec<&str> = vocab.tokens.iter().map(AsRef::as_ref).collect();
    let merges =
        spm::merges_from_scores(&tokens, &vocab.ids, scores, &normal).map_err(|found| {
            let expected = "tokens whose merges can be listed";
            bad_key(keys.path, "tokenizer.ggml.tokens", expected, found)
        })?;
    Ok(merges.into_iter().map(|(l, r)| (l.into(), r.into())).collect())
}

/// The `model` of a `tokenizer.json` but for its vocabulary and merges. Only vocabularies of text name an unknown token, and fall
/// back to bytes: byte-level ones have all bytes.
fn bpe_settings(unk: Option<&str>, ignore_merges: bool, byte_fallback: bool) -> Json {
    json!({
        "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": unk.is_some(), "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
    })
}

/// Spaces become `▁`. With a prefix every stretch of text between special tokens starts with one, as in llama.cpp and
/// in the first Llama tokenizers.
fn space_normalizer(prefix: bool) -> Json {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    if !prefix {
        return replace;
    }
    json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
}

fn space_decoder(prefix: bool) -> Json {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

fn read_specials(keys: &Keys<'_>, vocab: &Vocab<'_>, defaults: Specials) -> Result<Specials> {
    let id = |name: &str| keys.id(&format!("tokenizer.ggml.{name}_token_id"), vocab);
    let main_eos = id("eos")?.or(defaults.main_eos);
    let ends = [main_eos, id("eot")?.or(vocab.end_of_turn()), id("eom")?];
    let add_bos = keys.flag("tokenizer.ggml.add_bos_token")?;
    // llama.cpp adds BOS for Gemma 4 whatever the file says.
    let always = keys.text("tokenizer.ggml.model")? == Some(GEMMA4)
        || keys.text("tokenizer.ggml.pre")? == Some(GEMMA4);
    let add_bos = add_bos.unwrap_or(defaults.add_bos) || always;
    Ok(Specials {
        bos: id("bos")?.or(defaults.bos),
        eos: ends.into_iter().flatten().collect(),
        main_eos,
        unk: id("unknown")?.or(defaults.unk),
        pad: id("padding")?,
        add_bos,
        add_eos: keys.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(defaults.add_eos),
        decoder_start: None,
        around: [None; 2],
        chat_template: keys.text("tokenizer.chat_template")?.map(str::to_string),
    })
}

/// The post-processor by which other readers of the `tokenizer.json` add BOS and EOS; this program adds them itself.
fn post_processor(vocab: &Vocab<'_>, specials: &Specials) -> Json {
    let bos = specials.bos.filter(|_| specials.add_bos);
    let eos = specials.main_eos.filter(|_| specials.add_eos);
    if bos.or(eos).is_none() {
        return Json::Null;
    }
    let text = |id: u32| vocab.tokens[id as usize].as_ref();
    let added = |id: Option<u32>, kind: u32| {
        id.map(|id| json!({"SpecialToken": {"id": text(id), "type_id": kind}}))
    };
    let sequence = |id: &str, kind: u32| {
        [Some(json!({"Sequence": {"id": id, "type_id": kind}})), added(eos, kind)]
    };
    let single = || [added(bos, 0)].into_iter().chain(sequence("A", 0)).flatten();
    let entry = |id: u32| (text(id), json!({"id": text(id), "ids": [id], "tokens": [text(id)]}));
    let table: HashMap<&str, Json> = bos.into_iter().chain(eos).map(entry).collect();
    json!({
        "type": "TemplateProcessing",
        "single": single().collect::<Vec<_>>(),
        "pair": single().chain(sequence("B", 1).into_iter().flatten()).collect::<Vec<_>>(),
        "special_tokens": table,
    })
}
