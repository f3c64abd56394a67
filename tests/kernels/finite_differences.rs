//! Backward kernels against finite differences of their forward ones: one operation after another, each in a small size.
//! Attention's stand in a file of their own, a whole model's in another.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random, Tensor};
use lopper::error::Result;
use lopper::kernels::TABLE;
use lopper::kernels::activation::Activation;
use lopper::kernels::copy::cast::scaled;
use lopper::kernels::embed::{gather::gather, scatter::scatter};
use lopper::kernels::experts::{
    Share, balance, balance_grad::balance_grad, combine::combine, combine_grad::combine_grad,
    route::route, route_grad::route_grad,
};
use lopper::kernels::gate::{
    activate::activate, activate_grad::activate_grad, glu::glu, glu_grad::glu_grad,
};
use lopper::kernels::logits::{soft_cap::soft_cap, soft_cap_grad::soft_cap_grad};
use lopper::kernels::loss::cross_entropy_grad::{UNSCORED, cross_entropy_grad};
use lopper::kernels::loss::distil::{Divergence, distil};
use lopper::kernels::loss::distil_top::distil_top;
use lopper::kernels::loss::divergence::divergence;
use lopper::kernels::loss::logsumexp::logsumexp;
use lopper::kernels::matmul::{Destination, Input, backward, linear};
use lopper::kernels::matrix::Matrix;
use lopper::kernels::norm::{center::center, gain_grad::gain_grad, rms::rms, rms_grad::rms_grad};
use lopper::kernels::quantize::scale_grad::scale_grad;
use lopper::kernels::rope::rotate::{Target, rotate};
use lopper::tensor::{DType, Packed, WeightFormat, weight_type};

use crate::machine::on_each;
use crate::numbers::{Within, assert_close};

/// Half a step to either side. A power of two, so that no input is rounded.
const STEP: f32 = 1.0 / 32.0;
const EPSILON: f32 = 1e-3;
const HEAD_DIM: usize = 6;
const TEMPERATURE: f32 = 1.75;
const CAP: f32 = 1.5;

/// An operation on some inputs, f32 of (rows, columns) each, and a number made of its result.
struct Operation {
    name: &'static str,
    /// The kernels of its backward pass.
    kernels: &'static [&'static str],
    inputs: &'static [[usize; 2]],
    /// The number: the sum of the result's values, each times one of its own.
    forward: fn(&Device, &[Tensor]) -> Result<f64>,
    /// Its gradients at the inputs.
    backward: fn(&Device, &[Tensor]) -> Result<Vec<Tensor>>,
}

