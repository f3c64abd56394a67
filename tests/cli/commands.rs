//! The program as a script sees it: flags, exit codes, JSON fields, files, what is left behind.

use std::path::{Path, PathBuf};

use libtest_mimic::{Failed, Trial};
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;
use lopper::model::Checkpoint;
use serde_json::Value;
use tempfile::TempDir;

use crate::machine::gpu_trial;
use crate::program::{
    NANO, Run, SHORT, TEXT, TINY, command, has_fields, lopper, read_json, sha256, snapshot,
    succeeds,
};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("cli":
        devices, inspect, eval, generate, logits, compress, recipe_printed_is_recipe_read,
        dry_run_writes_nothing, exports_open_again, gguf_rounding_is_announced, without_adapter);
    trials.push(gpu_trial("cli::gpu".into(), on_gpu));
    trials
}

/// The perplexity that `eval` gives a model of the folder.
fn perplexity(folder: impl AsRef<Path>, model: &str) -> Result<f64, Failed> {
    let eval = format!("eval {model} --ppl {TEXT} {SHORT} --json=-");
    let run = succeeds(folder, &eval)?;
    let value = run.json()?["perplexity"]["value"].as_f64();
    value.ok_or_else(|| format!("no perplexity in {}", run.out).into())
}

fn devices() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let run = lopper(&folder, "devices --json=-")?;
    let json = run.json()?;
    let list = json.as_array().ok_or("devices gives an array")?;
    assert!(!list.is_empty() || !crate::machine::has_gpu());
    for device in list {
        has_fields(device, "name backend type driver tier limits features");
    }
    for wanted in ["nonesuch", "nonesuch#1", "#99"] {
        let none = lopper(&folder, &format!("devices --adapter {wanted} --json=-"))?;
        assert!(none.json()? == Value::Array(vec![]), "{wanted}: {none}");
    }
    // Of several alike each by its number.
    for (index, device) in list.iter().enumerate() {
        let one = lopper(&folder, &format!("devices --adapter #{} --json=-", index + 1))?.json()?;
        assert!(one[0]["name"] == device["name"] && one[1].is_null(), "{one}");
    }
    Ok(())
}

fn inspect() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let json = succeeds(&folder, &format!("inspect {TINY} --json=-"))?.json()?;
    has_fields(&json, "schema model family parameters bytes bytes_f16");
    let tensors = json["tensors"].as_array().ok_or("no tensors")?;
    let sum: u64 = tensors.iter().filter_map(|t| t["bytes"].as_u64()).sum();
    assert!(
        Some(sum) == json["bytes"].as_u64() && tensors.len() == 57 && json["layers"] == 6,
        "{json}"
    );
    // A file instead of standard output, which then belongs to the person.
    let run = succeeds(&folder, &format!("inspect {TINY} --json=out.json"))?;
    let file = read_json(folder.path().join("out.json"))?;
    assert!(file == json && run.out.contains("lm_head.weight"), "{run}");
    Ok(())
}

fn eval() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let arguments = format!("eval {TINY} --ppl {TEXT} --ctx 256 --max-tokens 8192 --json=-");
    let json = succeeds(&folder, &arguments)?.json()?;
    has_fields(&json, "schema model perplexity");
    let figure = &json["perplexity"];
    has_fields(figure, "value stderr ctx tokens_scored convention");
    let value = figure["value"].as_f64().unwrap_or(f64::NAN);
    assert!((value - 57.70).abs() <= 0.05, "perplexity {value}");
    assert!(
        figure["tokens_scored"] == 8160 && figure["ctx"] == 256 && figure["convention"] == "lopper",
        "{figure}"
    );
    // llama-perplexity's text begins with BOS where the vocabulary asks for it: a token of the first window.
    let (words, config) = ("It was the best of times.", "m/tokenizer_config.json");
    std::fs::write(folder.path().join("t.txt"), words)?;
    succeeds(&folder, &format!("export {NANO} --format hf --out m"))?;
    let mut asks = read_json(folder.path().join(config))?;
    asks["add_bos_token"] = true.into();
    std::fs::write(folder.path().join(config), asks.to_string())?;
    let model = Checkpoint::open(&folder.path().join("m").to_string_lossy())?;
    let ctx = model.tokenizer()?.encode(words, true)?.len();
    let half = format!("eval m --ppl t.txt --ctx {ctx} --convention llama.cpp --json=-");
    let half = succeeds(&folder, &half)?.json()?;
    assert!(half["perplexity"]["tokens_scored"] == ctx - 1 - ctx / 2, "{half}");
    let long = format!("eval {NANO} --ppl {TEXT} --ctx 1024 --max-tokens 1024");
    let long = succeeds(&folder, &long)?;
    assert!(long.err.contains("context of 512"), "{long}");
    Ok(())
}

