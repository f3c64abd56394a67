//! `loss/divergence`: for two models' logits of the same places, KL(parent || child) = sum(p log(p / q)) in nats (Kullback
//! and Leibler 1951) and the likeliest token of each. The shader sums terms that are never negative, so that a model's
//! divergence from itself is exactly 0.

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
    }
}

/// The token reported for a row that holds a NaN.
const NONE: u32 = u32::MAX;

/// Where the shader changes from one way to the other: the largest log(q / p) it lets into an exponential.
const FAR: f64 = 20.0;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/divergence",
    source: include_str!("../../../shaders/loss/divergence.wgsl"),
    bindings: &[
        binding("parent", Access::Read, Element::Is(DType::F32)),
        binding("child", Access::Read, Element::Is(DType::F32)),
        binding("kl", Access::Write, Element::Is(DType::F32)),
        binding("tops", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant { subgroups: true, ..Variant::BASELINE }],
    groups: |args| fold(args.tensors[2].len()),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(40.0 * values, 24.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For logits of (rows, columns) each: KL(parent || child), f32 of (rows), and the likeliest columns, the first of equals,
/// u32 of (rows, 2).
pub fn divergence(device: &Device, parent: &Tensor, child: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = parent.shape()[0];
    assert_eq!(parent.shape(), child.shape(), "two models' logits of the same places");
    let kl = device.allocate(DType::F32, &[rows], "divergence")?;
    let tops = device.allocate(DType::U32, &[rows, 2], "likeliest tokens")?;
    let params = Params { rows: rows as u32, columns: (parent.len() / rows) as u32 };
    device.call(
        &KERNEL,
        Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE },
        &params,
        &[parent, child, &kl, &tops],
    )?;
    Ok((kl, tops))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (parent, child) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let rows: Vec<(f64, f64)> = parent
        .par_chunks_exact(columns)
        .zip(child.par_chunks_exact(columns))
        .map(|(parent, child)| row_reference(parent, child))
        .collect();
    let (mut kl, mut tops) = (Expected::default(), Expected::default());
    let lines = parent.chunks_exact(columns).zip(child.chunks_exact(columns));
    for ((parent, child), (value, bound)) in lines.zip(rows) {
        kl.push(value, bound);
        for line in [parent, child] {
            let top = if value.is_nan() { NONE } else { likeliest(line) };
            tops.push(f64::from(top), 0.0);
        }
    }
    vec![kl, tops]
}

/// The column of the largest logit; the first of equals.
fn likeliest(line: &[f64]) -> u32 {
    let mut top = 0;
    for (column, logit) in line.iter().enumerate() {
        if *logit > line[top] {
            top = column;
        }
    }
    top as u32
}

fn log_sum_exp(line: &[f64]) -> f64 {
    let maximum = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    maximum + line.iter().map(|logit| (logit - maximum).exp()).sum::<f64>().ln()
}

/// sum(p log(p / q)) and the bound of the shader's way to it.
///
/// An exponential is off by (3 + 2 |argument|) ulp and by its argument's rounding; an error of the mean m changes the result
/// by 1 - exp(-KL) of itself only, because sum(p x) = 0.
fn row_reference(parent: &[f64], child: &[f64]) -> (f64, f64) {
    let (lse_p, lse_q) = (log_sum_exp(parent), log_sum_exp(child));
    let highest = parent.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let highest_q = child.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut kl, mut mean, mut sizes) = (0.0, 0.0, 0.0);
    for (b, c) in parent.iter().zip(child) {
        let p = (b - lse_p).exp();
        if p > 0.0 || b.is_nan() || c.is_nan() {
            kl += p * ((b - lse_p) - (c - lse_q));
            mean += p * (b - c);
            sizes += p * (b - c).abs();
        }
    }
    let exponential = |argument: f64| (8.0 + 6.0 * argument.abs().min(100.0)) * U;
    let sum = gamma(parent.len());
    let (mut mean_off, mut weight_off) = (0.0, 0.0);
    for (b, c) in parent.iter().zip(child) {
        let p = (b - lse_p).exp();
        weight_off += p * exponential(highest - b);
        if p > 0.0 {
            mean_off += p * (b - c).abs() * (exponential(highest - b) + 3.0 * U);
        }
    }
    mean_off += sizes * sum + mean.abs() * (weight_off + sum + 4.0 * U);
    let farthest = mean + highest_q - lse_p;
    let unsure = mean_off + 4.0 * U * (mean.abs() + highest_q.abs() + highest.abs() + 20.0);
    let mut bound = 0.0f64;
    if farthest - unsure <= FAR {
        let mut off = 0.0;
        for (b, c) in parent.iter().zip(child) {
            let (p, x) = ((b - lse_p).exp(), c - b + mean);
            let (q, argument) = ((c + mean - lse_p).exp(), c - highest + mean);
            let rounded = U * ((c - b).abs().min(1e30) + x.abs().min(1e30));
            let own = exponential(highest - b);
            // Near the shader's change of ways either may have been taken; the series is the more exact.
            off += if x.abs() < 0.499 {
                let beyond = x.exp_m1() - x;
                p * (beyond * (own + 12.0 * U) + x.exp_m1().abs() * rounded)
            } else {
                let line =
                    if p > 0.0 { p * ((1.0 + x.abs()) * (own + 4.0 * U) + rounded) } else { 0.0 };
                let outside = if q > 0.0 {
                    let size = (c - highest).abs() + argument.abs();
                    q * (exponential(argument) + 2.0 * U * size)
                } else {
                    0.0
                };
                outside + line
            };
        }
        let excess = kl.exp_m1();
        off += excess * (weight_off + sum + 4.0 * U) + gamma(parent.len()) * excess;
        let log = if excess < 1.01 {
            12.0 * U * kl.abs()
        } else {
            f64::powi(2.0, -21).max(6.0 * U * kl.abs())
        };
        bound = off / (1.0 + excess) + log + mean_off * (1.0 - (-kl).exp()) + mean_off * mean_off;
    }
    if farthest + unsure > FAR {
        let logs = 2.0 * f64::powi(2.0, -21) + 12.0 * U * (lse_p.abs() + lse_q.abs());
        let q_off: f64 = child.iter().map(|c| (c - lse_q).exp() * exponential(highest_q - c)).sum();
        let straight = mean_off + weight_off + q_off + 2.0 * sum + logs + 4.0 * U * mean.abs();
        bound = bound.max(straight);
    }
    // This sum cancels, in f64.
    let own = 1e-14 * (1.0 + lse_p.abs() + lse_q.abs());
    (kl, bound + own + storing(DType::F32, kl))
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (parent, child) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let rows: Vec<(f32, [u32; 2])> = parent
        .par_chunks(columns)
        .zip(child.par_chunks(columns))
        .map(|(parent, child)| row_cpu(parent, child))
        .collect();
    let kl: Vec<f32> = rows.iter().map(|row| row.0).collect();
    outputs.store(0, 0, &kl);
    for (words, row) in outputs.words(1).chunks_exact_mut(2).zip(rows) {
        words.copy_from_slice(&row.1);
    }
}

