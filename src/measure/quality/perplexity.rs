//! Perplexity: exp of the mean negative log-likelihood per token, natural log, summed in f64.

use serde::{Deserialize, Serialize};

use super::statistics::{mean_and_error, nan_from_null, with_error};
use super::windows::{Convention, Passing, Windows};
use crate::device::{Device, HostTensor, Reading, Tensor};
use crate::error::{Error, Result};
use crate::kernels::loss::logsumexp::logsumexp;
use crate::model::{Ensemble, Model, Pass, WeightSource, not_finite};

/// What makes logits: a model, on the device or streamed there, or several as one.
#[derive(Clone, Debug)]
pub enum LogitSource<'m> {
    /// A model.
    One(WeightSource<'m>),
    /// Models on the device.
    Several(Ensemble<'m>),
}

impl<'m> From<&'m Model> for LogitSource<'m> {
    fn from(model: &'m Model) -> Self {
        LogitSource::One(model.into())
    }
}

impl<'m> From<WeightSource<'m>> for LogitSource<'m> {
    fn from(source: WeightSource<'m>) -> Self {
        LogitSource::One(source)
    }
}

impl<'m> From<Ensemble<'m>> for LogitSource<'m> {
    fn from(ensemble: Ensemble<'m>) -> Self {
        LogitSource::Several(ensemble)
    }
}

impl<'m> LogitSource<'m> {
    fn models(&self) -> Vec<WeightSource<'m>> {
        match self {
            LogitSource::One(source) => vec![*source],
            LogitSource::Several(ensemble) => ensemble.models().map(WeightSource::from).collect(),
        }
    }

    /// The logits of each model as one.
    fn combine(&self, device: &Device, mut logits: Vec<Tensor>) -> Result<Tensor> {
        match self {
            LogitSource::One(_) => Ok(logits.pop().expect("a model's logits")),
            LogitSource::Several(ensemble) => ensemble.combine(device, logits),
        }
    }

    fn not_finite(&self, pass: &Pass<'_>, ids: &[u32], symptom: String) -> Error {
        match self {
            LogitSource::One(source) => not_finite(*source, pass, ids, symptom),
            LogitSource::Several(ensemble) => ensemble.not_finite(pass, ids, symptom),
        }
    }
}

/// A perplexity with everything that it depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// exp(mean negative log-likelihood)
    pub value: f64,
    /// Standard error of the value: value * standard error of the mean; NaN of one token.
    #[serde(deserialize_with = "nan_from_null")]
    pub stderr: f64,
    /// Tokens of a window.
    pub ctx: usize,
    /// Tokens that were scored.
    pub tokens_scored: usize,
    /// Which tokens those are.
    pub convention: Convention,
}

impl std::fmt::Display for Perplexity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { value, stderr, ctx, tokens_scored, convention } = self;
        let name = convention.name();
        write!(
            f,
            "perplexity {} ({tokens_scored} tokens scored, ctx {ctx}, convention {name})",
            with_error(*value, *stderr, 4)
        )
    }
}

/// Bits per byte of text: comparable between models with different tokenizers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BitsPerByte {
    /// Negative log-likelihood of the scored tokens in bits, divided by the bytes of text that they stand for.
    pub value: f64,
    /// Standard error of the value, from that of the mean per token.
    pub stderr: f64,
    /// Bytes of text that the scored tokens stand for.
    pub bytes: usize,
}

impl std::fmt::Display for BitsPerByte {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { value, stderr, bytes } = self;
        write!(f, "{} bits per byte ({bytes} bytes scored)", with_error(*value, *stderr, 4))
    }
}

/// The negative log-likelihood of every scored token of a text, in nats and in the text's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Losses {
    values: Vec<f64>,
    each: usize,
    ctx: usize,
    convention: Convention,
}

impl Losses {
    pub(super) fn new(windows: &Windows<'_>) -> Self {
        Self {
            values: Vec::with_capacity(windows.count() * windows.scored_each()),
            each: windows.scored_each(),
            ctx: windows.ctx(),
            convention: windows.convention(),
        }
    }

    /// What is wrong with them, if anything is: a loss that is not finite, or losses whose exp is none. No figure is made of
    /// these. The model is run again to say where it began.
    pub(super) fn check(
        &self,
        source: &LogitSource<'_>,
        pass: &Pass<'_>,
        windows: &Windows<'_>,
    ) -> Result<()> {
        if let Some(place) = self.values.iter().position(|loss| !loss.is_finite()) {
            let symptom = format!("loss of scored token {place}");
            let ids = windows.ids(place / self.each);
            return Err(source.not_finite(pass, &ids, symptom));
        }
        let (mean, _) = mean_and_error(&self.values);
        if mean.exp().is_finite() {
            return Ok(());
        }
        Err(Error::NotFinite {
            what: "perplexity".into(),
            found: format!("exp of a mean loss of {mean:.1} nats a token"),
        })
    }

    /// The losses.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The mean loss of each window, whose tokens are not independent of each other.
    pub fn window_means(&self) -> Vec<f64> {
        let mean = |window: &[f64]| window.iter().sum::<f64>() / window.len() as f64;
        self.values.chunks_exact(self.each).map(mean).collect()
    }

    /// The figure that they make.
    pub fn perplexity(&self) -> Perplexity {
        let (mean, error) = mean_and_error(&self.values);
        Perplexity {
            value: mean.exp(),
            stderr: mean.exp() * error,
            ctx: self.ctx,
            tokens_scored: self.values.len(),
            convention: self.convention,
        }
    }

