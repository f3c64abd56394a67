//! Recipe and checkpoint headers to decisions: every tensor, its bytes before and after, memory, submits. Pure: it reads
//! no weight, opens no device and prints nothing, so it can be shown (`--dry-run`) and tested as it is.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::gpu::SUBMIT_SECONDS;
use crate::methods::prune::memory::need;
use crate::methods::prune::{BadPrune, Order, left_specs};
use crate::methods::quantize::{BadScheme, Scheme};
use crate::model::{
    Checkpoint, Compute, Config, Group, Role, TensorSpec, Weights, cut_format, gguf_type, groups,
};
use crate::recipe::{ExportFormat, Quantize, Recipe, Stage};
use crate::tensor::{WeightFormat, codebook};

/// Everything that will be done.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// One line per tensor, in the order a model meets them.
    pub tensors: Vec<Line>,
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
    /// Most bytes of device memory in use at once.
    pub peak_device_bytes: u64,
    /// Most bytes of host memory in use at once, the mapped parent not counted.
    pub peak_host_bytes: u64,
    /// Submits, on a device of 1 TFLOP/s.
    pub estimated_submits: u64,
    /// What cannot be kept exactly in an export, and similar.
    pub warnings: Vec<String>,
    /// What is pruned, in order.
    #[serde(skip)]
    pub orders: Vec<Order>,
}

/// One tensor of what is left.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// (rows, columns), or (length).
    pub shape: Vec<usize>,
    /// How the parent stores it.
    pub source: String,
    /// Bytes there.
    pub source_bytes: u64,
    /// What becomes of it: `keep`, or the stage's format.
    pub decision: String,
    /// Bytes afterwards.
    pub output_bytes: u64,
    /// Its type in the GGUF export.
    pub gguf: &'static str,
    /// The format afterwards.
    #[serde(skip)]
    pub format: WeightFormat,
    /// How it is quantized, if it is.
    #[serde(skip)]
    pub scheme: Option<Scheme>,
}

impl Plan {
    /// Decides. Errors name the recipe's field, or the tensor, that is at fault.
    pub fn new(recipe: &Recipe, parent: &Checkpoint) -> Result<Self> {
        let (orders, stages) = ordered(recipe, parent)?;
        let left = orders.last().map_or(parent.config(), |order| &order.left);
        let specs = left_specs(left, parent.specs());
        check_widths(recipe, &orders, parent)?;
        if let Some(evaluate) = recipe.evaluate.as_ref().filter(|e| e.ctx < 2) {
            let found = evaluate.ctx.to_string();
            return Err(wrong("evaluate.ctx", "at least 2 tokens".into(), found));
        }
        let formats = &recipe.export.formats;
        let twice = (1..formats.len()).find(|&index| formats[..index].contains(&formats[index]));
        if let Some(index) = twice {
            let found = format!("{:?} twice", formats[index]);
            return Err(wrong("export.formats", "each format once".into(), found));
        }
        if formats.contains(&ExportFormat::Gguf) && !parent.has_tokenizer() {
            let why = "a GGUF file needs the model's tokenizer; leave gguf out of export.formats";
            return Err(Error::Read {
                path: parent.path().join("tokenizer.json"),
                source: std::io::Error::new(std::io::ErrorKind::NotFound, why),
            });
        }
        let mut tensors = Vec::new();
        for spec in &specs {
            tensors.push(line(spec, parent, &stages)?);
        }
        for rule in &stages {
            if !specs.iter().any(|spec| rule.applies(spec)) {
                let expected = "patterns that match a weight".into();
                return Err(wrong(
                    "stage.include",
                    expected,
                    format!("{:?}, which match none", rule.include_text),
                ));
            }
        }
        let output_bytes = tensors.iter().map(|line| line.output_bytes).sum();
        let packed_parent: u64 = parent
            .specs()
            .iter()
            .map(|spec| Ok(parent.format(spec)?.bytes(spec.rows, spec.columns)))
            .sum::<Result<u64>>()?;
        let parameters = parent.parameters();
        let mut pruning = 0;
        for order in &orders {
            let tokens = order
                .score
                .needs_gradient()
                .then(|| order.calibration_shape());
            let all = groups(parent.config(), parent.specs());
            let chosen: Vec<Group> = all
                .into_iter()
                .filter(|group| order.widths.contains(&group.width))
                .collect();
            let need = need(parent, &[order.score], &chosen, tokens, Compute::F32)?;
            pruning = pruning.max(need.streamed);
        }
        let largest = parent
            .specs()
            .iter()
            .map(|spec| 4 * (spec.rows * spec.columns) as u64)
            .max()
            .unwrap_or(0);
        let evaluated = recipe.evaluate.as_ref().map_or(0, |e| {
            let model = packed_parent.max(output_bytes);
            model.saturating_add(activation_bytes(parent, e.ctx))
        });
        let tokens = recipe
            .evaluate
            .as_ref()
            .map_or(0, |e| e.max_tokens.unwrap_or(16_384));
        let operations = 2.0 * parameters as f64 * tokens as f64 * 2.0;
        Ok(Self {
            warnings: warnings(recipe, parent, &tensors),
            parameters,
            output_parameters: specs.iter().map(|s| (s.rows * s.columns) as u64).sum(),
            flops_per_token: flops_per_token(parent.specs(), parent.config()),
            output_flops_per_token: flops_per_token(&specs, left),
            stored_bytes: parent.total_stored_bytes(),
            f16_bytes: 2 * parameters,
            output_bytes,
            // Only an evaluation has a whole model on the device.
            peak_device_bytes: evaluated.max(2 * largest).max(pruning),
            peak_host_bytes: output_bytes + 2 * largest,
            estimated_submits: tensors.len() as u64
                + (operations / 1e12 / SUBMIT_SECONDS).ceil() as u64,
            tensors,
            orders,
        })
    }

