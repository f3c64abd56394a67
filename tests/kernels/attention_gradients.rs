//! Attention's backward pass against finite differences of a forward pass in f64.

use libtest_mimic::{Failed, Trial};
use lopper::device::{Device, HostTensor, Random};
use lopper::gpu::Options as GpuOptions;
use lopper::kernels::attention::backward::backward;
use lopper::kernels::attention::bias::{Bias, Distances};
use lopper::kernels::attention::causal::forward;
use lopper::kernels::attention::{Attention, Seen};
use lopper::tensor::DType;

use crate::machine::{device, gpu_trial, on_each};

const SEQUENCES: usize = 2;
// Two tiles of tokens, and two of places.
const EACH: usize = 35;
const CAPACITY: usize = 38;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;

pub fn trials() -> Vec<Trial> {
    let plain = Attention::new(HEADS, KV_HEADS, 6);
    let cpu = |name: &str, dtype, attention| {
        Trial::test(format!("gradients::attention/backward::{name}"), move || {
            differences(&Device::Cpu, dtype, attention)
        })
    };
    let gpu = |name: &str, attention| {
        gpu_trial(format!("gradients::attention/backward::{name}"), move || {
            differences(&device(GpuOptions::default())?, DType::F32, attention)
        })
    };
    let window = plain.with_window(7);
    let cap = plain.with_soft_cap(1.5);
    let both = Attention { scale: 0.7, ..window.with_soft_cap(1.5) };
    let mut trials = Vec::from(on_each("gradients::attention/seen", differences_seen));
    // A call for every tile.
    trials.push(gpu_trial("gradients::attention/seen::split".into(), || {
        let options = GpuOptions { max_operations: Some(1.0), ..GpuOptions::default() };
        differences_seen(&device(options)?)
    }));
    trials.extend([
        cpu("cpu", DType::F32, plain),
        cpu("cpu_in_f16", DType::F16, plain),
        cpu("cpu_window", DType::F32, window),
        cpu("cpu_soft_cap", DType::F32, cap),
        cpu("cpu_both", DType::F32, both),
        gpu("gpu", plain),
        gpu("gpu_window", window),
        gpu("gpu_soft_cap", cap),
        gpu("gpu_both", both),
        // Heads of whole vectors of four: the forward pass keeps the log-sum-exps.
        gpu("gpu_kept", Attention::new(HEADS, KV_HEADS, 8)),
        gpu("gpu_kept_both", Attention { dim: 8, ..both }),
        gpu("gpu_ungrouped", Attention::new(HEADS, HEADS, 8)),
        // A call for every tile.
        gpu_trial("gradients::attention/backward::split".into(), move || {
            let options = GpuOptions { max_operations: Some(1.0), ..GpuOptions::default() };
            differences(&device(options)?, DType::F32, plain)
        }),
    ]);
    trials
}

/// Every gradient of sum(attention * r) against a central difference. What rounds a result to f16 moves delta, and through
/// it every gradient, by 2^-11 of it.
fn differences(device: &Device, dtype: DType, attention: Attention) -> Result<(), Failed> {
    let bound = if dtype == DType::F16 { 1e-2 } else { 1e-5 };
    let (width, pitch) = (HEADS * attention.dim, attention.kv * attention.dim);
    let (tokens, places) = (SEQUENCES * EACH, SEQUENCES * CAPACITY);
    let mut random = Random::new(29);
    let mut make = |rows: usize, width: usize, scale: f32| {
        HostTensor::from_f32(dtype, &[rows, width], &random.values(rows * width, scale))
    };
    let inputs = [make(tokens, width, 2.0), make(places, pitch, 1.0), make(places, pitch, 1.0)];
    let grad = make(tokens, width, 1.0);
    let on_device = |host: &HostTensor| device.upload(host, "values");
    let (query, key, value) =
        (on_device(&inputs[0])?, on_device(&inputs[1])?, on_device(&inputs[2])?);
    let past = on_device(&HostTensor::from_u32(&[SEQUENCES], &[0; SEQUENCES]))?;
    let seen = Seen::causal(&past);
    let (result, known) = forward(device, &query, (&key, &value), seen, attention, CAPACITY)?;
    let grads = backward(
        device,
        &query,
        (&key, &value),
        (&result, known.as_ref()),
        &on_device(&grad)?,
        attention,
        (seen, false),
    )?;
    let wide = |host: &HostTensor| host.view().to_f64();
    let (r, mut numbers) = (wide(&grad), inputs.each_ref().map(wide));
    let step = 1e-5;
    for (which, found) in [grads.query, grads.key, grads.value].iter().enumerate() {
        let found = device.read(found)?;
        assert_eq!(found.shape, inputs[which].shape, "shape of gradient {which}");
        for (index, found) in wide(&found).into_iter().enumerate() {
            let middle = numbers[which][index];
            let [high, low] = [middle + step, middle - step].map(|moved| {
                numbers[which][index] = moved;
                loss(&numbers, &r, attention)
            });
            numbers[which][index] = middle;
            let expected = (high - low) / (2.0 * step);
            let near = (found - expected).abs() <= bound * (1.0 + expected.abs());
            assert!(near, "{which}, {index}: {expected} expected, {found} found");
        }
    }
    Ok(())
}

