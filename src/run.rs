//! Executes a plan: measures the parent, compresses tensor by tensor, measures the result, writes the artifact.
//!
//! Everything is written into a temporary folder beside the output and renamed when whole. State is arguments and return
//! values; whoever runs a plan is told what happens through [`Event`]s.

mod files;
mod stages;
mod target;

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::data::read_text;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::measure::{Convention, Perplexity, perplexity};
use crate::methods::prune::Order;
use crate::methods::prune::llm_pruner::{Means, prune};
use crate::model::{
    Checkpoint, Compute, Cut, Model, Pass, Pruned, Weights, export_gguf, export_hf, export_packed,
};
use crate::plan::Plan;
use crate::recipe::{Evaluate, ExportFormat, Recipe};
use crate::text::Tokenizer;
use files::{hex, list_inputs, list_outputs};
use stages::Compressed;

pub use files::{InputFile, OutputFile};
pub use target::Target;

/// What a run tells while it runs.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A step with a known number of pieces, `done` of which are done.
    Progress {
        /// The step's name.
        step: &'a str,
        /// Pieces done.
        done: usize,
        /// Pieces in all.
        total: usize,
    },
    /// A figure is known.
    Measured {
        /// Whose: `parent` or `compressed`.
        whose: &'a str,
        /// The figure.
        perplexity: &'a Perplexity,
    },
}

/// Receives a run's events.
pub type Listener<'a> = &'a mut dyn FnMut(Event<'_>);

/// What was measured of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Weights.
    pub parameters: u64,
    /// Bytes of its tensors as they are stored.
    pub bytes: u64,
    /// Bytes if every weight were f16.
    pub bytes_f16: u64,
    /// Operations of the products with weights for one token, a multiplication and an addition each.
    pub flops_per_token: u64,
    /// Perplexity, if the recipe asks for it.
    pub perplexity: Option<Perplexity>,
    /// sum((w - w_parent)^2) / sum(w_parent^2) over the tensors that were changed; 0: reproduced exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_error: Option<f64>,
}

/// A stage as it ran.
#[derive(Clone, Debug, Serialize)]
pub struct StageReport {
    /// Its name.
    pub name: String,
    /// Wall time.
    pub seconds: f64,
    /// Most bytes of device buffers in use, up to its end.
    pub peak_vram: u64,
    /// What was measured after it.
    pub figures: Figures,
}

/// `manifest.json`: what was made from what, by what, and how good it is.
#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    /// Version of this layout.
    pub schema: u32,
    /// Version of the program.
    pub lopper: &'static str,
    /// Hash of `recipe.toml`.
    pub recipe_sha256: String,
    /// The recipe's seed.
    pub seed: u64,
    /// Adapter and driver, or `cpu`.
    pub device: String,
    /// The parent as it was opened.
    pub model: String,
    /// What was read: the parent's weight files and the evaluation's text.
    pub inputs: Vec<InputFile>,
    /// The parent's figures.
    pub parent: Figures,
    /// Stages in order.
    pub stages: Vec<StageReport>,
    /// Files in order.
    pub outputs: Vec<OutputFile>,
    /// What could not be kept exactly, and similar.
    pub warnings: Vec<String>,
}

/// Where and how a plan is run.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The recipe's text as it was given; it becomes part of the artifact.
    pub recipe_text: &'a str,
    /// The artifact's folder.
    pub out: &'a Path,
    /// Replace it if it is there.
    pub force: bool,
    /// What evaluations compute in.
    pub compute: Compute,
    /// What gradients of a calibration compute in.
    pub calibration: Compute,
    /// Bytes of device memory that may be used.
    pub budget: Option<u64>,
}

