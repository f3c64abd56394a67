//! `lopper eval --preferences` and `--candidates`: how often a reward model prefers what is preferred, and what the best of several
//! texts by its scores is worth by another judge's.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};

use super::Arguments;
use crate::cli::Global;
use crate::cli::output::{Output, table};
use crate::cli::rewards::Rewards;
use crate::cli::session::{compute, open_device, report_device};
use crate::data::training::{Candidates, candidates, preferences};
use crate::error::{Error, Result};
use crate::measure::quality::rewards::{Agreement, agreement, best_of};
use crate::model::Pass;

#[derive(Debug, clap::Args)]
pub(super) struct PreferenceArguments {
    /// How often a reward model gives the preferred text the higher score: JSON lines with chosen and rejected (and prompt), or a
    /// task, whose right answers are preferred. With --ensemble, by the mean of the models' scores
    #[arg(long, value_name = "FILE or TASK", conflicts_with_all = ["ppl", "task", "base", "lora", "expert"])]
    preferences: Option<String>,
    /// What the best of several texts by a reward model is worth: JSON lines with prompt, completions and their rewards by another
    /// judge, as generate --best-of --out writes them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ppl", "task", "base", "lora", "expert"])]
    candidates: Option<PathBuf>,
}

impl PreferenceArguments {
    pub(super) fn are_given(&self) -> bool {
        self.preferences.is_some() || self.candidates.is_some()
    }
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let further = arguments.ensemble.averaged().iter().map(String::as_str);
    let names: Vec<&str> = [arguments.model.as_str()].into_iter().chain(further).collect();
    let rewards = Rewards::open("MODEL", &names, output)?;
    let tokenizer = rewards.tokenizer()?;
    let PreferenceArguments { preferences: pairs, candidates: lists } = &arguments.preferences;
    let reading = rewards.reading(&tokenizer)?;
    let pairs = pairs.as_ref().map(|name| preferences(name, reading)).transpose()?;
    let lists = lists.as_ref().map(|path| candidates(path, reading)).transpose()?;
    let device = open_device(global, output)?;
    let pass = Pass { device: &device, compute: compute(global, &device)? };
    let judges = rewards.load(global, &pass, output)?;
    let start = Instant::now();
    let mut json = json!({
        "schema": 1, "model": arguments.model, "averaged": arguments.ensemble.averaged(), "device": device.name(),
        "compute": pass.compute.name(),
    });
    if let Some(pairs) = pairs {
        let texts = pairs.iter().flat_map(|pair| [&pair.chosen[..], &pair.rejected[..]]);
        let scores = judges.scores(&pass, &texts.collect::<Vec<_>>(), output)?;
        let pairs: Vec<[f64; 2]> = scores.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
        let found = agreement(&pairs);
        let Agreement { accuracy, stderr, loss, margin, n } = found;
        json["preferences"] = json!(found);
        output.line(format!(
            "{}: {:.2} ± {:.2} % of {n} preferences, loss {loss:.4} nats, mean margin {margin:.3}",
            names.join(" + "),
            100.0 * accuracy,
            100.0 * stderr,
        ));
    }
    if let Some(lists) = lists {
        json["best_of"] = of_candidates(&judges, &pass, &lists, output)?;
    }
    json["seconds"] = json!(start.elapsed().as_secs_f64());
    output.json(&json)?;
    report_device(global, &device, output, start.elapsed())
}

/// The table of the best of so many, printed and as JSON.
fn of_candidates(
    judges: &crate::cli::rewards::Judges,
    pass: &Pass<'_>,
    lists: &[Candidates],
    output: &Output,
) -> Result<Value> {
    let texts: Vec<&[u32]> = lists.iter().flat_map(|list| &list.texts).map(Vec::as_slice).collect();
    let scores = judges.scores(pass, &texts, output)?;
    let mut left = &scores[..];
    let mut judged = Vec::with_capacity(lists.len());
    for list in lists {
        let (own, rest) = left.split_at(list.texts.len());
        judged.push((own, &list.rewards[..]));
        left = rest;
    }
    let rows = best_of(&judged).ok_or_else(|| Error::Argument {
        argument: "--candidates".into(),
        expected: "lists of two texts or more".into(),
        found: "lists of one".into(),
    })?;
    let mut lines = vec![["best of", "worth", "±", "by its own scores"].map(String::from).to_vec()];
    lines.extend(rows.iter().map(|row| {
        let number = |value: f64| format!("{value:.4}");
        vec![row.n.to_string(), number(row.reward), number(row.stderr), number(row.own)]
    }));
    output.text(&table(&lines));
    Ok(json!(rows))
}
