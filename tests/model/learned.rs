//! What is learned in the place of weights: masks, rounding and what they leave, beside plain computations.

use std::collections::BTreeMap;

use libtest_mimic::{Failed, Trial};
use lopper::data::training::{Batch, Goal};
use lopper::device::{Device, Random};
use lopper::graph::Parameter as Value;
use lopper::methods::prune::sparse::{Pattern, count};
use lopper::methods::quantize::{Grid, Scheme, rtn::rtn};
use lopper::model::{
    BackwardOptions, Checkpoint, Model, Role, TensorSpec, WeightSource, Weights, gradients,
};
use lopper::tensor::{DType, Packed, Scale};
use lopper::train::masked::Masked;
use lopper::train::rounding::Rounding;
use lopper::train::{AdamW, Learner, Parameter, StepOptions};

use crate::machine::on_each;
use crate::models::{MapWeights, load, pass};
use crate::program::{NANO, lopper, read_json, runs};

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    trials.extend(on_each("learned::masks_at_first", masks_at_first));
    trials.extend(on_each("learned::scores_step_by_step", scores_step_by_step));
    trials.extend(on_each("learned::masks_of_codes", masks_of_codes));
    trials.extend(on_each("learned::rounding_at_first", rounding_at_first));
    trials.extend(on_each("learned::rounding_steps", rounding_steps));
    trials.extend(
        suite!("learned": masks_by_command, mask_rules, rounding_by_command, rounding_rules),
    );
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
    Batch { ids, scored, sequences, length, goal: Goal::NextTokens }
}

