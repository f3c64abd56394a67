//! Answers read back from files of one JSON object a line: Lopper's own samples, other programs' predictions, and
//! lm-evaluation-harness's samples.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value};

use super::outcome::{Asked, ChoiceScore, Form, Outcome, TaskOutcome};
use crate::error::{Error, Result};

/// The outcomes that a samples file of Lopper's holds ([`samples`](super::harness::samples)).
pub fn read_samples(path: &Path, text: &str) -> Result<Vec<TaskOutcome>> {
    let mut tasks: Vec<TaskOutcome> = Vec::new();
    let mut seen = BTreeSet::new();
    for line in lines(path, text)? {
        let name = line.text("task")?.ok_or_else(|| {
            line.wrong(
                "`task`, as Lopper's --samples writes it (other programs' files go to --predictions)",
                "none",
            )
        })?;
        let form: Form =
            line.parse("form", "multiple-choice, classification, cloze or generation")?;
        let (shots, labels) = (line.parse("shots", "a count")?, line.optional("labels")?);
        let place = tasks.iter().position(|task| task.task == name && task.shots == shots);
        let place = place.unwrap_or_else(|| {
            tasks.push(TaskOutcome {
                task: name.clone(),
                form,
                shots,
                chance: 0.0,
                labels: labels.unwrap_or_default(),
                outcomes: Vec::new(),
            });
            tasks.len() - 1
        });
        let task = &mut tasks[place];
        if task.form != form {
            let expected = format!("{:?} as in its first line", task.form);
            return Err(line.wrong(&expected, format!("{form:?}")));
        }
        let outcome = own_outcome(&line, form)?;
        if !seen.insert((place, outcome.item)) {
            return Err(line.wrong("each item once", format!("item {} again", outcome.item)));
        }
        task.outcomes.push(outcome);
    }
    for task in &mut tasks {
        let guess = |outcome: &Outcome| match outcome.choices.len() {
            choices if choices > 1 => 1.0 / choices as f64,
            _ => 0.0,
        };
        task.chance = task.outcomes.iter().map(guess).sum::<f64>() / task.outcomes.len() as f64;
    }
    Ok(tasks)
}

fn own_outcome(line: &Line<'_>, form: Form) -> Result<Outcome> {
    let item = line.parse("doc_id", "an item's place")?;
    let target = line.text("target_text")?;
    let target = target.ok_or_else(|| line.wrong("`target_text`", "none"))?;
    let right = |key: &str| -> Result<Option<bool>> {
        match line.optional::<f64>(key)? {
            None => Ok(None),
            Some(0.0) => Ok(Some(false)),
            Some(1.0) => Ok(Some(true)),
            Some(other) => Err(line.wrong(&format!("`{key}` of 0 or 1"), other)),
        }
    };
    let metric = if form == Form::Generation { "exact_match" } else { "acc" };
    let correct = right(metric)?.ok_or_else(|| line.wrong(&format!("`{metric}`"), "none"))?;
    let responses = line.responses()?.unwrap_or_default();
    let (mut choices, mut generated) = (Vec::new(), None);
    if form == Form::Generation {
        generated = responses.first().and_then(Value::as_str).map(String::from);
    } else {
        let counts = |key: &str| line.parse::<Vec<usize>>(key, "a count for each choice");
        choices = line.scores(&responses, &counts("characters")?, &counts("tokens")?)?;
    }
    let index = |key: &str| -> Result<Option<usize>> {
        let found = line.optional::<usize>(key)?;
        found.map(|index| line.index(key, index, choices.len())).transpose()
    };
    let answer = match form {
        Form::MultipleChoice | Form::Classification => {
            let answer = line.integer("target").ok_or_else(|| {
                line.wrong("`target`, the right choice's index", line.shown("target"))
            })?;
            Some(line.index("target", answer, choices.len())?)
        }
        Form::Cloze | Form::Generation => None,
    };
    Ok(Outcome {
        item,
        answer,
        target,
        pick: index("pick")?,
        pick_norm: index("pick_norm")?,
        choices,
        generated,
        correct,
        correct_norm: right("acc_norm")?,
        asked: line.asked()?,
    })
}

