//! Pruning by what a forward pass says: importance as it is defined, shapes and sizes, whole blocks.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::methods::calibration::{Calibration, Rows};
use lopper::methods::prune::depth::{DepthBy, DepthSpec, DepthStep, Trials};
use lopper::methods::prune::minitron::Importance;
use lopper::methods::prune::rounds::rounds;
use lopper::methods::prune::search::{Shape, Target};
use lopper::methods::prune::{Aim, PruneSpec};
use lopper::model::{
    BlockDims, Checkpoint, Config, Group, KeptChannels, PrunableDim, Pruned, WeightSource, Weights,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::models::{load, logits, pass, speech_perplexity};
use crate::numbers::{Within, assert_close};
use crate::program::{NANO, TINY, lopper, read_json, rows, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    suite!("minitron":
        quality, heads_stay_even, shapes, merging, depth_is_greedy, families, sizes, details, refused, methods_and_flags)
}

/// A cut of a model to some widths in one round, of the least important of each.
fn cut(
    parent: &dyn Weights,
    importance: &Importance,
    widths: &[PrunableDim],
    left: Config,
) -> Result<KeptChannels, Failed> {
    let spec = PruneSpec {
        widths: widths.to_vec(),
        aim: Aim::Shape,
        global: false,
        steps: 1,
        multiple: 1,
        protected: (0, 0),
        left,
    };
    let start = (0, KeptChannels::nothing(parent.config()));
    let mut score = |_: &dyn Weights, chosen: &[Group], _: usize| {
        Ok(chosen.iter().map(|group| importance.units(group)).collect())
    };
    Ok(rounds(parent, start, &spec, &Device::Cpu, &mut score, &mut |_, _| Ok(()))?)
}

/// A quarter of tiny-llama's feed-forward channels: what a correct implementation reaches. (The value was made with the tokens of
/// the reference scores, 16 x 128 from 7000.)
fn quality() -> Result<(), Failed> {
    let device = &Device::Cpu;
    let parent = Checkpoint::open(TINY)?;
    let calibration = Calibration {
        offset: 7000,
        samples: Some(16),
        length: Some(128),
        ..Calibration::default()
    };
    let rows = Rows::of_text(&calibration, &parent.tokenizer()?)?;
    let model = load(device, &parent)?;
    let source = WeightSource::Resident(&model);
    let importance = Importance::of(source, &pass(device), &rows, &mut |_, _| {})?;
    let mut left = parent.config().clone();
    left.blocks.iter_mut().for_each(|block| block.intermediate_size = 288);
    let kept = cut(&parent, &importance, &[PrunableDim::FeedForward], left)?;
    let found = speech_perplexity(&pass(device), &Pruned::new(&parent, device, kept), 8192)?;
    let known = read_json("assets/golden/quality.json")?;
    let expected = known["drop 25% of FFN channels in every layer, minitron"].as_f64();
    assert_close("perplexity", &[found], &[expected.ok_or("known")?], Within::Each(1e-3));
    Ok(())
}

/// Of each key-value head the better of its queries stays, whatever those of the other one score.
fn heads_stay_even() -> Result<(), Failed> {
    let parent = Checkpoint::open(NANO)?;
    let importance = Importance {
        heads: vec![vec![5.0, 6.0, 2.0, 1.0], vec![1.0, 2.0, 9.0, 8.0]],
        ..Importance::default()
    };
    let mut left = parent.config().clone();
    left.blocks.iter_mut().for_each(|block| block.heads = 2);
    let kept = cut(&parent, &importance, &[PrunableDim::Head], left)?;
    assert_eq!(kept.heads, [[1, 2], [1, 2]]);
    // With its key-value head all of a query's go: the L2 norm of those of the first is larger, then of the second.
    let both = [PrunableDim::Head, PrunableDim::KvGroup];
    let mut left = parent.config().clone();
    left.blocks.iter_mut().for_each(|block| (block.heads, block.kv_heads) = (1, 1));
    let kept = cut(&parent, &importance, &both, left)?;
    assert_eq!((kept.heads, kept.kv_groups), (vec![vec![1], vec![2]], vec![vec![0], vec![1]]));
    Ok(())
}

/// What texts of shapes and sizes mean, and what a shape leaves.
fn shapes() -> Result<(), Failed> {
    let parent = Checkpoint::open(TINY)?;
    let whole = parent.config();
    let left = |text: &str, multiple: usize| {
        let shape: Shape = text.parse().map_err(|why: String| format!("{text}: {why}"))?;
        assert_eq!(shape.to_string(), text);
        shape.cut(whole, multiple).map_err(|bad| format!("{}: {}", bad.field, bad.found))
    };
    let all = left("ffn=288,heads=2,kvgroups=2,hidden=96,layers=5", 32)?;
    assert_eq!((all.hidden_size, all.layers()), (96, 5));
    assert!(all.blocks.iter().all(|block| *block == BlockDims::new(2, 2, 288)));
    // Query heads go with the key-value head that they read.
    assert_eq!(left("kvgroups=1", 32)?.blocks[0], BlockDims::new(2, 1, 384));
    assert_eq!(left("ffn=384", 100)?, *whole);
    for text in [
        "ffn=385",
        "ffn=280",
        "ffn=0",
        "heads=3",
        "kvgroups=3",
        "hidden=129",
        "layers=7",
        "layers=0",
    ] {
        let refused = left(text, 32);
        assert!(refused.is_err_and(|why| why == format!("target_shape: {text}")), "{text}");
    }
    for text in ["", "ffn", "ffn=x", "width=3", "ffn=32,ffn=64", "ffn=-1"] {
        assert!(text.parse::<Shape>().is_err(), "{text}");
    }
    for (text, most) in [("parameters=1.5M", 1_500_000), ("bytes=90k", 90_000), ("flops=2", 2)] {
        let target: Target = text.parse().map_err(|why: String| format!("{text}: {why}"))?;
        assert_eq!(target.most, most);
    }
    for text in ["parameters", "parameters=M", "weights=3", "bytes=-1", "bytes=0", "flops=1e30"] {
        assert!(text.parse::<Target>().is_err(), "{text}");
    }
    Ok(())
}

/// Blocks merged into one have the first's weights and what the others differ by, through several mergings.
fn merging() -> Result<(), Failed> {
    let (device, parent) = (&Device::Cpu, Checkpoint::open(TINY)?);
    let value = |layer: usize, name: &str| -> Result<Vec<f64>, Failed> {
        let name = format!("model.layers.{layer}.{name}");
        let spec = parent.specs().iter().find(|spec| spec.name == name).ok_or("a tensor")?;
        Ok(parent.load(spec)?.to_f32().into_iter().map(f64::from).collect())
    };
    let mut kept = KeptChannels::nothing(parent.config());
    kept.merge(1, 2);
    // Now 0, {1 2 3}, 4, 5.
    kept.merge(1, 2);
    assert_eq!(kept.layers, [0, 1]);
    let pruned = Pruned::new(&parent, device, kept.clone());
    for name in ["mlp.down_proj.weight", "self_attn.q_proj.weight", "input_layernorm.weight"] {
        let spec = pruned.specs().iter().find(|spec| spec.name == format!("model.layers.1.{name}"));
        let found = pruned.exact(spec.ok_or("a tensor")?)?.to_f32();
        let all: Vec<Vec<f64>> =
            (0..6).map(|layer| value(layer, name)).collect::<Result<_, _>>()?;
        // W1 + (W2 - W1) + (W3 - W1), and to that W4 and W5 less it.
        let expected: Vec<f64> = (0..found.len())
            .map(|at| {
                let merged = all[2][at] + all[3][at] - all[1][at];
                all[4][at] + all[5][at] - merged
            })
            .collect();
        assert_close(name, &found, &expected, Within::Largest(1e-6));
    }
    // One alone is left out.
    let mut one = KeptChannels::nothing(parent.config());
    one.merge(2, 1);
    assert_eq!(one.layers, [0, 1, 3, 4, 5]);
    assert!(one.merged.iter().all(Vec::is_empty));
    Ok(())
}

/// The block that goes is the one without which the perplexity is lowest; a merging is the one that leaves the output as it was.
fn depth_is_greedy() -> Result<(), Failed> {
    let (device, parent) = (&Device::Cpu, Checkpoint::open(TINY)?);
    let calibration = Calibration { samples: Some(4), length: Some(64), ..Calibration::default() };
    let rows = Rows::of_text(&calibration, &parent.tokenizer()?)?;
    let trials = Trials::new(&parent, pass(device), &rows, None)?;
    let without = |layer: usize| {
        let mut kept = KeptChannels::nothing(parent.config());
        let stay: Vec<usize> = (0..6).filter(|place| *place != layer).collect();
        kept.keep(PrunableDim::Layers, None, &stay);
        kept
    };
    let run = |by: DepthBy, layers: usize, protected: (usize, usize)| {
        let mut steps: Vec<DepthStep> = Vec::new();
        let mut after = |step: DepthStep, _: &KeptChannels| {
            steps.push(step);
            Ok(())
        };
        let start = KeptChannels::nothing(parent.config());
        let spec = DepthSpec { by, layers, merge: 2, protected };
        let kept = spec.run(&trials, start, &mut after, &mut |_, _| {})?;
        Ok::<_, Failed>((kept, steps))
    };
    let costs: Vec<f64> =
        (0..6).map(|layer| trials.perplexity(&without(layer))).collect::<Result<_, _>>()?;
    let best = (0..6).min_by(|a, b| costs[*a].total_cmp(&costs[*b])).ok_or("six")?;
    let (kept, steps) = run(DepthBy::Perplexity, 4, (0, 0))?;
    assert_eq!((kept.layers.len(), steps.len(), &steps[0].gone), (4, 2, &vec![best]));
    assert_close("the first step", &[steps[0].cost], &[costs[best]], Within::Each(1e-6));
    assert!(kept.layers.iter().all(|layer| steps.iter().all(|step| !step.gone.contains(layer))));
    // A model that is streamed gives the same.
    // Enough for a block's weights and what a pass makes (8.5 MB), and not for all (10.9).
    let budget = Some(9_500_000);
    let streamed = Trials::new(&parent, pass(device), &rows, budget)?;
    let found = streamed.perplexity(&without(best))?;
    assert_close("streamed", &[found], &[costs[best]], Within::Each(1e-6));
    let (kept, steps) = run(DepthBy::Cosine, 4, (1, 1))?;
    assert!(kept.layers.contains(&0) && kept.layers.contains(&5) && steps[0].cost <= steps[1].cost);
    let (kept, steps) = run(DepthBy::Merge, 3, (0, 0))?;
    assert_eq!((kept.layers.len(), steps.len()), (3, 2));
    assert!(steps[0].into.is_some() && steps[0].gone.len() == 2, "{steps:?}");
    assert!(steps[1].into.is_none() && steps[1].gone.len() == 1, "{steps:?}");
    let unlike = |step: &DepthStep| step.cost > 0.0 && step.cost < 2.0;
    assert!(steps.iter().all(unlike) && steps[0].cost != steps[1].cost, "{steps:?}");
    Ok(())
}

/// Every width of every family, cut and written: the folder, the file and the packed folder are one model that runs.
fn families() -> Result<(), Failed> {
    let here = std::env::current_dir()?;
    for (name, shape, expected) in [
        ("mistral", "ffn=32,heads=2,hidden=32", (32, BlockDims::new(2, 2, 32), 2)),
        ("qwen2", "ffn=32,heads=2,hidden=32,layers=1", (32, BlockDims::new(2, 2, 32), 1)),
        ("qwen3", "heads=2,hidden=40", (40, BlockDims::new(2, 2, 40), 2)),
        ("gemma3", "ffn=24,heads=3,layers=3", (48, BlockDims::new(3, 1, 24), 3)),
        ("gemma3-capped", "kvgroups=1,heads=1,hidden=32", (32, BlockDims::new(1, 1, 40), 3)),
    ] {
        let folder = TempDir::new()?;
        let folder = folder.path();
        let model = here.join("assets/families").join(name);
        let command = format!(
            "prune {} --method minitron --target-shape {shape} --multiple 8 --samples 2 --length 16 --no-eval --formats gguf,hf,packed --out o",
            model.display()
        );
        let run = succeeds(folder, &command)?;
        let ids: Vec<u32> = (0..24).map(|token| 3 + token * 7 % 90).collect();
        let of = |part: &str| -> Result<Vec<f32>, Failed> {
            let left = Checkpoint::open(&folder.join("o").join(part).to_string_lossy())?;
            let config = left.config();
            let widths = config.uniform().ok_or("blocks alike")?;
            let found = (
                config.hidden_size,
                BlockDims::new(widths.heads, widths.kv_heads, widths.intermediate_size),
                config.layers(),
            );
            assert!(found == expected, "{name}, {part}: {found:?}: {run}");
            logits(&Device::Cpu, &left, &ids, 2)
        };
        let packed = of("packed")?;
        assert!(packed.iter().all(|logit| logit.is_finite()) && packed.iter().any(|l| *l != 0.0));
        for part in ["hf", "model.gguf"] {
            assert_close(&format!("{name}, {part}"), &of(part)?, &packed, Within::Norm(1e-5));
        }
    }
    Ok(())
}

/// A size is met from below by the best of several shapes, and the table says what was tried; nothing else than a shape of the
/// same numbers gives.
fn sizes() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let common = "--samples 4 --length 32 --multiple 16 --no-eval --formats packed";
    let search = format!(
        "prune {NANO} --method minitron --target parameters=262k --candidates 3 --held-out 4 {common}"
    );
    let run = succeeds(folder, &format!("{search} --out a"))?;
    let manifest = read_json(folder.join("a/manifest.json"))?;
    let stage = &manifest["stages"][0];
    let details = &stage["details"];
    let tried = details["candidates"].as_array().ok_or("candidates")?;
    assert_eq!(tried.len(), 3, "{details}");
    let perplexity = |row: &Value| row["perplexity"].as_f64().unwrap_or(f64::NAN);
    let best = tried.iter().map(perplexity).fold(f64::INFINITY, f64::min);
    let chosen = &tried[details["chosen"].as_u64().ok_or("chosen")? as usize];
    assert!(perplexity(chosen) == best, "{details}");
    let parameters = stage["figures"]["parameters"].as_u64().ok_or("parameters")?;
    assert!(chosen["parameters"] == parameters && parameters <= 262_000, "{stage}");
    assert!(parameters >= 250_000, "{parameters} is far from 262000");
    let shape = chosen["shape"].as_str().ok_or("a shape")?;
    for words in ["within parameters=262000", "taken", "importance"] {
        assert!(run.out.contains(words), "no {words}: {run}");
    }
    let by_shape =
        format!("prune {NANO} --method minitron --target-shape {shape} {common} --out b");
    succeeds(folder, &by_shape)?;
    let weights = |path: &str| -> Result<_, Failed> {
        let mut files = snapshot(folder.join(path))?;
        files.retain(|path, _| path.extension().is_some_and(|end| end == "safetensors"));
        Ok(files)
    };
    let (a, b) = (weights("a/packed")?, weights("b/packed")?);
    assert!(!a.is_empty() && a == b, "{shape} gives other weights");
    Ok(())
}

