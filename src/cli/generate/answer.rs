//! The text of a generation as it is printed: whole characters, up to a stop string.

use super::Output;
use crate::error::Result;
use crate::text::{AnswerStream, StopStrings, Tokenizer};

/// Prints tokens as they arrive.
pub(super) struct Answer<'a> {
    output: &'a Output,
    stream: AnswerStream<'a>,
    text: String,
}

impl<'a> Answer<'a> {
    pub(super) fn new(output: &'a Output, tokenizer: &'a Tokenizer, stops: StopStrings) -> Self {
        Self { output, stream: AnswerStream::new(tokenizer, stops), text: String::new() }
    }

    /// Takes a token; whether the text goes on.
    pub(super) fn push(&mut self, token: u32) -> Result<bool> {
        let piece = self.stream.push(token)?;
        self.output.text(&piece);
        self.text.push_str(&piece);
        Ok(!self.stream.stopped())
    }

    /// Prints what was held back and ends the line; the text, and the stop strings that may have ended it.
    pub(super) fn finish(mut self) -> Result<(String, StopStrings)> {
        let (rest, stops) = self.stream.finish()?;
        self.output.line(&rest);
        self.text.push_str(&rest);
        Ok((self.text, stops))
    }
}
