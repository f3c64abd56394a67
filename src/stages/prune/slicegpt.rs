//! SliceGPT: the residual stream in the basis of its principal components, without the least of them.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::KIND;
use super::channels::share;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Slot;
use crate::methods::BadField;
use crate::methods::calibration::{Calibration, Feed};
use crate::methods::prune::left_specs;
use crate::methods::prune::slice::{
    Basis, Exact, Folded, Progress, Sliced, bases, check, device_bytes, is_norm, is_rotated,
    is_shortcut, kept_width, left, left_format, shortcut_format, whole_basis,
};
use crate::model::{Config, Outline, Role, TensorSpec, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{
    Context, Needs, Planned, Stage, StageKind, keys, save_bytes, saved_bytes, without_encoder,
};
use crate::tensor::WeightFormat;

/// The residual stream's principal components, and the least of them cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct SliceGpt {
    /// How what goes is found
    #[arg(skip)]
    #[serde(default)]
    pub method: SliceMethod,
    /// The share of the residual stream's columns that goes: 0 or more, and less than 1
    #[arg(long, value_parser = share)]
    pub ratio: f64,
    /// Columns that are left are a multiple of this (default: 8)
    #[arg(long)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple: Option<usize>,
    /// One basis for the whole network, which leaves a plain model of smaller width, or one for each half of each block, which
    /// only packed/ holds
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub form: Form,
    /// What each block is fed: what the compressed blocks before it make of the text, or what the parent's do (default: compressed)
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed: Option<Feed>,
    /// What the components are found on
    #[command(flatten)]
    #[serde(default)]
    pub calibration: Calibration,
}

/// How what is sliced is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SliceMethod {
    /// Principal components.
    #[default]
    #[serde(rename = "slicegpt")]
    SliceGpt,
}

/// How many bases the residual stream has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// One.
    #[default]
    Global,
    /// One for each half of each block, and one for the head.
    Blocks,
}

/// In the stage's folder: a basis, f32, direction by direction.
fn basis_file(place: usize) -> String {
    format!("basis-{place:04}.f32")
}

/// And, until the one basis is known, blocks that were seen (u64) and the sum of their second moments (f64).
const MOMENTS: &str = "moments.f64";

impl SliceGpt {
    /// The columns that are left of the residual stream of `config`.
    pub fn kept(&self, config: &Config) -> Result<usize, BadField> {
        kept_width(config.hidden_size, self.ratio, self.multiple.unwrap_or(8))
    }
}

impl OfMethod for SliceGpt {
    fn of_method(mut self, _name: &'static str) -> Self {
        self.calibration.fill(128, 256);
        self
    }
}