/// Other programs' answers to the questions of these outcomes, judged by them. A line has
///
/// - `doc_id` or `item`: the item's place in its task, from 0;
/// - `task`, where there are several;
/// - `pick`, the index of a choice; or `filtered_resps` as lm-evaluation-harness writes them, the likeliest of which is
///   taken, or of a last word whether it is greedy; or `prediction`, a text, where there are no choices;
/// - `target`, if any: it must be the question's own answer, or the file belongs to other questions. A generation's may be more
///   than its answer and is not looked at.
///
/// Items without a line stay unanswered, and comparisons leave them out. Of a file that has each item behind several filters
/// (`filter`) the first filter's lines are taken.
pub fn read_predictions(
    path: &Path,
    text: &str,
    questions: &[TaskOutcome],
) -> Result<Vec<TaskOutcome>> {
    let empty = |task: &TaskOutcome| TaskOutcome { outcomes: Vec::new(), ..task.clone() };
    let mut found: Vec<TaskOutcome> = questions.iter().map(empty).collect();
    let mut seen = BTreeSet::new();
    let lines = lines(path, text)?;
    let filter = lines.first().and_then(|line| line.fields.get("filter")).cloned();
    for line in lines.into_iter().filter(|line| line.fields.get("filter") == filter.as_ref()) {
        let place = match line.text("task")? {
            Some(name) => {
                let names: Vec<_> = questions.iter().map(|task| task.task.as_str()).collect();
                let known = names.iter().position(|known| *known == name);
                known.ok_or_else(|| line.wrong(&format!("`task` of {}", names.join(", ")), name))?
            }
            None if questions.len() == 1 => 0,
            None => return Err(line.wrong("`task`, for there are several", "none")),
        };
        let key = if line.fields.contains_key("doc_id") { "doc_id" } else { "item" };
        let item: usize = line.parse(key, "an item's place")?;
        let question = questions[place].outcomes.iter().find(|o| o.item == item);
        let question = question.ok_or_else(|| {
            let task = &questions[place];
            let expected = format!("one of the {} items of {}", task.outcomes.len(), task.task);
            line.wrong(&expected, format!("item {item}"))
        })?;
        if !seen.insert((place, item)) {
            return Err(line.wrong("each item once", format!("item {item} again")));
        }
        found[place].outcomes.push(judge(&line, question)?);
    }
    found.retain(|task| !task.outcomes.is_empty());
    Ok(found)
}

fn judge(line: &Line<'_>, question: &Outcome) -> Result<Outcome> {
    if let (Some(target), Some(answer)) = (line.integer("target"), question.answer)
        && target != answer
    {
        let expected = format!("target {answer}, the answer of item {}", question.item);
        return Err(line.wrong(&expected, target));
    }
    // Nothing was generated, and there are no choices: a last word.
    let word = question.answer.is_none() && question.generated.is_none();
    if let (true, Some(target)) = (word, line.text("target")?)
        && target.trim() != question.target.trim()
    {
        let expected =
            format!("target {:?}, the answer of item {}", question.target, question.item);
        return Err(line.wrong(&expected, format!("{target:?}")));
    }
    let mut outcome = Outcome {
        pick: None,
        pick_norm: None,
        choices: Vec::new(),
        generated: None,
        correct: false,
        correct_norm: None,
        ..question.clone()
    };
    let Some(answer) = question.answer else {
        let responses = line.responses()?.unwrap_or_default();
        let text = match (line.text("prediction")?, responses.first()) {
            (Some(text), _) => text,
            (None, Some(Value::String(text))) => text.clone(),
            (None, Some(Value::Array(_))) if word => {
                let known = question.choices.first();
                let characters = question.target.chars().count();
                let tokens = known.map_or(0, |known| known.tokens);
                outcome.choices = line.scores(&responses, &[characters], &[tokens])?;
                outcome.correct = outcome.choices[0].greedy;
                return Ok(outcome);
            }
            _ => {
                return Err(
                    line.wrong("`prediction` or `filtered_resps`", line.shown("filtered_resps"))
                );
            }
        };
        outcome.correct = text.trim() == question.target.trim();
        outcome.generated = Some(text);
        return Ok(outcome);
    };
    let count = question.choices.len();
    if let Some(pick) = line.optional::<usize>("pick")? {
        outcome.pick = Some(line.index("pick", pick, count)?);
    } else if let Some(responses) = line.responses()? {
        if responses.len() != count {
            return Err(line.wrong(&format!("{count} choices"), responses.len()));
        }
        let of = |field: fn(&ChoiceScore) -> usize| question.choices.iter().map(field).collect();
        let (characters, tokens): (Vec<_>, Vec<_>) = (of(|c| c.characters), of(|c| c.tokens));
        outcome.choices = line.scores(&responses, &characters, &tokens)?;
        let better = |best: usize, next: usize| {
            let score = |index: usize| outcome.choices[index].log_likelihood;
            if score(next) > score(best) { next } else { best }
        };
        outcome.pick = Some((1..count).fold(0, better));
        let per_character = |index: usize| {
            let choice = &outcome.choices[index];
            choice.log_likelihood / choice.characters.max(1) as f64
        };
        let better =
            |best, next| if per_character(next) > per_character(best) { next } else { best };
        outcome.pick_norm = question.pick_norm.map(|_| (1..count).fold(0, better));
        outcome.correct_norm = outcome.pick_norm.map(|pick| pick == answer);
    } else {
        return Err(line.wrong("`pick` or `filtered_resps`", "neither"));
    }
    outcome.correct = outcome.pick == Some(answer);
    Ok(outcome)
}