/// As the shader does it, with f64 sums.
fn row_cpu(parent: &[f32], child: &[f32]) -> (f32, [u32; 2]) {
    if parent.iter().chain(child).any(|logit| logit.is_nan()) {
        return (f32::NAN, [NONE; 2]);
    }
    let top = |line: &[f32]| {
        let better = |top: usize, next: usize| if line[next] > line[top] { next } else { top };
        (1..line.len()).fold(0, better)
    };
    let tops = [top(parent), top(child)];
    let (highest_p, highest_q) = (f64::from(parent[tops[0]]), f64::from(child[tops[1]]));
    let (mut sum_p, mut sum_q, mut weighted) = (0.0, 0.0, 0.0);
    for (b, c) in parent.iter().zip(child) {
        let weight = (f64::from(*b) - highest_p).exp();
        sum_p += weight;
        sum_q += (f64::from(*c) - highest_q).exp();
        if weight > 0.0 {
            weighted += weight * (f64::from(*b) - f64::from(*c));
        }
    }
    let mean = weighted / sum_p;
    let kl = if mean + highest_q - highest_p - sum_p.ln() > FAR {
        mean + (highest_q + sum_q.ln()) - (highest_p + sum_p.ln())
    } else {
        let beyond = |(b, c): (&f32, &f32)| {
            let (b, c) = (f64::from(*b), f64::from(*c));
            let (weight, x) = ((b - highest_p).exp(), c - b + mean);
            if x.abs() < 0.01 {
                weight * x * x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x / 120.0)))
            } else if weight > 0.0 {
                (c - highest_p + mean).exp() - weight * (1.0 + x)
            } else {
                (c - highest_p + mean).exp()
            }
        };
        (parent.iter().zip(child).map(beyond).sum::<f64>() / sum_p).ln_1p()
    };
    (kl as f32, tops.map(|top| top as u32))
}

