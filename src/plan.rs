//! Recipe and checkpoint headers to decisions: every tensor, its bytes before and after, memory, submits. Pure: it reads
//! no weight (but to [foresee](Plan::foresee) what f16 does not hold), opens no device and prints nothing, so it can be shown
//! (`--dry-run`) and tested as it is. Of models that a stage merges it reads the headers.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::formats::gguf;
use crate::gpu::SUBMIT_SECONDS;
use crate::model::{
    Checkpoint, ExportFormat, Outline, Role, TensorSpec, Weights, Wide, gguf_type, packed_files,
};
use crate::recipe::Recipe;
use crate::stages::{BEFORE, Needs, Planned, RecipeStage};
use crate::tensor::{BLOCK, SUPER_BLOCK, WeightFormat};
use crate::text::StoredTokenizer;

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
    /// Bytes of the parent's files with weights: what the files that are written are compared with.
    pub stored_file_bytes: u64,
    /// Bytes of the parent's tensors in f16.
    pub f16_bytes: u64,
    /// Bytes of the tensors' codes and scales afterwards, in Lopper's packed format without the padding of rows.
    pub output_bytes: u64,
    /// What is written, in order, with the bytes of its files.
    pub exports: Vec<Written>,
    /// Whether sizes are estimates: what each block keeps is known only when it has been scored.
    pub estimated: bool,
    /// Bytes of the files with tensors of all stages' results, the padding of codes included, which are on the disk together until
    /// the run is done.
    pub work_bytes: u64,
    /// Most bytes of device memory in use at once.
    pub peak_device_bytes: u64,
    /// The same with evaluations that hold one block's weights at a time, as they do within a smaller `--vram-budget`.
    pub least_device_bytes: u64,
    /// Most bytes of host memory in use at once, about.
    pub peak_host_bytes: u64,
    /// Submits, on a device of 1 TFLOP/s.
    pub estimated_submits: u64,
    /// What cannot be kept exactly in an export, and similar.
    pub warnings: Vec<String>,
    /// The model that is left, as its headers will describe it.
    #[serde(skip)]
    pub left: Outline,
}

/// A model that is written. Its size is told in one way everywhere: the bytes of its files with weights, beside those of its
/// parent's files as they are, and beside its parent's weights in f16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// Its format.
    pub format: ExportFormat,
    /// File or folder in the artifact.
    pub path: String,
    /// Bytes of its files with weights.
    pub bytes: u64,
    /// Those over the bytes of the parent's files.
    pub of_stored: f64,
    /// Those over 2 bytes for each weight of the parent.
    pub of_f16: f64,
}

