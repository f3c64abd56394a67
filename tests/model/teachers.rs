//! What a teacher gives beside its distribution: hidden states, its likeliest tokens, and these from a file.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, Random};
use lopper::kernels::copy::cast::scaled;
use lopper::model::{
    BackwardOptions, Cache, Checkpoint, Compute, Model, TensorSpec, WeightSource, Weights,
    block_gradients, gradients,
};
use lopper::tensor::{DType, Packed};
use lopper::train::TeacherModel;
use lopper::train::hidden::Pairs;

use crate::machine::on_each;
use crate::models::{MapWeights, load, pass};
use crate::program::{NANO, TINY, lopper, read_json, runs};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    trials.extend(on_each("teachers::hidden_states", hidden_states));
    trials.extend(on_each("teachers::a_block_alone", a_block_alone));
    trials.extend(
        suite!("teachers": pairs, hidden_by_command, blockwise_by_command, stored_as_computed, rules),
    );
    trials
}

const SEQUENCES: usize = 2;
const LENGTH: usize = 16;
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

fn nano() -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(NANO)?)
}

fn ids(vocabulary: usize) -> Vec<u32> {
    let mut random = Random::new(9);
    (0..SEQUENCES * LENGTH).map(|_| random.below(vocabulary as u32)).collect()
}

/// Another model of the same shape.
fn other(spec: &TensorSpec, packed: Packed) -> lopper::error::Result<Packed> {
    let mut random = Random::new(spec.name.len() as u64);
    let values = packed.to_f32();
    let noise = random.values(values.len(), 0.3);
    let values: Vec<f32> = values.iter().zip(noise).map(|(v, n)| v * (1.0 + n)).collect();
    Ok(Packed::from_f32(&values, spec.rows, spec.columns))
}

/// Outputs of all blocks, f32 (tokens, hidden).
fn states(model: &Model, ids: &[u32]) -> Result<Vec<Vec<f32>>, Failed> {
    let device = &Device::Cpu;
    let cache = Cache::single_layer(device, model.config(), SEQUENCES, LENGTH, Compute::F32)?;
    let mut found = Vec::new();
    model.hidden_through(&pass(device), ids, &cache, &mut |_, x| {
        found.push(device.read(&scaled(device, x, 1.0, DType::F32)?)?.to_f32());
        Ok(())
    })?;
    Ok(found)
}

/// The mean over pairs and tokens that count of |x - y|^2 / |y|^2, in plain order.
fn apart(
    child: &[Vec<f32>],
    parent: &[Vec<f32>],
    pairs: &[(usize, usize)],
    counts: &[bool],
) -> f64 {
    let mut sum = 0.0;
    for (own, of) in pairs {
        let width = child[*own].len() / counts.len();
        for token in (0..counts.len()).filter(|token| counts[*token]) {
            let (mut far, mut size) = (0.0, 0.0);
            for at in token * width..(token + 1) * width {
                let (x, y) = (f64::from(child[*own][at]), f64::from(parent[*of][at]));
                far += (x - y) * (x - y);
                size += y * y;
            }
            sum += far / size;
        }
    }
    sum / (pairs.len() * counts.iter().filter(|counts| **counts).count()) as f64
}