/// A line of such a file.
struct Line<'a> {
    path: &'a Path,
    number: usize,
    fields: Map<String, Value>,
}

fn lines<'a>(path: &'a Path, text: &str) -> Result<Vec<Line<'a>>> {
    let mut found = Vec::new();
    for (index, text) in text.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        let mut line = Line { path, number: index + 1, fields: Map::new() };
        match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => line.fields = fields,
            Ok(_) => return Err(line.wrong("a JSON object", "another value")),
            Err(error) => return Err(line.wrong("a JSON object", error)),
        }
        found.push(line);
    }
    if found.is_empty() {
        return Err(Error::Malformed {
            path: path.into(),
            what: "answers".into(),
            offset: None,
            expected: "one JSON object a line".into(),
            found: "no line".into(),
        });
    }
    Ok(found)
}

impl Line<'_> {
    fn wrong(&self, expected: &str, found: impl std::fmt::Display) -> Error {
        // A hostile line must not fill the screen.
        let found: String = found.to_string().chars().take(200).collect();
        Error::Malformed {
            path: self.path.into(),
            what: format!("line {}", self.number),
            offset: None,
            expected: expected.into(),
            found,
        }
    }

    fn shown(&self, key: &str) -> String {
        self.fields.get(key).map_or("none".into(), Value::to_string)
    }

    /// A field that may be missing or null.
    fn optional<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match serde_json::from_value(value.clone()) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(self.wrong(&format!("a usable `{key}`"), error)),
            },
        }
    }

    /// A field that must be there.
    fn parse<T: serde::de::DeserializeOwned>(&self, key: &str, what: &str) -> Result<T> {
        let found = self.fields.get(key).cloned().unwrap_or(Value::Null);
        serde_json::from_value(found)
            .map_err(|_| self.wrong(&format!("`{key}`: {what}"), self.shown(key)))
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        self.optional(key)
    }

    /// An integer, as a number or as text.
    fn integer(&self, key: &str) -> Option<usize> {
        match self.fields.get(key)? {
            Value::Number(number) => number.as_u64().map(|number| number as usize),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn index(&self, key: &str, index: usize, count: usize) -> Result<usize> {
        if index < count {
            return Ok(index);
        }
        Err(self.wrong(&format!("`{key}` below the {count} choices"), index))
    }

    fn responses(&self) -> Result<Option<Vec<Value>>> {
        self.optional("filtered_resps")
    }

    /// What a model was asked, as far as the line has it.
    fn asked(&self) -> Result<Asked> {
        let arguments: Map<String, Value> = self.optional("arguments")?.unwrap_or_default();
        let pair =
            |pair: &Value| (pair["arg_0"].as_str().unwrap_or("").into(), pair["arg_1"].clone());
        let arguments = arguments.values().map(pair).collect();
        Ok(Asked { doc: self.optional("doc")?.unwrap_or_default(), arguments, cut: 0 })
    }

    /// Log-likelihoods and greediness, as numbers or (as lm-evaluation-harness has it) as text.
    fn scores(
        &self,
        responses: &[Value],
        characters: &[usize],
        tokens: &[usize],
    ) -> Result<Vec<ChoiceScore>> {
        if responses.len() != characters.len() || responses.len() != tokens.len() {
            let expected = format!("{} responses", characters.len().max(tokens.len()));
            return Err(self.wrong(&expected, responses.len()));
        }
        let expected = "`filtered_resps` of pairs of a log-likelihood and whether it is greedy";
        let score = |index: usize, response: &Value| -> Option<ChoiceScore> {
            let log_likelihood = match response.get(0)? {
                Value::String(text) => text.parse().ok()?,
                value => value.as_f64()?,
            };
            let greedy = match response.get(1)? {
                Value::String(text) => text.eq_ignore_ascii_case("true"),
                value => value.as_bool()?,
            };
            Some(ChoiceScore {
                log_likelihood,
                tokens: tokens[index],
                characters: characters[index],
                greedy,
            })
            .filter(|score| !score.log_likelihood.is_nan())
        };
        let mut found = Vec::new();
        for (index, response) in responses.iter().enumerate() {
            found.push(score(index, response).ok_or_else(|| self.wrong(expected, response))?);
        }
        Ok(found)
    }
}
