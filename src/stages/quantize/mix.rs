//! Types for each tensor, so that the model takes a number of bytes and loses least: what each tensor loses in each type is
//! measured, then the bytes are given out ([`crate::methods::quantize::budget`]), then every tensor is rounded to its type.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::KIND;
use super::calibrated::{Calibrated, Fittings, ROUNDING, Solver, have_inputs, report};
use super::target::Target;
use crate::disk;
use crate::error::{Error, Result};
use crate::families::block_patterns;
use crate::graph::Slot;
use crate::kernels::matrix::Matrix;
use crate::measure::quality::{Convention, Windows, divergence};
use crate::methods::BadField;
use crate::methods::calibration::Source;
use crate::methods::guided::TokenRoots;
use crate::methods::quantize::Scheme;
use crate::methods::quantize::budget::{Choice, assign};
use crate::methods::quantize::fit::{Fitting, How};
use crate::methods::quantize::gptq::Options;
use crate::methods::quantize::mixes;
use crate::methods::quantize::rtn::rtn;
use crate::model::{Config, Model, Outline, TensorSpec, Weights};
use crate::stages::method::OfMethod;
use crate::stages::{
    Context, Modules, Needs, Planned, Report, Stage, StageKind, keys, save, saved,
};
use crate::tensor::{SUPER_BLOCK, WeightFormat};
use crate::walk::Kind;

/// Types by what each tensor loses, within a size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// How codes are found
    #[arg(skip)]
    #[serde(default)]
    method: String,
    /// Bits that a weight takes with its scales, on average over the modules that match
    #[arg(long, value_name = "BITS", conflicts_with = "target_size")]
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bpw: Option<f64>,
    /// Bytes that all tensors of the model take (900MiB); a file has its header and the tokenizer besides
    #[arg(long, value_name = "SIZE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    target_size: Option<String>,
    /// The types that llama-quantize gives each tensor of its mix of this name (q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m,
    /// q5_k_s, q5_k_m), the embedding and the head among them; --type takes the names with _s, _m and _l for this
    #[arg(long, value_name = "MIX", conflicts_with_all = ["target_bpw", "target_size"])]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    like: Option<String>,
    /// The types that there are, as --type takes them [default: those of GGUF that hold a tensor's rows: q2_k, q3_k, iq4_xs, q4_k,
    /// q5_k, q6_k and q8_0 of 256 columns and their multiples; iq4_nl, q5_0, q5_1 and q8_0 of others]
    #[arg(long, value_name = "TYPE", value_delimiter = ',')]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    types: Vec<String>,
    /// How a tensor is rounded to its type [default: gptq; of --like plain]
    #[arg(long, value_enum)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rounding: Option<Rounding>,
    /// Rows of the calibration text on which it is measured how far the model goes from itself
    #[arg(long, value_name = "ROWS", default_value_t = 8)]
    #[serde(default = "eight")]
    measure_rows: usize,
    /// Take what was measured before from this file, the sensitivities.json of an earlier run on the same model
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    sensitivities: Option<String>,
    /// Quantize modules that match (* stands for anything; default: the linear layers of the blocks); norms and biases never
    #[arg(long, default_values_t = default_include(), hide_default_value = true)]
    #[serde(default = "default_include")]
    include: Vec<String>,
    /// Leave out modules that match
    #[arg(long)]
    #[serde(default)]
    exclude: Vec<String>,
    #[command(flatten)]
    #[serde(flatten)]
    source: Source,
}

/// How a tensor of a mix is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Rounding {
    /// To the nearest, without data
    Plain,
    /// To the nearest, grids weighted by the squares of inputs
    Rtn,
    /// Column by column
    Gptq,
}

fn eight() -> usize {
    8
}

fn default_include() -> Vec<String> {
    block_patterns()
}

/// In the stage's folder and in the artifact: what was measured.
const SENSITIVITIES: &str = "sensitivities.json";
/// In the stage's folder: which tensor got which type.
const ASSIGNED: &str = "assigned.json";

