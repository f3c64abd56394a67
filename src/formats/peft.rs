//! Low-rank adapters as the PEFT library keeps them (github.com/huggingface/peft): `adapter_config.json`, and
//! `adapter_model.safetensors` with two matrices for each adapted module,
//! `base_model.model.MODULE.lora_A.weight` (rank, inputs) and `.lora_B.weight` (outputs, rank). Modules that were learned as a whole
//! (`modules_to_save`), as a head that scores labels is, stand beside them: `base_model.model.score.weight`.
//!
//! Bytes and JSON only: which modules a model has is known elsewhere. What an adapter may be beyond two matrices is refused by
//! name, since leaving it out would give another model.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::json::lenient;
use super::safetensors::{NewTensor, Safetensors, write_file};
use super::{Source, StoredTensor, foreign};
use crate::disk;
use crate::error::{Error, Result};
use crate::tensor::DType;

/// The file of settings.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of matrices.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// A file of Lopper's own beside them, a list of the names of a head's labels: PEFT's files have no place for them.
pub const LABELS_FILE: &str = "labels.json";
/// What PEFT puts in front of a module's name.
const PREFIX: &str = "base_model.model.";

/// What `adapter_config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rows of A and columns of B (`r`), of modules that `rank_pattern` does not name.
    pub rank: usize,
    /// What B A is multiplied by, times its rank (`lora_alpha`), of modules that `alpha_pattern` does not name.
    pub alpha: f64,
    /// The share of an adapter's inputs that training leaves out (`lora_dropout`).
    pub dropout: f64,
    /// The modules that are adapted (`target_modules`).
    pub targets: Targets,
    /// The model that they were trained on (`base_model_name_or_path`).
    pub base_model: Option<String>,
    /// Divide alpha by the root of the rank and not by the rank (`use_rslora`).
    pub rslora: bool,
    /// Ranks by patterns of module names; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    /// Alphas likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are stored as a whole, by the ends of their names (`modules_to_save`).
    pub saved: Vec<String>,
}

/// A tensor of a module that is stored as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Its name in the model's checkpoint, `score.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// What a folder has.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The settings.
    pub config: AdapterConfig,
    /// The matrices, by module.
    pub pairs: Vec<Pair>,
    /// Tensors of whole modules.
    pub saved: Vec<Saved>,
    /// The names of the labels of a head among these; none: nobody says.
    pub labels: Vec<String>,
}

/// Which modules are adapted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Those of these names, or whose names end with a dot and one of these.
    Named(Vec<String>),
    /// Those whose whole names match a pattern; `all-linear`: the linear layers of the blocks.
    Pattern(String),
}

impl Targets {
    /// Every linear layer of the blocks.
    pub const ALL_LINEAR: &str = "all-linear";
}

/// The two matrices of a module: its weight W becomes W + scale B A.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The module's name, `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Rows of A, columns of B.
    pub rank: usize,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
    /// (rank, inputs), row-major.
    pub a: Vec<f32>,
    /// (outputs, rank), row-major.
    pub b: Vec<f32>,
}

impl Pair {
    /// The names of A and B in a file.
    pub fn names(&self) -> [String; 2] {
        ["A", "B"].map(|matrix| tensor_name(&self.module, matrix))
    }
}

/// The name of a module's matrix `A` or `B`.
pub fn tensor_name(module: &str, matrix: &str) -> String {
    format!("{PREFIX}{module}.lora_{matrix}.weight")
}

impl AdapterConfig {
    /// Adapters of one rank, multiplied by alpha / rank, without anything else.
    pub fn new(rank: usize, alpha: f64, targets: Targets) -> Self {
        Self {
            rank,
            alpha,
            dropout: 0.0,
            targets,
            base_model: None,
            rslora: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            saved: Vec::new(),
        }
    }

