//! What is learned in the place of weights: masks, rounding and what they leave, beside plain computations.

use std::collections::BTreeMap;

use libtest_mimic::{Failed, Trial};
use lopper::data::training::Batch;
use lopper::device::{Device, Random};
use lopper::graph::Parameter as Value;
use lopper::methods::prune::sparse::{Pattern, count};
use lopper::methods::quantize::{Grid, Scheme, rtn::rtn};
use lopper::model::{
    BackwardOptions, Checkpoint, Model, Role, TensorSpec, WeightSource, Weights, gradients,
};
use lopper::tensor::{DType, Packed};
use lopper::train::masked::Masked;
use lopper::train::{AdamW, Learner, Parameter, StepOptions};

use crate::machine::on_each;
use crate::models::{MapWeights, load, pass};
use crate::program::{NANO, lopper, read_json, runs};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    trials.extend(on_each("learned::masks_at_first", masks_at_first));
    trials.extend(on_each("learned::scores_step_by_step", scores_step_by_step));
    trials.extend(on_each("learned::masks_of_codes", masks_of_codes));
    trials.extend(suite!("learned": masks_by_command, mask_rules));
    trials
}

const PATTERNS: [(Pattern, f64); 3] =
    [(Pattern::Row, 0.6), (Pattern::Tensor, 0.3), (Pattern::Groups { keep: 1, of: 4 }, 0.75)];

fn nano() -> Result<Checkpoint, Failed> {
    Ok(Checkpoint::open(NANO)?)
}

fn spec<'a>(model: &'a dyn Weights, name: &str) -> &'a TensorSpec {
    model.specs().iter().find(|spec| spec.name == name).expect("a tensor")
}

const DOWN: &str = "model.layers.1.mlp.down_proj.weight";
const KEY: &str = "model.layers.0.self_attn.k_proj.weight";

/// Rows of seeded tokens, all of which are scored but the first.
fn batch(vocabulary: usize) -> Batch {
    let (sequences, length) = (2, 24);
    let mut random = Random::new(5);
    let ids: Vec<u32> = (0..sequences * length).map(|_| random.below(vocabulary as u32)).collect();
    let scored = (0..ids.len()).map(|at| at % length != 0).collect();
    Batch { ids, scored, sequences, length }
}

fn options(rate: f64) -> StepOptions<'static> {
    StepOptions {
        rate,
        next_tokens: 1.0,
        teacher: None,
        hidden: None,
        tokens: usize::MAX,
        activation_budget: 0,
        dropout_seed: None,
    }
}

/// What stays of weights by the order of their scores, which are not zeros of two signs.
fn masked(values: &[f32], scores: &[f32], columns: usize, rule: (Pattern, f64)) -> Vec<f32> {
    let (run, keep) = match rule.0 {
        Pattern::Row => (columns, columns - count(columns, rule.1)),
        Pattern::Tensor => (values.len(), values.len() - count(values.len(), rule.1)),
        Pattern::Groups { keep, of } => (of, keep),
    };
    let mut kept = vec![0.0; values.len()];
    for first in (0..values.len()).step_by(run) {
        let mut order: Vec<usize> = (first..first + run).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order[..keep].iter().for_each(|at| kept[*at] = values[*at]);
    }
    kept
}

/// A learner of some tensors' masks.
fn learner(
    device: &Device,
    weights: &dyn Weights,
    names: &[&str],
    rule: (Pattern, f64),
) -> Result<Learner, Failed> {
    let mut model = load(device, weights)?;
    let mut parameters: Vec<Box<dyn Parameter>> = Vec::new();
    for name in names {
        let packed = weights.load(spec(weights, name))?;
        let masked = Masked::new(device, name, packed, rule, DType::F32)?;
        model.set(name, Value::Matrix(masked.matrix(device)?));
        parameters.push(Box::new(masked));
    }
    let settings = AdamW { max_norm: None, ..AdamW::default() };
    Ok(Learner::new(device, model, parameters, settings)?)
}

