//! Accuracy, macro-F1 and the other figures of a task's outcomes.

use serde::Serialize;

use crate::measure::quality::outcome::{Form, Outcome, TaskOutcome};

/// A task's figures, in the form of the command contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// How answers were found.
    pub form: Form,
    /// Share of right answers: by log-likelihood, by greedy decoding of the last word, or as generated (exact match).
    pub acc: f64,
    /// Its standard error, sqrt(acc (1 - acc) / (n - 1)), as lm-evaluation-harness has it; NaN (null in JSON) for one question.
    pub acc_stderr: f64,
    /// Accuracy with choices compared by log-likelihood per character.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<f64>,
    /// Its standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm_stderr: Option<f64>,
    /// Questions.
    pub n: usize,
    /// Those that lost their beginning, to fit the model's context.
    #[serde(skip_serializing_if = "is_zero")]
    pub cut: usize,
    /// Examples in front of each.
    pub shots: usize,
    /// Accuracy of guessing.
    pub chance: f64,
    /// Of a classification: the mean over labels, those that are neither right nor picked anywhere left out, of
    /// 2 true positives / (2 true positives + false positives + false negatives).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
    /// Of a classification, the order of `confusion`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Of a classification: a row for each right label, a column for each picked one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<usize>>,
    /// Of a cloze: exp of the mean negative log-likelihood of a last word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
}

impl Figures {
    /// The figures of an outcome with at least one item.
    pub fn of(outcome: &TaskOutcome) -> Self {
        let items = &outcome.outcomes;
        let n = items.len();
        let acc = share(items.iter().map(|item| item.correct));
        let norm: Option<Vec<bool>> = items.iter().map(|item| item.correct_norm).collect();
        let acc_norm = norm.map(|right| share(right.into_iter()));
        let (labels, confusion) = match outcome.form {
            Form::Classification => (outcome.labels.clone(), confusion(outcome)),
            _ => (Vec::new(), Vec::new()),
        };
        let perplexity = (outcome.form == Form::Cloze).then(|| {
            let target =
                |item: &Outcome| item.choices.iter().map(|c| c.log_likelihood).sum::<f64>();
            (-items.iter().map(target).sum::<f64>() / n as f64).exp()
        });
        Self {
            form: outcome.form,
            acc,
            acc_stderr: standard_error(acc, n),
            acc_norm,
            acc_norm_stderr: acc_norm.map(|acc| standard_error(acc, n)),
            n,
            cut: items.iter().filter(|item| item.asked.cut > 0).count(),
            shots: outcome.shots,
            chance: outcome.chance,
            macro_f1: (!labels.is_empty()).then(|| macro_f1(&confusion)),
            labels,
            confusion,
            perplexity,
        }
    }
}

fn share(right: impl ExactSizeIterator<Item = bool>) -> f64 {
    let n = right.len();
    right.filter(|right| *right).count() as f64 / n as f64
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One question says nothing of it: NaN.
fn standard_error(share: f64, n: usize) -> f64 {
    match n {
        0 | 1 => f64::NAN,
        _ => (share * (1.0 - share) / (n - 1) as f64).sqrt(),
    }
}

fn confusion(outcome: &TaskOutcome) -> Vec<Vec<usize>> {
    let count = outcome.labels.len();
    let mut table = vec![vec![0; count]; count];
    for item in &outcome.outcomes {
        if let (Some(answer), Some(pick)) = (item.answer, item.pick) {
            table[answer][pick] += 1;
        }
    }
    table
}

fn macro_f1(confusion: &[Vec<usize>]) -> f64 {
    let scores: Vec<f64> = (0..confusion.len())
        .filter_map(|label| {
            let right = confusion[label][label];
            let given: usize = confusion[label].iter().sum();
            let picked: usize = confusion.iter().map(|row| row[label]).sum();
            (given + picked > 0).then(|| 2.0 * right as f64 / (given + picked) as f64)
        })
        .collect();
    scores.iter().sum::<f64>() / scores.len().max(1) as f64
}
