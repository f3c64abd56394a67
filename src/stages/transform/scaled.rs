//! What methods share that scale channels: their statistics, block by block, and what is saved of each block.

use std::collections::HashMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::REPORT;
use crate::error::{Error, Result};
use crate::methods::calibration::{Calibration, Feed};
use crate::methods::prune::slice::left_format;
use crate::methods::sequential::survey;
use crate::methods::transform::scale::{Found, PLACES, Scaled, Scales, is_scaled, places};
use crate::methods::transform::{Exact, Rounded};
use crate::model::{Config, Outline, Weights};
use crate::stages::{Context, Needs, Planned, Report, save, saved};
use crate::walk::{BlockSums, Kind};

/// Where the statistics come from: of what goes through the model's own blocks, whose inputs no scale of a block before changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct Observed {
    /// What they are taken over.
    #[command(flatten)]
    pub calibration: Calibration,
    /// Take statistics from this folder, which `lopper calibrate` wrote; no calibration text is read then
    #[arg(long, value_name = "STATS", conflicts_with_all = ["calib", "offset", "samples", "length"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
}

impl Observed {
    /// What a method needs that takes sums of these kinds.
    pub fn needs<'a>(&'a self, kinds: &'a [Kind]) -> Needs<'a> {
        let calibration = self.stats.is_none().then_some(&self.calibration);
        Needs { calibration, stats: self.stats.as_deref(), kinds, ..Needs::default() }
    }

    /// Tokens of the calibration; of statistics none.
    pub fn tokens(&self) -> u64 {
        match self.stats {
            Some(_) => 0,
            None => self.calibration.samples().saturating_mul(self.calibration.length()) as u64,
        }
    }
}

/// An error if norms do not stand before the layers that read them, or a feed-forward has no gate: then scales cannot move there.
pub(super) fn check(model: &Outline, method: &str) -> Result<()> {
    match model.config.family.bidirectional {
        false => Ok(()),
        true => model
            .config
            .without_encoder(method, "scales move from norms before layers, and through gates"),
    }
}

/// What is decided of a place: its scales, if they are not 1, and what is reported of it; `None` where nothing is to be decided.
pub(super) type Decision<T> = Option<(Option<Vec<f32>>, T)>;

/// What is saved of a place.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Decided<T> {
    /// The module that divides.
    from: String,
    /// Those whose columns are multiplied.
    to: Vec<String>,
    scales: Option<Vec<f32>>,
    told: T,
}

/// What is saved of a block: of each of [`PLACES`] what is decided.
type Block<T> = [Option<Decided<T>>; 4];

/// In the stage's folder, of each block.
fn file(layer: usize) -> String {
    format!("scales-{layer:05}.json")
}

/// Decides what is open yet, block by block, and writes the stage's result.
pub(super) fn run<T: Clone + Serialize + DeserializeOwned>(
    model: &dyn Weights,
    context: &mut Context<'_>,
    kinds: &[Kind],
    decide: &mut dyn FnMut(&Found<'_>, &BlockSums) -> Result<Decision<T>>,
) -> Result<Config> {
    let layers = model.config().layers();
    let folder = context.folder;
    let done = (0..layers).take_while(|layer| folder.join(file(*layer)).exists()).count();
    let inputs = context.inputs(Feed::Parent);
    let progress = &mut *context.progress;
    survey(model, &inputs, kinds, done..layers, &mut |layer, sums| {
        progress("calibrating", layer, layers);
        let mut block: Block<T> = [const { None }; 4];
        for found in places(model, layer) {
            let at = PLACES.iter().position(|place| place.from == found.place.from);
            let decision = decide(&found, sums)?;
            let modules = found.behind.iter().map(|spec| spec.module().to_string());
            block[at.expect("a place is a row of the table")] = decision.map(|(scales, told)| {
                Decided { from: found.from.module().into(), to: modules.collect(), scales, told }
            });
        }
        save(folder, &file(layer), &block)
    })?;
    // As they were saved, so that a run that was stopped goes on with the same numbers.
    context.write("scaling", &Rounded(scaled::<T>(model, folder)?))
}

/// The blocks of a folder of which all was decided.
fn blocks<T: DeserializeOwned>(folder: &Path) -> Result<Vec<Block<T>>> {
    let mut blocks = Vec::new();
    while let Some(block) = saved::<Block<T>>(folder, &file(blocks.len()))? {
        blocks.push(block);
    }
    Ok(blocks)
}

/// The model with the scales of a stage's folder.
fn scaled<'a, T: DeserializeOwned>(model: &'a dyn Weights, folder: &Path) -> Result<Scaled<'a>> {
    let blocks = blocks::<T>(folder)?;
    let found = format!("{} blocks, or others' channels", blocks.len());
    let scales = blocks.into_iter();
    let scales = scales.map(|block| Scales(block.map(|decided| decided?.scales))).collect();
    Scaled::new(model, scales).ok_or_else(|| Error::Malformed {
        path: folder.into(),
        what: "saved scales".into(),
        offset: None,
        expected: format!("those of the channels of {} blocks", model.config().layers()),
        found,
    })
}

