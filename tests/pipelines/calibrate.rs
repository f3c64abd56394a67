//! `lopper calibrate`: statistics that are kept, merged, continued, read again by methods, and told from those of another model.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::formats::imatrix::{Entry, Imatrix};
use lopper::formats::safetensors::Safetensors;
use lopper::graph::Slot;
use lopper::methods::calibration::{Feed, Source};
use lopper::model::{Checkpoint, WeightSource, Weights, identity};
use lopper::walk::stored::{Stored, block_file};
use lopper::walk::{Kind, Statistics, Through, Walk};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::machine::on_each;
use crate::models::{load, pass};
use crate::numbers::{Within, assert_close};
use crate::program::{NANO, Run, command, lopper, read_json, snapshot, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("calibrate":
        halves_merge, scores_from_statistics, imatrix, old_imatrix, llama_cpp, refused, source_in_recipes);
    trials.extend(on_each("calibrate::kept_as_taken", kept_as_taken));
    if cfg!(unix) {
        trials.extend(suite!("calibrate": killed_at_any_moment));
    }
    trials
}

const ALL: &str = "--kinds all --length 24";

/// All numbers of all files of a folder of statistics, by file and tensor.
fn numbers(folder: &Path) -> Result<Vec<(String, Vec<f64>)>, Failed> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != "safetensors") {
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tensors = Safetensors::open(lopper::formats::Source::open(&path)?)?;
        for name in tensors.names() {
            let tensor = tensors.get(name).ok_or("a tensor")?;
            let bytes = tensor.bytes()?;
            let values = match tensor.ty.name() {
                "f32" => bytemuck_f32(&bytes),
                "f64" => eights(&bytes, f64::from_le_bytes),
                _ => eights(&bytes, |bytes| i64::from_le_bytes(bytes) as f64),
            };
            found.push((format!("{file} {name}"), values));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn bytemuck_f32(bytes: &[u8]) -> Vec<f64> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn eights(bytes: &[u8], number: fn([u8; 8]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| number(*bytes)).collect()
}

/// Two halves of a text, merged, are the whole to 1e-6; so are four quarters. What a merge says of itself adds up.
fn halves_merge() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let calibrate = |out: &str, first: usize, samples: usize| {
        let offset = 24 * first;
        succeeds(
            folder,
            &format!("calibrate {NANO} --out {out} {ALL} --offset {offset} --samples {samples}"),
        )
    };
    calibrate("whole", 0, 8)?;
    calibrate("a", 0, 4)?;
    calibrate("b", 4, 2)?;
    calibrate("c", 6, 2)?;
    succeeds(folder, "calibrate --merge a b c --out merged")?;
    let (whole, merged) = (numbers(&folder.join("whole"))?, numbers(&folder.join("merged"))?);
    let names =
        |all: &[(String, Vec<f64>)]| all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&whole), names(&merged));
    // 2 blocks of 4 inputs and the head's, each of so many kinds and two counts; the blocks' cosines.
    let kinds = Kind::ALL.len() - 1;
    assert_eq!(whole.len(), (2 * 4 + 1) * (kinds + 2) + 2 * 2, "{:?}", names(&whole));
    for ((name, whole), (_, merged)) in whole.iter().zip(&merged) {
        let whole: Vec<f32> = whole.iter().map(|value| *value as f32).collect();
        let merged: Vec<f32> = merged.iter().map(|value| *value as f32).collect();
        assert_close(name, &merged, &whole, Within::Norm(1e-6));
    }
    let about = read_json(folder.join("merged/statistics.json"))?;
    assert_eq!(about["tokens"].as_u64(), Some(8 * 24));
    assert_eq!(about["parts"].as_array().map(Vec::len), Some(3));
    let shown = lopper(folder, "inspect merged")?;
    assert!(shown.out.contains("192 tokens in 8 rows") && shown.out.contains("gram"), "{shown}");
    // The same twice is said.
    let twice = lopper(folder, "calibrate --merge a a --out twice")?;
    assert!(twice.code == Some(0) && twice.err.contains("counted twice"), "{twice}");
    // Others are refused, with both hashes.
    succeeds(folder, &format!("calibrate embedded:tiny-llama --out other {ALL} --samples 1"))?;
    let hash = |name: &str| -> Result<String, Failed> {
        let about = read_json(folder.join(name).join("statistics.json"))?;
        Ok(about["model_sha256"].as_str().ok_or("a hash")?.to_string())
    };
    let run = lopper(folder, "calibrate --merge a other --out no")?;
    run.refused(2, &format!("other & {} & {}", hash("a")?, hash("other")?));
    succeeds(
        folder,
        &format!("calibrate {NANO} --out few --kinds squares --length 24 --samples 1"),
    )?;
    lopper(folder, "calibrate --merge a few --out no")?.refused(2, "few & kinds");
    std::fs::remove_file(folder.join("b/head.safetensors"))?;
    lopper(folder, "calibrate --merge a b --out no")?.refused(2, "b & head.safetensors");
    lopper(folder, "calibrate --merge a b --out no.gguf")?.refused(2, "--out & a folder");
    assert!(!folder.join("no").exists(), "a refused merge leaves nothing");
    Ok(())
}

