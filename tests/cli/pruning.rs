//! `scores`, `prune` and `inspect --groups` as a user meets them.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::machine::gpu_trial;
use crate::numbers::{Within, assert_close};
use crate::program::{NANO, Run, command, lopper, read_json, rows, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials =
        suite!("cli::prune": uniform, non_uniform, then_quantize, sliced, sparse, refused);
    trials.push(Trial::test("cli::scores", scores));
    trials.push(gpu_trial("cli::scores_at_any_speed".into(), at_any_speed));
    trials
}

fn perplexity(folder: &Path, model: &str) -> Result<f64, Failed> {
    let eval =
        format!("eval {model} --ppl embedded:heldout-2026 --ctx 64 --max-tokens 640 --json=e.json");
    succeeds(folder, &eval)?;
    let value = read_json(folder.join("e.json"))?["perplexity"]["value"].as_f64();
    Ok(value.ok_or("a perplexity")?)
}

/// Both outputs say what they are, open, and are the model that was measured.
fn uniform() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let command = "prune embedded:nano-llama --ratio 0.5 --ctx 64 --max-tokens 640 --samples 4 --length 32 --formats gguf,hf --out o";
    let run = succeeds(folder, command)?;
    let config = read_json(folder.join("o/hf/config.json"))?;
    let shape = [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ];
    let shape = shape.map(|key| config[key].as_u64().unwrap_or(0));
    assert!(shape == [64, 96, 2, 1, 16], "{shape:?}: {run}");
    let manifest = read_json(folder.join("o/manifest.json"))?;
    let (parent, after) = (&manifest["parent"], &manifest["stages"][0]["figures"]);
    let counts = |figures: &Value| {
        ["parameters", "bytes", "flops_per_token"].map(|key| figures[key].as_u64())
    };
    // Embedding and head are one matrix of 4096 x 64; a block has 2 x 64 x (64 + 32) + 3 x 64 x 192 weights and two norms.
    let block = |heads: u64, kv: u64, channels: u64| 2 * 64 * 16 * (heads + kv) + 3 * 64 * channels;
    let weights = |block: u64| 4096 * 64 + 2 * block;
    let expected = |block: u64| {
        let parameters = weights(block) + 5 * 64;
        [Some(parameters), Some(2 * parameters), Some(2 * weights(block))]
    };
    assert_eq!(counts(parent), expected(block(4, 2, 192)));
    assert_eq!(counts(after), expected(block(2, 1, 96)));
    let measured = after["perplexity"]["value"].as_f64().ok_or("measured")?;
    for model in ["o/hf", "o/model.gguf"] {
        let found = perplexity(folder, model)?;
        assert_close(model, &[found], &[measured], Within::Each(1e-5));
    }
    Ok(())
}

/// SliceGPT: one basis leaves a plain model, several leave Lopper's own; either is the model that was measured, with as many
/// parameters as it says.
fn sliced() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let command = "prune embedded:nano-llama --method slicegpt --ratio 0.25 --ctx 64 --max-tokens 640 --samples 8 --length 32";
    let run = succeeds(folder, &format!("{command} --formats gguf,hf --out o"))?;
    assert!(run.err.contains("the head was the embedding"), "{run}");
    let config = read_json(folder.join("o/hf/config.json"))?;
    let shape = ["hidden_size", "intermediate_size", "num_attention_heads", "head_dim"];
    assert_eq!(shape.map(|key| config[key].as_u64()), [48, 192, 4, 16].map(Some), "{config}");
    assert_eq!(config["tie_word_embeddings"].as_bool(), Some(false));
    let epsilon = config["rms_norm_eps"].as_f64().ok_or("an epsilon")?;
    assert_close("epsilon", &[epsilon], &[1e-5 * 64.0 / 48.0], Within::Each(1e-6));
    let run = succeeds(folder, &format!("{command} --form blocks --out b"))?;
    assert!(run.err.contains("from one basis to the next"), "{run}");
    let config = read_json(folder.join("b/packed/config.json"))?;
    assert_eq!(config["residual_shortcuts"].as_bool(), Some(true), "{config}");
    // Embedding and head, two blocks, five norms; in the other form two products more a block.
    let weights = 2 * 4096 * 48 + 2 * (2 * 48 * 16 * (4 + 2) + 3 * 48 * 192) + 5 * 48;
    for (out, models, weights) in [
        ("o", vec!["o/hf", "o/model.gguf"], weights),
        ("b", vec!["b/packed"], weights + 2 * 2 * 48 * 48),
    ] {
        let manifest = read_json(folder.join(out).join("manifest.json"))?;
        let figures = &manifest["stages"][0]["figures"];
        assert_eq!(figures["parameters"].as_u64(), Some(weights), "{out}");
        let error = figures["weight_error"].as_f64().ok_or("what f16 loses")?;
        assert!(error > 0.0 && error < 1e-6, "{out}: {error}");
        let measured = figures["perplexity"]["value"].as_f64().ok_or("measured")?;
        for model in models {
            let found = perplexity(folder, model)?;
            assert_close(model, &[found], &[measured], Within::Each(1e-5));
        }
    }
    for format in ["gguf", "hf"] {
        let run = lopper(folder, &format!("export b/packed --format {format} --out x-{format}"))?;
        run.refused(2, "residual stream changes its basis & --form global");
        let run = lopper(folder, &format!("{command} --form blocks --formats {format} --out y"))?;
        run.refused(2, "residual stream changes its basis");
    }
    for (arguments, said) in [
        ("embedded:nano-llama --ratio 1.5", "ratio & 1.5 % is 0.015"),
        ("embedded:nano-llama --ratio 0.9 --multiple 16", "multiple & at most the 6 columns"),
        ("assets/families/gemma3 --ratio 0.2", "post_attention_layernorm & rotation"),
        ("b/packed --ratio 0.2", "several bases already"),
        ("embedded:nano-llama --ratio 0.2 --feed compressed", "feed & one basis"),
        ("embedded:nano-llama --ratio 0.2 --widths ffn", "--widths & llm-pruner"),
    ] {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
        let arguments = arguments.replace("assets", root);
        let run =
            lopper(folder, &format!("prune {arguments} --method slicegpt --no-eval --out z"))?;
        run.refused(2, said);
    }
    let run = succeeds(
        folder,
        "prune embedded:nano-llama --method slicegpt --ratio 0.1 --samples 1 --length 16 --no-eval --dry-run --out w",
    )?;
    let said = format!("{run}");
    assert!(said.contains("16 tokens") && said.contains("hidden 64 to 56"), "{run}");
    Ok(())
}

