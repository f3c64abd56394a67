//! The tape beyond a block: weights that are values, several results and inputs, losses of hidden states; by differences.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random, Tensor};
use lopper::error::Result as Outcome;
use lopper::graph::{Settings, Tape, TokenSplit};
use lopper::kernels::copy::cast::scaled;
use lopper::model::{
    BackwardOptions, Checkpoint, HiddenPart, TensorSpec, WeightSource, Weights, gradients,
};
use lopper::tensor::{DType, Packed};

use crate::machine::on_each;
use crate::models::{MapWeights, load, pass};
use crate::numbers::{Within, assert_close};
use crate::program::NANO;

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::from(on_each("tape::adapter", adapter));
    trials.extend(on_each("tape::hidden_loss", hidden_loss));
    trials
}

fn values(random: &mut Random, count: usize) -> Vec<f32> {
    // Multiples of 1/64, so that steps are exact.
    (0..count).map(|_| (random.value() * 64.0).round() / 64.0).collect()
}

/// y = x (W + B A)^T and z = x U^T, the sums of both each with weights of its own: gradients at x, W, B, A and U, also where
/// rows are no whole blocks.
fn adapter(device: &Device) -> Result<(), Failed> {
    const TOKENS: usize = 5;
    const RANK: usize = 3;
    const ROWS: usize = 7;
    const COLUMNS: usize = 33;
    let mut random = Random::new(11);
    let shapes =
        [[TOKENS, COLUMNS], [ROWS, COLUMNS], [ROWS, RANK], [COLUMNS, RANK], [ROWS, COLUMNS]];
    let inputs = shapes.map(|[rows, columns]| values(&mut random, rows * columns));
    let upstream = [values(&mut random, TOKENS * ROWS), values(&mut random, TOKENS * ROWS)];
    let upload = |values: &[f32], shape: &[usize]| {
        device.upload(&HostTensor::from_f32(DType::F32, shape, values), "a value")
    };
    let split = TokenSplit::whole(0);
    let settings = Settings {
        activation: DType::F32,
        activation_bytes: 3,
        scale: 1.0,
        keeps_scale: false,
        outputs: false,
        dropout_seed: None,
        split: &split,
        balance: None,
    };
    let run = |inputs: &[Vec<f32>; 5], back: bool| -> Outcome<(f64, Vec<Vec<f32>>)> {
        let mut tape = Tape::new(device, settings);
        let mut nodes = Vec::new();
        for (values, shape) in inputs.iter().zip(&shapes) {
            nodes.push(tape.input(&upload(values, shape)?));
        }
        let [x, w, b, a, u] = &nodes[..] else { unreachable!("five inputs") };
        // A product with the transpose of A's transpose: B A.
        let delta = tape.linear_by_value(b, a)?;
        let adapted = tape.sum(w, &delta)?;
        let results = [tape.linear_by_value(x, &adapted)?, tape.linear_by_value(x, u)?];
        let mut loss = 0.0;
        let mut seeds = Vec::new();
        for (result, upstream) in results.iter().zip(&upstream) {
            let found = device.read(&result.tensor)?.to_f32();
            let pairs = found.iter().zip(upstream);
            loss += pairs.map(|(y, c)| f64::from(*y) * f64::from(*c)).sum::<f64>();
            seeds.push((result.node, upload(upstream, &[TOKENS, ROWS])?));
        }
        let mut found = Vec::new();
        if back {
            let nodes: Vec<_> = nodes.iter().map(|value| value.node).collect();
            for gradient in tape.backward(seeds, &nodes, &|_| false, &mut |_| Ok(()))? {
                let gradient: Tensor = gradient.expect("every input is part of a result");
                found.push(device.read(&gradient)?.to_f32());
            }
        }
        Ok((loss, found))
    };
    let (_, found) = run(&inputs, true)?;
    const STEP: f32 = 1.0 / 16.0;
    for (which, found) in found.iter().enumerate() {
        let mut expected = Vec::new();
        for place in 0..inputs[which].len() {
            let at = |step: f32| {
                let mut moved = inputs.clone();
                moved[which][place] += step;
                Ok::<_, Failed>(run(&moved, false)?.0)
            };
            expected.push((at(STEP)? - at(-STEP)?) / f64::from(2.0 * STEP));
        }
        assert_close(&format!("input {which}"), found, &expected, Within::Norm(2e-4));
    }
    Ok(())
}

