//! A training as a picture and as JSON lines, beside its report.

use serde_json::json;

use crate::plot::{Axis, Line, Mark, Panel, Point, plot, smoothed};
use crate::train::Told;

/// The share of all steps over which the line of the loss is a mean, on either side.
const REACH: f64 = 0.03;

/// Loss, looks at what is held out, and the rate, over tokens, as SVG. `loss`: what the loss is of; `same`: whether that is what
/// looks measure, so that both stand in one panel.
pub(super) fn svg(told: &Told, loss: &str, same: bool) -> String {
    let steps = |value: fn(&crate::train::Record) -> f64| -> Vec<Point> {
        told.steps.iter().map(|step| (step.tokens as f64, value(step), 0.0)).collect()
    };
    let raw = steps(|step| step.loss);
    let values: Vec<f64> = raw.iter().map(|point| point.1).collect();
    let reach = (values.len() as f64 * REACH).ceil() as usize;
    let means = smoothed(&values, reach);
    let mean = raw.iter().zip(means).map(|(point, mean)| (point.0, mean, 0.0));
    let looks = told.looks.iter().map(|look| (look.tokens as f64, look.loss, 0.0));
    let line = |name: &str, mark, points| Line { name: name.into(), mark, points };
    let panel = |title: &str, up, height, lines| Panel {
        title: title.into(),
        across: "tokens".into(),
        up,
        height,
        lines,
    };
    let mut first = vec![
        line("each step", Mark::Raw, raw.clone()),
        line(&format!("mean of {}", 2 * reach + 1), Mark::Smooth, mean.collect()),
    ];
    let looks = line("held out", Mark::Measured, looks.collect());
    let mut panels = Vec::new();
    let held_out = "next tokens, nats a token";
    if same {
        first.push(looks);
        panels.push(panel(loss, Axis::Logarithmic, 360.0, first));
    } else {
        panels.push(panel(loss, Axis::Logarithmic, 320.0, first));
        let title = format!("held out: {held_out}");
        panels.push(panel(&title, Axis::Logarithmic, 260.0, vec![looks]));
    }
    let balance =
        told.steps.iter().filter_map(|step| Some((step.tokens as f64, step.balance?, 0.0)));
    let balance: Vec<Point> = balance.collect();
    if !balance.is_empty() {
        let title = "balance of experts: those of a token where all are used alike";
        let lines = vec![line("each step", Mark::Raw, balance)];
        panels.push(panel(title, Axis::Linear, 180.0, lines));
    }
    let rate = line("rate", Mark::Smooth, steps(|step| step.rate));
    panels.push(panel("learning rate", Axis::Linear, 180.0, vec![rate]));
    plot(&panels)
}

/// A line a step, and a line a look behind its step.
pub(super) fn jsonl(told: &Told) -> String {
    let mut lines = String::new();
    let mut looks = told.looks.iter().peekable();
    let mut push = |value: serde_json::Value| {
        lines += &value.to_string();
        lines.push('\n');
    };
    let look = |look: &crate::train::Look| {
        let mut line = json!({"step": look.step, "tokens": look.tokens, "held_out": look.loss});
        if let Some(accuracy) = look.accuracy {
            line["accuracy"] = json!(accuracy);
        }
        line
    };
    for step in &told.steps {
        while let Some(before) = looks.next_if(|look| look.step < step.step) {
            push(look(before));
        }
        push(json!(step));
    }
    looks.for_each(|last| push(look(last)));
    lines
}