fn options(rate: f64) -> StepOptions<'static> {
    StepOptions {
        rate,
        next_tokens: 1.0,
        teacher: None,
        hidden: None,
        balance: 0.0,
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
        model.set(name, masked.matrix(device)?);
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
        let scheme = Scheme { grid, bits: 4, group_size: 32, ty: None };
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

fn scheme(grid: Grid, bits: u32) -> Scheme {
    Scheme { grid, bits, group_size: 32, ty: None }
}

const GRIDS: [Grid; 4] = [Grid::AbsmaxSymmetric, Grid::SignedMax, Grid::ZeroPoint, Grid::FloatMin];

/// Before a step weights are rounded to nearest over the whole range.
fn rounding_at_first(device: &Device) -> Result<(), Failed> {
    let model = nano()?;
    for name in [DOWN, KEY] {
        let spec = spec(&model, name);
        let weight = model.load(spec)?;
        for grid in GRIDS {
            for bits in [2, 4, 8] {
                let packed = rtn(device, &weight, scheme(grid, bits), name)?;
                let rounding = Rounding::new(device, name, &weight.to_f32(), &packed)?;
                assert!(rounding.packed(device, spec)? == packed, "{grid:?}, {bits} bits");
            }
        }
    }
    let packed = rtn(device, &model.load(spec(&model, KEY))?, scheme(Grid::Nf4, 4), KEY)?;
    assert!(Rounding::new(device, KEY, &packed.to_f32(), &packed).is_err(), "no integers");
    Ok(())
}

/// A grid as it is defined: the least and the step of a group, and the code of 0, of so many codes.
#[derive(Clone, Copy)]
struct Plain {
    scale: f64,
    offset: f64,
    zero: f64,
    last: f64,
}

impl Plain {
    /// The code before it is clipped, and the number of steps from the offset.
    fn code(self, w: f64, v: f64) -> (f64, f64) {
        let steps = (w - self.offset) / self.scale;
        ((steps + self.zero + v).round_ties_even(), steps)
    }

    fn value(self, w: f64, v: f64) -> f64 {
        let (code, _) = self.code(w, v);
        self.scale * (code.clamp(0.0, self.last) - self.zero) + self.offset
    }
}

/// A group's grid when its highest value is multiplied by `a` and its lowest by `b`.
fn clipped(packed: &Packed, (row, group): (usize, usize), (a, b): (f64, f64)) -> Plain {
    let (scale, second) = packed.grid(row, group);
    let (scale, second) = (f64::from(scale), f64::from(second));
    let last = f64::from((1u32 << packed.format.ty.bits) - 1);
    match packed.format.ty.scale {
        Scale::Offset => {
            let (low, high) = (second, second + scale * last);
            Plain { scale: (a * high - b * low) / last, offset: b * low, zero: 0.0, last }
        }
        Scale::ZeroPoint => Plain { scale: a * scale, offset: 0.0, zero: second, last },
        _ => Plain { scale: a * scale, offset: 0.0, zero: (last + 1.0) / 2.0, last },
    }
}

/// Steps move shares and factors by the rate against the signs of their slopes, within bounds; the slopes are those of rounding
/// taken for the identity, by differences of the grid. What the model then has is rounded as it is defined.
fn rounding_steps(device: &Device) -> Result<(), Failed> {
    let model = nano()?;
    let batch = batch(model.config().vocab_size);
    let rate = 0.375f32;
    for grid in GRIDS {
        let spec = spec(&model, DOWN);
        let weight = model.load(spec)?;
        let values = weight.to_f32();
        let packed = rtn(device, &weight, scheme(grid, 3), DOWN)?;
        let rounding = Rounding::new(device, DOWN, &values, &packed)?;
        let mut changed = load(device, &model)?;
        changed.set(DOWN, rounding.matrix(device)?);
        let replace = |spec: &TensorSpec, own: Packed| match spec.name == DOWN {
            true => Ok(Packed::from_f32(&packed.to_f32(), spec.rows, spec.columns)),
            false => Ok(own),
        };
        let plain = load(&Device::Cpu, &MapWeights(&model, &replace))?;
        let slopes = &plain_gradients(&Device::Cpu, &plain, &batch, &[DOWN])?[DOWN];
        let settings = AdamW { max_norm: None, by_sign: true, ..AdamW::default() };
        let mut learner = Learner::new(device, changed, vec![Box::new(rounding)], settings)?;
        learner.step(&pass(device), &batch, options(f64::from(rate)))?.finish(device)?;
        let parameter = &learner.parameters()[0];
        let read = |place: usize| device.read(&parameter.learned()[place].values);
        let (shares, clips) = (read(0)?.to_f32(), read(1)?.to_f32());
        let result = parameter.packed(device, spec)?.to_f32();
        let groups = spec.columns.div_ceil(32);
        let largest = slopes.iter().fold(0f32, |most, s| most.max(s.abs()));
        let (mut moved, mut shut, mut rounded) = (0, 0, 0);
        for row in 0..spec.rows {
            for group in 0..groups {
                let at = row * groups + group;
                let first = row * spec.columns + group * 32;
                let end = (first + 32).min((row + 1) * spec.columns);
                let before = clipped(&packed, (row, group), (1.0, 1.0));
                let now = (f64::from(clips[2 * at]), f64::from(clips[2 * at + 1]));
                let after = clipped(&packed, (row, group), now);
                let (mut by_clip, mut sizes) = ([0.0f64; 2], [0.0f64; 2]);
                for at in first..end {
                    let (w, slope) = (f64::from(values[at]), f64::from(slopes[at]));
                    let (code, steps) = before.code(w, 0.0);
                    let within = (0.0..=before.last).contains(&code);
                    // Differences of the grid: rounding adds what it added, clipping stays clipped.
                    let added = code - (steps + before.zero);
                    for (clip, (sum, size)) in by_clip.iter_mut().zip(&mut sizes).enumerate() {
                        let step = 1e-4;
                        let value = |by: f64| {
                            let clips = if clip == 0 { (1.0 + by, 1.0) } else { (1.0, 1.0 + by) };
                            let grid = clipped(&packed, (row, group), clips);
                            let code = match within {
                                true => (w - grid.offset) / grid.scale + grid.zero + added,
                                false => code.clamp(0.0, grid.last),
                            };
                            grid.scale * (code - grid.zero) + grid.offset
                        };
                        let term = slope * (value(step) - value(-step)) / (2.0 * step);
                        *sum += term;
                        *size += term.abs();
                    }
                    let clear = slopes[at].abs() > 1e-3 * largest && before.scale != 0.0;
                    if clear && within {
                        let sign = (slopes[at] * before.scale as f32).signum();
                        assert_eq!(shares[at], (-rate * sign).clamp(-0.5, 0.5), "{grid:?} at {at}");
                        moved += 1;
                    } else if clear {
                        assert_eq!(shares[at], 0.0, "{grid:?}: what is clipped has no slope");
                        shut += 1;
                    }
                    let (found, v) = (f64::from(result[at]), f64::from(shares[at]));
                    let expected = after.value(w, v);
                    // Scales are stored in f16; at a tie the code may be the next one.
                    let limit = 1e-3 * (expected - after.offset).abs() + 1e-3 * after.offset.abs();
                    let near = (found - expected).abs() <= limit + 1e-9;
                    let next = (found - expected).abs() <= after.scale.abs() * 1.01 + limit;
                    let (_, steps) = after.code(w, v);
                    let sum = steps + after.zero + v;
                    let tie = ((sum - sum.floor()) - 0.5).abs() < 2e-2;
                    assert!(near || (tie && next), "{grid:?} at {at}: {found}, not {expected}");
                    rounded += usize::from(near);
                }
                for (clip, slope) in by_clip.into_iter().enumerate() {
                    let found = clips[2 * at + clip];
                    // Both are 1 at first, and no larger; differences decide where they are clear.
                    let expected = if slope > 0.0 { 1.0 - rate } else { 1.0 };
                    let clear = slope.abs() > 1e-2 * sizes[clip];
                    assert!(!clear || found == expected, "{grid:?}, {at}: {found}, {slope}");
                }
            }
        }
        let count = values.len();
        assert!(moved > count / 20 && rounded > count * 9 / 10, "{moved}, {rounded} of {count}");
        assert!(shut > 0 || grid != Grid::SignedMax, "some are clipped");
        assert!(clips.contains(&(1.0 - rate)), "some ranges are clipped");
    }
    Ok(())
}

/// A command: from two bits, rounding that is learned from the model itself brings it nearer to it.
fn rounding_by_command() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let run = "--bits 3 --group-size 32 --data embedded:calibration --length 64 --batch 4 --steps 30 --shuffle false";
    let run = format!(
        "distill {NANO} --teacher {NANO} --device cpu --method rounding --out a {run} {}",
        crate::program::SHORT
    );
    runs(&folder, &run)?;
    let result = Checkpoint::open(folder.path().join("a").to_str().expect("a path"))?;
    let formats = result.specs().iter().filter(|spec| spec.role == Role::Linear);
    for spec in formats {
        assert_eq!(result.format(spec)?.ty.bits, 3, "{}", spec.name);
    }
    let told = read_json(folder.path().join("a/training.json"))?;
    let steps = told["steps"].as_array().ok_or("steps")?;
    let loss = |at: usize| steps[at]["loss"].as_f64().unwrap_or(f64::NAN);
    let rate = |at: usize| steps[at]["rate"].as_f64().unwrap_or(f64::NAN);
    assert!((rate(0) - 1.0 / 30.0).abs() < 1e-9 && rate(29) < 0.05 * rate(0), "{steps:?}");
    let mean = |from: usize| (from..from + 5).map(loss).sum::<f64>() / 5.0;
    assert!(mean(25) < 0.9 * mean(0), "{} to {}", mean(0), mean(25));
    Ok(())
}

fn rounding_rules() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (flags, said) in [
        ("--method rounding --grid nf4", "grid & integer codes"),
        ("--method rounding --optimizer adamw", "optimizer & sign"),
        ("--method lora --optimizer sign", "rate & beside steps by sign"),
        ("--method lora --final-rate 2", "final_rate"),
    ] {
        let run = format!("tune {NANO} --out a --data embedded:calibration {flags}");
        lopper(&folder, &run)?.refused(2, said);
    }
    Ok(())
}
