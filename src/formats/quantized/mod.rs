//! Folders that other tools quantized: GPTQ, AWQ, compressed-tensors, ModelOpt, MLX. Bytes in, bytes out.
//!
//! Each method is a file and a row of [`METHODS`]: how its folders are known, how they say what each weight is stored as, and
//! what they hold of ours. Where the numbers of a weight stand is a [`layout::Layout`], by which weights are read and written
//! alike. Weights that a method left alone are plain tensors, and no matter here.

mod awq;
mod compressed_tensors;
mod gptq;
mod layout;
mod mlx;
mod modelopt;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::disk;
use crate::error::{Error, Result};
use crate::formats::json;
use crate::formats::safetensors::Safetensors;
use crate::tensor::{InputType, Packed, Scale, WHOLE_ROW, WeightFormat};
use layout::{Decision, Layout};

pub use layout::Part;

/// A method: how a tool's folders are read and written.
pub struct Method {
    /// Its name as an export format and in tables.
    pub name: &'static str,
    /// What stands in `quant_method` of its folders, in lower case.
    quant_methods: &'static [&'static str],
    /// A file beside `config.json` that says it, where that does not.
    sidecar: Option<&'static str>,
    /// Whether its settings have words for inputs that are rounded.
    says_inputs: bool,
    /// Reads what a folder says.
    settings: fn(&Stated<'_>) -> Result<Box<dyn Settings>>,
    /// Whether it has a layout for a weight of ours.
    holds: fn(&Module<'_>, WeightFormat) -> bool,
    /// Lays out a model's weights, all of which it holds.
    arrange: fn(&Contents<'_>) -> Result<Arranged, Unarranged>,
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every method.
pub static METHODS: &[&Method] =
    &[&gptq::METHOD, &awq::METHOD, &compressed_tensors::METHOD, &modelopt::METHOD, &mlx::METHOD];

/// The row of that name.
pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().copied().find(|method| method.name == name)
}

/// The matrices of a model that is to be written.
struct Contents<'a> {
    quantized: Vec<(Module<'a>, WeightFormat)>,
    plain: Vec<Module<'a>>,
    inputs: Option<Inputs>,
}

impl Contents<'_> {
    /// The names of linear layers that are left alone.
    fn plain_linear(&self) -> Vec<&str> {
        let linear = self.plain.iter().filter(|module| !module.embedding);
        linear.map(|module| module.name).collect()
    }
}

/// How a method has a model: layouts in the order of the quantized weights, and what it says of them.
struct Arranged {
    layouts: Vec<Layout>,
    /// Keys of `config.json`.
    keys: Vec<(&'static str, Value)>,
    /// Files beside it.
    files: Vec<(&'static str, Value)>,
    notes: Vec<String>,
}

/// A weight, by its place, that a method does not hold beside the others; what it would hold.
struct Unarranged {
    index: usize,
    expected: String,
}

/// What a folder says of its quantization, and where.
struct Stated<'a> {
    path: &'a Path,
    /// The key in the file; empty where the file is nothing else.
    key: &'static str,
    object: &'a Map<String, Value>,
}

/// How the weights of a folder are stored, as its settings say.
trait Settings: std::fmt::Debug + Send + Sync {
    /// Where a weight stands; `None` if it is a plain tensor.
    fn layout(&self, tensors: &Safetensors, module: &Module<'_>) -> Result<Option<Layout>>;

    /// What the settings ask for beside, which is not done here, in words.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How inputs of the quantized layers are rounded, where all are alike.
    fn inputs(&self) -> Option<Inputs> {
        None
    }
}

/// How a folder rounds the inputs of its quantized linear layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inputs {
    /// To what numbers.
    pub ty: InputType,
    /// Whether each layer has a scale, stored beside its weight; otherwise each token has its own.
    pub stored: bool,
}

/// The end of the name of the tensor that is a layer's scale of its inputs.
const INPUT_SCALE: &str = "input_scale";

/// A weight of the model.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// The module's name, without `.weight`.
    pub name: &'a str,
    /// Output features, or tokens.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Whether it is the embedding, not a linear layer.
    pub embedding: bool,
}

impl Module<'_> {
    fn part(&self, end: &str) -> String {
        format!("{}.{end}", self.name)
    }
}

/// The keys of `config.json` that speak of quantization; MLX has the first, and the second as a copy.
const KEYS: [&str; 2] = ["quantization", "quantization_config"];

/// Takes what a configuration says of quantization out of it.
pub fn remove_settings(config: &mut Map<String, Value>) {
    KEYS.iter().for_each(|key| _ = config.remove(*key));
}

