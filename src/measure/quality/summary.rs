//! A sentence that sums up the comparison of two models.

use serde::Serialize;

use super::comparison::TasksComparison;
use super::divergence::{DeltaP, KlFigures, PerplexityChange};
use super::perplexity::{BitsPerByte, Perplexity};
use super::statistics::Interval;

/// How large a model is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Size {
    /// The model as the user named it.
    pub model: String,
    /// Its parameters.
    pub parameters: u64,
    /// Bytes of its tensors as stored.
    pub bytes: u64,
    /// Bytes of its files with weights, which is what its size beside another model's is told by.
    pub file_bytes: u64,
    /// Bytes that as many parameters take in f16.
    pub bytes_f16: u64,
}

/// How well one model predicts a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextFigures {
    /// Its perplexity.
    pub perplexity: Perplexity,
    /// Bits per byte of text.
    pub bits_per_byte: Option<BitsPerByte>,
}

/// How well two models predict the same text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TextComparison {
    /// The parent.
    pub parent: TextFigures,
    /// The child.
    pub child: TextFigures,
    /// The change of perplexity, where both cut the text into the same tokens.
    pub change: Option<PerplexityChange>,
    /// The divergence, where both have one vocabulary.
    pub kl: Option<KlFigures>,
    /// The change of the text's probabilities, where both have one vocabulary.
    pub delta_p: Option<DeltaP>,
    /// The figures that these two models cannot have, and why.
    pub impossible: Option<String>,
}

/// One sentence: the sizes of parent and child, the text, the tasks, as far as they were measured.
pub fn summary(
    sizes: Option<(&Size, &Size)>,
    text: Option<&TextComparison>,
    tasks: Option<&TasksComparison>,
) -> String {
    let mut parts = Vec::new();
    parts.extend(sizes.map(|(parent, child)| size(parent, child)));
    parts.extend(text.map(change));
    parts.extend(tasks.map(share));
    format!("{}.", parts.join(", "))
}

/// The child's files beside its parent's as they are, and beside its parent's weights in f16.
fn size(parent: &Size, child: &Size) -> String {
    let beside = |bytes: u64, whose: &str| {
        let ratio = bytes as f64 / child.file_bytes.max(1) as f64;
        match ratio {
            1.005.. => format!("{ratio:.2}x smaller than {whose}"),
            0.995.. => format!("as large as {whose}"),
            _ => format!("{:.2}x larger than {whose}", 1.0 / ratio),
        }
    };
    let stored = beside(parent.file_bytes, "its parent as stored");
    format!("{stored}, {}", beside(parent.bytes_f16, "its parent in f16"))
}

fn change(text: &TextComparison) -> String {
    if let Some(change) = &text.change {
        let percent = signed(change.percent);
        return match change.percent_interval {
            Some(interval) => {
                format!("perplexity {percent} % ({})", between(interval, 1.0, change.percent))
            }
            None => format!(
                "perplexity {percent} % (too few windows for an interval: {})",
                change.windows
            ),
        };
    }
    match (text.parent.bits_per_byte, text.child.bits_per_byte) {
        (Some(parent), Some(child)) => {
            let percent = signed(100.0 * (child.value / parent.value - 1.0));
            format!("bits per byte {percent} %")
        }
        _ => "no figure of the text that both can have".into(),
    }
}

fn share(tasks: &TasksComparison) -> String {
    match &tasks.share {
        Some(share) => {
            let interval = share
                .interval
                .map_or(String::new(), |interval| format!(" ({})", between(interval, 100.0, 0.0)));
            format!("{:.0} % of the parent's quality{interval}", 100.0 * share.value)
        }
        None => "the parent is at chance in every task, which says nothing of its child".into(),
    }
}

/// With its sign, and no sign for what rounds to zero.
fn signed(percent: f64) -> String {
    let text = format!("{percent:+.1}");
    match text.as_str() {
        "+0.0" | "-0.0" => "0.0".into(),
        _ => text,
    }
}

/// `95 %: 3.6 to 4.6`; with signs where the ends differ in them, or where the value does not show it.
fn between(interval: Interval, scale: f64, value: f64) -> String {
    let (low, high) = (scale * interval.low, scale * interval.high);
    if value > 0.0 && low > 0.0 || scale != 1.0 {
        let digits = usize::from(scale == 1.0);
        return format!("95 %: {low:.digits$} to {high:.digits$}");
    }
    format!("95 %: {} to {}", signed(low), signed(high))
}
