//! A model's shape in GGUF metadata, read and written. Keys that all families share are here; what only one family has is in
//! its own hooks. A family's architecture states one width for all layers; another one (DeciLM's `deci`, in llama.cpp the same
//! block with the same order of rows) may state one for each.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use super::config::{BlockDims, Config, MAX_LAYERS, MAX_SIZE, Readout, USUAL_BALANCE};
use super::names::TensorSpec;
use super::rope::{Rope, RopeScaling};
use super::{FAMILIES, Family, t5};
use crate::data::Pooling;
use crate::error::{Error, Result};
use crate::formats::gguf::{Array, GgmlType, Gguf, Value as Meta};
use crate::graph::{Experts, Slot};
use crate::text::StoredTokenizer;

const ARCHITECTURE: &str = "general.architecture";

/// What llama.cpp reads of a model's shape, behind the architecture's name.
const KEYS: [&str; 15] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    EPSILON,
    LAYER_EPSILON,
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
    EXPERTS,
    EXPERTS_USED,
];

/// Keys that change nothing of what is computed here, whatever they say.
const HARMLESS: &[&str] = &[
    "tensor_data_layout",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    EXPERTS_USED, // of a model without experts
    "expert_feed_forward_length",
    "leading_dense_block_count",
    "pooling_type",
];

