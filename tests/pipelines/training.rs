//! The commands that train: what they write, and what they refuse.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;
use tempfile::TempDir;

use crate::numbers::{Known, Within, assert_close};
use crate::program::{NANO, has_fields, lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("tune":
        factors_are_merged_and_kept, what_is_told, a_course_that_diverges_stops, bad_input_is_refused,
        the_best_is_taken, adapters_beside_layers)
}

const TEXT: &str = "The people of the country. ";

/// A folder with a text.
fn folder() -> Result<TempDir, Failed> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("text.txt"), TEXT.repeat(60))?;
    Ok(folder)
}

const SHORT: &str = "--data text.txt --length 16 --batch 2 --held-out 2 --no-eval --formats packed";

/// Told losses.
fn losses(told: &Value, list: &str) -> Vec<f64> {
    let list = told[list].as_array().into_iter().flatten();
    list.filter_map(|one| one["loss"].as_f64()).collect()
}

/// The adapter of an artifact and its merged model say the same, and another run goes on from it.
fn factors_are_merged_and_kept() -> Result<(), Failed> {
    let folder = folder()?;
    let at = folder.path();
    let tune = format!("tune {NANO} {SHORT} --rank 3 --rate 1e-2 --steps 8");
    succeeds(at, &format!("{tune} --out a"))?;
    let told = read_json(at.join("a/training.json"))?;
    let looks = losses(&told, "looks");
    assert!(looks.last() < looks.first(), "{looks:?}");
    // Seven layers of each block: rank * (inputs + outputs).
    assert_eq!(told["learned"].as_u64(), Some(3 * 2432), "{told}");
    let config = read_json(at.join("a/adapter/adapter_config.json"))?;
    assert_eq!(config["r"].as_u64(), Some(3));
    // Without a step on text, the adapter read again merges to the same weights.
    let again = "--begin a/adapter --steps 1 --rate 1e-30 --warmup 0";
    succeeds(at, &format!("tune {NANO} {SHORT} {again} --out b"))?;
    let tokens = "--tokens 5,6,7,8 --out";
    succeeds(at, &format!("logits a/packed {tokens} a.safetensors"))?;
    succeeds(at, &format!("logits b/packed {tokens} b.safetensors"))?;
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| std::fs::read(at.join(name)));
    assert!(a? == b?, "one adapter, one model");
    Ok(())
}

fn what_is_told() -> Result<(), Failed> {
    let folder = folder()?;
    let at = folder.path();
    let distil = format!("distill {NANO} --teacher {NANO} --method scales {SHORT} --steps 4");
    let none = lopper(at, &format!("{distil} --out a --device cpu"))?;
    none.refused(2, "include & a weight with scales");
    succeeds(at, &format!("quantize {NANO} --bits 3 --no-eval --formats packed --out q"))?;
    let distil = format!("distill q --teacher {NANO} --method scales {SHORT} --steps 4");
    succeeds(at, &format!("{distil} --out a"))?;
    let told = read_json(at.join("a/training.json"))?;
    has_fields(&told, "learned sources steps looks held_out_tokens lost");
    has_fields(&told["steps"][0], "step tokens loss rate norm seconds");
    assert_eq!(losses(&told, "steps").len(), 4);
    // The file is as large as it was.
    let bytes = |name: &str| Path::new(&at.join(name)).metadata().map(|about| about.len());
    assert_eq!(bytes("a/packed/model.safetensors")?, bytes("q/packed/model.safetensors")?);
    Ok(())
}

/// Not merged: PEFT's logits, and other commands take it too.
fn adapters_beside_layers() -> Result<(), Failed> {
    let folder = folder()?;
    let at = folder.path();
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fixtures/peft");
    let known = Known::open(&format!("{adapter}/expected.safetensors"))?;
    let ids = known.words("input_ids")?.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    succeeds(at, &format!("logits {NANO} --lora {adapter} --tokens {ids} --out a.safetensors"))?;
    let found = Known::open(&at.join("a.safetensors").to_string_lossy())?.floats("logits")?;
    assert_close("logits", &found, &known.floats("logits")?, Within::Norm(1e-5));
    succeeds(at, &format!("generate {NANO} --lora {adapter} --prompt The -n 2"))?;
    let eval = "eval --ppl text.txt --ctx 32 --json=-";
    let value = |model: &str| -> Result<Value, Failed> {
        Ok(succeeds(at, &format!("{eval} {model}"))?.json()?["perplexity"]["value"].take())
    };
    assert_ne!(value(NANO)?, value(&format!("{NANO} --lora {adapter}"))?);
    let other = lopper(at, &format!("{eval} embedded:tiny-llama --lora {adapter} --device cpu"))?;
    other.refused(2, "lora_A & expected");
    Ok(())
}