    /// The rank of a module's matrices.
    pub fn rank_of(&self, module: &str) -> usize {
        of_pattern(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// What B A of a module is multiplied by: alpha / rank, or alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732).
    pub fn scale_of(&self, module: &str) -> f64 {
        let alpha = of_pattern(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = self.rank_of(module) as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    /// The file's JSON.
    fn to_json(&self) -> Value {
        // Written as PEFT has it, whole numbers without a point.
        let number = |value: f64| match value.fract() == 0.0 && value.abs() < 1e15 {
            true => json!(value as i64),
            false => json!(value),
        };
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha)));
        let ranks = self.rank_pattern.iter().map(|(key, rank)| (key.clone(), json!(rank)));
        json!({
            "alpha_pattern": alphas.collect::<Map<_, _>>(),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": (!self.saved.is_empty()).then_some(&self.saved),
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": ranks.collect::<Map<_, _>>(),
            "revision": null,
            "target_modules": match &self.targets {
                Targets::Named(names) => json!(names),
                Targets::Pattern(pattern) => json!(pattern),
            },
            // Whole modules are those of a head that scores labels.
            "task_type": if self.saved.is_empty() { "CAUSAL_LM" } else { "SEQ_CLS" },
            "use_dora": false,
            "use_rslora": self.rslora,
        })
    }
}

/// Whether a module is meant by one of PEFT's patterns: its whole name, or what stands behind a dot of it.
fn means(pattern: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!(r"\A(?:.*\.)?(?:{pattern})\z"))
}

/// What the first pattern that means a module has for it. Patterns have been compiled before.
fn of_pattern<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let fits = |pattern: &str| means(pattern).is_ok_and(|pattern| pattern.is_match(module));
    patterns.iter().find(|(pattern, _)| fits(pattern)).map(|(_, value)| *value)
}

/// Reads a folder that PEFT wrote, or [`write`]. The modules' names are as they stand there.
pub fn read(folder: &Path) -> Result<Stored> {
    let path = folder.join(CONFIG_FILE);
    let text = disk::read_json(&path, disk::SETTINGS)?;
    let config = match lenient(&text) {
        Ok(Value::Object(object)) => config(&path, &object)?,
        other => {
            let found = other.map_or_else(|e| e.to_string(), |_| "another value".into());
            return Err(foreign(&path, &text).unwrap_or_else(|| Error::Malformed {
                path: path.clone(),
                what: "JSON".into(),
                offset: None,
                expected: "an object".into(),
                found,
            }));
        }
    };
    let path = folder.join(WEIGHTS_FILE);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        return Err(Error::Unsupported {
            path: folder.join("adapter_model.bin"),
            what: "an adapter of Python objects".into(),
            why: "load it with PEFT and save it again (save_pretrained, safe_serialization=True)"
                .into(),
        });
    }
    let tensors = Safetensors::open(Source::open(&path)?)?;
    let (pairs, saved) = contents(&path, &tensors, &config)?;
    let labels = labels(&folder.join(LABELS_FILE))?;
    Ok(Stored { config, pairs, saved, labels })
}

/// Names of labels, if there are some.
fn labels(path: &Path) -> Result<Vec<String>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = disk::read_json(path, disk::SETTINGS)?;
    serde_json::from_slice(&text).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "JSON".into(),
        offset: None,
        expected: "a list of labels".into(),
        found: error.to_string(),
    })
}

