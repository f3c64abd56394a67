//! A model's shape in `config.json`: of a checkpoint, and of Lopper's own packed folder, which may state one width a layer.
//! Keys that all families share are read here; what only one family has is read by its own hook.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{BlockDims, Config, MAX_LAYERS, MAX_SIZE, Readout, USUAL_BALANCE};
use super::names::{Role, TensorSpec, tensor_specs};
use super::rope::{Rope, RopeScaling};
use super::{FAMILIES, Family, SCORING, t5};
use crate::data::unnamed_label;
use crate::error::{Error, Result};
use crate::graph::{Experts, Slot};
use crate::tensor::InputType;

/// The keys of one JSON object.
#[derive(Debug)]
pub struct Reader<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    pub(super) fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.object.get(key).map_or("nothing".to_string(), Value::to_string);
        Error::Key { path: self.path.into(), key: key.into(), expected: expected.into(), found }
    }

    /// The value of a key, unless that is null.
    pub(super) fn given(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.given(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.wrong(key, "a positive integer")),
        }
    }

    fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    /// A width of every layer: one number for all, or an array of one for each, which differ in Lopper's own folder only.
    fn widths(&self, key: &str, layers: usize, default: Option<&[usize]>) -> Result<Vec<usize>> {
        let list = match (self.given(key), default) {
            (Some(Value::Array(list)), _) if list.windows(2).any(|two| two[0] != two[1]) => {
                self.only_own(key)?;
                list
            }
            (Some(Value::Array(list)), _) => list,
            (None, Some(default)) => return Ok(default.to_vec()),
            _ => return Ok(vec![self.required_size(key)?; layers]),
        };
        let error = |expected: String, found: String| Error::Key {
            path: self.path.into(),
            key: key.into(),
            expected,
            found,
        };
        if list.len() != layers {
            let expected = format!("a number for each of {layers} layers");
            return Err(error(expected, format!("{} of them", list.len())));
        }
        let width = |(layer, value): (usize, &Value)| match value.as_u64() {
            Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(size as usize),
            _ => {
                let expected = format!("a positive integer for layer {layer}");
                Err(error(expected, value.to_string()))
            }
        };
        list.iter().enumerate().map(width).collect()
    }

    fn only_own(&self, key: &str) -> Result<()> {
        if is_own(self.object) {
            return Ok(());
        }
        Err(Error::Unsupported {
            path: self.path.into(),
            what: format!("`{key}` of several numbers"),
            why: "only Lopper's packed folders and GGUF state a width a layer".into(),
        })
    }

    /// An error if a key is there with another value than the one that this program computes by.
    pub(super) fn only(&self, key: &str, value: &Value) -> Result<()> {
        let same = |given: &Value| {
            given == value || given.as_f64().is_some_and(|n| Some(n) == value.as_f64())
        };
        match self.given(key) {
            Some(given) if !same(given) => {
                Err(self.wrong(key, &format!("{value}, which is all that this version computes")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.given(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.wrong(key, "a positive number")),
        }
    }

    fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.wrong(key, "a positive number"))
    }

    /// Whether the model has products on the residual stream, which only Lopper's own folder says.
    fn shortcuts(&self) -> Result<bool> {
        match self.given(SHORTCUTS).map(Value::as_bool) {
            None | Some(Some(false)) => Ok(false),
            Some(Some(true)) if is_own(self.object) => Ok(true),
            Some(Some(true)) => Err(Error::Unsupported {
                path: self.path.into(),
                what: format!("`{SHORTCUTS}`"),
                why: "only Lopper's packed folders have products on the residual stream".into(),
            }),
            Some(None) => Err(self.wrong(SHORTCUTS, "true or false")),
        }
    }

    /// How the inputs of linear layers are rounded, where the folder is one that says it.
    fn input_rounding(&self, blocks: &mut [BlockDims]) -> Result<Option<InputType>> {
        let Some(stated) = self.object(INPUTS)? else { return Ok(None) };
        let known = || InputType::ALL.map(InputType::name).join(" or ");
        let named = stated.given("type").and_then(Value::as_str).and_then(InputType::by_name);
        let ty = named.ok_or_else(|| stated.wrong("type", &known()))?;
        let layers = blocks.len();
        let wrong = || {
            stated.wrong(
                "scales",
                &format!("\"{OF_TOKENS}\", or 4 positive numbers for each of {layers} layers"),
            )
        };
        match stated.given("scales") {
            Some(Value::String(text)) if text == OF_TOKENS => {}
            Some(Value::Array(all)) if all.len() == layers => {
                for (block, scales) in blocks.iter_mut().zip(all) {
                    let number = |value: &Value| {
                        let number = value.as_f64().map(|number| number as f32);
                        number.filter(|number| *number > 0.0 && number.is_finite())
                    };
                    let scales: Option<Vec<f32>> =
                        scales.as_array().and_then(|list| list.iter().map(number).collect());
                    let scales = scales.and_then(|scales| scales.try_into().ok());
                    block.input_scales = Some(scales.ok_or_else(wrong)?);
                }
            }
            _ => return Err(wrong()),
        }
        Ok(Some(ty))
    }

    /// Of a key's names the one that is there, or else the usual one.
    fn name_of<'n>(&self, names: &[&'n str]) -> &'n str {
        let found = names.iter().find(|name| self.object.contains_key(**name));
        found.unwrap_or(&names[0])
    }

    /// The experts of a family that has some.
    fn experts(&self, family: &Family) -> Result<Option<Experts>> {
        let Some([count, used]) = family.experts_keys else { return Ok(None) };
        let size = |names: &[&str]| self.required_size(self.name_of(names));
        Ok(Some(Experts { count: size(count)?, used: size(used)?, normalized: true }))
    }

    /// The factor of the load-balancing loss, of a family with experts.
    fn balance(&self, family: &Family) -> Result<f64> {
        match (family.experts_keys, self.given(BALANCE).map(Value::as_f64)) {
            (None, _) => Ok(0.0),
            (_, None) => Ok(USUAL_BALANCE),
            (_, Some(Some(factor))) if factor >= 0.0 && factor.is_finite() => Ok(factor),
            _ => Err(self.wrong(BALANCE, "a number of 0 or more")),
        }
    }

    /// What the head reads of a text, of a class that scores labels.
    fn readout(&self, family: &Family) -> Result<Option<Readout>> {
        let class = self.given(ARCHITECTURES).and_then(|list| list.get(0)).and_then(Value::as_str);
        let Some(class) = class.filter(|class| class.ends_with(SCORING)) else { return Ok(None) };
        if family.scoring_class().is_none() {
            return Err(Error::Unsupported {
                path: self.path.into(),
                what: class.into(),
                why: format!("this version reads {} of the family {}", family.class, family.name),
            });
        }
        let wrong = || self.wrong(ID_LABEL, "a name for each label, numbered from 0");
        let labels = match self.given(ID_LABEL) {
            // transformers' own number where nothing is said.
            None => (0..self.size("num_labels")?.unwrap_or(2).min(MAX_LABELS + 1))
                .map(unnamed_label)
                .collect(),
            Some(Value::Object(names)) => {
                let name = |place: usize| names.get(&place.to_string()).and_then(Value::as_str);
                let names = (0..names.len()).map(|place| name(place).map(str::to_string));
                names.collect::<Option<Vec<_>>>().ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        match labels.len() {
            1..=MAX_LABELS => Ok(Some(Readout::scores(family.scored_at, &labels))),
            _ => Err(self.wrong(ID_LABEL, &format!("1 to {MAX_LABELS} labels"))),
        }
    }

    /// An object within the object.
    pub(super) fn object(&self, key: &str) -> Result<Option<Reader<'a>>> {
        match self.given(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Reader { path: self.path, object })),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    /// A rotary encoding: its object where there is one, and the base that stands outside it or is taken for granted.
    pub(super) fn rope(&self, object: Option<&Reader<'a>>, key: &str, theta: f64) -> Result<Rope> {
        let whole = json!(1.0);
        self.only("partial_rotary_factor", &whole)?;
        object.map_or(Ok(()), |rope| rope.only("partial_rotary_factor", &whole))?;
        let inside = match object {
            Some(rope) => rope.number("rope_theta")?,
            None => None,
        };
        Ok(Rope {
            theta: inside.or(self.number(key)?).unwrap_or(theta),
            scaling: object.map_or(Ok(RopeScaling::None), scaling)?,
        })
    }

    /// Gives the blocks that `layer_types` calls `sliding_attention` (without that key, those that `sliding` says) the
    /// window of `sliding_window`, or `default` where that key is missing.
    pub(super) fn windows(
        &self,
        config: &mut Config,
        default: Option<usize>,
        sliding: impl Fn(usize) -> bool,
    ) -> Result<()> {
        let window = match self.object.get("sliding_window") {
            None => default,
            Some(_) => self.size("sliding_window")?,
        };
        let layers = config.layers();
        let types = match self.given("layer_types") {
            None => None,
            Some(Value::Array(types)) if types.len() == layers => Some(types),
            Some(_) => {
                let expected = format!("a kind for each of {layers} layers");
                return Err(self.wrong("layer_types", &expected));
            }
        };
        for (layer, block) in config.blocks.iter_mut().enumerate() {
            let slides = match types.map(|types| types[layer].as_str()) {
                None => sliding(layer),
                Some(Some(SLIDING)) => true,
                Some(Some(FULL)) => false,
                Some(_) => {
                    return Err(self.wrong("layer_types", "full_attention, sliding_attention"));
                }
            };
            block.window = window.filter(|_| slides);
        }
        Ok(())
    }
}