/// The same unrounded.
pub(super) fn unrounded<'a, T: DeserializeOwned>(
    model: &'a dyn Weights,
    folder: &Path,
) -> Result<Option<Box<dyn Weights + 'a>>> {
    Ok(Some(Box::new(Exact(scaled::<T>(model, folder)?))))
}

/// What is told of all places.
pub(super) fn report<T: Serialize + DeserializeOwned>(
    folder: &Path,
    method: Value,
) -> Result<Report> {
    let mut all = Vec::new();
    for Decided { from, to, scales, told } in blocks::<T>(folder)?.into_iter().flatten().flatten() {
        let mut line = json!({"from": from, "to": to});
        let end = |scales: &[f32], pick: fn(f32, f32) -> f32| scales.iter().copied().reduce(pick);
        if let Some(scales) = &scales {
            line["scales"] = json!([end(scales, f32::min), end(scales, f32::max)]);
        }
        let told = serde_json::to_value(&told).expect("reports are plain values");
        if let (Value::Object(line), Value::Object(told)) = (&mut line, told) {
            line.extend(told);
        }
        all.push(line);
    }
    Ok(Report::new(REPORT, json!({"schema": 1, "method": method, "places": all})))
}

/// The plan of scaling a model: sizes are what they were, but for codes, which do not survive. `words`: what is done.
pub(super) fn plan(model: &Outline, observed: &Observed, words: &str, gram: bool) -> Planned {
    let mut outline = model.clone();
    let (mut changes, mut dequantized) = (HashMap::new(), Vec::new());
    let formats = outline.formats.iter_mut().zip(&mut outline.copies);
    for (spec, (format, copy)) in outline.specs.iter().zip(formats) {
        if !is_scaled(spec) {
            continue;
        }
        let (before, after) = (*format, left_format(*format));
        let mut text = words.to_string();
        if before != after {
            text += &format!(", dequantized to {}", after.label());
            dequantized.push((spec.name.clone(), before, after));
        }
        (*format, *copy) = (after, None);
        changes.insert(spec.name.clone(), text);
    }
    let widest = outline.specs.iter().filter(|spec| is_scaled(spec)).map(|spec| spec.columns);
    let widest = widest.max().unwrap_or(0) as u64;
    let gram = if gram { widest * widest } else { 0 };
    let (hidden, largest) = (model.config.hidden_size as u64, model.largest());
    let blocks = model.config.layers().max(1) as u64;
    Planned {
        warnings: super::rotate::codes_go(&dequantized).into_iter().collect(),
        // A block's weights, the residual stream, the sums of each input, and a product's results.
        peak_device_bytes: 2 * model.bytes() / blocks
            + observed.tokens().saturating_mul(4 * hidden)
            + 8 * gram
            + 4 * 4096 * (2 * widest + 8 * hidden)
            + 4 * largest,
        // Weights before, scaled and rounded, what they lose and its product.
        peak_host_bytes: 4 * (6 * largest + 4 * gram),
        outline,
        changes,
    }
}
