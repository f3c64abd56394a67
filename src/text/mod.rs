//! Text in and out of a model: the tokenizer, the chat template and detokenizing streams.
//!
//! One engine (the `tokenizers` crate) does all tokenizing. A GGUF vocabulary is loaded as the `tokenizer.json` that says the
//! same, and `to_hf_files` writes the loaded engine, so what runs here is by construction what is exported.

mod chat;
mod document;
mod from_gguf;
mod from_hf;
mod pieces;
mod pre;
mod spiece;
mod spm;
mod stop;
mod stored;
mod stream;
mod to_gguf;
mod to_hf;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BpeBuilder, Merges, Vocab};
use tokenizers::{NormalizedString, Normalizer};

use crate::contain::contain;
use crate::error::{Error, Result};
use crate::interrupt;

use pieces::Cut;

pub use from_hf::HfFiles;
pub use stop::{AnswerStream, StopStrings};
pub use stored::{FILES, StoredTokenizer};
pub use stream::DecodeStream;

/// A vocabulary with everything needed to turn text into token ids and back.
#[derive(Clone)]
pub struct Tokenizer {
    /// One more than the largest token id. A model's embedding may have more rows than this.
    pub vocab_size: usize,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// Every token that ends a generation, without duplicates; the first is the vocabulary's own EOS in a GGUF and
    /// the first of the list in a `generation_config.json`.
    pub eos: Vec<u32>,
    /// The token for what the vocabulary cannot spell.
    pub unk: Option<u32>,
    /// The token that fills batches.
    pub pad: Option<u32>,
    /// Whether this vocabulary wants BOS in front of a text. Never true without a `bos`.
    pub add_bos: bool,
    /// Whether it wants its EOS behind what an encoder reads.
    pub add_eos: bool,
    /// The token that the decoder begins with, of a model whose encoder reads prompts.
    pub decoder_start: Option<u32>,
    /// The Jinja source of the chat template.
    pub chat_template: Option<String>,
    /// The tokens that the vocabulary's post-processor puts before and behind a text: `[CLS]` and `[SEP]` of BERT's.
    around: [Option<u32>; 2],
    inner: tokenizers::Tokenizer,
    /// The EOS that the vocabulary itself names, which a GGUF keeps apart from further end tokens.
    main_eos: Option<u32>,
    special: HashSet<u32>,
    /// Where long texts can be cut.
    cut: Option<Cut>,
    stored: StoredTokenizer,
    path: PathBuf,
}