/// The loss is that of next tokens and of the states as they are defined; its gradient is its slope, whatever goes through a layer
/// at once.
fn hidden_states(device: &Device) -> Result<(), Failed> {
    let model = nano()?;
    let config = model.config();
    let parent = MapWeights(&model, &other);
    let ids = ids(config.vocab_size);
    let counts: Vec<bool> =
        (0..ids.len()).map(|at| (at + 1) % LENGTH != 0 && at % 3 != 1).collect();
    let weight = 2.5f32;
    let parent_states = states(&load(&Device::Cpu, &parent)?, &ids)?;
    for given in [&[][..], &[(0, 1)][..]] {
        let pairs = Pairs::new(given, config, config)?;
        let teacher = TeacherModel::new(load(device, &parent)?, config.vocab_size)?;
        let teacher = teacher.with_states(&pairs);
        teacher.read(&pass(device), &ids, SEQUENCES, &[])?;
        let run =
            |student: &Model, weight: f32, tokens: usize| -> Result<(f64, Vec<f32>), Failed> {
                let hidden = |layer: usize, tokens: std::ops::Range<usize>, x: &_| {
                    pairs.part(device, &teacher, weight, &counts, (layer, tokens, x))
                };
                let mut options = BackwardOptions { tokens, ..BackwardOptions::ALL };
                options.hidden = Some(&hidden);
                options.tensor = &|name| name == DOWN;
                let mut found: Vec<f32> = Vec::new();
                let loss = gradients(
                    WeightSource::Resident(student),
                    &pass(device),
                    &ids,
                    SEQUENCES,
                    options,
                    &mut |_, _| {},
                    &mut |gradient| {
                        let values = device.read(&gradient.values)?.to_f32();
                        found.resize(values.len(), 0.0);
                        found.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                        Ok(())
                    },
                )?;
                Ok((loss, found))
            };
        let student = load(device, &model)?;
        let (plain, _) = run(&student, 0.0, usize::MAX)?;
        let (loss, gradient) = run(&student, weight, usize::MAX)?;
        let own_states = states(&load(&Device::Cpu, &model)?, &ids)?;
        let far = apart(&own_states, &parent_states, pairs.pairs(), &counts);
        let expected = plain + f64::from(weight) * far;
        assert!((loss - expected).abs() < 1e-4 * expected, "{loss}, not {expected}");
        assert!(far > 1e-3, "they are apart: {far}");
        let (by_parts, of_parts) = run(&student, weight, LENGTH)?;
        assert!((by_parts - loss).abs() < 1e-5 * loss, "{by_parts}, not {loss}");
        let norm = |values: &[f32]| -> f64 {
            values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
        };
        let size = norm(&gradient);
        let away: Vec<f32> = gradient.iter().zip(&of_parts).map(|(a, b)| a - b).collect();
        assert!(norm(&away) < 1e-4 * size, "{} of {size}", norm(&away));
        // Along the gradient the slope is its norm.
        let step = 0.02;
        let moved = |sign: f64| -> Result<f64, Failed> {
            let along = |spec: &TensorSpec, packed: Packed| {
                if spec.name != DOWN {
                    return Ok(packed);
                }
                let values = packed.to_f32();
                let moved = values.iter().zip(&gradient);
                let moved: Vec<f32> = moved
                    .map(|(w, g)| (f64::from(*w) + sign * step * f64::from(*g) / size) as f32)
                    .collect();
                Ok(Packed::from_f32(&moved, spec.rows, spec.columns))
            };
            let student = load(device, &MapWeights(&model, &along))?;
            Ok(run(&student, weight, usize::MAX)?.0)
        };
        let slope = (moved(1.0)? - moved(-1.0)?) / (2.0 * step);
        assert!((slope - size).abs() < 0.02 * size, "a slope of {slope}, a gradient of {size}");
    }
    Ok(())
}

