//! Curves as one SVG file that stands alone, in light and dark: panels one below the other, of lines with the values' spread, of
//! smooth lines, and of raw points. What the numbers mean, the caller says.

use std::fmt::Write as _;

/// A field of lines.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// What stands across.
    pub across: String,
    /// What stands up.
    pub up: Axis,
    /// Its height, title and axis included; the picture is 720 wide.
    pub height: f64,
    /// The lines, the first one lowest.
    pub lines: Vec<Line>,
}

/// An axis of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Logarithmic, around the values; those that are not above 0 are left out.
    Logarithmic,
    /// From 0.
    Linear,
}

/// Points of one name: across, up, and their spread upwards and downwards.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name beside the panel.
    pub name: String,
    /// How it is drawn.
    pub mark: Mark,
    /// The points.
    pub points: Vec<Point>,
}

/// Across, up, and the spread upwards and downwards.
pub type Point = (f64, f64, f64);

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A line with a dot for each point, and its spread.
    Measured,
    /// A line alone.
    Smooth,
    /// Pale dots alone, in the colour of the line behind them.
    Raw,
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

/// Of a panel whose caller has no wish.
pub const HEIGHT: f64 = 360.0;
const WIDTH: f64 = 720.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 176.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 44.0;
/// More points than this of a line are not told apart.
const MOST_POINTS: usize = 1500;

/// The panels, one below the other.
pub fn plot(panels: &[Panel]) -> String {
    let height: f64 = panels.iter().map(|panel| panel.height).sum();
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
         .grid {{ stroke: var(--line); }} .line {{ stroke: var(--c); fill: none; stroke-width: 2; stroke-linejoin: round; }}\n\
         .raw {{ stroke: var(--c); fill: none; stroke-width: 3; stroke-linecap: round; opacity: 0.3; }}\n\
         .dot {{ fill: var(--c); }} .spread {{ stroke: var(--c); }}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"var(--page)\"/>\n"
    );
    let mut top = 0.0;
    for panel in panels {
        let _ = writeln!(svg, "<g transform=\"translate(0 {top})\">");
        panel.draw(&mut svg);
        svg.push_str("</g>\n");
        top += panel.height;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Where points lie.
struct Field {
    x: (f64, f64),
    y: (f64, f64),
    axis: Axis,
    height: f64,
}

impl Field {
    /// Around these points.
    fn of<'a>(points: impl Iterator<Item = &'a Point>, axis: Axis, height: f64) -> Option<Self> {
        let infinite = (f64::INFINITY, f64::NEG_INFINITY);
        let wider = |(low, high): (f64, f64), value: f64| (low.min(value), high.max(value));
        let (x, y) = points
            .fold((infinite, infinite), |(x, y), point| (wider(x, point.0), wider(y, point.1)));
        let wide = 0.01 * (x.1 - x.0).max(1.0);
        let y = match axis {
            Axis::Logarithmic => (y.0 * 0.95, y.1 * 1.05),
            Axis::Linear => (0.0, y.1.max(f64::MIN_POSITIVE) * 1.1),
        };
        x.0.is_finite().then_some(Self { x: (x.0 - wide, x.1 + wide), y, axis, height })
    }

    fn across(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn up(&self, y: f64) -> f64 {
        let place = |y: f64| match self.axis {
            Axis::Logarithmic => y.ln(),
            Axis::Linear => y,
        };
        let (low, high) = (place(self.y.0), place(self.y.1));
        let y = place(y.clamp(self.y.0, self.y.1));
        self.floor() - (y - low) / (high - low) * (self.floor() - TOP)
    }

    fn floor(&self) -> f64 {
        self.height - BOTTOM
    }

    /// Round values up the panel.
    fn values(&self) -> Vec<f64> {
        let (low, high) = self.y;
        let few = if self.height < 250.0 { 3 } else { 5 };
        if self.axis == Axis::Linear || high < 4.0 * low {
            return ticks(low, high, few);
        }
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let factors: &[f64] = if high < 300.0 * low { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let values = decades.flat_map(|decade| factors.iter().map(move |f| f * 10f64.powi(decade)));
        values.filter(|value| (low..=high).contains(value)).collect()
    }
}

/// Between two numbers, about so many that are multiples of 1, 2 or 5 times a power of ten.
fn ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let rough = (high - low) / about as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power);
    let places = (low / step).ceil() as i64..=(high / step).floor() as i64;
    places.map(|place| place as f64 * step).collect()
}