impl Written {
    /// A model of so many bytes that is written in a format; its parent.
    pub fn new(format: ExportFormat, bytes: u64, parent: &Checkpoint) -> Self {
        Self {
            format,
            path: format.path().into(),
            bytes,
            of_stored: bytes as f64 / parent.file_bytes().max(1) as f64,
            of_f16: bytes as f64 / (2 * parent.parameters()).max(1) as f64,
        }
    }
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
    /// Which round of a repetition it is part of, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round: Option<usize>,
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
            let before = planned.last().map_or(&begin, |last| &last.outline);
            let others = stage.others();
            let others = others.iter().map(|name| Outline::of(&Checkpoint::open(name)?));
            let others: Vec<Outline> = others.collect::<Result<_>>()?;
            let next = stage.plan_beside(before, &others);
            let next = next.map_err(|error| in_round(stage, error))?;
            let number = stages.len() + 1;
            let (name, title) = (stage.kind().name, stage.title());
            let in_stage = |text: &String| format!("stage {number} ({title}): {text}");
            warnings.extend(next.warnings.iter().map(in_stage));
            let needs: Needs<'_> = stage.needs();
            if let Some(stats) = needs.stats.filter(|_| number > 1) {
                let before = number - 1;
                return Err(wrong(
                    "stage.stats",
                    &format!(
                        "none in stage {number}: statistics are of the recipe's own model, and this stage runs on what stage {before} leaves (let it take calibration instead, or export that first)"
                    ),
                    stats.into(),
                ));
            }
            if needs.teacher == Some(BEFORE)
                && !recipe.stage[..number - 1].iter().any(|s| s.is_cut())
            {
                let expected = "a prune stage before this one, whose model before it is meant";
                let error = wrong("stage.teacher", expected, format!("{BEFORE}, and none"));
                return Err(in_round(stage, error));
            }
            stages.push(StagePlan {
                name,
                round: stage.round(),
                parameters: next.outline.parameters(),
                output_bytes: next.outline.unpadded_bytes(),
                peak_device_bytes: next.peak_device_bytes,
                peak_host_bytes: next.peak_host_bytes,
                needs: serde_json::to_value(needs).expect("needs are plain values"),
                changes: next.changes.keys().cloned().collect(),
            });
            planned.push(next);
        }
        let end = planned.last().map_or(&begin, |last| &last.outline);
        let formats = match &recipe.export.formats {
            Some(formats) => formats.clone(),
            None => default_formats(parent, end)?,
        };
        check_exports(&formats, parent, end)?;
        if let Some(evaluate) = recipe.evaluate.as_ref().filter(|e| e.ctx < 2) {
            let found = evaluate.ctx.to_string();
            return Err(wrong("evaluate.ctx", "at least 2 tokens", found));
        }
        let tensors: Vec<TensorPlan> = end
            .tensors()
            .map(|(spec, format)| tensor_plan(spec, format, parent, end, &planned))
            .collect::<Result<_>>()?;
        let output_bytes = end.unpadded_bytes();
        let widest = planned.iter().map(|stage| stage.outline.bytes()).max();
        let (mut tokens, mut evaluated) = (0, (0, 0));
        if let Some(evaluate) = &recipe.evaluate {
            tokens = evaluate.max_tokens.unwrap_or(16_384);
            // What a stage leaves may be larger than what it found.
            let grown = widest.unwrap_or(0).saturating_sub(begin.bytes());
            let (resident, streamed) = begin.evaluation_bytes(evaluate.ctx);
            evaluated = (resident.saturating_add(grown), streamed.saturating_add(grown));
            warnings.extend(begin.config.beyond_context(evaluate.ctx));
            if end.config.readout.is_some() {
                let measured = "eval --preferences or --task measures it";
                warnings.push(format!("a model that scores texts has no perplexity: {measured}"));
            }
        }
        let apart = parent.gguf().is_none() && formats.contains(&ExportFormat::Gguf);
        let tokenizer = apart.then(|| parent.stored_tokenizer()).transpose()?;
        let exports = written(&formats, parent, tokenizer.as_ref(), end)?;
        if !end.estimated {
            warnings.extend(in_f16(&formats, parent, end)?);
        }
        if formats.contains(&ExportFormat::Gguf) {
            warnings.extend(end.config.ignored_by_llama_cpp());
        }
        warnings.extend(grown(recipe, &exports, parent, end)?);
        warnings.extend(with_zeros(&formats, end));
        let scaled = tensors.iter().any(|tensor| tensor.format.ty.has_scales());
        if end.uneven && scaled && formats.contains(&ExportFormat::Gguf) {
            warnings.push("blocks will differ in width: GGUF holds quantized matrices of multiples of 32 columns only, others become f16 (pruning with --multiple 32, the default, makes no others)".into());
        }
        let passes = 1.0 + stages.len() as f64;
        let operations = 2.0 * begin.parameters() as f64 * tokens as f64 * passes;
        let peak = |of: fn(&StagePlan) -> u64| stages.iter().map(of).max().unwrap_or(0);
        Ok(Self {
            parameters: begin.parameters(),
            output_parameters: end.parameters(),
            flops_per_token: begin.flops_per_token(),
            output_flops_per_token: end.flops_per_token(),
            stored_bytes: parent.total_stored_bytes(),
            stored_file_bytes: parent.file_bytes(),
            f16_bytes: 2 * begin.parameters(),
            output_bytes,
            exports,
            estimated: end.estimated,
            work_bytes: work_bytes(&planned)?,
            // Only an evaluation has a whole model on the device.
            peak_device_bytes: evaluated.0.max(peak(|stage| stage.peak_device_bytes)),
            least_device_bytes: evaluated.1.max(peak(|stage| stage.peak_device_bytes)),
            peak_host_bytes: peak(|stage| stage.peak_host_bytes).max(8 * begin.largest()),
            estimated_submits: tensors.len() as u64
                + (operations / 1e12 / SUBMIT_SECONDS).ceil() as u64,
            tensors,
            stages,
            warnings,
            left: end.clone(),
        })
    }

    /// Warns of values of the parent that f16 does not hold, where exports are in f16, and counts the wider type that they will be
    /// in instead. Reads the tensors in question; calls `progress` before each with those read and all, and its error ends it.
    pub fn foresee(
        &mut self,
        parent: &Checkpoint,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        for written in &mut self.exports {
            let wide = Wide::foresee(written.format, parent, &self.left, progress)?;
            if wide == Wide::default() {
                continue;
            }
            let apart = parent.gguf().is_none() && written.format == ExportFormat::Gguf;
            let tokenizer = apart.then(|| parent.stored_tokenizer()).transpose()?;
            let bytes = written.format.bytes(parent, &self.left, tokenizer.as_ref(), &wide)?;
            *written = Written::new(written.format, bytes, parent);
            self.warnings.extend(wide.notes());
        }
        Ok(())
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

/// Bytes of the files with tensors that all stages leave.
fn work_bytes(stages: &[Planned]) -> Result<u64> {
    let mut sum = 0;
    for stage in stages {
        sum += packed_files(&stage.outline)?.iter().map(|(_, bytes)| bytes).sum::<u64>();
    }
    Ok(sum)
}

fn wrong(key: &str, expected: &str, found: String) -> Error {
    Error::Key { path: "recipe".into(), key: key.into(), expected: expected.into(), found }
}

/// An error of a stage's key with the round that it is of.
fn in_round(stage: &RecipeStage, error: Error) -> Error {
    match (stage.round(), error) {
        (Some(round), Error::Key { path, key, expected, found }) => {
            let kind = stage.kind().name;
            Error::Key { path, key: format!("round {round} ({kind}), {key}"), expected, found }
        }
        (_, error) => error,
    }
}

/// The format of the parent's own files if it can say what is left; `packed` beside it where it cannot hold that.
fn default_formats(parent: &Checkpoint, left: &Outline) -> Result<Vec<ExportFormat>> {
    let own = match ExportFormat::of(parent) {
        own if own.method().is_none() => own,
        own => match own.unheld(left)?.is_empty() && left.config.check_plain(parent.path()).is_ok()
        {
            true => return Ok(vec![own]),
            false => ExportFormat::Hf,
        },
    };
    let gguf = parent.has_tokenizer() && left.config.architecture(parent.path()).is_ok();
    let said = match own {
        ExportFormat::Gguf => gguf,
        ExportFormat::Hf => !left.uneven && left.config.check_plain(parent.path()).is_ok(),
        _ => true,
    };
    // Blocks of several widths have no words in a stock configuration, but in GGUF's.
    let first = match (said, gguf) {
        (true, _) => own,
        (false, true) => ExportFormat::Gguf,
        (false, false) => return Ok(vec![ExportFormat::Packed]),
    };
    // Other formats hold what a pattern leaves out as well.
    let sparse = left.formats.iter().any(|format| format.ty.is_sparse());
    let whole = !left.estimated && first == own && !sparse;
    let held = whole && rounded(first, parent, left)?.is_empty();
    Ok(match held || first == ExportFormat::Packed {
        true => vec![first],
        false => vec![first, ExportFormat::Packed],
    })
}

/// The tensors that a format cannot hold as they are.
pub fn rounded(
    format: ExportFormat,
    parent: &Checkpoint,
    weights: &dyn Weights,
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for spec in weights.specs() {
        let lost = match format {
            ExportFormat::Gguf => !gguf_type(parent, weights, spec)?.1,
            ExportFormat::Hf => weights.format(spec)?.ty.has_scales(),
            _ => false,
        };
        if lost {
            names.push(spec.name.clone());
        }
    }
    Ok(names)
}

/// A warning of exports that hold the zeros that a pattern leaves out.
fn with_zeros(formats: &[ExportFormat], left: &Outline) -> Option<String> {
    let sparse = left.formats.iter().filter(|format| format.ty.is_sparse());
    let first = sparse.clone().next()?;
    let dense = formats.iter().filter(|format| **format != ExportFormat::Packed);
    let dense: Vec<&str> = dense.map(|format| format.path()).collect();
    (!dense.is_empty()).then(|| {
        format!(
            "{} tensors are {}, which packed/ alone holds: {} with their zeros, as large as {}",
            sparse.count(),
            first.label(),
            dense.join(" and "),
            first.dense().label(),
        )
    })
}

/// Refuses formats that cannot hold what is left.
fn check_exports(formats: &[ExportFormat], parent: &Checkpoint, left: &Outline) -> Result<()> {
    let twice = (1..formats.len()).find(|&index| formats[..index].contains(&formats[index]));
    if let Some(index) = twice {
        let found = format!("{} twice", formats[index].name());
        return Err(wrong("export.formats", "each format once", found));
    }
    if formats.contains(&ExportFormat::Gguf) && !parent.has_tokenizer() {
        let why = "a GGUF file needs the model's tokenizer; leave gguf out of export.formats";
        return Err(Error::Read {
            path: parent.path().join("tokenizer.json"),
            source: std::io::Error::new(std::io::ErrorKind::NotFound, why),
        });
    }
    formats.iter().try_for_each(|format| format.check_held(left))?;
    let stock = |format: &ExportFormat| *format == ExportFormat::Hf || format.method().is_some();
    if !formats.iter().any(stock) {
        return Ok(());
    }
    left.config.check_plain(parent.path())?;
    if left.uneven {
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
    end: &Outline,
    stages: &[Planned],
) -> Result<TensorPlan> {
    let source = parent.specs().iter().find(|whole| whole.name == spec.name).unwrap_or(spec);
    let changes = stages.iter().filter_map(|stage| stage.changes.get(&spec.name));
    let changes: Vec<&str> = changes.map(String::as_str).collect();
    Ok(TensorPlan {
        name: spec.name.clone(),
        shape: spec.shape(),
        source: parent.stored_type(source),
        source_bytes: parent.stored_bytes(source),
        decision: match changes.is_empty() {
            true => "keep".into(),
            false => changes.join(", then "),
        },
        output_bytes: format.unpadded_bytes(spec.rows, spec.columns),
        gguf: gguf_type(parent, end, spec)?.0.name(),
        format,
    })
}

/// What is written of a model, or of its outline, in each format.
fn written(
    formats: &[ExportFormat],
    parent: &Checkpoint,
    tokenizer: Option<&StoredTokenizer>,
    left: &dyn Weights,
) -> Result<Vec<Written>> {
    let one = |format: &ExportFormat| {
        Ok(Written::new(*format, format.bytes(parent, left, tokenizer, &Wide::default())?, parent))
    };
    formats.iter().map(one).collect()
}

/// Warnings of files that are larger than the parent's, or all no smaller, with the type that would make them so.
fn grown(
    recipe: &Recipe,
    exports: &[Written],
    parent: &Checkpoint,
    left: &dyn Weights,
) -> Result<Vec<String>> {
    // Half a percent is a header.
    let smaller = exports.iter().any(|written| written.of_stored < 0.995);
    let large =
        |written: &&Written| written.of_stored > 1.005 || (!smaller && written.of_stored >= 0.995);
    let mut warnings = Vec::new();
    for written in exports.iter().filter(large) {
        let what = match written.of_stored > 1.005 {
            true => format!("{:.2}x the parent's", written.of_stored),
            false => "no less than the parent's".into(),
        };
        warnings.push(format!(
            "{} will take {} bytes, {what} {}; {}",
            written.path,
            written.bytes,
            parent.file_bytes(),
            offer(recipe, exports, parent, left)?,
        ));
    }
    Ok(warnings)
}

/// Of the matrices that a GGUF file has in f16 because its types do not hold what is left of them, how many there are, and what
/// would help.
pub fn in_f16(
    formats: &[ExportFormat],
    parent: &Checkpoint,
    left: &dyn Weights,
) -> Result<Vec<String>> {
    if !formats.contains(&ExportFormat::Gguf) {
        return Ok(Vec::new());
    }
    let names = |list: &[&TensorSpec]| {
        let named: Vec<&str> = list.iter().take(3).map(|spec| spec.name.as_str()).collect();
        let more = if list.len() > 3 { ", …" } else { "" };
        format!("{} tensors ({}{more})", list.len(), named.join(", "))
    };
    let fits =
        |ty: gguf::GgmlType, spec: &TensorSpec| spec.columns.is_multiple_of(ty.block_elements());
    let (mut unheld, mut narrow, mut cut) = (Vec::new(), Vec::new(), Vec::new());
    for spec in left.specs() {
        let (format, (ty, exact)) = (left.format(spec)?, gguf_type(parent, left, spec)?);
        let before = parent.specs().iter().find(|whole| whole.name == spec.name);
        let before = before.and_then(|whole| parent.gguf()?.tensor_type(&whole.gguf));
        match exact {
            false if gguf::holds(format, SUPER_BLOCK).is_some_and(|ty| !fits(ty, spec)) => {
                narrow.push(spec);
            }
            false => unheld.push(spec),
            true if ty == gguf::GgmlType::F16
                && before.is_some_and(|ty| ty.block_elements() > 1) =>
            {
                cut.push(spec);
            }
            true => {}
        }
    }
    let mut warnings = Vec::new();
    if let Some(first) = unheld.first() {
        warnings.push(format!(
            "GGUF's plain types cannot hold {}: {} are exported to model.gguf as f16, larger and rounded once more; it holds 4, 5 and 8 bits in groups of 32, signed-max or float-min (--type q4_0, q4_1, q5_0, q5_1, q8_0), and iq4_nl, mxfp4, nvfp4 and tq2_0",
            left.format(first)?.label(),
            names(&unheld),
        ));
    }
    if let Some(first) = narrow.first() {
        let held = gguf::holds(left.format(first)?, SUPER_BLOCK);
        let block = held.map_or(BLOCK, |ty| ty.block_elements());
        warnings.push(format!(
            "GGUF holds whole blocks of {block} columns only, and {} has {}: {} are exported to model.gguf as f16; prune to multiples of {block} (--multiple {block}) to avoid that",
            first.name,
            first.columns,
            names(&narrow),
        ));
    }
    if !cut.is_empty() {
        warnings.push(format!(
            "columns were cut from blocks: {} are exported to model.gguf as f16; quantize them afterwards (prune --then q4_0)",
            names(&cut),
        ));
    }
    Ok(warnings)
}

/// The best of GGUF's plain types in which what is left would take less than its parent, in words.
fn offer(
    recipe: &Recipe,
    exports: &[Written],
    parent: &Checkpoint,
    left: &dyn Weights,
) -> Result<String> {
    let prunes = recipe.stage.last().is_none_or(|stage| stage.kind().name != "quantize");
    let (mut kept, mut now) = (0, 0);
    let mut blocks = Vec::new();
    for spec in left.specs() {
        let linear = spec.role == Role::Linear && spec.columns.is_multiple_of(32);
        let bytes = gguf_type(parent, left, spec)?.0.bytes_of(&spec.shape()).unwrap_or(0);
        now += bytes;
        match linear {
            true => blocks.push(spec.shape()),
            false => kept += bytes,
        }
    }
    // Tokens and other words are as many whatever the type.
    let planned = exports.iter().find(|written| written.format == ExportFormat::Gguf);
    let words = match (planned, parent.gguf()) {
        (Some(written), _) => written.bytes.saturating_sub(now),
        (None, Some(_)) => parent.file_bytes().saturating_sub(parent.total_stored_bytes()),
        (None, None) => 0,
    };
    use gguf::GgmlType::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    for ty in [Q8_0, Q5_1, Q5_0, Q4_1, Q4_0] {
        let bytes = blocks.iter().filter_map(|shape| ty.bytes_of(shape)).sum::<u64>();
        let bytes = kept + words + bytes;
        if (bytes as f64) < 0.995 * parent.file_bytes() as f64 {
            let name = ty.name().to_lowercase();
            let how = match prunes {
                true => format!("--then {name} (a quantize stage with type = \"{name}\")"),
                false => format!("--type {name}"),
            };
            return Ok(format!("{how} and --formats gguf would take about {bytes}"));
        }
    }
    Ok("no type of GGUF would take less; fewer bits (--bits 3) are held by packed, which only Lopper opens".into())
}
