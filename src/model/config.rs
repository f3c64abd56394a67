//! What a model is: sizes, head counts, position encoding. From `config.json` or from GGUF metadata.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::formats::gguf::Gguf;
use crate::kernels::attention::causal::MAX_HEAD_DIM;

/// How rotary frequencies are stretched for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by a factor (position interpolation).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// `original_context / low_freq_factor` is the longest wavelength that is not divided fully.
        low_freq_factor: f64,
        /// `original_context / high_freq_factor` is the longest wavelength that is kept.
        high_freq_factor: f64,
        /// `original_max_position_embeddings`
        original_context: f64,
    },
    /// One divisor per frequency, as GGUF's `rope_freqs.weight` stores the Llama 3 rule.
    Divisors(Vec<f32>),
}

/// The shape of a model of the Llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Columns of the residual stream.
    pub hidden_size: usize,
    /// Channels of the feed-forward.
    pub intermediate_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Columns of one head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context that the model was made for.
    pub max_positions: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding.
    pub tied: bool,
}

/// Sizes above this are taken for damage: no model has them, and products of two still fit 64 bits.
const MAX_SIZE: u64 = 1 << 28;

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

impl Config {
    /// What to tell somebody who asks for windows that the model was not made for.
    pub fn beyond_context(&self, ctx: usize) -> Option<String> {
        let context = self.max_positions;
        (ctx > context).then(|| {
            format!("windows of {ctx} tokens are longer than the model's context of {context}")
        })
    }

