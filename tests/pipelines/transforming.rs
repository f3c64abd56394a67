//! Transformations: they leave what a model computes as it was, whatever its family, and lose less in few bits where channels differ.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::graph::Slot;
use lopper::methods::calibration::Rows;
use lopper::methods::quantize::rtn::rtn;
use lopper::methods::quantize::{Grid, Scheme};
use lopper::methods::transform::hadamard::{Parts, Rotation};
use lopper::methods::transform::scale::{PLACES, is_scaled, places};
use lopper::model::{Checkpoint, Outline, Role, TensorSpec, WeightSource, Weights};
use lopper::stages::RecipeStage;
use lopper::tensor::Packed;
use lopper::walk::{Through, Walk};
use serde_json::Value;

use crate::machine::on_each;
use crate::models::{MapWeights, logits, pass, run_stage, run_stage_on};
use crate::numbers::{Within, assert_close, relative_error};
use crate::program::{lopper, read_json, succeeds};

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("transforming":
        orthogonal, stored, nothing_scaled, outliers, planned, from_statistics, refused, commands);
    trials.extend(on_each("transforming::same_function", same_function));
    trials.extend(on_each("transforming::losses", losses));
    trials
}

fn stage(keys: &str) -> Result<RecipeStage, Failed> {
    Ok(toml::from_str(&format!("kind = \"transform\"\n{keys}"))?)
}

fn quantized(keys: &str) -> Result<RecipeStage, Failed> {
    Ok(toml::from_str(&format!("kind = \"quantize\"\n{keys}"))?)
}

/// Two rows of 24 tokens.
fn rows(model: &dyn Weights, seed: u64) -> Rows {
    let mut random = Random::new(seed);
    let vocabulary = model.config().vocab_size as u32;
    Rows { ids: (0..48).map(|_| random.below(vocabulary)).collect(), samples: 2 }
}

/// Rotations are orthogonal; those of Hadamard's have entries of one size.
fn orthogonal() -> Result<(), Failed> {
    let all =
        [1, 2, 64, 3, 12, 24, 20, 80, 56, 28, 36, 44, 76, 10, 14, 48, 96, 13, 52, 92, 60, 576, 640];
    for width in all {
        let rotation = Rotation::random(width, 81);
        let rows: Vec<f64> = rotation.rows().into_iter().map(f64::from).collect();
        for i in 0..width {
            for j in i.saturating_sub(70)..=i {
                let (a, b) = (&rows[i * width..][..width], &rows[j * width..][..width]);
                let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                let away = (dot - f64::from(u8::from(i == j))).abs();
                assert!(away < 1e-6, "{width}: rows {i} and {j}, {dot}");
            }
        }
        let parts = rotation.parts();
        assert_eq!((parts, parts.sylvester * parts.rest), (Parts::of(width), width));
        let size = 1.0 / (width as f64).sqrt();
        let even = rows.iter().all(|value| (value.abs() - size).abs() < 1e-6);
        assert_eq!(even, parts.paley, "{width}: {}", parts.words());
        let vector: Vec<f64> = (0..width).map(|at| (at as f64).sin()).collect();
        let wanted: Vec<f64> = rows
            .chunks(width)
            .map(|row| row.iter().zip(&vector).map(|(a, b)| a * b).sum())
            .collect();
        let mut found = vector;
        rotation.apply(&mut found);
        assert_close(&format!("width {width}"), &found, &wanted, Within::EachAndOne(1e-5));
    }
    let words = |width: usize| Parts::of(width).words();
    assert_eq!(words(4096), "Hadamard 4096");
    assert_eq!(words(576), "Hadamard 16 x 36");
    assert_eq!(words(896), "Hadamard 32 x 28");
    assert_eq!(words(1152), "Hadamard 32 x 36");
    assert_eq!(words(11_008), "Hadamard 256 x random orthogonal 43");
    assert_ne!(Rotation::random(64, 1), Rotation::random(64, 2), "a seed draws it");
    Ok(())
}