    /// An error if the plan needs more device memory than it may have.
    pub fn check_budget(&self, budget: Option<u64>) -> Result<()> {
        match budget {
            Some(budget) if self.peak_device_bytes > budget => Err(Error::OutOfMemory {
                what:
                    "the plan (the widest of an evaluation with its model, pruning and quantizing)"
                        .into(),
                bytes: self.peak_device_bytes,
                used: 0,
                budget,
            }),
            _ => Ok(()),
        }
    }
}

fn wrong(key: &str, expected: String, found: String) -> Error {
    Error::Key {
        path: "recipe".into(),
        key: key.into(),
        expected,
        found,
    }
}

/// A stage with its patterns compiled.
struct Rule {
    include: Vec<glob::Pattern>,
    include_text: Vec<String>,
    exclude: Vec<glob::Pattern>,
    scheme: Scheme,
    format: WeightFormat,
}

impl Rule {
    fn new(stage: &Quantize) -> Result<Self> {
        let compile = |key: &str, patterns: &[String]| -> Result<Vec<glob::Pattern>> {
            let compile = |text: &String| {
                let broken = |error: glob::PatternError| {
                    wrong(key, "a pattern".into(), format!("{text}: {}", error.msg))
                };
                glob::Pattern::new(text).map_err(broken)
            };
            patterns.iter().map(compile).collect()
        };
        let entries = (!stage.codebook.is_empty()).then(|| codebook(&stage.codebook));
        let scheme = Scheme {
            grid: stage.grid,
            bits: stage.bits,
            group_size: stage.group_size,
            codebook: entries.transpose().map_err(|found| {
                let expected = "2 to 256 finite numbers, not all 0".into();
                wrong("stage.codebook", expected, found)
            })?,
        };
        let bad = |bad: BadScheme| wrong(&format!("stage.{}", bad.field), bad.expected, bad.found);
        Ok(Self {
            include: compile("stage.include", &stage.include)?,
            include_text: stage.include.clone(),
            exclude: compile("stage.exclude", &stage.exclude)?,
            scheme,
            format: scheme.format().map_err(bad)?,
        })
    }

    fn applies(&self, spec: &TensorSpec) -> bool {
        let named = |patterns: &[glob::Pattern]| {
            patterns
                .iter()
                .any(|pattern| pattern.matches(spec.module()))
        };
        let weight = matches!(spec.role, Role::Linear | Role::Head | Role::Embedding);
        weight && named(&self.include) && !named(&self.exclude)
    }
}

/// Operations of the products with weights for one token: 2 for each weight of the linear layers and the head.
pub fn flops_per_token(specs: &[TensorSpec], config: &Config) -> u64 {
    let in_product = |spec: &&TensorSpec| match spec.role {
        Role::Linear | Role::Head => true,
        Role::Embedding => config.tied,
        _ => false,
    };
    let products = specs.iter().filter(in_product);
    products
        .map(|spec| 2 * (spec.rows * spec.columns) as u64)
        .sum()
}