/// What blocks went is in the manifest; rounds give another result than one, of the same shape.
fn details() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let calibration = "--samples 2 --length 32 --no-eval --formats packed";
    for (by, steps) in [("cosine", 2), ("perplexity", 2), ("merge", 1)] {
        let command = format!(
            "prune {TINY} --method depth --layers 4 --depth-by {by} {calibration} --out {by}"
        );
        succeeds(folder, &command)?;
        let manifest = read_json(folder.join(by).join("manifest.json"))?;
        let details = &manifest["stages"][0]["details"];
        assert_eq!(details["steps"].as_array().map(Vec::len), Some(steps), "{details}");
        let left = Checkpoint::open(&folder.join(by).join("packed").to_string_lossy())?;
        assert_eq!(left.config().layers(), 4);
        let logits = logits(&Device::Cpu, &left, &[5, 6, 7, 8], 1)?;
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
    let merged = read_json(folder.join("merge/pruned.json"))?;
    let of_blocks = merged["blocks"].as_array().ok_or("blocks")?;
    assert_eq!(of_blocks.iter().filter(|block| block.get("merged").is_some()).count(), 1);
    let mut gone = Vec::new();
    for steps in [1, 3] {
        let command = format!(
            "prune {TINY} --method minitron --target-shape ffn=224,heads=2,hidden=96,layers=5 --steps {steps} {calibration} --out s{steps}"
        );
        succeeds(folder, &command)?;
        let out = folder.join(format!("s{steps}"));
        let left = Checkpoint::open(&out.join("packed").to_string_lossy())?;
        let config = left.config();
        assert_eq!((config.hidden_size, config.layers()), (96, 5));
        assert!(config.blocks.iter().all(|block| *block == BlockDims::new(2, 2, 224)));
        gone.push(read_json(out.join("pruned.json"))?);
    }
    assert!(gone[0] != gone[1], "scoring again changes nothing");
    Ok(())
}