    /// Reads `config.json`, in the styles of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).
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
        let heads = reader.required_size("num_attention_heads")?;
        let hidden_size = reader.required_size("hidden_size")?;
        let head_dim = match reader.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
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
            intermediate_size: reader.required_size("intermediate_size")?,
            layers: reader.required_size("num_hidden_layers")?,
            heads,
            kv_heads: reader.size("num_key_value_heads")?.unwrap_or(heads),
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
        config.check(path)
    }

    /// Reads the `llama.*` keys of a GGUF file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let path = gguf.source().path();
        let architecture = gguf.require_str("general.architecture")?;
        if architecture != "llama" {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("architecture {architecture}"),
                why: "this version reads the family llama".into(),
            });
        }
        if gguf.u64("llama.expert_count")?.unwrap_or(0) > 0 {
            return Err(Error::Unsupported {
                path: path.into(),
                what: "a mixture of experts".into(),
                why: "this version reads dense Llama models".into(),
            });
        }
        let key = |name: &str| format!("llama.{name}");
        let size = |name: &str, default: Option<u64>| -> Result<usize> {
            let value = gguf.u64(&key(name))?.or(default);
            match value {
                Some(value) if (1..=MAX_SIZE).contains(&value) => Ok(value as usize),
                other => Err(Error::Key {
                    path: path.into(),
                    key: key(name),
                    expected: "a positive integer".into(),
                    found: other.map_or("nothing".into(), |v| v.to_string()),
                }),
            }
        };
        let positive = |name: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                return Ok(value);
            }
            Err(Error::Key {
                path: path.into(),
                key: key(name),
                expected: "a positive number".into(),
                found: value.to_string(),
            })
        };
        let heads = size("attention.head_count", None)?;
        let hidden_size = size("embedding_length", None)?;
        let head_dim = size("attention.key_length", Some((hidden_size / heads) as u64))?;
        let rotated = size("rope.dimension_count", Some(head_dim as u64))?;
        if rotated != head_dim {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("llama.rope.dimension_count {rotated}"),
                why: format!("this version rotates whole heads, of {head_dim}"),
            });
        }
        let embedding = gguf.tensor("token_embd.weight");
        let rows = embedding.and_then(|tensor| tensor.shape.first().map(|&rows| rows as u64));
        let config = Self {
            hidden_size,
            intermediate_size: size("feed_forward_length", None)?,
            layers: size("block_count", None)?,
            heads,
            kv_heads: size("attention.head_count_kv", Some(heads as u64))?,
            head_dim,
            vocab_size: size("vocab_size", rows)?,
            max_positions: size("context_length", Some(2048))?,
            rms_norm_eps: positive(
                "attention.layer_norm_rms_epsilon",
                gguf.require_f64("llama.attention.layer_norm_rms_epsilon")?,
            )?,
            rope_theta: positive(
                "rope.freq_base",
                gguf.f64("llama.rope.freq_base")?.unwrap_or(10_000.0),
            )?,
            rope_scaling: gguf_scaling(gguf)?,
            tied: gguf.tensor("output.weight").is_none(),
        };
        config.check(path)
    }

    fn check(self, path: &Path) -> Result<Self> {
        let wrong = |key: &str, expected: String, found: usize| {
            Err(Error::Key {
                path: path.into(),
                key: key.into(),
                expected,
                found: found.to_string(),
            })
        };
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(
                "num_key_value_heads",
                format!("a divisor of {} query heads", self.heads),
                self.kv_heads,
            );
        }
        if !self.head_dim.is_multiple_of(2) || self.head_dim > MAX_HEAD_DIM {
            return wrong(
                "head_dim",
                format!("an even number up to {MAX_HEAD_DIM}"),
                self.head_dim,
            );
        }
        if self.layers > 10_000 {
            return wrong("num_hidden_layers", "at most 10000".into(), self.layers);
        }
        if let RopeScaling::Divisors(divisors) = &self.rope_scaling
            && divisors.len() != self.head_dim / 2
        {
            return wrong(
                "rope_freqs.weight",
                format!("{} values", self.head_dim / 2),
                divisors.len(),
            );
        }
        Ok(self)
    }

    /// The angle per position of each pair of a head's columns, `head_dim / 2` values, scaling applied.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64));
        match &self.rope_scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Divisors(divisors) => plain
                .zip(divisors)
                .map(|(frequency, divisor)| frequency / f64::from(*divisor))
                .collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => plain
                .map(|frequency| {
                    let turns = original_context * frequency / std::f64::consts::TAU;
                    let blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                        .clamp(0.0, 1.0);
                    (1.0 - blend) * frequency / factor + blend * frequency
                })
                .collect(),
        }
    }

    /// Cosine and sine of every pair at positions `[0, positions)`: (positions, head_dim / 2, 2). Computed in f64 on the
    /// CPU: WGSL promises nothing of sine and cosine beyond one turn.
    pub fn rotations(&self, positions: usize) -> Vec<f32> {
        let frequencies = self.rope_frequencies();
        let angle = |position: usize, frequency: &f64| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            [cos as f32, sin as f32]
        };
        (0..positions)
            .flat_map(|position| frequencies.iter().flat_map(move |f| angle(position, f)))
            .collect()
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
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_positions,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            // f32 epsilons such as 1e-5 widen to 9.99999974e-06; their shortest decimal is what was meant.
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "rope_scaling": rope,
            "rope_theta": shortest(self.rope_theta),
            "tie_word_embeddings": self.tied,
            "vocab_size": self.vocab_size,
        });
        match object {
            Value::Object(map) => Ok(map),
            _ => unreachable!("an object literal is an object"),
        }
    }

    /// The scaling as a rule with parameters. GGUF stores Llama 3's as one divisor per frequency; the rule that made
    /// them is found again from the parameters that Meta's models use, and checked.
    fn portable_scaling(&self, path: &Path) -> Result<RopeScaling> {
        let RopeScaling::Divisors(divisors) = &self.rope_scaling else {
            return Ok(self.rope_scaling.clone());
        };
        let factor = f64::from(divisors.iter().copied().fold(1.0, f32::max));
        let rule = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let same = |scaling: &RopeScaling| {
            Config {
                rope_scaling: scaling.clone(),
                ..self.clone()
            }
            .rope_frequencies()
        };
        let close = same(&rule)
            .iter()
            .zip(self.rope_frequencies())
            .all(|(a, b)| (a - b).abs() <= 1e-5 * b);
        if close {
            return Ok(rule);
        }
        Err(Error::Unsupported {
            path: path.into(),
            what: "rope_freqs.weight that follows no known rule".into(),
            why: "config.json has no place for one divisor per frequency; export as GGUF".into(),
        })
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

fn gguf_scaling(gguf: &Gguf) -> Result<RopeScaling> {
    if let Some(tensor) = gguf.tensor("rope_freqs.weight") {
        let divisors = tensor.to_packed()?.to_f32();
        if divisors
            .iter()
            .any(|divisor| !(divisor.is_finite() && *divisor > 0.0))
        {
            return Err(Error::Tensor {
                path: gguf.source().path().into(),
                tensor: "rope_freqs.weight".into(),
                expected: "positive divisors".into(),
                found: "another value".into(),
            });
        }
        return Ok(RopeScaling::Divisors(divisors));
    }
    match gguf.str("llama.rope.scaling.type")? {
        None | Some("none") => Ok(RopeScaling::None),
        Some("linear") => match gguf.require_f64("llama.rope.scaling.factor")? {
            factor if factor > 0.0 && factor.is_finite() => Ok(RopeScaling::Linear { factor }),
            factor => Err(Error::Key {
                path: gguf.source().path().into(),
                key: "llama.rope.scaling.factor".into(),
                expected: "a positive number".into(),
                found: factor.to_string(),
            }),
        },
        Some(other) => Err(Error::Unsupported {
            path: gguf.source().path().into(),
            what: format!("llama.rope.scaling.type {other}"),
            why: "known are none and linear".into(),
        }),
    }
}
