//! `lopper bench model`: llama-bench's rows, with its names, for a model that Lopper runs.

use serde_json::{Map, Value, json};

use super::rows::Rows;
use crate::cli::Global;
use crate::cli::session::{CacheArguments, compute, load_model, open_device, open_language_model};
use crate::error::{Error, Result};
use crate::gpu::backend_name;
use crate::measure::speed::model::{Speed, Test, speed};
use crate::model::{Checkpoint, Pass, Weights, check_cache};

/// A row per test.
pub(super) fn rows(
    global: &Global,
    (model, cache): (&str, &CacheArguments),
    tests: &[Test],
    repetitions: usize,
    rows: &mut Rows<'_>,
) -> Result<()> {
    let output = rows.output;
    let checkpoint = open_language_model("MODEL", model, output)?;
    let why = "prompts and new tokens are measured in one text";
    checkpoint.config().without_encoder("bench model", why)?;
    let limit = checkpoint.config().max_positions;
    if let Some(test) = tests.iter().find(|test| test.n_depth + test.n_prompt + test.n_gen > limit)
    {
        return Err(Error::Argument {
            argument: "-p / -n / -d".into(),
            expected: format!("at most the model's context of {limit} tokens"),
            found: test.name(),
        });
    }
    let device = open_device(global, output)?;
    let compute = compute(global, &device)?.with_cache(cache.cache_type);
    check_cache(checkpoint.config(), compute)?;
    let cache_type = compute.cache_type().name;
    let of_test = |test: &Test| {
        let generated = if test.n_gen > 0 { test.sequences } else { 0 };
        [test.n_prompt * test.sequences, generated]
    };
    let mut tokens: Vec<usize> = tests.iter().flat_map(of_test).collect();
    tokens.retain(|count| *count > 0);
    let loaded = load_model(global, &device, &checkpoint, compute, &tokens, output)?;
    let pass = Pass { device: &device, compute };
    let adapter = device.gpu().map(|gpu| gpu.adapter());
    let began = std::time::Instant::now();
    for (done, test) in tests.iter().enumerate() {
        output.progress("measuring", done, tests.len());
        let started = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let Speed { seconds, dispatches } = speed(&loaded, &pass, *test, repetitions, began)?;
        let ns: Vec<f64> = seconds.iter().map(|s| s * 1e9).collect();
        let ts: Vec<f64> = seconds.iter().map(|s| test.tokens() as f64 / s).collect();
        let ((avg_ns, stddev_ns), (avg_ts, stddev_ts)) = (mean(&ns), mean(&ts));
        let row = json!({
            "build_commit": "lopper", "build_number": env!("CARGO_PKG_VERSION"),
            "cpu_info": std::env::consts::ARCH,
            "gpu_info": adapter.map_or("", |a| a.info.name.as_str()),
            "driver": adapter.map_or_else(String::new, |a| a.driver()),
            "backends": adapter.map_or("cpu", |a| backend_name(a.info.backend)),
            "model_filename": model,
            "model_type": format!("{} {:.1}M {}", checkpoint.config().family.name, checkpoint.parameters() as f64 / 1e6, main_type(&checkpoint)),
            "model_size": checkpoint.total_stored_bytes(), "model_n_params": checkpoint.parameters(),
            "compute": pass.compute.name(), "type_k": cache_type, "type_v": cache_type,
            "n_prompt": test.n_prompt, "n_gen": test.n_gen, "n_depth": test.n_depth, "n_sequences": if test.backward { test.sequences } else { 0 },
            "n_parallel": if test.backward { 1 } else { test.sequences }, "test": test.name(),
            "test_time": started,
            "avg_ns": avg_ns.round() as u64, "stddev_ns": stddev_ns.round() as u64,
            "avg_ts": avg_ts, "stddev_ts": stddev_ts,
            "samples_ns": ns.iter().map(|ns| ns.round() as u64).collect::<Vec<_>>(), "samples_ts": ts,
            // The first token of a prompt alone is there when its pass ends.
            "time_to_first_token_ms": (test.n_prompt > 0 && !test.backward).then_some(avg_ns / 1e6),
            "dispatches_per_token": dispatches,
            "vram_peak": device.gpu().map_or(0, |gpu| gpu.memory().1),
        });
        match row {
            Value::Object(row) => rows.push(row)?,
            _ => unreachable!("an object literal is an object"),
        }
    }
    output.progress("measuring", tests.len(), tests.len());
    Ok(())
}

/// A batch from `10x64`: sequences and tokens of each.
pub(super) fn batch(text: &str) -> std::result::Result<(usize, usize), String> {
    let numbers = text.split_once('x').and_then(|(sequences, length)| {
        Some((sequences.parse::<usize>().ok()?, length.parse::<usize>().ok()?))
    });
    match numbers {
        Some((sequences, length)) if sequences > 0 && length > 1 => Ok((sequences, length)),
        _ => Err("sequences x tokens, two tokens or more: 10x64".into()),
    }
}

/// The stored type that most of the bytes have.
fn main_type(checkpoint: &Checkpoint) -> String {
    let mut bytes = std::collections::BTreeMap::new();
    for spec in checkpoint.specs() {
        *bytes.entry(checkpoint.stored_type(spec)).or_insert(0) += checkpoint.stored_bytes(spec);
    }
    bytes.into_iter().max_by_key(|(_, count)| *count).map_or_else(String::new, |(name, _)| name)
}

/// Mean and sample standard deviation.
fn mean(samples: &[f64]) -> (f64, f64) {
    let count = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / count;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (mean, if samples.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 })
}

/// llama-bench's columns.
pub(super) fn markdown(rows: &[Map<String, Value>]) -> String {
    let head = ["model", "size", "params", "backend", "test", "t/s"];
    let mut lines = vec![
        format!("| {} |", head.join(" | ")),
        "| --- | ---: | ---: | --- | ---: | ---: |".into(),
    ];
    let text = |row: &Map<String, Value>, key: &str| {
        row.get(key).and_then(Value::as_str).unwrap_or_default().to_string()
    };
    let number = |row: &Map<String, Value>, key: &str| {
        row.get(key).and_then(Value::as_f64).unwrap_or_default()
    };
    for row in rows {
        lines.push(format!(
            "| {} | {:.2} MiB | {:.2} M | {} | {} | {:.2} ± {:.2} |",
            text(row, "model_type"),
            number(row, "model_size") / f64::from(1 << 20),
            number(row, "model_n_params") / 1e6,
            text(row, "backends"),
            text(row, "test"),
            number(row, "avg_ts"),
            number(row, "stddev_ts"),
        ));
    }
    lines.join("\n") + "\n"
}
