//! Questions as tokens.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::Options;
use super::orders::Orders;
use super::score::{Question, Request};
use crate::data::shots::pick;
use crate::data::{Item, SEPARATOR, Task};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// A context and its continuation as [`Tokenizer::encode_continuation`] gives them.
pub fn encode(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    add_bos: bool,
) -> Result<Request> {
    let encoded = tokenizer.encode_continuation(context, continuation, add_bos);
    let (context, continuation) = encoded.map_err(|error| match error {
        Error::Argument { expected, found, .. } => {
            Error::Argument { argument: "--task".into(), expected, found }
        }
        error => error,
    })?;
    Ok(Request { context, continuation })
}

/// The text in front of each question: the task's introduction and the examples, each followed by a blank line.
pub fn fronts(task: &Task, orders: &Orders, options: &Options) -> Result<Vec<String>> {
    let front = |(index, item): (usize, &Item)| {
        let order = orders.of(index, item);
        let shots = pick(task, index, &order, options.shots, options.selection)?;
        let mut front = item.front.clone();
        for shot in shots {
            front.push_str(&shot.example(&task.example_delimiter));
            front.push_str(SEPARATOR);
        }
        Ok(front)
    };
    let items = asked(task, options).iter().enumerate();
    items.map(front).collect()
}

/// The questions that are asked: the first so many.
pub fn asked<'a>(task: &'a Task, options: &Options) -> &'a [Item] {
    let count = options.limit.unwrap_or(usize::MAX).min(task.items.len());
    &task.items[..count]
}

/// Every question with its continuations as tokens. Questions with the same front are of one family.
pub fn questions(
    tokenizer: &Tokenizer,
    task: &Task,
    fronts: &[String],
    add_bos: bool,
) -> Result<Vec<Question>> {
    let mut families: HashMap<&str, usize> = HashMap::new();
    let mut questions = Vec::with_capacity(fronts.len());
    for (index, (item, front)) in task.items.iter().zip(fronts).enumerate() {
        let next = families.len();
        let family = *families.entry(front).or_insert(next);
        let requests = (0..item.choices.len()).map(|choice| {
            let context = format!("{front}{}", item.query_of(choice));
            let continuation = format!("{}{}", task.delimiter, item.choices[choice].text);
            encode(tokenizer, &context, &continuation, add_bos)
                .map_err(|error| located(error, task, index))
        });
        questions.push(Question { requests: requests.collect::<Result<_>>()?, family });
    }
    Ok(questions)
}

/// Names the question in an error that knows only its own.
fn located(error: Error, task: &Task, index: usize) -> Error {
    match error {
        Error::Argument { expected, found, .. } => Error::Argument {
            argument: format!("--task {}, question {}", task.name, index + 1),
            expected,
            found,
        },
        error => error,
    }
}

/// What a question asks of the model, as texts: each choice's context and what is scored behind it.
pub fn arguments(task: &Task, item: &Item, front: &str) -> Vec<(Arc<str>, Value)> {
    let mut found: Vec<(Arc<str>, Value)> = Vec::with_capacity(item.choices.len());
    for (choice, text) in item.choices.iter().enumerate() {
        let context = match found.last() {
            Some((last, _)) if item.choices[choice].query.is_none() => last.clone(),
            _ => format!("{front}{}", item.query_of(choice)).into(),
        };
        found.push((context, format!("{}{}", task.delimiter, text.text).into()));
    }
    found
}

/// A question's context on its way into a model.
pub struct Prompt<'a> {
    /// The question's place.
    pub question: usize,
    /// Tokens of the context.
    pub tokens: &'a mut Vec<u32>,
    /// Tokens that the model takes in after them.
    pub behind: usize,
}

/// Makes prompts fit the model's context as lm-evaluation-harness does: one that is too long loses its beginning. Examples are
/// not cut to pieces: with them it is an error. How many tokens each question lost, and what to tell the user if any did.
pub fn fit<'a>(
    task: &Task,
    options: &Options,
    context: usize,
    prompts: impl Iterator<Item = Prompt<'a>>,
) -> Result<(Vec<usize>, Option<String>)> {
    let mut cut = vec![0; asked(task, options).len()];
    let mut longest = (0, 0);
    for Prompt { question, tokens, behind } in prompts {
        if behind >= context {
            return Err(Error::Argument {
                argument: format!("--task {}, question {}", task.name, question + 1),
                expected: format!("an answer shorter than the model's context of {context} tokens"),
                found: format!("{behind} tokens"),
            });
        }
        let length = tokens.len() + behind;
        let over = length.saturating_sub(context);
        tokens.drain(..over);
        cut[question] = over.max(cut[question]);
        longest = if over > 0 && length > longest.0 { (length, question) } else { longest };
    }
    let count = cut.iter().filter(|cut| **cut > 0).count();
    let (length, question) = longest;
    if count > 0 && options.shots > 0 {
        return Err(Error::Argument {
            argument: "--shots".into(),
            expected: format!("questions within the model's context of {context} tokens"),
            found: format!(
                "{count} of {} questions of task `{}` longer with {} shots, question {} the longest with {length} tokens",
                cut.len(),
                task.name,
                options.shots,
                question + 1,
            ),
        });
    }
    let warning = (count > 0).then(|| {
        format!(
            "{}: {count} of {} questions are longer than the model's context of {context} tokens, up to {length}; they lose their \
             beginning, as in lm-evaluation-harness",
            task.name,
            cut.len()
        )
    });
    Ok((cut, warning))
}