const OPERATIONS: [Operation; 22] = [
    Operation {
        name: "norm/rms",
        kernels: &["norm/rms_grad", "norm/gain_grad"],
        inputs: &[[5, 33], [1, 33]],
        forward: |device, inputs| {
            let normed = rms(device, &inputs[0], &vector(&inputs[1]), EPSILON, DType::F32)?;
            weighed(device, &normed)
        },
        backward: |device, inputs| {
            let (x, gain) = (&inputs[0], vector(&inputs[1]));
            let grad = upstream(device, x.shape())?;
            let (of_x, scales) = rms_grad(device, (x, &gain, EPSILON), &grad, None)?;
            let of_gain = device.allocate(DType::F32, &[gain.len()], "a gain's")?;
            gain_grad(device, (x, &scales), &grad, &of_gain, false)?;
            Ok(vec![of_x, of_gain])
        },
    },
    Operation {
        name: "norm/center",
        kernels: &["norm/center"],
        inputs: &[[5, 33]],
        forward: |device, inputs| weighed(device, &center(device, &inputs[0], 33)?),
        backward: |device, inputs| {
            Ok(vec![center(device, &upstream(device, inputs[0].shape())?, 33)?])
        },
    },
    Operation {
        name: "gate/activate, GELU",
        kernels: &["gate/activate_grad"],
        inputs: &[[5, 33]],
        forward: |device, inputs| {
            weighed(device, &activate(device, &inputs[0], Activation::Gelu, DType::F32)?)
        },
        backward: |device, inputs| {
            let grad = upstream(device, inputs[0].shape())?;
            Ok(vec![activate_grad(device, &inputs[0], &grad, Activation::Gelu, DType::F32)?])
        },
    },
    Operation {
        name: "gate/glu, SiLU",
        kernels: &["gate/glu_grad"],
        inputs: &[[7, 13], [7, 13]],
        forward: |device, inputs| gated(device, inputs, Activation::Silu),
        backward: |device, inputs| gated_back(device, inputs, Activation::Silu),
    },
    Operation {
        name: "gate/glu, GELU by tanh",
        kernels: &["gate/glu_grad"],
        inputs: &[[7, 13], [7, 13]],
        forward: |device, inputs| gated(device, inputs, Activation::GeluTanh),
        backward: |device, inputs| gated_back(device, inputs, Activation::GeluTanh),
    },
    Operation {
        name: "gate/glu, GELU",
        kernels: &["gate/glu_grad"],
        inputs: &[[7, 13], [7, 13]],
        forward: |device, inputs| gated(device, inputs, Activation::Gelu),
        backward: |device, inputs| gated_back(device, inputs, Activation::Gelu),
    },
    Operation {
        name: "logits/soft_cap",
        kernels: &["logits/soft_cap_grad"],
        inputs: &[[5, 29]],
        forward: |device, inputs| weighed(device, &capped(device, &inputs[0])?),
        backward: |device, inputs| {
            let grad = upstream(device, inputs[0].shape())?;
            soft_cap_grad(device, &capped(device, &inputs[0])?, &grad, CAP)?;
            Ok(vec![grad])
        },
    },
    Operation {
        name: "experts/route",
        kernels: &["experts/route_grad"],
        inputs: &[[3, 5]],
        forward: |device, inputs| weighed(device, &route(device, &inputs[0], 3, true)?),
        backward: |device, inputs| routed(device, &inputs[0], true),
    },
    Operation {
        name: "experts/route of all",
        kernels: &["experts/route_grad"],
        inputs: &[[3, 5]],
        forward: |device, inputs| weighed(device, &route(device, &inputs[0], 3, false)?),
        backward: |device, inputs| routed(device, &inputs[0], false),
    },
    Operation {
        name: "experts/balance",
        kernels: &["experts/balance_grad"],
        inputs: &[[6, 5]],
        // The counts have no slope, and so are those of shares that stay.
        forward: |device, inputs| {
            let sums = device.read(&balanced(device, &inputs[0])?)?.to_f32();
            Ok(64.0 * balance::loss(&sums, 6))
        },
        backward: |device, inputs| {
            let sums = balanced(device, &inputs[0])?;
            Ok(vec![balance_grad(device, &inputs[0], &sums, 6, 64.0)?])
        },
    },
    Operation {
        name: "experts/combine",
        kernels: &["experts/combine_grad"],
        inputs: &[[3, 7], [5, 2]],
        forward: |device, inputs| {
            let (branch, shares) = (&inputs[0], &inputs[1]);
            let sum = device.upload(&HostTensor::zeros(DType::F32, &[5, 7]), "a stream")?;
            let share = Share { shares, expert: 1 };
            combine(device, branch, Some(share), Some(&expert_tokens(device)?), &sum)?;
            weighed(device, &sum)
        },
        backward: |device, inputs| {
            let (branch, shares) = (&inputs[0], &inputs[1]);
            let of_shares = device.upload(&HostTensor::zeros(DType::F32, &[5, 2]), "shares'")?;
            let (grad, share) = (upstream(device, &[5, 7])?, Share { shares, expert: 1 });
            let tokens = expert_tokens(device)?;
            let of_branch = combine_grad(device, &grad, branch, share, Some(&tokens), &of_shares)?;
            Ok(vec![of_branch, of_shares])
        },
    },
    Operation {
        name: "loss/cross_entropy",
        kernels: &["loss/cross_entropy_grad"],
        inputs: &[[6, 37]],
        forward: |device, inputs| {
            let (lse, picked) = logsumexp(device, &inputs[0], &targets(device, false)?)?;
            let (lse, picked) = (values(device, &lse)?, values(device, &picked)?);
            let losses = lse.iter().zip(&picked).map(|(lse, picked)| lse - picked);
            Ok(losses.take(5).sum())
        },
        backward: |device, inputs| {
            let (lse, _) = logsumexp(device, &inputs[0], &targets(device, false)?)?;
            let targets = targets(device, true)?;
            let grad = cross_entropy_grad(device, &inputs[0], &lse, &targets, 1.0, DType::F32)?;
            Ok(vec![grad])
        },
    },
    Operation {
        name: "loss/divergence",
        kernels: &["loss/distil"],
        inputs: &[[4, 41]],
        forward: |device, inputs| {
            let cooled = |logits| scaled(device, logits, 1.0 / TEMPERATURE, DType::F32);
            let (parent, child) = (cooled(&parent(device)?)?, cooled(&inputs[0])?);
            Ok(values(device, &divergence(device, &parent, &child)?.0)?.iter().sum())
        },
        backward: |device, inputs| {
            let every = device.upload(&HostTensor::from_u32(&[4], &[1; 4]), "every row")?;
            let (forward, parent) = (Divergence::Forward, parent(device)?);
            let child = &inputs[0];
            let (t, output) = (TEMPERATURE, DType::F32);
            Ok(vec![distil(device, forward, &parent, child, &every, t, 1.0, output)?.0])
        },
    },
    Operation {
        name: "loss/distil, forward",
        kernels: &["loss/distil"],
        inputs: &[[4, 41]],
        forward: |device, inputs| distilled(device, Divergence::Forward, &inputs[0]),
        backward: |device, inputs| distilled_back(device, Divergence::Forward, &inputs[0]),
    },
    Operation {
        name: "loss/distil, reverse",
        kernels: &["loss/distil"],
        inputs: &[[4, 41]],
        forward: |device, inputs| distilled(device, Divergence::Reverse, &inputs[0]),
        backward: |device, inputs| distilled_back(device, Divergence::Reverse, &inputs[0]),
    },
    Operation {
        name: "loss/distil, Jensen-Shannon",
        kernels: &["loss/distil"],
        inputs: &[[4, 41]],
        forward: |device, inputs| {
            distilled(device, Divergence::JensenShannon { beta: 0.3 }, &inputs[0])
        },
        backward: |device, inputs| {
            distilled_back(device, Divergence::JensenShannon { beta: 0.3 }, &inputs[0])
        },
    },
    Operation {
        name: "loss/distil_top",
        kernels: &["loss/distil_top"],
        inputs: &[[4, 41]],
        forward: |device, inputs| {
            let (_, loss) = distilled_top(device, &inputs[0])?;
            Ok(values(device, &loss)?.iter().sum())
        },
        backward: |device, inputs| Ok(vec![distilled_top(device, &inputs[0])?.0]),
    },
    Operation {
        name: "matmul, few tokens",
        kernels: &["matmul/input_grad", "matmul/weight_grad"],
        inputs: &[[5, 24], [17, 24]],
        forward: product,
        backward: product_back,
    },
    Operation {
        // As a forward product of what is transposed.
        name: "matmul, many tokens",
        kernels: &["copy/transpose"],
        inputs: &[[70, 32], [64, 32]],
        forward: product,
        backward: product_back,
    },
    Operation {
        // Scales and offsets of three groups a row, in f32.
        name: "quantize, scales",
        kernels: &["quantize/scale_grad"],
        inputs: &[[5, 3], [5, 3]],
        forward: |device, inputs| {
            let (scales, offsets) = (values(device, &inputs[0])?, values(device, &inputs[1])?);
            let (packed, counts) = (coded(), weights(5 * 41));
            let place = |index: usize| {
                let (row, column) = (index / 41, index % 41);
                let group = 3 * row + column / 16;
                let value = scales[group] * f64::from(packed.code(row, column)) + offsets[group];
                value * f64::from(counts[index])
            };
            Ok((0..counts.len()).map(place).sum())
        },
        backward: |device, _| {
            let weight = Matrix::upload(device, &coded(), "a coded matrix")?;
            let (of_scales, of_offsets) =
                scale_grad(device, &upstream(device, &[5, 41])?, &weight)?;
            Ok(vec![of_scales, of_offsets.expect("of a type with offsets")])
        },
    },
    Operation {
        name: "embed/gather",
        kernels: &["embed/scatter"],
        inputs: &[[9, 11]],
        forward: |device, inputs| {
            let ids = HostTensor::from_u32(&[IDS.len()], &IDS);
            let rows = gather(device, &matrix(device, &inputs[0])?, &device.upload(&ids, "ids")?)?;
            weighed(device, &rows)
        },
        backward: |device, inputs| {
            let grad = upstream(device, &[IDS.len(), 11])?;
            let result = device.allocate(DType::F32, inputs[0].shape(), "a table's")?;
            scatter(device, &grad, &IDS, &result, false)?;
            Ok(vec![result])
        },
    },
    Operation {
        name: "rope/rotate",
        kernels: &["rope/rotate"],
        inputs: &[[10, 3 * HEAD_DIM]],
        forward: |device, inputs| weighed(device, &turned(device, &inputs[0], 1.0)?),
        backward: |device, inputs| {
            let grad = upstream(device, inputs[0].shape())?;
            Ok(vec![turned(device, &grad, -1.0)?])
        },
    },
];