/// A folder's method and settings, read from its `config.json` or a file beside it.
#[derive(Debug)]
pub struct Quantization {
    method: &'static Method,
    settings: Box<dyn Settings>,
    path: PathBuf,
}

impl Quantization {
    /// What a folder says; `None` where it says nothing. Whoever writes folders of its own asks for those first.
    pub fn of_folder(folder: &Path, config: &Map<String, Value>) -> Result<Option<Self>> {
        let path = folder.join("config.json");
        for key in KEYS {
            let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
            let object = value.as_object().ok_or_else(|| Error::Key {
                path: path.clone(),
                key: key.into(),
                expected: "an object".into(),
                found: value.to_string(),
            })?;
            if object.is_empty() {
                continue;
            }
            let stated = Stated { path: &path, key, object };
            return Self::of(stated.method()?, &stated).map(Some);
        }
        for method in METHODS {
            let Some(path) = method.sidecar.map(|name| folder.join(name)).filter(|p| p.exists())
            else {
                continue;
            };
            let text = disk::read_json(&path, disk::SETTINGS)?;
            let object = json::lenient(&text).ok().and_then(|value| value.as_object().cloned());
            let object = object.ok_or_else(|| Error::Malformed {
                path: path.clone(),
                what: "settings of the quantization".into(),
                offset: None,
                expected: "an object in JSON".into(),
                found: "something else".into(),
            })?;
            return Self::of(method, &Stated { path: &path, key: "", object: &object }).map(Some);
        }
        Ok(None)
    }

    fn of(method: &'static Method, stated: &Stated<'_>) -> Result<Self> {
        let settings = (method.settings)(stated)?;
        Ok(Self { method, settings, path: stated.path.into() })
    }

    /// Finds the weights of a model among the tensors of its folder. Reads their scales and zero points, which say what each
    /// becomes; no codes.
    pub fn open(self, tensors: Safetensors, modules: &[Module<'_>]) -> Result<Quantized> {
        let mut weights = HashMap::new();
        for module in modules {
            let Some(layout) = self.settings.layout(&tensors, module)? else { continue };
            layout.check(&tensors, &self.path)?;
            let decision = layout.decide(&tensors)?;
            weights.insert(module.part("weight"), Weight { layout, decision });
        }
        let (notes, inputs) = (self.settings.notes(), self.settings.inputs());
        Ok(Quantized { method: self.method, tensors, weights, notes, inputs })
    }
}

impl Method {
    /// Whether it holds a weight of this format exactly, as far as the format tells.
    pub fn holds(&self, module: &Module<'_>, format: WeightFormat) -> bool {
        format.ty.is_plain() || (!format.ty.is_sparse() && (self.holds)(module, format))
    }

