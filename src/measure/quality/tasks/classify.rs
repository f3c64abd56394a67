//! Questions answered by a head that scores labels: each is read once, as a whole, and its answer is the label with the highest score.

use super::encode::{arguments, asked};
use super::{Event, Options, Setup};
use crate::data::training::{Reading, label_places};
use crate::data::{Item, Task, unnamed_label};
use crate::error::{Error, Result};
use crate::measure::quality::outcome::{Asked, ChoiceScore, Form, Outcome, TaskOutcome};
use crate::model::Readout;

/// A task's outcome. Every choice of a question is one of the head's labels, in whatever order; the others of these are no answer to it,
/// and have no part of the probability. A question that is longer than the context loses a part, as in training ([`Reading`]).
pub(super) fn evaluate(
    setup: &Setup<'_>,
    task: &Task,
    readout: &Readout,
    options: &Options,
    tell: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<TaskOutcome> {
    let model = setup.models.base();
    if options.shots > 0 || setup.models.models().count() > 1 {
        return Err(Error::Argument {
            argument: "--shots, --ensemble, --expert".into(),
            expected: "none, for a model whose head scores labels".into(),
            found: "one of these".into(),
        });
    }
    let (items, labels) = (asked(task, options), &readout.labels);
    let places = items.iter().map(|item| places(task, item, labels));
    let places = places.collect::<Result<Vec<_>>>()?;
    let unnamed = labels.iter().enumerate().all(|(place, name)| *name == unnamed_label(place));
    if unnamed {
        tell(Event::Warning(format!(
            "{}: the head's labels have no names; they are taken for the data's own numbers",
            task.name
        )))?;
    }
    let context = model.config().max_positions;
    let reading = Reading { tokenizer: setup.tokenizer, pooling: readout.pooling, most: context };
    let read = items.iter().map(|item| reading.whole(&item.text()));
    let (texts, cut): (Vec<_>, Vec<_>) = read.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    if let Some(longest) = cut.iter().max().filter(|most| **most > 0) {
        let count = cut.iter().filter(|cut| **cut > 0).count();
        tell(Event::Warning(format!(
            "{}: {count} questions are longer than the context of {context} tokens and lose their {}, {longest} tokens at most",
            task.name,
            if readout.pooling.sees_all() { "end" } else { "beginning" }
        )))?;
    }
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    tell(Event::Progress(&task.name, 0, items.len()))?;
    let scores = model.scores(setup.pass, &texts, &mut |_, _| {})?;
    let rows = scores.chunks_exact(labels.len()).zip(items).zip(&places).enumerate();
    let outcomes = rows.map(|(index, ((scores, item), places))| {
        let own: Vec<f64> = places.iter().map(|place| f64::from(scores[*place])).collect();
        let asked = Item { front: String::new(), query: item.text(), ..item.clone() };
        let (doc, arguments) = (item.doc.clone(), arguments(task, &asked, ""));
        let asked = Asked { doc, arguments, cut: cut[index] };
        Outcome { asked, ..outcome(index, item, &own) }
    });
    let chances: f64 = items.iter().map(|item| 1.0 / item.choices.len() as f64).sum();
    let all = |item: &Item| item.choices.len() == labels.len();
    Ok(TaskOutcome {
        task: task.name.clone(),
        form: Form::Classification,
        shots: 0,
        chance: chances / items.len() as f64,
        labels: labels_of(items).filter(|_| items.iter().all(all)).unwrap_or_default(),
        outcomes: outcomes.collect(),
    })
}

/// The choices of all questions, if they are the same ones in one order.
fn labels_of(items: &[Item]) -> Option<Vec<String>> {
    let first = items.first()?;
    let same = items.iter().all(|item| item.choices == first.choices);
    same.then(|| first.choices.iter().map(|choice| choice.text.clone()).collect())
}

/// The places of a question's choices among the labels.
fn places(task: &Task, item: &Item, labels: &[String]) -> Result<Vec<usize>> {
    label_places(item, labels).map_err(|choice| Error::Argument {
        argument: format!("task `{}`", task.name),
        expected: format!("choices that the model's head scores: {}", labels.join(", ")),
        found: format!("`{choice}`"),
    })
}

/// The outcome of an item whose choices have these scores.
fn outcome(index: usize, item: &Item, scores: &[f64]) -> Outcome {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = most + scores.iter().map(|score| (score - most).exp()).sum::<f64>().ln();
    let pick = scores.iter().position(|score| *score >= most).unwrap_or(0);
    let choices = scores.iter().zip(&item.choices).map(|(score, choice)| ChoiceScore {
        log_likelihood: score - sum,
        tokens: 1,
        characters: choice.text.chars().count(),
        greedy: *score >= most,
    });
    Outcome {
        item: index,
        answer: Some(item.answer),
        target: item.target().into(),
        pick: Some(pick),
        pick_norm: None,
        choices: choices.collect(),
        generated: None,
        correct: pick == item.answer,
        correct_norm: None,
        asked: Asked::default(),
    }
}