/// Ranking over all layers gives layers of several widths, which open as deci and packed.
fn non_uniform() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let command = "prune embedded:nano-llama --ratio 0.3 --ranking global --non-uniform --multiple 8 --widths ffn \
                   --steps 2 --score param_mix --ctx 64 --max-tokens 640 --samples 4 --length 32 --out o";
    succeeds(folder, command)?;
    let measured = read_json(folder.join("o/manifest.json"))?;
    let measured = measured["stages"][0]["figures"]["perplexity"]["value"].as_f64();
    let measured = measured.ok_or("measured")?;
    for model in ["o/packed", "o/model.gguf"] {
        let found = perplexity(folder, model)?;
        assert_close(model, &[found], &[measured], Within::Each(1e-5));
        let shown = succeeds(folder, &format!("inspect {model} --json=i.json"))?;
        let widths = read_json(folder.join("i.json"))?["intermediate_size"].clone();
        let list: Vec<u64> = serde_json::from_value(widths)?;
        let unlike = list.len() == 2 && list[0] != list[1];
        let whole = list.iter().all(|width| width % 8 == 0);
        assert!(unlike && whole, "{model}: {list:?}, {shown}");
    }
    Ok(())
}

/// A recipe that prunes whole layers and quantizes what is left.
fn then_quantize() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let recipe = r#"
model = "embedded:tiny-llama"
[[stage]]
kind = "prune"
scope = "layer"
ratio = 0.3
score = "l2"
reduction = "mean"
protect_first = 1
[[stage]]
kind = "quantize"
bits = 8
[evaluate]
text = "embedded:heldout-2026"
ctx = 64
max_tokens = 640
[export]
formats = ["gguf", "packed"]
"#;
    std::fs::write(folder.join("r.toml"), recipe)?;
    succeeds(folder, "compress r.toml --out o")?;
    let manifest = read_json(folder.join("o/manifest.json"))?;
    let measured = manifest["stages"][1]["figures"]["perplexity"]["value"].as_f64();
    let found = perplexity(folder, "o/packed")?;
    assert_close("o/packed", &[found], &[measured.ok_or("measured")?], Within::Each(1e-5));
    succeeds(folder, "inspect o/model.gguf --json=i.json")?;
    assert_eq!(read_json(folder.join("i.json"))?["layers"], 5);
    Ok(())
}

/// Zeros are where the report says, in every format, and are counted; flags of another method are refused by name.
fn sparse() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let command = "prune embedded:nano-llama --method wanda --pattern 2:4 --swaps 20 --refit --feed parent --samples 8 --length 32 \
                   --ctx 64 --max-tokens 640 --formats hf,packed --out o";
    let run = succeeds(folder, command)?;
    let masks = read_json(folder.join("o/masks.json"))?;
    let tensors = masks["tensors"].as_array().ok_or("tensors")?;
    assert_eq!(tensors.len(), 14, "linear layers: {masks}");
    for tensor in tensors {
        let error = |key: &str| tensor[key].as_f64().ok_or(format!("{key}: {tensor}"));
        let (pruned, swapped, fitted) =
            (error("error_pruned")?, error("error_swapped")?, error("error_refitted")?);
        let falls = 1.0 > pruned && pruned >= swapped && swapped > fitted && fitted > 0.0;
        assert!(falls && tensor["share"] == 0.5, "{tensor}");
    }
    assert!(tensors.iter().any(|tensor| tensor["swaps"].as_u64() > Some(0)), "{masks}");
    let manifest = read_json(folder.join("o/manifest.json"))?;
    let figures = &manifest["stages"][0]["figures"];
    let count = |key: &str| figures[key].as_u64().ok_or(key.to_string());
    let zeros = masks["zeros"].as_u64().ok_or("zeros")?;
    let others = count("parameters")? - count("nonzero")? - zeros;
    // The embedding of a small model has a few of its own.
    assert!(others < 1000, "{others} zeros outside: {figures}");
    assert!(run.out.contains("parameters are not zero"), "{run}");
    let measured = figures["perplexity"]["value"].as_f64().ok_or("measured")?;
    for model in ["o/hf", "o/packed"] {
        let found = perplexity(folder, model)?;
        assert_close(model, &[found], &[measured], Within::Each(1e-5));
    }
    Ok(())
}