impl Tokenizer {
    /// The token ids of a text. Special tokens written out in the text are recognised. With `add_special`, BOS is put
    /// in front if the vocabulary wants it and the text does not already begin with it; nothing else is ever added.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_first(text, add_special, usize::MAX)
    }

    /// The first `most` of the token ids that [`encode`](Self::encode) gives; the rest of the text is not looked at.
    pub fn encode_first(&self, text: &str, add_special: bool, most: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_pieces(text, |piece, _| {
            let encoding =
                self.contained("a text it can encode", |inner| inner.encode_fast(piece, false))?;
            ids.extend_from_slice(encoding.get_ids());
            Ok(ids.len() < most)
        })?;
        if let Some(bos) = self.missing_bos(&ids, add_special) {
            ids.insert(0, bos);
        }
        ids.truncate(most);
        Ok(ids)
    }

    /// The token ids of a text, as [`encode_first`](Self::encode_first) gives them, and for each the place in the text's bytes
    /// up to which the tokens so far have spelled it. It never falls: of the tokens that share a character the first has its
    /// bytes, and BOS has none.
    pub fn encode_with_ends(
        &self,
        text: &str,
        add_special: bool,
        most: usize,
    ) -> Result<(Vec<u32>, Vec<usize>)> {
        let (mut ids, mut ends) = (Vec::new(), Vec::<usize>::new());
        self.encode_pieces(text, |piece, begin| {
            let encoding =
                self.contained("a text it can encode", |inner| inner.encode(piece, false))?;
            ids.extend_from_slice(encoding.get_ids());
            for (_, end) in encoding.get_offsets() {
                ends.push((begin + *end).max(ends.last().copied().unwrap_or(0)));
            }
            Ok(ids.len() < most)
        })?;
        if let Some(bos) = self.missing_bos(&ids, add_special) {
            ids.insert(0, bos);
            ends.insert(0, 0);
        }
        ids.truncate(most);
        ends.truncate(most);
        Ok((ids, ends))
    }

    /// A text's tokens, after BOS where the vocabulary wants it, or has one and the caller wants it.
    pub fn encode_with_bos(&self, text: &str, add_bos: bool) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        if let (true, Some(bos)) = (add_bos, self.bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The tokens of a context and those of its continuation, at least one each, as lm-evaluation-harness encodes them: spaces at
    /// the context's end belong to the continuation; both are encoded together, and the continuation's tokens are what follows
    /// as many tokens as the context alone has. A token over the boundary so changes the context, not what is scored. An empty
    /// context is BOS, or the first token that ends a text where the vocabulary has no BOS. `add_bos`: begin with BOS though the
    /// vocabulary does not ask for it. Of a model with an encoder the context is what that reads, and both are encoded apart.
    pub fn encode_continuation(
        &self,
        context: &str,
        continuation: &str,
        add_bos: bool,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let wrong = |expected: &str, found: String| Error::Argument {
            argument: "context and continuation".into(),
            expected: expected.into(),
            found,
        };
        let trimmed = context.trim_end();
        let continuation = format!("{}{continuation}", &context[trimmed.len()..]);
        let (context, continuation) = if self.decoder_start.is_some() {
            (self.encode_source(trimmed)?, self.encode(&continuation, false)?)
        } else if trimmed.is_empty() {
            let front = self.bos.or(self.eos.first().copied());
            let front = front.ok_or_else(|| {
                wrong("a context, since the vocabulary has no BOS", "an empty one".into())
            })?;
            (vec![front], self.encode(&continuation, false)?)
        } else {
            let mut whole = self.encode_with_bos(&format!("{trimmed}{continuation}"), add_bos)?;
            let context = self.encode_with_bos(trimmed, add_bos)?.len();
            let behind = whole.split_off(context.min(whole.len()));
            (whole, behind)
        };
        if context.is_empty() || continuation.is_empty() {
            let found = format!("{} and {} tokens", context.len(), continuation.len());
            return Err(wrong("a context and a continuation of a token each", found));
        }
        Ok((context, continuation))
    }

    /// A text between the tokens that the vocabulary's post-processor puts around it, of at most so many tokens in all: a text that is
    /// longer loses its end; and how many tokens that are.
    pub fn encode_within(&self, text: &str, most: usize) -> Result<(Vec<u32>, usize)> {
        let own = self.encode(text, false)?;
        let [front, end] = self.around;
        let room = most.saturating_sub(front.iter().chain(&end).count());
        let kept = &own[..own.len().min(room)];
        let ids = front.iter().chain(kept).chain(&end).copied().collect();
        Ok((ids, own.len() - kept.len()))
    }

    /// The token that stands for a gap in what an encoder reads, if there is one: T5's first.
    pub fn gap(&self) -> Option<u32> {
        self.decoder_start.and_then(|_| self.token_id("<extra_id_0>"))
    }

    /// What an encoder reads of a text: its tokens, and EOS behind them where the vocabulary wants it.
    pub fn encode_source(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encode(text, true)?;
        let eos = self.main_eos.filter(|eos| self.add_eos && ids.last() != Some(eos));
        ids.extend(eos);
        Ok(ids)
    }

    /// Gives each piece of a text with its place in it, until `take` says that it is enough.
    fn encode_pieces(
        &self,
        text: &str,
        mut take: impl FnMut(&str, usize) -> Result<bool>,
    ) -> Result<()> {
        let mut begin = 0;
        loop {
            let rest = &text[begin..];
            let (piece, gap) = self.cut.map_or((rest, 0), |cut| cut.piece(rest));
            if !take(piece, begin)? || piece.len() == rest.len() {
                return Ok(());
            }
            interrupt::check()?;
            begin += piece.len() + gap;
        }
    }

    /// The BOS that is to stand in front of these ids and does not.
    fn missing_bos(&self, ids: &[u32], add_special: bool) -> Option<u32> {
        self.bos.filter(|bos| add_special && self.add_bos && ids.first() != Some(bos))
    }

    /// The first id that the other vocabulary spells otherwise, or does not have; None where both are the same.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<u32> {
        let ids = 0..self.vocab_size.max(other.vocab_size) as u32;
        let mut ids = ids.filter(|id| self.token(*id) != other.token(*id));
        ids.next()
    }

    /// The first id that both vocabularies have and spell differently.
    pub fn first_conflict(&self, other: &Tokenizer) -> Option<u32> {
        let mut ids = 0..self.vocab_size.min(other.vocab_size) as u32;
        ids.find(|id| {
            let (own, other) = (self.token(*id), other.token(*id));
            own.is_some() && other.is_some() && own != other
        })
    }

    /// The text of token ids. Ids that the vocabulary does not have, as a padded embedding can produce, are left out.
    /// Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.contained("ids it can decode", |inner| inner.decode(ids, skip_special))
    }

    /// What the engine makes of something; what a document's odd parts make it do is an error.
    fn contained<T>(
        &self,
        expected: &str,
        work: impl FnOnce(&tokenizers::Tokenizer) -> tokenizers::Result<T>,
    ) -> Result<T> {
        contain(|| work(&self.inner).map_err(|error| error.to_string()))
            .unwrap_or_else(Err)
            .map_err(|found| malformed(&self.path, "tokenizer", expected, found))
    }

    /// What it was read from.
    pub fn stored(&self) -> &StoredTokenizer {
        &self.stored
    }

    /// The same, but special tokens written out in a text are text, as llama.cpp takes a file's; user-defined tokens are
    /// looked for as before.
    pub fn without_specials_in_text(&self) -> Self {
        let mut plain = self.clone();
        plain.inner.set_encode_special_tokens(true);
        plain
    }

    /// A stream that yields text as token ids arrive.
    pub fn decode_stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// Whether this token ends a generation.
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos.contains(&id)
    }

    /// Whether this is a control token, one that `skip_special` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The text by which the vocabulary lists a token: byte-level or `▁` spelling, not decoded.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token in the vocabulary's own spelling.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// Special tokens and the chat template, which every constructor reads from elsewhere than `tokenizer.json`.
