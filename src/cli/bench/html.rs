//! A bench as one self-contained page: a roofline with every kernel under the device's own roof, bars, and the table.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::rows::{round, shown};
use crate::measure::speed::kernels::{Ceilings, Timing};

type Row = Map<String, Value>;

/// A bar: its label, its length, the text after it, and the place of the ceiling.
struct Bar {
    label: String,
    value: f64,
    text: String,
    ceiling: Option<f64>,
    series: usize,
}

/// Colours of the series, in light and in dark.
const COLOURS: &[(&str, &str)] = &[
    ("#1f66c1", "#6aa8f7"),
    ("#b8501e", "#f0945e"),
    ("#2c7d45", "#67c483"),
    ("#8a3f9c", "#cf8be0"),
    ("#9a7400", "#e0bb48"),
    ("#b3294e", "#f4799a"),
    ("#0f7c80", "#55c6ca"),
    ("#5a5f66", "#a9b0b8"),
];

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6570; --line: #d8dde3; --page: #ffffff; --field: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ecf0; --soft: #a3adb8; --line: #3a424b; --page: #14181c; --field: #1c2127; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 17px; margin: 32px 0 8px; }
p { color: var(--soft); margin: 4px 0 12px; }
svg { width: 100%; height: auto; background: var(--field); border-radius: 8px; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg .name { fill: var(--ink); }
.grid { stroke: var(--line); stroke-width: 1; } .roof { stroke: var(--ink); stroke-width: 2; fill: none; }
.bars { display: grid; grid-template-columns: minmax(96px, 36%) 1fr max-content; gap: 4px 12px; align-items: center; }
.bars .label { overflow-wrap: anywhere; font-size: 13px; text-align: right; }
.bars .figure { font-size: 12px; color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; text-align: right; }
.track { position: relative; height: 18px; padding: 2px 0; }
.fill { height: 14px; border-radius: 0 4px 4px 0; min-width: 1px; }
.mark { position: absolute; top: 0; width: 2px; height: 18px; background: var(--ink); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0; font-size: 13px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 6px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 12px; white-space: nowrap; }
th, td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  body { padding: 16px; } svg text { font-size: 21px; }
  .bars { grid-template-columns: 1fr max-content; } .bars .label { grid-column: 1 / -1; text-align: left; margin-top: 8px; }
}
";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn text<'a>(row: &'a Row, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(row: &Row, key: &str) -> Option<f64> {
    row.get(key).and_then(Value::as_f64)
}

/// A value and its spread: the spread in two digits, the value in as many places.
fn measured(row: &Row, value: &str, spread: &str) -> String {
    let value = number(row, value).unwrap_or(0.0);
    let Some(spread) = number(row, spread).filter(|spread| spread.is_finite() && *spread > 0.0)
    else {
        return round(value).to_string();
    };
    let places = (1.0 - spread.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.places$} ± {spread:.places$}")
}

/// The page of `bench kernels`.
pub(super) fn kernels(rows: &[Row], timings: &[Timing], ceilings: Ceilings) -> String {
    let mut body = format!(
        "<h2>Roofline</h2><p>Each point is a kernel on one shape; the roof is what this device was measured to reach: {} read, {} in f32. A point on the roof leaves nothing to gain by a faster kernel of the same bytes and operations.</p>",
        rate(ceilings.read.max(ceilings.copy), "B/s"),
        rate(ceilings.f32, "FLOP/s"),
    );
    let mut names: Vec<&str> = timings.iter().map(|timing| timing.kernel.as_str()).collect();
    names.dedup();
    let series = |name: &str| names.iter().position(|known| *known == name).unwrap_or(0);
    body.push_str(&legend(&names));
    body.push_str(&roofline(timings, ceilings, series));
    let bars = timings
        .iter()
        .map(|timing| Bar {
            label: format!("{} {} {}", timing.kernel, timing.variant, timing.shape),
            value: timing.percent_of_ceiling.unwrap_or(0.0),
            text: format!(
                "{} %, {} µs",
                round(timing.percent_of_ceiling.unwrap_or(0.0)),
                round(timing.us)
            ),
            ceiling: Some(100.0),
            series: series(&timing.kernel),
        })
        .collect();
    body.push_str("<h2>Share of the time that the roof allows</h2>");
    body.push_str(&bar_chart(bars));
    page("Kernels", rows, &body)
}

/// The page of `bench hardware`: bars by unit, with the data sheet's ceilings as marks.
pub(super) fn hardware(rows: &[Row]) -> String {
    let mut units: Vec<&str> = rows.iter().map(|row| text(row, "unit")).collect();
    units.sort_unstable();
    units.dedup();
    let mut body = String::new();
    for (series, unit) in units.iter().enumerate() {
        let bar = |row: &Row| Bar {
            label: text(row, "what").into(),
            value: number(row, "value").unwrap_or(0.0),
            text: measured(row, "value", "spread"),
            ceiling: number(row, "ceiling"),
            series,
        };
        let bars = rows.iter().filter(|row| text(row, "unit") == *unit).map(bar).collect();
        let _ = write!(body, "<h2>{}</h2>{}", escape(unit), bar_chart(bars));
    }
    page("Hardware", rows, &body)
}