impl Panel {
    fn draw(&self, svg: &mut String) {
        let log = self.up == Axis::Logarithmic;
        let shown =
            |(x, y, _): &&Point| x.is_finite() && y.is_finite() && (*y > 0.0 || !log && *y == 0.0);
        let _ = writeln!(
            svg,
            "<text class=\"title\" x=\"{LEFT}\" y=\"20\">{}</text>",
            escaped(&self.title)
        );
        let points = self.lines.iter().flat_map(|line| line.points.iter()).filter(shown);
        let Some(field) = Field::of(points, self.up, self.height) else {
            return;
        };
        self.draw_axes(svg, &field);
        let mut colour = 0;
        for (index, line) in self.lines.iter().enumerate() {
            let mut points: Vec<Point> = line.points.iter().filter(shown).copied().collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            line.draw(svg, &field, &points, (index, colour));
            colour += usize::from(line.mark != Mark::Raw);
        }
    }

    fn draw_axes(&self, svg: &mut String, field: &Field) {
        let (right, floor) = (WIDTH - RIGHT, field.floor());
        for value in field.values() {
            let (y, text) = (field.up(value), number(value));
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                LEFT - 6.0,
                y + 4.0
            );
        }
        for value in ticks(field.x.0, field.x.1, 5) {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                field.across(value),
                floor + 16.0,
                number(value)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            floor + 34.0,
            escaped(&self.across)
        );
    }
}

impl Line {
    /// Draws its points, which are in order, and its name.
    fn draw(
        &self,
        svg: &mut String,
        field: &Field,
        points: &[Point],
        (index, colour): (usize, usize),
    ) {
        // Beyond the colours lines are dashed.
        let dash = if colour < COLOURS.len() { "" } else { " stroke-dasharray=\"5 3\"" };
        let _ = write!(svg, "<g class=\"c{}\">", colour % COLOURS.len());
        let places = points
            .iter()
            .step_by(points.len().div_ceil(MOST_POINTS).max(1))
            .map(|(x, y, _)| (field.across(*x), field.up(*y)));
        let (key, y) = (WIDTH - RIGHT + 12.0, TOP + 16.0 * index as f64);
        if self.mark == Mark::Raw {
            let dots: Vec<String> = places.map(|(x, y)| format!("M{x:.1} {y:.1}h0")).collect();
            let _ = write!(
                svg,
                "<path class=\"raw\" d=\"{}\"/><path class=\"raw\" d=\"M{:.1} {y}h0m8 0h0m8 0h0\"/>",
                dots.join(""),
                key + 2.0
            );
        } else {
            let path: Vec<String> = places.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = write!(
                svg,
                "<polyline class=\"line\"{dash} points=\"{}\"/>\
                 <line class=\"line\"{dash} x1=\"{key:.1}\" x2=\"{:.1}\" y1=\"{y}\" y2=\"{y}\"/>",
                path.join(" "),
                key + 20.0
            );
        }
        for (x, y, spread) in points.iter().filter(|_| self.mark == Mark::Measured) {
            let x = field.across(*x);
            let _ = writeln!(
                svg,
                "<line class=\"spread\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
                 <circle class=\"dot\" cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\"/>",
                field.up(y - spread),
                field.up(y + spread),
                field.up(*y)
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
            key + 26.0,
            y + 4.0,
            escaped(&self.name)
        );
    }
}

/// The mean of each value with as many before it as behind it, up to `reach`.
pub fn smoothed(values: &[f64], reach: usize) -> Vec<f64> {
    let mut sums = vec![0.0];
    for value in values {
        sums.push(sums[sums.len() - 1] + value);
    }
    let mean = |place: usize| {
        let reach = reach.min(place).min(values.len() - 1 - place);
        (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1) as f64
    };
    (0..values.len()).map(mean).collect()
}

/// A value with three digits, thousands and millions as k and M, small ones as powers of ten.
fn number(value: f64) -> String {
    let size = value.abs();
    let short = |value: f64| {
        let places = (2 - value.abs().log10().floor() as i32).clamp(0, 5) as usize;
        let text = format!("{value:.places$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
            false => text,
        }
    };
    match size {
        0.0 => "0".into(),
        _ if size < 1e-3 => format!("{value:.0e}"),
        _ if size < 1e4 => short(value),
        _ if size < 1e6 => short(value / 1e3) + "k",
        _ if size < 1e9 => short(value / 1e6) + "M",
        _ => short(value / 1e9) + "G",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