/// Models of random weights have no gains but 1: here none is. Large outliers, which what reads them makes up for.
fn with_gains(model: &dyn Weights, spec: &TensorSpec, weight: Packed) -> Packed {
    if spec.role != Role::Norm || spec.columns != model.config().hidden_size {
        return weight;
    }
    let gain = |at: usize| 0.5 + ((7 * at + spec.layer.unwrap_or(9)) % 11) as f32 / 8.0;
    let values: Vec<f32> = weight.to_f32().iter().enumerate().map(|(at, v)| v * gain(at)).collect();
    Packed::from_f32(&values, spec.rows, spec.columns)
}

const MODELS: [&str; 8] = [
    "embedded:nano-llama",
    "assets/families/qwen2",
    "assets/families/qwen3",
    "assets/families/mistral",
    "assets/families/gemma3",
    "assets/families/gemma3-capped",
    "assets/fixtures/biased",
    "embedded:tiny-mixtral",
];

const ALL: [&str; 7] = [
    "method = \"awq\"\nbits = 3\ngroup_size = 16\nalphas = 4",
    "method = \"awq\"\nbits = 3\ngroup_size = 16\nalphas = 3\nduo = true",
    "method = \"smooth\"",
    "method = \"smooth\"\nalpha = 0.9",
    "method = \"rotate\"",
    "method = \"rotate\"\nonly = \"stream\"",
    "method = \"rotate\"\nonly = \"heads\"",
];

/// Before they are rounded transformed models give their parents' logits: tied heads, gains, biases, norms of heads, query heads
/// that share values, norms behind the halves.
fn same_function(device: &Device) -> Result<(), Failed> {
    for name in MODELS {
        let model = Checkpoint::open(name)?;
        let gained = |spec: &TensorSpec, weight: Packed| Ok(with_gains(&model, spec, weight));
        let parent = MapWeights(&model, &gained);
        let (rows, ids) = (rows(&model, 82), rows(&model, 83).ids);
        let wanted = logits(device, &parent, &ids, 2)?;
        // On a GPU each method once.
        for keys in ALL.into_iter().step_by(if device.gpu().is_some() { 2 } else { 1 }) {
            let stage = stage(keys)?;
            let folder = tempfile::tempdir()?;
            let run = run_stage_on(
                (device, Some(&rows)),
                &model,
                &parent,
                &*stage,
                &folder.path().join("stage"),
            );
            let of_stream = keys.contains("rotate") && !keys.contains("heads");
            if of_stream && name.contains("gemma") {
                let said = run.err().and_then(|error| error.message().map(str::to_string));
                let said = said.ok_or("refused")?;
                assert!(said.contains("--only heads"), "{name}: {said}");
                continue;
            }
            let left = run?;
            let exact = stage.unrounded(&parent, device, &folder.path().join("stage"))?;
            let exact = exact.ok_or("a model that rounding is measured against")?;
            let what = format!("{name}, {keys}");
            let found = logits(device, &*exact, &ids, 2)?;
            assert_close(&what, &found, &wanted, Within::EachAndOne(1e-4));
            // As it is stored, in 16 bits.
            let error = relative_error(&logits(device, &left, &ids, 2)?, &wanted);
            assert!(error < 0.03, "{what}, stored: {error}");
            let mut differ = 0;
            for spec in left.specs() {
                let before = parent.specs().iter().find(|whole| whole.name == spec.name);
                let Some(before) = before else { continue };
                let same = parent.load(before)?.to_f32() == left.load(spec)?.to_f32();
                differ += usize::from(!same);
            }
            assert!(differ > model.config().layers(), "{what}: {differ} tensors changed");
        }
    }
    Ok(())
}

/// A model in f32 keeps its logits when it is written and read again.
fn stored() -> Result<(), Failed> {
    let model = Checkpoint::open("assets/fixtures/litellama")?;
    let (rows, ids) = (rows(&model, 84), rows(&model, 85).ids);
    let wanted = logits(&Device::Cpu, &model, &ids, 2)?;
    for keys in ALL {
        let place = tempfile::tempdir()?;
        let input = (&Device::Cpu, Some(&rows));
        let left = run_stage_on(input, &model, &model, &*stage(keys)?, place.path())?;
        let found = logits(&Device::Cpu, &left, &ids, 2)?;
        assert_close(keys, &found, &wanted, Within::EachAndOne(1e-4));
    }
    Ok(())
}

