//! Recipe and checkpoint headers to decisions: every tensor, its bytes before and after, memory, submits. Pure: it reads
//! no weight, opens no device and prints nothing, so it can be shown (`--dry-run`) and tested as it is.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::gpu::SUBMIT_SECONDS;
use crate::model::{Checkpoint, Outline, TensorSpec, Weights, gguf_type};
use crate::recipe::{ExportFormat, Recipe};
use crate::stages::{Needs, Planned};
use crate::tensor::WeightFormat;

/// Everything that will be done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// One line per tensor, in the order a model meets them.
    pub tensors: Vec<TensorPlan>,
    /// The stages in order.
    pub stages: Vec<StagePlan>,
    /// Weights in all, of the parent.
    pub parameters: u64,
    /// Weights that are left.
    pub output_parameters: u64,
    /// Operations of the parent's products with weights for one token, a multiplication and an addition each.
    pub flops_per_token: u64,
    /// The same of what is left.
    pub output_flops_per_token: u64,
    /// Bytes of the tensors as the parent stores them.
    pub stored_bytes: u64,
    /// Bytes of the parent's tensors in f16.
    pub f16_bytes: u64,
    /// Bytes of the tensors afterwards, in Lopper's packed format.
    pub output_bytes: u64,
    /// Bytes of all stages' results, which are on the disk together until the run is done.
    pub work_bytes: u64,
    /// Most bytes of device memory in use at once.
    pub peak_device_bytes: u64,
    /// The same with evaluations that hold one block's weights at a time, as they do within a smaller `--vram-budget`.
    pub least_device_bytes: u64,
    /// Most bytes of host memory in use at once, mapped files not counted.
    pub peak_host_bytes: u64,
    /// Submits, on a device of 1 TFLOP/s.
    pub estimated_submits: u64,
    /// What cannot be kept exactly in an export, and similar.
    pub warnings: Vec<String>,
}

/// One tensor of what is left.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// (rows, columns), or (length).
    pub shape: Vec<usize>,
    /// How the parent stores it.
    pub source: String,
    /// Bytes there.
    pub source_bytes: u64,
    /// What the stages do to it, in order; or `keep`.
    pub decision: String,
    /// Bytes afterwards.
    pub output_bytes: u64,
    /// Its type in the GGUF export.
    pub gguf: &'static str,
    /// The format afterwards.
    #[serde(skip)]
    pub format: WeightFormat,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StagePlan {
    /// Its kind.
    pub name: &'static str,
    /// Weights after it.
    pub parameters: u64,
    /// Bytes of its result.
    pub output_bytes: u64,
    /// Most bytes of device memory in use at once.
    pub peak_device_bytes: u64,
    /// Most bytes of host memory in use at once.
    pub peak_host_bytes: u64,
    /// What it takes beside weights, as the recipe states it.
    pub needs: serde_json::Value,
    /// The tensors that it changes, by their names afterwards.
    #[serde(skip)]
    pub changes: Vec<String>,
}

impl Plan {
    /// Decides. Errors name the recipe's key, or the tensor, that is at fault.
    pub fn new(recipe: &Recipe, parent: &Checkpoint) -> Result<Self> {
        let begin = Outline::of(parent)?;
        let (mut stages, mut warnings) = (Vec::new(), Vec::new());
        let mut planned: Vec<Planned> = Vec::new();
        for stage in &recipe.stage {
            let next = stage.plan(planned.last().map_or(&begin, |last| &last.outline))?;
            let number = stages.len() + 1;
            let name = stage.kind().name;
            let in_stage = |text: &String| format!("stage {number} ({name}): {text}");
            warnings.extend(next.warnings.iter().map(in_stage));
            let needs: Needs<'_> = stage.needs();
            stages.push(StagePlan {
                name,
                parameters: next.outline.parameters(),
                output_bytes: next.outline.bytes(),
                peak_device_bytes: next.peak_device_bytes,
                peak_host_bytes: next.peak_host_bytes,
                needs: serde_json::to_value(needs).expect("needs are plain values"),
                changes: next.changes.keys().cloned().collect(),
            });
            planned.push(next);
        }
        let end = planned.last().map_or(&begin, |last| &last.outline);
        check_exports(recipe, parent, end)?;
        if let Some(evaluate) = recipe.evaluate.as_ref().filter(|e| e.ctx < 2) {
            let found = evaluate.ctx.to_string();
            return Err(wrong("evaluate.ctx", "at least 2 tokens", found));
        }
        let tensors: Vec<TensorPlan> = end
            .tensors()
            .map(|(spec, format)| tensor_plan(spec, format, parent, &planned))
            .collect();
        let output_bytes = end.bytes();
        let widest = stages.iter().map(|stage| stage.output_bytes).max();
        let (mut tokens, mut evaluated) = (0, (0, 0));
        if let Some(evaluate) = &recipe.evaluate {
            tokens = evaluate.max_tokens.unwrap_or(16_384);
            // What a stage leaves may be larger than what it found.
            let grown = widest.unwrap_or(0).saturating_sub(begin.bytes());
            let (resident, streamed) = begin.evaluation_bytes(evaluate.ctx);
            evaluated = (resident.saturating_add(grown), streamed.saturating_add(grown));
            warnings.extend(begin.config.beyond_context(evaluate.ctx));
        }
        warnings.extend(rounded_in_gguf(recipe, &tensors));
        let passes = 1.0 + stages.len() as f64;
        let operations = 2.0 * begin.parameters() as f64 * tokens as f64 * passes;
        let peak = |of: fn(&StagePlan) -> u64| stages.iter().map(of).max().unwrap_or(0);
        Ok(Self {
            parameters: begin.parameters(),
            output_parameters: end.parameters(),
            flops_per_token: begin.flops_per_token(),
            output_flops_per_token: end.flops_per_token(),
            stored_bytes: parent.total_stored_bytes(),
            f16_bytes: 2 * begin.parameters(),
            output_bytes,
            work_bytes: stages.iter().map(|stage| stage.output_bytes).sum(),
            // Only an evaluation has a whole model on the device.
            peak_device_bytes: evaluated.0.max(peak(|stage| stage.peak_device_bytes)),
            least_device_bytes: evaluated.1.max(peak(|stage| stage.peak_device_bytes)),
            peak_host_bytes: peak(|stage| stage.peak_host_bytes).max(8 * begin.largest()),
            estimated_submits: tensors.len() as u64
                + (operations / 1e12 / SUBMIT_SECONDS).ceil() as u64,
            tensors,
            stages,
            warnings,
        })
    }

