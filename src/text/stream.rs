//! Text as tokens arrive, never cut inside a character.

use super::Tokenizer;
use crate::error::Result;

/// Characters have at most four bytes, so four tokens that still end in U+FFFD hold bytes that are not UTF-8.
const MAX_HELD: usize = 4;

/// Yields the text of arriving tokens. A piece is held back while it ends inside a UTF-8 sequence.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The tokens of the last piece, as context (a decoder may drop a text's first space), then those held back.
    window: Vec<u32>,
    /// How many tokens of the window were yielded already.
    yielded: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        DecodeStream { tokenizer, skip_special, window: Vec::new(), yielded: 0 }
    }

    /// Takes the next token and returns the text that is now complete, often one word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let skipped = self.skip_special && self.tokenizer.is_special(id);
        if skipped || self.tokenizer.token(id).is_none() {
            // It has no text, and as context it would make the next token look like the first of the text.
            return Ok(String::new());
        }
        self.window.push(id);
        let (text, known) = self.pending()?;
        let held = self.window.len() - self.yielded;
        if text.ends_with('\u{fffd}') && held < MAX_HELD {
            return Ok(String::new());
        }
        if text.len() <= known {
            // A first `▁` has no text, but after it the next one has: it stays as context and is not held back.
            self.yielded = self.window.len();
            return Ok(String::new());
        }
        Ok(self.yield_from(text, known))
    }

    /// Returns what is still held back at the end of the text; incomplete characters appear as U+FFFD.
    pub fn finish(&mut self) -> Result<String> {
        let (text, known) = self.pending()?;
        Ok(self.yield_from(text, known))
    }

    /// The text of the window, and how many of its bytes were yielded.
    fn pending(&self) -> Result<(String, usize)> {
        let context = self.tokenizer.decode(&self.window[..self.yielded], self.skip_special)?;
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        Ok((text, context.len()))
    }

    fn yield_from(&mut self, text: String, known: usize) -> String {
        self.window.drain(..self.yielded);
        self.yielded = self.window.len();
        // Bytes that were invalid alone can change with what follows; then the boundary may not be one any more.
        let from = (known..=text.len()).find(|&at| text.is_char_boundary(at));
        from.map_or(String::new(), |at| text[at..].to_string())
    }
}