/// What is read back is what a walk sums, bit for bit, and the second moments give the squares where these were not kept.
fn kept_as_taken(device: &Device) -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let model = Checkpoint::open(NANO)?;
    let config = model.config();
    let ids: Vec<u32> = (0..3 * 17).map(|place| (place * 37 % 500) as u32).collect();
    let rows: Vec<&[u32]> = ids.chunks(17).collect();
    std::fs::write(folder.path().join("ids.json"), serde_json::to_vec(&rows)?)?;
    let device_flag = if matches!(device, Device::Cpu) { "cpu" } else { "gpu" };
    let run = command(
        folder.path(),
        &format!(
            "calibrate {NANO} --token-file ids.json --kinds all --out s --device {device_flag}"
        ),
    );
    let run: Run = { run }.output()?.into();
    assert!(run.code == Some(0), "{run}");
    let stored = Stored::open(&folder.path().join("s"))?;
    stored.check_model(model.path(), &identity(&model)?)?;
    stored.require(config, &Kind::ALL)?;
    let weights = load(device, &model)?;
    let mut walk = Walk::new(WeightSource::Resident(&weights), pass(device), &ids, 3, 8192)?;
    while let Some(step) = walk.next_block()? {
        let layer = step.layer();
        let mut statistics = Statistics::new(device, &Kind::ALL, 17);
        step.advance(Through::Parent, Some(&mut statistics))?;
        let taken = statistics.read(|slot| format!("{slot:?}"))?;
        assert!(taken == stored.block(config, layer, &Kind::ALL)?, "block {layer}");
        let gram = stored.block(config, layer, &[Kind::Gram])?;
        assert!(gram.sum(Slot::Down, Kind::Squares).is_none(), "only what was asked for");
    }
    let mut statistics = Statistics::new(device, &Kind::ALL, 17);
    walk.observe_head(&mut statistics)?;
    let taken = statistics.read(|slot| format!("{slot:?}"))?;
    let head = stored.head(config, &Kind::ALL)?.ok_or("the head's input")?;
    assert!(taken.input(Slot::Head) == Some(&head), "the head's input");
    Ok(())
}

