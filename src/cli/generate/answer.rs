//! The text of a generation as it is printed: whole characters, up to a stop string.

use super::Output;
use crate::error::Result;
use crate::text::{DecodeStream, StopStrings, Tokenizer};

/// Prints tokens as they arrive.
pub(super) struct Answer<'a> {
    output: &'a Output,
    stream: DecodeStream<'a>,
    stops: StopStrings,
    text: String,
}

impl<'a> Answer<'a> {
    pub(super) fn new(output: &'a Output, tokenizer: &'a Tokenizer, stops: StopStrings) -> Self {
        Self { output, stream: tokenizer.decode_stream(true), stops, text: String::new() }
    }

    /// Takes a token; whether the text goes on.
    pub(super) fn push(&mut self, token: u32) -> Result<bool> {
        let piece = self.stops.push(&self.stream.push(token)?);
        self.output.text(&piece);
        self.text.push_str(&piece);
        Ok(!self.stops.found())
    }

    /// Prints what was held back and ends the line; the text, and the stop strings that may have ended it.
    pub(super) fn finish(mut self) -> Result<(String, StopStrings)> {
        let rest = self.stops.push(&self.stream.finish()?) + &self.stops.finish();
        self.output.line(&rest);
        self.text.push_str(&rest);
        Ok((self.text, self.stops))
    }
}
