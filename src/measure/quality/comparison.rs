//! A child's answers beside its parent's, item by item, and the share of the parent's quality that the child keeps.

use std::collections::BTreeMap;

use serde::Serialize;

use super::outcome::{Outcome, TaskOutcome};
use super::statistics::{Bootstrap, Interval, mean_and_error};
use crate::error::{Error, Result};

/// Accuracy of a parent and its child over the same items.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    /// The parent's accuracy.
    pub parent: f64,
    /// Its standard error.
    pub parent_stderr: f64,
    /// The child's accuracy.
    pub child: f64,
    /// Its standard error.
    pub child_stderr: f64,
    /// Child minus parent.
    pub difference: f64,
    /// The difference's 95 % interval, from the bootstrap over items; none for few items.
    pub interval: Option<Interval>,
    /// Items that only the parent has right.
    pub lost: usize,
    /// Items that only the child has right.
    pub gained: usize,
}

/// A task's comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskComparison {
    /// The task's name.
    pub task: String,
    /// Items that both answered.
    pub n: usize,
    /// Items that only one of them answered, left out here.
    pub unpaired: usize,
    /// Examples in front of each question.
    pub shots: usize,
    /// Accuracy of guessing.
    pub chance: f64,
    /// By log-likelihood, or by the text generated.
    pub acc: Paired,
    /// By log-likelihood per character, where both have it.
    pub acc_norm: Option<Paired>,
}

/// The share of its parent's quality that a child keeps: the mean over tasks of (child - chance) / (parent - chance), of
/// accuracy. Tasks where the parent is not more than two standard errors above chance say nothing and are left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The mean.
    pub value: f64,
    /// Its 95 % interval, from the bootstrap over the items of each task, the tasks being given; none for few items.
    pub interval: Option<Interval>,
    /// The tasks of the mean.
    pub tasks: Vec<String>,
}

/// All tasks of two models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TasksComparison {
    /// The tasks that both have, in the parent's order.
    pub tasks: Vec<TaskComparison>,
    /// The share of the parent's quality; none where no task tells.
    pub share: Option<Share>,
    /// The tasks where the parent is within two standard errors of chance, or below it.
    pub at_chance: Vec<String>,
    /// Tasks that only one of them has, left out here.
    pub unpaired: Vec<String>,
}

/// Compares a child with its parent. Tasks are paired by name and number of shots, items by their place. A task that the
/// child answered with other numbers of shots only is an error.
pub fn compare_tasks(
    parent: &[TaskOutcome],
    child: &[TaskOutcome],
    bootstrap: Bootstrap,
) -> Result<TasksComparison> {
    let find = |wanted: &TaskOutcome| {
        let mut named = child.iter().filter(|task| task.task == wanted.task);
        let same = named.clone().find(|task| task.shots == wanted.shots);
        same.or_else(|| named.next())
    };
    let (mut tasks, mut unpaired, mut at_chance, mut telling) = (vec![], vec![], vec![], vec![]);
    for before in parent {
        let Some(after) = find(before) else {
            unpaired.push(before.task.clone());
            continue;
        };
        let pairs = pair(before, after)?;
        let paired = paired(&pairs, before, bootstrap);
        // One item, whose error is not known, says nothing either.
        let above = paired.acc.parent - before.chance > 2.0 * paired.acc.parent_stderr;
        if !above {
            at_chance.push(before.task.clone());
        } else {
            let correct = |(a, b): &(&Outcome, &Outcome)| [a.correct, b.correct].map(f64::from);
            telling.push(Telling {
                name: before.task.clone(),
                chance: before.chance,
                correct: pairs.iter().map(correct).collect(),
            });
        }
        tasks.push(TaskComparison {
            unpaired: before.outcomes.len() + after.outcomes.len() - 2 * pairs.len(),
            ..paired
        });
    }
    let known = |name: &str| parent.iter().any(|task| task.task == name);
    let others = child.iter().filter(|task| !known(&task.task));
    unpaired.extend(others.map(|task| task.task.clone()));
    Ok(TasksComparison { tasks, share: share(&telling, bootstrap), at_chance, unpaired })
}