/// Wanda's norms from statistics, and from an imatrix, are those of the text; those of another model are refused.
fn scores_from_statistics() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let text = "--samples 3 --length 20 --offset 7";
    succeeds(folder, &format!("scores {NANO} --score wanda {text} --out w.safetensors"))?;
    succeeds(folder, &format!("calibrate {NANO} {text} --out s"))?;
    succeeds(folder, &format!("calibrate {NANO} {text} --kinds gram --out g"))?;
    succeeds(folder, &format!("calibrate {NANO} {text} --out i.gguf"))?;
    let read = |name: &str| -> Result<Vec<(String, Vec<f32>)>, Failed> {
        let file = Safetensors::open(lopper::formats::Source::open(&folder.join(name))?)?;
        let names = file.names().filter(|name| name.starts_with("wanda."));
        names
            .map(|name| {
                let bytes = file.get(name).ok_or("a tensor")?.bytes()?;
                Ok((name.into(), bytemuck_f32(&bytes).into_iter().map(|v| v as f32).collect()))
            })
            .collect()
    };
    let wanted = read("w.safetensors")?;
    assert_eq!(wanted.len(), 14, "linear layers");
    for (stats, error) in [("s", 1e-12), ("i.gguf", 1e-12), ("g", 1e-5)] {
        succeeds(
            folder,
            &format!("scores {NANO} --score wanda --stats {stats} --out o.safetensors --force"),
        )?;
        let found = read("o.safetensors")?;
        for ((name, wanted), (own, found)) in wanted.iter().zip(&found) {
            assert_eq!(name, own);
            assert_close(&format!("{stats} {name}"), found, wanted, Within::Norm(error));
        }
    }
    let refused = |command: &str, said: &str| -> Result<(), Failed> {
        lopper(folder, &format!("{command} --out no --device cpu"))?.refused(2, said);
        Ok(())
    };
    let other = "scores embedded:tiny-llama --score wanda --stats";
    refused(&format!("{other} s"), "s: & these statistics")?;
    refused(&format!("{other} i.gguf"), "i.gguf: & these statistics & sha256")?;
    refused(&format!("scores {NANO} --score param_first --stats s"), "no gradients & param_first")?;
    refused(&format!("scores {NANO} --score wanda --stats s --samples 3"), "--samples")?;
    Ok(())
}

/// An imatrix as llama.cpp lays it out: names, types, shapes, keys; read again it is the same.
fn imatrix() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    succeeds(folder, &format!("calibrate {NANO} --samples 3 --length 20 --out i.gguf"))?;
    let path = folder.join("i.gguf");
    let found = Imatrix::open(&path)?;
    assert_eq!((found.chunks, found.chunk_size, found.tokens()), (3, 20, 60));
    assert_eq!(found.datasets, ["embedded:calibration"]);
    let model = Checkpoint::open(NANO)?;
    assert_eq!(found.model_sha256, Some(identity(&model)?));
    let names: Vec<&str> = found.entries.keys().map(String::as_str).collect();
    let linear = ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"];
    let mut expected: Vec<String> =
        (0..2).flat_map(|layer| linear.map(|name| format!("blk.{layer}.{name}.weight"))).collect();
    // Its head is the embedding.
    expected.push("token_embd.weight".into());
    assert_eq!(names, expected);
    let same = |a: &str, b: &str| found.entries[a].sums == found.entries[b].sums;
    assert!(same("blk.1.attn_q.weight", "blk.1.attn_v.weight"), "one input");
    assert!(!same("blk.1.attn_q.weight", "blk.1.ffn_up.weight"), "two inputs");
    assert_eq!(found.entries["blk.1.ffn_down.weight"].sums.len(), 192);
    let again = folder.join("again.gguf");
    found.write(&again)?;
    assert_eq!(Imatrix { path: path.clone(), ..Imatrix::open(&again)? }, found);
    let gguf = lopper::formats::gguf::Gguf::open_set(&path)?;
    let shape = |name: &str| gguf.tensor(name).map(|tensor| tensor.shape);
    assert_eq!(shape("blk.0.ffn_down.weight.in_sum2"), Some(vec![1, 192]));
    assert_eq!(shape("blk.0.ffn_down.weight.counts"), Some(vec![1, 1]));
    // Squares are all it has.
    lopper(folder, &format!("calibrate {NANO} --kinds gram --out g.gguf"))?
        .refused(2, "--kinds & squares");
    let stored = Stored::open(&path)?;
    let error = stored.require(model.config(), &[Kind::Gram]).err().ok_or("no second moments")?;
    let said = error.to_string();
    for text in
        ["model.layers.0.self_attn.q_proj.gram", "lopper calibrate", "--kinds gram", "squares"]
    {
        assert!(said.contains(text), "{text}: {said}");
    }
    // What its hash does not tell of llama.cpp's own files, names and widths do.
    let mut foreign = found.clone();
    foreign.model_sha256 = None;
    foreign
        .entries
        .insert("blk.0.ffn_down.weight".into(), Entry { sums: vec![1.0; 100], counts: vec![60.0] });
    foreign.write(&again)?;
    let error = Stored::open(&again)?.require(model.config(), &[Kind::Squares]);
    let said = error.err().ok_or("another width")?.to_string();
    assert!(said.contains("192 input channels, found 100"), "{said}");
    Ok(())
}