/// With nothing but an exponent of 0 to try, AWQ leaves every bit as it was.
fn nothing_scaled() -> Result<(), Failed> {
    let model = Checkpoint::open("embedded:nano-llama")?;
    let keys = "method = \"awq\"\nbits = 3\nalphas = 1\n[calibration]\nsamples = 2\nlength = 16";
    let stage = stage(keys)?;
    let folder = tempfile::tempdir()?;
    let left = run_stage(&model, &model, &*stage, folder.path())?;
    for spec in model.specs() {
        assert_eq!(left.load(spec)?, model.load(spec)?, "{}", spec.name);
    }
    let report = stage.report(folder.path())?.ok_or("a report")?.value;
    let places = report["places"].as_array().ok_or("places")?;
    assert_eq!(places.len(), 4 * model.config().layers());
    for place in places {
        assert!(place.get("alpha").is_none() && place["error_before"] == place["error_after"]);
    }
    Ok(())
}

/// Some channels of what norms give are small, and their weights large.
fn with_outliers(spec: &TensorSpec, weight: &Packed, by: f32) -> Packed {
    let is = |at: usize| at % 24 == 5;
    let mut values = weight.to_f32();
    match spec.slot {
        Slot::AttentionNorm | Slot::FeedForwardNorm => {
            values.iter_mut().enumerate().filter(|(at, _)| is(*at)).for_each(|(_, v)| *v /= by);
        }
        Slot::Query | Slot::Key | Slot::Value | Slot::Gate | Slot::Up => {
            for row in values.chunks_mut(spec.columns) {
                row.iter_mut().enumerate().filter(|(at, _)| is(*at)).for_each(|(_, v)| *v *= by);
            }
        }
        _ => {}
    }
    Packed::from_f32(&values, spec.rows, spec.columns)
}

/// Where single channels spoil the groups that they are in, a scaled and a rotated model lose much less in 3 bits, with any method of
/// rounding; and what AWQ says that it wins, is won.
fn outliers() -> Result<(), Failed> {
    let model = Checkpoint::open("embedded:nano-llama")?;
    let planted = |spec: &TensorSpec, weight: Packed| Ok(with_outliers(spec, &weight, 16.0));
    let parent = MapWeights(&model, &planted);
    let ids = rows(&model, 86).ids;
    let wanted = logits(&Device::Cpu, &parent, &ids, 2)?;
    let same = logits(&Device::Cpu, &model, &ids, 2)?;
    assert_close("outliers", &same, &wanted, Within::EachAndOne(1e-4));
    let calibration = "[calibration]\nsamples = 8\nlength = 64\n";
    let rounded = quantized("type = \"int3\"")?;
    let gptq = quantized(&format!("method = \"gptq\"\ntype = \"int3\"\n{calibration}"))?;
    let folder = tempfile::tempdir()?;
    let mut runs = 0;
    let mut error = |weights: &dyn Weights, stage: &RecipeStage| -> Result<f64, Failed> {
        runs += 1;
        let folder = folder.path().join(runs.to_string());
        let left = run_stage(&model, weights, &**stage, &folder)?;
        Ok(relative_error(&logits(&Device::Cpu, &left, &ids, 2)?, &wanted))
    };
    let (plain, plain_gptq) = (error(&parent, &rounded)?, error(&parent, &gptq)?);
    for (keys, most) in [
        (format!("method = \"awq\"\ntype = \"int3\"\nalphas = 10\n{calibration}"), 0.75),
        ("method = \"rotate\"".into(), 0.75),
    ] {
        let place = tempfile::tempdir()?;
        let transformed = run_stage(&model, &parent, &*stage(&keys)?, place.path())?;
        let found = (error(&transformed, &rounded)?, error(&transformed, &gptq)?);
        let shares = (found.0 / plain, found.1 / plain_gptq);
        assert!(shares.0 < most && shares.1 < 1.0, "{keys}: {shares:?} of {plain}, {plain_gptq}");
    }
    Ok(())
}