/// The gradients of some tensors and the loss, of a plain model.
fn plain_gradients(
    device: &Device,
    model: &Model,
    batch: &Batch,
    names: &[&str],
) -> Result<BTreeMap<String, Vec<f32>>, Failed> {
    let mut found = BTreeMap::new();
    let options = BackwardOptions { tensor: &|name| names.contains(&name), ..BackwardOptions::ALL };
    gradients(
        WeightSource::Resident(model),
        &pass(device),
        &batch.ids,
        batch.sequences,
        options,
        &mut |_, _| {},
        &mut |gradient| {
            found.insert(gradient.name, device.read(&gradient.values)?.to_f32());
            Ok(())
        },
    )?;
    Ok(found)
}

/// Before a step those stay whose magnitudes are largest, with the bits that they had.
fn masks_at_first(device: &Device) -> Result<(), Failed> {
    let model = nano()?;
    for rule in PATTERNS {
        let learner = learner(device, &model, &[DOWN, KEY], rule)?;
        for parameter in learner.parameters() {
            let spec = spec(&model, parameter.tensor());
            let packed = model.load(spec)?;
            let values = packed.to_f32();
            let magnitudes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
            let found = parameter.packed(device, spec)?;
            assert_eq!(found.format, packed.format, "{rule:?}");
            assert_eq!(found.to_f32(), masked(&values, &magnitudes, spec.columns, rule));
        }
    }
    Ok(())
}

/// The first step of AdamW moves each score by the rate against the sign of dw w, with dw of a model whose weights are zeros
/// where they were masked; the model computes with what the new scores leave.
fn scores_step_by_step(device: &Device) -> Result<(), Failed> {
    let model = nano()?;
    let names = [DOWN, KEY];
    let batch = batch(model.config().vocab_size);
    let rate = 0.25;
    for rule in PATTERNS {
        let mut learner = learner(device, &model, &names, rule)?;
        let before: Vec<Vec<f32>> = scores(device, &learner)?;
        let zeros = |spec: &TensorSpec, packed: Packed| {
            if !names.contains(&spec.name.as_str()) {
                return Ok(packed);
            }
            let values = packed.to_f32();
            let magnitudes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
            let kept = masked(&values, &magnitudes, spec.columns, rule);
            Ok(Packed::from_f32(&kept, spec.rows, spec.columns))
        };
        let plain = load(&Device::Cpu, &MapWeights(&model, &zeros))?;
        let slopes = plain_gradients(&Device::Cpu, &plain, &batch, &names)?;
        learner.step(&pass(device), &batch, options(rate))?.finish(device)?;
        let after = scores(device, &learner)?;
        for (place, name) in names.iter().enumerate() {
            let spec = spec(&model, name);
            let values = model.load(spec)?.to_f32();
            let slope: Vec<f32> = slopes[*name].iter().zip(&values).map(|(dw, w)| dw * w).collect();
            let largest = slope.iter().fold(0f32, |most, s| most.max(s.abs()));
            let (mut seen, mut masked_moved) = (0, 0);
            for at in 0..values.len() {
                // Below that the two devices' roundings, and AdamW's epsilon, decide.
                if slope[at].abs() < 1e-3 * largest {
                    continue;
                }
                let expected = before[place][at] - rate as f32 * slope[at].signum();
                let found = after[place][at];
                let near = (found - expected).abs() < 1e-2 * rate as f32;
                assert!(near, "{rule:?} {name} at {at}: {found}, not {expected}");
                seen += 1;
                masked_moved += usize::from(before[place][at] < 0.3);
            }
            assert!(seen > values.len() / 20 && masked_moved > 0, "{seen} of {}", values.len());
            let found = learner.parameters()[place].packed(device, spec)?.to_f32();
            assert_eq!(found, masked(&values, &after[place], spec.columns, rule));
            let Some(Value::Matrix(matrix)) = learner.model().tensor(name) else {
                return Err("a matrix".into());
            };
            assert_eq!(matrix.download(device)?.to_f32(), found, "what the model computes with");
        }
    }
    Ok(())
}