    /// Prepares writing a model of these matrices, each of which the method holds. An error names the weight that it does not
    /// hold beside the others.
    pub fn arrange(
        &'static self,
        weights: &[(Module<'_>, WeightFormat)],
        inputs: Option<Inputs>,
    ) -> Result<Writer> {
        let (plain, quantized): (Vec<_>, Vec<_>) =
            weights.iter().copied().partition(|(_, format)| format.ty.is_plain());
        let plain = plain.into_iter().map(|(module, _)| module).collect();
        let contents = Contents { quantized, plain, inputs };
        let arranged = (self.arrange)(&contents).map_err(|unheld| {
            let (module, format) = contents.quantized[unheld.index];
            self.unheld(&module.part("weight"), unheld.expected, format.label())
        })?;
        let modules = contents.quantized.iter().map(|(module, _)| module.part("weight"));
        let layouts = modules.zip(arranged.layouts).collect();
        let Arranged { keys, files, mut notes, .. } = arranged;
        let inputs = inputs.is_some() && self.says_inputs;
        if contents.inputs.is_some() && !inputs {
            notes.push(format!(
                "{} has no word for inputs that are rounded: only this program goes on rounding them",
                self.name
            ));
        }
        Ok(Writer { method: self, layouts, keys, files, notes, inputs, near: RefCell::default() })
    }

    fn unheld(&self, tensor: &str, expected: String, found: String) -> Error {
        let path = PathBuf::from(format!("export to {}", self.name));
        Error::Tensor { path, tensor: tensor.into(), expected, found }
    }
}

/// A model laid out as a method has it.
pub struct Writer {
    method: &'static Method,
    layouts: HashMap<String, Layout>,
    /// What `config.json` says of it.
    pub keys: Vec<(&'static str, Value)>,
    /// Files beside it, in JSON.
    pub files: Vec<(&'static str, Value)>,
    notes: Vec<String>,
    inputs: bool,
    /// The weights whose factor became its neighbour, of those that were stored.
    near: RefCell<BTreeSet<String>>,
}

impl Writer {
    /// Whether it says how inputs are rounded, so that scales of theirs belong beside the weights.
    pub fn says_inputs(&self) -> bool {
        self.inputs
    }

    /// The tensors that the weight of a name becomes; `None` for one that stays plain.
    pub fn parts(&self, name: &str) -> Option<Vec<Part<'_>>> {
        self.layouts.get(name).map(Layout::parts)
    }

    /// The bytes of a part of a weight. An error names it where the method does not hold its numbers.
    pub fn store(&self, name: &str, part: &Part<'_>, packed: &Packed) -> Result<Vec<u8>> {
        let layout = &self.layouts[name];
        if part.name == layout.codes.name && layout.is_near(packed) {
            self.near.borrow_mut().insert(name.into());
        }
        let stored = layout.store(packed, part);
        stored.map_err(|unheld| self.method.unheld(name, unheld.expected, unheld.found))
    }

    /// What the folder lacks that some readers want, and what it holds not to the last bit, once all is stored.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        let near = self.near.borrow();
        if let Some(first) = near.first() {
            notes.push(format!(
                "{} divides by the scale of a tensor: that of {} tensors ({first}, …) changes by less than a millionth, for no \
                 number divides as theirs multiplies",
                self.method.name,
                near.len()
            ));
        }
        notes
    }
}

/// The scale kinds of integers, by whether a method has zero points.
fn integer_bits(format: WeightFormat, known: &[u32]) -> bool {
    let scale = matches!(format.ty.scale, Scale::Symmetric | Scale::ZeroPoint);
    format.ty.is_affine() && scale && known.contains(&format.ty.bits)
}

/// Columns that share a scale, where they are all of a row `None`.
fn group_of(format: WeightFormat) -> Option<usize> {
    (format.group_size != WHOLE_ROW).then_some(format.group_size as usize)
}

/// The same in a file: -1 for a row.
fn group_value(group: Option<usize>) -> Value {
    group.map_or(Value::from(-1), Value::from)
}

/// Whether groups fill the rows.
fn even_groups(module: &Module<'_>, format: WeightFormat) -> bool {
    module.columns.is_multiple_of(format.group_columns(module.columns))
}

impl Stated<'_> {
    fn method(&self) -> Result<&'static Method> {
        let named = self.object.get("quant_method").or_else(|| self.object.get("method"));
        let named = named.and_then(Value::as_str).map(str::to_ascii_lowercase);
        let by_name = |name: &str| METHODS.iter().find(|row| row.quant_methods.contains(&name));
        // MLX writes no name.
        let mlx = named.is_none() && self.get("group_size").is_some() && self.get("bits").is_some();
        let name = if mlx { "mlx" } else { named.as_deref().unwrap_or_default() };
        let found = by_name(name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
            Error::Unsupported {
                path: self.path.into(),
                what: format!("quant_method {}", named.as_deref().unwrap_or("(none)")),
                why: format!(
                    "this version reads {}, its own packed folders, plain checkpoints and GGUF",
                    names.join(", ")
                ),
            }
        })
    }

