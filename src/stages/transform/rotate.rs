//! QuaRot's rotations that weights take ([`crate::methods::transform::rotate`]).

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{KIND, REPORT};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::methods::prune::left_specs;
use crate::methods::prune::slice::{is_norm, left, left_format};
use crate::methods::transform::hadamard::Parts;
use crate::methods::transform::rotate::{Rotated, Rotates};
use crate::methods::transform::{Exact, Rounded};
use crate::model::{Config, Outline, Role, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{Context, Needs, Planned, Report, Stage, StageKind, keys, save, saved};
use crate::tensor::WeightFormat;

/// The residual stream and the heads of values, rotated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// What becomes of the weights
    #[arg(skip)]
    #[serde(default)]
    method: String,
    /// Rotate only one of the two: the heads of values, which every family allows, or the residual stream
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    only: Option<Only>,
}

/// What is rotated alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    /// The residual stream.
    Stream,
    /// The heads of values.
    Heads,
}

/// In the stage's folder: what it was drawn by.
const DRAWN: &str = "rotation.json";

#[derive(Debug, Serialize, Deserialize)]
struct Drawn {
    seed: u64,
    /// The residual stream's width and what its rotation is made of; likewise a head's.
    stream: Option<(usize, Parts)>,
    heads: Option<(usize, Parts)>,
}

impl OfMethod for Rotate {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self
    }
}

impl Rotate {
    fn rotates(&self) -> Rotates {
        Rotates { stream: self.only != Some(Only::Heads), heads: self.only != Some(Only::Stream) }
    }

    /// What a run noted.
    fn drawn(folder: &Path) -> Result<Drawn> {
        saved(folder, DRAWN)?.ok_or_else(|| Error::Malformed {
            path: folder.join(DRAWN),
            what: "saved state".into(),
            offset: None,
            expected: "the seed of the rotations".into(),
            found: "no such file".into(),
        })
    }
}

impl Stage for Rotate {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        Needs::default()
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let rotates = self.rotates();
        rotates.check(&model.config, &model.specs)?;
        let width = model.config.hidden_size;
        let config = match rotates.stream {
            true => left(&model.config, width, false),
            false => model.config.clone(),
        };
        let mut outline = Outline {
            specs: Vec::new(),
            formats: Vec::new(),
            copies: Vec::new(),
            first: model.first.clone(),
            config,
            ..*model
        };
        let (mut changes, mut dequantized) = (HashMap::new(), Vec::new());
        for spec in left_specs(&outline.config, &model.specs) {
            let whole = model.find(&spec.name).or_else(|| {
                let head = spec.role == Role::Head;
                model.tensors().find(|(whole, _)| head && whole.role == Role::Embedding)
            });
            // A bias that some blocks only have.
            let Some((whole, format)) = whole else { continue };
            let (mut copy, mut after) = (model.copy_of(whole), format);
            if rotates.changes(&spec) {
                (copy, after) = (None, left_format(format));
                let mut text = match is_norm(spec.slot) {
                    true => "gains folded".to_string(),
                    false => "rotated".to_string(),
                };
                if after != format {
                    text += &format!(", dequantized to {}", after.label());
                    dequantized.push((spec.name.clone(), format, after));
                }
                changes.insert(spec.name.clone(), text);
            }
            outline.specs.push(spec);
            outline.formats.push(after);
            outline.copies.push(copy);
        }
        let mut warnings = Vec::new();
        if model.config.tied && rotates.stream {
            let (before, after) = (model.unpadded_bytes(), outline.unpadded_bytes());
            warnings.push(format!(
                "the head was the embedding and is a matrix of its own now, with {} weights: the final norm's gains are part of it; \
                 the model takes {after} bytes, {:.1} % of the {before} before (--only heads keeps it)",
                outline.config.vocab_size * width,
                100.0 * after as f64 / before as f64,
            ));
        }
        warnings.extend(codes_go(&dequantized));
        Ok(Planned {
            // A matrix before and after, turned over and in f64 by rows: all on the host.
            peak_device_bytes: 0,
            peak_host_bytes: 4 * 5 * model.largest(),
            outline,
            changes,
            warnings,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let (rotates, config) = (self.rotates(), model.config());
        let of = |is: bool, width: usize| is.then(|| (width, Parts::of(width)));
        let drawn = Drawn {
            seed: context.seed,
            stream: of(rotates.stream, config.hidden_size),
            heads: of(rotates.heads, config.head_dim),
        };
        save(context.folder, DRAWN, &drawn)?;
        let rotated = Rotated::new(model, context.pass.device, rotates, drawn.seed)?;
        context.write("rotating", &Rounded(rotated))
    }

    fn unrounded<'a>(
        &self,
        model: &'a dyn Weights,
        device: &'a Device,
        folder: &Path,
    ) -> Result<Option<Box<dyn Weights + 'a>>> {
        let seed = Self::drawn(folder)?.seed;
        Ok(Some(Box::new(Exact(Rotated::new(model, device, self.rotates(), seed)?))))
    }

    fn is_random(&self) -> bool {
        true
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let Drawn { seed, stream, heads } = Self::drawn(folder)?;
        let words = |of: Option<(usize, Parts)>| {
            of.map(|(width, parts)| json!({"width": width, "matrix": parts.words()}))
        };
        let mut value = json!({"schema": 1, "method": {"name": self.method, "seed": seed}});
        for (name, of) in [("stream", stream), ("heads", heads)] {
            if let Some(of) = words(of) {
                value[name] = of;
            }
        }
        Ok(Some(Report::new(REPORT, value)))
    }
}

/// A warning of tensors whose codes do not survive, with their formats before and after.
pub(super) fn codes_go(dequantized: &[(String, WeightFormat, WeightFormat)]) -> Option<String> {
    let (first, before, after) = dequantized.first()?;
    Some(format!(
        "codes do not survive a transformation: {} quantized tensors ({first}, …) become {} from {} and take more bytes; quantize \
         them again afterwards (transform --then TYPE)",
        dequantized.len(),
        after.label(),
        before.label(),
    ))
}