/// What AWQ says that a place loses is what its products lose, computed plainly from their inputs; it never says more than before, and
/// no exponent of its grid loses less.
fn losses(device: &Device) -> Result<(), Failed> {
    let model = Checkpoint::open("embedded:nano-llama")?;
    let planted = |spec: &TensorSpec, weight: Packed| Ok(with_outliers(spec, &weight, 4.0));
    let parent = MapWeights(&model, &planted);
    let rows = rows(&model, 87);
    let stage = stage("method = \"awq\"\ntype = \"int3\"\nalphas = 5")?;
    let folder = tempfile::tempdir()?;
    run_stage_on((device, Some(&rows)), &model, &parent, &*stage, folder.path())?;
    let report = stage.report(folder.path())?.ok_or("a report")?.value;
    let told = report["places"].as_array().ok_or("places")?;
    let mut seen = Vec::new();
    let source = WeightSource::Streamed(device, &parent);
    let mut walk = Walk::new(source, pass(device), &rows.ids, rows.samples, 1 << 20)?;
    let step = walk.next_block()?.ok_or("a block")?;
    step.advance(
        Through::Parent,
        Some(&mut |slot: Slot, x: &lopper::device::Tensor| {
            seen.push((slot, device.read(x)?.to_f32()));
            Ok(())
        }),
    )?;
    let block: Value = read_json(folder.path().join("scales-00000.json"))?;
    for (at, found) in places(&parent, 0).iter().enumerate() {
        let saved: Option<Vec<f64>> = block[at]["scales"]
            .as_array()
            .map(|all| all.iter().filter_map(Value::as_f64).collect());
        let (_, x) = seen.iter().find(|(slot, _)| *slot == found.slot()).ok_or("inputs")?;
        let width = found.behind[0].columns;
        let lost = |scales: Option<&[f64]>| -> Result<f64, Failed> {
            let (mut lost, mut whole) = (0.0, 0.0);
            for spec in &found.behind {
                let weight = parent.load(spec)?.to_f32();
                let scale = |column: usize| {
                    scales.map_or(1.0, |scales| scales[found.channels[column]] as f32)
                };
                let scaled: Vec<f32> =
                    weight.iter().enumerate().map(|(at, w)| w * scale(at % width)).collect();
                let scheme = Scheme { grid: Grid::SignedMax, bits: 3, group_size: 32, ty: None };
                let packed = Packed::from_f32(&scaled, spec.rows, width);
                let rounded = rtn(&Device::Cpu, &packed, scheme, "w")?.to_f32();
                for x in x.chunks_exact(width) {
                    for (w, r) in weight.chunks_exact(width).zip(rounded.chunks_exact(width)) {
                        let (mut away, mut all) = (0.0, 0.0);
                        for column in 0..width {
                            let x = f64::from(x[column]);
                            all += x * f64::from(w[column]);
                            away +=
                                x * (f64::from(r[column] / scale(column)) - f64::from(w[column]));
                        }
                        lost += away * away;
                        whole += all * all;
                    }
                }
            }
            Ok(lost / whole)
        };
        let figure = |key: &str| told[at][key].as_f64().ok_or("a figure");
        let (before, after) = (figure("error_before")?, figure("error_after")?);
        assert!(after <= before, "{after} after {before}");
        let name = &found.from.name;
        assert_close(name, &[before], &[lost(None)?], Within::Each(1e-3));
        assert_close(name, &[after], &[lost(saved.as_deref())?], Within::Each(1e-3));
        let of_norm =
            PLACES[at].from == Slot::AttentionNorm || PLACES[at].from == Slot::FeedForwardNorm;
        assert!(!of_norm || after < 0.7 * before, "{name}: {after} of {before}");
    }
    Ok(())
}