#[derive(Default)]
struct Specials {
    bos: Option<u32>,
    eos: Vec<u32>,
    main_eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    decoder_start: Option<u32>,
    /// The tokens that the post-processor puts before and behind a text.
    around: [Option<u32>; 2],
    chat_template: Option<String>,
}

/// Puts a loaded engine and its special tokens together. `parts`: its normalizer and pre-tokenizer.
fn assemble(
    path: &Path,
    inner: tokenizers::Tokenizer,
    specials: Specials,
    stored: StoredTokenizer,
    parts: &Json,
) -> Tokenizer {
    let vocab_size = inner.get_vocab(true).into_values().max();
    let mut special = HashSet::new();
    for (id, token) in inner.get_added_tokens_decoder() {
        if token.special {
            special.insert(id);
        }
    }
    let mut eos = Vec::new();
    for id in specials.eos {
        if !eos.contains(&id) {
            eos.push(id);
        }
    }
    Tokenizer {
        vocab_size: vocab_size.map_or(0, |id| id as usize + 1),
        bos: specials.bos,
        main_eos: specials.main_eos.or(eos.first().copied()),
        eos,
        unk: specials.unk,
        pad: specials.pad,
        add_bos: specials.add_bos && specials.bos.is_some(),
        add_eos: specials.add_eos,
        decoder_start: specials.decoder_start,
        around: specials.around,
        chat_template: specials.chat_template,
        cut: Cut::of(parts, &inner),
        inner,
        special,
        stored,
        path: path.to_path_buf(),
    }
}

/// Loads a `tokenizer.json` that was checked. `bpe` is what was taken out of its model, if that is byte-pair encoding: the
/// crate's own reader takes several times as long over a large vocabulary.
fn load_engine(
    path: &Path,
    document: Json,
    bpe: Option<(Vocab, Merges)>,
) -> Result<tokenizers::Tokenizer> {
    contain(|| build(document, bpe).map_err(|error| error.to_string()))
        .unwrap_or_else(Err)
        .map_err(|found| malformed(path, "tokenizer.json", "a tokenizer document", found))
}

