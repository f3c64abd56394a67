//! How far a child's predictions are from its parent's, place by place: streamed, so that no file of logits is needed.

use serde::Serialize;

use super::perplexity::{Losses, PendingRows, upload_targets};
use super::statistics::{Bootstrap, Interval, covariance_of_means, mean_and_error, quantile};
use super::windows::{Passing, Windows};
use crate::device::{Reading, Tensor};
use crate::error::{Error, Result};
use crate::kernels::loss::divergence::divergence as compare_rows;
use crate::model::{Pass, WeightSource, not_finite};

/// Two models' predictions on the same windows compared: a value for each scored token, in the text's order.
#[derive(Clone, Debug)]
pub struct Divergences {
    /// The parent's losses.
    pub parent: Losses,
    /// The child's.
    pub child: Losses,
    /// KL(parent || child) of the distributions of each scored token, in nats.
    pub kl: Vec<f64>,
    /// Whether both find the same token the likeliest.
    pub same_top: Vec<bool>,
}

/// Runs both models, which must have one vocabulary, over the windows; the parent keeps its keys and values in the type of
/// activations, whatever the child does. `progress` is told (windows done, windows) and may
/// stop the rest by an error.
pub fn divergence<'p, 'c>(
    parent: impl Into<WeightSource<'p>>,
    child: impl Into<WeightSource<'c>>,
    pass: &Pass<'_>,
    windows: &Windows<'_>,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Divergences> {
    let (parent, child) = (parent.into(), child.into());
    [parent, child].iter().try_for_each(|model| model.config().foretells("divergence"))?;
    let sizes = [parent, child].map(|model| model.config().vocab_size);
    if sizes[0] != sizes[1] {
        return Err(Error::Argument {
            argument: "parent".into(),
            expected: format!("logits of {} tokens, as the child has", sizes[1]),
            found: format!("{}", sizes[0]),
        });
    }
    let mut found = Divergences {
        parent: Losses::new(windows),
        child: Losses::new(windows),
        kl: Vec::new(),
        same_top: Vec::new(),
    };
    let parents = Pass { compute: pass.compute.with_cache(None), ..*pass };
    let mut sides = [Passing::new(parent, windows), Passing::new(child, windows)];
    let mut pending: Option<Vec<PendingPair>> = None;
    let mut done = 0;
    for group in windows.groups() {
        progress(done, windows.count())?;
        let rows = record(&mut sides, [&parents, pass], windows, group)?;
        // The rows of the pass before are fetched while this one runs.
        found.add(pass, pending.replace(rows), windows)?;
        done += group.len();
    }
    found.add(pass, pending, windows)?;
    found.parent.check(&parent.into(), &parents, windows)?;
    found.child.check(&child.into(), pass, windows)?;
    // An infinite divergence is a figure: the child rules out what its parent allows.
    if let Some(place) = found.kl.iter().position(|value| value.is_nan()) {
        let ids = windows.ids(place / windows.scored_each());
        return Err(not_finite(child, pass, &ids, format!("divergence of scored token {place}")));
    }
    progress(done, windows.count())?;
    Ok(found)
}

/// Results of consecutive rows of both models that are being read back.
struct PendingPair {
    first: usize,
    losses: [PendingRows; 2],
    kl: Reading,
    tops: Reading,
}

