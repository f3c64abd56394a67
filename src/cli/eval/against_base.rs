//! `lopper eval MODEL --base PARENT`: llama-perplexity's block of figures, without a file of logits; answers in pairs.

use std::time::Instant;

use serde_json::{Value, json};

use super::compare::task_table;
use super::pair::{Pair, Text, size};
use super::so_far;
use super::tasks::{Answering, json_of};
use crate::cli::Global;
use crate::cli::output::Output;
use crate::cli::session::{compute, open_device, open_language_model, report_device};
use crate::error::Result;
use crate::kernels::kv::CacheType;
use crate::measure::quality::comparison::compare_tasks;
use crate::measure::quality::statistics::{Bootstrap, with_error};
use crate::measure::quality::summary::{TextComparison, summary};
use crate::measure::{DeltaP, KlFigures, PerplexityChange};
use crate::model::{Weights, check_cache};

pub(super) fn run(
    global: &Global,
    (model, base, cache): (&str, &str, Option<&'static CacheType>),
    text: Option<&Text<'_>>,
    answering: Answering<'_>,
    output: &Output,
) -> Result<()> {
    let parent = open_language_model("--base", base, output)?;
    let child = open_language_model("MODEL", model, output)?;
    let pair = match text {
        Some(text) => Some((text, Pair::new(&parent, &child, text, output)?)),
        None => None,
    };
    let device = open_device(global, output)?;
    let own = compute(global, &device)?.with_cache(cache);
    check_cache(child.config(), own)?;
    let start = Instant::now();
    output.begin(json!({"schema": 1, "model": model, "base": base}), so_far);
    let measured = match &pair {
        Some((text, pair)) => Some(pair.measure(global, &device, text, cache, output)?),
        None => None,
    };
    if let (Some((found, time)), Some((text, pair))) = (&measured, &pair) {
        let (seconds, used) = (time.as_secs_f64(), pair.tokens(text));
        let own = json!({
            "text": text.source,
            "perplexity": found.child.perplexity, "bits_per_byte": found.child.bits_per_byte,
            "base_perplexity": found.parent.perplexity, "base_bits_per_byte": found.parent.bits_per_byte,
            "perplexity_change": found.change, "kl": found.kl, "delta_p": found.delta_p, "impossible": found.impossible,
            "tokens_per_second": used as f64 / seconds, "seconds": seconds,
        });
        output.add(|json| extend(json, own))?;
    }
    let bootstrap = Bootstrap::seeded(global.seed.unwrap_or(0));
    let tasks = if answering.tasks.is_empty() {
        None
    } else {
        let answers = |side, cache| answering.answers(global, &device, side, cache, output);
        let before = answers(&parent, None)?;
        output.add(|json| json["base_tasks"] = json_of(&before))?;
        let after = answers(&child, cache)?;
        answering.files.write(global, model, &after)?;
        Some((compare_tasks(&before, &after, bootstrap)?, before, after))
    };
    let compared = tasks.as_ref().map(|(compared, ..)| compared);
    let (before, after) = (size(base, &parent), size(model, &child));
    let found = measured.as_ref().map(|(found, _)| found);
    let words = summary(Some((&before, &after)), found, compared);
    let mut json = output.finish();
    extend(
        &mut json,
        json!({
            "size": after, "base_size": before, "summary": words,
            "bootstrap": {"resamples": bootstrap.resamples, "seed": bootstrap.seed},
            "device": device.name(), "compute": own.name(),
            "cache_type": own.cache_type().name,
        }),
    );
    output.line(format!("{model} against {base}: {words}\n"));
    if let (Some((found, time)), Some((text, pair))) = (&measured, &pair) {
        let (seconds, used) = (time.as_secs_f64(), pair.tokens(text));
        output.text(&block(found));
        output.line(format!(
            "\n{used} tokens of both in {seconds:.2} s on {}: {:.0} tokens/s",
            device.name(),
            used as f64 / seconds
        ));
    }
    if let Some((compared, before, after)) = &tasks {
        json["tasks"] = json_of(after);
        json["base_tasks"] = json_of(before);
        json["task_options"] = answering.arguments.json(global);
        json["task_changes"] = json!(compared.tasks);
        json["share"] = json!(compared.share);
        json["at_chance"] = json!(compared.at_chance);
        output.text(&task_table(compared));
    }
    output.json(&json)?;
    report_device(global, &device, output, start.elapsed())
}

/// Adds the fields of one object to another.
fn extend(json: &mut Value, more: Value) {
    if let (Value::Object(json), Value::Object(more)) = (json, more) {
        json.extend(more);
    }
}

/// Every figure of the text, a line each.
pub(super) fn block(found: &TextComparison) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text.push_str(&format!("{name:<28} {value}\n"));
    for (whose, figures) in [("model", &found.child), ("base", &found.parent)] {
        line(
            &format!("{whose}:"),
            figures.bits_per_byte.map_or(figures.perplexity.to_string(), |bits| {
                format!("{}, {bits}", figures.perplexity)
            }),
        );
    }
    if let Some(why) = &found.impossible {
        line("not possible:", why.clone());
    }
    if let Some(change) = &found.change {
        change_lines(change, &mut line);
    }
    if let Some(kl) = &found.kl {
        kl_lines(kl, &mut line);
    }
    if let Some(delta_p) = &found.delta_p {
        delta_lines(delta_p, &mut line);
    }
    text
}

