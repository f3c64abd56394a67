//! Rows of tokens as a model with an encoder takes them: what of a row the encoder reads and what the decoder does, from the tokens
//! alone, so that whoever has rows of tokens needs to know of neither.
//!
//! A row is the source, one [`BETWEEN`] or more, and the target, which begins with the token that the decoder starts with. Rows of a
//! pass have their targets at one place: shorter sources are filled up with [`BETWEEN`]. Rows of plain text have none: their first
//! half is the source, and the token behind that gives its place to the start.

use std::borrow::Cow;

use crate::data::{BETWEEN, text_target_place};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::families::Config;
use crate::graph::{DistanceBuckets, PairedRows};

/// Rows as a pass embeds them, and their parts.
#[derive(Debug)]
pub(crate) struct LaidOut<'i> {
    /// The tokens: none but the vocabulary's.
    pub(crate) ids: Cow<'i, [u32]>,
    /// Of a model with an encoder.
    pub(crate) paired: Option<Parts>,
}

/// The parts of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// The buckets of distances, where scores have a bias by them.
    buckets: Option<DistanceBuckets>,
    /// The place of the target's first token; of rows without one, their length.
    pub(crate) width: usize,
    /// Tokens of a row.
    length: usize,
    /// Tokens of each source.
    sources: Vec<u32>,
}

impl Parts {
    /// Those of some of the rows, on a device.
    pub(crate) fn upload(
        &self,
        device: &Device,
        rows: std::ops::Range<usize>,
    ) -> Result<PairedRows> {
        PairedRows::upload(device, self.buckets, &self.sources[rows], self.width, self.length)
    }
}

/// A source and what of its target is known, as a row whose target begins at a place: more than the source has tokens.
pub fn paired_row(config: &Config, source: &[u32], target: &[u32], place: usize) -> Vec<u32> {
    let start = config.encoder.map_or(0, |encoder| encoder.start);
    assert!(place > source.len(), "something stands between a source and its target");
    let mut row = source.to_vec();
    row.resize(place, BETWEEN);
    row.push(start);
    row.extend_from_slice(target);
    row
}

/// Rows of one text each, whose tokens all see each other, filled up with [`BETWEEN`].
fn whole_rows(ids: &[u32], length: usize) -> Result<LaidOut<'_>> {
    let mut sources = Vec::new();
    for row in ids.chunks_exact(length.max(1)) {
        let count = row.iter().position(|id| *id == BETWEEN).unwrap_or(length);
        if count == 0 || row[count..].iter().any(|id| *id != BETWEEN) {
            return Err(Error::Argument {
                argument: "rows of tokens".into(),
                expected: "one text each, of one token or more, filled up behind it".into(),
                found: "another row".into(),
            });
        }
        sources.push(count as u32);
    }
    let ids = ids.iter().map(|id| if *id == BETWEEN { 0 } else { *id }).collect();
    let paired = Some(Parts { buckets: None, width: length, length, sources });
    Ok(LaidOut { ids: Cow::Owned(ids), paired })
}

/// Lays out `ids`, `sequences` rows of one length, as the model takes them.
///
/// Errors: rows whose targets begin at several places, a source without tokens, one that goes on behind its end.
pub(crate) fn lay_out<'i>(
    config: &Config,
    ids: &'i [u32],
    sequences: usize,
) -> Result<LaidOut<'i>> {
    let length = ids.len() / sequences.max(1);
    let encoder = match config.encoder {
        Some(encoder) => encoder,
        None if config.family.bidirectional => return whole_rows(ids, length),
        None => return Ok(LaidOut { ids: Cow::Borrowed(ids), paired: None }),
    };
    let wrong = |expected: &str, found: String| {
        Err(Error::Argument { argument: "rows of tokens".into(), expected: expected.into(), found })
    };
    let place = |row: &[u32]| row.iter().rposition(|id| *id == BETWEEN).map(|last| last + 1);
    let rows = || ids.chunks_exact(length.max(1));
    let Some(width) = rows().find_map(place) else {
        if length < 2 {
            let found = format!("{length} tokens");
            return wrong("two or more, of which the encoder reads half", found);
        }
        let mut ids = ids.to_vec();
        let width = text_target_place(length);
        ids.chunks_exact_mut(length).for_each(|row| row[width] = encoder.start);
        let sources = vec![width as u32; sequences];
        let buckets = Some(encoder.buckets);
        let paired = Some(Parts { buckets, width, length, sources });
        return Ok(LaidOut { ids: Cow::Owned(ids), paired });
    };
    let mut sources = Vec::with_capacity(sequences);
    for row in rows() {
        let source = row.iter().position(|id| *id == BETWEEN);
        match (source, place(row)) {
            (Some(0), _) => return wrong("a source of one token or more", "none".into()),
            (Some(source), Some(end)) if end == width => {
                if row[source..end].iter().any(|id| *id != BETWEEN) {
                    return wrong("one source a row", "several".into());
                }
                sources.push(source as u32);
            }
            (_, other) => {
                let found = format!("{other:?}");
                return wrong(&format!("targets that all begin at place {width}"), found);
            }
        }
    }
    let shown = |id: &u32| if *id == BETWEEN { encoder.start } else { *id };
    let ids = ids.iter().map(shown).collect();
    let paired = Some(Parts { buckets: Some(encoder.buckets), width, length, sources });
    Ok(LaidOut { ids: Cow::Owned(ids), paired })
}