fn generate() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let greedy = format!("generate {TINY} --prompt People -n 24 --json=-");
    let first = succeeds(&folder, &greedy)?.json()?;
    let second = succeeds(&folder, &greedy)?.json()?;
    let tokens = |json: &Value| json["tokens"].as_array().map_or(0, Vec::len);
    let text = first["text"].as_str().unwrap_or_default();
    assert!(!text.trim().is_empty() && tokens(&first) == 24, "{first}");
    assert_eq!(first["tokens"], second["tokens"]);
    let printed = succeeds(&folder, &greedy.replace(" --json=-", ""))?.out;
    assert_eq!(printed, format!("People{text}\n"));
    let drawn = format!("{greedy} --temperature 1.5 --seed");
    let seven = succeeds(&folder, &format!("{drawn} 7"))?.json()?;
    let eight = succeeds(&folder, &format!("{drawn} 8"))?.json()?;
    assert_ne!(seven["tokens"], eight["tokens"]);
    let none = succeeds(&folder, &greedy.replace("24", "0"))?.json()?;
    assert!(tokens(&none) == 0 && none["text"] == "", "{none}");
    // However many are asked for, the model's context is the limit.
    let endless = format!("generate {NANO} --prompt People -n {}", usize::MAX);
    succeeds(&folder, &endless).map(drop)
}

fn logits() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let arguments = format!("logits {NANO} --tokens 5,6,7 --out l.safetensors");
    succeeds(&folder, &format!("{arguments} --hidden"))?;
    let path = folder.path().join("l.safetensors");
    let file = Safetensors::open(Source::open(&path)?)?;
    let ids = file.get("input_ids").ok_or("no input_ids")?;
    let wanted = [5i64, 6, 7].map(i64::to_le_bytes).concat();
    assert!(ids.shape == [1, 3] && *ids.bytes()? == wanted, "{ids:?}");
    for name in ["logits", "hidden.0", "hidden.1", "hidden.2"] {
        let width = if name == "logits" { 4096 } else { 64 };
        let tensor = file.get(name).ok_or(format!("no {name}"))?;
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.bytes()?);
        let sound = values.iter().all(|v| v.is_finite()) && values.iter().any(|v| *v != 0.0);
        assert_eq!(tensor.shape, [1, 3, width], "{name}");
        assert!(sound, "{name}: {values:?}");
    }
    assert!(file.get("hidden.3").is_none(), "hidden.3");
    succeeds(&folder, &format!("{arguments} --force"))?;
    let again = Safetensors::open(Source::open(&path)?)?;
    let replaced = again.get("hidden.0").is_none() && again.get("logits").is_some();
    assert!(replaced, "--force did not replace the file");
    Ok(())
}

fn compress() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let out = folder.path().join("new/out");
    let mut json = succeeds(&folder, "compress --out new/out --json=-")?.json()?;
    let mark = json.as_object_mut().and_then(|fields| fields.remove("written_by"));
    assert!(mark.is_some_and(|mark| mark.as_str().is_some_and(|by| by.starts_with("lopper"))));
    let manifest = read_json(out.join("manifest.json"))?;
    assert!(json == manifest, "--json differs from the manifest");
    let fields = "schema lopper recipe_sha256 seed device parent stages outputs";
    has_fields(&manifest, fields);
    let stage = &manifest["stages"][0];
    has_fields(stage, "name seconds peak_vram figures");
    let value = |figures: &Value| figures["perplexity"]["value"].as_f64().unwrap_or(f64::NAN);
    let (before, after) = (value(&manifest["parent"]), value(&stage["figures"]));
    assert!(
        (before - 57.70).abs() <= 0.05 && after > before && after <= 61.0,
        "{before} to {after}"
    );
    let recipe = sha256(&std::fs::read(out.join("recipe.toml"))?);
    assert_eq!(manifest["recipe_sha256"], recipe);
    // Every file but the manifest is listed, with its own length and hash.
    let mut files = snapshot(&out)?;
    files.retain(|path, what| what != "folder" && path != Path::new("manifest.json"));
    let outputs = manifest["outputs"].as_array().ok_or("no outputs")?;
    assert!(outputs.len() == files.len(), "{outputs:?}");
    for output in outputs {
        let path = PathBuf::from(output["path"].as_str().unwrap_or_default());
        let bytes = out.join(&path).metadata()?.len();
        let same = output["bytes"] == bytes
            && files.get(&path).is_some_and(|hash| output["sha256"] == **hash);
        assert!(same, "{output}");
    }
    // Refused while it stands there; replaced by --force; a smaller parent shows which of the two it is.
    let stands = snapshot(&folder)?;
    let smaller = format!("quantize {NANO} --no-eval --formats gguf,hf,packed --out new/out");
    let refused = lopper(&folder, &format!("{smaller} --device cpu"))?;
    refused.refused(4, "--force");
    assert!(snapshot(&folder)? == stands, "the old output changed");
    succeeds(&folder, &format!("{smaller} --force"))?;
    let replaced = snapshot(&folder)?;
    let gguf = Path::new("new/out/model.gguf");
    assert_ne!(replaced.get(gguf), stands.get(gguf));
    assert!(replaced.len() == stands.len(), "{replaced:?}");
    Ok(())
}