const IDS: [u32; 6] = [3, 0, 8, 3, 3, 5];

pub fn trials() -> Vec<Trial> {
    let mut trials = suite!("gradients::differences": complete);
    for operation in &OPERATIONS {
        let name = format!("gradients::differences::{}", operation.name);
        trials.extend(on_each(&name, |device| differences(device, operation)));
    }
    trials
}

/// Rules that go straight through a step, which has no slope to compare with: `learned::` holds them against plain computations.
const STRAIGHT_THROUGH: &[&str] = &["mask/score_grad", "quantize/rounding_grad"];

/// Every backward kernel is one of an operation's, or attention's.
fn complete() -> Result<(), Failed> {
    let covered: Vec<&str> =
        OPERATIONS.iter().flat_map(|operation| operation.kernels).copied().collect();
    for kernel in TABLE {
        let name = kernel.name;
        let straight = STRAIGHT_THROUGH.contains(&name);
        let backward = name.ends_with("_grad") && !name.starts_with("attention/") && !straight;
        assert!(!backward || covered.contains(&name), "{name} is not looked at");
    }
    Ok(())
}

/// Central differences of one step and of half of it, from which the error of second order falls out, on the processor,
/// beside what the device says.
fn differences(device: &Device, operation: &Operation) -> Result<(), Failed> {
    let mut random = Random::new(51);
    // On a grid, so that a step more or less is exact.
    let grid = |value: f32| (value * 1024.0).round() / 1024.0;
    let inputs: Vec<Vec<f32>> = operation
        .inputs
        .iter()
        .map(|[rows, columns]| random.values(rows * columns, 1.5))
        .map(|values| values.into_iter().map(grid).collect())
        .collect();
    let upload = |device: &Device, inputs: &[Vec<f32>]| -> Result<Vec<Tensor>> {
        let pairs = inputs.iter().zip(operation.inputs);
        pairs
            .map(|(values, shape)| {
                device.upload(&HostTensor::from_f32(DType::F32, shape, values), "an input")
            })
            .collect()
    };
    let found = (operation.backward)(device, &upload(device, &inputs)?)?;
    assert_eq!(found.len(), inputs.len(), "a gradient an input");
    for (index, found) in found.iter().enumerate() {
        let found = values(device, found)?;
        let mut expected = Vec::new();
        for place in 0..found.len() {
            let slope = |step: f32| -> Result<f64> {
                let side = |by: f32| {
                    let mut inputs = inputs.clone();
                    inputs[index][place] += by;
                    (operation.forward)(&Device::Cpu, &upload(&Device::Cpu, &inputs)?)
                };
                Ok((side(step)? - side(-step)?) / (2.0 * f64::from(step)))
            };
            expected.push((4.0 * slope(STEP / 2.0)? - slope(STEP)?) / 3.0);
        }
        // Of forward passes in f32, whose rounding a step makes 64 times as large.
        let what = format!("{}: gradient of input {index}", operation.name);
        assert_close(&what, &found, &expected, Within::Norm(2e-4));
    }
    Ok(())
}