/// Of each tensor, by the label of a format: KL(model || model with that tensor rounded), the mean over tokens, in nats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sensitivities {
    schema: u32,
    tensors: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Sensitivities {
    fn read(path: &Path) -> Result<Self> {
        let text = disk::read_json(path, disk::SETTINGS)?;
        let found: Self = serde_json::from_slice(&text).map_err(|error| Error::Malformed {
            path: path.into(),
            what: "sensitivities".into(),
            offset: None,
            expected: "the sensitivities.json of an earlier run".into(),
            found: error.to_string(),
        })?;
        Ok(found)
    }

    /// The measured losses of a tensor's formats. `path`: where they are from, for errors.
    fn of(&self, path: &str, spec: &TensorSpec, formats: &[WeightFormat]) -> Result<Vec<f64>> {
        let wrong = |found: String| Error::Tensor {
            path: path.into(),
            tensor: spec.name.clone(),
            expected: "a measured loss, 0 or more, of each of its types".into(),
            found,
        };
        let known = self.tensors.get(&spec.name).ok_or_else(|| wrong("no such tensor".into()))?;
        let of = |format: &WeightFormat| {
            let label = format.label();
            match known.get(&label) {
                Some(loss) if *loss >= 0.0 && loss.is_finite() => Ok(*loss),
                Some(loss) => Err(wrong(format!("{loss} of {label}"))),
                None => Err(wrong(format!("none of {label}"))),
            }
        };
        formats.iter().map(of).collect()
    }
}

/// A stage with its patterns compiled, and the types that each tensor can have.
struct Mixing<'a> {
    /// Those that match, in the model's order.
    chosen: Vec<&'a TensorSpec>,
    schemes: Vec<Vec<Scheme>>,
    formats: Vec<Vec<WeightFormat>>,
    /// Bytes for all of them.
    budget: u64,
    solver: Solver,
}

impl OfMethod for Mix {
    fn of_method(mut self, name: &'static str) -> Self {
        self.method = name.into();
        self.source.calibration.fill(128, 256);
        if self.like.is_some() && self.include == default_include() {
            self.include = vec!["*".into()];
        }
        self
    }
}

impl Mix {
    fn rounding(&self) -> Rounding {
        let own = if self.like.is_some() { Rounding::Plain } else { Rounding::Gptq };
        self.rounding.unwrap_or(own)
    }

    /// Whether it reads no text.
    fn is_blind(&self) -> bool {
        self.rounding() == Rounding::Plain && (self.like.is_some() || self.sensitivities.is_some())
    }