/// Keys of arithmetic that this version does not do, with the values by which there is none.
const NEUTRAL: &[(&str, &[f64])] = &[
    ("attention.causal", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.kv_lora_rank", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.q_lora_rank", &[0.0]),
    ("attention.scale", &[0.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("rope.dimension_sections", &[]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("rope.scaling.yarn_attn_factor", &[1.0]),
    ("use_parallel_residual", &[0.0]),
];

const EXPERTS: &str = "expert_count";
const EXPERTS_USED: &str = "expert_used_count";
pub(super) const EPSILON: &str = "attention.layer_norm_rms_epsilon";
/// The same of layer norms.
pub(super) const LAYER_EPSILON: &str = "attention.layer_norm_epsilon";
const SCALING_TYPE: &str = "rope.scaling.type";
/// The key of the factor, and what it was called before.
const SCALING_FACTOR: [&str; 2] = ["rope.scaling.factor", "rope.scale_linear"];

const ATTENTION_CAP: &str = "attn_logit_softcapping";
const LOGIT_CAP: &str = "final_logit_softcapping";

/// The keys of one architecture in a file.
#[derive(Debug)]
pub struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    /// Whether the architecture may state a width for each layer.
    per_layer: bool,
    /// Those that somebody asked for.
    asked: RefCell<HashSet<String>>,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        self.asked.borrow_mut().insert(name.to_string());
        format!("{}.{name}", self.architecture)
    }

    /// Of the keys that nobody asked for, refuses those of arithmetic, and names those that nothing is known of.
    fn unknown(&self, head_dim: usize) -> Result<Vec<String>> {
        let prefix = format!("{}.", self.architecture);
        let mut unknown = Vec::new();
        let asked = self.asked.take();
        for (key, value) in self.gguf.metadata() {
            let Some(name) = key.strip_prefix(&prefix).filter(|name| !asked.contains(*name)) else {
                continue;
            };
            let number = value.as_f64().or_else(|| value.as_u64().map(|n| n as f64));
            let number = number.or_else(|| value.as_bool().map(f64::from));
            let is =
                |wanted: &f64| number.is_some_and(|n| (n - wanted).abs() <= 1e-6 * wanted.abs());
            let of_head = [head_dim as f64, 1.0 / (head_dim as f64).sqrt()];
            let neutral = NEUTRAL.iter().find(|(known, _)| *known == name);
            // Layers with a window may have heads of their own.
            if (name.ends_with("_swa") || name == "attention.scale") && of_head.iter().any(is) {
                continue;
            }
            match neutral {
                _ if HARMLESS.contains(&name) => {}
                Some((_, values)) if values.iter().any(is) => {}
                None if !name.ends_with("_swa") => unknown.push(key.clone()),
                _ => {
                    let found = number.map_or("this value".into(), |number| number.to_string());
                    return Err(self.unsupported(
                        format!("{key} = {found}"),
                        "the model computes something that this version does not",
                    ));
                }
            }
        }
        Ok(unknown)
    }

    pub(super) fn wrong(
        &self,
        name: &str,
        expected: impl Into<String>,
        found: impl ToString,
    ) -> Error {
        Error::Key {
            path: self.gguf.source().path().into(),
            key: self.key(name),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    pub(super) fn unsupported(&self, what: String, why: impl Into<String>) -> Error {
        Error::Unsupported { path: self.gguf.source().path().into(), what, why: why.into() }
    }

    fn size(&self, name: &str, default: Option<u64>) -> Result<usize> {
        match self.gguf.u64(&self.key(name))?.or(default) {
            Some(value) if (1..=MAX_SIZE).contains(&value) => Ok(value as usize),
            other => {
                let found = other.map_or("nothing".into(), |v| v.to_string());
                Err(self.wrong(name, "a positive integer", found))
            }
        }
    }

    /// A width of every layer: one number for all, or an array of one for each, which may differ where the architecture allows
    /// it.
    fn widths(&self, name: &str, layers: usize, default: Option<&[usize]>) -> Result<Vec<usize>> {
        let array = match (self.gguf.get(&self.key(name)), default) {
            (None, Some(default)) => return Ok(default.to_vec()),
            (Some(Meta::Array(array)), _) => array,
            (Some(value), _) if self.per_layer && value.as_u64() == Some(0) => {
                return Err(self.missing_part(name, "every layer"));
            }
            _ => return Ok(vec![self.size(name, None)?; layers]),
        };
        let Some(numbers) = array.integers() else {
            return Err(self.wrong(name, "integers", "an array of another type"));
        };
        if numbers.len() != layers {
            let expected = format!("a number for each of {layers} layers");
            return Err(self.wrong(name, expected, format!("{} of them", numbers.len())));
        }
        let alike = array
            .integers()
            .is_some_and(|mut all| all.next().is_none_or(|first| all.all(|one| one == first)));
        if !self.per_layer && !alike {
            let what = format!("several numbers in {}", self.key(name));
            let why = format!("the architecture {} has one for all layers", self.architecture);
            return Err(self.unsupported(what, why));
        }
        let width = |(layer, number): (usize, i128)| match u64::try_from(number) {
            Ok(0) => Err(self.missing_part(name, &format!("layer {layer}"))),
            Ok(size) if size <= MAX_SIZE => Ok(size as usize),
            _ => Err(self.wrong(name, format!("a positive integer for layer {layer}"), number)),
        };
        numbers.enumerate().map(width).collect()
    }

    /// DeciLM's way to say that a layer has no attention, or a linear one, or no feed-forward.
    fn missing_part(&self, name: &str, place: &str) -> Error {
        let what = format!("{place} with {} 0", self.key(name));
        self.unsupported(what, "here every layer has attention and a feed-forward")
    }

    /// The experts, of a family that has some.
    fn experts(&self, family: &Family) -> Result<Option<Experts>> {
        if self.gguf.u64(&self.key(EXPERTS))?.unwrap_or(0) == 0 {
            return Ok(None);
        }
        if family.experts_keys.is_none() {
            let what = format!("a mixture of experts of architecture {}", self.architecture);
            return Err(self.unsupported(what, "this version reads dense models of it"));
        }
        let (count, used) = (self.size(EXPERTS, None)?, self.size(EXPERTS_USED, None)?);
        Ok(Some(Experts { count, used, normalized: true }))
    }

    /// A size that need not be there.
    pub(super) fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        match self.gguf.get(&self.key(name)) {
            None => Ok(None),
            Some(_) => self.size(name, None).map(Some),
        }
    }

    /// A token that need not be there.
    pub(super) fn token(&self, name: &str) -> Result<Option<u32>> {
        match self.gguf.u64(&self.key(name))? {
            None => Ok(None),
            Some(token) => match u32::try_from(token) {
                Ok(token) => Ok(Some(token)),
                Err(_) => Err(self.wrong(name, "a token", token)),
            },
        }
    }

    /// A positive number that need not be there.
    pub(super) fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        match self.gguf.get(&self.key(name)) {
            None => Ok(None),
            Some(_) => self.positive(name, None).map(Some),
        }
    }

    /// A yes or no that need not be there.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.gguf.get(&self.key(name)).and_then(Meta::as_bool)
    }

    /// A list of texts that need not be there.
    pub(super) fn texts(&self, name: &str) -> Option<&[String]> {
        self.gguf.get(&self.key(name)).and_then(Meta::as_strings)
    }

    /// Rows of a tensor, if it is there.
    pub(super) fn rows(&self, tensor: &str) -> Option<usize> {
        self.gguf.tensor(tensor).and_then(|tensor| tensor.shape.first().copied())
    }

    /// A yes or no for each layer, if it is there: one by one, or as a period whose last layer is a no.
    pub(super) fn flags(&self, name: &str, layers: usize) -> Result<Option<Vec<bool>>> {
        match self.gguf.get(&self.key(name)) {
            None => Ok(None),
            Some(Meta::Array(Array::Bool(flags))) if flags.len() == layers => {
                Ok(Some(flags.clone()))
            }
            Some(value) => match value.as_u64() {
                Some(period) if period > 0 => {
                    let flag = |layer: u64| !(layer + 1).is_multiple_of(period);
                    Ok(Some((0..layers as u64).map(flag).collect()))
                }
                _ => {
                    let expected = format!("a period, or {layers} booleans");
                    Err(self.wrong(name, expected, "another value"))
                }
            },
        }
    }

    fn positive(&self, name: &str, default: Option<f64>) -> Result<f64> {
        let key = self.key(name);
        let value = match default {
            Some(default) => self.gguf.f64(&key)?.unwrap_or(default),
            None => self.gguf.require_f64(&key)?,
        };
        if value > 0.0 && value.is_finite() {
            return Ok(value);
        }
        Err(self.wrong(name, "a positive number", value))
    }

    /// What positions are divided by, as llama.cpp reads it: without a type it is linear, the newer key goes before the older,
    /// and 0 is none.
    fn linear_factor(&self) -> Result<f64> {
        let [newer, older] = SCALING_FACTOR.map(|name| (name, self.key(name)));
        let kind = self.key(SCALING_TYPE);
        match self.gguf.str(&kind)? {
            Some("none") => return Ok(1.0),
            None | Some("linear") => {}
            Some(other) => {
                return Err(
                    self.unsupported(format!("{kind} {other}"), "known are none and linear")
                );
            }
        }
        for (name, key) in [newer, older] {
            match self.gguf.f64(&key)? {
                None => {}
                Some(0.0) => return Ok(1.0),
                Some(_) => return self.positive(name, None),
            }
        }
        Ok(1.0)
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let factor = self.linear_factor()?;
        if let Some(tensor) = self.gguf.tensor("rope_freqs.weight") {
            let divisors = tensor.to_packed()?.to_f32();
            if divisors.iter().any(|divisor| !(divisor.is_finite() && *divisor > 0.0)) {
                return Err(Error::Tensor {
                    path: self.gguf.source().path().into(),
                    tensor: "rope_freqs.weight".into(),
                    expected: "positive divisors".into(),
                    found: "another value".into(),
                });
            }
            // llama.cpp divides by both.
            let divisors = divisors.into_iter().map(|divisor| divisor * factor as f32);
            return Ok(RopeScaling::Divisors(divisors.collect()));
        }
        Ok(if factor == 1.0 { RopeScaling::None } else { RopeScaling::Linear { factor } })
    }
}

