//! A model's shape in `config.json`: of a checkpoint, and of Lopper's own packed folder, which may state one width a layer.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{Config, MAX_LAYERS, MAX_SIZE, Widths};
use super::rope::RopeScaling;
use crate::error::{Error, Result};

struct Reader<'a> {
    path: &'a Path,
    object: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self
            .object
            .get(key)
            .map_or("nothing".to_string(), Value::to_string);
        Error::Key {
            path: self.path.into(),
            key: key.into(),
            expected: expected.into(),
            found,
        }
    }

    fn given(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.given(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.wrong(key, "a positive integer")),
        }
    }

    fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?
            .ok_or_else(|| self.wrong(key, "a positive integer"))
    }

    /// A width of every layer: one number for all, or in Lopper's own folder an array of one for each.
    fn widths(&self, key: &str, layers: usize, default: Option<&[usize]>) -> Result<Vec<usize>> {
        let list = match (self.given(key), default) {
            (Some(Value::Array(list)), _) => list,
            (None, Some(default)) => return Ok(default.to_vec()),
            _ => return Ok(vec![self.required_size(key)?; layers]),
        };
        if !is_own(self.object) {
            return Err(Error::Unsupported {
                path: self.path.into(),
                what: format!("`{key}` of several numbers"),
                why: "only Lopper's packed folders and GGUF state a width a layer".into(),
            });
        }
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

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.given(key) else {
            return Ok(None);
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.wrong(key, "a positive number")),
        }
    }

    fn required_number(&self, key: &str) -> Result<f64> {
        self.number(key)?
            .ok_or_else(|| self.wrong(key, "a positive number"))
    }
}

/// Whether a configuration is that of a folder that Lopper wrote.
fn is_own(object: &Map<String, Value>) -> bool {
    let method = object
        .get("quantization_config")
        .and_then(|quantization| quantization.get("quant_method"));
    method.and_then(Value::as_str) == Some("lopper")
}

impl Config {
    /// Reads `config.json`, that of Lopper's packed folder too, in the styles of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
    pub fn from_json(path: &Path, object: &Map<String, Value>) -> Result<Self> {
        let reader = Reader { path, object };
        match reader.given("model_type").and_then(Value::as_str) {
            Some("llama") => {}
            other => {
                return Err(Error::Unsupported {
                    path: path.into(),
                    what: format!("model_type {}", other.unwrap_or("(none)")),
                    why: "this version reads the family llama".into(),
                });
            }
        }
        match reader.given("hidden_act").and_then(Value::as_str) {
            None | Some("silu") => {}
            Some(_) => return Err(reader.wrong("hidden_act", "\"silu\"")),
        }
        let hidden_size = reader.required_size("hidden_size")?;
        let layers = reader.required_size("num_hidden_layers")?;
        if layers > MAX_LAYERS {
            return Err(reader.wrong("num_hidden_layers", &format!("at most {MAX_LAYERS}")));
        }
        let heads = reader.widths("num_attention_heads", layers, None)?;
        let kv_heads = reader.widths("num_key_value_heads", layers, Some(&heads))?;
        let intermediate = reader.widths("intermediate_size", layers, None)?;
        let head_dim = match reader.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if reader
                .given("num_attention_heads")
                .is_some_and(Value::is_array) =>
            {
                return Err(reader.wrong("head_dim", "a positive integer"));
            }
            None if hidden_size % heads[0] == 0 => hidden_size / heads[0],
            None => return Err(reader.wrong("hidden_size", "a multiple of num_attention_heads")),
        };
        let rope = match reader
            .given("rope_parameters")
            .or_else(|| reader.given("rope_scaling"))
        {
            None => None,
            Some(Value::Object(object)) => Some(Reader { path, object }),
            Some(_) => return Err(reader.wrong("rope_parameters", "an object")),
        };
        let theta = rope
            .as_ref()
            .map(|rope| rope.number("rope_theta"))
            .transpose()?
            .flatten();
        let config = Self {
            hidden_size,
            blocks: Widths::zip(heads, kv_heads, intermediate),
            head_dim,
            vocab_size: reader.required_size("vocab_size")?,
            max_positions: reader.size("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: reader.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: theta.or(reader.number("rope_theta")?).unwrap_or(10_000.0),
            rope_scaling: rope.as_ref().map_or(Ok(RopeScaling::None), scaling)?,
            tied: reader
                .given("tie_word_embeddings")
                .and_then(Value::as_bool)
                .unwrap_or(false),
        };
        config.check(path, "num_key_value_heads")
    }

    /// A `config.json` for transformers, of a model that came without one.
    pub fn to_json(&self, path: &Path) -> Result<Map<String, Value>> {
        let rope = match self.portable_scaling(path)? {
            RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_context as u64,
            }),
            _ => Value::Null,
        };
        let object = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "intermediate_size": null,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": null,
            "num_hidden_layers": null,
            "num_key_value_heads": null,
            // f32 epsilons such as 1e-5 widen to 9.99999974e-06; their shortest decimal is what was meant.
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_scaling": rope,
            "rope_theta": shortest(self.rope_theta),
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab_size,
        });
        match object {
            Value::Object(map) => Ok(self.updated_json(map)),
            _ => unreachable!("an object literal is an object"),
        }
    }

    /// A parent's `config.json` with the sizes of this configuration. Where layers differ in width, heads, key and value
    /// heads and feed-forward are arrays of a number for each, which only Lopper reads.
    pub fn updated_json(&self, mut parent: Map<String, Value>) -> Map<String, Value> {
        let uniform = self.uniform();
        let widths = |width: fn(&Widths) -> usize| match &uniform {
            Some(widths) => json!(width(widths)),
            None => json!(self.blocks.iter().map(width).collect::<Vec<_>>()),
        };
        let whole = |widths: Widths| widths.heads * self.head_dim == self.hidden_size;
        if parent.contains_key("head_dim") || !uniform.is_some_and(whole) {
            parent.insert("head_dim".into(), json!(self.head_dim));
        }
        for (key, value) in [
            ("hidden_size", json!(self.hidden_size)),
            (
                "intermediate_size",
                widths(|widths| widths.intermediate_size),
            ),
            ("num_attention_heads", widths(|widths| widths.heads)),
            ("num_hidden_layers", json!(self.layers())),
            ("num_key_value_heads", widths(|widths| widths.kv_heads)),
            ("vocab_size", json!(self.vocab_size)),
        ] {
            parent.insert(key.into(), value);
        }
        parent
    }
}

/// The f64 whose decimal form is the shortest that gives the same f32.
pub fn shortest(value: f64) -> f64 {
    let text = (value as f32).to_string();
    if f64::from(value as f32) == value {
        text.parse().unwrap_or(value)
    } else {
        value
    }
}

fn scaling(rope: &Reader<'_>) -> Result<RopeScaling> {
    let kind = rope
        .given("rope_type")
        .or_else(|| rope.given("type"))
        .and_then(Value::as_str);
    match kind {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear {
            factor: rope.required_number("factor")?,
        }),
        Some("llama3") => {
            let scaling = RopeScaling::Llama3 {
                factor: rope.required_number("factor")?,
                low_freq_factor: rope.required_number("low_freq_factor")?,
                high_freq_factor: rope.required_number("high_freq_factor")?,
                original_context: rope.required_number("original_max_position_embeddings")?,
            };
            match scaling {
                RopeScaling::Llama3 {
                    low_freq_factor,
                    high_freq_factor,
                    ..
                } if high_freq_factor <= low_freq_factor => {
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
