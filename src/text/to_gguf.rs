//! The `tokenizer.*` pairs of a GGUF.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value as Json;

use super::from_gguf::{BERT, PART, token_type};
use super::from_hf::split_merge;
use super::pre::Pre;
use super::{Tokenizer, spm, unsupported};
use crate::error::{Error, Result};
use crate::formats::gguf::{Array, Value};

/// llama.cpp's converter gives added tokens this score; it decides nothing, as they are cut out before merging.
const ADDED_SCORE: f32 = -1000.0;
/// And this one to the rows that pad the embedding.
const PADDING_SCORE: f32 = -10000.0;

impl Tokenizer {
    /// The `tokenizer.*` metadata of a GGUF whose embedding has `vocab_size` rows; rows without a token are named
    /// `[PAD<id>]`. What came from a GGUF is returned unchanged.
    pub fn to_gguf_metadata(&self, vocab_size: usize) -> Result<Vec<(String, Value)>> {
        let kept = self.stored.gguf_pairs();
        if vocab_size < self.vocab_size || (kept.is_some() && vocab_size != self.vocab_size) {
            return Err(Error::Tensor {
                path: self.path.clone(),
                tensor: "embedding".into(),
                expected: format!("a row for each of {} tokens", self.vocab_size),
                found: format!("{vocab_size} rows"),
            });
        }
        if let Some(pairs) = kept {
            return Ok(pairs.to_vec());
        }
        let document = self.stored.document()?;
        self.warn_of_losses();
        let mut pairs = Pairs::default();
        self.vocabulary(&document, vocab_size, &mut pairs)?;
        self.special_ids(&mut pairs);
        Ok(pairs.0)
    }

    /// A GGUF has no place for how a token takes the white space around it.
    fn warn_of_losses(&self) {
        let added = self.inner.get_added_tokens_decoder();
        let lost =
            added.into_values().filter(|token| token.lstrip || token.rstrip || token.single_word);
        let lost: Vec<String> = lost.map(|token| format!("{:?}", token.content)).collect();
        if let Some(first) = lost.iter().min() {
            tracing::warn!(
                "{}: a GGUF cannot say that {} tokens ({first}{}) take the white space beside them or are whole words only",
                self.path.display(),
                lost.len(),
                if lost.len() > 1 { ", …" } else { "" },
            );
        }
    }

    fn vocabulary(&self, document: &Json, vocab_size: usize, pairs: &mut Pairs) -> Result<()> {
        let refuse = |why: String| unsupported(&self.path, "this tokenizer.json in a GGUF", why);
        let model = &document["model"];
        if model["type"].as_str() == Some("WordPiece") {
            return self.word_piece(document, vocab_size, pairs);
        }
        if model["type"].as_str() != Some("BPE") {
            return Err(refuse(format!("its model is {}, not BPE", model["type"])));
        }
        let merges: Vec<(&str, &str)> =
            model["merges"].as_array().into_iter().flatten().filter_map(split_merge).collect();
        let sentencepiece = !has_byte_level(document);
        let list = self.token_list(vocab_size, sentencepiece);
        if sentencepiece {
            let prefix = space_prefix(document).map_err(refuse)?;
            let bytes = list.types.iter().filter(|&&kind| kind == token_type::BYTE).count();
            if bytes < 256 {
                tracing::warn!(
                    "{}: {bytes} of 256 byte tokens: llama.cpp ends where a text has what this vocabulary cannot spell",
                    self.path.display()
                );
            }
            let scores = self.scores(&list, &merges).map_err(refuse)?;
            pairs.text("tokenizer.ggml.model", "llama");
            pairs.text("tokenizer.ggml.pre", "default");
            list.write(pairs);
            pairs.list("tokenizer.ggml.scores", Array::F32(scores));
            pairs.add("tokenizer.ggml.add_space_prefix", Value::Bool(prefix));
        } else {
            let pre = Pre::recognise(document).map_err(refuse)?;
            pairs.text("tokenizer.ggml.model", "gpt2");
            pairs.text("tokenizer.ggml.pre", pre.name());
            list.write(pairs);
            let merges = merges.iter().map(|(l, r)| format!("{l} {r}")).collect();
            pairs.list("tokenizer.ggml.merges", Array::String(merges));
        }
        Ok(())
    }