/// The family of a GGUF file, and whether its architecture may state a width for each layer.
fn family(gguf: &Gguf, architecture: &str) -> Option<(&'static Family, bool)> {
    let marked = |family: &&&'static Family| match family.gguf_mark {
        None => true,
        Some(mark) => {
            let value = gguf.get(&format!("{architecture}.{mark}"));
            value.is_some_and(|value| value.as_u64() != Some(0))
        }
    };
    FAMILIES.iter().filter(marked).find_map(|family| {
        let per_layer = family.gguf_per_layer == Some(architecture);
        let own = family.gguf == architecture && !architecture.is_empty();
        (per_layer || own).then_some((*family, per_layer))
    })
}

impl Config {
    /// Reads the keys of a GGUF file, under the name of its architecture. Also gives those of the architecture's keys that
    /// nothing is known of. Those of arithmetic that is not done here are errors.
    pub fn from_gguf(gguf: &Gguf) -> Result<(Self, Vec<String>)> {
        let path = gguf.source().path();
        let architecture = gguf.require_str(ARCHITECTURE)?;
        let Some((family, per_layer)) = family(gguf, architecture) else {
            let mut known: Vec<_> = FAMILIES.iter().map(|family| family.gguf).collect();
            known.extend(FAMILIES.iter().filter_map(|family| family.gguf_per_layer));
            known.retain(|name| !name.is_empty());
            known.dedup();
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("architecture {architecture}"),
                why: format!("this version reads {}", known.join(", ")),
            });
        };
        let keys = Keys { gguf, architecture, per_layer, asked: RefCell::default() };
        let experts = keys.experts(family)?;
        let mut layers = keys.size("block_count", None)?;
        let encoder = match family.decoder_layers_keys {
            None => None,
            Some([_, key]) => {
                let encoder = layers;
                layers += keys.optional_size(key)?.unwrap_or(encoder);
                Some(t5::encoder(encoder))
            }
        };
        if layers > MAX_LAYERS {
            return Err(keys.wrong("block_count", format!("at most {MAX_LAYERS}"), layers));
        }
        let heads = keys.widths("attention.head_count", layers, None)?;
        let kv_heads = keys.widths("attention.head_count_kv", layers, Some(&heads))?;
        let intermediate = keys.widths("feed_forward_length", layers, None)?;
        let hidden_size = keys.size("embedding_length", None)?;
        let head_dim = keys.size("attention.key_length", Some((hidden_size / heads[0]) as u64))?;
        let values = keys.size("attention.value_length", Some(head_dim as u64))?;
        if values != head_dim {
            let what = format!("{} {values}", keys.key("attention.value_length"));
            return Err(
                keys.unsupported(what, format!("here keys and values are alike, of {head_dim}"))
            );
        }
        let rotated = keys.size("rope.dimension_count", Some(head_dim as u64))?;
        if rotated != head_dim {
            let what = format!("{} {rotated}", keys.key("rope.dimension_count"));
            let why = format!("this version rotates whole heads, of {head_dim}");
            return Err(keys.unsupported(what, why));
        }
        let embedding = gguf.tensor("token_embd.weight");
        let rows = embedding.and_then(|tensor| tensor.shape.first().map(|&rows| rows as u64));
        let mut config = Self {
            family,
            hidden_size,
            blocks: BlockDims::zip(heads, kv_heads, intermediate),
            encoder,
            experts,
            balance: if experts.is_some() { USUAL_BALANCE } else { 0.0 },
            head_dim,
            vocab_size: keys.size("vocab_size", rows)?,
            max_positions: keys.size("context_length", Some(2048))?,
            rms_norm_eps: keys.positive(family.gguf_epsilon, None)?,
            ropes: match encoder.is_some() || family.bidirectional {
                true => Vec::new(),
                false => vec![Rope {
                    theta: keys.positive("rope.freq_base", Some(10_000.0))?,
                    scaling: keys.scaling()?,
                }],
            },
            tied: gguf.tensor("output.weight").is_none(),
            shortcuts: false,
            input_type: None,
            attention_scale: None,
            attention_soft_cap: keys.optional_number(ATTENTION_CAP)?,
            logit_soft_cap: keys.optional_number(LOGIT_CAP)?,
            token_types: 0,
            readout: None,
        };
        (family.read_gguf)(&keys, &mut config)?;
        let config = config.check(path, &keys.key("attention.head_count_kv"))?;
        let unknown = keys.unknown(config.head_dim)?;
        Ok((config, unknown))
    }

    /// The architecture that states the widths; an error if the family has none that does.
    pub fn architecture(&self, path: &Path) -> Result<&'static str> {
        self.without_shortcuts(path, "a GGUF file")?;
        let refused = match &self.readout {
            Some(_) if !self.family.bidirectional => {
                Some((" that scores texts", "llama.cpp's architecture has no place for its head"))
            }
            Some(Readout { pooling: Pooling::Max, .. }) => Some((
                " that pools by the largest",
                "llama.cpp pools by the mean or the first token",
            )),
            _ => None,
        };
        if let Some((what, why)) = refused {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("a GGUF file of a model of the family {}{what}", self.family.name),
                why: format!("{why}; use hf or packed"),
            });
        }
        self.check_gguf_buckets(path)?;
        if self.experts.is_some_and(|experts| !experts.normalized) {
            return Err(Error::Unsupported {
                path: path.into(),
                what: "a GGUF file of experts whose shares do not add up to 1".into(),
                why: format!("llama.cpp makes them for {}; use hf or packed", self.family.gguf),
            });
        }
        let windows = self.blocks.iter().any(|block| block.window.is_some());
        let says = |(name, _): &(&str, Meta)| name.contains("sliding_window");
        if windows && !(self.family.write_gguf)(self).iter().any(says) {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!(
                    "a GGUF file of the family {} with attention to a window",
                    self.family.name
                ),
                why: "its architecture has no key for it; use hf or packed".into(),
            });
        }
        if self.uniform().is_some() {
            return Ok(self.family.gguf);
        }
        self.family.gguf_per_layer.ok_or_else(|| Error::Unsupported {
            path: path.into(),
            what: format!(
                "a GGUF file of the family {} with layers of several widths",
                self.family.name
            ),
            why: "its architecture states one width for all; use packed".into(),
        })
    }

    /// What llama.cpp leaves out of the arithmetic though a GGUF file of this model states it, one sentence each: it has no key for
    /// a soft cap of attention outside Gemma 2, none for one of logits outside Gemma, and none for a window in architecture
    /// `llama`. A window that no text fills is none.
    pub fn ignored_by_llama_cpp(&self) -> Vec<String> {
        let architecture = match self.uniform() {
            Some(_) => self.family.gguf,
            None => self.family.gguf_per_layer.unwrap_or(self.family.gguf),
        };
        let mut ignored = Vec::new();
        if let Some(cap) = self.attention_soft_cap {
            ignored.push(format!("the soft cap of attention ({cap}), so its logits differ"));
        }
        if let Some(cap) = self.logit_soft_cap.filter(|_| architecture != "gemma3") {
            ignored.push(format!("the soft cap of logits ({cap}), so its logits differ"));
        }
        let window = self.blocks.iter().filter_map(|block| block.window).min();
        let in_force = |window: &usize| {
            ["llama", "deci"].contains(&architecture) && *window < self.max_positions
        };
        if let Some(window) = window.filter(in_force) {
            ignored.push(format!(
                "the window of attention of {window} tokens, so its logits differ beyond as many (keep contexts there to {window})"
            ));
        }
        if let Some(ty) = self.input_type {
            let name = ty.name();
            ignored.push(format!(
                "that inputs of layers are rounded to {name}, for it has no word for it"
            ));
        }
        let sentence = |what| {
            format!(
                "llama.cpp does not read from a GGUF file of architecture {architecture} {what}"
            )
        };
        ignored.into_iter().map(sentence).collect()
    }

    /// Keys beyond [`KEYS`] that this configuration needs: what llama.cpp would take without them is not right.
    fn further(&self) -> Vec<(&'static str, Meta)> {
        let numbers = [(ATTENTION_CAP, self.attention_soft_cap), (LOGIT_CAP, self.logit_soft_cap)];
        let number = |(name, value): (&'static str, Option<f64>)| {
            value.map(|value| (name, Meta::F32(value as f32)))
        };
        let mut further: Vec<_> = numbers.into_iter().filter_map(number).collect();
        if let Some(RopeScaling::Linear { factor }) = self.ropes.first().map(|rope| &rope.scaling) {
            further.push((SCALING_TYPE, Meta::String("linear".into())));
            further.push((SCALING_FACTOR[0], Meta::F32(*factor as f32)));
        }
        further.extend((self.family.write_gguf)(self));
        further
    }

    /// What one of [`KEYS`] says of this configuration; `None` for other keys.
    fn stated(&self, name: &str) -> Option<Meta> {
        let size = |value: usize| Meta::U32(value as u32);
        let widths = |width: fn(&BlockDims) -> usize| match &self.uniform() {
            Some(widths) => size(width(widths)),
            // Signed, as llama.cpp's converter writes them: older versions read no others.
            None => Meta::Array(Array::I32(
                self.blocks.iter().map(|block| width(block) as i32).collect(),
            )),
        };
        Some(match name {
            // What other families call the number of blocks is that of the encoder's where there is one.
            "block_count" => size(self.encoder.map_or(self.layers(), |encoder| encoder.layers)),
            "context_length" => size(self.max_positions),
            "embedding_length" => size(self.hidden_size),
            "feed_forward_length" => widths(|block| block.intermediate_size),
            "attention.head_count" => widths(|block| block.heads),
            "attention.head_count_kv" => widths(|block| block.kv_heads),
            "attention.key_length" | "attention.value_length" => size(self.head_dim),
            "rope.dimension_count" => self.ropes.first().map(|_| size(self.head_dim))?,
            name if name == self.family.gguf_epsilon => Meta::F32(self.rms_norm_eps as f32),
            "rope.freq_base" => Meta::F32(self.ropes.first()?.theta as f32),
            "vocab_size" => size(self.vocab_size),
            EXPERTS => size(self.experts?.count),
            EXPERTS_USED => size(self.experts?.used),
            _ => return None,
        })
    }

    /// Whether a file may do without one of [`KEYS`]: what llama.cpp takes instead is right.
    fn is_implied(&self, name: &str) -> bool {
        match name {
            "attention.head_count_kv" => self.blocks.iter().all(|b| b.heads == b.kv_heads),
            "attention.key_length" | "attention.value_length" => self
                .blocks
                .first()
                .is_some_and(|block| self.hidden_size / block.heads == self.head_dim),
            EXPERTS | EXPERTS_USED => self.experts.is_none(),
            _ => true,
        }
    }
}