/// Nothing of what is not finite is kept: the work folder has the last checkpoint.
fn a_course_that_diverges_stops() -> Result<(), Failed> {
    let folder = folder()?;
    let at = folder.path();
    let tune = format!("tune {NANO} --method full {SHORT} --rate 1e30 --clip 0 --warmup 0");
    let run = lopper(at, &format!("{tune} --steps 9 --checkpoint-every 1 --out a --device cpu"))?;
    run.refused(2, "training diverged & at step & the checkpoint of step");
    assert!(!at.join("a").exists() && at.join("a.work").exists(), "{run}");
    Ok(())
}

fn bad_input_is_refused() -> Result<(), Failed> {
    let folder = folder()?;
    let at = folder.path();
    std::fs::write(at.join("rows.jsonl"), "{\"text\": \"One.\"}\n\n{\"text\": \"Two.\"}\n")?;
    std::fs::write(at.join("short.txt"), "One.")?;
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fixtures/peft");
    let cases = [
        (format!("tune embedded:tiny-llama {SHORT} --begin {adapter}"), "lora_A & expected"),
        (format!("tune {NANO} --data rows.jsonl --length 16"), "rows.jsonl & line 2"),
        (format!("tune {NANO} --data short.txt --length 64"), "short.txt & a row of 64 tokens"),
        (format!("tune {NANO} --data gone.txt"), "gone.txt"),
        (format!("tune {NANO} {SHORT} --rate 0"), "--rate & above 0"),
        (format!("tune {NANO} {SHORT} --rank 0"), "--rank & 1 to 4096"),
        (format!("tune {NANO} {SHORT} --optimizer-bits 4"), "8 or 32"),
        (format!("tune {NANO} {SHORT} --dropout 0.99999999"), "--dropout"),
        (format!("tune {NANO} {SHORT} --clip 1e-50"), "--clip"),
        (format!("tune {NANO} {SHORT} --epsilon 1e-50"), "--epsilon"),
        (format!("tune {NANO} {SHORT} --beta2 0.99999999"), "--beta2"),
        (format!("tune {NANO} {SHORT} --warmup 18446744073709551615"), "--warmup"),
        (format!("tune {NANO} --data text.txt --batch 18446744073709551615"), "--batch"),
        (
            format!("tune {NANO} --data text.txt --length 16 --batch 4000"),
            "--batch & the rows that there are",
        ),
        (format!("tune {NANO} {SHORT} --begin {adapter} --dropout 0.1"), "--begin"),
        (format!("tune {NANO} --data text.txt --held-out 0 --patience 2"), "--patience"),
        (
            format!(
                "distill {NANO} --teacher {NANO} {SHORT} --divergence jensen-shannon --mixture 1e-50"
            ),
            "--mixture",
        ),
        (format!("tune {NANO} {SHORT} --include x*"), "--include & match none"),
        (
            format!("tune {NANO} {SHORT} --method full --rank 3"),
            "--rank is a flag of --method lora",
        ),
        (format!("distill {NANO} {SHORT}"), "--teacher"),
        (format!("distill {NANO} --teacher gone {SHORT}"), "gone"),
        (format!("distill {NANO} --teacher {NANO} {SHORT} --temperature 0"), "--temperature"),
    ];
    for (arguments, said) in cases {
        let run = lopper(at, &format!("{arguments} --steps 2 --out a --device cpu"))?;
        run.refused(2, said);
        assert!(!at.join("a").exists() && !at.join("a.work").exists(), "{arguments}");
    }
    Ok(())
}

/// Rates that are too high for good: the weights of the best look are what is left.
fn the_best_is_taken() -> Result<(), Failed> {
    let folder = folder()?;
    let at = folder.path();
    let flags = "--rate 3e-2 --schedule constant --warmup 0 --steps 40 --evaluate-every 2";
    let tune = format!("tune {NANO} --method full {SHORT} {flags} --patience 3 --out a");
    succeeds(at, &tune)?;
    let told = read_json(at.join("a/training.json"))?;
    let looks = losses(&told, "looks");
    let least = looks.iter().copied().fold(f64::INFINITY, f64::min);
    let best = looks.iter().position(|look| *look <= least).ok_or("a look")?;
    assert!(looks.len() < 21, "it stops early: {looks:?}");
    assert_eq!(told["best"].as_u64(), Some(2 * best as u64), "{looks:?}");
    Ok(())
}
