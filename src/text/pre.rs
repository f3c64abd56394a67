//! The pre-tokenizers of byte-level BPE vocabularies: the name in a GGUF, and the definition in a `tokenizer.json`.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::unsupported;
use crate::error::Result;

/// How a byte-level BPE vocabulary cuts a text into words before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pre {
    Gpt2,
    Smollm,
    LlamaBpe,
    Qwen2,
    Tekken,
    Default,
}

const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's own fallback, which no published tokenizer uses: four expressions one after the other.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

impl Pre {
    /// Every kind, in the order in which messages list them.
    const ALL: [Pre; 6] =
        [Pre::Gpt2, Pre::Smollm, Pre::LlamaBpe, Pre::Qwen2, Pre::Tekken, Pre::Default];

    /// The kind that `tokenizer.ggml.pre` names. llama.cpp takes a missing key for `default`, and so does this.
    pub fn from_name(path: &Path, name: Option<&str>) -> Result<Pre> {
        Ok(match name {
            Some("gpt-2" | "phi-2") => Pre::Gpt2,
            Some("smollm" | "starcoder" | "refact") => Pre::Smollm,
            Some("llama-bpe" | "llama3" | "llama-v3") => Pre::LlamaBpe,
            Some("qwen2" | "deepseek-r1-qwen") => Pre::Qwen2,
            Some("tekken") => Pre::Tekken,
            Some("default" | "") | None => Pre::Default,
            Some(other) => {
                let known: Vec<_> = Pre::ALL.iter().map(|p| p.name()).collect();
                return Err(unsupported(
                    path,
                    format!("tokenizer.ggml.pre `{}`", super::one_line(other)),
                    format!("known pre-tokenizers are {}", known.join(", ")),
                ));
            }
        })
    }

    /// The name that a GGUF uses.
    pub fn name(self) -> &'static str {
        match self {
            Pre::Gpt2 => "gpt-2",
            Pre::Smollm => "smollm",
            Pre::LlamaBpe => "llama-bpe",
            Pre::Qwen2 => "qwen2",
            Pre::Tekken => "tekken",
            Pre::Default => "default",
        }
    }

    /// A word that is a token as a whole is taken without looking at the merges.
    pub fn ignore_merges(self) -> bool {
        matches!(self, Pre::LlamaBpe | Pre::Tekken)
    }

    /// llama.cpp adds BOS for this kind when the file does not say.
    pub fn adds_bos(self) -> bool {
        matches!(self, Pre::LlamaBpe | Pre::Tekken)
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn definition(self) -> Json {
        match self {
            Pre::Gpt2 => byte_level(true),
            Pre::Smollm => sequence(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ]),
            Pre::LlamaBpe => sequence(vec![split(LLAMA_BPE), byte_level(false)]),
            Pre::Qwen2 => sequence(vec![split(QWEN2), byte_level(false)]),
            Pre::Tekken => sequence(vec![split(TEKKEN), byte_level(false)]),
            Pre::Default => {
                let mut steps: Vec<_> = DEFAULT.iter().map(|r| split(r)).collect();
                steps.push(byte_level(false));
                sequence(steps)
            }
        }
    }

    /// The `normalizer` of a `tokenizer.json`. llama.cpp leaves Qwen's NFC out; texts that are not in NFC, which are
    /// rare, tokenize there as they never did in training.
    pub fn normalizer(self) -> Json {
        match self {
            Pre::Qwen2 => json!({"type": "NFC"}),
            _ => Json::Null,
        }
    }

    /// The kind of a `tokenizer.json`, or why it has none.
    pub fn recognise(document: &Json) -> Result<Pre, String> {
        let cutting = simplify(&document["pre_tokenizer"]);
        let kind = Pre::ALL
            .into_iter()
            .find(|pre| simplify(&pre.definition()) == cutting)
            .ok_or("its pre_tokenizer is none of those that GGUF names")?;
        if simplify(&document["normalizer"]) != simplify(&kind.normalizer()) {
            return Err(format!("its normalizer is not that of `{}`", kind.name()));
        }
        let ignores = document["model"]["ignore_merges"].as_bool().unwrap_or(false);
        if ignores != kind.ignore_merges() {
            return Err(format!(
                "ignore_merges is {ignores}, which `{}` does not express",
                kind.name()
            ));
        }
        Ok(kind)
    }
}

fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(regex: &str) -> Json {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn sequence(steps: Vec<Json>) -> Json {
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// The steps of a definition as a flat list, without what changes no token id: a sequence of one equals its element,
/// and `trim_offsets` only moves offsets.
fn simplify(definition: &Json) -> Vec<Json> {
    let kind = definition["type"].as_str();
    if kind == Some("Sequence") {
        let steps = definition
            .get("pretokenizers")
            .or(definition.get("normalizers"))
            .and_then(Json::as_array);
        return steps.into_iter().flatten().flat_map(simplify).collect();
    }
    let Some(fields) = definition.as_object() else {
        return Vec::new();
    };
    let mut fields = fields.clone();
    if kind == Some("ByteLevel") {
        fields.remove("trim_offsets");
        fields.entry("use_regex").or_insert(Json::Bool(true));
    }
    vec![Json::Object(fields)]
}
