//! compressed-tensors, the folders of llm-compressor and vLLM.
//!
//! `config_groups` of the settings say which modules (`targets`, less `ignore`) are stored how, each group in one of the formats
//! of [`FORMATS`]. Of a linear layer of `n` inputs and `m` outputs:
//!
//! | format | codes | scales | beside |
//! |---|---|---|---|
//! | pack-quantized | `weight_packed` i32, m x n*bits/32 along the inputs | `weight_scale` m x groups | `weight_zero_point` i32, m*bits/32 x groups along the outputs; `weight_shape` i64; `weight_g_idx` |
//! | int-quantized | `weight` i8 | `weight_scale` | `weight_zero_point` i8 |
//! | float-quantized | `weight` E4M3 | `weight_scale` | |
//! | nvfp4-pack-quantized | `weight_packed` u8, two E2M1 codes each | `weight_scale` E4M3, m x n/16 | `weight_global_scale` f32: scales are divided by it |
//! | mxfp4-pack-quantized | the same | `weight_scale` u8 (E8M0), m x n/32 | |
//! | mxfp8-quantized | `weight` E4M3 | `weight_scale` u8 (E8M0), m x n/32 | |
//!
//! Its `dequantize` computes in the type of the scales, of NVFP4 in f32, and what comes of bytes of scales is rounded to bf16.

use regex::Regex;
use serde_json::{Map, Value, json};

use super::layout::{Along, Codes, FLOATS, Grid, Layout, Numbers, Stored, Whole};
use super::{
    Arranged, Contents, Inputs, Method, Module, Settings, Stated, Unarranged, columns_of,
    even_groups, group_of, integer_bits,
};
use crate::error::{Error, Result};
use crate::formats::safetensors::Safetensors;
use crate::tensor::{DType, InputType, Scale, WeightFormat};

pub(super) static METHOD: Method = Method {
    name: "compressed-tensors",
    quant_methods: &["compressed-tensors", "compressed_tensors"],
    sidecar: None,
    says_inputs: true,
    settings: |stated| Ok(Box::new(CompressedTensors::read(stated)?)),
    holds: |module, format| even_groups(module, format) && scheme_of(format, None).is_some(),
    arrange,
};

#[derive(Debug)]
struct CompressedTensors {
    groups: Vec<Group>,
    ignore: Vec<Target>,
    notes: Vec<String>,
    inputs: Option<Inputs>,
}

/// The modules that are stored alike.
#[derive(Debug)]
struct Group {
    targets: Vec<Target>,
    scheme: Scheme,
}

/// Which modules are meant.
#[derive(Debug)]
enum Target {
    /// A module's name or its class: `Linear`, `Embedding`.
    Name(String),
    Pattern(Regex),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Scheme {
    format: Format,
    bits: u32,
    symmetric: bool,
    shared: Shared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Pack,
    Int,
    Float,
    Nvfp4,
    Mxfp4,
    Mxfp8,
}

const FORMATS: &[(&str, Format)] = &[
    ("pack-quantized", Format::Pack),
    ("int-quantized", Format::Int),
    ("float-quantized", Format::Float),
    ("nvfp4-pack-quantized", Format::Nvfp4),
    ("mxfp4-pack-quantized", Format::Mxfp4),
    ("mxfp8-quantized", Format::Mxfp8),
];

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shared {
    Tensor,
    Row,
    Group(usize),
    Block { rows: usize, columns: usize },
}

impl Target {
    fn read(stated: &Stated<'_>, key: &str, value: &Value) -> Result<Self> {
        let text = value.as_str().ok_or_else(|| stated.wrong(key, "names of modules", value))?;
        Ok(match text.strip_prefix("re:") {
            Some(pattern) => Target::Pattern(stated.pattern(key, pattern)?),
            None => Target::Name(text.into()),
        })
    }

    fn list(stated: &Stated<'_>, key: &str, value: Option<&Value>) -> Result<Vec<Self>> {
        let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
        let list = value.as_array().ok_or_else(|| stated.wrong(key, "a list", value))?;
        list.iter().map(|value| Self::read(stated, key, value)).collect()
    }

