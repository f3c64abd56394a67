//! `lopper embed`: embeddings of texts by a sentence encoder, and how alike they are.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::Global;
use super::output::{Output, table};
use super::session::{compute, load_model, open_device, open_model, report_device};
use crate::data::read_text;
use crate::disk::Target;
use crate::error::Result;
use crate::formats::safetensors::{NewTensor, write_file};
use crate::model::{Pass, Weights};
use crate::tensor::DType;
use crate::text::Tokenizer;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A sentence encoder: a Hugging Face folder
    model: String,
    /// A text; may be given several times
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "texts",
        allow_hyphen_values = true
    )]
    text: Vec<String>,
    /// A file of texts, one a line
    #[arg(long, value_name = "FILE")]
    texts: Option<String>,
    /// Write the embeddings, f32 (texts, width), as `embeddings` of a safetensors file; without it they are in JSON
    #[arg(long, value_name = "F.safetensors")]
    out: Option<PathBuf>,
}

pub(super) fn run(global: &Global, arguments: &Arguments, output: &Output) -> Result<()> {
    let checkpoint = open_model(&arguments.model, output)?;
    let config = checkpoint.config();
    config.embeds("MODEL")?;
    let target = arguments.out.as_ref().map(|path| Target {
        path,
        force: output.force(),
        folder: false,
        model: checkpoint.path(),
    });
    target.as_ref().map_or(Ok(()), Target::check)?;
    let mut texts = arguments.text.clone();
    if let Some(file) = &arguments.texts {
        texts.extend(read_text(file)?.lines().map(str::to_string));
    }
    let tokenizer = checkpoint.tokenizer()?;
    let (ids, cut) = encoded(&tokenizer, &texts, config.max_positions)?;
    if cut > 0 {
        output.note(format!(
            "warning: {cut} texts are longer than {} tokens and lose what is behind",
            config.max_positions
        ));
    }
    let device = open_device(global, output)?;
    let pass = Pass { device: &device, compute: compute(global, &device)? };
    let model = load_model(global, &device, &checkpoint, pass.compute, &[], output)?;
    let start = Instant::now();
    let rows: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let found = model.embeddings(&pass, &rows, &mut |done, all| {
        output.progress("embedding", done, all);
    })?;
    let width = config.hidden_size;
    let embeddings: Vec<&[f32]> = found.chunks_exact(width).collect();
    let mut json = json!({
        "schema": 1, "model": arguments.model, "texts": texts, "width": width, "out": arguments.out, "device": device.name(),
        "compute": pass.compute.name(), "seconds": start.elapsed().as_secs_f64(),
    });
    match target {
        Some(target) => {
            let bytes: Vec<u8> = bytemuck::cast_slice(&found).to_vec();
            let data = Box::new(move || Ok(bytes.clone()));
            let shape = vec![texts.len(), width];
            let name = "embeddings".into();
            let tensor = NewTensor { name, dtype: DType::F32, shape, data };
            target.write(|path| write_file(path, vec![tensor]))?;
        }
        None => json["embeddings"] = json!(embeddings),
    }
    output.json(&json)?;
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let cosine = |a: &[f32], b: &[f32]| {
        product(a, b) / (product(a, a) * product(b, b)).sqrt().max(f64::MIN_POSITIVE)
    };
    let mut lines = vec![vec!["like the first".to_string(), "text".to_string()]];
    lines.extend(embeddings.iter().zip(&texts).map(|(embedding, text)| {
        let shown: String = text.chars().take(80).collect();
        vec![format!("{:.4}", cosine(embeddings[0], embedding)), shown]
    }));
    output.text(&table(&lines));
    report_device(global, &device, output, start.elapsed())
}

/// Texts as the encoder reads them, with the tokens that its tokenizer puts around each; how many lost their ends to fit its context.
fn encoded(
    tokenizer: &Tokenizer,
    texts: &[String],
    context: usize,
) -> Result<(Vec<Vec<u32>>, usize)> {
    let (mut all, mut cut) = (Vec::with_capacity(texts.len()), 0);
    for text in texts {
        let (ids, lost) = tokenizer.encode_within(text, context)?;
        cut += usize::from(lost > 0);
        all.push(ids);
    }
    Ok((all, cut))
}
