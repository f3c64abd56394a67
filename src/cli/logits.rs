//! `lopper logits`: a model's logits for given tokens, as safetensors.

use std::path::PathBuf;

use serde_json::json;

use super::Global;
use super::output::Output;
use super::session::{compute, load_model, open_device, open_model, put_adapter, read_adapter};
use crate::device::HostTensor;
use crate::disk::Target;
use crate::error::{Error, Result};
use crate::formats::safetensors::{NewTensor, write_file};
use crate::model::{Pass, Weights, not_finite};
use crate::tensor::DType;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A Hugging Face folder, a .gguf file, or embedded:NAME
    model: String,
    /// With the adapter in this folder beside its layers, as PEFT and `lopper tune` write it
    #[arg(long, value_name = "FOLDER")]
    lora: Option<PathBuf>,
    /// Token ids: 1,2,3
    #[arg(
        long,
        value_delimiter = ',',
        required_unless_present = "prompt",
        conflicts_with = "prompt"
    )]
    tokens: Vec<u32>,
    /// A text instead
    #[arg(long)]
    prompt: Option<String>,
    /// The safetensors file to write: input_ids (1, T), logits (1, T, vocabulary)
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
    /// Write hidden.0 (the embedding) to hidden.L (after the final norm) too
    #[arg(long)]
    hidden: bool,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let checkpoint = open_model(&arguments.model, output)?;
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint)?;
    let target = Target {
        path: &arguments.out,
        force: output.force(),
        folder: false,
        model: checkpoint.path(),
    };
    target.check()?;
    let ids = match &arguments.prompt {
        Some(prompt) => checkpoint.tokenizer()?.encode(prompt, true)?,
        None => arguments.tokens.clone(),
    };
    let context = checkpoint.config().max_positions;
    if ids.is_empty() || ids.len() > context {
        let given = if arguments.prompt.is_some() { "--prompt" } else { "--tokens" };
        return Err(Error::Argument {
            argument: given.into(),
            expected: format!("1 to {context} tokens, the model's context"),
            found: if ids.is_empty() { "none".into() } else { format!("{} tokens", ids.len()) },
        });
    }
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?;
    let mut model = load_model(global, &device, &checkpoint, compute, &[ids.len()], output)?;
    put_adapter(&device, &mut model, adapter.as_ref())?;
    let pass = Pass { device: &device, compute };
    let (hidden, logits) = model.trace(&pass, &ids, 1, arguments.hidden)?;
    if logits.to_f32().iter().any(|logit| !logit.is_finite()) {
        return Err(not_finite((&model).into(), &pass, &ids, "logits"));
    }
    let wide: Vec<u8> = ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
    let tensor = |name: String, dtype: DType, shape: Vec<usize>, bytes: Vec<u8>| NewTensor {
        name,
        dtype,
        shape,
        data: Box::new(move || Ok(bytes.clone())),
    };
    let length = ids.len();
    let mut tensors = vec![tensor("input_ids".into(), DType::I64, vec![1, length], wide)];
    let widths = model.config();
    tensors.push(tensor(
        "logits".into(),
        DType::F32,
        vec![1, length, widths.vocab_size],
        f32_bytes(&logits),
    ));
    for (index, state) in hidden.iter().enumerate() {
        let shape = vec![1, length, widths.hidden_size];
        tensors.push(tensor(format!("hidden.{index}"), DType::F32, shape, f32_bytes(state)));
    }
    checkpoint.unchanged()?;
    target.write(|path| write_file(path, tensors))?;
    output.json(&json!({
        "schema": 1, "model": arguments.model, "input_ids": ids, "out": arguments.out, "device": device.name(),
    }))?;
    output.line(format!(
        "{}: logits of {length} tokens, on {}",
        arguments.out.display(),
        device.name()
    ));
    Ok(())
}

fn f32_bytes(tensor: &HostTensor) -> Vec<u8> {
    bytemuck::cast_slice::<f32, u8>(&tensor.view().to_f32()).to_vec()
}