    /// An error if the plan needs more device memory than it may have.
    pub fn check_budget(&self, budget: Option<u64>) -> Result<()> {
        match budget {
            Some(budget) if self.least_device_bytes > budget => Err(Error::OutOfMemory {
                what: "the plan (the widest of an evaluation, pruning and quantizing, a block's weights at a time)"
                    .into(),
                bytes: self.least_device_bytes,
                used: 0,
                budget,
            }),
            _ => Ok(()),
        }
    }
}

fn wrong(key: &str, expected: &str, found: String) -> Error {
    Error::Key { path: "recipe".into(), key: key.into(), expected: expected.into(), found }
}

/// Refuses formats that cannot hold what is left.
fn check_exports(recipe: &Recipe, parent: &Checkpoint, left: &Outline) -> Result<()> {
    let formats = &recipe.export.formats;
    let twice = (1..formats.len()).find(|&index| formats[..index].contains(&formats[index]));
    if let Some(index) = twice {
        let found = format!("{:?} twice", formats[index]);
        return Err(wrong("export.formats", "each format once", found));
    }
    if formats.contains(&ExportFormat::Gguf) && !parent.has_tokenizer() {
        let why = "a GGUF file needs the model's tokenizer; leave gguf out of export.formats";
        return Err(Error::Read {
            path: parent.path().join("tokenizer.json"),
            source: std::io::Error::new(std::io::ErrorKind::NotFound, why),
        });
    }
    if !formats.contains(&ExportFormat::Hf) {
        return Ok(());
    }
    left.config.check_plain(parent.path())?;
    if left.estimated {
        return Err(Error::Unsupported {
            path: parent.path().into(),
            what: "a Hugging Face folder of a model pruned with global ranking".into(),
            why: "its layers differ in width, and a stock Llama configuration states one for all; use gguf or packed"
                .into(),
        });
    }
    Ok(())
}

fn tensor_plan(
    spec: &TensorSpec,
    format: WeightFormat,
    parent: &Checkpoint,
    stages: &[Planned],
) -> TensorPlan {
    let source = parent.specs().iter().find(|whole| whole.name == spec.name).unwrap_or(spec);
    let changes = stages.iter().filter_map(|stage| stage.changes.get(&spec.name));
    let changes: Vec<&str> = changes.map(String::as_str).collect();
    TensorPlan {
        name: spec.name.clone(),
        shape: spec.shape(),
        source: parent.stored_type(source),
        source_bytes: parent.stored_bytes(source),
        decision: match changes.is_empty() {
            true => "keep".into(),
            false => changes.join(", then "),
        },
        output_bytes: format.bytes(spec.rows, spec.columns),
        gguf: gguf_type(spec, format).0.name(),
        format,
    }
}

/// A warning of tensors that a GGUF file cannot hold as they are, if it is to be written and there are any.
fn rounded_in_gguf(recipe: &Recipe, tensors: &[TensorPlan]) -> Option<String> {
    let mut rounded = tensors
        .iter()
        .filter(|tensor| tensor.format.ty.has_scales() && tensor.gguf.eq_ignore_ascii_case("f16"));
    let first = rounded.next()?;
    recipe.export.formats.contains(&ExportFormat::Gguf).then(|| format!(
        "GGUF's plain types cannot hold {}: {} tensors ({}, …) are exported to model.gguf as f16, larger and rounded once more",
        first.format.label(),
        1 + rounded.count(),
        first.name,
    ))
}