/// The page of `bench model`: tokens per second by test.
pub(super) fn model(rows: &[Row]) -> String {
    let bar = |row: &Row| Bar {
        label: text(row, "test").into(),
        value: number(row, "avg_ts").unwrap_or(0.0),
        text: format!("{} tokens/s", measured(row, "avg_ts", "stddev_ts")),
        ceiling: None,
        series: 0,
    };
    let body = format!("<h2>Tokens per second</h2>{}", bar_chart(rows.iter().map(bar).collect()));
    page("Model", rows, &body)
}

fn page(title: &str, rows: &[Row], body: &str) -> String {
    let device = rows.first().map_or_else(String::new, |row| {
        let parts = ["model_filename", "model_type", "gpu_info", "backends", "driver"]
            .map(|key| text(row, key));
        parts.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(" · ")
    });
    let mut colours = String::new();
    for (index, (light, dark)) in COLOURS.iter().enumerate() {
        let _ = writeln!(
            colours,
            ":root {{ --s{index}: {light}; }} @media (prefers-color-scheme: dark) {{ :root {{ --s{index}: {dark}; }} }}"
        );
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"generator\" content=\"lopper\"><meta name=\"viewport\" content=\"width=device-width\"><title>Lopper: {title}</title><style>{STYLE}{colours}</style></head><body><h1>{title}</h1><p>{}</p>{body}<h2>All figures</h2>{}</body></html>\n",
        escape(&device),
        figures(rows)
    )
}

/// The page of `bench types` and `bench lut`: bars of time, a chart for each shape and number of tokens, coloured by engine.
pub(super) fn products(title: &str, rows: &[Row], label: &str, engines: &[&str]) -> String {
    let place = |row: &Row| {
        let tokens = number(row, "tokens").unwrap_or_default();
        let plural = if tokens > 1.0 { "s" } else { "" };
        format!("{}, {tokens} token{plural} at once", text(row, "shape"))
    };
    let mut charts: Vec<String> = rows.iter().map(place).collect();
    charts.dedup();
    let mut body = legend(engines);
    for chart in charts {
        let _ = write!(body, "<h2>{}</h2><p>Microseconds; less is better.</p>", escape(&chart));
        let of_chart = rows.iter().filter(|row| place(row) == chart);
        let bars = of_chart.map(|row| {
            let engine = text(row, "engine");
            let us = number(row, "us").unwrap_or_default();
            Bar {
                label: format!("{} {engine}", text(row, label)),
                value: us,
                text: format!("{} µs", round(us)),
                ceiling: None,
                series: engines.iter().position(|known| *known == engine).unwrap_or(0),
            }
        });
        body.push_str(&bar_chart(bars.collect()));
    }
    page(title, rows, &body)
}

fn legend(names: &[&str]) -> String {
    let entry = |(index, name): (usize, &&str)| {
        format!(
            "<span><i style=\"background:var(--s{})\"></i>{}</span>",
            index % COLOURS.len(),
            escape(name)
        )
    };
    format!(
        "<div class=\"legend\">{}</div>",
        names.iter().enumerate().map(entry).collect::<String>()
    )
}

fn bar_chart(bars: Vec<Bar>) -> String {
    let longest = bars
        .iter()
        .map(|bar| bar.value.max(bar.ceiling.unwrap_or(0.0)))
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut html = String::from("<div class=\"bars\">");
    for bar in bars {
        // The figure has a column of its own, so that lengths are those of the values.
        let width = |value: f64| (100.0 * value / longest).clamp(0.0, 100.0);
        let mark = bar
            .ceiling
            .map(|ceiling| {
                format!(
                    "<span class=\"mark\" title=\"ceiling {}\" style=\"left:{:.2}%\"></span>",
                    round(ceiling),
                    width(ceiling)
                )
            })
            .unwrap_or_default();
        let _ = write!(
            html,
            "<div class=\"label\">{}</div><div class=\"track\"><div class=\"fill\" style=\"width:{:.2}%;background:var(--s{})\"></div>{mark}</div><div class=\"figure\">{}</div>",
            escape(&bar.label),
            width(bar.value),
            bar.series % COLOURS.len(),
            escape(&bar.text)
        );
    }
    html.push_str("</div>");
    html
}