/// Runs a plan and writes the artifact. Returns its manifest.
pub fn run(
    recipe: &Recipe,
    plan: &Plan,
    parent: &Checkpoint,
    device: &Device,
    options: Options<'_>,
    listen: Listener<'_>,
) -> Result<Manifest> {
    let target = Target {
        path: options.out,
        force: options.force,
        folder: true,
        model: parent.path(),
    };
    target.check()?;
    let tokenizer = if parent.has_tokenizer() {
        Some(parent.tokenizer()?)
    } else {
        None
    };
    check_exports(parent, recipe, tokenizer.as_ref())?;
    let pass = Pass {
        device,
        compute: options.compute,
    };
    let evaluation = match &recipe.evaluate {
        Some(evaluate) => Some((evaluate, tokens(evaluate, parent, tokenizer.as_ref())?)),
        None => None,
    };
    let measure =
        |whose: &str, weights: &dyn Weights, listen: Listener<'_>| -> Result<Option<Perplexity>> {
            let Some((evaluate, tokens)) = &evaluation else {
                return Ok(None);
            };
            measure(whose, weights, &pass, evaluate, tokens, listen).map(Some)
        };
    let rows = |order: &Order| stages::rows(order, tokenizer.as_ref());
    let rows = plan.orders.iter().map(rows).collect::<Result<Vec<_>>>()?;
    let parent_figures = Figures {
        parameters: plan.parameters,
        bytes: plan.stored_bytes,
        bytes_f16: plan.f16_bytes,
        flops_per_token: plan.flops_per_token,
        perplexity: measure("parent", parent, listen)?,
        weight_error: None,
    };
    let mut stages = Vec::new();
    let (mut cut, mut pruned) = (Cut::nothing(parent.config()), None::<Pruned<'_>>);
    for (order, rows) in plan.orders.iter().zip(&rows) {
        let start = Instant::now();
        let means = Means {
            pass: Pass {
                compute: options.calibration,
                ..pass
            },
            rows: rows.as_ref(),
            seed: recipe.seed,
            budget: options.budget,
        };
        cut = prune(parent, cut, order, means, &mut |done, total| {
            listen(Event::Progress {
                step: "pruning",
                done,
                total,
            });
        })?;
        let left = pruned.insert(Pruned::new(parent, device, cut.clone()));
        let figures = Figures {
            perplexity: measure("pruned", left, listen)?,
            ..stages::figures(left)?
        };
        stages.push(report("prune", start, device, figures));
    }
    let base: &dyn Weights = match &pruned {
        Some(pruned) => pruned,
        None => parent,
    };
    let mut compressed = Compressed::new(base);
    if plan.tensors.iter().any(|line| line.scheme.is_some()) {
        let start = Instant::now();
        let weight_error = stages::quantize(plan, &mut compressed, device, listen)?;
        let figures = Figures {
            perplexity: measure("compressed", &compressed, listen)?,
            weight_error: Some(weight_error),
            ..stages::figures(&compressed)?
        };
        // Stages that need weights only are one pass over the tensors, each of which follows its last stage.
        stages.push(report("quantize", start, device, figures));
    }
    let mut manifest = Manifest {
        schema: 1,
        lopper: env!("CARGO_PKG_VERSION"),
        recipe_sha256: hex(&Sha256::digest(options.recipe_text.as_bytes())),
        seed: recipe.seed,
        device: describe(device),
        model: parent.path().display().to_string(),
        inputs: list_inputs(parent, recipe)?,
        parent: parent_figures,
        stages,
        outputs: Vec::new(),
        warnings: plan.warnings.clone(),
    };
    target.write(|folder| {
        write_artifact(
            folder,
            (recipe, options.recipe_text),
            (plan, parent),
            &compressed,
            tokenizer.as_ref(),
            &mut manifest,
            listen,
        )
    })?;
    Ok(manifest)
}

