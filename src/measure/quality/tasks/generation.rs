//! Answers by generation: greedy, until a text that ends it, then compared with the target.

use serde_json::json;

use super::encode::{Prompt, asked, fit};
use super::{Event, Options, Setup};
use crate::data::{Extract, Generated, Normalize, Task};
use crate::error::{Error, Result};
use crate::measure::quality::outcome::{Asked, Outcome};
use crate::model::{Model, Sampling, generate_batch, paired_row};
use crate::text::{DecodeStream, StopStrings};

/// Answers that are generated side by side, at most.
const BATCH: usize = 16;

/// Generates every question's answer.
pub(super) fn answers(
    setup: &Setup<'_>,
    task: &Task,
    how: &Generated,
    fronts: &[String],
    options: &Options,
    tell: &mut dyn FnMut(Event<'_>) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let items = asked(task, options);
    let (mut prompts, mut texts) = (Vec::new(), Vec::new());
    for (item, front) in items.iter().zip(fronts) {
        // A space in front of the answer is the model's to give, as in encoding a continuation.
        let text = format!("{front}{}", item.query);
        let text = text.trim_end_matches(' ');
        prompts.push(match setup.tokenizer.decoder_start {
            None => setup.tokenizer.encode_with_bos(text, options.add_bos)?,
            Some(_) => setup.tokenizer.encode_source(text)?,
        });
        texts.push(text.into());
    }
    let context = setup.models.context();
    let asked = prompts.iter_mut().enumerate();
    let asked = asked.map(|(question, tokens)| Prompt { question, tokens, behind: how.max_tokens });
    let (cut, warning) = fit(task, options, context, asked)?;
    if let Some(warning) = warning {
        tell(Event::Warning(warning))?;
    }
    let until = json!({"until": how.stop, "max_gen_toks": how.max_tokens, "do_sample": false});
    let mut outcomes = Vec::with_capacity(items.len());
    let mut generated: Vec<String> = Vec::with_capacity(items.len());
    let fit = rows_at_once(setup, &prompts, how)?;
    let batch = options.batching.batch.unwrap_or(BATCH).clamp(1, BATCH);
    for prompts in prompts.chunks(batch.min(fit)) {
        tell(Event::Progress(&task.name, generated.len(), items.len()))?;
        generated.extend(continuations(setup, prompts, how)?);
    }
    for (index, ((item, text), asked)) in items.iter().zip(generated).zip(texts).enumerate() {
        let answer = extract(&text, &how.extract)?;
        let equal = |text: &str| normalized(text, &how.normalize);
        outcomes.push(Outcome {
            item: index,
            answer: None,
            target: item.target().into(),
            pick: None,
            pick_norm: None,
            choices: Vec::new(),
            correct: equal(&answer) == equal(item.target()),
            correct_norm: None,
            generated: Some(text),
            asked: Asked {
                doc: item.doc.clone(),
                arguments: vec![(asked, until.clone())],
                cut: cut[index],
            },
        });
    }
    tell(Event::Progress(&task.name, items.len(), items.len()))?;
    Ok(outcomes)
}

/// Answers whose caches fit one binding each and a quarter of the memory that is left: at least one.
fn rows_at_once(setup: &Setup<'_>, prompts: &[Vec<u32>], how: &Generated) -> Result<usize> {
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1) + how.max_tokens;
    let ty = setup.pass.compute.cache_type();
    let (mut all, mut largest) = (0, 1);
    for config in setup.models.models().map(Model::config) {
        for block in &config.blocks {
            let width = block.kv_heads * config.head_dim;
            let bytes = longest as u64 * ty.bytes_per_token(width, config.head_dim)?;
            (all, largest) = (all + bytes, largest.max(bytes / 2));
        }
    }
    let device = setup.pass.device;
    let rows = (device.spare_bytes() / 4 / all.max(1)).min(device.max_tensor_bytes() / largest);
    Ok(rows.clamp(1, BATCH as u64) as usize)
}

/// What is generated behind each prompt, up to the first stop text.
fn continuations(setup: &Setup<'_>, prompts: &[Vec<u32>], how: &Generated) -> Result<Vec<String>> {
    let tokenizer = setup.tokenizer;
    let config = setup.models.base().config();
    // What an encoder reads, and the token that the decoder begins with.
    let width = prompts.iter().map(Vec::len).max().unwrap_or(0) + 1;
    let pairs = prompts.iter().map(|prompt| paired_row(config, prompt, &[], width));
    let pairs: Option<Vec<Vec<u32>>> = config.encoder.map(|_| pairs.collect());
    let rows: Vec<&[u32]> = pairs.as_deref().unwrap_or(prompts).iter().map(Vec::as_slice).collect();
    let mut texts: Vec<(DecodeStream<'_>, StopStrings, String)> = rows
        .iter()
        .map(|_| (tokenizer.decode_stream(true), StopStrings::new(&how.stop), String::new()))
        .collect();
    let ends = |row: usize, token: u32| {
        crate::interrupt::check()?;
        if tokenizer.is_eos(token) {
            return Ok(true);
        }
        let (stream, stops, text) = &mut texts[row];
        text.push_str(&stops.push(&stream.push(token)?));
        Ok(stops.found())
    };
    let (models, most) = (setup.models.clone(), how.max_tokens);
    generate_batch(models, setup.pass, &rows, most, Sampling::GREEDY, ends)?;
    let mut whole = Vec::with_capacity(texts.len());
    for (mut stream, mut stops, text) in texts {
        whole.push(text + &stops.push(&stream.finish()?) + &stops.finish());
    }
    Ok(whole)
}

/// The answer in a generated text.
pub fn extract(text: &str, how: &Extract) -> Result<String> {
    let answer = match how {
        Extract::Whole => text,
        Extract::After(marker) => text.rsplit_once(marker.as_str()).map_or("", |(_, end)| end),
        Extract::Pattern(pattern) => {
            let pattern = regex::Regex::new(pattern).map_err(|_| Error::Argument {
                argument: "answer_pattern".into(),
                expected: "a regular expression".into(),
                found: pattern.clone(),
            })?;
            let found = pattern.captures_iter(text).last();
            let group = found.and_then(|found| found.get(1).or(found.get(0)));
            group.map_or("", |group| group.as_str())
        }
    };
    Ok(answer.trim().to_string())
}

/// A text with what does not count made equal, in a fixed order: case, numbers, punctuation, articles, spaces.
pub fn normalized(text: &str, how: &[Normalize]) -> String {
    let mut text = text.trim().to_string();
    if how.contains(&Normalize::Case) {
        text = text.to_lowercase();
    }
    if how.contains(&Normalize::Numbers) {
        text = text.replace([',', '$', '€', '£'], "");
        text = text.trim_end_matches('.').to_string();
    }
    if how.contains(&Normalize::Punctuation) {
        text.retain(|c| !c.is_ascii_punctuation());
    }
    if how.contains(&Normalize::Articles) {
        let kept = text.split(' ').filter(|word| {
            !["a", "an", "the"].iter().any(|article| word.eq_ignore_ascii_case(article))
        });
        text = kept.collect::<Vec<_>>().join(" ");
    }
    if how.contains(&Normalize::Spaces) {
        text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    text.trim().to_string()
}
