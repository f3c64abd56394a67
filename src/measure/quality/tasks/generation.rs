//! Answers by generation: greedy, until a text that ends it, then compared with the target.

use std::cell::RefCell;

use serde_json::json;

use super::encode::{Prompt, asked, fit};
use super::{Event, Options, Setup};
use crate::data::{Extract, Generated, Normalize, Task};
use crate::error::{Error, Result};
use crate::measure::quality::outcome::{Asked, Outcome};
use crate::model::{Sampling, generate};

/// Generates every question's answer, one after the other.
pub(super) fn answers(
    setup: &Setup<'_>,
    task: &Task,
    how: &Generated,
    fronts: &[String],
    options: &Options,
    tell: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let items = asked(task, options);
    let (mut prompts, mut texts) = (Vec::new(), Vec::new());
    for (item, front) in items.iter().zip(fronts) {
        // A space in front of the answer is the model's to give, as in encoding a continuation.
        let text = format!("{front}{}", item.query);
        let text = text.trim_end_matches(' ');
        prompts.push(setup.tokenizer.encode_with_bos(text, options.add_bos)?);
        texts.push(text.into());
    }
    let context = setup.model.config().max_positions;
    let asked = prompts.iter_mut().enumerate();
    let asked = asked.map(|(question, tokens)| Prompt { question, tokens, behind: how.max_tokens });
    let (cut, warning) = fit(task, options, context, asked)?;
    if let Some(warning) = warning {
        tell(Event::Warning(warning))?;
    }
    let until = json!({"until": how.stop, "max_gen_toks": how.max_tokens, "do_sample": false});
    let mut outcomes = Vec::with_capacity(items.len());
    for (index, ((item, prompt), asked)) in items.iter().zip(&prompts).zip(texts).enumerate() {
        tell(Event::Progress(&task.name, index, items.len()))?;
        let text = one(setup, prompt, how)?;
        let answer = extract(&text, &how.extract)?;
        let equal = |text: &str| normalized(text, &how.normalize);
        outcomes.push(Outcome {
            item: index,
            answer: None,
            target: item.target().into(),
            pick: None,
            pick_norm: None,
            choices: Vec::new(),
            correct: equal(&answer) == equal(item.target()),
            correct_norm: None,
            generated: Some(text),
            asked: Asked {
                doc: item.doc.clone(),
                arguments: vec![(asked, until.clone())],
                cut: cut[index],
            },
        });
    }
    tell(Event::Progress(&task.name, items.len(), items.len()))?;
    Ok(outcomes)
}

/// The continuation that the model generates, up to the first stop text.
fn one(setup: &Setup<'_>, prompt: &[u32], how: &Generated) -> Result<String> {
    let tokenizer = setup.tokenizer;
    // A stop text may begin in one token and end in another, so all tokens so far are searched.
    let written: RefCell<(Vec<u32>, Result<String>)> =
        RefCell::new((Vec::new(), Ok(String::new())));
    let ends = |token: u32| {
        if tokenizer.is_eos(token) {
            return true;
        }
        let mut written = written.borrow_mut();
        written.0.push(token);
        written.1 = tokenizer.decode(&written.0, true);
        let stops = |text: &str| how.stop.iter().any(|stop| text.contains(stop.as_str()));
        written.1.as_ref().map_or(true, |text| stops(text))
    };
    generate(setup.model, setup.pass, prompt, how.max_tokens, Sampling::Greedy, ends, |_| {
        crate::interrupt::check()
    })?;
    let text = written.into_inner().1?;
    let end = how.stop.iter().filter_map(|stop| text.find(stop.as_str())).min();
    Ok(text[..end.unwrap_or(text.len())].to_string())
}

/// The answer in a generated text.
pub fn extract(text: &str, how: &Extract) -> Result<String> {
    let answer = match how {
        Extract::Whole => text,
        Extract::After(marker) => text.rsplit_once(marker.as_str()).map_or("", |(_, end)| end),
        Extract::Pattern(pattern) => {
            let pattern = regex::Regex::new(pattern).map_err(|_| Error::Argument {
                argument: "answer_pattern".into(),
                expected: "a regular expression".into(),
                found: pattern.clone(),
            })?;
            let found = pattern.captures_iter(text).last();
            let group = found.and_then(|found| found.get(1).or(found.get(0)));
            group.map_or("", |group| group.as_str())
        }
    };
    Ok(answer.trim().to_string())
}

/// A text with what does not count made equal, in a fixed order: case, numbers, punctuation, articles, spaces.
pub fn normalized(text: &str, how: &[Normalize]) -> String {
    let mut text = text.trim().to_string();
    if how.contains(&Normalize::Case) {
        text = text.to_lowercase();
    }
    if how.contains(&Normalize::Numbers) {
        text = text.replace([',', '$', '€', '£'], "");
        text = text.trim_end_matches('.').to_string();
    }
    if how.contains(&Normalize::Punctuation) {
        text.retain(|c| !c.is_ascii_punctuation());
    }
    if how.contains(&Normalize::Articles) {
        let kept = text.split(' ').filter(|word| {
            !["a", "an", "the"].iter().any(|article| word.eq_ignore_ascii_case(article))
        });
        text = kept.collect::<Vec<_>>().join(" ");
    }
    if how.contains(&Normalize::Spaces) {
        text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    text.trim().to_string()
}