/// The mean square of a layer's output beside the loss of the next tokens: the gradient says how the sum of both changes along
/// a direction.
fn hidden_loss(device: &Device) -> Result<(), Failed> {
    let weights = Checkpoint::open(NANO)?;
    let ids: Vec<u32> = (0..24).map(|place| (place * 37 % 500) as u32).collect();
    let hidden =
        |layer: usize, _: std::ops::Range<usize>, x: &Tensor| -> Outcome<Option<HiddenPart>> {
            if layer != 0 {
                return Ok(None);
            }
            let count = x.len() as f64;
            let squares: Vec<f32> = device.read(x)?.to_f32().iter().map(|v| v * v).collect();
            let squares = HostTensor::from_f32(DType::F32, &[squares.len()], &squares);
            let losses = device.read_later(&device.upload(&squares, "squares")?)?;
            // Ten times, so that it is not lost beside the other loss.
            let gradient = scaled(device, x, (20.0 / count) as f32, DType::F32)?;
            Ok(Some(HiddenPart { losses, factor: 10.0 / count, gradient }))
        };
    let options = |with: bool| BackwardOptions {
        hidden: with.then_some(&hidden as _),
        tokens: 12,
        ..BackwardOptions::ALL
    };
    for name in ["mlp.down_proj", "self_attn.q_proj"] {
        let name = format!("model.layers.0.{name}.weight");
        let is = |spec: &&TensorSpec| spec.name == name;
        let spec = weights.specs().iter().find(is).ok_or("a weight")?;
        let mut random = Random::new(5);
        let direction = values(&mut random, spec.rows * spec.columns);
        let loss = |step: f32, with: bool, gradient: &mut Vec<f32>| -> Result<f64, Failed> {
            let moved = |of: &TensorSpec, packed: Packed| {
                if of.name != name || step == 0.0 {
                    return Ok(packed);
                }
                let pairs = packed.to_f32().into_iter().zip(&direction);
                let values: Vec<f32> = pairs.map(|(w, d)| w + step * d).collect();
                Ok(Packed::from_f32(&values, packed.rows, packed.columns))
            };
            let moved = MapWeights(&weights, &moved);
            let model = load(device, &moved)?;
            let source = WeightSource::Resident(&model);
            let mut sum: Vec<f32> = Vec::new();
            let pass = pass(device);
            let found =
                gradients(source, &pass, &ids, 2, options(with), &mut |_, _| {}, &mut |part| {
                    if part.name == name {
                        let values = device.read(&part.values)?.to_f32();
                        sum.resize(values.len(), 0.0);
                        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    }
                    Ok(())
                })?;
            *gradient = sum;
            Ok(found)
        };
        let (mut with, mut without, mut unused) = (Vec::new(), Vec::new(), Vec::new());
        loss(0.0, true, &mut with)?;
        loss(0.0, false, &mut without)?;
        assert!(crate::numbers::relative_error(&with, &without) > 1e-2, "the loss is not felt");
        const STEP: f32 = 1.0 / 1024.0;
        let above = loss(STEP, true, &mut unused)?;
        let below = loss(-STEP, true, &mut unused)?;
        let expected = (above - below) / f64::from(2.0 * STEP);
        let along = with.iter().zip(&direction);
        let along: f64 = along.map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        assert_close(&name, &[along], &[expected], Within::Each(5e-3));
    }
    Ok(())
}