    /// The figure that they make, where the scored tokens stand for so many bytes; none for no bytes.
    pub fn bits_per_byte(&self, bytes: usize) -> Option<BitsPerByte> {
        let (mean, error) = mean_and_error(&self.values);
        let per_byte = self.values.len() as f64 / bytes as f64 / std::f64::consts::LN_2;
        (bytes > 0).then_some(BitsPerByte {
            value: mean * per_byte,
            stderr: error * per_byte,
            bytes,
        })
    }
}

/// The perplexity of `model` on a tokenized text. `bos` stands in for each window's first token under the llama.cpp
/// convention. `progress` is told (windows done, windows) and may stop the rest by an error.
pub fn perplexity<'m>(
    model: impl Into<LogitSource<'m>>,
    pass: &Pass<'_>,
    tokens: &[u32],
    ctx: usize,
    convention: Convention,
    bos: Option<u32>,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Perplexity> {
    let windows = Windows::new(tokens, ctx, convention, bos)?;
    let progress = |_: &Losses, done: usize, total: usize| progress(done, total);
    Ok(losses(model, pass, &windows, progress)?.perplexity())
}

/// The losses of `model` on a text's windows. `progress` is told (losses so far, windows done, windows) and may stop the rest by
/// an error.
pub fn losses<'m>(
    model: impl Into<LogitSource<'m>>,
    pass: &Pass<'_>,
    windows: &Windows<'_>,
    mut progress: impl FnMut(&Losses, usize, usize) -> Result<()>,
) -> Result<Losses> {
    let source = model.into();
    source.models().iter().try_for_each(|model| model.config().foretells("perplexity"))?;
    let mut losses = Losses::new(windows);
    let mut pending: Option<Vec<PendingRows>> = None;
    let models = source.models().into_iter();
    let mut passing: Vec<Passing<'_>> = models.map(|one| Passing::new(one, windows)).collect();
    let mut done = 0;
    for group in windows.groups() {
        progress(&losses, done, windows.count())?;
        let rows = record(&source, &mut passing, pass, windows, group)?;
        // The rows of the pass before are fetched while this one runs.
        add(&mut losses, pass, pending.replace(rows), windows)?;
        if losses.values.last().is_some_and(|loss| !loss.is_finite()) {
            break;
        }
        done += group.len();
    }
    add(&mut losses, pass, pending, windows)?;
    losses.check(&source, pass, windows)?;
    progress(&losses, done, windows.count())?;
    Ok(losses)
}

/// Losses of consecutive rows of a pass that are being read back.
pub(super) struct PendingRows {
    first: usize,
    lse: Reading,
    picked: Reading,
}

impl PendingRows {
    /// Starts reading back the losses of the targets under the logits of rows from `first` on.
    pub(super) fn start(
        pass: &Pass<'_>,
        first: usize,
        logits: &Tensor,
        targets: &Tensor,
    ) -> Result<Self> {
        let (lse, picked) = logsumexp(pass.device, logits, targets)?;
        Ok(Self {
            first,
            lse: pass.device.read_later(&lse)?,
            picked: pass.device.read_later(&picked)?,
        })
    }

    /// Takes up those that are scored.
    pub(super) fn finish(
        self,
        losses: &mut Losses,
        pass: &Pass<'_>,
        windows: &Windows<'_>,
    ) -> Result<()> {
        let (lse, picked) = (pass.device.finish(self.lse)?, pass.device.finish(self.picked)?);
        for index in (0..lse.len()).filter(|index| windows.counts(self.first + index)) {
            losses.values.push(lse.view().get(index) - picked.view().get(index));
        }
        Ok(())
    }
}

/// Records a pass over some windows and starts reading its losses back.
fn record(
    source: &LogitSource<'_>,
    passing: &mut [Passing<'_>],
    pass: &Pass<'_>,
    windows: &Windows<'_>,
    group: &[&[u32]],
) -> Result<Vec<PendingRows>> {
    let (ids, targets) = windows.inputs(group);
    if let LogitSource::Several(ensemble) = source {
        ensemble.check_tokens(&ids)?;
    }
    let (mut normed, mut step) = (Vec::new(), usize::MAX);
    for passing in passing.iter_mut() {
        normed.push(passing.hidden(pass, &ids)?);
        step = step.min(passing.head()?.rows_at_once(pass.device));
    }
    let mut rows = Vec::new();
    for first in (0..ids.len()).step_by(step) {
        let range = first..(first + step).min(ids.len());
        let mut logits = Vec::new();
        for (passing, normed) in passing.iter_mut().zip(&normed) {
            logits.push(passing.head()?.logits(pass, normed, range.clone())?);
        }
        let logits = source.combine(pass.device, logits)?;
        let wanted = upload_targets(pass, &targets[range])?;
        rows.push(PendingRows::start(pass, first, &logits, &wanted)?);
    }
    Ok(rows)
}

/// The tokens that follow the rows of a call.
pub(super) fn upload_targets(pass: &Pass<'_>, targets: &[u32]) -> Result<Tensor> {
    let wanted = HostTensor::from_u32(&[targets.len()], targets);
    pass.device.upload(&wanted, "targets")
}

fn add(
    losses: &mut Losses,
    pass: &Pass<'_>,
    rows: Option<Vec<PendingRows>>,
    windows: &Windows<'_>,
) -> Result<()> {
    rows.into_iter().flatten().try_for_each(|rows| rows.finish(losses, pass, windows))
}