/// Writes both files into a folder, each whole or not at all, the settings last.
pub fn write(
    folder: &Path,
    config: &AdapterConfig,
    pairs: &[Pair],
    (saved, labels): (&[Saved], &[String]),
) -> Result<()> {
    let whole = saved.iter().map(|Saved { name, shape, values }| NewTensor {
        name: format!("{PREFIX}{name}"),
        dtype: DType::F32,
        shape: shape.clone(),
        data: Box::new(move || Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())),
    });
    let tensors = pairs.iter().flat_map(|pair| {
        let shapes = [vec![pair.rank, pair.inputs], vec![pair.outputs, pair.rank]];
        let values = [&pair.a, &pair.b];
        let matrices = pair.names().into_iter().zip(shapes).zip(values);
        matrices.map(|((name, shape), values)| NewTensor {
            name,
            dtype: DType::F32,
            shape,
            data: Box::new(move || Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())),
        })
    });
    write_file(&folder.join(WEIGHTS_FILE), tensors.chain(whole).collect())?;
    if !labels.is_empty() {
        let (path, text) = (folder.join(LABELS_FILE), format!("{:#}\n", json!(labels)));
        disk::replace_file(&path, |file| {
            file.write_all(text.as_bytes()).map_err(Error::write(&path))
        })?;
    }
    let path = folder.join(CONFIG_FILE);
    let text = format!("{:#}\n", config.to_json());
    disk::replace_file(&path, |file| file.write_all(text.as_bytes()).map_err(Error::write(&path)))
}

/// Keys that make an adapter more than two matrices, or put them on something else, and what each means.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA learns the magnitude of each row too"),
    ("lora_bias", "the adapters have biases"),
    ("fan_in_fan_out", "the weights are stored transposed"),
    ("layer_replication", "the model has layers more than once"),
    ("trainable_token_indices", "rows of the embedding are stored beside the adapters"),
    ("target_parameters", "parameters that are no module's weight are adapted"),
    ("use_qalora", "inputs are averaged over groups"),
    ("alora_invocation_tokens", "the adapters act behind some tokens only"),
    ("use_bdlora", "the matrices are block diagonal"),
    ("arrow_config", "several adapters are chosen from for each token"),
    ("kasa_config", "singular values of the weights are cut and learned"),
    ("monteclora_config", "the matrices are random"),
    ("velora_config", "training compresses activations"),
    ("megatron_config", "the layers are Megatron's"),
];

/// Keys that are read, or say how adapters were made or are run and nothing of what they are.
const HARMLESS: &[&str] = &[
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "bias",
    "use_rslora",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
];

/// Beginnings of `init_lora_weights` that change the base model's weights before training.
const CHANGES_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

fn config(path: &Path, keys: &Map<String, Value>) -> Result<AdapterConfig> {
    let wrong = |key: &str, expected: &str, found: &Value| Error::Key {
        path: path.into(),
        key: key.into(),
        expected: expected.into(),
        found: found.to_string(),
    };
    let unsupported = |what: String, why: &str| {
        Err(Error::Unsupported { path: path.into(), what, why: why.into() })
    };
    let get = |key: &str| keys.get(key).unwrap_or(&Value::Null);
    if get("peft_type").as_str() != Some("LORA") {
        return Err(wrong("peft_type", "LORA", get("peft_type")));
    }
    for (key, value) in keys.iter().filter(|(_, value)| !says_nothing(value)) {
        let refused = REFUSED.iter().find(|(known, _)| known == key);
        if let Some((_, why)) = refused {
            return unsupported(format!("an adapter with `{key}` {value}"), why);
        }
        if !HARMLESS.contains(&key.as_str()) {
            let why = "this version does not know what that changes";
            return unsupported(format!("an adapter with `{key}` {value}"), why);
        }
    }
    let bias = get("bias");
    if !(says_nothing(bias) || bias.as_str() == Some("none")) {
        return unsupported(
            format!("an adapter with `bias` {bias}"),
            "biases are stored beside it",
        );
    }
    if let Some(init) = get("init_lora_weights").as_str()
        && CHANGES_BASE.iter().any(|begin| init.to_ascii_lowercase().starts_with(begin))
    {
        let why = "it stands on weights that were changed before training; convert it with PEFT (path_initial_model_for_weight_conversion)";
        return unsupported(format!("an adapter with `init_lora_weights` {init}"), why);
    }
    let rank = |key: &str, value: &Value| {
        let rank = value.as_u64().and_then(|rank| usize::try_from(rank).ok());
        rank.filter(|rank| (1..=MAX_RANK).contains(rank))
            .ok_or_else(|| wrong(key, "a whole number from 1 to 65536", value))
    };
    let alpha = |key: &str, value: &Value| {
        let alpha = value.as_f64().filter(|alpha| alpha.is_finite() && *alpha > 0.0);
        alpha.ok_or_else(|| wrong(key, "a positive number", value))
    };
    let flag = |key: &str| match get(key) {
        Value::Null => Ok(false),
        value => value.as_bool().ok_or_else(|| wrong(key, "true or false", value)),
    };
    let dropout = match get("lora_dropout") {
        Value::Null => 0.0,
        value => {
            let share = value.as_f64().filter(|share| (0.0..1.0).contains(share));
            share.ok_or_else(|| wrong("lora_dropout", "a share from 0 to below 1", value))?
        }
    };
    Ok(AdapterConfig {
        rank: rank("r", get("r"))?,
        alpha: alpha("lora_alpha", get("lora_alpha"))?,
        dropout,
        targets: targets(get("target_modules"))
            .ok_or_else(|| wrong("target_modules", "names of modules", get("target_modules")))?,
        base_model: get("base_model_name_or_path").as_str().map(str::to_string),
        rslora: flag("use_rslora")?,
        rank_pattern: patterns(path, "rank_pattern", get("rank_pattern"), rank)?,
        alpha_pattern: patterns(path, "alpha_pattern", get("alpha_pattern"), alpha)?,
        saved: match get("modules_to_save") {
            Value::Null => Vec::new(),
            value => match targets(value) {
                Some(Targets::Named(names)) if names.iter().all(|name| !name.is_empty()) => names,
                _ => return Err(wrong("modules_to_save", "names of modules", value)),
            },
        },
    })
}

