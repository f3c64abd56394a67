//! What the server did so far, as Prometheus reads it (text exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Of responses, by path and status.
    responses: BTreeMap<(&'static str, u16), u64>,
    models: BTreeMap<String, OfModel>,
}

/// Of a model.
#[derive(Debug, Default)]
pub(super) struct OfModel {
    /// Sequences that ended, by why.
    ends: BTreeMap<&'static str, u64>,
    pub(super) prompt_tokens: u64,
    pub(super) reused_tokens: u64,
    pub(super) new_tokens: u64,
    pub(super) waiting: u64,
    pub(super) running: u64,
    /// From a request's arrival until its sequence entered, its first token and its end.
    until: [Seconds; 3],
}

/// What time passes until.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Entered,
    FirstToken,
    End,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seconds {
    sum: f64,
    count: u64,
}

impl OfModel {
    pub(super) fn passed(&mut self, until: Until, time: Duration) {
        let seconds = &mut self.until[until as usize];
        seconds.sum += time.as_secs_f64();
        seconds.count += 1;
    }

    pub(super) fn ended(&mut self, why: &'static str) {
        *self.ends.entry(why).or_default() += 1;
    }
}

impl Metrics {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn responded(&self, path: &'static str, status: u16) {
        *self.counts().responses.entry((path, status)).or_default() += 1;
    }

    pub(super) fn of_model(&self, name: &str, change: impl FnOnce(&mut OfModel)) {
        let mut counts = self.counts();
        match counts.models.get_mut(name) {
            Some(of_model) => change(of_model),
            None => change(counts.models.entry(name.into()).or_default()),
        }
    }

    pub(super) fn text(&self) -> String {
        let counts = self.counts();
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, rows: &[(String, f64)]| {
            let _ = writeln!(text, "# HELP lopper_{name} {help}\n# TYPE lopper_{name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(text, "lopper_{name}{labels} {value}");
            }
        };
        let responses: Vec<(String, f64)> = counts
            .responses
            .iter()
            .map(|((path, status), count)| {
                (format!("{{path=\"{path}\",status=\"{status}\"}}"), *count as f64)
            })
            .collect();
        metric("responses_total", "counter", "Responses by path and status.", &responses);
        let label = |name: &str, more: &str| format!("{{model=\"{}\"{more}}}", escaped(name));
        let ends: Vec<(String, f64)> = counts
            .models
            .iter()
            .flat_map(|(name, model)| {
                let row = move |(why, count): (&&str, &u64)| {
                    (label(name, &format!(",end=\"{why}\"")), *count as f64)
                };
                model.ends.iter().map(row)
            })
            .collect();
        metric("sequences_total", "counter", "Sequences that ended, by why.", &ends);
        let each = |value: &dyn Fn(&OfModel) -> f64| -> Vec<(String, f64)> {
            counts.models.iter().map(|(name, model)| (label(name, ""), value(model))).collect()
        };
        let mut of_each = |name, kind, help, value: &dyn Fn(&OfModel) -> f64| {
            metric(name, kind, help, &each(value));
        };
        let (counter, gauge) = ("counter", "gauge");
        of_each("prompt_tokens_total", counter, "Tokens of prompts.", &|m| m.prompt_tokens as f64);
        let help = "Tokens of prompts that the cache held.";
        of_each("cached_tokens_total", counter, help, &|m| m.reused_tokens as f64);
        of_each("new_tokens_total", counter, "Tokens generated.", &|m| m.new_tokens as f64);
        of_each("waiting", gauge, "Requests in the queue.", &|m| m.waiting as f64);
        of_each("running", gauge, "Sequences that are continued.", &|m| m.running as f64);
        for (until, name, help) in [
            (Until::Entered, "queue_seconds", "From a request to the end of its prompt's reading."),
            (Until::FirstToken, "first_token_seconds", "From a request to its first token."),
            (Until::End, "sequence_seconds", "From a request to its last token."),
        ] {
            let seconds = |model: &OfModel| model.until[until as usize];
            let _ = writeln!(text, "# HELP lopper_{name} {help}\n# TYPE lopper_{name} summary");
            for (model, of_model) in &counts.models {
                let (Seconds { sum, count }, label) = (seconds(of_model), label(model, ""));
                let _ = writeln!(text, "lopper_{name}_sum{label} {sum}");
                let _ = writeln!(text, "lopper_{name}_count{label} {count}");
            }
        }
        text
    }
}

/// A label's value.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