fn figures(rows: &[Row]) -> String {
    let hidden = ["gpu_info", "backends", "driver", "verified", "reason"];
    let keys: Vec<&String> = rows.first().map_or_else(Vec::new, |row| {
        row.keys().filter(|key| !hidden.contains(&key.as_str())).collect()
    });
    let mut html = String::from("<div class=\"scroll\"><table><tr>");
    for key in &keys {
        let counted = rows.iter().any(|row| row.get(key.as_str()).is_some_and(Value::is_number));
        let class = if counted { " class=\"number\"" } else { "" };
        let _ = write!(html, "<th{class}>{}</th>", escape(key));
    }
    for row in rows {
        html.push_str("</tr><tr>");
        for key in &keys {
            let _ = match row.get(key.as_str()) {
                Some(Value::String(text)) => write!(html, "<td>{}</td>", escape(text)),
                Some(value @ Value::Number(_)) => {
                    write!(html, "<td class=\"number\">{}</td>", shown(value))
                }
                Some(Value::Null) | None => write!(html, "<td></td>"),
                Some(other) => write!(html, "<td>{}</td>", escape(&other.to_string())),
            };
        }
    }
    html.push_str("</tr></table></div>");
    html
}

/// `1.23 TB/s`.
fn rate(value: f64, unit: &str) -> String {
    let (scale, prefix) = match value {
        v if v >= 1e12 => (1e12, "T"),
        v if v >= 1e9 => (1e9, "G"),
        v if v >= 1e6 => (1e6, "M"),
        _ => (1.0, ""),
    };
    format!("{} {prefix}{unit}", round(value / scale))
}

/// Both axes logarithmic: operations per byte, operations per second.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 150.0;
const BOTTOM: f64 = 70.0;
const MARGIN: f64 = 30.0;

impl Axes {
    fn around(points: &[(f64, f64)]) -> Self {
        let range = |of: fn(&(f64, f64)) -> f64| {
            let logs = points.iter().map(|point| of(point).log10());
            let (low, high) =
                logs.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
            (low.floor(), (high + 0.1).ceil().max(low.floor() + 1.0))
        };
        Self { x: range(|point| point.0), y: range(|point| point.1) }
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let part = |value: f64, (low, high): (f64, f64)| (value.log10() - low) / (high - low);
        (
            LEFT + part(x, self.x) * (WIDTH - LEFT - MARGIN),
            HEIGHT - BOTTOM - part(y, self.y) * (HEIGHT - BOTTOM - MARGIN),
        )
    }

    fn grid(&self) -> String {
        let mut svg = String::new();
        for power in self.x.0 as i32..=self.x.1 as i32 {
            let (x, _) = self.place((10f64.powi(power), 1.0));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{MARGIN}\" x2=\"{x:.1}\" y2=\"{}\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 26.0,
                10f64.powi(power)
            );
        }
        for power in self.y.0 as i32..=self.y.1 as i32 {
            let (_, y) = self.place((1.0, 10f64.powi(power)));
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{}\" y2=\"{y:.1}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - MARGIN,
                LEFT - 8.0,
                y + 4.0,
                rate(10f64.powi(power), "FLOP/s")
            );
        }
        svg
    }
}

fn roofline(timings: &[Timing], ceilings: Ceilings, series: impl Fn(&str) -> usize) -> String {
    let bandwidth = ceilings.read.max(ceilings.copy);
    let point = |timing: &Timing| (1e3 * timing.tflops / timing.gbps, 1e12 * timing.tflops);
    let real = |timing: &&Timing| timing.tflops > 0.0 && timing.gbps > 0.0;
    let ridge = (ceilings.f32 / bandwidth, ceilings.f32);
    let mut points: Vec<(f64, f64)> = timings.iter().filter(real).map(point).collect();
    points.extend([ridge, (ridge.0 * 10.0, ridge.1)]);
    let axes = Axes::around(&points);
    let mut svg = format!(
        "<div class=\"scroll\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Roofline\">{}",
        axes.grid()
    );
    // The slope starts where it meets the left or the lower edge.
    let low = 10f64.powf(axes.x.0).max(10f64.powf(axes.y.0) / bandwidth);
    let corners = [(low, low * bandwidth), ridge, (10f64.powf(axes.x.1), ridge.1)];
    let corners: Vec<String> = corners
        .iter()
        .map(|corner| {
            let (x, y) = axes.place(*corner);
            format!("{x:.1},{y:.1}")
        })
        .collect();
    let _ = write!(svg, "<polyline class=\"roof\" points=\"{}\"/>", corners.join(" "));
    let (x, y) = axes.place(ridge);
    let _ = write!(
        svg,
        "<text class=\"name\" x=\"{:.1}\" y=\"{:.1}\">{} · {}</text>",
        x + 4.0,
        y - 8.0,
        rate(ceilings.f32, "FLOP/s"),
        rate(bandwidth, "B/s")
    );
    for timing in timings.iter().filter(real) {
        let (x, y) = axes.place(point(timing));
        let _ = write!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"var(--s{})\" fill-opacity=\"0.85\"><title>{} {} {}: {}, {} µs</title></circle>",
            series(&timing.kernel) % COLOURS.len(),
            escape(&timing.kernel),
            escape(&timing.variant),
            escape(&timing.shape),
            rate(1e12 * timing.tflops, "FLOP/s"),
            round(timing.us)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">operations per byte</text></svg></div>",
        (WIDTH + LEFT) / 2.0,
        HEIGHT - 10.0
    );
    svg
}