impl Stage for SliceGpt {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs { calibration: Some(&self.calibration), ..Needs::default() }
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let width = model.config.hidden_size;
        let kept = self.kept(&model.config).map_err(BadField::in_recipe)?;
        if self.form == Form::Global && self.feed == Some(Feed::Compressed) {
            let expected = "parent, but for blocks: one basis is that of all blocks together";
            return Err(BadField::new("feed", expected, "compressed").in_recipe());
        }
        check(&model.config, &model.specs)?;
        let why = "directions of the residual stream are found in one stack of blocks";
        without_encoder(&model.config, "method", "slicegpt", why).map_err(BadField::in_recipe)?;
        if model.config.experts.is_some() {
            return Err(Error::Unsupported {
                path: "slicegpt".into(),
                what: format!("a model of the family {}", model.config.family.name),
                why: "directions of the residual stream are found behind one feed-forward, not behind experts".into(),
            });
        }
        let blocks = self.form == Form::Blocks;
        let config = left(&model.config, kept, blocks);
        let mut outline = Outline {
            specs: Vec::new(),
            formats: Vec::new(),
            copies: Vec::new(),
            estimated: model.estimated,
            uneven: model.uneven,
            first: model.first.clone(),
            config,
        };
        let (mut changes, mut dequantized) = (HashMap::new(), Vec::new());
        let mut output = WeightFormat::f16();
        for spec in left_specs(&outline.config, &model.specs) {
            if is_shortcut(&spec) {
                // They follow the layer that their type goes by, and the feed-forward's that of the same block.
                changes.insert(spec.name.clone(), "added".into());
                outline.specs.push(spec);
                outline.formats.push(shortcut_format(output));
                outline.copies.push(None);
                continue;
            }
            let whole = model.find(&spec.name).or_else(|| {
                let head = spec.role == Role::Head;
                model.tensors().find(|(whole, _)| head && whole.role == Role::Embedding)
            });
            // A bias that some blocks only have is left in these only.
            let Some((whole, format)) = whole else { continue };
            let (mut copy, mut after) = (model.copy_of(whole), format);
            if (spec.slot, spec.role) == (Slot::Output, Role::Linear) {
                output = format;
            }
            if is_rotated(&spec) {
                (copy, after) = (None, left_format(format));
                let mut text = match whole.shape() == spec.shape() {
                    true => "rotated".to_string(),
                    false => format!("sliced from {:?}", whole.shape()),
                };
                if after != format {
                    text += &format!(", dequantized to {}", after.label());
                    dequantized.push((spec.clone(), format, after));
                }
                changes.insert(spec.name.clone(), text);
            } else if is_norm(spec.slot) {
                changes.insert(spec.name.clone(), "gains folded".into());
                copy = None;
            }
            outline.specs.push(spec);
            outline.formats.push(after);
            outline.copies.push(copy);
        }
        let tokens = (self.calibration.samples(), self.calibration.length());
        let warnings = self.warnings(model, &outline, &dequantized);
        Ok(Planned {
            peak_device_bytes: device_bytes(model, tokens),
            // What is decomposed, its eigenvectors and room to find them; a tensor before and after.
            peak_host_bytes: 32 * (width * width) as u64
                + 3 * 4 * model.largest()
                + 4 * (self.places(&model.config) * kept * width) as u64,
            outline,
            changes,
            warnings,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        // The plan may have had to guess the sizes.
        let kept = self.kept(model.config()).map_err(BadField::in_recipe)?;
        let known = self.known(context.folder, model.config(), kept)?;
        let bases = match known.len() == self.places(model.config()) {
            true => known,
            false => self.find(model, kept, known, context)?,
        };
        let sliced = Sliced::new(model, context.pass.device, bases)?;
        context.write("rotating", &sliced)
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        device: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        let kept = self.kept(model.config()).map_err(BadField::in_recipe)?;
        let bases = self.known(folder, model.config(), kept)?;
        Ok(Some(Box::new(Exact(Sliced::new(model, device, bases)?))))
    }
}

impl SliceGpt {
    /// Bases of the stream of `config`.
    fn places(&self, config: &Config) -> usize {
        match self.form {
            Form::Global => 1,
            Form::Blocks => 2 * config.layers() + 1,
        }
    }

    /// Those that a stage's folder has, of `kept` directions each.
    fn known(&self, folder: &Path, config: &Config, kept: usize) -> Result<Vec<Basis>> {
        let width = config.hidden_size;
        let mut bases = Vec::new();
        for place in 0..self.places(config) {
            let name = basis_file(place);
            let Some(bytes) = saved_bytes(folder, &name)? else { break };
            if bytes.len() != 4 * width * kept {
                return Err(wrong(folder, &name, 4 * width * kept, bytes.len()));
            }
            bases.push(Basis::new(width, bytemuck::pod_collect_to_vec(&bytes)));
        }
        Ok(bases)
    }