/// Kinds of texts that have an embedding.
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type_count";
const FILE_TYPE: &str = "general.file_type";
const SIZE_LABEL: &str = "general.size_label";

/// What `llama.cpp` calls a file whose weights are mostly of a type (`LLAMA_FTYPE_MOSTLY_*`, of a K type the S mixture).
fn file_type(ty: GgmlType) -> u32 {
    match ty {
        GgmlType::F32 => 0,
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q8_0 => 7,
        GgmlType::Q5_0 => 8,
        GgmlType::Q5_1 => 9,
        GgmlType::Q2K => 10,
        GgmlType::Q3K => 11,
        GgmlType::Q4K => 14,
        GgmlType::Q5K => 16,
        GgmlType::Q6K => 18,
        GgmlType::Iq4Nl => 25,
        GgmlType::Iq4Xs => 30,
        GgmlType::Bf16 => 32,
        GgmlType::Tq1_0 => 36,
        GgmlType::Tq2_0 => 37,
        GgmlType::Mxfp4 => 38,
        GgmlType::Nvfp4 => 39,
        _ => 1,
    }
}

/// The type that most matrices of a file have: what llama.cpp would guess it is mostly of.
pub fn main_type(types: impl Iterator<Item = GgmlType>) -> GgmlType {
    let mut counts: Vec<(GgmlType, usize)> = Vec::new();
    for ty in types {
        match counts.iter_mut().find(|(known, _)| *known == ty) {
            Some((_, count)) => *count += 1,
            None => counts.push((ty, 1)),
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map_or(GgmlType::F16, |(ty, _)| ty)
}

/// The number of weights as `general.size_label` has it: two digits and a letter.
fn size_label(weights: u64) -> String {
    let (scaled, letter) = match weights as f64 {
        n if n > 1e12 => (n * 1e-12, 'T'),
        n if n > 1e9 => (n * 1e-9, 'B'),
        n if n > 1e6 => (n * 1e-6, 'M'),
        n => (n * 1e-3, 'K'),
    };
    let whole = scaled.round().to_string();
    let digits = 2usize.saturating_sub(whole.trim_start_matches('0').len());
    format!("{scaled:.digits$}{letter}")
}

/// What a tensor's values are multiplied by in a GGUF file. llama.cpp takes every attention's scale for 1 / sqrt(head_dim):
/// another one goes into the norm of the queries.
pub fn factor(config: &Config, spec: &TensorSpec) -> Option<f32> {
    let scale = config.attention_scale.filter(|_| spec.slot == Slot::QueryNorm)?;
    Some((scale * (config.head_dim as f64).sqrt()) as f32)
}

/// Where the metadata of a new GGUF file comes from.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    /// A GGUF file: what it says of anything but sizes is kept as it is.
    Gguf(&'a Gguf),
    /// A model of another kind, by its path, with its tokenizer if it has one.
    Other(&'a Path, Option<&'a StoredTokenizer>),
}

impl std::fmt::Debug for Origin<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Origin::Gguf(_) => "Gguf",
            Origin::Other(..) => "Other",
        })
    }
}