/// Logits of a parent and, a little or entirely other, of its child.
fn case(rows: usize, columns: usize, scale: f32, apart: f32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},scale={scale},apart={apart}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(11);
        let mut parent = random.values(rows * columns, scale);
        let shift = random.values(rows * columns, apart);
        let mut child: Vec<f32> = parent.iter().zip(shift).map(|(b, d)| b + d).collect();
        match note {
            // Equals: the first is taken. Rounded to few values, so that there are many.
            ",equals" => [&mut parent, &mut child]
                .into_iter()
                .flatten()
                .for_each(|logit| *logit = logit.round()),
            // A constant between the two changes nothing.
            ",shifted" => child.iter_mut().for_each(|logit| *logit += 30.0),
            // One logit far above the others, in every place once, in the parent and elsewhere in the child.
            ",spikes" => (0..rows).for_each(|row| {
                parent[row * columns + row % columns] += 60.0;
                child[row * columns + (row * 7 + 3) % columns] += 60.0;
            }),
            // All but sure, and the child as sure of the same.
            ",sure" => (0..rows).for_each(|row| {
                parent[row * columns] += 25.0;
                child[row * columns] += 24.0;
            }),
            // The last columns are ruled out by both.
            ",infinity" => (0..rows).for_each(|row| {
                parent[(row + 1) * columns - 1] = f32::NEG_INFINITY;
                child[(row + 1) * columns - 1] = f32::NEG_INFINITY;
            }),
            ",nan parent" => parent[columns - 1] = f32::NAN,
            ",nan child" => child[columns / 2] = f32::NAN,
            _ => {}
        }
        let params = Params { rows: rows as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &parent),
            HostTensor::from_f32(DType::F32, &[rows, columns], &child),
            HostTensor::zeros(DType::F32, &[rows]),
            HostTensor::zeros(DType::U32, &[rows, 2]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 40),
        sizes.between(1, 1, 1500),
        [1.0, 12.0, 200.0][sizes.between(2, 0, 2)],
        [0.0, 1e-3, 0.3, 5.0, 200.0][sizes.between(3, 0, 4)],
        "",
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 101, 5.0, 0.3, ""),
        case(1, 49_152, 12.0, 0.2, ""),
        case(1, 20_000, 12.0, 1e-3, ""),
        case(3, 700, 8.0, 0.0, ""),
        case(1, 1, 3.0, 1.0, ""),
        case(5, 257, 8.0, 4.0, ""),
        case(4, 300, 100.0, 100.0, ""),
        case(3, 1000, 6.0, 1.0, ",equals"),
        case(3, 400, 6.0, 0.1, ",shifted"),
        case(64, 300, 2.0, 0.1, ",spikes"),
        case(3, 500, 2.0, 0.5, ",sure"),
        case(2, 97, 2.0, 0.5, ",infinity"),
        case(2, 97, 1.0, 0.1, ",nan parent"),
        case(2, 97, 1.0, 0.1, ",nan child"),
        // More rows than one dimension has workgroups, for one variant.
        case(1051, 3, 2.0, 0.5, "").only(|variant| !variant.subgroups),
        case(512, 49_152, 12.0, 0.2, "").bench(),
    ]
}
