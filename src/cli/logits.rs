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
use crate::model::{Pass, Weights, not_finite, paired_row};
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
    /// Of a model with an encoder, which reads those tokens or that text: what the decoder has written, without its start
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    target: Vec<u32>,
    /// The safetensors file to write: input_ids (1, T), logits (1, T, vocabulary); of a model that scores texts, scores of the
    /// text up to each token (1, T, labels), or where each token sees all of it those of the text (1, 1, labels)
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
    /// Write hidden.0 (the embedding) to hidden.L (after the final norm) too
    #[arg(long)]
    hidden: bool,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let checkpoint = open_model(&arguments.model, output)?;
    let adapter = read_adapter(arguments.lora.as_deref(), &checkpoint, true)?;
    let target = Target {
        path: &arguments.out,
        force: output.force(),
        folder: false,
        model: checkpoint.path(),
    };
    target.check()?;
    let config = checkpoint.config();
    if config.encoder.is_none() && !arguments.target.is_empty() {
        return Err(Error::Argument {
            argument: "--target".into(),
            expected: "a model with an encoder".into(),
            found: format!("one of the family {}", config.family.name),
        });
    }
    let ids = match &arguments.prompt {
        Some(prompt) if config.encoder.is_some() => {
            checkpoint.tokenizer()?.encode_source(prompt)?
        }
        // Between the tokens that the vocabulary puts around it.
        Some(prompt) if config.has_encoder() => {
            checkpoint.tokenizer()?.encode_within(prompt, usize::MAX)?.0
        }
        Some(prompt) => checkpoint.tokenizer()?.encode(prompt, true)?,
        None => arguments.tokens.clone(),
    };
    let context = config.max_positions;
    if ids.is_empty() || ids.len() > context {
        let given = if arguments.prompt.is_some() { "--prompt" } else { "--tokens" };
        return Err(Error::Argument {
            argument: given.into(),
            expected: format!("1 to {context} tokens, the model's context"),
            found: if ids.is_empty() { "none".into() } else { format!("{} tokens", ids.len()) },
        });
    }
    // The decoder's tokens are those whose logits are written.
    let (ids, first) = match config.encoder {
        None => (ids, 0),
        Some(_) => {
            let place = ids.len() + 1;
            (paired_row(config, &ids, &arguments.target, place), place)
        }
    };
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?;
    let mut model = load_model(global, &device, &checkpoint, compute, &[ids.len()], output)?;
    put_adapter(&device, &mut model, &checkpoint, adapter.as_ref())?;
    let pass = Pass { device: &device, compute };
    let (hidden, logits) = model.trace(&pass, &ids, 1, arguments.hidden)?;
    if logits.to_f32().iter().any(|logit| !logit.is_finite()) {
        return Err(not_finite((&model).into(), &pass, &ids, "logits"));
    }
    let own = &ids[first..];
    let wide: Vec<u8> = own.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
    let tensor = |name: String, dtype: DType, shape: Vec<usize>, bytes: Vec<u8>| NewTensor {
        name,
        dtype,
        shape,
        data: Box::new(move || Ok(bytes.clone())),
    };
    let length = own.len();
    let mut tensors = vec![tensor("input_ids".into(), DType::I64, vec![1, length], wide)];
    let widths = model.config();
    tensors.push(tensor(
        "logits".into(),
        DType::F32,
        vec![1, logits.len() / widths.head_rows() - first, widths.head_rows()],
        f32_bytes(&logits, first * widths.head_rows()),
    ));
    for (index, state) in hidden.iter().enumerate() {
        // Of a model with an encoder the streams of the source, too: each row's parts behind each other.
        let shape = vec![1, ids.len(), widths.hidden_size];
        tensors.push(tensor(format!("hidden.{index}"), DType::F32, shape, f32_bytes(state, 0)));
    }
    checkpoint.unchanged()?;
    target.write(|path| write_file(path, tensors))?;
    output.json(&json!({
        "schema": 1, "model": arguments.model, "input_ids": own, "out": arguments.out, "device": device.name(),
    }))?;
    output.line(format!(
        "{}: logits of {length} tokens, on {}",
        arguments.out.display(),
        device.name()
    ));
    Ok(())
}

/// The bytes of a tensor's elements from one on.
fn f32_bytes(tensor: &HostTensor, first: usize) -> Vec<u8> {
    bytemuck::cast_slice::<f32, u8>(&tensor.view().to_f32()[first..]).to_vec()
}
