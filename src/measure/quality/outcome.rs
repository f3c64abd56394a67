//! Outcomes of a task's items: made by scoring, read by reports, comparisons and other programs' predictions.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How a task finds its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// The choice that the model finds likeliest after the question.
    MultipleChoice,
    /// Multiple choice with the same labels for every item: accuracy, macro-F1 and a confusion matrix.
    Classification,
    /// The last word of a passage: right if greedy decoding gives it (LAMBADA's form, Paperno et al. 2016).
    Cloze,
    /// A generated text that has to be the target.
    Generation,
}

/// A continuation of an item's prompt, as the model sees it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScore {
    /// Natural log of its probability, summed over its tokens in f64.
    pub log_likelihood: f64,
    /// Tokens that were summed over.
    pub tokens: usize,
    /// Characters of the choice without the space before it: what lm-evaluation-harness divides by for `acc_norm`.
    pub characters: usize,
    /// Whether each of its tokens is the likeliest at its place.
    pub greedy: bool,
}

/// The outcome of one item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The item's place in its task, from 0; what pairs two models' outcomes.
    pub item: usize,
    /// The right choice, where there are choices.
    pub answer: Option<usize>,
    /// The text that is right.
    pub target: String,
    /// The choice taken, by log-likelihood; the first of equals.
    pub pick: Option<usize>,
    /// The choice taken by log-likelihood per character.
    pub pick_norm: Option<usize>,
    /// One for each choice; for a cloze, the target alone.
    pub choices: Vec<ChoiceScore>,
    /// The text that was generated, if any was.
    pub generated: Option<String>,
    /// Whether the answer is right (`acc`, `exact_match`).
    pub correct: bool,
    /// Whether it is right by `pick_norm` (`acc_norm`).
    pub correct_norm: Option<bool>,
    /// What the model was asked.
    #[serde(skip)]
    pub asked: Asked,
}

/// What a model was asked: what other programs look for in a file of samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Asked {
    /// The record of the item's file.
    pub doc: Map<String, Value>,
    /// For each request its context, and what follows that: the text that is scored, or how a text is generated.
    pub arguments: Vec<(Arc<str>, Value)>,
    /// Most tokens that one of the contexts lost at its beginning, to fit the model's context.
    pub cut: usize,
}

/// The outcomes of a task, in the order of its items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskOutcome {
    /// The task's name: the key of every report.
    pub task: String,
    /// How its answers are found.
    pub form: Form,
    /// Examples in front of each question.
    pub shots: usize,
    /// Accuracy of guessing: the mean of 1 / choices over the items; 0 where nothing can be guessed.
    pub chance: f64,
    /// The labels of a classification.
    pub labels: Vec<String>,
    /// One for each item that was evaluated.
    pub outcomes: Vec<Outcome>,
}