/// A block's loss is how far its output of the teacher's input is from the teacher's output, and its gradient is its slope.
fn a_block_alone(device: &Device) -> Result<(), Failed> {
    const UP: &str = "model.layers.1.mlp.up_proj.weight";
    let model = nano()?;
    let config = model.config();
    let parent = MapWeights(&model, &other);
    let ids = ids(config.vocab_size);
    let counts: Vec<bool> = (0..ids.len()).map(|at| at % 5 != 2).collect();
    let pairs = Pairs::new(&[], config, config)?;
    let teacher = TeacherModel::new(load(device, &parent)?, config.vocab_size)?.with_states(&pairs);
    teacher.read(&pass(device), &ids, SEQUENCES, &[])?;
    let input = teacher.state(device, 0, 0..ids.len())?;
    let alone = pairs.alone(1);
    let run = |student: &Model, tokens: usize| -> Result<(f64, Vec<f32>), Failed> {
        let loss = |layer: usize, tokens: std::ops::Range<usize>, x: &_| {
            alone.part(device, &teacher, 1.0, &counts, (layer, tokens, x))
        };
        let options =
            BackwardOptions { tokens, tensor: &|name| name == UP, ..BackwardOptions::ALL };
        let mut found: Vec<f32> = Vec::new();
        let source = WeightSource::Resident(student);
        let input = (&input, SEQUENCES);
        let pending =
            block_gradients(source, &pass(device), 1, input, &loss, options, &mut |gradient| {
                let values = device.read(&gradient.values)?.to_f32();
                found.resize(values.len(), 0.0);
                found.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                Ok(())
            })?;
        Ok((pending.finish(device)?, found))
    };
    let student = load(device, &model)?;
    let (loss, gradient) = run(&student, usize::MAX)?;
    // The student's second block behind the teacher's first is a model whose first block, and what is below, are the teacher's.
    let mixed = |spec: &TensorSpec, packed: Packed| match spec.layer {
        Some(1) => Ok(packed),
        _ => other(spec, packed),
    };
    let child = states(&load(&Device::Cpu, &MapWeights(&model, &mixed))?, &ids)?;
    let parent = states(&load(&Device::Cpu, &parent)?, &ids)?;
    let expected = apart(&child, &parent, &[(1, 1)], &counts);
    assert!((loss - expected).abs() < 1e-4 * expected, "{loss}, not {expected}");
    let (by_parts, _) = run(&student, LENGTH)?;
    assert!((by_parts - loss).abs() < 1e-5 * loss, "{by_parts}, not {loss}");
    let size = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let step = 0.02;
    let moved = |sign: f64| -> Result<f64, Failed> {
        let along = |spec: &TensorSpec, packed: Packed| {
            if spec.name != UP {
                return Ok(packed);
            }
            let values = packed.to_f32();
            let moved = values.iter().zip(&gradient);
            let moved: Vec<f32> = moved
                .map(|(w, g)| (f64::from(*w) + sign * step * f64::from(*g) / size) as f32)
                .collect();
            Ok(Packed::from_f32(&moved, spec.rows, spec.columns))
        };
        Ok(run(&load(device, &MapWeights(&model, &along))?, usize::MAX)?.0)
    };
    let slope = (moved(1.0)? - moved(-1.0)?) / (2.0 * step);
    assert!((slope - size).abs() < 0.02 * size, "a slope of {slope}, a gradient of {size}");
    Ok(())
}

/// Pairs that there are none of are refused; without any, blocks answer to those at their depth.
fn pairs() -> Result<(), Failed> {
    let (model, larger) = (nano()?, Checkpoint::open(TINY)?);
    let config = model.config();
    let even = Pairs::new(&[], config, config)?;
    let layers = config.layers();
    assert_eq!(even.pairs(), (0..layers).map(|layer| (layer, layer)).collect::<Vec<_>>());
    assert_eq!(Pairs::new(&[(1, 0)], config, config)?.of(1), Some(0));
    for (given, said) in [(vec![(layers, 0)], "below"), (vec![(0, 1), (0, 0)], "twice")] {
        let error = Pairs::new(&given, config, config).expect_err("no such pairs").to_string();
        assert!(error.contains(said), "{error}");
    }
    if larger.config().hidden_size != config.hidden_size {
        let error = Pairs::new(&[], config, larger.config()).expect_err("other widths");
        assert!(error.to_string().contains("as wide"), "{error}");
    }
    Ok(())
}

/// A text of a few rows, and the flags of a short run on it.
fn text(folder: &Path) -> Result<String, Failed> {
    let words = ["the", "budget", "of", "a", "year", "was", "read", "by", "all", "members"];
    let mut random = Random::new(4);
    let text: Vec<&str> = (0..900).map(|_| words[random.below(10) as usize]).collect();
    std::fs::write(folder.join("a.txt"), text.join(" "))?;
    Ok("--device cpu --data a.txt --length 32 --batch 3 --held-out 0 --ctx 32 --max-tokens 128"
        .into())
}

fn losses(folder: &Path, name: &str) -> Result<Vec<f64>, Failed> {
    let told = read_json(folder.join(name).join("training.json"))?;
    let steps = told["steps"].as_array().ok_or("steps")?;
    Ok(steps.iter().map(|step| step["loss"].as_f64().unwrap_or(f64::NAN)).collect())
}

/// A command with hidden states has their part in its loss, and makes it smaller.
fn hidden_by_command() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = text(folder.path())?;
    let run = format!(
        "distill {NANO} --teacher {NANO} --method mask --pattern 2:4 --epochs 1 --rate 0.02 {run}"
    );
    runs(&folder, &format!("{run} --out plain"))?;
    runs(&folder, &format!("{run} --out near --hidden 1 --hidden-map 0=0 --hidden-map 1=1"))?;
    let (plain, near) = (losses(folder.path(), "plain")?, losses(folder.path(), "near")?);
    assert!(near[0] > plain[0] + 0.01, "{} and {}", plain[0], near[0]);
    assert!(near[near.len() - 1] < near[0], "{near:?}");
    Ok(())
}