/// The sum of attention's results, each times its number of `r`.
fn loss([query, key, value]: &[Vec<f64>; 3], r: &[f64], attention: Attention) -> f64 {
    let mut loss = 0.0;
    for token in 0..SEQUENCES * EACH {
        for head in 0..HEADS {
            let at = (token * HEADS + head) * attention.dim;
            let line = |values: &'_ [f64], place: usize, column: usize| {
                let row = token / EACH * CAPACITY + place;
                values[(row * attention.kv + head * attention.kv / HEADS) * attention.dim + column]
            };
            let (mut total, mut sum) = (0.0, 0.0);
            let place = token % EACH;
            // `transformers` masks the keys that are a window or more away.
            let seen = |key: &usize| attention.window.is_none_or(|window| place - key < window);
            for place in (0..=place).filter(seen) {
                let columns = 0..attention.dim;
                let score: f64 = columns
                    .clone()
                    .map(|column| query[at + column] * line(key, place, column))
                    .sum();
                let score = score * f64::from(attention.scale);
                let cap = attention.soft_cap.map(f64::from);
                let weight = cap.map_or(score, |cap| cap * (score / cap).tanh()).exp();
                total += weight;
                let valued = columns.map(|column| r[at + column] * line(value, place, column));
                sum += weight * valued.sum::<f64>();
            }
            loss += sum / total;
        }
    }
    loss
}

/// Attention of all keys and of those before a token: sources with a bias of both sides, targets with one of what is before them, and
/// without a bias over the keys of another text. Of each its inputs' gradients and the table's. A head is no whole vector of four, or
/// is; a few tokens, or more than a tile.
fn differences_seen(device: &Device) -> Result<(), Failed> {
    let bucket = |distance: i64| (distance + 4) as u32 / 2;
    let places: Vec<u32> = (-4..=4).map(bucket).collect();
    for (causal, biased, each, keys, dim) in [
        (false, true, 9, 9, 5),
        (true, true, 9, 9, 5),
        (false, false, 9, 6, 5),
        (false, true, 34, 34, 4),
        (true, true, 34, 34, 4),
        (false, false, 13, 6, 4),
    ] {
        let ends = if causal { [0, 0] } else { [keys as u32, 4] };
        let (width, rows) = (HEADS * dim, [SEQUENCES * each, SEQUENCES * keys]);
        let mut random = Random::new(31);
        let mut make = |rows: usize, width: usize, scale: f32| {
            HostTensor::from_f32(DType::F32, &[rows, width], &random.values(rows * width, scale))
        };
        let inputs = [
            make(rows[0], width, 1.0),
            make(rows[1], width, 1.0),
            make(rows[1], width, 1.0),
            make(5, HEADS, 1.0),
        ];
        let grad = make(rows[0], width, 1.0);
        let on_device = |host: &HostTensor| device.upload(host, "values");
        let [query, key, value, table] = inputs.each_ref().map(on_device);
        let (query, key, value, table) = (query?, key?, value?, table?);
        let ends_there = on_device(&HostTensor::from_u32(&[SEQUENCES], &ends))?;
        let distances = Distances::upload(device, &places, 5)?;
        let bias = Bias::new(device, &table, &distances, &ends_there)?;
        let heads = Attention { scale: 0.7, ..Attention::new(HEADS, HEADS, dim) };
        let seen = Seen { causal, ..Seen::all(&ends_there) }.with_bias(biased.then_some(&bias));
        let (result, known) = forward(device, &query, (&key, &value), seen, heads, keys)?;
        let of = (&result, known.as_ref());
        let grad_there = on_device(&grad)?;
        let asked = (seen, true);
        let grads = backward(device, &query, (&key, &value), of, &grad_there, heads, asked)?;
        assert_eq!(grads.table.is_some(), biased);
        let wide = |host: &HostTensor| host.view().to_f64();
        let (r, mut numbers) = (wide(&grad), inputs.each_ref().map(wide));
        // sum(attention * r), in f64.
        let loss = |numbers: &[Vec<f64>; 4]| {
            let [query, key, value, table] = numbers;
            let mut loss = 0.0;
            for token in 0..rows[0] {
                let (sequence, order) = (token / each, token % each);
                let end = if causal { order + 1 } else { ends[sequence] as usize };
                for head in 0..HEADS {
                    let at = (token * HEADS + head) * dim;
                    let (mut total, mut sum) = (0.0, 0.0);
                    for place in 0..end {
                        let there = ((sequence * keys + place) * HEADS + head) * dim;
                        let dot = |a: &[f64], b: &[f64]| -> f64 {
                            (0..dim).map(|c| a[at + c] * b[there + c]).sum()
                        };
                        let distance = (place as i64 - order as i64).clamp(-4, 4);
                        let bias = table[bucket(distance) as usize * HEADS + head];
                        let score =
                            0.7f32 as f64 * dot(query, key) + if biased { bias } else { 0.0 };
                        total += score.exp();
                        sum += score.exp() * dot(&r, value);
                    }
                    loss += sum / total;
                }
            }
            loss
        };
        let whole: f64 = wide(&device.read(&result)?).iter().zip(&r).map(|(a, b)| a * b).sum();
        assert!((whole - loss(&numbers)).abs() < 1e-4, "the forward pass itself");
        let step = 1e-5;
        let found = [&grads.query, &grads.key, &grads.value].into_iter().chain(&grads.table);
        for (which, found) in found.enumerate() {
            // Every one of a few tokens, some of many: each takes two passes.
            let step_over = if each > 20 { 23 } else { 1 };
            let numbered = wide(&device.read(found)?).into_iter().enumerate();
            for (index, found) in numbered.step_by(step_over) {
                let middle = numbers[which][index];
                let [high, low] = [middle + step, middle - step].map(|moved| {
                    numbers[which][index] = moved;
                    loss(&numbers)
                });
                numbers[which][index] = middle;
                let expected = (high - low) / (2.0 * step);
                let near = (found - expected).abs() <= 1e-5 * (1.0 + expected.abs());
                assert!(near, "{which}, {index}: {expected} expected, {found} found");
            }
        }
    }
    Ok(())
}
