//! Stages and the work folder between them: any order, and a run that is stopped at any moment and continued gives what an
//! uninterrupted one gives.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use lopper::device::Random;
use lopper::error::Error;
use lopper::formats::safetensors::{NewTensor, continue_folder, write_folder};
use lopper::model::{Checkpoint, Weights};
use lopper::tensor::DType;
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{NANO, Run, TINY, command, lopper, read_json, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("resume":
        files_continue, other_runs_are_refused, quantize_prune_quantize, prune_quantize_prune);
    if cfg!(unix) {
        trials.extend(suite!("resume":
            killed_at_any_moment, killed_between_blocks, killed_between_scales, killed_between_tensors, killed_between_models, killed_between_steps, killed_while_tidying,
            interrupted_by_ctrl_c));
    }
    trials
}

const THREE_STAGES: &str = r#"
model = "embedded:tiny-llama"
seed = 7
[[stage]]
kind = "quantize"
bits = 8
[[stage]]
kind = "prune"
ratio = 0.3
steps = 2
widths = ["ffn"]
calibration = { text = "text.txt", samples = 2, length = 16 }
[[stage]]
kind = "quantize"
bits = 4
[evaluate]
text = "text.txt"
ctx = 16
max_tokens = 64
[export]
formats = ["gguf", "packed"]
"#;

const COMPRESS: &str = "compress r.toml --device cpu --out";

/// Repeated, tokens of the recipe's calibration and evaluation: a long text would be tokenized at every start.
const TEXT: &str = "The people of the country. ";

/// The hashes of an artifact's files, and its manifest without times and peaks of memory.
fn artifact(out: &Path) -> Result<(BTreeMap<PathBuf, String>, Value), Failed> {
    let mut files = snapshot(out)?;
    files.remove(Path::new("manifest.json"));
    let mut manifest = read_json(out.join("manifest.json"))?;
    // What is told of a training says when each step was.
    files.retain(|path, _| !path.to_string_lossy().contains("training"));
    let outputs = manifest["outputs"].as_array_mut().ok_or("outputs")?;
    outputs.retain(|file| !file["path"].as_str().is_some_and(|path| path.contains("training")));
    for name in ["training.json", "02-distil.training.json"] {
        if let Ok(mut told) = read_json(out.join(name)) {
            for step in told["steps"].as_array_mut().ok_or("steps")? {
                step.as_object_mut().ok_or("a step")?.remove("seconds").ok_or("seconds")?;
            }
            manifest[name] = told;
        }
    }
    for stage in manifest["stages"].as_array_mut().ok_or("stages")? {
        let stage = stage.as_object_mut().ok_or("a stage")?;
        stage.remove("seconds").ok_or("seconds")?;
        stage.remove("peak_vram").ok_or("peak_vram")?;
    }
    Ok((files, manifest))
}

/// Blocks one after the other, each fed by those that are pruned already.
const BLOCK_BY_BLOCK: &str = r#"
model = "embedded:nano-llama"
[[stage]]
kind = "prune"
method = "sparsegpt"
pattern = "2:4"
refit = true
calibration = { text = "text.txt", samples = 3, length = 16 }
[[stage]]
kind = "quantize"
method = "gptq"
bits = 3
calibration = { text = "text.txt", samples = 3, length = 16 }
[export]
formats = ["packed"]
"#;

/// Channels scaled by what goes through them, and rotations that a seed draws.
const TRANSFORMS: &str = r#"
model = "embedded:nano-llama"
seed = 3
[[stage]]
kind = "transform"
method = "awq"
bits = 3
alphas = 4
calibration = { text = "text.txt", samples = 3, length = 16 }
[[stage]]
kind = "transform"
method = "rotate"
[[stage]]
kind = "transform"
method = "smooth"
calibration = { text = "text.txt", samples = 3, length = 16 }
[[stage]]
kind = "quantize"
bits = 3
[export]
formats = ["packed"]
"#;

/// Types by what each tensor loses, which is measured tensor by tensor.
const MIX: &str = r#"
model = "embedded:nano-llama"
[[stage]]
kind = "quantize"
method = "mix"
target_bpw = 4.6
types = ["int3", "int4", "int6"]
measure_rows = 1
calibration = { text = "text.txt", samples = 3, length = 16 }
[export]
formats = ["packed"]
"#;

