//! Task scores: questions answered by log-likelihood, by greedy decoding of a last word, by generation, or by a head that scores labels.

mod classify;
mod encode;
mod figures;
mod generation;
mod orders;
mod score;
mod split;

pub use encode::encode;
pub use figures::Figures;
pub use generation::{extract, normalized};
pub use score::{Batching, Question, Request, Score, score};

use self::encode::{Prompt, arguments, asked, fit, fronts, questions};
use self::orders::Orders;
use super::outcome::{Asked, ChoiceScore, Form, Outcome, TaskOutcome};
use crate::data::shots::Selection;
use crate::data::{Item, Scoring, Task};
use crate::error::Result;
use crate::model::{Ensemble, Model, Pass};
use crate::text::Tokenizer;

/// What answers: a model, or several as one.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// Their weights.
    pub models: &'a Ensemble<'a>,
    /// Where and in what they run.
    pub pass: &'a Pass<'a>,
    /// Their vocabulary.
    pub tokenizer: &'a Tokenizer,
    /// A sentence encoder and its vocabulary, to find examples that are like a question; without one the models' own states do.
    pub encoder: Option<(&'a Model, &'a Tokenizer)>,
}

/// How a task is asked.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Examples in front of each question.
    pub shots: usize,
    /// How they are chosen.
    pub selection: Selection,
    /// Of [`Selection::Random`].
    pub seed: u64,
    /// The first so many questions only.
    pub limit: Option<usize>,
    /// Whether a question begins with BOS though the vocabulary does not ask for it.
    pub add_bos: bool,
    /// How passes are put together; no answer depends on it.
    pub batching: Batching,
}

/// Progress events of an evaluation.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A step, how much of it is done, and all of it.
    Progress(&'a str, usize, usize),
    /// Something that the user should know.
    Warning(String),
}

/// A task's outcome. `tell` may stop the rest by an error. No score depends on how many or which questions are asked
/// beside a question, beyond the rounding of a device whose kernels differ by size.
pub fn evaluate(
    setup: &Setup<'_>,
    task: &Task,
    options: &Options,
    tell: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<TaskOutcome> {
    match &setup.models.base().config().readout {
        Some(readout) if readout.labels.len() > 1 => {
            return classify::evaluate(setup, task, readout, options, tell);
        }
        _ => setup.models.models().try_for_each(|model| model.config().foretells("a task"))?,
    }
    let orders = Orders::new(setup, task, options, tell)?;
    let fronts = fronts(task, &orders, options)?;
    let items = asked(task, options);
    let outcomes = match &task.scoring {
        Scoring::Generated(how) => generation::answers(setup, task, how, &fronts, options, tell)?,
        scoring => {
            let mut questions = questions(setup.tokenizer, task, &fronts, options.add_bos)?;
            let context = setup.models.context();
            // After the last token nothing is scored: the model does not take it in.
            let prompts = questions.iter_mut().enumerate().flat_map(|(question, asked)| {
                asked.requests.iter_mut().map(move |request| Prompt {
                    question,
                    behind: request.continuation.len() - 1,
                    tokens: &mut request.context,
                })
            });
            let (cut, warning) = fit(task, options, context, prompts)?;
            if let Some(warning) = warning {
                tell(Event::Warning(warning))?;
            }
            let mut progress = |done, total| tell(Event::Progress(&task.name, done, total));
            let scores =
                score(setup.models, setup.pass, &questions, options.batching, &mut progress)?;
            let chosen = *scoring != Scoring::LastWord;
            let rows = items.iter().zip(&questions).zip(&scores).enumerate();
            rows.map(|(index, ((item, question), scores))| {
                let (doc, arguments) = (item.doc.clone(), arguments(task, item, &fronts[index]));
                let asked = Asked { doc, arguments, cut: cut[index] };
                Outcome { asked, ..outcome(index, item, question, scores, chosen) }
            })
            .collect()
        }
    };
    let chances = items.iter().map(|item| 1.0 / item.choices.len() as f64);
    let (form, chance, labels) = match &task.scoring {
        Scoring::Choices => (Form::MultipleChoice, chances.sum(), Vec::new()),
        Scoring::Labels(labels) => (Form::Classification, chances.sum(), labels.clone()),
        Scoring::LastWord => (Form::Cloze, 0.0, Vec::new()),
        Scoring::Generated(_) => (Form::Generation, 0.0, Vec::new()),
    };
    let chance: f64 = chance;
    Ok(TaskOutcome {
        task: task.name.clone(),
        form,
        shots: options.shots,
        chance: chance / items.len() as f64,
        labels,
        outcomes,
    })
}

/// The outcome of an item. `chosen`: it has choices, as opposed to a target that greedy decoding must give.
fn outcome(
    index: usize,
    item: &Item,
    question: &Question,
    scores: &[Score],
    chosen: bool,
) -> Outcome {
    let rows = scores.iter().zip(&question.requests).zip(&item.choices);
    let choices: Vec<ChoiceScore> = rows
        .map(|((score, request), choice)| ChoiceScore {
            log_likelihood: score.log_likelihood,
            tokens: request.continuation.len(),
            characters: choice.text.chars().count(),
            greedy: score.greedy,
        })
        .collect();
    let best = |value: fn(&ChoiceScore) -> f64| {
        let mut best = 0;
        for (place, choice) in choices.iter().enumerate() {
            if value(choice) > value(&choices[best]) {
                best = place;
            }
        }
        chosen.then_some(best)
    };
    let pick = best(|choice| choice.log_likelihood);
    let pick_norm = best(|choice| choice.log_likelihood / choice.characters.max(1) as f64);
    Outcome {
        item: index,
        answer: chosen.then_some(item.answer),
        target: item.target().into(),
        pick,
        pick_norm,
        generated: None,
        correct: match pick {
            Some(pick) => pick == item.answer,
            None => choices[0].greedy,
        },
        correct_norm: pick_norm.map(|pick| pick == item.answer),
        choices,
        asked: Asked::default(),
    }
}