/// The metadata of `config`'s GGUF file of so many weights, mostly of type `main`.
pub fn metadata(
    origin: Origin<'_>,
    config: &Config,
    (weights, main): (u64, GgmlType),
) -> Result<Vec<(String, Meta)>> {
    let file_type = (FILE_TYPE.to_string(), Meta::U32(file_type(main)));
    let version = ("general.quantization_version".to_string(), Meta::U32(2));
    let (path, tokenizer) = match origin {
        Origin::Gguf(gguf) => {
            let mut pairs = updated(gguf, config)?;
            // A mixture has a number of its own, which stays while the most are of the same type.
            let matrices =
                gguf.names().filter(|name| gguf.tensor(name).is_some_and(|t| t.shape.len() == 2));
            let same = main_type(matrices.filter_map(|name| gguf.tensor_type(name))) == main;
            let file_type = match gguf.get(FILE_TYPE) {
                Some(own) if same => (file_type.0, own.clone()),
                _ => file_type,
            };
            let label = Meta::String(size_label(weights));
            let size = pairs.iter_mut().find(|(key, _)| key == SIZE_LABEL);
            let before = Config::from_gguf(gguf)?.0.weights();
            if let Some((_, old)) = size.filter(|_| config.weights() != before) {
                *old = label;
            }
            for (key, value) in [file_type, version] {
                match pairs.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, old)) => *old = value,
                    None => pairs.push((key, value)),
                }
            }
            return Ok(pairs);
        }
        Origin::Other(path, tokenizer) => (path, tokenizer),
    };
    let architecture = config.architecture(path)?;
    let name =
        path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    let mut pairs: Vec<(String, Meta)> = vec![
        (ARCHITECTURE.into(), Meta::String(architecture.into())),
        ("general.type".into(), Meta::String("model".into())),
        ("general.name".into(), Meta::String(name.trim_start_matches("embedded:").to_string())),
        file_type,
        version,
    ];
    let stated = |name: &&'static str| Some((*name, config.stated(name)?));
    let all = KEYS.iter().filter_map(stated).chain(config.further());
    pairs.extend(all.map(|(name, value)| (format!("{architecture}.{name}"), value)));
    let Some(tokenizer) = tokenizer else {
        return Err(Error::Unsupported {
            path: path.into(),
            what: "a GGUF file without a tokenizer".into(),
            why: "the folder has no tokenizer.json".into(),
        });
    };
    if config.token_types > 0 {
        pairs.push((TOKEN_TYPES.into(), Meta::U32(config.token_types as u32)));
    }
    pairs.extend(tokenizer.to_gguf_metadata(config.vocab_size).unwrap_or_else(|error| {
        tracing::warn!("the GGUF is written without a vocabulary: {error}");
        // llama.cpp's word for it.
        vec![("tokenizer.ggml.model".into(), Meta::String("none".into()))]
    }));
    Ok(pairs)
}