fn values(device: &Device, tensor: &Tensor) -> Result<Vec<f64>> {
    let values = device.read(tensor)?.to_f32();
    Ok(values.into_iter().map(f64::from).collect())
}

/// What each value of a result counts.
fn weights(count: usize) -> Vec<f32> {
    Random::new(52).values(count, 1.0)
}

fn weighed(device: &Device, result: &Tensor) -> Result<f64> {
    let result = values(device, result)?;
    let weights = weights(result.len());
    let pairs = result.iter().zip(&weights);
    Ok(pairs.map(|(value, weight)| value * f64::from(*weight)).sum())
}

/// The gradients of shares at logits.
fn routed(device: &Device, logits: &Tensor, normalized: bool) -> Result<Vec<Tensor>> {
    let (grad, shares) = (upstream(device, logits.shape())?, route(device, logits, 3, normalized)?);
    Ok(vec![route_grad(device, (logits, &shares), &grad, normalized)?])
}

/// What the balance loss is made of, by shares that are not the logits' own.
fn balanced(device: &Device, logits: &Tensor) -> Result<Tensor> {
    let share = |place: usize| if [0, 2, 3].contains(&(place % 7)) { 0.5 } else { 0.0 };
    let shares: Vec<f32> = (0..30).map(share).collect();
    let shares = HostTensor::from_f32(DType::F32, &[6, 5], &shares);
    let sums = device.upload(&HostTensor::zeros(DType::F32, &[2, 5]), "sums")?;
    balance::balance(device, logits, &device.upload(&shares, "shares")?, &sums)?;
    Ok(sums)
}

