//! Scores of channels against values from outside.

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::gpu::Options;
use lopper::kernels::score::Reduction;
use lopper::methods::calibration::Rows;
use lopper::methods::prune::minitron::Importance;
use lopper::methods::prune::score::{Score, Sums, input_norms, sums};
use lopper::model::{Checkpoint, Compute, Group, Pass, PrunableDim, WeightSource, Weights, groups};
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial, on_each};
use crate::models::{load, pass};
use crate::numbers::{Known, Within, assert_close};

pub fn trials() -> Vec<Trial> {
    let gpu = || device(Options::default());
    let mut trials = vec![
        Trial::test("scores::golden::cpu", || golden(&Device::Cpu, false, DType::F32)),
        gpu_trial("scores::golden::gpu".into(), move || golden(&gpu()?, false, DType::F32)),
        gpu_trial("scores::golden::streamed".into(), move || golden(&gpu()?, true, DType::F32)),
        gpu_trial("scores::golden::f16".into(), move || {
            let device = gpu()?;
            match device.capabilities().f16 {
                true => golden(&device, false, DType::F16),
                false => Ok(()),
            }
        }),
    ];
    trials.extend(on_each("scores::wanda", wanda));
    trials.extend(on_each("scores::minitron", minitron));
    trials.extend(suite!("scores": reductions));
    trials
}

/// Every value within 1e-3 of what it should be; computed in f16, within 5 %: a channel's is a sum of errors without sign.
fn golden(device: &Device, streamed: bool, activation: DType) -> Result<(), Failed> {
    let limit = if activation == DType::F16 { 5e-2 } else { 1e-3 };
    let known = Known::open("assets/golden/llm-pruner-scores.safetensors")?;
    let weights = Checkpoint::open("embedded:tiny-llama")?;
    let ids = known.words("input_ids")?;
    let all = groups(weights.config(), weights.specs());
    let held = load(device, &weights)?;
    let layers = if streamed {
        WeightSource::Streamed(device, &weights)
    } else {
        WeightSource::Resident(&held)
    };
    let compute = Compute::with(activation);
    let found = sums(
        layers,
        &weights,
        &Pass { device, compute },
        &Score::ALL,
        &all,
        Some(&Rows { ids, samples: 10 }),
        &mut |_, _| {},
    )?;
    let names = known.names();
    for name in &names {
        let mut parts = name.split('.');
        let score = Score::named(parts.next().unwrap_or_default()).ok_or(name.as_str())?;
        let rest = parts.collect::<Vec<_>>().join(".");
        let group = all.iter().find(|group| group.to_string() == rest).ok_or(name.as_str())?;
        // Sums that cancel are off by far more than what they are made of.
        if score == Score::Vectorize && activation == DType::F16 {
            continue;
        }
        let units = found.unit_scores(device, score, group, Reduction::Sum, 0)?;
        assert_close(name, &units, &known.floats(name)?, Within::Each(limit));
    }
    assert!(names.len() == 66, "{} tensors of 66", names.len());
    Ok(())
}

fn wanda(device: &Device) -> Result<(), Failed> {
    let known = Known::open("assets/golden/activation-scores.safetensors")?;
    let weights = Checkpoint::open("embedded:tiny-llama")?;
    let ids = known.words("input_ids")?;
    let held = load(device, &weights)?;
    let pass = pass(device);
    let rows = Rows { ids, samples: 16 };
    let found = input_norms(WeightSource::Resident(&held), &pass, &rows)?;
    let names = known.names();
    let wanted = names.iter().filter(|name| name.starts_with("wanda."));
    assert_eq!(wanted.count(), found.len(), "norms of modules");
    for (module, norms) in found {
        let name = format!("wanda.{module}");
        assert_close(&name, &norms, &known.floats(&name)?, Within::Each(1e-4));
    }
    Ok(())
}

/// Importance within 1e-3 of its definition in f64, in the same order but for what is nearer than that; with weights held and
/// with weights streamed.
fn minitron(device: &Device) -> Result<(), Failed> {
    let known = Known::open("assets/golden/activation-scores.safetensors")?;
    let weights = Checkpoint::open("embedded:tiny-llama")?;
    let rows = Rows { ids: known.words("input_ids")?, samples: 16 };
    let held = load(device, &weights)?;
    for source in [WeightSource::Resident(&held), WeightSource::Streamed(device, &weights)] {
        let found = Importance::of(source, &pass(device), &rows, &mut |_, _| {})?;
        let mut compared = 0;
        for group in groups(weights.config(), weights.specs()) {
            let name = match group.width {
                PrunableDim::KvGroup => continue,
                PrunableDim::Layers => "minitron.depth".to_string(),
                _ => format!("minitron.{group}"),
            };
            let (units, wanted) = (found.units(&group), known.floats(&name)?);
            assert_close(&name, &units, &wanted, Within::Each(1e-3));
            let order = |scores: &[f32]| {
                let mut order: Vec<usize> = (0..scores.len()).collect();
                order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
                order
            };
            for (found, expected) in order(&units).into_iter().zip(order(&wanted)) {
                let apart = (wanted[found] / wanted[expected] - 1.0).abs();
                assert!(apart <= 2e-6, "{name}: {found} in the place of {expected}, {apart:.1e}");
            }
            compared += 1;
        }
        let names = known.names();
        let all = names.iter().filter(|name| name.starts_with("minitron.")).count();
        assert_eq!(compared, all, "tensors of importance");
    }
    Ok(())
}

/// What the reductions make of a group's tensors, of sums made by hand.
fn reductions() -> Result<(), Failed> {
    let weights = Checkpoint::open("embedded:nano-llama")?;
    let device = &Device::Cpu;
    let all = groups(weights.config(), weights.specs());
    let pass = pass(device);
    let layers = WeightSource::Streamed(device, &weights);
    let found: Sums = sums(layers, &weights, &pass, &[Score::L1], &all, None, &mut |_, _| {})?;
    let by_hand = |group: &Group| -> Result<Vec<Vec<f64>>, Failed> {
        let mut members = Vec::new();
        for member in &group.members {
            let spec = weights.specs().iter().find(|spec| spec.name == member.tensor);
            let weight = weights.load(spec.ok_or("spec")?)?;
            let mut units = vec![0.0; group.units];
            for row in 0..weight.rows {
                for column in 0..weight.columns {
                    let channel = match member.axis {
                        lopper::model::Axis::Rows => row,
                        lopper::model::Axis::Columns => column,
                    };
                    units[channel / member.span] += f64::from(weight.value(row, column)).abs();
                }
            }
            members.push(units);
        }
        Ok(members)
    };
    for group in all.iter().filter(|group| group.width != PrunableDim::Layers) {
        let members = by_hand(group)?;
        for reduction in Reduction::ALL {
            let units = found.unit_scores(device, Score::L1, group, reduction, 0)?;
            for (unit, found) in units.iter().enumerate() {
                let all = members.iter().map(|member| member[unit]);
                let count = members.len() as f64;
                let expected = match reduction {
                    Reduction::Sum => all.sum(),
                    Reduction::Mean => all.sum::<f64>() / count,
                    Reduction::Max => all.fold(0.0, f64::max),
                    Reduction::Product => all.product(),
                    Reduction::First => members[0][unit],
                    Reduction::Last => members[members.len() - 1][unit],
                };
                // A product of many may be more than f32 holds.
                let fits = expected < f64::from(f32::MAX);
                assert!(
                    !fits || (f64::from(*found) - expected).abs() <= 1e-4 * expected,
                    "{group}, {reduction:?}, {unit}: {found} for {expected}"
                );
            }
        }
    }
    Ok(())
}
