//! The formats that a model is written in, each by one row of matches: its name, where it goes, what it takes, writing it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, Weights, quantizable};
use super::save::{
    Wide, export_gguf, export_hf, export_packed, export_quantized, gguf_bytes, hf_files,
    packed_files, quantized_files,
};
use crate::error::{Error, Result};
use crate::families::TensorSpec;
use crate::formats::gguf;
use crate::formats::quantized::{self, Method, Module};
use crate::tensor::WeightFormat;
use crate::text::StoredTokenizer;

/// A format a model is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ExportFormat {
    /// A file for llama.cpp and what is built on it
    Gguf,
    /// A Hugging Face folder for transformers, weights dequantized to f16
    Hf,
    /// A folder with codes and scales as they are, which Lopper opens
    Packed,
    /// A folder of GPTQ's layout, for GPT-QModel, transformers and vLLM: integers of 2, 3, 4 and 8 bits
    Gptq,
    /// A folder of AWQ's layout (GEMM), for AutoAWQ's readers and vLLM: integers of 4 bits
    Awq,
    /// A folder for vLLM and llm-compressor: integers of 1 to 8 bits, FP8, NVFP4, MXFP4
    CompressedTensors,
    /// A folder of ModelOpt's layout, for TensorRT-LLM and vLLM: NVFP4
    Modelopt,
    /// A folder for mlx-lm: integers of 1 to 6 and 8 bits, MXFP4, MXFP8, NVFP4
    Mlx,
}

/// Every format.
const ALL: [ExportFormat; 8] = [
    ExportFormat::Gguf,
    ExportFormat::Hf,
    ExportFormat::Packed,
    ExportFormat::Gptq,
    ExportFormat::Awq,
    ExportFormat::CompressedTensors,
    ExportFormat::Modelopt,
    ExportFormat::Mlx,
];

impl ExportFormat {
    /// The name in recipes, flags and JSON.
    pub fn name(self) -> &'static str {
        match self {
            ExportFormat::Gguf => "gguf",
            ExportFormat::Hf => "hf",
            ExportFormat::Packed => "packed",
            ExportFormat::Gptq => "gptq",
            ExportFormat::Awq => "awq",
            ExportFormat::CompressedTensors => "compressed-tensors",
            ExportFormat::Modelopt => "modelopt",
            ExportFormat::Mlx => "mlx",
        }
    }

    /// The method of a folder as another tool quantizes.
    pub fn method(self) -> Option<&'static Method> {
        quantized::method(self.name())
    }

    /// Where it stands in an artifact.
    pub fn path(self) -> &'static str {
        match self {
            ExportFormat::Gguf => "model.gguf",
            _ => self.name(),
        }
    }

    /// The format of a model's own files.
    pub fn of(model: &Checkpoint) -> Self {
        match model.container() {
            "gguf" => ExportFormat::Gguf,
            "lopper" => ExportFormat::Packed,
            name => {
                ALL.into_iter().find(|format| format.name() == name).unwrap_or(ExportFormat::Hf)
            }
        }
    }

    /// Whether this holds a weight of that format exactly.
    fn holds_weight(self, module: &Module<'_>, format: WeightFormat) -> bool {
        match (self, self.method()) {
            (_, Some(method)) => method.holds(module, format),
            (ExportFormat::Gguf, _) => gguf::holds(format, module.columns).is_some(),
            (ExportFormat::Packed, _) => true,
            _ => format.ty.is_plain(),
        }
    }

    /// The matrices that a folder as another tool quantizes does not hold exactly.
    pub fn unheld(self, weights: &dyn Weights) -> Result<Vec<&TensorSpec>> {
        let mut unheld = Vec::new();
        for spec in weights.specs().iter().filter(|s| !s.is_plain()) {
            if !self.holds_weight(&quantizable(spec), weights.format(spec)?) {
                unheld.push(spec);
            }
        }
        Ok(unheld)
    }

    /// An error if this is a folder as another tool quantizes, which does not hold every weight exactly: it names the first, and
    /// the formats that do.
    pub fn check_held(self, weights: &dyn Weights) -> Result<()> {
        let unheld = if self.method().is_some() { self.unheld(weights)? } else { Vec::new() };
        let Some((first, more)) = unheld.split_first() else { return Ok(()) };
        let format = weights.format(first)?;
        let others = ALL.into_iter().filter(|f| f.holds_weight(&quantizable(first), format));
        let others: Vec<&str> = others.map(ExportFormat::name).collect();
        let more = match more.len() {
            0 => String::new(),
            count => format!("; {count} more tensors are not held either"),
        };
        Err(Error::Tensor {
            path: format!("export to {}", self.name()).into(),
            tensor: first.name.clone(),
            expected: format!(
                "f16, bf16, f32 or a type that {} holds exactly (see the README's table)",
                self.name()
            ),
            found: format!("{}, which {} hold exactly{more}", format.label(), others.join(", ")),
        })
    }

    /// Whether a file of an artifact holds weights in this format.
    pub fn holds(self, file: &str) -> bool {
        match self {
            ExportFormat::Gguf => file == self.path(),
            _ => file
                .strip_prefix(self.path())
                .is_some_and(|name| name.starts_with('/') && name.ends_with(".safetensors")),
        }
    }

    /// Bytes of the files with weights that [`ExportFormat::write`] would write. Needs no values: `weights` may be an outline.
    pub fn bytes(
        self,
        parent: &Checkpoint,
        weights: &dyn Weights,
        tokenizer: Option<&StoredTokenizer>,
        wide: &Wide,
    ) -> Result<u64> {
        let files = match self {
            ExportFormat::Gguf => return gguf_bytes(parent, weights, tokenizer, wide),
            ExportFormat::Hf => hf_files(weights, wide)?,
            _ => match self.method() {
                Some(method) => quantized_files(method, weights)?,
                None => packed_files(weights)?,
            },
        };
        Ok(files.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Writes `weights`, which come from `parent`, to a file or a folder that is not there yet. Returns what it holds in a wider
    /// type than is usual.
    pub fn write(
        self,
        path: &Path,
        parent: &Checkpoint,
        weights: &dyn Weights,
        tokenizer: Option<&StoredTokenizer>,
    ) -> Result<Wide> {
        if self == ExportFormat::Gguf {
            return export_gguf(path, parent, weights, tokenizer);
        }
        self.check_held(weights)?;
        std::fs::create_dir(path).map_err(Error::write(path))?;
        let config = parent.config_json()?;
        match self.method() {
            Some(method) => export_quantized(path, method, config, weights, tokenizer),
            None if self == ExportFormat::Hf => export_hf(path, config, weights, tokenizer),
            None => export_packed(path, config, weights, tokenizer).map(|()| Wide::default()),
        }
    }
}