/// Factors, then rounded numbers: what is left out, the order of rows and the optimizer's state go on as they would have.
const TRAINING: &str = r#"
model = "embedded:nano-llama"
seed = 5
[[stage]]
kind = "tune"
method = "lora"
rank = 2
dropout = 0.1
data = ["text.txt"]
length = 16
held_out = 2
batch = 2
steps = 9
checkpoint_every = 1
evaluate_every = 3
[[stage]]
kind = "distil"
method = "quantized"
bits = 3
data = ["text.txt"]
length = 16
held_out = 2
batch = 1
steps = 7
checkpoint_every = 2
patience = 2
evaluate_every = 2
[export]
formats = ["packed"]
"#;

/// Models merged with what a stage left, after passes that look for the largest changes, and soups that are tried.
const MERGES: &str = r#"
model = "embedded:nano-llama"
seed = 9
[[stage]]
kind = "quantize"
bits = 3
[[stage]]
kind = "merge"
method = "ties"
trim = "model"
with = [{ model = "embedded:nano-llama" }]
[[stage]]
kind = "merge"
method = "dare_ties"
with = [{ model = "embedded:nano-llama" }, { model = "embedded:nano-llama", weight = 0.5 }]
[[stage]]
kind = "merge"
method = "passthrough"
slice = [{ layers = [0, 2] }, { model = "embedded:nano-llama", layers = [1, 2] }]
[[stage]]
kind = "prune"
method = "depth"
layers = 2
calibration = { text = "text.txt", samples = 3, length = 16 }
[[stage]]
kind = "merge"
method = "soup"
with = [{ model = "embedded:nano-llama" }]
calibration = { text = "text.txt", samples = 3, length = 16 }
[export]
formats = ["packed"]
"#;

/// A folder with a recipe and its artifact `whole`, and the seconds that the run took.
fn world(recipe: &str) -> Result<(TempDir, f64), Failed> {
    let folder = TempDir::new()?;
    std::fs::write(folder.path().join("r.toml"), recipe)?;
    std::fs::write(folder.path().join("text.txt"), TEXT.repeat(40))?;
    let start = Instant::now();
    succeeds(folder.path(), "compress r.toml --out whole")?;
    Ok((folder, start.elapsed().as_secs_f64()))
}