    fn mixing<'a>(&self, model: &'a Outline) -> Result<Mixing<'a>, BadField> {
        self.source.check()?;
        if self.measure_rows == 0 {
            return Err(BadField::new("measure_rows", "1 or more", 0));
        }
        if self.source.stats.is_some() && self.sensitivities.is_none() {
            let expected = "sensitivities beside it, as there is no text to measure on";
            let found = self.source.stats.as_deref().unwrap_or_default();
            return Err(BadField::new("stats", expected, found));
        }
        let modules = Modules::new(&self.include, &self.exclude)?;
        let mut chosen: Vec<&TensorSpec> =
            model.specs.iter().filter(|spec| modules.have(spec)).collect();
        let like = self.like()?;
        if let Some(like) = like {
            chosen.retain(|spec| like_type(like, &model.config, spec).is_some());
        }
        if chosen.is_empty() {
            let found = format!("{:?}, which match none", self.include);
            return Err(BadField::new("include", "patterns that match a weight", found));
        }
        if self.rounding() != Rounding::Plain {
            have_inputs(chosen.iter().copied(), &model.config)?;
        }
        let (mut schemes, mut formats) = (Vec::new(), Vec::new());
        for spec in &chosen {
            let own = match like.and_then(|like| like_type(like, &model.config, spec)) {
                Some((ty, _)) => vec![self.scheme(ty)?],
                None => self.schemes(spec)?,
            };
            formats.push(own.iter().map(|scheme| scheme.format()).collect::<Result<_, _>>()?);
            schemes.push(own);
        }
        let budget = self.budget(model, &chosen)?;
        let options = Options { damping: 0.01, block: 128, by_activation: false, sparse: None };
        let solver = match self.rounding() {
            Rounding::Plain => Solver::Plain,
            Rounding::Rtn => Solver::Nearest,
            Rounding::Gptq => Solver::Gptq(options),
        };
        Ok(Mixing { chosen, schemes, formats, budget, solver })
    }

    /// The schemes that a tensor can have.
    fn schemes(&self, spec: &TensorSpec) -> Result<Vec<Scheme>, BadField> {
        let names: Vec<&str> = match self.types.is_empty() {
            false => self.types.iter().map(String::as_str).collect(),
            true if spec.columns.is_multiple_of(SUPER_BLOCK) => {
                vec!["q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0"]
            }
            true => vec!["iq4_nl", "q5_0", "q5_1", "q8_0"],
        };
        names.iter().map(|name| self.scheme(name)).collect()
    }

    /// The scheme of a type by its name, or TYPE-gSIZE.
    fn scheme(&self, name: &str) -> Result<Scheme, BadField> {
        let bad = |expected: &str| BadField::new("types", expected, name);
        let target = match name.rsplit_once("-g") {
            Some((name, size)) => {
                let size = size.parse().map_err(|_| bad("a type, or TYPE-gSIZE"))?;
                Target { group_size: Some(size), ..Target::of_type(name) }
            }
            None => Target::of_type(name),
        };
        let scheme = target
            .scheme()?
            .filter(|scheme| scheme.format().is_ok_and(|format| !format.ty.is_sparse()));
        scheme.ok_or_else(|| bad("types with scales and without a pattern"))
    }

    /// The mix of llama-quantize that is asked for.
    fn like(&self) -> Result<Option<&'static mixes::Mix>, BadField> {
        let Some(name) = &self.like else { return Ok(None) };
        let names: Vec<&str> = mixes::MIXES.iter().map(|mix| mix.name).collect();
        let other = [
            (self.target_bpw.is_some(), "target_bpw"),
            (self.target_size.is_some(), "target_size"),
            (self.sensitivities.is_some(), "sensitivities"),
            (!self.types.is_empty(), "types"),
        ];
        if let Some((_, field)) = other.into_iter().find(|(is, _)| *is) {
            return Err(BadField::new(field, format!("none beside like {name}"), "one"));
        }
        let found = mixes::mix(name);
        found.map(Some).ok_or_else(|| BadField::new("like", names.join(", "), name))
    }

    /// Bytes for the chosen tensors.
    fn budget(&self, model: &Outline, chosen: &[&TensorSpec]) -> Result<u64, BadField> {
        let weights: u64 = chosen.iter().map(|spec| (spec.rows * spec.columns) as u64).sum();
        match (self.target_bpw, &self.target_size) {
            (Some(bits), None) if bits > 0.0 && bits.is_finite() => {
                Ok((bits * weights as f64 / 8.0).floor() as u64)
            }
            (Some(bits), None) => Err(BadField::new("target_bpw", "more than 0", bits)),
            (None, Some(text)) => {
                let size = disk::parse_size(text)
                    .map_err(|why| BadField::new("target_size", "a size", why))?;
                let of = |(spec, format): (&TensorSpec, WeightFormat)| {
                    let is_chosen = chosen.iter().any(|other| other.name == spec.name);
                    if is_chosen { 0 } else { format.unpadded_bytes(spec.rows, spec.columns) }
                };
                let others: u64 = model.tensors().map(of).sum();
                size.checked_sub(others).ok_or_else(|| {
                    let expected = format!(
                        "at least the {others} bytes of the tensors that are not quantized"
                    );
                    BadField::new("target_size", expected, size)
                })
            }
            (None, None) if self.like.is_some() => Ok(u64::MAX),
            _ => {
                let found = if self.target_bpw.is_some() { "both" } else { "none" };
                Err(BadField::new("target_bpw", "this, target_size or like, one of them", found))
            }
        }
    }

    /// The sensitivities of an earlier run, where they are asked for.
    fn known(&self) -> Result<Option<Sensitivities>> {
        self.sensitivities.as_ref().map(|path| Sensitivities::read(Path::new(path))).transpose()
    }

    /// One of the formats of each tensor.
    fn assign(&self, mixing: &Mixing<'_>, losses: &[Vec<f64>]) -> Result<Vec<usize>, BadField> {
        let bytes = |spec: &TensorSpec, format: &WeightFormat| {
            format.unpadded_bytes(spec.rows, spec.columns)
        };
        let tensors: Vec<Vec<Choice>> = mixing
            .chosen
            .iter()
            .zip(&mixing.formats)
            .zip(losses)
            .map(|((spec, formats), losses)| {
                let choices = formats.iter().zip(losses);
                choices
                    .map(|(format, loss)| Choice { bytes: bytes(spec, format), loss: *loss })
                    .collect()
            })
            .collect();
        assign(&tensors, mixing.budget).map_err(|least| {
            let weights: usize = mixing.chosen.iter().map(|spec| spec.rows * spec.columns).sum();
            let over = least - mixing.budget;
            match (self.target_bpw, &self.target_size) {
                (Some(bits), _) => {
                    let least = (8.0 * least as f64 / weights as f64 * 1e4).ceil() / 1e4;
                    let expected = format!("at least {least}, the smallest of the types");
                    BadField::new("target_bpw", expected, bits)
                }
                (_, size) => {
                    let expected =
                        format!("at least {over} bytes more, with the smallest of the types");
                    BadField::new("target_size", expected, size.as_deref().unwrap_or_default())
                }
            }
        })
    }

    /// What to say of tensors whose rows are no whole super-blocks.
    fn instead(&self, model: &Outline, mixing: &Mixing<'_>) -> Result<Option<String>> {
        let Some(like) = self.like().map_err(BadField::in_recipe)? else { return Ok(None) };
        let mut types: BTreeMap<&str, usize> = BTreeMap::new();
        for spec in &mixing.chosen {
            if let Some((ty, true)) = like_type(like, &model.config, spec) {
                *types.entry(ty).or_default() += 1;
            }
        }
        let list: Vec<String> = types.iter().map(|(ty, count)| format!("{count} {ty}")).collect();
        Ok((!list.is_empty()).then(|| {
            format!(
                "rows of {} of {} tensors are no multiple of {SUPER_BLOCK} columns: they get what llama-quantize gives such ({})",
                types.values().sum::<usize>(),
                mixing.chosen.len(),
                list.join(", ")
            )
        }))
    }

    /// Losses as if all tensors were alike, before anything was measured: a quarter with each bit.
    fn assumed(mixing: &Mixing<'_>) -> Vec<Vec<f64>> {
        let of = |(spec, formats): (&&TensorSpec, &Vec<WeightFormat>)| {
            let weights = (spec.rows * spec.columns) as f64;
            let bits = |format: &WeightFormat| {
                8.0 * format.unpadded_bytes(spec.rows, spec.columns) as f64 / weights
            };
            formats.iter().map(|format| weights * f64::powf(0.25, bits(format))).collect()
        };
        mixing.chosen.iter().zip(&mixing.formats).map(of).collect()
    }

    /// What each tensor loses in each of its types; saved as it is found.
    fn measure(
        &self,
        model: &dyn Weights,
        mixing: &Mixing<'_>,
        context: &mut Context<'_>,
    ) -> Result<Sensitivities> {
        let folder = context.folder;
        let mut found: Sensitivities = saved(folder, SENSITIVITIES)?.unwrap_or_default();
        found.schema = 1;
        let done = |found: &Sensitivities, spec: &TensorSpec, formats: &[WeightFormat]| {
            let known = found.tensors.get(&spec.name);
            known.is_some_and(|known| {
                formats.iter().all(|format| known.contains_key(&format.label()))
            })
        };
        let all = mixing.chosen.len();
        let pairs = || mixing.chosen.iter().zip(&mixing.schemes).zip(&mixing.formats);
        if pairs().all(|((spec, _), formats)| done(&found, spec, formats)) {
            return Ok(found);
        }
        let rows = context.rows.ok_or_else(|| Error::Argument {
            argument: "calibration".into(),
            expected: "rows of tokens to measure on".into(),
            found: "none".into(),
        })?;
        let length = rows.length();
        let ids = &rows.ids[..self.measure_rows.min(rows.samples) * length];
        let convention = Convention::usual(model.config().encoder.is_some());
        let windows = Windows::new(ids, length, convention, None)?;
        let (pass, device) = (context.pass, context.pass.device);
        let progress = &mut *context.progress;
        let parent = Model::load(device, model, |done, total| {
            progress("loading the model", done, total);
            crate::interrupt::check()
        })?;
        // Weights that both have are on the device once.
        let mut child = parent.with_blocks(parent.config().clone(), parent.blocks().to_vec());
        for (place, ((spec, schemes), formats)) in pairs().enumerate() {
            progress("measuring", place, all);
            if done(&found, spec, formats) {
                continue;
            }
            let weight = model.load(spec)?;
            let mut losses = BTreeMap::new();
            for (scheme, format) in schemes.iter().zip(formats) {
                let rounded = rtn(device, &weight, *scheme, &spec.name)?;
                child.set(&spec.name, Matrix::upload(device, &rounded, &spec.name)?);
                let kl =
                    divergence(&parent, &child, &pass, &windows, |_, _| crate::interrupt::check())?;
                let mean = kl.kl().mean;
                if !mean.is_finite() {
                    return Err(Error::NotFinite {
                        what: format!(
                            "divergence of the model with {} in {}",
                            spec.name,
                            format.label()
                        ),
                        found: mean.to_string(),
                    });
                }
                losses.insert(format.label(), mean.max(0.0));
            }
            child.set(&spec.name, Matrix::upload(device, &weight, &spec.name)?);
            found.tensors.insert(spec.name.clone(), losses);
            save(folder, SENSITIVITIES, &found)?;
        }
        Ok(found)
    }
}