/// llama.cpp's own importance matrices, in both layouts, have what a walk over the same tokens sums: to 1e-3, because it multiplies
/// activations in f16. The older layout keeps sums over tokens as means times chunks.
fn llama_cpp() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    succeeds(folder.path(), &format!("calibrate {NANO} --samples 3 --length 32 --out s"))?;
    let model = Checkpoint::open(NANO)?;
    let config = model.config();
    let kinds = [Kind::Squares];
    let own = Stored::open(&folder.path().join("s"))?;
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/gguf");
    for (file, tokens) in [("nano-llama-imatrix.gguf", 96), ("nano-llama-imatrix.dat", 3)] {
        let theirs = Stored::open(&assets.join(file))?;
        theirs.check_model(model.path(), &identity(&model)?)?;
        theirs.require(config, &kinds)?;
        assert_eq!(theirs.tokens(), tokens, "{file}");
        for layer in 0..config.layers() {
            let (own, theirs) =
                (own.block(config, layer, &kinds)?, theirs.block(config, layer, &kinds)?);
            for (slot, input) in &own.inputs {
                let mean = |sums: &lopper::walk::InputSums| -> Result<Vec<f32>, Failed> {
                    let squares = sums.sums.get(&Kind::Squares).ok_or("squares")?;
                    Ok(squares.iter().map(|sum| sum / sums.tokens as f32).collect())
                };
                let found = mean(theirs.input(*slot).ok_or("an input")?)?;
                let what = format!("{file}, block {layer}, {slot:?}");
                assert_close(&what, &found, &mean(input)?, Within::Norm(1e-3));
            }
        }
    }
    Ok(())
}

/// The layout of llama.cpp before GGUF, and files cut at any byte.
fn old_imatrix() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let path = folder.path().join("i.dat");
    let mut bytes = Vec::new();
    let put = |bytes: &mut Vec<u8>, number: i32| bytes.extend(number.to_le_bytes());
    put(&mut bytes, 2);
    let tensors = [("blk.0.attn_q.weight", vec![4.0f32, 9.0]), ("blk.0.ffn_up.weight", vec![1.0])];
    for (name, values) in &tensors {
        put(&mut bytes, name.len() as i32);
        bytes.extend(name.as_bytes());
        put(&mut bytes, 5);
        put(&mut bytes, values.len() as i32);
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    }
    let entries = bytes.len();
    put(&mut bytes, 5);
    put(&mut bytes, 4);
    bytes.extend(b"text");
    std::fs::write(&path, &bytes)?;
    let found = Imatrix::open(&path)?;
    assert_eq!((found.chunks, found.datasets), (5, vec!["text".to_string()]));
    for (name, values) in &tensors {
        let entry = Entry { sums: values.clone(), counts: vec![5.0] };
        assert_eq!(found.entries[*name], entry);
    }
    let cut = folder.path().join("cut.dat");
    let mut whole = 0;
    for length in 0..bytes.len() {
        std::fs::write(&cut, &bytes[..length])?;
        whole += usize::from(Imatrix::open(&cut).is_ok());
    }
    // Without the end that later versions added, and with the number of chunks only, it is whole.
    assert_eq!(whole, 2, "cut before byte {entries}");
    Ok(())
}

