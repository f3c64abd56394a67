//! What a command is doing, on standard error: on a terminal a line that is drawn again all the time, in a pipe or a file a line
//! now and then, with the time that is left.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The line's state; standard error is one for the whole process too.
static LINE: Mutex<Option<Line>> = Mutex::new(None);

struct Line {
    terminal: bool,
    step: Option<Step>,
    began: Instant,
    /// Whether it stands on the terminal now.
    drawn: bool,
    /// Whether standard output, on the same terminal, is in the middle of a line.
    open: bool,
    /// When something else was last written.
    written: Instant,
    /// When a pipe was last told.
    told: Option<Instant>,
}

struct Step {
    name: String,
    done: usize,
    /// 0: not known.
    total: usize,
    /// What was done already, and when.
    from: (usize, Instant),
}

/// How often a terminal's line is drawn.
const TICK: Duration = Duration::from_millis(250);
/// How long it stays away after other text.
const PAUSE: Duration = Duration::from_millis(400);
/// When a pipe is told the first time, and how often then.
const FIRST_TOLD: Duration = Duration::from_secs(5);
const TOLD_EVERY: Duration = Duration::from_secs(30);

fn line() -> MutexGuard<'static, Option<Line>> {
    LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to show what the command does, until the process ends.
pub(super) fn start() {
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let now = Instant::now();
    *line() = Some(Line {
        terminal: std::io::stderr().is_terminal() && !dumb,
        step: None,
        began: now,
        drawn: false,
        open: false,
        written: now,
        told: None,
    });
    let ticker = std::thread::Builder::new().name("progress".into());
    // A command can do without it.
    let _ = ticker.spawn(|| {
        loop {
            std::thread::sleep(TICK);
            if let Some(line) = line().as_mut() {
                line.tick();
            }
        }
    });
}

/// Says what is being done: `done` of `total`, where 0 is a total that is not known. A step goes on under another name as long as
/// its total stays.
pub(super) fn set(name: &str, done: usize, total: usize) {
    let Some(line) = &mut *line() else {
        return;
    };
    let from = match &line.step {
        Some(old) if old.total == total && old.done <= done && (total > 0 || old.name == name) => {
            old.from
        }
        _ => (done, Instant::now()),
    };
    let ended = total > 0 && done >= total;
    line.step = (!ended).then(|| Step { name: name.into(), done, total, from });
}

/// Shows nothing any more, of a command that waits for others from now on.
pub(super) fn end() {
    clear(false);
    *line() = None;
}

/// Takes the line away, for other text. `open`: that is standard output's, and ends in the middle of a line.
pub(super) fn clear(open: bool) {
    if let Some(line) = &mut *line() {
        line.erase();
        line.written = Instant::now();
        line.open = open && line.terminal && std::io::stdout().is_terminal();
    }
}

impl Line {
    fn erase(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }

    fn tick(&mut self) {
        if !self.terminal {
            let due = match self.told {
                None => self.began.elapsed() >= FIRST_TOLD,
                Some(told) => told.elapsed() >= TOLD_EVERY,
            };
            if due {
                self.told = Some(Instant::now());
                let _ = writeln!(std::io::stderr(), "note: {}", self.text(0));
            }
        } else if !self.open && self.written.elapsed() >= PAUSE && self.began.elapsed() >= 2 * PAUSE
        {
            let width = super::output::width(true).saturating_sub(1);
            let text: String = self.text(width).chars().take(width).collect();
            self.drawn = true;
            let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
        }
    }

    /// What is being done, how long it has taken, how long it may take yet; with a bar where `width` has room for one.
    fn text(&self, width: usize) -> String {
        let Some(step) = &self.step else {
            return format!("working, {}", spell(self.began.elapsed()));
        };
        let (begun, since) = step.from;
        let took = spell(since.elapsed());
        if step.total < 2 {
            let count = if step.done > 0 { format!(" {}", step.done) } else { String::new() };
            return format!("{}{count}, {took}", step.name);
        }
        let share = step.done as f64 / step.total as f64;
        let new = step.done.saturating_sub(begun);
        let left = since.elapsed().mul_f64((step.total - step.done) as f64 / new.max(1) as f64);
        let known = new > 0 && since.elapsed() > Duration::from_secs(2);
        let left = if known { format!(", about {} left", spell(left)) } else { String::new() };
        let count = format!("{}/{}", step.done, step.total);
        let rest = format!("{count}, {took}{left}");
        let room =
            width.saturating_sub(step.name.chars().count() + rest.chars().count() + 4).min(30);
        if room < 8 {
            let percent = format!("{:.0} %", 100.0 * share);
            let short = left.replace(", about", "");
            // The first that fits; a pipe has room for all.
            let forms = [
                format!("{} {count} ({percent}), {took}{left}", step.name),
                format!("{} {count} ({percent}){left}", step.name),
                format!("{} {count}{short}", step.name),
                format!("{} {percent}{short}", step.name),
            ];
            let fits = |form: &&String| width == 0 || form.chars().count() <= width;
            return forms.iter().find(fits).unwrap_or(&forms[3]).clone();
        }
        let full = (share * room as f64) as usize;
        let head = if full < room { ">" } else { "" };
        format!("{} [{:room$}] {rest}", step.name, "=".repeat(full) + head)
    }
}

fn spell(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6000 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{:.1} h", seconds as f64 / 3600.0),
    }
}
