//! Results and samples in lm-evaluation-harness's shape (0.4), so that what reads its files reads ours.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::outcome::{ChoiceScore, Form, Outcome, TaskOutcome};
use super::statistics::mean_and_error;

/// Of a cloze; the lower the better.
const PERPLEXITY: &str = "perplexity";

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
                "metric": name, "aggregation": if *name == PERPLEXITY { name } else { "mean" },
                "higher_is_better": *name != PERPLEXITY,
            })).collect::<Vec<_>>(),
        })),
        "versions": by_task(&|_| json!(1)),
        "n-shot": by_task(&|task| json!(task.shots)),
        "higher_is_better": by_task(&|task| {
            let metrics = metrics(task).into_iter();
            Value::Object(metrics.map(|name| (name.into(), (name != PERPLEXITY).into())).collect())
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
    let asked = &outcome.asked;
    let target = match (outcome.answer, asked.arguments.first()) {
        (Some(answer), _) => answer.to_string(),
        // What is scored, with its blank.
        (None, Some((_, Value::String(target)))) => target.clone(),
        _ => outcome.target.clone(),
    };
    let arguments = asked.arguments.iter().enumerate().map(|(index, (context, behind))| {
        let pair = json!({"arg_0": **context, "arg_1": behind});
        (format!("gen_args_{index}"), pair)
    });
    let prompt = asked.arguments.first().map_or("", |(context, _)| context);
    let mut line = Map::new();
    let mut add = |key: &str, value: Value| line.insert(key.into(), value);
    add("doc_id", outcome.item.into());
    add("doc", Value::Object(asked.doc.clone()));
    add("target", target.as_str().into());
    add("arguments", Value::Object(arguments.collect()));
    add("resps", nested.into());
    add("filtered_resps", responses.into());
    add("filter", "none".into());
    add("metrics", json!(metrics(task)));
    add("doc_hash", sha256(&format!("{:#}", Value::Object(asked.doc.clone()))).into());
    add("prompt_hash", sha256(prompt).into());
    add("target_hash", sha256(&target).into());
    let correct = f64::from(u8::from(outcome.correct));
    for metric in metrics(task) {
        match (metric, outcome.correct_norm, outcome.choices.first()) {
            ("acc_norm", Some(right), _) => add(metric, f64::from(u8::from(right)).into()),
            (PERPLEXITY, _, Some(word)) => add(metric, word.log_likelihood.into()),
            _ => add(metric, correct.into()),
        };
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

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
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
    if task.form == Form::Cloze && task.outcomes.iter().all(|o| !o.choices.is_empty()) {
        names.push(PERPLEXITY);
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
    let mut add = |name: &str, value: f64, error: f64| {
        let error = if error.is_nan() { "N/A".into() } else { Value::from(error) };
        found.insert(format!("{name},none"), value.into());
        found.insert(format!("{name}_stderr,none"), error);
    };
    let outcomes = || task.outcomes.iter();
    for metric in metrics(task) {
        let value = |o: &Outcome| match metric {
            "acc_norm" => f64::from(u8::from(o.correct_norm == Some(true))),
            // LAMBADA's second metric: exp of the mean negative log-likelihood of the target words.
            PERPLEXITY => o.choices.first().map_or(f64::NAN, |choice| -choice.log_likelihood),
            _ => f64::from(u8::from(o.correct)),
        };
        let (mean, error) = mean_and_error(&outcomes().map(value).collect::<Vec<_>>());
        match metric {
            PERPLEXITY => add(metric, mean.exp(), mean.exp() * error),
            _ => add(metric, mean, error),
        }
    }
    found
}