/// What is wrong with the folder, the flags or the text is told, and nothing is left.
fn refused() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    succeeds(folder, &format!("calibrate {NANO} {ALL} --samples 2 --out s"))?;
    let refused = |arguments: &str, code: i32, said: &str| -> Result<(), Failed> {
        let before = snapshot(folder)?;
        let run = lopper(folder, &format!("{arguments} --device cpu"))?;
        run.refused(code, said);
        assert_eq!(before, snapshot(folder)?, "{arguments}");
        Ok(())
    };
    let calibrate = |flags: &str| format!("calibrate {NANO} --out n {flags}");
    refused(&calibrate("--samples 100000 --length 128"), 2, "100000 x 128 tokens & tokens in all")?;
    refused(&calibrate("--length 100000"), 2, "tokens")?;
    refused(&calibrate("--kinds hessian"), 2, "--kinds & gram & hessian")?;
    refused(&calibrate("--calib none.txt"), 2, "none.txt")?;
    refused(&format!("calibrate {NANO} --out s"), 4, "s: exists already & --force")?;
    refused("calibrate --out n", 2, "MODEL")?;
    refused(&format!("calibrate {NANO} --merge s s --out n"), 2, "--merge")?;
    refused("calibrate --merge s --out n", 2, "--merge")?;
    refused("calibrate --merge s none --out n", 2, "none")?;
    let wanda = format!("scores {NANO} --score wanda --out n --stats");
    refused(&format!("{wanda} none"), 2, "none: cannot read")?;
    std::fs::create_dir(folder.join("empty"))?;
    refused(&format!("{wanda} empty"), 2, "empty & no statistics.json")?;
    std::fs::write(folder.join("text"), "no imatrix, a text")?;
    refused(&format!("{wanda} text"), 2, "text & imatrix")?;
    // A block's file that is cut, of another shape, or gone.
    let block = block_file(&folder.join("s"), 1);
    let bytes = std::fs::read(&block)?;
    std::fs::write(&block, &bytes[..bytes.len() - 9])?;
    refused(&format!("{wanda} s"), 2, "block-00001.safetensors & bytes")?;
    std::fs::copy(block_file(&folder.join("s"), 0), &block)?;
    refused(&format!("{wanda} s"), 2, "block-00001.safetensors & model.layers.1")?;
    std::fs::remove_file(&block)?;
    refused(&format!("{wanda} s"), 2, "block-00001.safetensors: cannot read")?;
    // Fewer tokens than channels is said, with numbers, and no error.
    let run = lopper(folder, &calibrate("--kinds gram --samples 2 --length 24 --device cpu"))?;
    assert!(run.code == Some(0), "{run}");
    for text in ["48 tokens", "192 channels", "model.layers.0.mlp.down_proj"] {
        assert!(run.err.contains(text), "{text}: {run}");
    }
    // What was written may be replaced, and what somebody put there may not.
    succeeds(folder, &format!("calibrate {NANO} --samples 2 --length 24 --out n --force"))?;
    std::fs::write(folder.join("n/mine"), "")?;
    let run = lopper(folder, &format!("calibrate {NANO} --samples 2 --out n --force"))?;
    run.refused(4, "n & mine");
    Ok(())
}