/// Makes once, before any work, what an export may find impossible after it.
fn check_exports(
    parent: &Checkpoint,
    recipe: &Recipe,
    tokenizer: Option<&Tokenizer>,
) -> Result<()> {
    for format in &recipe.export.formats {
        match (format, tokenizer) {
            (ExportFormat::Gguf, Some(tokenizer)) if parent.gguf().is_none() => {
                tokenizer.to_gguf_metadata(parent.config().vocab_size)?;
            }
            (ExportFormat::Hf, _) => {
                parent.config().check_plain(parent.path())?;
                parent.config_json()?;
            }
            (ExportFormat::Packed, _) => {
                parent.config_json()?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn describe(device: &Device) -> String {
    match device.gpu() {
        None => "cpu".into(),
        Some(gpu) => {
            let adapter = gpu.adapter();
            format!(
                "{} ({}, {})",
                adapter.info.name,
                crate::gpu::backend_name(adapter.info.backend),
                adapter.driver()
            )
        }
    }
}

/// The evaluation's tokens, cut to its limit.
fn tokens(
    evaluate: &Evaluate,
    parent: &Checkpoint,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<u32>> {
    let Some(tokenizer) = tokenizer else {
        return Err(Error::Read {
            path: parent.path().join("tokenizer.json"),
            source: std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "an evaluation needs the model's tokenizer",
            ),
        });
    };
    let mut tokens = tokenizer.encode(&read_text(&evaluate.text)?, false)?;
    tokens.truncate(evaluate.max_tokens.unwrap_or(usize::MAX));
    Ok(tokens)
}

fn measure(
    whose: &str,
    weights: &dyn Weights,
    pass: &Pass<'_>,
    evaluate: &Evaluate,
    tokens: &[u32],
    listen: Listener<'_>,
) -> Result<Perplexity> {
    let model = Model::load(pass.device, weights, |_, _| interrupt::check())?;
    let step = format!("measuring the {whose} model");
    let progress = |done: usize, total: usize| {
        listen(Event::Progress {
            step: &step,
            done,
            total,
        });
        interrupt::check()
    };
    let perplexity = perplexity(
        &model,
        pass,
        tokens,
        evaluate.ctx,
        Convention::AllButFirst,
        None,
        progress,
    )?;
    listen(Event::Measured {
        whose,
        perplexity: &perplexity,
    });
    Ok(perplexity)
}

fn report(name: &str, start: Instant, device: &Device, figures: Figures) -> StageReport {
    StageReport {
        name: name.into(),
        seconds: start.elapsed().as_secs_f64(),
        peak_vram: device.gpu().map_or(0, |gpu| gpu.memory().1),
        figures,
    }
}

fn write_artifact(
    folder: &Path,
    (recipe, recipe_text): (&Recipe, &str),
    (plan, parent): (&Plan, &Checkpoint),
    compressed: &Compressed<'_>,
    tokenizer: Option<&Tokenizer>,
    manifest: &mut Manifest,
    listen: Listener<'_>,
) -> Result<()> {
    let make = |path: &Path| std::fs::create_dir(path).map_err(Error::write(path));
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(Error::write(&path))
    };
    make(folder)?;
    put("recipe.toml", recipe_text.to_string())?;
    put("plan.json", pretty(plan))?;
    let total = recipe.export.formats.len();
    for (done, format) in recipe.export.formats.iter().enumerate() {
        interrupt::check()?;
        listen(Event::Progress {
            step: "writing",
            done,
            total,
        });
        match format {
            ExportFormat::Gguf => {
                export_gguf(&folder.join("model.gguf"), parent, compressed, tokenizer)?;
            }
            ExportFormat::Hf => {
                make(&folder.join("hf"))?;
                let config = parent.config_json()?;
                export_hf(&folder.join("hf"), config, compressed, tokenizer)?;
            }
            ExportFormat::Packed => {
                make(&folder.join("packed"))?;
                export_packed(
                    &folder.join("packed"),
                    parent.config_json()?,
                    compressed,
                    tokenizer,
                )?;
            }
        }
    }
    listen(Event::Progress {
        step: "writing",
        done: total,
        total,
    });
    manifest.outputs = list_outputs(folder)?;
    put("manifest.json", pretty(manifest))
}

fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value)
        .expect("plans and manifests are plain tables and values");
    text + "\n"
}