fn start(folder: &Path) -> Result<Child, Failed> {
    let mut command = command(folder, "compress r.toml --out deep/er --resume --device cpu");
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// kill -9 at 100 random moments: each artifact in the end is the same, and nothing is left beside it.
fn killed_at_any_moment() -> Result<(), Failed> {
    killed(THREE_STAGES, 100)
}

/// The same in the middle of a walk: it goes on at the first block that is not there.
fn killed_between_blocks() -> Result<(), Failed> {
    killed(BLOCK_BY_BLOCK, 20)
}

/// The same while scales are looked for, and while a model is rotated.
fn killed_between_scales() -> Result<(), Failed> {
    killed(TRANSFORMS, 20)
}

/// The same while it is measured what tensors lose.
fn killed_between_tensors() -> Result<(), Failed> {
    killed(MIX, 20)
}

/// The same while models are merged.
fn killed_between_models() -> Result<(), Failed> {
    killed(MERGES, 20)
}

/// The same at 20 random steps of trainings.
fn killed_between_steps() -> Result<(), Failed> {
    killed(TRAINING, 20)
}

/// The same between the end of a training and its folder's name: checkpoints that are gone by halves are not needed, nor is what was
/// being put in its place.
fn killed_while_tidying() -> Result<(), Failed> {
    let (folder, _) = world(TRAINING)?;
    let folder = folder.path();
    let wanted = artifact(&folder.join("whole"))?;
    succeeds(folder, "compress r.toml --out o --keep-work")?;
    std::fs::remove_dir_all(folder.join("o"))?;
    let part = folder.join("o.work/01-tune.part");
    std::fs::rename(folder.join("o.work/01-tune"), &part)?;
    std::fs::create_dir(part.join("training"))?;
    std::fs::write(part.join("training/state.json"), "half of it")?;
    std::fs::create_dir(part.join("adapter/.lopper-left"))?;
    std::fs::write(part.join("adapter/.lopper-left/adapter_config.json"), "half of it")?;
    std::fs::remove_file(folder.join("o.work/01-tune.toml")).ok();
    succeeds(folder, "compress r.toml --out o --resume")?;
    assert_eq!(artifact(&folder.join("o"))?, wanted, "the same in the end");
    Ok(())
}

fn killed(recipe: &str, times: usize) -> Result<(), Failed> {
    let (folder, seconds) = world(recipe)?;
    let folder = folder.path();
    let wanted = artifact(&folder.join("whole"))?;
    let mut random = Random::new(17);
    let (mut kills, mut artifacts) = (0, 0);
    while kills < times {
        loop {
            let mut child = start(folder)?;
            // Early moments more often: most of what is done is taken over, so that runs are short.
            let moment = (f64::from(random.below(1000)) / 1000.0).powi(2);
            std::thread::sleep(Duration::from_secs_f64(moment * seconds));
            if child.try_wait()?.is_none() {
                child.kill()?;
                kills += 1;
            }
            let run: Run = child.wait_with_output()?.into();
            match run.code {
                Some(0) => break,
                None => {}
                code => return Err(format!("after {kills} kills: {code:?} {}", run.err).into()),
            }
        }
        artifacts += 1;
        let found = artifact(&folder.join("deep/er"))?;
        assert_eq!(found, wanted, "after {kills} kills");
        std::fs::remove_dir_all(folder.join("deep/er"))?;
        let left = snapshot(folder.join("deep"))?;
        assert!(left.is_empty(), "{left:?}");
        std::fs::remove_dir(folder.join("deep"))?;
    }
    assert!(artifacts >= times / 20, "{artifacts} artifacts");
    Ok(())
}

/// Ctrl-C at any moment: exit code 130, a message that says how to go on, and the work folder.
fn interrupted_by_ctrl_c() -> Result<(), Failed> {
    let (folder, seconds) = world(THREE_STAGES)?;
    let folder = folder.path();
    let wanted = artifact(&folder.join("whole"))?;
    let before = snapshot(folder)?;
    let mut stopped = 0;
    for share in [0.0, 0.15, 0.3, 0.45, 0.6, 0.75] {
        let child = start(folder)?;
        let id = child.id().to_string();
        // Before the program listens, the signal simply ends it.
        let begin = Instant::now();
        while !listens(&id) && begin.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_secs_f64(share * seconds));
        Command::new("kill").args(["-INT", &id]).output()?;
        let run: Run = child.wait_with_output()?.into();
        if run.code != Some(0) {
            let mut left = snapshot(folder)?;
            let words = match left.contains_key(Path::new("deep/er.work")) {
                true => "interrupted; run again with --resume to continue from deep/er.work",
                false => "interrupted; nothing was written",
            };
            run.refused(130, words);
            left.retain(|path, _| !path.starts_with("deep"));
            assert_eq!(left, before);
            stopped += 1;
            succeeds(folder, "compress r.toml --out deep/er --resume")?;
        }
        assert_eq!(artifact(&folder.join("deep/er"))?, wanted);
        std::fs::remove_dir_all(folder.join("deep/er"))?;
    }
    assert!(stopped >= 3, "stopped {stopped} times only");
    Ok(())
}

/// Whether a process blocks SIGINT, to wait for it, as far as Linux tells.
fn listens(id: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    blocked.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap_or(0) & 2 != 0)
}

/// A file that was stopped is continued at the tensor it was stopped at, if it is the same file still.
fn files_continue() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let made = Cell::new(0);
    let tensors = |size: usize| -> Vec<NewTensor<'_>> {
        let tensor = |index: usize| NewTensor {
            name: format!("t{index}"),
            dtype: if index == 3 { DType::F32 } else { DType::F16 },
            shape: vec![size, index + 1],
            data: Box::new({
                let made = &made;
                move || {
                    made.set(made.get() + 1);
                    let bytes = size * (index + 1) * if index == 3 { 4 } else { 2 };
                    Ok(vec![index as u8; bytes])
                }
            }),
        };
        (0..6).map(tensor).collect()
    };
    std::fs::create_dir(&whole)?;
    write_folder(&whole, tensors(5), 120)?;
    // Shards of up to 120 bytes: tensors of 10, 20, 30 | 80 | 50, 60.
    for stop in 0..6 {
        std::fs::create_dir(&parts)?;
        let mut stopped = |done: usize, all: usize| match done == stop {
            true => Err(Error::Interrupted),
            false => {
                assert_eq!(all, 6);
                Ok(())
            }
        };
        let result = continue_folder(&parts, tensors(5), 120, &mut stopped);
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        made.set(0);
        if stop == 5 {
            // Of other tensors nothing is used: the file in hand begins again.
            continue_folder(&parts, tensors(3), 1 << 20, &mut |_, _| Ok(()))?;
            assert_eq!(made.take(), 6);
            std::fs::remove_file(parts.join("model.safetensors"))?;
        }
        continue_folder(&parts, tensors(5), 120, &mut |_, _| Ok(()))?;
        assert_eq!(made.take(), 6 - stop, "stopped before tensor {stop}");
        assert_eq!(snapshot(&parts)?, snapshot(&whole)?);
        std::fs::remove_dir_all(&parts)?;
    }
    Ok(())
}