    fn is(&self, module: &Module<'_>) -> bool {
        match self {
            Target::Name(name) if name == "Linear" => !module.embedding,
            Target::Name(name) if name == "Embedding" => module.embedding,
            Target::Name(name) => name == module.name,
            Target::Pattern(pattern) => pattern.is_match(module.name),
        }
    }
}

impl CompressedTensors {
    fn read(stated: &Stated<'_>) -> Result<Self> {
        let unsupported = |what: String, why: &str| Error::Unsupported {
            path: stated.path.into(),
            what,
            why: why.into(),
        };
        let status = stated.text("quantization_status")?;
        if let Some(status) = status.filter(|status| status != "compressed") {
            let why = "only weights that were compressed are stored as codes";
            return Err(unsupported(format!("quantization_status {status}"), why));
        }
        let filled = |key: &str| {
            stated
                .get(key)
                .filter(|value| value.as_object().is_none_or(|object| !object.is_empty()))
        };
        let sparsity = filled("sparsity_config").and_then(|config| config.get("format"));
        if let Some(format) = sparsity.filter(|format| *format != "dense") {
            let why =
                "sparse weights are read where they are stored with their zeros (format dense)";
            return Err(unsupported(format!("sparsity_config of format {format}"), why));
        }
        if let Some(config) = filled("transform_config") {
            let groups = config.get("config_groups").and_then(Value::as_object);
            if groups.is_none_or(|groups| !groups.is_empty()) {
                let why = "activations would have to be rotated when the model runs";
                return Err(unsupported("transform_config".into(), why));
            }
        }
        let format = stated.text("format")?;
        let groups = stated.get("config_groups").unwrap_or(&Value::Null);
        let groups =
            groups.as_object().ok_or_else(|| stated.wrong("config_groups", "an object", groups))?;
        let (mut notes, mut inputs) = (Vec::new(), Vec::new());
        let mut read = Vec::new();
        for (name, group) in groups {
            let key = format!("config_groups.{name}");
            let group = group.as_object().ok_or_else(|| stated.wrong(&key, "an object", group))?;
            let given = |part: &str| group.get(part).is_some_and(|value| !value.is_null());
            let stated_inputs = group.get("input_activations").filter(|value| value.is_object());
            let known = stated_inputs.and_then(inputs_of);
            let rounds = given("input_activations") || given("output_activations");
            if rounds && (known.is_none() || given("output_activations") || !given("weights")) {
                notes.push(format!(
                    "{name} of the quantization rounds activations too; here they stay as they are"
                ));
            }
            if !given("weights") {
                continue;
            }
            inputs.push(known);
            let targets = Target::list(stated, &format!("{key}.targets"), group.get("targets"))?;
            let scheme = Scheme::read(stated, &key, group, format.as_deref())?;
            read.push(Group { targets, scheme });
        }
        if filled("kv_cache_scheme").is_some() {
            notes.push("the quantization rounds the KV cache too; here it stays as it is".into());
        }
        let ignore = Target::list(stated, "ignore", stated.get("ignore"))?;
        let first = inputs.first().copied().flatten();
        let alike = inputs.iter().all(|other| *other == first);
        if !alike {
            let what = "groups of the quantization round inputs, each its own way; here they stay as they are";
            notes.push(what.into());
        }
        Ok(Self { groups: read, ignore, notes, inputs: first.filter(|_| alike) })
    }
}

impl Scheme {
    fn read(
        stated: &Stated<'_>,
        key: &str,
        group: &Map<String, Value>,
        format: Option<&str>,
    ) -> Result<Self> {
        let own = group.get("format").and_then(Value::as_str);
        let name = own.or(format).unwrap_or_default();
        let weights = &group["weights"];
        let at = |name: &str| format!("{key}.weights.{name}");
        let get = |name: &str| weights.get(name).filter(|value| !value.is_null());
        let wrong = |name: &str, expected: &str| {
            Err(stated.wrong(&at(name), expected, get(name).unwrap_or(&Value::Null)))
        };
        let float = match get("type").map(|ty| ty.as_str()) {
            None | Some(Some("int")) => false,
            Some(Some("float")) => true,
            _ => return wrong("type", "int or float"),
        };
        let format = match (name, float) {
            ("naive-quantized", false) => Format::Int,
            ("naive-quantized", true) => Format::Float,
            _ => match FORMATS.iter().find(|(known, _)| *known == name) {
                Some((_, format)) => *format,
                None => {
                    let known: Vec<&str> = FORMATS.iter().map(|(known, _)| *known).collect();
                    return Err(stated.wrong("format", known.join(", "), format!("\"{name}\"")));
                }
            },
        };
        if float == matches!(format, Format::Pack | Format::Int) {
            return wrong(
                "type",
                &format!("{} beside format {name}", if float { "int" } else { "float" }),
            );
        }
        let known: &[u32] = match format {
            Format::Pack | Format::Int => &[1, 2, 3, 4, 5, 6, 7, 8],
            Format::Float | Format::Mxfp8 => &[8],
            Format::Nvfp4 | Format::Mxfp4 => &[4],
        };
        let bits = stated.bits(&at("num_bits"), get("num_bits"), known)?;
        let symmetric = match get("symmetric").map(Value::as_bool) {
            None => true,
            Some(Some(symmetric)) if symmetric || !float => symmetric,
            _ => return wrong("symmetric", "true, or false beside integers"),
        };
        let group_size = || stated.group_size(&at("group_size"), get("group_size"));
        let shared = match get("strategy").map(|strategy| strategy.as_str()) {
            None if get("group_size").is_some() => match group_size()? {
                None => Shared::Row,
                Some(size) => Shared::Group(size),
            },
            None | Some(Some("tensor")) => Shared::Tensor,
            Some(Some("channel")) => Shared::Row,
            Some(Some("group" | "tensor_group")) => match group_size()? {
                None => Shared::Row,
                Some(size) => Shared::Group(size),
            },
            Some(Some("block")) => {
                let lengths = get("block_structure").and_then(Value::as_array);
                let length = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
                let lengths: Option<Vec<usize>> =
                    lengths.and_then(|list| list.iter().map(length).collect());
                match lengths.as_deref() {
                    Some(&[rows, columns]) if rows > 0 && columns > 0 => {
                        Shared::Block { rows, columns }
                    }
                    _ => return wrong("block_structure", "rows and columns of a block"),
                }
            }
            _ => return wrong("strategy", "tensor, channel, group, tensor_group or block"),
        };
        let whole = matches!(shared, Shared::Row | Shared::Group(_));
        if format == Format::Pack && !symmetric && !whole {
            return wrong("strategy", "channel or group beside zero points in packed words");
        }
        Ok(Self { format, bits, symmetric, shared })
    }
}

impl Settings for CompressedTensors {
    fn layout(&self, tensors: &Safetensors, module: &Module<'_>) -> Result<Option<Layout>> {
        let there = |end: &str| tensors.get(&module.part(end)).is_some();
        let quantized = ["weight_packed", "weight_scale"].into_iter().find(|end| there(end));
        let is = |targets: &[Target]| targets.iter().any(|target| target.is(module));
        let group = self.groups.iter().find(|group| is(&group.targets));
        let group = group.filter(|_| !is(&self.ignore));
        match (group, quantized) {
            (None, None) => Ok(None),
            // Patterns for all modules do not mean those that nothing was done to.
            (Some(_), None) if module.embedding => Ok(None),
            (Some(group), _) => {
                let mut layout = layout(module, group.scheme);
                layout.group_index =
                    Some(module.part("weight_g_idx")).filter(|_| there("weight_g_idx"));
                Ok(Some(layout))
            }
            (None, Some(end)) => Err(Error::Tensor {
                path: tensors.sources().first().map_or_else(Default::default, |s| s.path().into()),
                tensor: module.part(end),
                expected: "a group of config_groups that names the module, and is not ignored"
                    .into(),
                found: "none".into(),
            }),
        }
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn inputs(&self) -> Option<Inputs> {
        self.inputs
    }
}

/// What a group says of its layers' inputs: eight bits without zero points, by a scale for each token, found as it comes, or by one of
/// the layer. `None`: something else.
fn inputs_of(stated: &Value) -> Option<Inputs> {
    let text = |key: &str, usual: &'static str| match stated.get(key) {
        None | Some(Value::Null) => Some(usual),
        Some(value) => value.as_str(),
    };
    let flag = |key: &str, usual: bool| match stated.get(key) {
        None | Some(Value::Null) => Some(usual),
        Some(value) => value.as_bool(),
    };
    let ty = match text("type", "int")? {
        "int" => InputType::Int8,
        "float" => InputType::Fp8E4m3,
        _ => return None,
    };
    let stored = match (flag("dynamic", false)?, text("strategy", "tensor")?) {
        (true, "token") => false,
        (false, "tensor") => true,
        _ => return None,
    };
    let plain = stated.get("num_bits").and_then(Value::as_u64).is_none_or(|bits| bits == 8)
        && flag("symmetric", true)?;
    plain.then_some(Inputs { ty, stored })
}

/// The same as a group says it.
fn stated_inputs(Inputs { ty, stored }: Inputs) -> Value {
    json!({
        "num_bits": 8,
        "type": if ty == InputType::Int8 { "int" } else { "float" },
        "symmetric": true,
        "strategy": if stored { "tensor" } else { "token" },
        "group_size": null,
        "dynamic": !stored,
        "actorder": null,
    })
}

fn layout(module: &Module<'_>, scheme: Scheme) -> Layout {
    let Scheme { format, bits, symmetric, shared } = scheme;
    let part = |end: &str| module.part(end);
    let numbers = |types| Numbers { name: part("weight_scale"), types, columns_first: false };
    let bytes = |word| Codes::of_rows(part("weight"), 8, word);
    let nibbles = || Codes::of_rows(part("weight_packed"), 4, DType::U8);
    let (codes, grid) = match format {
        Format::Pack => {
            let zeros = Codes {
                along: Along::Rows,
                ..Codes::of_rows(part("weight_zero_point"), bits, DType::I32)
            };
            let zeros = (!symmetric).then_some(zeros);
            let codes = Codes::of_rows(part("weight_packed"), bits, DType::I32);
            (codes, Grid::Integers { scales: numbers(FLOATS), zeros })
        }
        Format::Int => {
            let signed =
                |end| Codes { stored: Stored::Signed, ..Codes::of_rows(part(end), 8, DType::I8) };
            let zeros = (!symmetric).then(|| signed("weight_zero_point"));
            (signed("weight"), Grid::Integers { scales: numbers(FLOATS), zeros })
        }
        Format::Float => (bytes(DType::F8E4m3), Grid::Levels { scales: numbers(FLOATS) }),
        Format::Nvfp4 => {
            let whole = Some(Whole { name: part("weight_global_scale"), divides: true });
            (nibbles(), Grid::TwoLevel { scales: numbers(&[DType::F8E4m3]), whole })
        }
        Format::Mxfp4 => (nibbles(), Grid::Exponents { scales: numbers(&[DType::U8]) }),
        Format::Mxfp8 => (bytes(DType::F8E4m3), Grid::Exponents { scales: numbers(&[DType::U8]) }),
    };
    let (block_rows, group) = match shared {
        Shared::Tensor => (module.rows, None),
        Shared::Row => (1, None),
        Shared::Group(size) => (1, Some(size)),
        Shared::Block { rows, columns } => (rows.min(module.rows), Some(columns)),
    };
    Layout {
        rows: module.rows,
        columns: module.columns,
        codes,
        grid,
        group: columns_of(group, module.columns),
        block_rows: block_rows.max(1),
        group_index: None,
        shape: (format == Format::Pack).then(|| part("weight_shape")),
    }
}

/// How a weight of ours is stored.
fn scheme_of(weight: WeightFormat, inputs: Option<Inputs>) -> Option<Scheme> {
    let format = match (weight.ty.name, weight.group_size) {
        ("fp8_e4m3", _) => Format::Float,
        ("nvfp4", 16) => Format::Nvfp4,
        ("mxfp4", 32) => Format::Mxfp4,
        // Beside inputs of bytes, weights are bytes, too: what vLLM's products of both take.
        _ if inputs.is_some() && integer_bits(weight, &[8]) => Format::Int,
        _ if integer_bits(weight, &[1, 2, 3, 4, 5, 6, 7, 8]) => Format::Pack,
        _ => return None,
    };
    Some(Scheme {
        format,
        bits: weight.ty.bits,
        symmetric: weight.ty.scale != Scale::ZeroPoint,
        shared: group_of(weight).map_or(Shared::Row, Shared::Group),
    })
}

/// The settings of weights that are stored alike.
fn weights_of(scheme: Scheme) -> Value {
    let (strategy, group) = match scheme.shared {
        Shared::Group(size) if scheme.format == Format::Nvfp4 => ("tensor_group", json!(size)),
        Shared::Group(size) => ("group", json!(size)),
        _ => ("channel", Value::Null),
    };
    let scale_type = match scheme.format {
        Format::Nvfp4 => json!("torch.float8_e4m3fn"),
        Format::Mxfp4 => json!("torch.uint8"),
        _ => Value::Null,
    };
    json!({
        "num_bits": scheme.bits,
        "type": if matches!(scheme.format, Format::Pack | Format::Int) { "int" } else { "float" },
        "symmetric": scheme.symmetric,
        "strategy": strategy,
        "group_size": group,
        "scale_dtype": scale_type,
        "dynamic": false,
        "actorder": null,
    })
}

/// A group for each way in which weights are stored: of all linear layers if there is one, or else of modules by name.
fn arrange(contents: &Contents<'_>) -> Result<Arranged, Unarranged> {
    let mut layouts = Vec::new();
    let mut groups: Vec<(Scheme, Vec<&str>)> = Vec::new();
    for (index, (module, format)) in contents.quantized.iter().enumerate() {
        let scheme = scheme_of(*format, contents.inputs);
        let unheld = || Unarranged { index, expected: "a type of compressed-tensors".into() };
        let scheme = scheme.ok_or_else(unheld)?;
        layouts.push(layout(module, scheme));
        match groups.iter_mut().find(|(known, _)| *known == scheme) {
            Some((_, names)) => names.push(module.name),
            None => groups.push((scheme, vec![module.name])),
        }
    }
    let name = |scheme: &Scheme| {
        let named = FORMATS.iter().find(|(_, format)| *format == scheme.format);
        named.map_or("dense", |(name, _)| *name)
    };
    let embedding = contents.quantized.iter().any(|(module, _)| module.embedding);
    let group = |(index, (scheme, names)): (usize, &(Scheme, Vec<&str>))| {
        let all = groups.len() == 1 && !embedding;
        let targets = if all { json!(["Linear"]) } else { json!(names) };
        let group = json!({
            "targets": targets,
            "weights": weights_of(*scheme),
            "input_activations": contents.inputs.map(stated_inputs),
            "output_activations": null,
            "format": name(scheme),
        });
        (format!("group_{index}"), group)
    };
    let config_groups: Map<String, Value> = groups.iter().enumerate().map(group).collect();
    let mut formats: Vec<&str> = groups.iter().map(|(scheme, _)| name(scheme)).collect();
    formats.sort_unstable();
    formats.dedup();
    let format = match formats[..] {
        [] => "dense",
        [format] => format,
        _ => "mixed-precision",
    };
    let settings = json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": config_groups,
        "ignore": contents.plain_linear(),
        "kv_cache_scheme": null,
    });
    let keys = vec![("quantization_config", settings)];
    Ok(Arranged { layouts, keys, files: Vec::new(), notes: Vec::new() })
}
