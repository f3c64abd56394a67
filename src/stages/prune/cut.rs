//! What is left of a model when channels, heads or blocks are taken out, whichever method chose them: planned and written.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::Result;
use crate::methods::prune::left_specs;
use crate::methods::quantize::Scheme;
use crate::methods::quantize::rtn::rtn;
use crate::model::{
    Config, CopyOf, KeptChannels, Outline, Pruned, TensorSpec, Weights, codes_survive, column_span,
};
use crate::stages::saved;
use crate::tensor::{Packed, WeightFormat};

/// What becomes of matrices whose groups do not survive a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Requantize {
    /// Their own type again, where what is left is whole groups of it; else f16.
    #[default]
    Own,
    /// f16.
    F16,
}

impl Requantize {
    /// The format of what is left of a matrix in `format`, `columns` of them, when others go in runs of `span`; and whether it is
    /// rounded.
    pub(super) fn left(
        self,
        format: WeightFormat,
        columns: usize,
        span: usize,
    ) -> (WeightFormat, bool) {
        if codes_survive(format, span) {
            return (format, false);
        }
        if format.ty.is_sparse() {
            // What is left of a pattern is none.
            return (WeightFormat::f16(), format.ty.has_scales());
        }
        let whole = columns.is_multiple_of(format.group_columns(columns));
        match self {
            Requantize::Own if whole && Scheme::of(format).is_some() => (format, true),
            _ => (WeightFormat::f16(), true),
        }
    }
}

/// What a cut leaves, from headers alone.
pub(super) struct CutPlan {
    /// What is left.
    pub(super) outline: Outline,
    /// What is done to tensors, by their names afterwards.
    pub(super) changes: HashMap<String, String>,
    /// What becomes of codes that do not survive.
    pub(super) warnings: Vec<String>,
}

/// Plans the cut of a model to what `config` says. `estimated`: only the run will know the sizes.
pub(super) fn plan_cut(
    model: &Outline,
    config: Config,
    estimated: bool,
    requantize: Requantize,
) -> CutPlan {
    let mut warnings = Vec::new();
    let mut specs = left_specs(&config, &model.specs);
    // A bias that some blocks only have is left in these only.
    specs.retain(|spec| model.find(&spec.name).is_some());
    let mut outline = Outline {
        specs,
        formats: Vec::new(),
        copies: Vec::new(),
        estimated: model.estimated || estimated,
        uneven: model.uneven,
        first: model.first.clone(),
        config,
    };
    let mut changes = HashMap::new();
    let mut dequantized = Vec::new();
    let mut requantized = Vec::new();
    for left in &outline.specs {
        let (whole, format) = model.find(&left.name).expect("these are left");
        let mut copy = model.copy_of(whole);
        let (mut cut, mut rounds) = (format, false);
        if left.columns < whole.columns {
            copy = None;
            let layer = whole.layer().unwrap_or(0);
            let blocks = (model.config.blocks[layer], outline.config.blocks[layer]);
            let span = column_span(&model.config, whole, blocks);
            (cut, rounds) = requantize.left(format, left.columns, span);
            if rounds {
                let list = if cut == format { &mut requantized } else { &mut dequantized };
                let bytes = [format, cut].map(|f| f.unpadded_bytes(left.rows, left.columns));
                list.push((left.name.as_str(), format, bytes));
            }
        }
        if left.shape() != whole.shape() {
            let from = format!("cut from {:?}", whole.shape());
            let text = match (cut == format, rounds) {
                (true, false) => from,
                (true, true) => format!("{from}, requantized to {}", cut.label()),
                (false, _) => format!("{from}, dequantized to {}", cut.label()),
            };
            changes.insert(left.name.clone(), text);
        }
        outline.formats.push(cut);
        outline.copies.push(copy);
    }
    if let Some((first, format, _)) = requantized.first() {
        warnings.push(format!(
            "groups of columns that share a scale do not survive a cut through them: {} quantized tensors ({first}, …) are rounded to their own type again ({}), by as much as the result says",
            requantized.len(),
            format.label(),
        ));
    }
    if let Some((first, ..)) = dequantized.first() {
        let sum = |index: usize| dequantized.iter().map(|(.., bytes)| bytes[index]).sum::<u64>();
        warnings.push(format!(
            "groups of columns that share a scale do not survive a cut through them: {} quantized tensors ({first}, …) are kept in f16, {} bytes instead of {}; quantize them again afterwards",
            dequantized.len(),
            sum(1),
            sum(0),
        ));
    }
    CutPlan { outline, changes, warnings }
}

/// What is kept of the model before it, by the folder of a stage that is done; `None` if that pruned nothing.
pub fn kept(folder: &Path) -> Result<Option<KeptChannels>> {
    let saved: Option<(usize, KeptChannels)> = saved(folder, ROUNDS)?;
    Ok(saved.map(|(_, kept)| kept))
}

/// What is left of a model, with groups made anew where they did not survive.
pub(super) struct Cut<'a> {
    model: &'a dyn Weights,
    device: &'a Device,
    pruned: Pruned<'a>,
    requantize: Requantize,
}

impl<'a> Cut<'a> {
    /// What `kept` says of `model`.
    pub(super) fn new(
        model: &'a dyn Weights,
        device: &'a Device,
        kept: KeptChannels,
        requantize: Requantize,
    ) -> Self {
        Self { model, device, pruned: Pruned::new(model, device, kept), requantize }
    }
}

/// The same with nothing rounded, by the folder of a stage that is done: what the rounding is measured against.
pub(super) fn unrounded<'a>(
    model: &'a dyn Weights,
    device: &'a Device,
    folder: &Path,
) -> Result<Option<Box<dyn Weights + 'a>>> {
    let exact = |kept| Exact(Pruned::new(model, device, kept));
    Ok(kept(folder)?.map(|kept| Box::new(exact(kept)) as Box<dyn Weights + 'a>))
}

impl Weights for Cut<'_> {
    fn config(&self) -> &Config {
        self.pruned.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.pruned.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        let format = self.format(spec)?;
        match Scheme::of(format).filter(|_| self.pruned.format(spec).is_ok_and(|f| f != format)) {
            Some(scheme) => rtn(self.device, &self.pruned.exact(spec)?, scheme, &spec.name),
            None => self.pruned.load(spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        let cut = self.pruned.format(spec)?;
        let whole = self.pruned.whole(spec).expect("what is left was there before");
        let own = self.model.format(whole)?;
        if cut == own {
            return Ok(cut);
        }
        let span = self.pruned.column_span(spec, whole);
        Ok(self.requantize.left(own, spec.columns, span).0)
    }

    fn copy_of(&self, spec: &TensorSpec) -> Option<CopyOf> {
        self.pruned.copy_of(spec)
    }
}

/// What is left, in f32 where groups did not survive.
struct Exact<'a>(Pruned<'a>);

impl Weights for Exact<'_> {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn specs(&self) -> &[TensorSpec] {
        self.0.specs()
    }

    fn load(&self, spec: &TensorSpec) -> Result<Packed> {
        match self.0.loses_groups(spec)? {
            true => self.0.exact(spec),
            false => self.0.load(spec),
        }
    }

    fn format(&self, spec: &TensorSpec) -> Result<WeightFormat> {
        match self.0.loses_groups(spec)? {
            true => Ok(WeightFormat::f32()),
            false => self.0.format(spec),
        }
    }
}

/// The file in a stage's folder that says which rounds are done, and the numbers of the blocks and channels that they kept.
pub(super) const ROUNDS: &str = "kept.json";
