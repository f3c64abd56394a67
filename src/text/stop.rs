//! Stop strings in text that arrives in pieces.

use super::{DecodeStream, Tokenizer};
use crate::error::Result;

/// Lets text through up to the first of some stop strings, whichever pieces it lies in. What may yet become one is held back.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    found: bool,
}

impl StopStrings {
    /// Of these strings; an empty one ends a text where it begins.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new(), found: false }
    }

    /// Takes the next piece and returns the text that certainly stands before a stop string.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found {
            return String::new();
        }
        self.held.push_str(piece);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(place) = first {
            self.found = true;
            self.held.truncate(place);
            return std::mem::take(&mut self.held);
        }
        let begun = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - begun);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string was there: everything from it on is gone.
    pub fn found(&self) -> bool {
        self.found
    }

    /// What is still held back at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The text of tokens as they arrive: whole characters, up to a stop string.
pub struct AnswerStream<'a> {
    stream: DecodeStream<'a>,
    stops: StopStrings,
}

impl<'a> AnswerStream<'a> {
    /// Of a tokenizer's tokens; special ones have no text.
    pub fn new(tokenizer: &'a Tokenizer, stops: StopStrings) -> Self {
        Self { stream: tokenizer.decode_stream(true), stops }
    }

    /// Takes a token and returns the text that is certain now, sometimes nothing.
    pub fn push(&mut self, token: u32) -> Result<String> {
        Ok(self.stops.push(&self.stream.push(token)?))
    }

    /// Whether a stop string was there.
    pub fn stopped(&self) -> bool {
        self.stops.found()
    }

    /// What was held back, and the stop strings that may have ended the text.
    pub fn finish(mut self) -> Result<(String, StopStrings)> {
        let rest = self.stops.push(&self.stream.finish()?) + &self.stops.finish();
        Ok((rest, self.stops))
    }
}

/// Bytes at the end of a text with which a stop string begins.
fn begun(text: &str, stop: &str) -> usize {
    let ends = (1..stop.len()).rev().filter(|end| stop.is_char_boundary(*end));
    ends.into_iter().find(|end| text.ends_with(&stop[..*end])).unwrap_or(0)
}