fn upstream(device: &Device, shape: &[usize]) -> Result<Tensor> {
    let values = weights(shape.iter().product());
    device.upload(&HostTensor::from_f32(DType::F32, shape, &values), "a result's")
}

fn vector(row: &Tensor) -> Tensor {
    row.reshaped(&[row.len()])
}

fn matrix(device: &Device, values: &Tensor) -> Result<Matrix> {
    let (rows, columns) = (values.shape()[0], values.shape()[1]);
    let packed = Packed::from_f32(&device.read(values)?.to_f32(), rows, columns);
    Matrix::upload(device, &packed, "a matrix")
}

fn gated(device: &Device, inputs: &[Tensor], activation: Activation) -> Result<f64> {
    let result = glu(device, &inputs[0], &inputs[1], activation, DType::F32)?;
    weighed(device, &result)
}

fn gated_back(device: &Device, inputs: &[Tensor], activation: Activation) -> Result<Vec<Tensor>> {
    let grad = upstream(device, inputs[0].shape())?;
    let (gate, up) = (&inputs[0], &inputs[1]);
    let (of_gate, of_up) = glu_grad(device, gate, up, &grad, activation, DType::F32)?;
    Ok(vec![of_gate, of_up])
}

/// The tokens of an expert, of five.
fn expert_tokens(device: &Device) -> Result<Tensor> {
    device.upload(&HostTensor::from_u32(&[3], &[0, 2, 4]), "an expert's tokens")
}

/// A copy of logits behind their soft cap.
fn capped(device: &Device, logits: &Tensor) -> Result<Tensor> {
    let copy = scaled(device, logits, 1.0, DType::F32)?;
    soft_cap(device, &copy, CAP)?;
    Ok(copy)
}