/// No matrix of a model is wider.
const MAX_RANK: usize = 1 << 16;

/// Whether a value is what a key has that was not set.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(keys) => keys.values().all(says_nothing),
        _ => false,
    }
}

/// PEFT leaves this out where modules follow from the model's family; the matrices say which they are.
fn targets(value: &Value) -> Option<Targets> {
    Some(match value {
        Value::Null => Targets::Named(Vec::new()),
        Value::String(pattern) => Targets::Pattern(pattern.clone()),
        Value::Array(names) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_string));
            Targets::Named(names.collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn patterns<T>(
    path: &Path,
    key: &str,
    value: &Value,
    read: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    let wrong = |expected: &str, found: String| Error::Key {
        path: path.into(),
        key: key.into(),
        expected: expected.into(),
        found,
    };
    let found = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(found) => found,
        _ => return Err(wrong("an object of patterns", value.to_string())),
    };
    let pattern = |(pattern, value): (&String, &Value)| match means(pattern) {
        Ok(_) => Ok((pattern.clone(), read(key, value)?)),
        Err(_) => Err(wrong("regular expressions without look-around", pattern.clone())),
    };
    found.iter().map(pattern).collect()
}

/// The tensor of a module that is stored as a whole, if that is what a name says: PEFT takes every module whose name ends so.
fn whole<'n>(config: &AdapterConfig, name: &'n str) -> Option<&'n str> {
    let name = name.strip_prefix(PREFIX)?;
    let module = name.rsplit_once('.')?.0;
    // A module's name, or that of one within it.
    let within = |saved: &String| {
        let ends = |part: &str| part.ends_with(saved.as_str());
        ends(module) || module.match_indices('.').any(|(at, _)| ends(&module[..at]))
    };
    (!module.contains(".lora_") && config.saved.iter().any(within)).then_some(name)
}

