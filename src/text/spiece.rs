//! A Unigram vocabulary of SentencePiece (`spiece.model`, a protocol buffer) as the `tokenizer.json` that says the same: T5's folders
//! of older programs have nothing else.
//!
//! Read are the fields that decide how a text becomes tokens, by their numbers in sentencepiece_model.proto: pieces with score and type,
//! of the trainer's settings the kind of model and byte fallback, of the normalizer's the table of characters and what becomes of spaces.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value as Json, json};

use super::document::MAX_ID;
use super::{malformed, unsupported};
use crate::error::Result;

/// The name of the file in a model's folder.
pub(super) const FILE: &str = "spiece.model";

/// Bytes of one piece.
const MAX_PIECE: usize = 1 << 10;

/// Types of pieces.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// A field's value, as the wire has it.
enum Field<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn number(&self) -> Option<u64> {
        match self {
            Field::Number(number) => Some(*number),
            _ => None,
        }
    }

    fn float(&self) -> Option<f32> {
        match self {
            Field::Four(bytes) => Some(f32::from_le_bytes(*bytes)),
            _ => None,
        }
    }
}

/// A message, field by field; no length is trusted.
struct Message<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Message<'a> {
    fn wrong(&self, found: impl std::fmt::Display) -> crate::error::Error {
        malformed(self.path, FILE, "a SentencePiece model", found)
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.bytes.get(self.at) else {
                return Err(self.wrong("an end within a number"));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.wrong("a number of more than 64 bits"))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count).ok().filter(|count| *count <= left) {
            Some(count) => {
                self.at += count;
                Ok(&self.bytes[self.at - count..self.at])
            }
            None => Err(self.wrong(format!("a field of {count} bytes, of {left} that are left"))),
        }
    }

    /// The next field's number and value; `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Field<'a>)>> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.number()?;
        let value = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let count = self.number()?;
                Field::Bytes(self.take(count)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Four([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            other => return Err(self.wrong(format!("a field of wire type {other}"))),
        };
        Ok(Some((key >> 3, value)))
    }
}

/// What a model says of texts.
struct Model {
    /// Text, score, type.
    pieces: Vec<(String, f32, u64)>,
    byte_fallback: bool,
    /// The compiled table of what characters become; none: they stay.
    characters: Vec<u8>,
    prefix: bool,
    fewer_spaces: bool,
}

fn read(path: &Path, bytes: &[u8]) -> Result<Model> {
    let message = |bytes| Message { path, bytes, at: 0 };
    let mut model = Model {
        pieces: Vec::new(),
        byte_fallback: false,
        characters: Vec::new(),
        prefix: true,
        fewer_spaces: true,
    };
    let mut kind = 1;
    let mut whole = message(bytes);
    while let Some((number, field)) = whole.field()? {
        let Field::Bytes(part) = field else { continue };
        let mut part = message(part);
        match number {
            1 => model.pieces.push(piece(&mut part, model.pieces.len())?),
            2 => {
                while let Some((number, field)) = part.field()? {
                    match (number, field.number()) {
                        (3, Some(number)) => kind = number,
                        (35, Some(number)) => model.byte_fallback = number != 0,
                        _ => {}
                    }
                }
            }
            3 => {
                while let Some((number, field)) = part.field()? {
                    match (number, field) {
                        (2, Field::Bytes(table)) => model.characters = table.to_vec(),
                        (3, Field::Number(number)) => model.prefix = number != 0,
                        (4, Field::Number(number)) => model.fewer_spaces = number != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if kind != 1 {
        let what = format!("{FILE} of kind {kind}");
        return Err(unsupported(path, what, "known is 1, Unigram; give a tokenizer.json"));
    }
    if model.pieces.is_empty() || model.pieces.len() > MAX_ID as usize {
        return Err(whole.wrong(format!("{} pieces", model.pieces.len())));
    }
    Ok(model)
}

fn piece(part: &mut Message<'_>, place: usize) -> Result<(String, f32, u64)> {
    let (mut text, mut score, mut kind) = (None, 0.0, 1);
    while let Some((number, field)) = part.field()? {
        match (number, &field) {
            (1, Field::Bytes(bytes)) if bytes.len() <= MAX_PIECE => {
                text = std::str::from_utf8(bytes).ok().map(str::to_string);
            }
            (2, _) => score = field.float().unwrap_or(f32::NAN),
            (3, _) => kind = field.number().unwrap_or(0),
            _ => {}
        }
    }
    match text.filter(|text| !text.is_empty()) {
        Some(text) if score.is_finite() && (1..=6).contains(&kind) => Ok((text, score, kind)),
        _ => Err(part.wrong(format!("piece {place} without a text, a score or a known type"))),
    }
}

/// The `tokenizer.json` of a `spiece.model`. `gaps`: so many tokens `<extra_id_N>` stand behind the pieces, the last first, as
/// transformers adds them for T5. Where `ends`, `</s>` is put behind a text.
pub(super) fn document(path: &Path, bytes: &[u8], gaps: usize, ends: bool) -> Result<Json> {
    let model = read(path, bytes)?;
    let unknown = model.pieces.iter().position(|(.., kind)| *kind == UNKNOWN);
    let unknown =
        unknown.ok_or_else(|| malformed(path, FILE, "a piece for what is unknown", "none"))?;
    let mut vocab: Vec<Json> =
        model.pieces.iter().map(|(text, score, _)| json!([text, f64::from(*score)])).collect();
    let added = |id: usize, text: &str, special: bool| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special})
    };
    let mut tokens = Vec::new();
    for (id, (text, _, kind)) in model.pieces.iter().enumerate() {
        if [UNKNOWN, CONTROL, USER_DEFINED].contains(kind) {
            tokens.push(added(id, text, *kind != USER_DEFINED));
        }
    }
    for gap in (0..gaps).rev() {
        let text = format!("<extra_id_{gap}>");
        tokens.push(added(vocab.len(), &text, true));
        vocab.push(json!([text, 0.0]));
    }
    let mut steps = Vec::new();
    if !model.characters.is_empty() {
        let table = BASE64_STANDARD.encode(&model.characters);
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": table}));
    }
    if model.fewer_spaces {
        steps.push(json!({"type": "Strip", "strip_left": true, "strip_right": true}));
        steps.push(json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}));
    }
    // Words can be looked at apart where no piece goes over a space.
    let within = |(text, ..): &(String, f32, u64)| text.chars().skip(1).all(|c| c != '▁');
    let spaces = json!({
        "type": "Metaspace", "replacement": "▁",
        "prepend_scheme": if model.prefix { "always" } else { "never" },
        "split": model.pieces.iter().all(within),
    });
    let end = model.pieces.iter().position(|(text, ..)| text == "</s>").filter(|_| ends);
    let post_processor = end.map(|id| {
        let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        json!({
            "type": "TemplateProcessing",
            "single": [sequence("A"), end], "pair": [sequence("A"), end, sequence("B"), end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [id], "tokens": ["</s>"]}},
        })
    });
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": tokens,
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": spaces, "post_processor": post_processor, "decoder": spaces,
        "model": {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": model.byte_fallback},
    }))
}