    /// Finds what is not `known` and saves it, with what it is found by on the way.
    fn find(
        &self,
        model: &dyn Weights,
        kept: usize,
        known: Vec<Basis>,
        context: &mut Context<'_>,
    ) -> Result<Vec<Basis>> {
        let rows = context.rows.expect("the stage needs calibration, so it has rows");
        let folded = Folded::new(model)?;
        let Context { pass, folder, progress, .. } = context;
        let report = &mut |done: usize, total: usize| progress("calibrating", done, total);
        let save = |place: usize, basis: &Basis| {
            let rows = basis.rows();
            let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
            save_bytes(folder, &basis_file(place), &bytes)
        };
        if self.form == Form::Blocks {
            let feed = self.feed.unwrap_or_default();
            let save = &mut |place: usize, basis: &Basis| save(place, basis);
            return bases(&folded, (*pass, rows), kept, feed, known, save, report);
        }
        let start = progress_of(folder, model.config().hidden_size)?;
        let save_moments = &mut |progress: &Progress| {
            let mut bytes = (progress.blocks as u64).to_le_bytes().to_vec();
            bytes.extend(progress.moments.iter().flat_map(|value| value.to_le_bytes()));
            save_bytes(folder, MOMENTS, &bytes)
        };
        let basis = whole_basis(&folded, (*pass, rows), kept, start, save_moments, report)?;
        save(0, &basis)?;
        Ok(vec![basis])
    }

    /// What the user may not expect of what is `left` of `model`. `dequantized`: tensors with their formats before and after.
    fn warnings(
        &self,
        model: &Outline,
        left: &Outline,
        dequantized: &[(TensorSpec, WeightFormat, WeightFormat)],
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        let (width, kept) = (model.config.hidden_size, left.config.hidden_size);
        let share = 1.0 - kept as f64 / width as f64;
        if (share - self.ratio).abs() > self.ratio / 20.0 {
            warnings.push(format!(
                "a ratio of {} cannot be met exactly: hidden {width} to {kept} ({share:.3} go, multiples of {})",
                self.ratio,
                self.multiple.unwrap_or(8),
            ));
        }
        if model.config.tied {
            let (before, after) = (model.parameters(), left.parameters());
            warnings.push(format!(
                "the head was the embedding and is a matrix of its own now, with {} weights: the final norm's gains are part of it; \
                 the model has {after} parameters, {:.1} % of the {before} before",
                left.config.vocab_size * kept,
                100.0 * after as f64 / before as f64,
            ));
        }
        if self.form == Form::Blocks {
            let shortcuts = left.specs.iter().filter(|spec| is_shortcut(spec));
            let weights: usize = shortcuts.map(|spec| spec.rows * spec.columns).sum();
            warnings.push(format!(
                "two products a block take the residual stream from one basis to the next: {weights} of the {} parameters; only \
                 packed/ holds them (--form global leaves a plain model)",
                left.parameters(),
            ));
        }
        let tokens = self.calibration.samples().saturating_mul(self.calibration.length());
        if tokens < width {
            warnings.push(format!(
                "the calibration has {tokens} tokens and the residual stream {width} columns: the moments are singular, no more \
                 than {tokens} directions are told apart, and which of the others stay means nothing (more --samples)"
            ));
        }
        if let Some((first, ..)) = dequantized.first() {
            let sum = |after: bool| -> u64 {
                let bytes = |(spec, was, is): &(TensorSpec, _, _)| {
                    let format: WeightFormat = if after { *is } else { *was };
                    format.unpadded_bytes(spec.rows, spec.columns)
                };
                dequantized.iter().map(bytes).sum()
            };
            warnings.push(format!(
                "codes do not survive a rotation: {} quantized tensors ({}, …) are kept in f16, {} bytes instead of {}; quantize \
                 them again afterwards (prune --then q4_0)",
                dequantized.len(),
                first.name,
                sum(true),
                sum(false),
            ));
        }
        warnings
    }
}

/// What an interrupted run knew of the second moments of a stream of so many columns.
fn progress_of(folder: &Path, width: usize) -> Result<Option<Progress>> {
    let Some(bytes) = saved_bytes(folder, MOMENTS)? else { return Ok(None) };
    let expected = 8 + 8 * width * width;
    if bytes.len() != expected {
        return Err(wrong(folder, MOMENTS, expected, bytes.len()));
    }
    let words: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
    let moments = words[1..].iter().map(|word| f64::from_bits(*word)).collect();
    Ok(Some(Progress { blocks: words[0] as usize, moments }))
}

fn wrong(folder: &Path, name: &str, expected: usize, found: usize) -> Error {
    Error::Malformed {
        path: folder.join(name),
        what: "saved state".into(),
        offset: None,
        expected: format!("{expected} bytes"),
        found: format!("{found}"),
    }
}
