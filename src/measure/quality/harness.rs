//! Results and samples in lm-evaluation-harness's shape (0.4), so that what reads its files reads ours.

use serde_json::{Map, Value, json};

use super::outcome::{ChoiceScore, Form, Outcome, TaskOutcome};
use super::statistics::mean_and_error;

/// Who was measured, and when.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The model as the user named it.
    pub model: String,
    /// Seconds since 1970.
    pub date: f64,
    /// The seed of everything random.
    pub seed: u64,
}

/// The results file: `results`, `configs`, `versions`, `n-shot`, `n-samples` and the rest of its keys. What Lopper does not
/// know (a task's size before a limit) is null.
pub fn results(tasks: &[TaskOutcome], origin: &Origin) -> Value {
    let by_task = |make: &dyn Fn(&TaskOutcome) -> Value| -> Value {
        let pairs = tasks.iter().map(|task| (key(tasks, task), make(task)));
        Value::Object(pairs.collect())
    };
    json!({
        "results": by_task(&|task| {
            let mut metrics = Map::new();
            metrics.insert("alias".into(), task.task.clone().into());
            metrics.insert("sample_len".into(), task.outcomes.len().into());
            metrics.extend(figures(task));
            Value::Object(metrics)
        }),
        "group_subtasks": by_task(&|_| json!([])),
        "configs": by_task(&|task| json!({
            "task": task.task, "output_type": output_type(task.form), "num_fewshot": task.shots,
            "metric_list": metrics(task).iter().map(|name| json!({
                "metric": name, "aggregation": "mean", "higher_is_better": true,
            })).collect::<Vec<_>>(),
        })),
        "versions": by_task(&|_| json!(1)),
        "n-shot": by_task(&|task| json!(task.shots)),
        "higher_is_better": by_task(&|task| {
            Value::Object(metrics(task).iter().map(|name| (name.to_string(), true.into())).collect())
        }),
        "n-samples": by_task(&|task| json!({"original": null, "effective": task.outcomes.len()})),
        "config": {"model": "lopper", "model_args": format!("pretrained={}", origin.model), "random_seed": origin.seed,
                   "fewshot_seed": origin.seed},
        "git_hash": null,
        "date": origin.date,
        "model_source": "lopper",
        "model_name": origin.model,
        "lopper_version": env!("CARGO_PKG_VERSION"),
    })
}

/// A task's key: its name, or where it was answered with several numbers of shots, the name and theirs.
fn key(tasks: &[TaskOutcome], task: &TaskOutcome) -> String {
    let named = tasks.iter().filter(|other| other.task == task.task);
    if named.count() > 1 { format!("{}_{}shot", task.task, task.shots) } else { task.task.clone() }
}

/// The samples file: one line of JSON for each item. Besides lm-evaluation-harness's own keys, whose numbers are text in
/// `resps`, it has `task` (the harness writes a file for each task) and the fields that a later comparison needs.
pub fn samples(tasks: &[TaskOutcome]) -> String {
    let mut text = String::new();
    for task in tasks {
        for outcome in &task.outcomes {
            text.push_str(&sample(task, outcome).to_string());
            text.push('\n');
        }
    }
    text
}

fn sample(task: &TaskOutcome, outcome: &Outcome) -> Value {
    let responses: Vec<Value> = match &outcome.generated {
        Some(generated) => vec![json!(generated)],
        None => outcome
            .choices
            .iter()
            .map(|choice| {
                let greedy = if choice.greedy { "True" } else { "False" };
                json!([choice.log_likelihood.to_string(), greedy])
            })
            .collect(),
    };
    let nested: Vec<Value> = responses.iter().map(|response| json!([response])).collect();
    let target = outcome.answer.map_or(outcome.target.clone(), |answer| answer.to_string());
    let mut line = Map::new();
    let mut add = |key: &str, value: Value| line.insert(key.into(), value);
    add("doc_id", outcome.item.into());
    add("target", target.into());
    add("resps", nested.into());
    add("filtered_resps", responses.into());
    add("filter", "none".into());
    add("metrics", json!(metrics(task)));
    add(metrics(task)[0], f64::from(u8::from(outcome.correct)).into());
    if let Some(correct) = outcome.correct_norm {
        add("acc_norm", f64::from(u8::from(correct)).into());
    }
    add("task", task.task.clone().into());
    add("form", json!(task.form));
    add("shots", task.shots.into());
    add("target_text", outcome.target.clone().into());
    add("pick", json!(outcome.pick));
    add("pick_norm", json!(outcome.pick_norm));
    let column =
        |of: fn(&ChoiceScore) -> usize| json!(outcome.choices.iter().map(of).collect::<Vec<_>>());
    add("characters", column(|choice| choice.characters));
    add("tokens", column(|choice| choice.tokens));
    if !task.labels.is_empty() {
        add("labels", json!(task.labels));
    }
    Value::Object(line)
}

fn output_type(form: Form) -> &'static str {
    match form {
        Form::MultipleChoice | Form::Classification => "multiple_choice",
        Form::Cloze => "loglikelihood",
        Form::Generation => "generate_until",
    }
}

/// The names of a task's metrics, the one by which an item is right or wrong first.
fn metrics(task: &TaskOutcome) -> Vec<&'static str> {
    let mut names = vec![match task.form {
        Form::Generation => "exact_match",
        _ => "acc",
    }];
    if has_norm(task) {
        names.push("acc_norm");
    }
    names
}

fn has_norm(task: &TaskOutcome) -> bool {
    !task.outcomes.is_empty() && task.outcomes.iter().all(|o| o.correct_norm.is_some())
}

/// `acc,none`, `acc_stderr,none` and so on.
fn figures(task: &TaskOutcome) -> Map<String, Value> {
    let mut found = Map::new();
    if task.outcomes.is_empty() {
        return found;
    }
    let mut add = |name: &str, values: Vec<f64>| {
        let (mean, error) = mean_and_error(&values);
        found.insert(format!("{name},none"), mean.into());
        found.insert(format!("{name}_stderr,none"), error.into());
    };
    let outcomes = || task.outcomes.iter();
    add(metrics(task)[0], outcomes().map(|o| f64::from(u8::from(o.correct))).collect());
    if has_norm(task) {
        let right = |o: &Outcome| f64::from(u8::from(o.correct_norm == Some(true)));
        add("acc_norm", outcomes().map(right).collect());
    }
    if task.form == Form::Cloze {
        // LAMBADA's second metric: exp of the mean negative log-likelihood of the target words.
        let losses: Vec<f64> = outcomes()
            .filter_map(|o| o.choices.first().map(|choice| -choice.log_likelihood))
            .collect();
        if losses.len() == task.outcomes.len() {
            let (mean, error) = mean_and_error(&losses);
            found.insert("perplexity,none".into(), mean.exp().into());
            found.insert("perplexity_stderr,none".into(), (mean.exp() * error).into());
        }
    }
    found
}