/// A plan says what a stage leaves: tensors, types and what is said of them; of quantized models too.
fn planned() -> Result<(), Failed> {
    let nano = Checkpoint::open("embedded:nano-llama")?;
    let folder = tempfile::tempdir()?;
    let eight = quantized("type = \"int8\"")?;
    let eight = run_stage(&nano, &nano, &*eight, &folder.path().join("eight"))?;
    let rows = rows(&nano, 88);
    for (at, keys) in ALL.into_iter().enumerate() {
        for (weights, coded) in [(&nano, false), (&eight, true)] {
            let (stage, before) = (stage(keys)?, Outline::of(weights)?);
            let planned = stage.plan(&before)?;
            let place = folder.path().join(format!("{at}-{coded}"));
            let input = (&Device::Cpu, Some(&rows));
            let left = Outline::of(&run_stage_on(input, &nano, weights, &*stage, &place)?)?;
            let of = |outline: &Outline| -> Vec<(String, Vec<usize>, String)> {
                let tensors = outline.tensors();
                tensors.map(|(spec, f)| (spec.name.clone(), spec.shape(), f.label())).collect()
            };
            assert_eq!(of(&planned.outline), of(&left), "{keys}");
            assert_eq!(planned.outline.config, left.config, "{keys}");
            assert_eq!(planned.outline.copies, left.copies, "{keys}");
            let said = planned.warnings.join("\n");
            assert_eq!(said.contains("codes do not survive"), coded, "{keys}: {said}");
            let grows = keys.contains("rotate") && !keys.contains("heads");
            assert_eq!(said.contains("the head was the embedding"), grows, "{keys}: {said}");
        }
    }
    let awq = stage(ALL[0])?.plan(&Outline::of(&nano)?)?;
    let change = |name: &str| awq.changes.get(name).map(String::as_str);
    assert_eq!(change("model.layers.1.mlp.down_proj.weight"), Some("awq for uint3m-g16"));
    assert_eq!(change("model.embed_tokens.weight"), None);
    let scaled = nano.specs().iter().filter(|spec| is_scaled(spec)).count();
    assert_eq!((scaled, awq.changes.len()), (2 * 9, 2 * 9));
    Ok(())
}

/// Statistics that were kept give what the text gives, and those that lack what a method takes are refused.
fn from_statistics() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let text = "--samples 6 --length 32";
    let nano = "embedded:nano-llama";
    succeeds(folder, &format!("calibrate {nano} --kinds gram,magnitudes,maxima {text} --out s"))?;
    for method in ["awq --alphas 5", "smooth"] {
        let command = format!("transform {nano} --method {method} --no-eval --formats packed");
        succeeds(folder, &format!("{command} {text} --out a --force"))?;
        succeeds(folder, &format!("{command} --stats s --out b --force"))?;
        let [a, b] = ["a", "b"].map(|out| read_json(folder.join(out).join("transform.json")));
        let scales = |told: Value| -> Vec<f64> {
            let places = told["places"].as_array().cloned().unwrap_or_default();
            let ends = places.iter().flat_map(|place| place["scales"].as_array().cloned());
            ends.flatten().filter_map(|value| value.as_f64()).collect()
        };
        let (a, b) = (scales(a?), scales(b?));
        assert!(a.len() >= 8, "{method}: {a:?}");
        assert_close(method, &b, &a, Within::Each(1e-3));
    }
    succeeds(folder, &format!("calibrate {nano} --kinds squares {text} --out few"))?;
    lopper(folder, &format!("transform {nano} --method awq --stats few --no-eval --out c"))?
        .refused(2, "magnitudes & squares");
    lopper(folder, &format!("transform {nano} --method smooth --stats few --no-eval --out c"))?
        .refused(2, "maxima & squares");
    Ok(())
}

