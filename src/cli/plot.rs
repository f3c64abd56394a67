//! Lines over a linear axis, on a logarithmic one, as one SVG file that stands alone: in light and dark, with the values' spread.

use std::fmt::Write as _;

/// A field of lines.
pub(super) struct Panel {
    pub(super) title: String,
    /// What stands across.
    pub(super) across: String,
    pub(super) lines: Vec<Line>,
}

/// Points of one name: across, up, and their spread upwards and downwards.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64, f64)>,
}

const COLOURS: [(&str, &str); 10] = [
    ("#1f66c1", "#6aa8f7"),
    ("#b8501e", "#f0945e"),
    ("#2c7d45", "#67c483"),
    ("#8a3f9c", "#cf8be0"),
    ("#9a7400", "#e0bb48"),
    ("#b3294e", "#f4799a"),
    ("#0f7c80", "#55c6ca"),
    ("#5a5f66", "#a9b0b8"),
    ("#6b4a2f", "#c9a27e"),
    ("#3b3fa8", "#9a9df5"),
];

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 176.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 44.0;

/// The panels, one below the other.
pub(super) fn plot(panels: &[Panel]) -> String {
    let height = HEIGHT * panels.len() as f64;
    let (mut light, mut dark) = (String::new(), String::new());
    for (index, (day, night)) in COLOURS.iter().enumerate() {
        let _ = write!(light, ".c{index} {{ --c: {day}; }} ");
        let _ = write!(dark, ".c{index} {{ --c: {night}; }} ");
    }
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\">\n\
         <style>svg {{ --ink: #1b1f24; --soft: #5c6570; --line: #d8dde3; --page: #ffffff; }} {light}\n\
         @media (prefers-color-scheme: dark) {{ svg {{ --ink: #e8ecf0; --soft: #a3adb8; --line: #3a424b; --page: #14181c; }} {dark}}}\n\
         text {{ fill: var(--soft); font-size: 12px; }} .title {{ fill: var(--ink); font-size: 14px; }}\n\
         .grid {{ stroke: var(--line); }} .line {{ stroke: var(--c); fill: none; stroke-width: 2; }}\n\
         .dot {{ fill: var(--c); }} .spread {{ stroke: var(--c); }}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"var(--page)\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", HEIGHT * index as f64);
        panel.draw(&mut svg);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String) {
        let shown = |(x, y, _): &&(f64, f64, f64)| x.is_finite() && y.is_finite() && *y > 0.0;
        let points = || self.lines.iter().flat_map(|line| line.points.iter()).filter(shown);
        let _ = writeln!(
            svg,
            "<text class=\"title\" x=\"{LEFT}\" y=\"20\">{}</text>",
            escaped(&self.title)
        );
        if points().next().is_none() {
            return;
        }
        let least =
            |of: &dyn Fn(&(f64, f64, f64)) -> f64| points().map(of).fold(f64::INFINITY, f64::min);
        let most = |of: &dyn Fn(&(f64, f64, f64)) -> f64| {
            points().map(of).fold(f64::NEG_INFINITY, f64::max)
        };
        let (x0, x1) = (least(&|p| p.0) - 1.0, most(&|p| p.0) + 1.0);
        let (y0, y1) = (least(&|p| p.1).ln() - 0.05, most(&|p| p.1).ln() + 0.05);
        let across = |x: f64| LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let up = |y: f64| HEIGHT - BOTTOM - (y.ln() - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for step in 0..=4 {
            let value = (y0 + (y1 - y0) * f64::from(step) / 4.0).exp();
            let y = up(value);
            let text = number(value);
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                y + 4.0
            );
            let value = x0 + (x1 - x0) * f64::from(step) / 4.0;
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{value:.0}</text>",
                across(value),
                floor + 16.0
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            floor + 34.0,
            escaped(&self.across)
        );
        for (index, line) in self.lines.iter().enumerate() {
            let colour = index % COLOURS.len();
            // Beyond the colours lines are dashed.
            let dash = if index < COLOURS.len() { "" } else { " stroke-dasharray=\"5 3\"" };
            let mut points: Vec<_> = line.points.iter().filter(shown).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let path: Vec<String> =
                points.iter().map(|(x, y, _)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
            let _ = writeln!(
                svg,
                "<g class=\"c{colour}\"><polyline class=\"line\"{dash} points=\"{}\"/>",
                path.join(" ")
            );
            for (x, y, spread) in points {
                let (x, low, high) = (across(*x), (y - spread).max(y0.exp()), y + spread);
                let _ = writeln!(
                    svg,
                    "<line class=\"spread\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                     <circle class=\"dot\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                    up(low),
                    up(high.min(y1.exp())),
                    up(*y)
                );
            }
            let y = TOP + 16.0 * index as f64;
            let _ = writeln!(
                svg,
                "<line class=\"line\"{dash} x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
                right + 12.0,
                right + 32.0,
                right + 38.0,
                y + 4.0,
                escaped(&line.name)
            );
        }
    }
}

/// A value with three digits.
fn number(value: f64) -> String {
    let places = (2 - value.abs().log10().floor() as i32).clamp(0, 5) as usize;
    format!("{value:.places$}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