fn product(device: &Device, inputs: &[Tensor]) -> Result<f64> {
    let weight = matrix(device, &inputs[1])?;
    let x = Input::new(inputs[0].clone(), weight.columns(), 3);
    let result = linear(device, &x, &weight, None, Destination::New(DType::F32))?;
    weighed(device, &result)
}

fn product_back(device: &Device, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let (x, weight) = (&inputs[0], matrix(device, &inputs[1])?);
    let grad = upstream(device, &[x.shape()[0], weight.rows()])?;
    let of_weight = device.allocate(DType::F32, inputs[1].shape(), "a weight's")?;
    backward::weight(device, &grad, x, &mut None, &of_weight, false)?;
    Ok(vec![backward::input(device, &grad, &weight, None)?, of_weight])
}

/// Random codes of four bits with an offset, in groups of 16 columns.
fn coded() -> Packed {
    let ty = weight_type("uint4m").expect("a row of the table");
    let mut packed = Packed::zeros(WeightFormat { ty, group_size: 16 }, 5, 41);
    let mut random = Random::new(56);
    for place in 0..5 * 41 {
        packed.set_code(place / 41, place % 41, random.below(16));
    }
    packed
}

/// A column a row; the last row has none, if only what is scored counts.
fn targets(device: &Device, scored: bool) -> Result<Tensor> {
    let last = if scored { UNSCORED } else { 0 };
    let targets = HostTensor::from_u32(&[6], &[0, 36, 7, 7, 20, last]);
    device.upload(&targets, "targets")
}

fn parent(device: &Device) -> Result<Tensor> {
    let values = Random::new(53).values(4 * 41, 2.0);
    device.upload(&HostTensor::from_f32(DType::F32, &[4, 41], &values), "a parent's")
}

/// Losses of a child's rows, of which the second does not count, and their gradient.
fn distillation(
    device: &Device,
    divergence: Divergence,
    child: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (parent, scored) = (parent(device)?, scored(device)?);
    distil(device, divergence, &parent, child, &scored, TEMPERATURE, 1.0, DType::F32)
}

fn distilled(device: &Device, divergence: Divergence, child: &Tensor) -> Result<f64> {
    let (_, loss) = distillation(device, divergence, child)?;
    Ok(values(device, &loss)?.iter().sum())
}

fn distilled_back(device: &Device, divergence: Divergence, child: &Tensor) -> Result<Vec<Tensor>> {
    Ok(vec![distillation(device, divergence, child)?.0])
}

/// The same from a parent's three likeliest tokens.
fn distilled_top(device: &Device, child: &Tensor) -> Result<(Tensor, Tensor)> {
    let tokens = HostTensor::from_u32(&[4, 3], &[7, 0, 40, 1, 2, 3, 9, 8, 7, 20, 10, 30]);
    let logs = Random::new(55).values(12, 2.0);
    let logs = HostTensor::from_f32(DType::F32, &[4, 3], &logs);
    let (tokens, logs) = (device.upload(&tokens, "tokens")?, device.upload(&logs, "logs")?);
    let scored = scored(device)?;
    distil_top(device, (&tokens, &logs), child, &scored, TEMPERATURE, 1.0, DType::F32)
}

fn scored(device: &Device) -> Result<Tensor> {
    device.upload(&HostTensor::from_u32(&[4], &[1, 0, 1, 1]), "which rows count")
}

/// Rotated, or back: two sequences of five.
fn turned(device: &Device, x: &Tensor, sign: f32) -> Result<Tensor> {
    let angles = Random::new(54).values(5 * HEAD_DIM / 2, 3.0);
    let table: Vec<f32> = angles.iter().flat_map(|a| [a.cos(), sign * a.sin()]).collect();
    let table = HostTensor::from_f32(DType::F32, &[5, HEAD_DIM], &table);
    let table = device.upload(&table, "rotations")?;
    let past = device.upload(&HostTensor::zeros(DType::U32, &[2]), "lengths")?;
    rotate(device, x, HEAD_DIM, &table, &past, Target::New(x.dtype()))
}