fn record(
    sides: &mut [Passing<'_>; 2],
    passes: [&Pass<'_>; 2],
    windows: &Windows<'_>,
    group: &[&[u32]],
) -> Result<Vec<PendingPair>> {
    let (ids, targets) = windows.inputs(group);
    let mut normed: Vec<Tensor> = Vec::new();
    for (side, pass) in sides.iter_mut().zip(passes) {
        normed.push(side.hidden(pass, &ids)?);
    }
    let pass = passes[0];
    let mut rows = Vec::new();
    // Both models' logits are held at once.
    let step = (sides[0].head()?.rows_at_once(pass.device) / 2).max(1);
    for first in (0..ids.len()).step_by(step) {
        let range = first..(first + step).min(ids.len());
        let wanted = upload_targets(pass, &targets[range.clone()])?;
        let mut logits = |side: usize| -> Result<Tensor> {
            let head = sides[side].head()?;
            head.logits(pass, &normed[side], range.clone())
        };
        let (parent, child) = (logits(0)?, logits(1)?);
        let (kl, tops) = compare_rows(pass.device, &parent, &child)?;
        rows.push(PendingPair {
            first,
            losses: [
                PendingRows::start(pass, first, &parent, &wanted)?,
                PendingRows::start(pass, first, &child, &wanted)?,
            ],
            kl: pass.device.read_later(&kl)?,
            tops: pass.device.read_later(&tops)?,
        });
    }
    Ok(rows)
}

impl Divergences {
    fn add(
        &mut self,
        pass: &Pass<'_>,
        rows: Option<Vec<PendingPair>>,
        windows: &Windows<'_>,
    ) -> Result<()> {
        for rows in rows.into_iter().flatten() {
            let [parent, child] = rows.losses;
            parent.finish(&mut self.parent, pass, windows)?;
            child.finish(&mut self.child, pass, windows)?;
            let (kl, tops) = (pass.device.finish(rows.kl)?, pass.device.finish(rows.tops)?);
            let tops = tops.view();
            for index in (0..kl.len()).filter(|index| windows.counts(rows.first + index)) {
                let value = kl.view().get(index);
                self.kl.push(value);
                self.same_top.push(tops.get(2 * index) == tops.get(2 * index + 1));
            }
        }
        Ok(())
    }

    /// The divergence in figures.
    pub fn kl(&self) -> KlFigures {
        let (mean, stderr) = mean_and_error(&self.kl);
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: f64| quantile(&sorted, percent / 100.0);
        let same: Vec<f64> = self.same_top.iter().map(|same| f64::from(*same)).collect();
        let (same_top, same_top_stderr) = mean_and_error(&same);
        KlFigures {
            mean,
            stderr,
            max: at(100.0),
            p99_9: at(99.9),
            p99: at(99.0),
            p95: at(95.0),
            p90: at(90.0),
            median: at(50.0),
            p10: at(10.0),
            p5: at(5.0),
            p1: at(1.0),
            min: at(0.0),
            same_top,
            same_top_stderr,
        }
    }

    /// How the probability of the text's own tokens changed, in figures.
    pub fn delta_p(&self) -> DeltaP {
        let pairs = self.parent.values().iter().zip(self.child.values());
        let mut changes: Vec<f64> =
            pairs.map(|(parent, child)| (-child).exp() - (-parent).exp()).collect();
        let (mean, stderr) = mean_and_error(&changes);
        let squares: Vec<f64> = changes.iter().map(|change| change * change).collect();
        let (square, square_error) = mean_and_error(&squares);
        let rms = square.sqrt();
        changes.sort_by(f64::total_cmp);
        let at = |percent: f64| quantile(&changes, percent / 100.0);
        DeltaP {
            mean,
            stderr,
            rms,
            // d sqrt(s) = ds / (2 sqrt(s)); where nothing changed there is no error.
            rms_stderr: if rms == 0.0 { 0.0 } else { 0.5 * square_error / rms },
            max: at(100.0),
            p99_9: at(99.9),
            p99: at(99.0),
            p95: at(95.0),
            p90: at(90.0),
            p75: at(75.0),
            median: at(50.0),
            p25: at(25.0),
            p10: at(10.0),
            p5: at(5.0),
            p1: at(1.0),
            p0_1: at(0.1),
            min: at(0.0),
        }
    }
}

/// The divergence from the parent, nats per token: llama-perplexity's figures, and its names for them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KlFigures {
    /// Mean KL(parent || child).
    pub mean: f64,
    /// Standard error of the mean, tokens taken as independent.
    pub stderr: f64,
    /// Largest.
    pub max: f64,
    /// 99.9 % are below.
    pub p99_9: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 90 % are below.
    pub p90: f64,
    /// Half are below.
    pub median: f64,
    /// 10 % are below.
    pub p10: f64,
    /// 5 % are below.
    pub p5: f64,
    /// 1 % are below.
    pub p1: f64,
    /// Smallest.
    pub min: f64,
    /// Share of places where both find the same token the likeliest.
    pub same_top: f64,
    /// Standard error of that share.
    pub same_top_stderr: f64,
}

/// The change of the probability that a model gives the text's own next token: child minus parent, from -1 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DeltaP {
    /// Mean.
    pub mean: f64,
    /// Standard error of the mean, tokens taken as independent.
    pub stderr: f64,
    /// Root of the mean square.
    pub rms: f64,
    /// Standard error of that root.
    pub rms_stderr: f64,
    /// Largest.
    pub max: f64,
    /// 99.9 % are below.
    pub p99_9: f64,
    /// 99 % are below.
    pub p99: f64,
    /// 95 % are below.
    pub p95: f64,
    /// 90 % are below.
    pub p90: f64,
    /// 75 % are below.
    pub p75: f64,
    /// Half are below.
    pub median: f64,
    /// 25 % are below.
    pub p25: f64,
    /// 10 % are below.
    pub p10: f64,
    /// 5 % are below.
    pub p5: f64,
    /// 1 % are below.
    pub p1: f64,
    /// 0.1 % are below.
    pub p0_1: f64,
    /// Smallest.
    pub min: f64,
}

