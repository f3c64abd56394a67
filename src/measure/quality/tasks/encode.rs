//! Questions as tokens.

use std::collections::HashMap;

use super::Options;
use super::orders::Orders;
use super::score::{Question, Request};
use crate::data::shots::pick;
use crate::data::{Item, SEPARATOR, Task};
use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// A context and its continuation as lm-evaluation-harness encodes them: spaces at the context's end belong to the
/// continuation; both are encoded together, and the continuation's tokens are what follows as many tokens as the context
/// alone has. A token over the boundary so changes the context, not what is scored. An empty context is BOS, or the first
/// token that ends a text where the vocabulary has no BOS. `add_bos`: begin with BOS though the vocabulary does not ask
/// for it.
pub fn encode(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    add_bos: bool,
) -> Result<Request> {
    let trimmed = context.trim_end();
    let continuation = format!("{}{continuation}", &context[trimmed.len()..]);
    if trimmed.is_empty() {
        let front = tokenizer.bos.or(tokenizer.eos.first().copied());
        let front = front.ok_or_else(|| Error::Argument {
            argument: "--task".into(),
            expected: "a context, since the vocabulary has no BOS".into(),
            found: "an empty one".into(),
        })?;
        let continuation = tokenizer.encode(&continuation, false)?;
        return checked(vec![front], continuation);
    }
    let text = format!("{trimmed}{continuation}");
    let mut whole = with_bos(tokenizer, &text, add_bos)?;
    let context = with_bos(tokenizer, trimmed, add_bos)?.len();
    let behind = whole.split_off(context.min(whole.len()));
    checked(whole, behind)
}

/// A text's tokens, after BOS where the vocabulary or the user wants it.
pub(super) fn with_bos(tokenizer: &Tokenizer, text: &str, add_bos: bool) -> Result<Vec<u32>> {
    let mut ids = tokenizer.encode(text, true)?;
    if let (true, Some(bos)) = (add_bos, tokenizer.bos)
        && ids.first() != Some(&bos)
    {
        ids.insert(0, bos);
    }
    Ok(ids)
}

fn checked(context: Vec<u32>, continuation: Vec<u32>) -> Result<Request> {
    if context.is_empty() || continuation.is_empty() {
        return Err(Error::Argument {
            argument: "--task".into(),
            expected: "a context and a continuation of a token each".into(),
            found: format!("{} and {} tokens", context.len(), continuation.len()),
        });
    }
    Ok(Request { context, continuation })
}

/// The text in front of each question: the task's introduction and the examples, each followed by a blank line.
pub fn fronts(task: &Task, orders: &Orders, options: &Options) -> Result<Vec<String>> {
    let front = |(index, item): (usize, &Item)| {
        let order = orders.of(index, item);
        let shots = pick(task, index, &order, options.shots, options.selection)?;
        let mut front = item.front.clone();
        for shot in shots {
            front.push_str(&shot.example(&task.delimiter));
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

/// That the longest question fits the model's context; without examples, what to tell the user if it does not.
pub fn fit(
    task: &Task,
    options: &Options,
    lengths: &[usize],
    context: usize,
) -> Result<Option<String>> {
    let longest = lengths.iter().enumerate().max_by_key(|(_, length)| **length);
    let Some((item, length)) = longest.filter(|(_, length)| **length > context) else {
        return Ok(None);
    };
    if options.shots > 0 {
        return Err(Error::Argument {
            argument: "--shots".into(),
            expected: format!("questions within the model's context of {context} tokens"),
            found: format!(
                "{length} tokens in question {} of task `{}` with {} shots",
                item + 1,
                task.name,
                options.shots
            ),
        });
    }
    let count = lengths.iter().filter(|length| **length > context).count();
    Ok(Some(format!(
        "{}: {count} of {} questions are longer than the model's context of {context} tokens, up to {length}",
        task.name,
        lengths.len()
    )))
}