const ARCHITECTURES: &str = "architectures";
const ID_LABEL: &str = "id2label";
/// More labels are taken for damage.
const MAX_LABELS: usize = 1 << 16;

/// The key of a packed folder that says that a block's halves have bases of the residual stream of their own.
const SHORTCUTS: &str = "residual_shortcuts";

/// The key that says how inputs of linear layers are rounded, in folders that this program writes; others do not read it.
const INPUTS: &str = "input_rounding";
/// In place of scales: each token has its own.
const OF_TOKENS: &str = "token";

/// The key of the factor of the load-balancing loss.
const BALANCE: &str = "router_aux_loss_coef";

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// `layer_types` of a configuration's blocks.
pub(super) fn layer_types(config: &Config) -> Value {
    let kind = |block: &BlockDims| match block.window {
        Some(_) => SLIDING,
        None => FULL,
    };
    json!(config.blocks.iter().map(kind).collect::<Vec<_>>())
}

/// Whether a configuration is that of a folder that Lopper wrote.
fn is_own(object: &Map<String, Value>) -> bool {
    let method =
        object.get("quantization_config").and_then(|quantization| quantization.get("quant_method"));
    method.and_then(Value::as_str) == Some("lopper")
}

impl Config {
    /// Reads `config.json`, that of Lopper's packed folder too, in the styles of transformers 4 (`rope_theta`,
    /// `rope_scaling`) and 5 (`rope_parameters`).
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<Self> {
        let reader = Reader { path, object };
        let named = reader.given("model_type").and_then(Value::as_str);
        let family: &'static Family = named.and_then(super::by_name).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
            Error::Unsupported {
                path: path.into(),
                what: format!("model_type {}", named.unwrap_or("(none)")),
                why: format!("this version reads the families {}", known.join(", ")),
            }
        })?;
        let (key, names) = family.activation_key;
        match reader.given(key).map(Value::as_str) {
            None => {}
            Some(Some(name)) if names.contains(&name) => {}
            Some(_) => return Err(reader.wrong(key, &format!("{names:?}"))),
        }
        let own = |key: &'static str| family.json_name(key).unwrap_or(key);
        let hidden_size = reader.required_size(own("hidden_size"))?;
        let mut layers = reader.required_size(own("num_hidden_layers"))?;
        let encoder = match family.decoder_layers_keys {
            None => None,
            Some([key, _]) => {
                let encoder = layers;
                layers += reader.size(key)?.unwrap_or(encoder);
                Some(t5::encoder(encoder))
            }
        };
        if layers > MAX_LAYERS {
            let key = own("num_hidden_layers");
            return Err(reader.wrong(key, &format!("at most {MAX_LAYERS}")));
        }
        let heads = reader.widths(own("num_attention_heads"), layers, None)?;
        let kv_heads = reader.widths(own("num_key_value_heads"), layers, Some(&heads))?;
        let intermediate = reader.widths(own("intermediate_size"), layers, None)?;
        let head_dim = match (reader.size(own("head_dim"))?, family.head_dim) {
            (Some(head_dim), _) | (None, Some(head_dim)) => head_dim,
            _ if reader.given(own("num_attention_heads")).is_some_and(Value::is_array) => {
                return Err(reader.wrong(own("head_dim"), "a positive integer"));
            }
            _ if hidden_size % heads[0] == 0 => hidden_size / heads[0],
            _ => {
                let expected = format!("a multiple of {}", own("num_attention_heads"));
                return Err(reader.wrong(own("hidden_size"), &expected));
            }
        };
        let tied = reader.given("tie_word_embeddings").and_then(Value::as_bool);
        let readout = reader.readout(family)?;
        let mut blocks = BlockDims::zip(heads, kv_heads, intermediate);
        let input_type = reader.input_rounding(&mut blocks)?;
        let mut config = Self {
            family,
            hidden_size,
            blocks,
            encoder,
            experts: reader.experts(family)?,
            balance: reader.balance(family)?,
            head_dim,
            vocab_size: reader.required_size("vocab_size")?,
            max_positions: reader.size(own("max_position_embeddings"))?.unwrap_or(2048),
            rms_norm_eps: reader.number(own("rms_norm_eps"))?.unwrap_or(1e-6),
            ropes: Vec::new(),
            // What scores labels is no embedding.
            tied: readout.is_none() && tied.unwrap_or(family.tied),
            shortcuts: reader.shortcuts()?,
            input_type,
            attention_scale: None,
            attention_soft_cap: None,
            logit_soft_cap: None,
            token_types: 0,
            readout,
        };
        (family.read_json)(&reader, &mut config)?;
        reader.only("use_bidirectional_attention", &json!(false))?;
        if config.ropes.is_empty() && !config.has_encoder() {
            // Where both are there, transformers takes the older key.
            let rope = match reader.object("rope_scaling")? {
                Some(rope) if !rope.object.is_empty() => Some(rope),
                _ => reader.object("rope_parameters")?,
            };
            config.ropes.push(reader.rope(rope.as_ref(), "rope_theta", 10_000.0)?);
        }
        config.check(path, own("num_key_value_heads"))
    }

    /// A `config.json` for transformers, of a model that came without one and has these tensors.
    pub fn to_json(&self, path: &Path, specs: &[TensorSpec]) -> Result<Map<String, Value>> {
        let scaling = self.ropes.first().map(|rope| rope.portable_scaling(self.head_dim, path));
        let rope = match scaling.transpose()?.unwrap_or(RopeScaling::None) {
            RopeScaling::Linear { factor } => {
                json!({"rope_type": "linear", "factor": shortest(factor)})
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                json!({
                    "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context as u64,
                })
            }
            _ => Value::Null,
        };
        let (key, names) = self.family.activation_key;
        let object = json!({
            "architectures": [self.family.class],
            "head_dim": self.head_dim,
            "hidden_size": self.hidden_size,
            "intermediate_size": null,
            "max_position_embeddings": self.max_positions,
            "model_type": self.family.name,
            "num_attention_heads": null,
            "num_hidden_layers": null,
            "num_key_value_heads": null,
            // f32 epsilons such as 1e-5 widen to 9.99999974e-06; their shortest decimal is what was meant.
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_scaling": rope,
            "rope_theta": self.ropes.first().map(|rope| shortest(rope.theta)),
            "vocab_size": self.vocab_size,
        });
        let Value::Object(mut map) = object else {
            unreachable!("an object literal is an object");
        };
        self.family.rename_json(&mut map);
        map.insert(key.into(), json!(names[0]));
        self.write_own(&mut map);
        Ok(self.updated_json(map, specs))
    }

    /// A parent's `config.json` with what follows from this configuration and its tensors: sizes, biases, whose the head is.
    /// Where layers differ in width, heads, key and value heads and feed-forward are arrays of a number for each, which only
    /// Lopper reads.
    pub fn updated_json(
        &self,
        mut parent: Map<String, Value>,
        specs: &[TensorSpec],
    ) -> Map<String, Value> {
        self.rename(&mut parent);
        let uniform = self.uniform();
        let widths = |width: fn(&BlockDims) -> usize| match &uniform {
            Some(widths) => json!(width(widths)),
            None => json!(self.blocks.iter().map(width).collect::<Vec<_>>()),
        };
        let whole = |widths: BlockDims| widths.heads * self.head_dim == self.hidden_size;
        let head_dim = self.family.json_name("head_dim").unwrap_or("head_dim");
        if parent.contains_key(head_dim) || !uniform.is_some_and(whole) {
            parent.insert(head_dim.into(), json!(self.head_dim));
        }
        // What other families call the number of blocks is that of the encoder's where there is one.
        let layers = self.encoder.map_or(self.layers(), |encoder| encoder.layers);
        for (key, value) in [
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", widths(|widths| widths.intermediate_size)),
            ("num_attention_heads", widths(|widths| widths.heads)),
            ("num_hidden_layers", json!(layers)),
            ("num_key_value_heads", widths(|widths| widths.kv_heads)),
            ("tie_word_embeddings", json!(self.tied)),
            ("vocab_size", json!(self.vocab_size)),
        ] {
            if let Some(key) = self.family.json_name(key) {
                parent.insert(key.into(), value);
            }
        }
        if let Some([key, _]) = self.family.decoder_layers_keys {
            parent.insert(key.into(), json!(self.decoder_layers()));
        }
        if let (Some(experts), Some([count, used])) = (self.experts, self.family.experts_keys) {
            for (names, value) in [(count, experts.count), (used, experts.used)] {
                let name = names.iter().find(|name| parent.contains_key(**name));
                parent.insert((*name.unwrap_or(&names[0])).into(), json!(value));
            }
        }
        let scores = self.readout.as_ref().filter(|readout| !readout.labels.is_empty());
        if let (Some(readout), Some(class)) = (scores, self.family.scoring_class()) {
            let labels = || readout.labels.iter().enumerate();
            let by_id = labels().map(|(id, name)| (id.to_string(), json!(name))).collect();
            let by_name = labels().map(|(id, name)| (name.clone(), json!(id))).collect();
            parent.insert(ARCHITECTURES.into(), json!([class]));
            parent.insert(ID_LABEL.into(), Value::Object(by_id));
            parent.insert("label2id".into(), Value::Object(by_name));
            parent.remove("num_labels");
        }
        parent.remove(INPUTS);
        if let Some(ty) = self.input_type {
            let scales = |block: &BlockDims| {
                Some(json!(block.input_scales?.map(|scale| shortest(f64::from(scale)))))
            };
            let scales: Option<Vec<Value>> = self.blocks.iter().map(scales).collect();
            let scales = scales.map_or_else(|| json!(OF_TOKENS), Value::Array);
            parent.insert(INPUTS.into(), json!({"type": ty.name(), "scales": scales}));
        }
        parent.remove(SHORTCUTS);
        if self.shortcuts {
            parent.insert(SHORTCUTS.into(), json!(true));
        }
        // The decimals of a parent that says the same stay as they are.
        let key = self.family.json_name("rms_norm_eps").unwrap_or("rms_norm_eps");
        let epsilon = parent.get(key).and_then(Value::as_f64).unwrap_or(1e-6);
        if (epsilon - self.rms_norm_eps).abs() > 1e-5 * self.rms_norm_eps {
            parent.insert(key.into(), json!(shortest(self.rms_norm_eps)));
        }
        let has =
            |slot: &Slot| specs.iter().any(|spec| (spec.role, spec.slot) == (Role::Bias, *slot));
        for (key, slots) in self.family.bias_keys {
            parent.insert((*key).into(), json!(slots.iter().any(has)));
        }
        // A rule over layers' numbers would hold for others once layers are cut.
        let ruled = parent.contains_key("max_window_layers")
            || parent.contains_key("sliding_window_pattern");
        let windows = ruled && self.blocks.iter().any(|block| block.window.is_some());
        if windows || parent.get("layer_types").is_some_and(Value::is_array) {
            parent.insert("layer_types".into(), layer_types(self));
        }
        parent
    }

    /// Makes a parent's `config.json` that of this family, where it is of another.
    fn rename(&self, parent: &mut Map<String, Value>) {
        let name = json!(self.family.name);
        if parent.get("model_type").is_none_or(|own| *own == name) {
            return;
        }
        parent.insert("model_type".into(), name);
        parent.insert("architectures".into(), json!([self.family.class]));
        let (key, names) = self.family.activation_key;
        parent.insert(key.into(), json!(names[0]));
        let biases = FAMILIES.iter().flat_map(|family| family.bias_keys);
        biases.for_each(|(key, _)| _ = parent.remove(*key));
        self.write_own(parent);
    }

    /// Writes what not every family has.
    fn write_own(&self, map: &mut Map<String, Value>) {
        if self.experts.is_some() {
            map.insert(BALANCE.into(), json!(self.balance));
        }
        (self.family.write_json)(self, map);
    }

    /// The biases that a Hugging Face folder needs beside those in `specs`, all of them zero: its configuration has one word for
    /// those of several layers. An error where it has no word for one that is there.
    pub fn further_biases(&self, path: &Path, specs: &[TensorSpec]) -> Result<Vec<TensorSpec>> {
        let biases = || specs.iter().filter(|spec| spec.role == Role::Bias);
        let keys = self.family.bias_keys;
        let stated = |slot: Slot| keys.iter().any(|(_, slots)| slots.contains(&slot));
        let mut of_blocks = biases().filter(|spec| spec.layer.is_some());
        if let Some(spec) = of_blocks.find(|spec| spec.optional && !stated(spec.slot)) {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("a Hugging Face folder with {}", spec.name),
                why: format!(
                    "{} of transformers has no such bias and would leave it out; use gguf or packed",
                    self.family.class
                ),
            });
        }
        let needed = |slot: Slot| {
            keys.iter().any(|(_, slots)| {
                slots.contains(&slot) && biases().any(|spec| slots.contains(&spec.slot))
            })
        };
        let mut all = tensor_specs(self);
        all.retain(|spec| {
            spec.role == Role::Bias
                && needed(spec.slot)
                && !specs.iter().any(|there| there.name == spec.name)
        });
        Ok(all)
    }

    /// An error if a checkpoint has a bias that its configuration does not speak of: transformers would leave it out.
    pub fn check_biases(
        &self,
        path: &Path,
        object: &Map<String, Value>,
        specs: &[TensorSpec],
    ) -> Result<()> {
        let wrong = |spec: &&TensorSpec| {
            let keys = self.family.bias_keys.iter();
            let mut silent = keys.filter(|(key, _)| object.get(*key) != Some(&Value::Bool(true)));
            spec.role == Role::Bias && silent.any(|(_, slots)| slots.contains(&spec.slot))
        };
        match specs.iter().find(wrong) {
            None => Ok(()),
            Some(spec) => Err(Error::Tensor {
                path: path.into(),
                tensor: spec.name.clone(),
                expected: "no bias, by attention_bias and mlp_bias of config.json (say true there if the model has it)".into(),
                found: "one".into(),
            }),
        }
    }

    /// Whether two configurations compute the same of the same tensors, but for rounding of their decimals.
    pub fn computes_as(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs().max(b.abs());
        let option = |a: Option<f64>, b: Option<f64>| {
            a.is_some() == b.is_some() && near(a.unwrap_or(0.0), b.unwrap_or(0.0))
        };
        let angles = |config: &Self| -> Vec<f64> {
            config.ropes.iter().flat_map(|rope| rope.frequencies(config.head_dim)).collect()
        };
        let (mine, others) = (angles(self), angles(other));
        (self.family, self.hidden_size, self.head_dim, self.vocab_size, self.tied)
            == (other.family, other.hidden_size, other.head_dim, other.vocab_size, other.tied)
            && self.blocks == other.blocks
            && self.encoder == other.encoder
            && self.experts == other.experts
            && self.shortcuts == other.shortcuts
            && self.input_type == other.input_type
            && self.readout == other.readout
            && near(self.rms_norm_eps, other.rms_norm_eps)
            && option(self.attention_scale, other.attention_scale)
            && option(self.attention_soft_cap, other.attention_soft_cap)
            && option(self.logit_soft_cap, other.logit_soft_cap)
            && mine.len() == others.len()
            && mine.into_iter().zip(others).all(|(a, b)| near(a, b))
    }
}