/// Texts that every kind of part has something to do with, at their begin, within and at their end.
const PROBES: [&str; 2] =
    ["Some text, of 1 line\r\nwith é\u{301} and 中文…\n\n  <s> end", " (two) 2. "];

fn build(
    mut document: Json,
    bpe: Option<(Vocab, Merges)>,
) -> tokenizers::Result<tokenizers::Tokenizer> {
    let added = document["added_tokens"].take();
    let added: Option<Vec<tokenizers::AddedToken>> = serde_json::from_value(added)?;
    document["added_tokens"] = json!([]);
    if bpe.is_some() {
        document["model"]["vocab"] = json!({});
        document["model"]["merges"] = json!([]);
    }
    let mut inner = tokenizers::Tokenizer::from_bytes(document.to_string())?;
    if let Some((vocab, merges)) = bpe {
        let ModelWrapper::BPE(settings) = inner.get_model() else {
            return Err("a model that is not byte-pair encoding".into());
        };
        let mut builder = BpeBuilder::new().vocab_and_merges(vocab, merges);
        if let Some(prefix) = &settings.continuing_subword_prefix {
            builder = builder.continuing_subword_prefix(prefix.clone());
        }
        let mut model = builder.build()?;
        model.dropout = settings.dropout;
        model.unk_token.clone_from(&settings.unk_token);
        model.end_of_word_suffix.clone_from(&settings.end_of_word_suffix);
        model.fuse_unk = settings.fuse_unk;
        model.byte_fallback = settings.byte_fallback;
        model.ignore_merges = settings.ignore_merges;
        inner.with_model(model);
    }
    add_tokens(&mut inner, added.unwrap_or_default())?;
    // What panics on any text shall do so now. That a token is missing for this one is no fault.
    for probe in PROBES {
        if let Ok(encoding) = inner.encode_fast(probe, false) {
            let _ = inner.decode(encoding.get_ids(), false);
        }
    }
    Ok(inner)
}

/// Adds tokens that are looked for before anything else. The engine cannot look for nothing.
fn add_tokens(
    engine: &mut tokenizers::Tokenizer,
    tokens: Vec<tokenizers::AddedToken>,
) -> tokenizers::Result<()> {
    for token in tokens.iter().filter(|token| token.normalized) {
        let mut text = NormalizedString::from(token.content.as_str());
        if let Some(normalizer) = engine.get_normalizer() {
            normalizer.normalize(&mut text)?;
        }
        if text.is_empty() {
            return Err(format!(
                "the added token `{}`, which normalizes to nothing",
                token.content
            )
            .into());
        }
    }
    engine.add_tokens(tokens)?;
    Ok(())
}

/// Whether both parts of a merge are tokens and together make one. The engine needs that: it indexes by the lengths of the
/// parts and would panic. `prefix` stands in front of a right part and not in the whole; `whole` is room to work in.
fn makes_token(vocab: &Vocab, left: &str, right: &str, prefix: &str, whole: &mut String) -> bool {
    let Some(tail) = right.strip_prefix(prefix) else {
        return false;
    };
    whole.clear();
    whole.push_str(left);
    whole.push_str(tail);
    [left, right, whole].iter().all(|part| vocab.contains_key(*part))
}

fn malformed(path: &Path, what: &str, expected: &str, found: impl std::fmt::Display) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        what: what.into(),
        offset: None,
        expected: expected.into(),
        found: one_line(found),
    }
}

fn bad_key(
    path: &Path,
    key: &str,
    expected: impl Into<String>,
    found: impl std::fmt::Display,
) -> Error {
    Error::Key {
        path: path.to_path_buf(),
        key: key.into(),
        expected: expected.into(),
        found: one_line(found),
    }
}

fn unsupported(path: &Path, what: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Unsupported { path: path.to_path_buf(), what: what.into(), why: why.into() }
}

/// Error messages are one line and of bounded length, whatever a hostile file puts into them.
fn one_line(text: impl std::fmt::Display) -> String {
    let text = text.to_string();
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    if line.len() < text.len() { format!("{line}…") } else { line }
}