/// kill -9 at any moment and `--resume`: the same files in the end, and nothing beside them. Another run's work is refused.
fn killed_at_any_moment() -> Result<(), Failed> {
    let folder = TempDir::new()?;
    let folder = folder.path();
    let arguments = format!("calibrate embedded:tiny-llama {ALL} --samples 4 --device cpu --out");
    let begin = Instant::now();
    let whole = lopper(folder, &format!("{arguments} whole"))?;
    assert!(whole.code == Some(0), "{whole}");
    let seconds = begin.elapsed().as_secs_f64();
    let wanted = snapshot(folder.join("whole"))?;
    let mut random = Random::new(23);
    let (mut kills, mut taken_over) = (0, 0);
    while kills < 6 || taken_over == 0 {
        let mut command = command(folder, &format!("{arguments} out --resume"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let moment = 0.3 + 0.7 * f64::from(random.below(1000)) / 1000.0;
        std::thread::sleep(Duration::from_secs_f64(moment * seconds));
        if child.try_wait()?.is_none() {
            child.kill()?;
            kills += 1;
        }
        let run: Run = child.wait_with_output()?.into();
        match run.code {
            Some(0) => {
                assert_eq!(snapshot(folder.join("out"))?, wanted, "after {kills} kills");
                assert!(!folder.join("out.work").exists(), "the work folder is gone");
                std::fs::remove_dir_all(folder.join("out"))?;
            }
            None => {
                let made = folder.join("out.work/statistics.part");
                taken_over += usize::from(block_file(&made, 0).exists());
                assert!(kills < 60, "no block was ever written in time");
            }
            code => return Err(format!("after {kills} kills: {code:?} {}", run.err).into()),
        }
    }
    if folder.join("out.work").exists() {
        let other = arguments.replace("--samples 4", "--samples 3");
        let run = lopper(folder, &format!("{other} out --resume"))?;
        run.refused(4, "out.work & the calibration was 4 x 24 tokens & 3 x 24 tokens");
        lopper(folder, &format!("{arguments} out"))?.refused(4, "out.work & --resume");
    }
    // A kill in the middle of a write leaves its hidden file in the work folder; the run that ends takes it away.
    let run = lopper(folder, &format!("{arguments} out --resume"))?;
    assert!(run.code == Some(0), "{run}");
    assert_eq!(snapshot(folder.join("out"))?, wanted, "after {kills} kills");
    let left: Vec<PathBuf> = snapshot(folder)?.into_keys().collect();
    let hidden = left.iter().filter(|path| path.to_string_lossy().contains("/.lopper-"));
    assert_eq!(hidden.count(), 0, "{left:?}");
    Ok(())
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Holder {
    ratio: f64,
    #[serde(flatten)]
    source: Source,
}

/// A stage has the fields of where statistics come from as keys of its own, and no unknown ones.
fn source_in_recipes() -> Result<(), Failed> {
    let read = |text: &str| toml::from_str::<Holder>(text);
    let plain = read("ratio = 0.5")?;
    assert_eq!(
        (plain.source.feed(), plain.source.calibration().is_some()),
        (Feed::Compressed, true)
    );
    let full = read(
        "ratio = 0.5\nfeed = \"parent\"\ncalibration = { text = \"t\", samples = 3, length = 4 }",
    )?;
    assert_eq!(full.source.feed(), Feed::Parent);
    assert_eq!(full.source.calibration.samples(), 3);
    let kept = read("ratio = 0.5\nstats = \"s\"")?;
    assert_eq!((kept.source.feed(), kept.source.calibration()), (Feed::Parent, None));
    for holder in [&plain, &full, &kept] {
        let text = toml::to_string(holder)?;
        assert_eq!(&read(&text)?, holder, "{text}");
        assert!(holder.source.check().is_ok(), "{text}");
    }
    let wrong = read("ratio = 0.5\nstats = \"s\"\nfeed = \"compressed\"")?;
    assert!(wrong.source.check().is_err(), "they contradict each other");
    for text in ["ratio = 0.5\nfeeed = \"parent\"", "ratio = 0.5\ncalibration = { texts = \"t\" }"]
    {
        let error = read(text).err().ok_or("an unknown key")?.to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
    Ok(())
}