/// What cannot be is said before anything is written.
fn refused() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let recipe = "model = 'embedded:nano-llama'\n[[stage]]\nkind = 'prune'\nmethod = 'minitron'\nratio = 0.5\nscore = 'l1'\n";
    std::fs::write(folder.join("r.toml"), recipe)?;
    let before = snapshot(folder)?;
    let table = "
        prune NANO --method minitron --out o => stage.ratio` & target_shape or target, found none
        prune NANO --method minitron --out o --ratio 0.5 --target-shape ffn=96 => a ratio alone
        prune NANO --method minitron --out o --target-shape ffn=100 => multiple of 32
        prune NANO --method minitron --out o --target-shape ffn=224 => 1 to the model's 192
        prune NANO --method minitron --out o --target-shape ffn=192,layers=2 => less of something than ffn=192,heads=4,kvgroups=2,hidden=64,layers=2
        prune NANO --method minitron --out o --target-shape layers=0 => layers of 1 to the model's 2
        prune NANO --method minitron --out o --target-shape heads=3 => multiple of the 2 key-value heads
        prune NANO --method minitron --out o --target-shape wings=2 => some of ffn, heads
        prune NANO --method minitron --out o --target parameters=10M => less than the model's
        prune NANO --method minitron --out o --target parameters=1k => the least that --most-width
        prune NANO --method minitron --out o --target weights=1k => parameters, bytes or flops
        prune NANO --method minitron --out o --target parameters=340k --candidates 0 => stage.candidates
        prune NANO --method minitron --out o --target parameters=340k --held-out 0 => stage.held_out
        prune NANO --method minitron --out o --target parameters=340k --held-out 9999999 => calibration text
        prune NANO --method minitron --out o --ratio 0.5 --depth-by merge => method depth
        prune NANO --method minitron --out o --ratio 0.5 --protect-last 1 => unless only blocks
        prune NANO --method minitron --out o --ratio 0.5 --score l1 => --score is a flag of --method llm-pruner
        prune NANO --method minitron --out o --ratio 0.5 --widths ears => ffn, kvgroup, head
        prune NANO --method depth --out o => the blocks that are left
        prune NANO --method depth --out o --layers 0 => 1 to 1: the model has 2
        prune NANO --method depth --out o --layers 2 => 1 to 1: the model has 2
        prune NANO --method depth --out o --ratio 0.3 => enough to take out one of 2
        prune NANO --method depth --out o --ratio 0.5 --layers 1 => either a ratio or layers
        prune NANO --method depth --out o --layers 1 --protect-first 2 => at most the 1 blocks
        prune NANO --method depth --out o --layers 1 --at-once 0 => stage.at_once
        compress r.toml --out o => unknown field `score`
    ";
    for (command, said) in rows(table) {
        let command = command.replace("NANO", NANO);
        lopper(folder, &format!("{command} --device cpu"))?.refused(2, said);
    }
    assert!(snapshot(folder)? == before, "something was written");
    Ok(())
}

/// A recipe that flags print is taken back, with what the method's own code takes by default.
fn methods_and_flags() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    for (flags, keys) in [
        (
            "--method minitron --target bytes=3M --target-shape layers=5",
            "method = \"minitron\" & target = \"bytes=3000000\" & target_shape = \"layers=5\" & samples = 64 & length = 256 & \"head\"",
        ),
        (
            "--method depth --layers 5 --depth-by merge",
            "method = \"depth\" & layers = 5 & depth_by = \"merge\" & samples = 16",
        ),
    ] {
        let printed = succeeds(folder, &format!("prune {TINY} {flags} --print-recipe"))?.out;
        for key in keys.split(" & ") {
            assert!(printed.contains(key), "no {key}: {printed}");
        }
        std::fs::write(folder.join("r.toml"), &printed)?;
        let again = succeeds(folder, "compress r.toml --print-recipe")?.out;
        assert_eq!(again, printed);
        succeeds(folder, "compress r.toml --dry-run --out o")?;
    }
    assert!(!Path::new("o").exists());
    Ok(())
}