fn change_lines(change: &PerplexityChange, line: &mut impl FnMut(&str, String)) {
    let with = |value: f64, error: f64| with_error(value, error, 6);
    if let Some(correlation) = change.correlation {
        line("correlation of ln(PPL):", format!("{:.2} %", 100.0 * correlation));
    }
    line("mean ln(PPL(Q)/PPL(base)):", with(change.ln_ratio, change.ln_ratio_stderr));
    line("mean PPL(Q)/PPL(base):", with(change.ratio, change.ratio_stderr));
    line("mean PPL(Q)-PPL(base):", with(change.difference, change.difference_stderr));
    let interval = change.percent_interval.map_or_else(
        || format!("no interval from {} windows", change.windows),
        |interval| {
            format!(
                "95 %: {:+.2} to {:+.2}, bootstrap over {} windows",
                interval.low, interval.high, change.windows
            )
        },
    );
    line("change:", format!("{:+.2} % ({interval})", change.percent));
}

fn kl_lines(kl: &KlFigures, line: &mut impl FnMut(&str, String)) {
    line("mean KLD:", format!("{} nats", with_error(kl.mean, kl.stderr, 6)));
    for (name, value) in [
        ("maximum", kl.max),
        ("99.9 %", kl.p99_9),
        ("99 %", kl.p99),
        ("95 %", kl.p95),
        ("90 %", kl.p90),
        ("median", kl.median),
        ("10 %", kl.p10),
        ("5 %", kl.p5),
        ("1 %", kl.p1),
        ("minimum", kl.min),
    ] {
        line(&format!("  {name}:"), format!("{value:.6}"));
    }
    line(
        "same top token:",
        format!("{} %", with_error(100.0 * kl.same_top, 100.0 * kl.same_top_stderr, 2)),
    );
}

fn delta_lines(delta_p: &DeltaP, line: &mut impl FnMut(&str, String)) {
    let with =
        |value: f64, error: f64| format!("{} %", with_error(100.0 * value, 100.0 * error, 3));
    line("mean Δp:", with(delta_p.mean, delta_p.stderr));
    for (name, value) in [
        ("maximum", delta_p.max),
        ("99.9 %", delta_p.p99_9),
        ("99 %", delta_p.p99),
        ("95 %", delta_p.p95),
        ("90 %", delta_p.p90),
        ("75 %", delta_p.p75),
        ("median", delta_p.median),
        ("25 %", delta_p.p25),
        ("10 %", delta_p.p10),
        ("5 %", delta_p.p5),
        ("1 %", delta_p.p1),
        ("0.1 %", delta_p.p0_1),
        ("minimum", delta_p.min),
    ] {
        line(&format!("  {name}:"), format!("{:.3} %", 100.0 * value));
    }
    line("RMS Δp:", with(delta_p.rms, delta_p.rms_stderr));
}