/// The items that both answered, in the parent's order.
fn pair<'a>(
    parent: &'a TaskOutcome,
    child: &'a TaskOutcome,
) -> Result<Vec<(&'a Outcome, &'a Outcome)>> {
    let differs = |what: &str, expected: String, found: String| Error::Argument {
        argument: format!("task {}", parent.task),
        expected: format!("{what} {expected} as in the parent's outcome"),
        found,
    };
    if parent.shots != child.shots {
        let (before, after) = (parent.shots.to_string(), child.shots.to_string());
        return Err(differs("shots:", before, after));
    }
    let by_item: BTreeMap<usize, &Outcome> = child.outcomes.iter().map(|o| (o.item, o)).collect();
    let mut pairs = Vec::new();
    for before in &parent.outcomes {
        let Some(after) = by_item.get(&before.item) else {
            continue;
        };
        if before.target != after.target {
            let what = format!("item {} with the target", before.item);
            let (want, have) = (format!("{:?}", before.target), format!("{:?}", after.target));
            return Err(differs(&what, want, have));
        }
        pairs.push((before, *after));
    }
    if pairs.is_empty() {
        let found = format!("none of {} in common", child.outcomes.len());
        let expected = format!("{} items", parent.outcomes.len());
        return Err(differs("some of", expected, found));
    }
    Ok(pairs)
}

fn paired(
    pairs: &[(&Outcome, &Outcome)],
    task: &TaskOutcome,
    bootstrap: Bootstrap,
) -> TaskComparison {
    let correct: Vec<_> = pairs.iter().map(|(a, b)| (a.correct, b.correct)).collect();
    let norm: Option<Vec<_>> =
        pairs.iter().map(|(a, b)| Some((a.correct_norm?, b.correct_norm?))).collect();
    TaskComparison {
        task: task.task.clone(),
        n: pairs.len(),
        unpaired: 0,
        shots: task.shots,
        chance: task.chance,
        acc: accuracy(&correct, bootstrap),
        acc_norm: norm.map(|correct| accuracy(&correct, bootstrap)),
    }
}

fn accuracy(correct: &[(bool, bool)], bootstrap: Bootstrap) -> Paired {
    let values = |of: fn(&(bool, bool)) -> f64| correct.iter().map(of).collect::<Vec<f64>>();
    let (parent, parent_stderr) = mean_and_error(&values(|pair| f64::from(pair.0)));
    let (child, child_stderr) = mean_and_error(&values(|pair| f64::from(pair.1)));
    let differences = values(|pair| f64::from(pair.1) - f64::from(pair.0));
    let count = |change: f64| differences.iter().filter(|d| **d == change).count();
    Paired {
        parent,
        parent_stderr,
        child,
        child_stderr,
        difference: child - parent,
        interval: bootstrap.mean(&differences),
        lost: count(-1.0),
        gained: count(1.0),
    }
}

/// A task that tells: its chance, and for each item whether the parent and the child have it right.
struct Telling {
    name: String,
    chance: f64,
    correct: Vec<[f64; 2]>,
}

fn share(tasks: &[Telling], bootstrap: Bootstrap) -> Option<Share> {
    let whole: Vec<Vec<usize>> =
        tasks.iter().map(|task| (0..task.correct.len()).collect()).collect();
    let sizes: Vec<usize> = whole.iter().map(Vec::len).collect();
    Some(Share {
        value: share_of(tasks, &whole)?,
        interval: bootstrap.interval(&sizes, |drawn| share_of(tasks, drawn)),
        tasks: tasks.iter().map(|task| task.name.clone()).collect(),
    })
}

/// The share over these items of each task; none where a parent is at chance exactly, or without tasks.
fn share_of(tasks: &[Telling], drawn: &[Vec<usize>]) -> Option<f64> {
    let mut sum = 0.0;
    for (task, drawn) in tasks.iter().zip(drawn) {
        let mean = |whose: usize| {
            let right: f64 = drawn.iter().map(|index| task.correct[*index][whose]).sum();
            right / drawn.len() as f64 - task.chance
        };
        let (parent, child) = (mean(0), mean(1));
        if parent == 0.0 {
            return None;
        }
        sum += child / parent;
    }
    (!tasks.is_empty()).then_some(sum / tasks.len() as f64)
}