/// A child's perplexity beside its parent's on the same tokens: llama-perplexity's figures, and an interval of the change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerplexityChange {
    /// Perplexity of the child over that of the parent.
    pub ratio: f64,
    /// Standard error of the ratio, tokens taken as independent pairs.
    pub ratio_stderr: f64,
    /// Its natural log: the mean difference of the losses.
    pub ln_ratio: f64,
    /// Standard error of the log.
    pub ln_ratio_stderr: f64,
    /// Perplexity of the child minus that of the parent.
    pub difference: f64,
    /// Standard error of the difference.
    pub difference_stderr: f64,
    /// Correlation of the losses; none where one of them does not vary.
    pub correlation: Option<f64>,
    /// The relative change in percent.
    pub percent: f64,
    /// Its 95 % interval, from the bootstrap over windows, whose tokens depend on each other; none for fewer than
    /// [`LEAST_UNITS`](super::statistics::LEAST_UNITS) windows.
    pub percent_interval: Option<Interval>,
    /// The windows.
    pub windows: usize,
}

/// Compares two models' losses of the same tokens.
pub fn perplexity_change(
    parent: &Losses,
    child: &Losses,
    bootstrap: Bootstrap,
) -> PerplexityChange {
    let (before, after) = (parent.perplexity(), child.perplexity());
    let pairs = parent.values().iter().zip(child.values());
    let differences: Vec<f64> = pairs.map(|(parent, child)| child - parent).collect();
    let (ln_ratio, ln_ratio_stderr) = mean_and_error(&differences);
    let (_, parent_error) = mean_and_error(parent.values());
    let (_, child_error) = mean_and_error(child.values());
    let covariance = covariance_of_means(parent.values(), child.values());
    let product = parent_error * child_error;
    let squares = (before.value * parent_error).powi(2) + (after.value * child_error).powi(2)
        - 2.0 * before.value * after.value * covariance;
    let windows = parent.window_means();
    let by_window: Vec<f64> =
        windows.iter().zip(child.window_means()).map(|(parent, child)| child - parent).collect();
    let percent = |ln: f64| 100.0 * ln.exp_m1();
    PerplexityChange {
        ratio: ln_ratio.exp(),
        ratio_stderr: ln_ratio.exp() * ln_ratio_stderr,
        ln_ratio,
        ln_ratio_stderr,
        difference: after.value - before.value,
        // Rounding may take it below 0; `max` would hide a NaN.
        difference_stderr: if squares < 0.0 { 0.0 } else { squares.sqrt() },
        correlation: (product > 0.0).then(|| covariance / product),
        percent: percent(ln_ratio),
        percent_interval: bootstrap.mean(&by_window).map(|interval| interval.map(percent)),
        windows: windows.len(),
    }
}