/// The matrices of a file, by module, and the tensors of whole modules.
fn contents(
    path: &Path,
    tensors: &Safetensors,
    config: &AdapterConfig,
) -> Result<(Vec<Pair>, Vec<Saved>)> {
    let mut found: BTreeMap<&str, [Option<StoredTensor<'_>>; 2]> = BTreeMap::new();
    let mut saved = Vec::new();
    for name in tensors.names() {
        if let (Some(own), Some(tensor)) = (whole(config, name), tensors.get(name)) {
            let (shape, values) = (tensor.shape.clone(), values(path, &tensor)?);
            saved.push(Saved { name: own.into(), shape, values });
            continue;
        }
        let (module, place) = module_of(path, name)?;
        found.entry(module).or_default()[place] = tensors.get(name);
    }
    let pair = |(module, matrices): (&str, [Option<StoredTensor<'_>>; 2])| {
        let rank = config.rank_of(module);
        let [a, b] = matrices;
        let missing = |matrix: &str, other: &str| Error::Tensor {
            path: path.into(),
            tensor: tensor_name(module, matrix),
            expected: format!("a matrix beside lora_{other}"),
            found: "no such tensor".into(),
        };
        let (a, b) = (a.ok_or_else(|| missing("A", "B"))?, b.ok_or_else(|| missing("B", "A"))?);
        let wrong = |tensor: &StoredTensor<'_>, expected: String| Error::Tensor {
            path: path.into(),
            tensor: tensor.name.into(),
            expected,
            found: format!("shape {:?}", tensor.shape),
        };
        let inputs = match a.shape[..] {
            [rows, inputs] if rows == rank && inputs > 0 => inputs,
            _ => return Err(wrong(&a, format!("shape [{rank}, inputs], rank {rank}"))),
        };
        let outputs = match b.shape[..] {
            [outputs, columns] if columns == rank && outputs > 0 => outputs,
            _ => return Err(wrong(&b, format!("shape [outputs, {rank}], rank {rank}"))),
        };
        let (a, b) = (values(path, &a)?, values(path, &b)?);
        Ok(Pair { module: module.into(), rank, inputs, outputs, a, b })
    };
    let pairs: Vec<Pair> = found.into_iter().map(pair).collect::<Result<_>>()?;
    if pairs.is_empty() {
        return Err(Error::Malformed {
            path: path.into(),
            what: "tensors".into(),
            offset: None,
            expected: "lora_A and lora_B of a module or more".into(),
            found: "none".into(),
        });
    }
    Ok((pairs, saved))
}

/// The module whose matrix a tensor is, and whether it is A (0) or B (1).
fn module_of<'a>(path: &Path, name: &'a str) -> Result<(&'a str, usize)> {
    let known = [
        ("lora_embedding_", "the embedding is adapted"),
        ("lora_magnitude_vector", "DoRA learns the magnitude of each row too"),
    ];
    if let Some((_, why)) = known.iter().find(|(part, _)| name.contains(part)) {
        let what = format!("an adapter with the tensor `{name}`");
        return Err(Error::Unsupported { path: path.into(), what, why: (*why).into() });
    }
    let module = name.strip_prefix(PREFIX).and_then(|rest| {
        let ends = [".lora_A.weight", ".lora_B.weight"].iter().enumerate();
        let mut found = ends.filter_map(|(place, end)| Some((rest.strip_suffix(end)?, place)));
        found.next().filter(|(module, _)| !module.is_empty())
    });
    module.ok_or_else(|| Error::Tensor {
        path: path.into(),
        tensor: name.into(),
        expected: format!("{PREFIX}MODULE.lora_A.weight or .lora_B.weight"),
        found: "another tensor beside them".into(),
    })
}

/// A matrix in f32.
fn values(path: &Path, tensor: &StoredTensor<'_>) -> Result<Vec<f32>> {
    let packed = tensor.to_packed()?;
    match packed.first_non_finite() {
        None => Ok(packed.to_f32()),
        Some((row, column)) => Err(Error::Tensor {
            path: path.into(),
            tensor: tensor.name.into(),
            expected: "finite values".into(),
            found: format!("{} at row {row}, column {column}", packed.value(row, column)),
        }),
    }
}