/// The type of a tensor in a mix of llama-quantize, and whether it stands in for another.
fn like_type(
    like: &mixes::Mix,
    config: &Config,
    spec: &TensorSpec,
) -> Option<(&'static str, bool)> {
    let layer = spec.layer.unwrap_or(0);
    let shared = config.blocks.get(layer).map_or(1, |block| block.heads / block.kv_heads.max(1));
    let place = mixes::Place { layer, layers: config.layers(), shared };
    let is_head = spec.slot == Slot::Head || spec.slot == Slot::Embedding && config.tied;
    like.ty(spec.slot, is_head, &place, spec.columns)
}

impl Stage for Mix {
    fn kind(&self) -> &'static StageKind {
        &KIND
    }

    fn keys(&self) -> Map<String, Value> {
        keys(self)
    }

    fn needs(&self) -> Needs<'_> {
        if self.is_blind() {
            return Needs::default();
        }
        Needs::sums(
            &self.source,
            match self.rounding() {
                Rounding::Plain => &[],
                Rounding::Rtn => &[Kind::Squares],
                Rounding::Gptq => &[Kind::Gram],
            },
        )
    }

    fn files(&self, _: Option<&Config>) -> Result<Vec<PathBuf>> {
        self.known()?;
        Ok(self.sensitivities.iter().map(PathBuf::from).collect())
    }

    fn plan(&self, model: &Outline) -> Result<Planned> {
        let mixing = self.mixing(model).map_err(BadField::in_recipe)?;
        let known = self.known()?;
        let path = self.sensitivities.as_deref().unwrap_or_default();
        let losses = match &known {
            None if self.like.is_some() => vec![vec![0.0]; mixing.chosen.len()],
            None => Self::assumed(&mixing),
            Some(known) => {
                let pairs = mixing.chosen.iter().zip(&mixing.formats);
                pairs.map(|(spec, formats)| known.of(path, spec, formats)).collect::<Result<_>>()?
            }
        };
        let assigned = self.assign(&mixing, &losses).map_err(BadField::in_recipe)?;
        let chosen: HashMap<&str, WeightFormat> = mixing
            .chosen
            .iter()
            .zip(&mixing.formats)
            .zip(&assigned)
            .map(|((spec, formats), index)| (spec.name.as_str(), formats[*index]))
            .collect();
        let mut outline = model.clone();
        let estimated = known.is_none() && self.like.is_none();
        outline.estimated |= estimated;
        let (mut changes, mut largest, mut widest) = (HashMap::new(), 0u64, 0u64);
        let formats = outline.formats.iter_mut().zip(&mut outline.copies);
        for (spec, (format, copy)) in outline.specs.iter().zip(formats) {
            let Some(new) = chosen.get(spec.name.as_str()) else { continue };
            (*format, *copy) = (*new, None);
            let how = match self.rounding() {
                Rounding::Plain | Rounding::Rtn => "rtn",
                Rounding::Gptq => "gptq",
            };
            changes.insert(spec.name.clone(), format!("{how} {}", new.label()));
            largest = largest.max((spec.rows * spec.columns) as u64);
            widest = widest.max(spec.columns as u64);
        }
        let mut warnings = Vec::new();
        warnings.extend(self.instead(model, &mixing)?);
        if estimated {
            warnings.push(format!(
                "which tensor gets which type is known once it is measured, {} types of {} tensors; the types here are those of tensors that are all alike",
                mixing.formats.iter().map(Vec::len).max().unwrap_or(0),
                mixing.chosen.len()
            ));
        }
        let gram = widest * widest;
        let (resident, _) = model.evaluation_bytes(self.source.calibration.length());
        Ok(Planned {
            outline,
            changes,
            // The model, with one tensor twice, and both sides' streams and logits.
            peak_device_bytes: 2 * resident - model.bytes() + 4 * largest + 8 * gram,
            peak_host_bytes: 8 * (3 * largest + 4 * gram),
            warnings,
        })
    }

    fn run(&self, model: &dyn Weights, context: &mut Context<'_>) -> Result<Config> {
        let outline = Outline::of(model)?;
        let mixing = self.mixing(&outline).map_err(BadField::in_recipe)?;
        let losses = match self.like {
            Some(_) => vec![vec![0.0]; mixing.chosen.len()],
            None => {
                let (known, path) = match self.known()? {
                    Some(known) => (known, self.sensitivities.as_deref().unwrap_or_default()),
                    None => (self.measure(model, &mixing, context)?, SENSITIVITIES),
                };
                save(context.folder, SENSITIVITIES, &known)?;
                let pairs = mixing.chosen.iter().zip(&mixing.formats);
                let losses = pairs.map(|(spec, formats)| known.of(path, spec, formats));
                losses.collect::<Result<Vec<_>>>()?
            }
        };
        let assigned = self.assign(&mixing, &losses).map_err(BadField::in_recipe)?;
        let mut fittings = BTreeMap::new();
        let mut rows = Vec::new();
        let (mut bytes, mut weights, mut loss) = (0, 0, 0.0);
        for (place, spec) in mixing.chosen.iter().enumerate() {
            let index = assigned[place];
            let format = mixing.formats[place][index];
            let fitting = Fitting::new(mixing.schemes[place][index], How::Search);
            fittings.insert(spec.name.clone(), fitting.map_err(BadField::in_recipe)?);
            let own = format.unpadded_bytes(spec.rows, spec.columns);
            bytes += own;
            weights += (spec.rows * spec.columns) as u64;
            loss += losses[place][index];
            let mut row = json!({"tensor": spec.name, "format": format.label(), "bytes": own});
            if self.like.is_none() {
                row["kl"] = losses[place][index].into();
            }
            rows.push(row);
        }
        let bits = 8.0 * bytes as f64 / weights as f64;
        let mut told = json!({"bytes": bytes, "bits_per_weight": bits, "tensors": rows});
        match &self.like {
            Some(like) => told["like"] = like.clone().into(),
            None => {
                told["target_bytes"] = mixing.budget.into();
                told["kl_sum"] = loss.into();
            }
        }
        save(context.folder, ASSIGNED, &told)?;
        let (fittings, device) = (Fittings::Each(fittings), context.pass.device);
        let method =
            Calibrated { fittings, solver: mixing.solver, device, roots: TokenRoots::default() };
        method.run(model, &mixing.chosen, self.source.feed(), context)
    }

    fn report(&self, folder: &Path) -> Result<Option<Report>> {
        let Some(mut report) = report(folder)? else { return Ok(None) };
        if let Some(assigned) = saved::<Value>(folder, ASSIGNED)? {
            report.value["mix"] = assigned;
        }
        if let Some(measured) = saved::<Value>(folder, SENSITIVITIES)? {
            let text = serde_json::to_string(&measured).expect("it was read from JSON");
            report.files.push((SENSITIVITIES, text));
        }
        debug_assert_eq!(report.file, ROUNDING);
        Ok(Some(report))
    }
}