/// What cannot be is said before anything is written.
fn refused() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    std::fs::write(folder.join("short.txt"), "Too little to learn from.")?;
    let before = snapshot(folder)?;
    let table = "
        prune NANO --out o --ratio 0 => stage.ratio`: expected more than 0
        prune NANO --out o --ratio 1 => less than 1, found 1
        prune NANO --out o --ratio 0.5 --protect-first 2 => model's 2 layers
        prune NANO --out o --ratio 0.5 --protect-last 1 => non_uniform
        prune NANO --out o --ratio 0.5 --ranking global => non_uniform
        prune NANO --out o --ratio 0.5 --calib short.txt => 10 x 64 tokens from token 0
        prune NANO --out o --ratio 0.5 --samples 0 => calibration samples
        prune NANO --out o --ratio 0.5 --length 1 => calibration length
        prune NANO --out o --ratio 0.5 --score best => found best
        prune NANO --out o --method wanda --ratio 0.5 --score l2 => llm-pruner
        prune NANO --out o --ratio 0.5 --swaps 5 => wanda
        prune NANO --out o --method wanda --pattern 5:4 => --pattern & 5:4
        prune NANO --out o --method sparsegpt --pattern 2:4 --ratio 0.3 => of which 0.500 go & 0.3
        prune NANO --out o --method magnitude => --ratio & or a pattern N:M
        scores NANO --out s --score best => found best
        scores NANO --out s --score l1 --groups heads => found heads
        scores NANO --out s --score param_first --token-file short.txt => short.txt
        scores NANO --out s --score param_first --calib none.txt => none.txt
    ";
    for (command, said) in rows(table) {
        let command = command.replace("NANO", NANO);
        lopper(folder, &format!("{command} --device cpu"))?.refused(2, said);
    }
    assert!(snapshot(folder)? == before, "something was written");
    Ok(())
}

/// Bytes of gradients' sums are the same however many threads the device has, and so however the work is cut: in f16 too.
fn at_any_speed() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let rows: Vec<Vec<u32>> =
        (0..3).map(|row| (0..20).map(|t| 7 * (row + t) + 4).collect()).collect();
    std::fs::write(folder.path().join("t.json"), serde_json::to_string(&rows)?)?;
    let scores = |threads: &str| -> Result<Vec<u8>, Failed> {
        let arguments = "scores embedded:nano-llama --score vectorize,param_first --token-file t.json --groups ffn,hidden \
                         --device gpu --compute f16 --force --out s";
        let mut command = command(folder.path(), arguments);
        let run: Run = command.env("LP_NUM_THREADS", threads).output()?.into();
        // An adapter without f16 says so.
        assert!(run.code == Some(0) || run.err.contains("f16 in shaders"), "{run}");
        Ok(std::fs::read(folder.path().join("s")).unwrap_or_default())
    };
    let first = scores("1")?;
    assert!(first == scores("2")? && first == scores("1")?, "the bytes differ");
    Ok(())
}

/// Tokens by a file give the scores that the same tokens of a text give; groups are printed.
fn scores() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let rows: Vec<Vec<u32>> =
        (0..3).map(|row| (0..20).map(|t| 7 * row + 11 * t + 4).collect()).collect();
    std::fs::write(folder.join("t.json"), serde_json::to_string(&rows)?)?;
    let command = "scores embedded:nano-llama --score all,wanda,minitron --token-file t.json --groups ffn,kvgroup,head,hidden,layer";
    let run = succeeds(folder, &format!("{command} --out s.safetensors --json=s.json"))?;
    let found = read_json(folder.join("s.json"))?;
    // Seven scores of three groups in each of two layers, of the hidden width and of layers; norms of 14 modules; importance of
    // two groups in each layer, and of the two others.
    assert!(found["tensors"] == 7 * 8 + 14 + 2 * 2 + 2 && found["tokens"] == 60, "{found}: {run}");
    let shown = succeeds(folder, "inspect embedded:nano-llama --groups")?.out;
    for line in [
        "ffn.0",
        "kvgroup.1",
        "head.0",
        "hidden",
        "layer",
        "model.layers.*.mlp.down_proj.weight",
        "consumes",
    ] {
        assert!(shown.contains(line), "no {line}: {shown}");
    }
    Ok(())
}
