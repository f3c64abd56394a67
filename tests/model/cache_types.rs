//! The types of the key-value cache: what each loses, that passes of few tokens read what passes of many do, and what cannot be
//! cached.

use libtest_mimic::{Failed, Trial};
use lopper::data::read_text;
use lopper::device::Device;
use lopper::gpu::Options;
use lopper::kernels::kv::{CACHE_TYPES, CacheType};
use lopper::model::{
    Cache, Checkpoint, Compute, Model, Outline, Pass, Sampling, Weights, check_cache, generate,
};
use lopper::tensor::DType;
use serde_json::Value;

use crate::machine::{device, gpu_trial, on_each};
use crate::models::{load, speech_perplexity};
use crate::numbers::relative_error;
use crate::program::{NANO, SHORT, TEXT, TINY, lopper, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("cache_types": sizes, what_cannot_be_cached, reports);
    trials.push(Trial::test("cache_types::losses", || losses(&Device::Cpu, 1024)));
    let on_gpu = || losses(&device(Options::default())?, 512);
    trials.push(gpu_trial("cache_types::losses_on_the_gpu".into(), on_gpu));
    trials.extend(on_each("cache_types::plain_numbers_give_the_same_text", same_text));
    trials.extend(on_each("cache_types::few_tokens_read_what_many_do", few_and_many));
    trials.extend(on_each("cache_types::recorded_steps", recorded_steps));
    trials
}

fn with_cache(name: &str) -> Compute {
    Compute::F32.with_cache(CacheType::named(name))
}

/// Bytes of a token's keys and values, where heads are of whole groups of 32 columns, and of 16; and of a pass over 2048 tokens of
/// two heads of 32 columns, which decodes what is not of the activations' type.
fn sizes() -> Result<(), Failed> {
    let bytes = |name: &str, width, head_dim| {
        let ty = CacheType::named(name).ok_or("a type of cache")?;
        Ok::<u64, Failed>(ty.bytes_per_token(width, head_dim)?)
    };
    for (name, of_1024, of_48) in [
        ("f32", 8192, 384),
        ("f16", 4096, 192),
        ("q8_0", 2176, 144),
        ("q4_1", 1280, 88),
        ("q4_0", 1152, 80),
    ] {
        assert_eq!(bytes(name, 1024, 128)?, of_1024, "{name}");
        // Codes are padded to 32 columns, scales of two groups to a word.
        assert_eq!(bytes(name, 48, 48)?, of_48, "{name}");
    }
    assert!(CacheType::named("q3_0").is_none());
    let outline = Outline::of(&Checkpoint::open(TINY)?)?;
    for (name, each) in [("f32", 512), ("f16", 256 + 512), ("q8_0", 136 + 512), ("q4_0", 72 + 512)]
    {
        let bytes = outline.evaluation_cache_bytes(256, with_cache(name))?;
        assert_eq!(bytes, 2048 * each, "{name}");
    }
    Ok(())
}

/// Heads that no group divides; columns that are no eights.
fn what_cannot_be_cached() -> Result<(), Failed> {
    let config = Checkpoint::open("assets/fixtures/biased")?.config().clone();
    for ty in &CACHE_TYPES {
        let checked = check_cache(&config, Compute::F32.with_cache(Some(ty)));
        match (ty.name, checked) {
            ("f32" | "f16", Ok(())) => {}
            (name, Err(error)) => {
                let said = error.to_string();
                let wanted = [name, "--cache-type", "multiple of 16", "head_dim 10"];
                assert!(wanted.iter().all(|text| said.contains(text)), "{said}");
            }
            (name, Ok(())) => return Err(format!("{name} of heads of 10 columns").into()),
        }
    }
    Ok(())
}

/// The program names the type that it used, and refuses what is none.
fn reports() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = |flags: &str| -> Result<Value, Failed> {
        succeeds(&folder, &format!("eval {NANO} --ppl {TEXT} {SHORT} {flags} --json=-"))?.json()
    };
    let (plain, small) = (run("")?, run("--cache-type q4_0")?);
    assert_eq!((&plain["cache_type"], &small["cache_type"]), (&"f32".into(), &"q4_0".into()));
    let value = |json: &Value, field: &str| json[field]["value"].as_f64().unwrap_or(f64::NAN);
    assert!(value(&plain, "perplexity") < value(&small, "perplexity"), "{plain} {small}");
    // Beside itself, the parent keeps its cache as it is.
    let beside = run(&format!("--base {NANO} --cache-type q4_0"))?;
    for (field, alone) in [("base_perplexity", &plain), ("perplexity", &small)] {
        assert_eq!(value(&beside, field), value(alone, "perplexity"), "{field}");
    }
    let generated = format!("generate {NANO} --prompt The -n 3 --cache-type q8_0 --json=-");
    assert_eq!(succeeds(&folder, &generated)?.json()?["cache_type"], "q8_0");
    let refused = lopper(&folder, &format!("eval {NANO} --ppl {TEXT} --cache-type q3_0"))?;
    refused.refused(2, "--cache-type & q3_0 & q8_0");
    Ok(())
}