/// Blocks that learn alone come nearer to the teacher's, and the model begins nearer to it.
fn blockwise_by_command() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = text(folder.path())?;
    let run = format!(
        "distill {NANO} --teacher {NANO} --method quantized --bits 2 --group-size 32 --rate 1e-3 --steps 2 {run}"
    );
    runs(&folder, &format!("{run} --out plain"))?;
    runs(&folder, &format!("{run} --out near --blockwise 20"))?;
    let told = read_json(folder.path().join("near/training.json"))?;
    let blocks = told["blocks"].as_array().ok_or("blocks")?;
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        let far = |key: &str| block[key].as_f64().unwrap_or(f64::NAN);
        assert!(far("last") < 0.9 * far("first"), "{block}");
    }
    let (plain, near) = (losses(folder.path(), "plain")?, losses(folder.path(), "near")?);
    assert!(near[0] < 0.95 * plain[0], "{} and {}", near[0], plain[0]);
    Ok(())
}

/// From a file a teacher says what it says itself, but for the rounding of logarithms; a file is made once, continued where it was
/// cut off, and read for its own teacher and data only.
fn stored_as_computed() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = text(folder.path())?;
    let run = format!(
        "distill {NANO} --teacher {TINY} --method full --include *down_proj --teacher-top 12 --epochs 2 {run}"
    );
    runs(&folder, &format!("{run} --out computed"))?;
    runs(&folder, &format!("{run} --out stored --teacher-cache says"))?;
    let (computed, stored) = (losses(folder.path(), "computed")?, losses(folder.path(), "stored")?);
    assert_eq!(computed.len(), stored.len());
    assert!(computed.len() > 8, "{} steps", computed.len());
    for (computed, stored) in computed.iter().zip(&stored) {
        assert!((computed - stored).abs() < 5e-3 * computed, "{computed} and {stored}");
    }
    let file = folder.path().join("says/teacher.bin");
    let whole = std::fs::read(&file)?;
    let record = read_json(folder.path().join("says/teacher.json"))?;
    let rows = record["rows"].as_u64().ok_or("rows")? as usize;
    assert_eq!(whole.len(), rows * 32 * 12 * 6);
    std::fs::write(&file, &whole[..whole.len() / 2 + 5])?;
    runs(&folder, &format!("{run} --out again --teacher-cache says"))?;
    assert!(std::fs::read(&file)? == whole, "the file is as it was");
    assert_eq!(losses(folder.path(), "again")?, stored);
    let other = format!("{run} --out other --teacher-cache says");
    lopper(&folder, &other.replace("--teacher-top 12", "--teacher-top 11"))?
        .refused(2, "teacher.json & stored teacher");
    lopper(&folder, &other.replace(TINY, NANO))?.refused(2, "teacher.json & stored teacher");
    std::fs::write(folder.path().join("says/teacher.json"), "{")?;
    lopper(&folder, &other)?.refused(2, "teacher.json & stored teacher");
    Ok(())
}

fn rules() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = text(folder.path())?;
    for (flags, said) in [
        ("--teacher-top 4 --divergence reverse", "divergence & forward"),
        ("--teacher-top 0", "teacher_top & 1 or more"),
        ("--teacher-cache says", "teacher-top"),
        ("--teacher-top 4 --teacher-cache says --hidden 1", "teacher_cache & hidden"),
        ("--hidden=-1", "hidden & 0 or more"),
        ("--hidden-map 0=0", "hidden & a weight"),
        ("--blockwise 2 --hidden-map 0=0", "blockwise & none for block 1"),
        ("--hidden 1 --hidden-map 0", "3=7"),
        ("--hidden 1 --hidden-map 0=9", "hidden states & below"),
    ] {
        let run = format!("distill {NANO} --teacher {NANO} --out a {run} {flags}");
        lopper(&folder, &run)?.refused(2, said);
    }
    assert!(!folder.path().join("says").exists());
    Ok(())
}
