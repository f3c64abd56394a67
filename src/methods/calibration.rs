//! Tokens that calibration is done on, and where methods find statistics of what goes through a model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BadField;
use crate::data::{mark_gaps, read_text};
use crate::disk;
use crate::error::{Error, Result};
use crate::text::Tokenizer;
use crate::walk::Through;

/// Which tokens calibration is done on: consecutive rows of a text tokenized once, without special tokens. Part of recipes,
/// and flags of commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Calibration {
    /// Calibration text
    #[arg(id = "calib", long = "calib", value_name = "FILE", default_value_t = Self::default().text)]
    pub text: String,
    /// Its first token that is used
    #[arg(long, default_value_t = Self::default().offset)]
    pub offset: usize,
    /// Rows of tokens, consecutive ones (default: as many as the method's source takes)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Tokens of a row (likewise)
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { text: "embedded:calibration".into(), offset: 0, samples: None, length: None }
    }
}

impl Calibration {
    /// Sets what was left open.
    pub fn fill(&mut self, samples: usize, length: usize) {
        self.samples.get_or_insert(samples);
        self.length.get_or_insert(length);
    }

    /// Rows: LLM-Pruner's 10 where nothing was said.
    pub fn samples(&self) -> usize {
        self.samples.unwrap_or(10)
    }

    /// Tokens of a row: LLM-Pruner's 64 where nothing was said.
    pub fn length(&self) -> usize {
        self.length.unwrap_or(64)
    }
}

/// Where a method finds statistics of what goes through a model's blocks: sums over calibration tokens, taken as it walks through
/// the model block by block, or those that `lopper calibrate` took before ([`crate::walk::stored`]). A stage has it as a field
/// with `#[command(flatten)]` and `#[serde(flatten)]`, so that `calibration`, `stats` and `feed` are keys of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Source {
    /// What they are taken over.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Take statistics from this folder, which `lopper calibrate` wrote, or imatrix file; no calibration text is read then, and
    /// every block is seen fed by the parent's
    #[arg(
        long,
        value_name = "STATS",
        conflicts_with_all = ["calib", "offset", "samples", "length", "feed"],
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    /// What each block is fed: what the compressed blocks before it make of the text, or what the parent's do (default: compressed)
    #[arg(long, value_enum)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed: Option<Feed>,
}

/// Which blocks make the inputs of the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Feed {
    /// Those that were compressed, as the finished model will have it.
    #[default]
    Compressed,
    /// The parent's: all blocks are judged at once, by the model as it was.
    Parent,
}

impl Feed {
    /// The weights that a walk goes on through.
    pub fn through(self) -> Through {
        match self {
            Feed::Compressed => Through::Replaced,
            Feed::Parent => Through::Parent,
        }
    }
}

impl Source {
    /// What feeds each block.
    pub fn feed(&self) -> Feed {
        match self.stats {
            Some(_) => Feed::Parent,
            None => self.feed.unwrap_or_default(),
        }
    }

    /// The tokens that statistics are taken over; `None` where they were taken before.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.stats.is_none().then_some(&self.calibration)
    }

    /// An error if its fields contradict each other: a recipe can say what flags cannot.
    pub fn check(&self) -> Result<(), BadField> {
        match (&self.stats, self.feed) {
            (Some(stats), Some(Feed::Compressed)) => Err(BadField::new(
                "feed",
                "parent, beside stats: they were taken before anything was compressed",
                format!("compressed, and stats {stats}"),
            )),
            _ => Ok(()),
        }
    }
}

/// Rows of tokens of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// All tokens, row after row.
    pub ids: Vec<u32>,
    /// Rows.
    pub samples: usize,
}

impl Rows {
    /// The rows that `calibration` names.
    pub fn of_text(calibration: &Calibration, tokenizer: &Tokenizer) -> Result<Self> {
        let Calibration { text, offset, .. } = calibration;
        let (offset, samples, length) = (*offset, calibration.samples(), calibration.length());
        for (argument, value, least) in [("samples", samples, 1), ("length", length, 2)] {
            if value < least {
                return Err(Error::Argument {
                    argument: format!("calibration {argument}"),
                    expected: format!("{least} or more"),
                    found: value.to_string(),
                });
            }
        }
        let last = length.checked_mul(samples).and_then(|n| n.checked_add(offset));
        let tokens =
            tokenizer.encode_first(&read_text(text)?, false, last.unwrap_or(usize::MAX))?;
        let Some(ids) = last.and_then(|last| tokens.get(offset..last)) else {
            return Err(Error::Argument {
                argument: format!("calibration text {text}"),
                expected: format!("{samples} x {length} tokens from token {offset} on"),
                found: format!("{} tokens in all", tokens.len()),
            });
        };
        let mut ids = ids.to_vec();
        mark_gaps(&mut ids, length, tokenizer.gap());
        Ok(Self { ids, samples })
    }

    /// The rows of a JSON array of arrays of token ids.
    pub fn of_file(path: &Path) -> Result<Self> {
        let text = disk::read_json(path, disk::LIST)?;
        let wrong = |expected: &str, found: String| Error::Malformed {
            path: path.into(),
            what: "rows of tokens".into(),
            offset: None,
            expected: expected.into(),
            found,
        };
        let rows: Vec<Vec<u32>> = serde_json::from_slice(&text)
            .map_err(|error| wrong("an array of arrays of token ids", error.to_string()))?;
        let length = rows.first().map_or(0, Vec::len);
        if length < 2 {
            return Err(wrong("rows of two tokens or more", format!("{length} in the first")));
        }
        if let Some(row) = rows.iter().position(|row| row.len() != length) {
            let found = format!("{length} tokens in row 0 and {} in row {row}", rows[row].len());
            return Err(wrong("rows of one length", found));
        }
        let (samples, ids) = (rows.len(), rows.concat());
        Ok(Self { ids, samples })
    }

    /// The rows, if they are within a model's context of so many tokens: beyond it a model gives nothing that calibrates.
    pub fn within(self, context: usize) -> Result<Self> {
        if self.length() <= context {
            return Ok(self);
        }
        Err(Error::Argument {
            argument: "--length / --token-file".into(),
            expected: format!("rows of at most {context} tokens, the model's context"),
            found: format!("{} tokens", self.length()),
        })
    }

    /// Tokens of a row.
    pub fn length(&self) -> usize {
        self.ids.len() / self.samples
    }

    /// The rows before the last `count`, and those.
    pub fn hold_out(&self, count: usize) -> (Self, Self) {
        let samples = self.samples - count.min(self.samples);
        let (first, last) = self.ids.split_at(samples * self.length());
        let part = |ids: &[u32], samples: usize| Self { ids: ids.to_vec(), samples };
        (part(first, samples), part(last, self.samples - samples))
    }
}
