//! mergekit-moe's configuration files (YAML) as upcycle stages. What this program does not do is an error that names the key.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::stages::merge::Plain;
use crate::stages::upcycle::{ExpertOf, Gate, Upcycle};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    base_model: String,
    gate_mode: Option<String>,
    dtype: Option<String>,
    experts_per_token: Option<usize>,
    experts: Vec<Source>,
    shared_experts: Option<Value>,
    architecture: Option<String>,
}

/// A model that gives an expert.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    source_model: String,
    #[serde(default)]
    positive_prompts: Vec<String>,
    #[serde(default)]
    negative_prompts: Vec<String>,
    noise_scale: Option<f64>,
    residual_scale: Option<f64>,
}

/// Reads a file's text: the model that the stage runs on, and the stage. `path` is for messages.
pub fn read(path: &Path, text: &str) -> Result<(String, Upcycle)> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| Error::Malformed {
        path: path.into(),
        what: "configuration of a mixture".into(),
        offset: None,
        expected: "what mergekit-moe reads".into(),
        found: error.to_string().replace('\n', " "),
    })?;
    let wrong = |key: &str, expected: &str, found: &str| {
        let (key, expected, found) = (key.into(), expected.into(), found.into());
        Err(Error::Key { path: path.into(), key, expected, found })
    };
    let Document { base_model, gate_mode, dtype, experts, .. } = document;
    let shared = document.shared_experts.as_ref();
    if shared.is_some_and(|shared| shared.as_array().is_none_or(|list| !list.is_empty())) {
        return wrong("shared_experts", "none: no family here has experts of all tokens", "some");
    }
    if let Some(other) = document.architecture.filter(|name| name != "mixtral") {
        return wrong("architecture", "mixtral, or the key left out", &other);
    }
    if experts.iter().any(|expert| expert.residual_scale.is_some()) {
        return wrong("residual_scale", "none: this version does nothing with it", "one");
    }
    let (gate, deviation) = match gate_mode.as_deref() {
        None | Some("hidden" | "hidden_last") => (Gate::Hidden, Upcycle::default().deviation),
        Some("hidden_avg") => (Gate::HiddenAvg, Upcycle::default().deviation),
        Some("cheap_embed") => (Gate::CheapEmbed, Upcycle::default().deviation),
        Some("random") => (Gate::Random, 1.0),
        Some("uniform_random") => (Gate::UniformRandom, Upcycle::default().deviation),
        Some(other) => {
            let known = "hidden, hidden_avg, hidden_last, cheap_embed, random or uniform_random";
            return wrong("gate_mode", known, other);
        }
    };
    let dtype = match dtype.as_deref() {
        None => None,
        Some("float16") => Some(Plain::F16),
        Some("bfloat16") => Some(Plain::Bf16),
        Some("float32") => Some(Plain::F32),
        Some(other) => return wrong("dtype", "float16, bfloat16 or float32", other),
    };
    let expert = |source: Source| ExpertOf {
        model: Some(source.source_model).filter(|name| *name != base_model),
        prompts: source.positive_prompts,
        not: source.negative_prompts,
        noise: source.noise_scale,
    };
    let stage = Upcycle {
        experts: None,
        used: document.experts_per_token.unwrap_or(2),
        gate: Some(gate),
        deviation,
        noise: 0.0,
        dtype,
        expert: experts.into_iter().map(expert).collect(),
    };
    Ok((base_model, stage))
}