/// Perplexity moves by as much as the type loses: measured at 4096 tokens, q8_0 -0.02 %, q4_1 +0.5 %, q4_0 +3.6 %.
fn losses(device: &Device, tokens: usize) -> Result<(), Failed> {
    let weights = Checkpoint::open(TINY)?;
    let of = |compute: Compute| speech_perplexity(&Pass { device, compute }, &weights, tokens);
    let plain = of(Compute::F32)?;
    for (name, most) in
        [("f32", 0.0), ("f16", 0.0002), ("q8_0", 0.001), ("q4_1", 0.03), ("q4_0", 0.06)]
    {
        let change = of(with_cache(name))? / plain - 1.0;
        assert!(change.abs() <= most, "{name}: {change}");
        assert!(name == "f32" || change != 0.0, "{name} is not used");
    }
    Ok(())
}

/// The likeliest tokens behind a prompt, whatever plain numbers keys and values are kept in.
fn same_text(device: &Device) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(TINY)?;
    let model = load(device, &checkpoint)?;
    let prompt = checkpoint.tokenizer()?.encode("The President of the United States", true)?;
    let text = |compute: Compute| {
        let pass = Pass { device, compute };
        let ends = |_| false;
        generate(&model, &pass, &prompt, 20, Sampling::GREEDY, ends, |_| Ok(true))
    };
    let plain = text(Compute::F32)?.tokens;
    for name in ["f32", "f16"] {
        assert_eq!(text(with_cache(name))?.tokens, plain, "{name}");
    }
    Ok(())
}

/// The last of these tokens come one by one, three at a time, and all at once, behind as many others as attention is split
/// for: their logits are the same but for roundings, some of which move a code.
fn few_and_many(device: &Device) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(NANO)?;
    let model = load(device, &checkpoint)?;
    let mut ids = checkpoint.tokenizer()?.encode(&read_text(TEXT)?, false)?;
    ids.truncate(300);
    let whole = logits(&model, device, Compute::F32, &ids, &[300])?;
    for (name, most) in
        [("f32", 1e-5), ("f16", 1e-4), ("q8_0", 5e-3), ("q4_1", 0.05), ("q4_0", 0.05)]
    {
        let compute = with_cache(name);
        let at_once = logits(&model, device, compute, &ids, &[300])?;
        for steps in [&[294, 1, 1, 1, 1, 1, 1][..], &[291, 3, 3, 3]] {
            let error = relative_error(&logits(&model, device, compute, &ids, steps)?, &at_once);
            assert!(error <= most, "{name}, {steps:?}: {error}");
        }
        let lost = relative_error(&at_once, &whole);
        assert!((name == "f32") == (lost == 0.0), "{name}: {lost}");
    }
    Ok(())
}

/// What is generated by recorded steps is what passes of a token each make, from a depth at which attention is whole to one at
/// which it is split.
fn recorded_steps(device: &Device) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(NANO)?;
    let model = load(device, &checkpoint)?;
    let mut ids = checkpoint.tokenizer()?.encode(&read_text(TEXT)?, false)?;
    ids.truncate(50);
    for ty in &CACHE_TYPES {
        let compute = Compute::F32.with_cache(Some(ty));
        let pass = Pass { device, compute };
        let greedy = Sampling::GREEDY;
        let made = generate(&model, &pass, &ids, 24, greedy, |_| false, |_| Ok(true))?.tokens;
        let mut cache = Cache::new(device, model.config(), 1, ids.len() + made.len(), compute)?;
        let mut input = ids.clone();
        for (place, token) in made.iter().enumerate() {
            let normed = model.hidden(&pass, &input, &cache)?;
            let logits = model.head(&pass, &normed, input.len() - 1..input.len())?;
            let logits = device.read(&logits)?.to_f32();
            let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(logits[*token as usize], highest, "{}, token {place}", ty.name);
            cache.advance(device, input.len())?;
            input = vec![*token];
        }
    }
    Ok(())
}

/// The logits of the last token, which comes in the last of passes over so many.
fn logits(
    model: &Model,
    device: &Device,
    compute: Compute,
    ids: &[u32],
    steps: &[usize],
) -> Result<Vec<f32>, Failed> {
    let pass = Pass { device, compute };
    let mut cache = Cache::new(device, model.config(), 1, ids.len(), compute)?;
    let (mut rest, mut found) = (ids, None);
    for step in steps {
        let (now, later) = rest.split_at(*step);
        let normed = model.hidden(&pass, now, &cache)?;
        found = Some(device.read(&model.head(&pass, &normed, step - 1..*step)?)?);
        cache.advance(device, *step)?;
        rest = later;
    }
    let logits = found.ok_or("a pass")?;
    assert_eq!(logits.dtype, DType::F32);
    Ok(logits.to_f32())
}