/// The f64 whose decimal form is the shortest that gives the same f32.
pub(super) fn shortest(value: f64) -> f64 {
    let text = (value as f32).to_string();
    if f64::from(value as f32) == value { text.parse().unwrap_or(value) } else { value }
}

fn scaling(rope: &Reader<'_>) -> Result<RopeScaling> {
    let kind = rope.given("rope_type").or_else(|| rope.given("type")).and_then(Value::as_str);
    match kind {
        None if rope.given("factor").is_some() => {
            Err(rope.wrong("rope_type", "default, linear or llama3"))
        }
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: rope.required_number("factor")? }),
        Some("llama3") => {
            let scaling = RopeScaling::Llama3 {
                factor: rope.required_number("factor")?,
                low_freq_factor: rope.required_number("low_freq_factor")?,
                high_freq_factor: rope.required_number("high_freq_factor")?,
                original_context: rope.required_number("original_max_position_embeddings")?,
            };
            match scaling {
                RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. }
                    if high_freq_factor <= low_freq_factor =>
                {
                    Err(rope.wrong("high_freq_factor", "more than low_freq_factor"))
                }
                scaling => Ok(scaling),
            }
        }
        Some(other) => Err(Error::Unsupported {
            path: rope.path.into(),
            what: format!("rope_type {other}"),
            why: "known are default, linear and llama3".into(),
        }),
    }
}