fn recipe_printed_is_recipe_read() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let flags = format!("quantize {NANO} --bits 5 --grid zero-point --exclude *mlp* {SHORT}");
    let printed = succeeds(&folder, &format!("{flags} --print-recipe"))?.out;
    std::fs::write(folder.path().join("r.toml"), &printed)?;
    let direct = succeeds(&folder, &format!("{flags} --out a --json=-"))?.json()?;
    let by_recipe = succeeds(&folder, "compress r.toml --out b --json=-")?.json()?;
    assert_eq!(direct["outputs"], by_recipe["outputs"]);
    let again = succeeds(&folder, "compress r.toml --print-recipe")?.out;
    assert_eq!(again, printed);
    let other = format!("compress r.toml --model {TINY} --seed 3 --print-recipe");
    let other = succeeds(&folder, &other)?.out;
    let changed = other.contains(TINY) && other.contains("seed = 3");
    assert!(changed, "{other}");
    Ok(())
}

fn dry_run_writes_nothing() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let json = succeeds(&folder, "compress --dry-run --out a/b --json=-")?.json()?;
    let lines = json["plan"]["tensors"].as_array().map_or(0, Vec::len);
    assert!(lines == 57, "{json}");
    let left = snapshot(&folder)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}

fn exports_open_again() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let quantize = format!("quantize {TINY} --no-eval --formats gguf,hf,packed --out q");
    succeeds(&folder, &quantize)?;
    let packed = perplexity(&folder, "q/packed")?;
    let gguf = perplexity(&folder, "q/model.gguf")?;
    let hf = perplexity(&folder, "q/hf")?;
    assert_eq!(packed, gguf);
    assert_ne!(packed, perplexity(&folder, TINY)?);
    // The folder for transformers is rounded to f16 once more.
    assert!((hf / packed - 1.0).abs() < 1e-3, "packed {packed}, hf {hf}");
    // From each to each; the artifact's folder stands for its packed model.
    for (model, format, out, wanted) in [
        ("q", "gguf", "a.gguf", packed),
        ("q", "packed", "a", packed),
        ("a.gguf", "packed", "b", packed),
        ("a.gguf", "hf", "c", hf),
        ("c", "gguf", "c.gguf", hf),
    ] {
        let export = format!("export {model} --format {format} --out {out}");
        succeeds(&folder, &export)?;
        let value = perplexity(&folder, out)?;
        assert!(value == wanted, "{model} as {out}: {value}, not {wanted}");
    }
    Ok(())
}

fn gguf_rounding_is_announced() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    for (flags, warns) in [("--bits 3", true), ("--group-size 64", true), ("--bits 5", false)] {
        let quantize =
            format!("quantize {NANO} --no-eval {flags} --formats gguf,packed --out q --force");
        for command in [&quantize, "export q --format gguf --out q.gguf --force"] {
            let run = succeeds(&folder, command)?;
            let warned = run.err.contains("warning:") && run.err.contains("f16");
            assert!(warned == warns, "{command} after {flags}: {run}");
        }
    }
    Ok(())
}

fn without_adapter() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let run = |device: &str| -> Result<Run, Failed> {
        let arguments = format!("eval {NANO} --ppl {TEXT} {SHORT} --device {device}");
        let mut command = command(folder.path(), &arguments);
        for name in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "__EGL_VENDOR_LIBRARY_FILENAMES"] {
            command.env(name, "/nonexistent");
        }
        for name in ["WGPU_BACKEND", "WGPU_ADAPTER_NAME"] {
            command.env_remove(name);
        }
        Ok(command.output()?.into())
    };
    // Elsewhere adapters do not go away by these variables.
    let gpu = run("gpu")?;
    if !cfg!(target_os = "linux") {
        return Ok(());
    }
    gpu.refused(3, "error: no GPU adapter");
    let auto = run("auto")?;
    let notes = auto.err.lines().filter(|line| line.starts_with("note: "));
    assert!(auto.code == Some(0) && notes.count() == 1 && auto.out.contains("on cpu"), "{auto}");
    Ok(())
}

fn on_gpu() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let json = |device: &str| {
        let arguments = format!("eval {NANO} --ppl {TEXT} {SHORT} --json=- --device {device}");
        lopper(&folder, &arguments)?.json()
    };
    let value = |json: &Value| json["perplexity"]["value"].as_f64().unwrap_or(f64::NAN);
    let (cpu, gpu) = (json("cpu")?, json("gpu")?);
    assert!((value(&gpu) / value(&cpu) - 1.0).abs() < 1e-4, "{gpu} is not {cpu}");
    assert!(gpu["device"] != "cpu", "{gpu}");
    for command in [format!("eval {TINY} --ppl {TEXT}"), "compress --out q".into()] {
        let small = lopper(&folder, &format!("{command} --vram-budget 1MiB --device gpu"))?;
        let message = small.err.lines().any(|line| {
            line.starts_with("error: out of GPU memory") && line.contains(" 1048576 bytes")
        });
        assert!(small.code == Some(3) && message, "{small}");
    }
    let left = snapshot(&folder)?;
    assert!(left.is_empty(), "{left:?}");
    Ok(())
}
