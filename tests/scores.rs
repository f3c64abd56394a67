//! Scores of channels against values from outside.

use std::path::Path;

use libtest_mimic::{Failed, Trial};
use lopper::device::Device;
use lopper::formats::Source;
use lopper::formats::safetensors::Safetensors;
use lopper::gpu::Options;
use lopper::kernels::score::Reduction;
use lopper::methods::calibration::Rows;
use lopper::methods::prune::score::{Score, Sums, input_norms, sums};
use lopper::model::{Checkpoint, Compute, Group, Layers, Llama, Pass, Weights, Width, groups};
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial};

pub fn trials() -> Vec<Trial> {
    let gpu = || device(Options::default());
    vec![
        Trial::test("scores::golden::cpu", || {
            golden(&Device::Cpu, false, DType::F32)
        }),
        gpu_trial("scores::golden::gpu".into(), move || {
            golden(&gpu()?, false, DType::F32)
        }),
        gpu_trial("scores::golden::streamed".into(), move || {
            golden(&gpu()?, true, DType::F32)
        }),
        gpu_trial("scores::golden::f16".into(), move || {
            let device = gpu()?;
            match device.capabilities().f16 {
                true => golden(&device, false, DType::F16),
                false => Ok(()),
            }
        }),
        Trial::test("scores::wanda::cpu", || wanda(&Device::Cpu)),
        gpu_trial("scores::wanda::gpu".into(), move || wanda(&gpu()?)),
        Trial::test("scores::reductions", reductions),
    ]
}

/// Tensors of a file of values from outside.
struct Golden(Safetensors);

impl Golden {
    fn open(name: &str) -> Result<Self, Failed> {
        let path = format!("assets/golden/{name}.safetensors");
        Ok(Self(Safetensors::open(Source::open(Path::new(&path))?)?))
    }

    fn words(&self, name: &str) -> Result<Vec<u32>, Failed> {
        let bytes = self.0.get(name).ok_or(format!("no {name}"))?.bytes;
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(bytes.chunks_exact(4).map(word).collect())
    }

    fn names(&self) -> Vec<String> {
        let names = self.0.names().map(String::from);
        names.filter(|name| name != "input_ids").collect()
    }

    fn near(&self, name: &str, found: &[f32], limit: f64) -> Result<(), Failed> {
        let expected: Vec<f32> = self.words(name)?.into_iter().map(f32::from_bits).collect();
        if found.len() != expected.len() {
            return Err(format!("{name}: {} values of {}", found.len(), expected.len()).into());
        }
        for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = f64::from(found - expected).abs() / f64::from(expected.abs());
            if error.is_nan() || error > limit {
                return Err(
                    format!("{name}[{place}]: {found} for {expected}, off by {error:.1e}").into(),
                );
            }
        }
        Ok(())
    }
}

/// Every value within 1e-3 of what it should be; computed in f16, within 5 %: a channel's is a sum of errors without sign.
fn golden(device: &Device, streamed: bool, activation: DType) -> Result<(), Failed> {
    let limit = if activation == DType::F16 { 5e-2 } else { 1e-3 };
    let known = Golden::open("llm-pruner-scores")?;
    let weights = Checkpoint::open("embedded:tiny-llama")?;
    let ids = known.words("input_ids")?;
    let all = groups(weights.config(), weights.specs());
    let held = Llama::load(device, &weights, |_, _| Ok(()))?;
    let layers = if streamed {
        Layers::Streamed(device, &weights)
    } else {
        Layers::Held(&held)
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
        let group = all
            .iter()
            .find(|group| group.to_string() == rest)
            .ok_or(name.as_str())?;
        // Sums that cancel are off by far more than what they are made of.
        if score == Score::Vectorize && activation == DType::F16 {
            continue;
        }
        let units = found.unit_scores(device, score, group, Reduction::Sum, 0)?;
        known.near(name, &units, limit)?;
    }
    if names.len() != 66 {
        return Err(format!("{} tensors of 66", names.len()).into());
    }
    Ok(())
}

fn wanda(device: &Device) -> Result<(), Failed> {
    let known = Golden::open("activation-scores")?;
    let weights = Checkpoint::open("embedded:tiny-llama")?;
    let ids = known.words("input_ids")?;
    let held = Llama::load(device, &weights, |_, _| Ok(()))?;
    let pass = Pass {
        device,
        compute: Compute::F32,
    };
    let rows = Rows { ids, samples: 16 };
    let found = input_norms(Layers::Held(&held), &pass, &rows)?;
    let names = known.names();
    let wanted = names.iter().filter(|name| name.starts_with("wanda."));
    if wanted.count() != found.len() {
        return Err(format!("norms of {} modules", found.len()).into());
    }
    for (module, norms) in found {
        known.near(&format!("wanda.{module}"), &norms, 1e-4)?;
    }
    Ok(())
}

/// What the reductions make of a group's tensors, of sums made by hand.
fn reductions() -> Result<(), Failed> {
    let weights = Checkpoint::open("embedded:nano-llama")?;
    let device = &Device::Cpu;
    let all = groups(weights.config(), weights.specs());
    let pass = Pass {
        device,
        compute: Compute::F32,
    };
    let layers = Layers::Streamed(device, &weights);
    let found: Sums = sums(
        layers,
        &weights,
        &pass,
        &[Score::L1],
        &all,
        None,
        &mut |_, _| {},
    )?;
    let by_hand = |group: &Group| -> Result<Vec<Vec<f64>>, Failed> {
        let mut members = Vec::new();
        for member in &group.members {
            let spec = weights
                .specs()
                .iter()
                .find(|spec| spec.name == member.tensor);
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
    for group in all.iter().filter(|group| group.width != Width::Layers) {
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
                if fits && (f64::from(*found) - expected).abs() > 1e-4 * expected {
                    return Err(
                        format!("{group}, {reduction:?}, {unit}: {found} for {expected}").into(),
                    );
                }
            }
        }
    }
    Ok(())
}