    /// A vocabulary of words and their parts: llama.cpp marks the begin of a word.
    fn word_piece(&self, document: &Json, vocab_size: usize, pairs: &mut Pairs) -> Result<()> {
        let refuse = |why: &str| Err(unsupported(&self.path, "this tokenizer.json in a GGUF", why));
        let normalizer = &document["normalizer"];
        if normalizer["type"] != "BertNormalizer" || normalizer["lowercase"] != true {
            return refuse(
                "llama.cpp lower-cases what a vocabulary of WordPiece spells, and this one does not",
            );
        }
        if document["model"]["continuing_subword_prefix"] != PART {
            return refuse("its parts of words do not begin with ##");
        }
        let mut list = self.token_list(vocab_size, false);
        for (token, kind) in list.tokens.iter_mut().zip(&list.types) {
            if *kind != token_type::NORMAL || token.starts_with('[') && token.ends_with(']') {
                continue;
            }
            *token = match token.strip_prefix(PART) {
                Some(part) => part.to_string(),
                None => format!("▁{token}"),
            };
        }
        pairs.text("tokenizer.ggml.model", BERT);
        list.write(pairs);
        let [front, end] = self.around;
        for (role, id) in [("cls", front), ("seperator", end)] {
            if let Some(id) = id {
                pairs.add(&format!("tokenizer.ggml.{role}_token_id"), Value::U32(id));
            }
        }
        if let (Some(front), None) = (front, self.bos) {
            pairs.add("tokenizer.ggml.bos_token_id", Value::U32(front));
        }
        Ok(())
    }

    /// The tokens by id with their types, padded as llama.cpp's converter pads.
    fn token_list(&self, vocab_size: usize, sentencepiece: bool) -> TokenList {
        let vocab = self.inner.get_vocab(true);
        let taken: HashSet<&str> = vocab.keys().map(String::as_str).collect();
        let mut by_id: BTreeMap<u32, &str> = BTreeMap::new();
        for (token, &id) in &vocab {
            // Gemma's document has the tab twice, as itself and as a byte.
            let one = by_id.entry(id).or_insert(token);
            if is_byte(token) || (!is_byte(one) && token.as_str() < *one) {
                *one = token;
            }
        }
        let added = self.inner.get_added_tokens_decoder();
        let mut list = TokenList::default();
        for id in 0..vocab_size {
            let id = id as u32;
            let Some(&token) = by_id.get(&id) else {
                let mut name = format!("[PAD{id}]");
                while taken.contains(name.as_str()) {
                    name.push('_');
                }
                list.push(name, token_type::UNUSED);
                continue;
            };
            let (token, kind) = match added.get(&id) {
                Some(_) if sentencepiece && self.unk == Some(id) => {
                    (token.into(), token_type::UNKNOWN)
                }
                Some(entry) if entry.special => (token.into(), token_type::CONTROL),
                // llama.cpp looks for these in the text before spaces become `▁`.
                Some(_) if sentencepiece => (token.replace('▁', " "), token_type::USER_DEFINED),
                Some(_) => (token.into(), token_type::USER_DEFINED),
                None if sentencepiece && is_byte(token) => (token.into(), token_type::BYTE),
                None => (token.into(), token_type::NORMAL),
            };
            list.push(token, kind);
        }
        list
    }

    fn scores(&self, list: &TokenList, merges: &[(&str, &str)]) -> Result<Vec<f32>, String> {
        let tokens: Vec<&str> = list.tokens.iter().map(String::as_str).collect();
        let normal: Vec<bool> = list.types.iter().map(|&t| t == token_type::NORMAL).collect();
        // Gemma's document has merges that make runs of blanks. As tokens of a GGUF these are cut out before merging.
        let added = self.inner.get_added_tokens_decoder();
        let added = added.values().filter(|token| !token.special);
        let cut: HashSet<&str> = added.map(|token| token.content.as_str()).collect();
        let merges: Vec<(&str, &str)> = merges
            .iter()
            .copied()
            .filter(|(left, right)| {
                let whole = format!("{left}{right}");
                ![*left, *right, &whole].iter().any(|part| cut.contains(part))
            })
            .collect();
        let mut scores = spm::scores_from_merges(&tokens, &normal, &merges)?;
        for (score, &kind) in scores.iter_mut().zip(&list.types) {
            match kind {
                token_type::NORMAL => {}
                token_type::UNUSED => *score = PADDING_SCORE,
                token_type::BYTE | token_type::UNKNOWN => *score = 0.0,
                _ => *score = ADDED_SCORE,
            }
        }
        Ok(scores)
    }