/// A work folder is continued by the run that it is of, on request, and by no other.
fn other_runs_are_refused() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    std::fs::write(folder.join("text.txt"), TEXT.repeat(40))?;
    let recipe = THREE_STAGES.replace(TINY, NANO);
    let put = |text: &str| std::fs::write(folder.join("r.toml"), text);
    put(&recipe)?;
    succeeds(folder, "compress r.toml --out o --keep-work")?;
    let wanted = artifact(&folder.join("o"))?;
    // It is there whole: there is nothing to do.
    succeeds(folder, "compress r.toml --out o --resume --keep-work")?;
    std::fs::remove_dir_all(folder.join("o"))?;
    let refused = |flags: &str, words: &str| -> Result<(), Failed> {
        let before = snapshot(folder)?;
        let run = lopper(folder, &format!("{COMPRESS} o {flags}"))?;
        run.refused(4, words);
        let lines = run.err.lines().filter(|line| !line.starts_with("warning"));
        assert_eq!(lines.count(), 1, "{run}");
        assert_eq!(before, snapshot(folder)?, "{flags}");
        Ok(())
    };
    refused("", "o.work & --resume")?;
    refused("--force", "o.work & --resume")?;
    refused("--resume --seed 8", "o.work & the seed was 7 and is 8")?;
    refused(&format!("--resume --model {TINY}"), "the model was sha256")?;
    refused("--resume --compute f16", "the compute was f32, f32, f32 and is f16")?;
    for (from, to, words) in [
        ("bits = 4", "bits = 5", "the stage 3 was"),
        ("ratio = 0.3", "ratio = 0.4", "the stage 2 was"),
        ("ctx = 16", "ctx = 32", "the evaluation was"),
        ("\"gguf\", ", "", "the export was"),
    ] {
        put(&recipe.replace(from, to))?;
        refused("--resume", words)?;
    }
    put(&recipe)?;
    let record = folder.join("o.work/work.toml");
    let text = std::fs::read_to_string(&record)?;
    std::fs::write(&record, text.replace(env!("CARGO_PKG_VERSION"), "0.0.9"))?;
    refused("--resume", "the version of lopper was 0.0.9 and is")?;
    std::fs::write(&record, &text)?;
    let words = std::fs::read_to_string(folder.join("text.txt"))?;
    std::fs::write(folder.join("text.txt"), words.replace("people", "nation"))?;
    refused("--resume", "the text text.txt was")?;
    std::fs::write(folder.join("text.txt"), words)?;
    // A stage that was measured is taken with its figures; one that was not whole is made again.
    let again = folder.join("o.work/03-quantize");
    std::fs::rename(&again, folder.join("o.work/03-quantize.part"))?;
    let run = succeeds(folder, "compress r.toml --out o --resume")?;
    for (stage, whole) in [("01-quantize", true), ("02-prune", true), ("03-quantize", false)] {
        let said = run.err.contains(&format!("{stage} was whole already"));
        assert_eq!(said, whole, "{stage}: {}", run.err);
    }
    assert_eq!(artifact(&folder.join("o"))?, wanted);
    assert!(!folder.join("o.work").exists(), "the work folder is left");
    // A stranger's folder is not taken for one.
    std::fs::create_dir_all(folder.join("p.work"))?;
    std::fs::write(folder.join("p.work/letter"), "stays")?;
    let run = lopper(folder, "compress r.toml --out p --resume --device cpu")?;
    assert!(run.code == Some(4) && run.err.contains("p.work"), "{}", run.err);
    Ok(())
}

/// Runs nano-llama through stages and returns its plan; the work folder is `o.work`.
fn staged(folder: &Path, stages: &str) -> Result<Value, Failed> {
    let recipe =
        format!("model = \"{NANO}\"\n{stages}\n[export]\nformats = [\"gguf\", \"packed\"]\n");
    std::fs::write(folder.join("r.toml"), recipe)?;
    let shown = succeeds(folder, "compress r.toml --out o --dry-run")?.out;
    assert!(shown.contains("bytes after it"), "{shown}");
    succeeds(folder, "compress r.toml --out o --keep-work")?;
    read_json(folder.join("o/plan.json"))
}

const PRUNE: &str =
    "[[stage]]\nkind = \"prune\"\nratio = 0.5\nscore = \"l2\"\nwidths = [\"ffn\"]\n";