fn scores(device: &Device, learner: &Learner) -> Result<Vec<Vec<f32>>, Failed> {
    let mut all = Vec::new();
    for parameter in learner.parameters() {
        all.push(device.read(&parameter.learned()[0].values)?.to_f32());
    }
    Ok(all)
}

/// Codes that have one of 0 stay codes; others become f16.
fn masks_of_codes(device: &Device) -> Result<(), Failed> {
    let model = nano()?;
    let spec = spec(&model, DOWN);
    let weight = model.load(spec)?;
    let grids = [(Grid::AbsmaxSymmetric, true), (Grid::Nf4, true), (Grid::FloatMin, false)];
    for (grid, stays) in grids {
        let scheme = Scheme { grid, bits: 4, group_size: 32, codebook: None };
        let packed = rtn(device, &weight, scheme, DOWN)?;
        let rule = (Pattern::Groups { keep: 2, of: 4 }, 0.5);
        let values = packed.to_f32();
        let masked_values = {
            let magnitudes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
            masked(&values, &magnitudes, spec.columns, rule)
        };
        let parameter = Masked::new(device, DOWN, packed.clone(), rule, DType::F32)?;
        let found = parameter.packed(device, spec)?;
        assert_eq!(found.format == packed.format, stays, "{grid:?}");
        let near = found.to_f32().iter().zip(&masked_values).all(|(found, expected)| {
            (found - expected).abs() <= expected.abs() * 1e-3 && (*expected != 0.0 || *found == 0.0)
        });
        assert!(near, "{grid:?}");
        assert!(!stays || found.to_f32() == masked_values, "{grid:?}");
    }
    Ok(())
}

/// A command leaves zeros in their pattern, weights as they were, and tells how many are not zero; learning helps.
fn masks_by_command() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = "--device cpu --data embedded:calibration --length 64 --batch 4 --steps 12 --evaluate-every 12 --held-out 0.02";
    let run =
        format!("tune {NANO} --method mask --pattern 2:4 --out a {run} {}", crate::program::SHORT);
    runs(&folder, &run)?;
    let result = Checkpoint::open(folder.path().join("a").to_str().expect("a path"))?;
    let model = nano()?;
    let mut seen = 0;
    for spec in model.specs() {
        let (before, after) = (model.load(spec)?.to_f32(), result.load(spec)?.to_f32());
        if spec.role != Role::Linear {
            assert_eq!(before, after, "{}", spec.name);
            continue;
        }
        seen += 1;
        for (before, after) in before.chunks(4).zip(after.chunks(4)) {
            assert!(after.iter().filter(|value| **value != 0.0).count() <= 2, "{after:?}");
            let pairs = before.iter().zip(after);
            assert!(pairs.clone().all(|(before, after)| *after == 0.0 || before == after));
            assert!(pairs.filter(|(b, a)| **a == 0.0 && **b != 0.0).count() <= 2);
        }
    }
    assert_eq!(seen, 14, "matrices");
    let told = read_json(folder.path().join("a/training.json"))?;
    let looks = told["looks"].as_array().ok_or("looks")?;
    let loss = |at: usize| looks[at]["loss"].as_f64().unwrap_or(f64::NAN);
    assert!(loss(looks.len() - 1) < loss(0) - 0.05, "{looks:?}");
    let manifest = std::fs::read_to_string(folder.path().join("a/manifest.json"))?;
    assert!(manifest.contains("\"nonzero\""), "{manifest}");
    Ok(())
}

/// What makes no sense is refused by name.
fn mask_rules() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (flags, said) in [
        ("--pattern 4:2", "pattern & 2:4"),
        ("--pattern 2:7", "pattern & 2:7 of"),
        ("--pattern 2:4 --ratio 0.7", "ratio & 0.500"),
        ("--ratio 1", "ratio & less than 1"),
        ("--include nothing", "include"),
    ] {
        let run = format!("tune {NANO} --method mask --out a --data embedded:calibration {flags}");
        lopper(&folder, &run)?.refused(2, said);
    }
    Ok(())
}