/// A parent's metadata with the sizes of `config`, and its architecture.
fn updated(gguf: &Gguf, config: &Config) -> Result<Vec<(String, Meta)>> {
    let from = gguf.require_str(ARCHITECTURE)?;
    let to = config.architecture(gguf.source().path())?;
    let prefix = format!("{from}.");
    let divisors = |rope: &Rope| matches!(rope.scaling, RopeScaling::Divisors(_));
    let divided = config.ropes.first().is_some_and(divisors);
    let pair = |(key, value): &(String, Meta)| {
        if key == ARCHITECTURE {
            return Some((key.clone(), Meta::String(to.into())));
        }
        let Some(name) = key.strip_prefix(&prefix) else {
            // What is written is one file.
            return (!key.starts_with("split.")).then(|| (key.clone(), value.clone()));
        };
        // A factor beside divisors has become part of them.
        if divided && (name == SCALING_TYPE || SCALING_FACTOR.contains(&name)) {
            return None;
        }
        let value = match config.stated(name) {
            Some(new) if !same_sizes(value, &new) => new,
            Some(new) if name == config.family.gguf_epsilon && !same_number(value, &new) => new,
            _ => value.clone(),
        };
        Some((format!("{to}.{name}"), value))
    };
    let mut pairs: Vec<_> = gguf.metadata().iter().filter_map(pair).collect();
    for name in KEYS {
        let missing = gguf.get(&format!("{from}.{name}")).is_none();
        if missing && !config.is_implied(name) {
            let stated = config.stated(name);
            pairs.extend(stated.map(|value| (format!("{to}.{name}"), value)));
        }
    }
    for (name, value) in config.further() {
        let key = format!("{to}.{name}");
        match pairs.iter_mut().find(|(known, _)| *known == key) {
            Some((_, old)) if matches!(value, Meta::Array(_)) => *old = value,
            Some(_) => {}
            None => pairs.push((key, value)),
        }
    }
    Ok(pairs)
}

/// Whether two values state the same number, but for rounding to f32.
fn same_number(old: &Meta, new: &Meta) -> bool {
    let (old, new) = (old.as_f64().unwrap_or(f64::NAN), new.as_f64().unwrap_or(f64::NAN));
    (old - new).abs() <= 1e-6 * new.abs()
}

/// Whether two values state the same sizes, in whichever integer type; floats are no sizes.
fn same_sizes(old: &Meta, new: &Meta) -> bool {
    match (old, new) {
        (Meta::Array(old), Meta::Array(new)) => match (old.integers(), new.integers()) {
            (Some(old), Some(new)) => old.eq(new),
            _ => false,
        },
        (_, Meta::F32(_)) => true,
        _ => old.as_u64().is_some() && old.as_u64() == new.as_u64(),
    }
}