    fn wrong(&self, key: &str, expected: impl Into<String>, found: impl ToString) -> Error {
        let dot = if self.key.is_empty() { "" } else { "." };
        Error::Key {
            path: self.path.into(),
            key: format!("{}{dot}{key}", self.key),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    /// A value, if it is there and not null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A text, in lower case.
    fn text(&self, key: &str) -> Result<Option<String>> {
        let text = |value: &Value| value.as_str().map(str::to_ascii_lowercase);
        let wrong = |value: &Value| self.wrong(key, "a text", value);
        self.get(key).map(|value| text(value).ok_or_else(|| wrong(value))).transpose()
    }

    /// A width of codes that the method has.
    fn bits(&self, key: &str, value: Option<&Value>, known: &[u32]) -> Result<u32> {
        let bits = value.and_then(Value::as_u64).and_then(|bits| u32::try_from(bits).ok());
        bits.filter(|bits| known.contains(bits)).ok_or_else(|| {
            let known: Vec<String> = known.iter().map(u32::to_string).collect();
            self.wrong(key, known.join(", "), value.unwrap_or(&Value::Null))
        })
    }

    /// Columns that share a scale; `None` for -1, the whole row.
    fn group_size(&self, key: &str, value: Option<&Value>) -> Result<Option<usize>> {
        let wrong = || {
            let found = value.unwrap_or(&Value::Null);
            self.wrong(key, "a positive number of columns, or -1 for a row", found)
        };
        match value.and_then(Value::as_i64) {
            Some(-1) => Ok(None),
            Some(size @ 1..) => usize::try_from(size).map(Some).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    /// A rule for names that a file holds: a regular expression, as Python's `re.match` takes it from a name's beginning.
    fn pattern(&self, key: &str, pattern: &str) -> Result<regex::Regex> {
        let mut builder = regex::RegexBuilder::new(&format!("^(?:{pattern})"));
        let built = builder.size_limit(MOST_PATTERN).build();
        built.map_err(|_| self.wrong(key, "a regular expression without looking around", pattern))
    }
}

/// Bytes of memory of a compiled pattern.
const MOST_PATTERN: usize = 1 << 20;

/// Columns of a row of `columns` that share a scale.
fn columns_of(group: Option<usize>, columns: usize) -> usize {
    group.unwrap_or(columns).min(columns).max(1)
}

/// A folder's quantized weights, found and checked, and its other tensors.
#[derive(Debug)]
pub struct Quantized {
    method: &'static Method,
    tensors: Safetensors,
    weights: HashMap<String, Weight>,
    notes: Vec<String>,
    inputs: Option<Inputs>,
}

/// A quantized weight.
#[derive(Debug)]
struct Weight {
    layout: Layout,
    decision: Decision,
}

impl Quantized {
    /// The method's row.
    pub fn method(&self) -> &'static Method {
        self.method
    }

    /// How it rounds the inputs of the layers that it has quantized.
    pub fn inputs(&self) -> Option<Inputs> {
        self.inputs
    }

    /// The scale that stands beside a quantized weight for its layer's inputs.
    pub fn input_scale(&self, weight: &str) -> Result<f32> {
        let name = input_scale_name(weight);
        let wrong = |found: String| Error::Tensor {
            path: self.tensors.sources().first().map_or_else(Default::default, |s| s.path().into()),
            tensor: name.clone(),
            expected: "one positive number, as the settings of the quantization say".into(),
            found,
        };
        let tensor = self.tensors.get(&name).ok_or_else(|| wrong("no such tensor".into()))?;
        let values = tensor.to_packed()?.to_f32();
        match values[..] {
            [value] if value > 0.0 && value.is_finite() => Ok(value),
            _ => Err(wrong(format!("{values:?}"))),
        }
    }

    /// All tensors of the folder.
    pub fn tensors(&self) -> &Safetensors {
        &self.tensors
    }

    /// What the quantized weight of that name becomes; `None` if there is none.
    pub fn format(&self, name: &str) -> Option<WeightFormat> {
        self.weights.get(name).map(|weight| weight.decision.format)
    }

    /// A quantized weight's bytes in the file, scales and all.
    pub fn stored_bytes(&self, name: &str) -> Option<u64> {
        let bytes = |name: &str| self.tensors.get(name).map_or(0, |t| t.range.len() as u64);
        let parts = |weight: &Weight| weight.layout.parts().iter().map(|p| bytes(p.name)).sum();
        self.weights.get(name).map(parts)
    }

    /// The quantized weight of that name, if there is one.
    pub fn load(&self, name: &str) -> Option<Result<Packed>> {
        self.weights.get(name).map(|weight| weight.layout.load(&self.tensors))
    }

    /// How a quantized weight is stored, in words.
    pub fn stored_type(&self, name: &str) -> Option<String> {
        let weight = self.weights.get(name)?;
        let bits = weight.layout.codes.bits;
        Some(match weight.decision.because {
            None => weight.decision.format.label(),
            Some(_) => format!("{bits} bits"),
        })
    }

    /// The tensors that quantized weights are made of.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.weights.values().flat_map(|w| w.layout.parts().into_iter().map(|part| part.name))
    }

    /// What the user should know: weights that had to be dequantized, and settings that say nothing of weights.
    pub fn notes(&self) -> Vec<String> {
        let mut reasons: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for (name, weight) in &self.weights {
            if let Some(because) = weight.decision.because {
                let ty = weight.decision.format.ty.name;
                reasons.entry((because, ty)).or_default().push(name);
            }
        }
        let dequantized = reasons.into_iter().map(|((because, ty), names)| {
            let (count, first) = (names.len(), names.iter().min().copied().unwrap_or_default());
            let more = if count > 1 { ", …" } else { "" };
            format!("{count} tensors ({first}{more}) are dequantized to {ty}: {because}")
        });
        dequantized.chain(self.notes.iter().cloned()).collect()
    }
}

/// Ends of the names of tensors that say how activations are rounded, which is not done here.
const OF_ACTIVATIONS: &[&str] = &[
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
    ".q_scale",
];

/// The name of the scale of a layer's inputs, of its weight's name.
pub fn input_scale_name(weight: &str) -> String {
    format!("{}.{INPUT_SCALE}", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// Whether a tensor says how activations are rounded.
pub fn of_activations(name: &str) -> bool {
    OF_ACTIVATIONS.iter().any(|end| name.ends_with(end))
}
