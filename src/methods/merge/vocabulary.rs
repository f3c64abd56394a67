//! Models whose vocabularies differ: which of one's rows are which of another's.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Checkpoint, Weights};
use crate::text::Tokenizer;

/// What is done where vocabularies differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Vocabulary {
    /// The first model's tokens are kept, in its order; of one that another model lacks, that model has what the first one has
    Base,
    /// All tokens (not done by this version)
    Union,
}

/// For each row of the first model's vocabulary the row of another one's with the same token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alignment(Vec<Option<usize>>);

impl Alignment {
    /// The row of the other one that has the token of a row of the first one's.
    pub(super) fn row(&self, row: usize) -> Option<usize> {
        self.0[row]
    }

    /// By the tokens' spelling. Rows of the first one's padding have none.
    fn new((first, rows): (&Tokenizer, usize), (other, of): (&Tokenizer, usize)) -> Self {
        let place = |row: usize| {
            let token = first.token(row as u32)?;
            let id = other.token_id(&token)? as usize;
            (id < of).then_some(id)
        };
        Self((0..rows).map(place).collect())
    }

    /// Rows that the other one has.
    fn found(&self) -> usize {
        self.0.iter().flatten().count()
    }
}

/// The vocabularies of further models beside the first one's: which need an alignment, and what to say of them. An error that names
/// the first token that differs, unless `rule` says what to do.
pub fn alignments(
    first: &Checkpoint,
    others: &[&Checkpoint],
    rule: Option<Vocabulary>,
) -> Result<(Vec<Option<Alignment>>, Vec<String>)> {
    if rule == Some(Vocabulary::Union) {
        return Err(Error::Unsupported {
            path: first.path().into(),
            what: "a union of vocabularies".into(),
            why: "this version merges the tokens of the first model; use vocabulary = \"base\""
                .into(),
        });
    }
    let tokenizer = |model: &Checkpoint| {
        model.has_tokenizer().then(|| model.stored_tokenizer()?.read()).transpose()
    };
    let own = tokenizer(first)?;
    let rows = first.config().vocab_size;
    let (mut found, mut warnings) = (Vec::new(), Vec::new());
    for other in others {
        let (name, of) = (other.path().display().to_string(), other.config().vocab_size);
        let (Some(own), Some(its)) = (&own, tokenizer(other)?) else {
            if of != rows {
                return Err(wrong(
                    format!("{rows} tokens, or a tokenizer in both models to tell them by"),
                    format!("{name}, which has {of}"),
                ));
            }
            warnings.push(format!(
                "{name} and the first model do not both have a tokenizer: their {rows} tokens are taken for the same"
            ));
            found.push(None);
            continue;
        };
        let differs = own.first_difference(&its);
        if differs.is_none() && of == rows {
            found.push(None);
            continue;
        }
        if rule.is_none() {
            let spelled = |tokenizer: &Tokenizer, id: u32| {
                tokenizer.token(id).map_or("none".into(), |token| format!("`{token}`"))
            };
            let found = match differs {
                Some(id) => format!(
                    "{name}, whose token {id} is {}, where the first model's is {}",
                    spelled(&its, id),
                    spelled(own, id)
                ),
                None => format!("{name}, which has {of} rows for the first model's {rows}"),
            };
            return Err(wrong(
                "one vocabulary, or vocabulary = \"base\" to merge the tokens that both have"
                    .into(),
                found,
            ));
        }
        let alignment = Alignment::new((own, rows), (&its, of));
        warnings.push(format!(
            "{name} has {} of the first model's {rows} tokens; of the others the first model's rows stand in",
            alignment.found()
        ));
        found.push(Some(alignment));
    }
    Ok((found, warnings))
}

fn wrong(expected: String, found: String) -> Error {
    Error::Key { path: "recipe".into(), key: "stage.vocabulary".into(), expected, found }
}