/// What is refused, and how.
fn refused() -> Result<(), Failed> {
    for (keys, expected) in [
        ("method = \"awk\"", "awk"),
        ("method = \"gptq\"", "it is one of quantize stages"),
        ("method = \"smooth\"\nbits = 4", "bits"),
        ("method = \"rotate\"\nonly = \"tail\"", "tail"),
        ("method = \"awq\"\nfeed = \"parent\"", "feed"),
    ] {
        let refused = stage(keys).err().ok_or(format!("{keys} is taken"))?;
        let refused = refused.message().unwrap_or_default().to_string();
        assert!(refused.contains(expected), "{keys}: {refused}");
    }
    let refused = quantized("method = \"awq\"\nbits = 4").err().ok_or("a method elsewhere")?;
    let refused = refused.message().unwrap_or_default().to_string();
    assert!(refused.contains("it is one of transform stages"), "{refused}");
    let model = Outline::of(&Checkpoint::open("embedded:nano-llama")?)?;
    for (keys, field, found) in [
        ("method = \"awq\"\nalphas = 0", "stage.alphas", "0"),
        ("method = \"awq\"\nalphas = 5000", "stage.alphas", "5000"),
        ("method = \"awq\"\ntype = \"f16_2of4\"", "stage.type", "f16_2of4"),
        ("method = \"awq\"\ninclude = [\"*embed*\"]", "stage.include", "match none"),
        ("method = \"smooth\"\nalpha = 1.5", "stage.alpha", "1.5"),
        ("method = \"smooth\"\nalpha = -0.1", "stage.alpha", "-0.1"),
        ("method = \"smooth\"\nalpha = nan", "stage.alpha", "NaN"),
    ] {
        let refused =
            stage(keys)?.plan(&model).err().ok_or(format!("{keys} is taken"))?.to_string();
        assert!(refused.contains(field) && refused.contains(found), "{keys}: {refused}");
    }
    let gemma = Outline::of(&Checkpoint::open("assets/families/gemma3")?)?;
    let refused = stage("method = \"rotate\"")?.plan(&gemma).err().ok_or("refused")?.to_string();
    assert!(refused.contains("post_attention_layernorm"), "{refused}");
    assert!(refused.contains("--only heads"), "{refused}");
    stage("method = \"rotate\"\nonly = \"heads\"")?.plan(&gemma)?;
    Ok(())
}

/// The commands: what is quantized afterwards is what scales were looked for, and mistakes say what to do.
fn commands() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    std::fs::write(folder.join("t.txt"), "The people of the country. ".repeat(20))?;
    let nano = "embedded:nano-llama";
    lopper(folder, &format!("quantize {nano} --method awq --out q"))?
        .refused(2, "lopper transform MODEL --method awq --then TYPE");
    lopper(folder, &format!("transform {nano} --method wanda --out q"))?
        .refused(2, "lopper prune MODEL --method wanda");
    lopper(folder, &format!("transform {nano} --method nothing --out q"))?
        .refused(2, "possible values");
    lopper(folder, &format!("transform {nano} --method smooth --duo --out q"))?
        .refused(2, "--duo & awq, not of smooth");
    lopper(folder, &format!("transform {nano} --method smooth --alpha 2 --no-eval --out q"))?
        .refused(2, "--alpha & 0 to 1");
    lopper(folder, &format!("transform {nano} --calib t.txt --samples 500 --no-eval --out q"))?
        .refused(2, "t.txt & 500 x 256 tokens");
    lopper(folder, &format!("transform {nano} --then int99 --no-eval --out q"))?
        .refused(2, "type & int99");
    let run = succeeds(folder, &format!("transform {nano} --then q4_0 --print-recipe"))?;
    assert!(
        run.out.contains("type = \"q4_0\"") && run.out.contains("kind = \"quantize\""),
        "{run}"
    );
    let run = succeeds(folder, &format!("transform {nano} --bits 3 --then q4_0 --print-recipe"))?;
    assert!(run.out.contains("bits = 3") && !run.out.contains("q4_0"), "{run}");
    let text = "--calib t.txt --samples 2 --length 16 --ctx 16 --max-tokens 64";
    let command =
        format!("transform {nano} {text} --alphas 3 --then q4_0 --formats gguf,hf --out o");
    succeeds(folder, &command)?;
    let told = read_json(folder.join("o/transform.json"))?;
    assert_eq!(told["method"]["type"], "int4-g32", "{told}");
    let manifest = read_json(folder.join("o/manifest.json"))?;
    assert_eq!(manifest["stages"][0]["name"], "transform");
    let error = manifest["stages"][0]["figures"]["weight_error"].as_f64().ok_or("a figure")?;
    assert!(error > 0.0 && error < 1e-6, "{error}");
    // A seed draws a rotation.
    let rotate = format!("transform {nano} --method rotate --no-eval --formats gguf --force");
    let mut files = Vec::new();
    for seed in [1, 1, 2] {
        succeeds(folder, &format!("{rotate} --seed {seed} --out r"))?;
        files.push(std::fs::read(folder.join("r/model.gguf"))?);
    }
    assert!(files[0] == files[1] && files[0] != files[2], "the same seed, the same rotation");
    Ok(())
}
