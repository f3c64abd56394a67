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

/// What is no line: titles, other texts, the grid, the page.
struct Theme {
    ink: &'static str,
    soft: &'static str,
    grid: &'static str,
    page: &'static str,
}

const DAY: Theme = Theme { ink: "#1b1f24", soft: "#5c6570", grid: "#d8dde3", page: "#ffffff" };
const NIGHT: Theme = Theme { ink: "#e8ecf0", soft: "#a3adb8", grid: "#3a424b", page: "#14181c" };

impl Theme {
    /// Rules of plain colours: many programs that show SVG know no variables.
    fn style(&self, colours: [&str; COLOURS.len()]) -> String {
        let Self { ink, soft, grid, page } = self;
        let mut style = format!(
            "text {{ fill: {soft}; }} .title {{ fill: {ink}; }} .grid {{ stroke: {grid}; }} .page {{ fill: {page}; }}\n"
        );
        for (index, colour) in colours.iter().enumerate() {
            let _ = writeln!(
                style,
                ".c{index} .line, .c{index} .raw, .c{index} .spread {{ stroke: {colour}; }} .c{index} .dot {{ fill: {colour}; }}"
            );
        }
        style
    }
}

/// The panels, one below the other.
pub fn plot(panels: &[Panel]) -> String {
    let height: f64 = panels.iter().map(|panel| panel.height).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"system-ui, sans-serif\">\n\
         <style>text {{ font-size: 12px; }} .title {{ font-size: 14px; }} .line {{ fill: none; stroke-width: 2; stroke-linejoin: round; }}\n\
         .raw {{ fill: none; stroke-width: 3; stroke-linecap: round; opacity: 0.3; }}\n{}\
         @media (prefers-color-scheme: dark) {{\n{}}}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height}\"/>\n",
        DAY.style(COLOURS.map(|(day, _)| day)),
        NIGHT.style(COLOURS.map(|(_, night)| night)),
    );
    let mut top = 0.0;
    for panel in panels {
        // Panels over the same can be read from top to bottom.
        let along = panels.iter().filter(|other| other.across == panel.across);
        let along = along.flat_map(|other| other.shown()).map(|point| point.0);
        let across = along.fold(NOTHING, wider);
        let _ = writeln!(svg, "<g transform=\"translate(0 {top})\">");
        panel.draw(&mut svg, across);
        svg.push_str("</g>\n");
        top += panel.height;
    }
    svg.push_str("</svg>\n");
    svg
}

/// The range of no values.
const NOTHING: (f64, f64) = (f64::INFINITY, f64::NEG_INFINITY);

fn wider((low, high): (f64, f64), value: f64) -> (f64, f64) {
    (low.min(value), high.max(value))
}

/// Where points lie.
struct Field {
    x: (f64, f64),
    y: (f64, f64),
    axis: Axis,
    height: f64,
}

impl Field {
    /// Around these points, between two numbers across.
    fn of<'a>(
        points: impl Iterator<Item = &'a Point>,
        x: (f64, f64),
        axis: Axis,
        height: f64,
    ) -> Option<Self> {
        let y = points.map(|point| point.1).fold(NOTHING, wider);
        let wide = 0.01 * (x.1 - x.0).max(1.0);
        let up = match axis {
            Axis::Logarithmic => (y.0 * 0.95, y.1 * 1.05),
            Axis::Linear => (0.0, y.1.max(f64::MIN_POSITIVE) * 1.1),
        };
        y.0.is_finite().then_some(Self { x: (x.0 - wide, x.1 + wide), y: up, axis, height })
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
    /// The points that can be drawn.
    fn shown(&self) -> impl Iterator<Item = &Point> {
        self.lines.iter().flat_map(|line| self.shown_of(line))
    }

    fn shown_of<'a>(&self, line: &'a Line) -> impl Iterator<Item = &'a Point> {
        let zero = self.up == Axis::Linear;
        line.points.iter().filter(move |(x, y, _)| {
            x.is_finite() && y.is_finite() && (*y > 0.0 || zero && *y == 0.0)
        })
    }

    /// Draws it between two numbers across.
    fn draw(&self, svg: &mut String, across: (f64, f64)) {
        let _ = writeln!(
            svg,
            "<text class=\"title\" x=\"{LEFT}\" y=\"20\">{}</text>",
            escaped(&self.title)
        );
        let Some(field) = Field::of(self.shown(), across, self.up, self.height) else {
            return;
        };
        self.draw_axes(svg, &field);
        let mut colour = 0;
        for (index, line) in self.lines.iter().enumerate() {
            let mut points: Vec<Point> = self.shown_of(line).copied().collect();
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
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{floor}\" y2=\"{floor}\"/>"
        );
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

/// The mean of each value with those before and behind it, up to `reach` on either side.
pub fn smoothed(values: &[f64], reach: usize) -> Vec<f64> {
    let mut sums = vec![0.0];
    for value in values {
        sums.push(sums[sums.len() - 1] + value);
    }
    let mean = |place: usize| {
        let (first, end) = (place.saturating_sub(reach), (place + reach + 1).min(values.len()));
        (sums[end] - sums[first]) / (end - first) as f64
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
        _ if size < 1e-2 => format!("{value:.1e}").replace(".0e", "e"),
        _ if size < 1e4 => short(value),
        _ if size < 1e6 => short(value / 1e3) + "k",
        _ if size < 1e9 => short(value / 1e6) + "M",
        _ => short(value / 1e9) + "G",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