fn open(folder: &Path, path: &str) -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(&folder.join(path).to_string_lossy())?)
}

/// Rows that are cut keep their codes, columns that are cut are dequantized, and what is quantized then starts from those.
fn quantize_prune_quantize() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let stages = format!(
        "[[stage]]\nkind = \"quantize\"\nbits = 8\n{PRUNE}requantize = \"f16\"\n[[stage]]\nkind = \"quantize\"\nbits = 4\ninclude = [\"*.down_proj\"]"
    );
    let plan = staged(folder, &stages)?;
    let warning = plan["warnings"][0].as_str().ok_or("a warning")?;
    // Two layers of 64 x 96 weights: 2 bytes each in f16; 8 bits and two f16 of each 32 columns before.
    for words in
        ["stage 2 (prune)", "2 quantized tensors", "24576 bytes", "13824", "quantize them again"]
    {
        assert!(warning.contains(words), "`{words}` is due: {warning}");
    }
    let (one, two) = (open(folder, "o.work/01-quantize")?, open(folder, "o.work/02-prune")?);
    let three = open(folder, "o.work/03-quantize")?;
    let kept = read_json(folder.join("o.work/02-prune/kept.json"))?;
    for (layer, name, labels) in [
        (0, "up_proj", ["uint8m-g32", "uint8m-g32", "uint8m-g32"]),
        (1, "down_proj", ["uint8m-g32", "f16", "uint4m-g32"]),
    ] {
        let name = format!("model.layers.{layer}.mlp.{name}.weight");
        let [before, after, last] = [&one, &two, &three].map(|model| {
            let spec = model.specs().iter().find(|spec| spec.name == name);
            model.load(spec.expect("every stage keeps the tensor")).expect("it loads")
        });
        assert_eq!([&before, &after, &last].map(|w| w.format.label()), labels);
        let kept: Vec<usize> = serde_json::from_value(kept[1]["feed_forward"][layer].clone())?;
        assert_eq!(kept.len(), 96);
        for (place, channel) in kept.into_iter().enumerate() {
            for other in 0..64 {
                let (was, is) = match layer {
                    0 => (before.value(channel, other), after.value(place, other)),
                    _ => (before.value(other, channel), after.value(other, place)),
                };
                // f16 holds 11 bits of a value.
                let near = if layer == 0 { 0.0 } else { was.abs() / 2048.0 };
                assert!((is - was).abs() <= near, "{name}: {was} became {is}");
            }
        }
        let line = plan["tensors"]
            .as_array()
            .and_then(|all| all.iter().find(|line| line["name"] == *name));
        let decision = line.and_then(|line| line["decision"].as_str()).ok_or("a decision")?;
        assert_eq!(decision.matches(", then ").count(), 1 + layer, "{decision}");
        assert!(decision.contains("cut from"), "{decision}");
    }
    Ok(())
}

fn prune_quantize_prune() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let half = PRUNE.replace("widths = [\"ffn\"]", "scope = \"layer\"");
    let plan = staged(folder, &format!("{PRUNE}[[stage]]\nkind = \"quantize\"\nbits = 6\n{half}"))?;
    assert_eq!(plan["warnings"].as_array().map(Vec::len), Some(1), "{plan}"); // of GGUF, which has no 6 bits
    let manifest = read_json(folder.join("o/manifest.json"))?;
    let parameters = |index: usize| manifest["stages"][index]["figures"]["parameters"].as_u64();
    let weights = |blocks: u64, channels: u64| {
        Some(4096 * 64 + 64 + blocks * (2 * 64 * 96 + 3 * 64 * channels + 128))
    };
    assert_eq!([0, 1, 2].map(parameters), [weights(2, 96), weights(2, 96), weights(1, 96)]);
    for (index, stage) in plan["stages"].as_array().ok_or("stages")?.iter().enumerate() {
        assert_eq!(stage["parameters"].as_u64(), parameters(index));
        let bytes = &manifest["stages"][index]["figures"]["bytes"];
        assert_eq!(&stage["output_bytes"], bytes, "the plan's bytes");
    }
    let left = open(folder, "o")?;
    assert_eq!(left.config().layers(), 1);
    let formats = left.specs().iter().map(|spec| left.format(spec));
    let formats: Vec<String> = formats.map(|f| f.map(|f| f.label())).collect::<Result<_, _>>()?;
    assert_eq!(formats.iter().filter(|label| *label == "uint6m-g32").count(), 7);
    Ok(())
}
