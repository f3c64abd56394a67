//! A long text in pieces: the engine takes over a hundred bytes a byte of what it encodes at once. A text is cut only where
//! the ids on both sides are the same as those of the whole, and is one piece where no such place is known.

use serde_json::Value as Json;

use super::pre::{Pre, simplify};

/// Bytes of a piece, before it goes on to the next place where it can be cut.
const PIECE: usize = 1 << 15;

/// Where a tokenizer lets a text be cut: before a space between two letters, and perhaps after a line break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// The space is left out, for every text gets one in front.
    drops_space: bool,
    /// A line break alone between two characters that are no white space ends a piece.
    at_lines: bool,
}

impl Cut {
    /// Of a tokenizer of these parts; None where words may depend on each other.
    pub fn of(document: &Json, engine: &tokenizers::Tokenizer) -> Option<Self> {
        let steps = simplify(&document["normalizer"]);
        let is = |step: &Json, kind: &str| step["type"] == kind;
        let prepends = |step: &Json| is(step, "Prepend") && step["prepend"] == "▁";
        let replaces = |step: &Json| {
            is(step, "Replace") && step["pattern"]["String"] == " " && step["content"] == "▁"
        };
        let composes =
            |step: &Json| ["NFC", "NFD", "NFKC", "NFKD"].iter().any(|kind| is(step, kind));
        if !steps.iter().all(|step| prepends(step) || replaces(step) || composes(step)) {
            return None;
        }
        let mut cut = match Pre::of_cuts(&document["pre_tokenizer"]) {
            Some(pre) if !steps.iter().any(|step| prepends(step) || replaces(step)) => {
                (!pre.joins_words).then_some(Self { drops_space: false, at_lines: true })?
            }
            _ => {
                let cuts = &document["pre_tokenizer"];
                let metaspace = is(cuts, "Metaspace") && cuts["replacement"] == "▁";
                let whole =
                    cuts.is_null() || (is(cuts, "Split") && cuts["pattern"]["String"] == " ");
                let marks = metaspace || (whole && steps.iter().any(replaces));
                if !marks || joins_words(engine) {
                    return None;
                }
                let prefix =
                    steps.iter().any(prepends) || (metaspace && cuts["prepend_scheme"] != "never");
                Self { drops_space: prefix, at_lines: false }
            }
        };
        for token in engine.get_added_tokens_decoder().into_values() {
            let text = token.content.replace('▁', " ");
            let takes_spaces = token.lstrip || token.rstrip;
            let letter_at_end =
                text.starts_with(char::is_alphabetic) || text.ends_with(char::is_alphabetic);
            let across =
                text.split(' ').rev().skip(1).any(|part| part.ends_with(char::is_alphabetic));
            if across
                || (takes_spaces && letter_at_end)
                || (cut.drops_space && text.starts_with(' '))
            {
                return None;
            }
            let breaks = text.contains('\n') && text.contains(|c| c != '\n');
            cut.at_lines &= !takes_spaces && !breaks;
        }
        Some(cut)
    }

    /// The first piece of what is left of a text, and the bytes between it and the next.
    pub fn piece<'t>(&self, text: &'t str) -> (&'t str, usize) {
        let bytes = text.as_bytes();
        for at in PIECE.min(bytes.len())..bytes.len().saturating_sub(1) {
            let next = bytes[at + 1];
            match bytes[at] {
                b' ' if next.is_ascii_alphabetic() && text[..at].ends_with(char::is_alphabetic) => {
                    return (&text[..at], usize::from(self.drops_space));
                }
                b'\n' if self.at_lines && !bytes[at - 1].is_ascii_whitespace() => {
                    let (piece, rest) = text.split_at(at + 1);
                    let lone = |c: char| !c.is_whitespace();
                    if rest.starts_with(lone) && piece[..at].ends_with(lone) {
                        return (piece, 0);
                    }
                }
                _ => {}
            }
        }
        (text, 0)
    }
}

/// Whether a token reaches over a space.
fn joins_words(engine: &tokenizers::Tokenizer) -> bool {
    engine.get_vocab(false).keys().any(|token| token.trim_start_matches('▁').contains('▁'))
}