    /// A GGUF has one EOS, one end of turn and one end of message; further ones have no key and llama.cpp finds the
    /// usual ones by their text.
    fn special_ids(&self, pairs: &mut Pairs) {
        let (mut eot, mut eom) = (None, None);
        for &id in self.eos.iter().filter(|&&id| Some(id) != self.main_eos) {
            let message_end = self.token(id).as_deref() == Some("<|eom_id|>");
            let slot = if message_end || eot.is_some() { &mut eom } else { &mut eot };
            slot.get_or_insert(id);
        }
        let ids = [
            ("bos", self.bos),
            ("eos", self.main_eos),
            ("eot", eot),
            ("eom", eom),
            ("unknown", self.unk),
            ("padding", self.pad),
        ];
        for (role, id) in ids {
            if let Some(id) = id {
                pairs.add(&format!("tokenizer.ggml.{role}_token_id"), Value::U32(id));
            }
        }
        pairs.add("tokenizer.ggml.add_bos_token", Value::Bool(self.add_bos));
        if self.add_eos {
            pairs.add("tokenizer.ggml.add_eos_token", Value::Bool(true));
        }
        if let Some(template) = &self.chat_template {
            pairs.text("tokenizer.chat_template", template);
        }
    }
}

#[derive(Default)]
struct Pairs(Vec<(String, Value)>);

impl Pairs {
    fn add(&mut self, key: &str, value: Value) {
        self.0.push((key.into(), value));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.add(key, Value::String(value.into()));
    }

    fn list(&mut self, key: &str, value: Array) {
        self.add(key, Value::Array(value));
    }
}

#[derive(Default)]
struct TokenList {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl TokenList {
    fn push(&mut self, token: String, kind: i32) {
        self.tokens.push(token);
        self.types.push(kind);
    }

    fn write(self, pairs: &mut Pairs) {
        pairs.list("tokenizer.ggml.tokens", Array::String(self.tokens));
        pairs.list("tokenizer.ggml.token_type", Array::I32(self.types));
    }
}

/// Whether a document spells bytes as characters, as GPT-2 did; others turn spaces into `▁`.
fn has_byte_level(document: &Json) -> bool {
    let is = |step: &Json| step["type"] == "ByteLevel";
    let within = |role: &str, list: &str| {
        let steps = &document[role];
        is(steps) || steps[list].as_array().is_some_and(|steps| steps.iter().any(is))
    };
    within("pre_tokenizer", "pretokenizers") || within("normalizer", "normalizers")
}

fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a SentencePiece-style document puts a space in front of a text. llama.cpp does so after every special
/// token; the newer `first` scheme only at the beginning, which differs for text after a special token.
fn space_prefix(document: &Json) -> Result<bool, String> {
    let mut steps: Vec<&Json> = match document["normalizer"]["normalizers"].as_array() {
        Some(list) => list.iter().collect(),
        None => Some(&document["normalizer"]).filter(|n| !n.is_null()).into_iter().collect(),
    };
    let prepends = |step: &Json| step["type"] == "Prepend" && step["prepend"] == "▁";
    let prefix = steps.first().is_some_and(|step| prepends(step));
    steps.drain(..usize::from(prefix));
    let replaces = |step: &Json| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁"
    };
    let cut = &document["pre_tokenizer"];
    let whole = cut.is_null() || (cut["type"] == "Split" && cut["pattern"]["String"] == " ");
    match steps.as_slice() {
        // Splitting at spaces that are `▁` already does nothing; Gemma's document has it.
        [step] if replaces(step) && whole => Ok(prefix),
        [] if !prefix && cut["type"] == "Metaspace" && cut["replacement"] == "▁" => {
            if cut["split"] != false {
                return Err("its Metaspace pre-tokenizer cuts at spaces".into());
            }
            Ok(cut["prepend_scheme"] != "never")
        }
        _ => Err("its normalizer does more than turn spaces into `▁`".into()),
    }
}