/// The recipe's stages, checked: what is pruned, each order on what the one before left, and what is quantized then.
fn ordered(recipe: &Recipe, parent: &Checkpoint) -> Result<(Vec<Order>, Vec<Rule>)> {
    let (mut orders, mut rules) = (Vec::<Order>::new(), Vec::new());
    for stage in &recipe.stage {
        match stage {
            Stage::Quantize(stage) => rules.push(Rule::new(stage)?),
            Stage::Prune(_) if !rules.is_empty() => {
                let expected = "prune before quantize: gradients and cuts want whole weights";
                return Err(wrong("stage", expected.into(), "quantize first".into()));
            }
            Stage::Prune(stage) => {
                let config = orders.last().map_or(parent.config(), |order| &order.left);
                let bad =
                    |bad: BadPrune| wrong(&format!("stage.{}", bad.field), bad.expected, bad.found);
                orders.push(Order::new(stage, config, parent.specs()).map_err(bad)?);
            }
        }
    }
    Ok((orders, rules))
}

/// A Hugging Face folder states one width for all blocks.
fn check_widths(recipe: &Recipe, orders: &[Order], parent: &Checkpoint) -> Result<()> {
    let Some(last) = orders.last() else {
        return Ok(());
    };
    if !recipe.export.formats.contains(&ExportFormat::Hf) {
        return Ok(());
    }
    last.left.check_plain(parent.path())?;
    if orders.iter().any(Order::is_global) {
        return Err(Error::Unsupported {
            path: parent.path().into(),
            what: "a Hugging Face folder of a model pruned with global ranking".into(),
            why: "its layers differ in width, and a stock Llama configuration states one for all; use gguf or packed"
                .into(),
        });
    }
    Ok(())
}

fn line(spec: &TensorSpec, parent: &Checkpoint, stages: &[Rule]) -> Result<Line> {
    // A later stage decides over an earlier one.
    let rule = stages.iter().rev().find(|rule| rule.applies(spec));
    let whole = parent.specs().iter().find(|whole| whole.name == spec.name);
    let whole = whole.unwrap_or(spec);
    let cut = whole.shape() != spec.shape();
    let format = match rule {
        Some(rule) => rule.format,
        None if cut => cut_format(parent.format(whole)?),
        None => parent.format(whole)?,
    };
    let pruned = format!("cut from {:?}", whole.shape());
    Ok(Line {
        name: spec.name.clone(),
        shape: spec.shape(),
        source: parent.stored_type(whole),
        source_bytes: parent.stored_bytes(whole),
        decision: match (rule, cut) {
            (None, false) => "keep".into(),
            (None, true) => pruned,
            (Some(rule), cut) => {
                let rtn = format!("rtn {} {}", rule.scheme.grid.name(), format.label());
                if cut { format!("{pruned}, {rtn}") } else { rtn }
            }
        },
        output_bytes: format.bytes(spec.rows, spec.columns),
        gguf: gguf_type(spec, format).0.name(),
        format,
        scheme: rule.map(|rule| rule.scheme),
    })
}

/// Activations of one evaluation pass, generously: residual stream, six hidden-sized and three feed-forward-sized
/// buffers in f32, the cache of one layer, one block of logits.
fn activation_bytes(parent: &Checkpoint, ctx: usize) -> u64 {
    let config = parent.config();
    let tokens = 2048.max(ctx) as u64; // any number that the user typed
    let widest = config.widest();
    let wide = (8 * config.hidden_size
        + 4 * widest.intermediate_size
        + 4 * widest.heads * config.head_dim) as u64;
    let logits = tokens.saturating_mul(4 * config.vocab_size as u64);
    tokens
        .saturating_mul(4 * wide)
        .saturating_add(logits.min(256 << 20))
}

fn warnings(recipe: &Recipe, parent: &Checkpoint, tensors: &[Line]) -> Vec<String> {
    let mut warnings = Vec::new();
    let rounded: Vec<&Line> = tensors
        .iter()
        .filter(|line| line.format.ty.has_scales() && line.gguf.eq_ignore_ascii_case("f16"))
        .collect();
    if let (Some(first), true) = (
        rounded.first(),
        recipe.export.formats.contains(&ExportFormat::Gguf),
    ) {
        warnings.push(format!(
            "GGUF's plain types cannot hold {}: {} tensors ({}, …) are exported to model.gguf as f16, larger and rounded once more",
            first.format.label(),
            rounded.len(),
            first.name,
        ));
    }
    let grown =
        |line: &&Line| line.decision.starts_with("cut") && line.output_bytes > line.source_bytes;
    if let Some(first) = tensors.iter().find(grown) {
        warnings.push(format!(
            "groups of columns that share a scale do not survive a cut: what is cut of quantized tensors ({}, …) is kept in f16, larger than before; quantize it again afterwards",
            first.name,
        ));
    }
    let ctx = recipe.evaluate.as_ref().map_or(0, |evaluate| evaluate.ctx);
    warnings.extend(parent.config().beyond_context(ctx));
    warnings
}
