//! `loss/logsumexp`: for each row of logits, log(sum(exp(logits))) and the target's logit. Their difference is the
//! negative log-likelihood of the target. The rows of a call are as many as one binding holds.

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/logsumexp",
    source: include_str!("../../../shaders/loss/logsumexp.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
        binding("targets", Access::Read, Element::Is(DType::U32)),
        binding("lse", Access::Write, Element::Is(DType::F32)),
        binding("picked", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant { subgroups: true, ..Variant::BASELINE }],
    groups: |args| fold(args.tensors[1].len()),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(6.0 * values, 8.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For `logits` of (rows, columns) and one target column per row: (log-sum-exp, target logit), f32 of (rows) each.
pub fn logsumexp(device: &Device, logits: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    let rows = targets.len();
    let lse = device.allocate(DType::F32, &[rows], "log-sum-exp")?;
    let picked = device.allocate(DType::F32, &[rows], "target logits")?;
    let params = Params { rows: rows as u32, columns: (logits.len() / rows) as u32 };
    device.call(
        &KERNEL,
        Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE },
        &params,
        &[logits, targets, &lse, &picked],
    )?;
    Ok((lse, picked))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let logits = args.tensors[0].to_f64();
    let (mut lse, mut picked) = (Expected::default(), Expected::default());
    let rows: Vec<(f64, f64)> = logits.par_chunks_exact(columns).map(row_reference).collect();
    for (row, (target, (value, bound))) in args.tensors[1].u32s().iter().zip(rows).enumerate() {
        lse.push(value, bound);
        picked.push(logits[row * columns + *target as usize], 0.0);
    }
    vec![lse, picked]
}

/// log(sum(exp(line))) and its bound: each term's exp is off by (3 + 2 |x|) ulp, and its argument by half an ulp of the
/// larger logit.
pub(in crate::kernels) fn row_reference(line: &[f64]) -> (f64, f64) {
    let maximum = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for logit in line {
        let term = (logit - maximum).exp();
        sum += term;
        weighted += term * (8.0 + 6.0 * (maximum - logit).min(100.0)) * U;
    }
    let value = maximum + sum.ln();
    let log = f64::powi(2.0, -21).max(6.0 * U * sum.ln().abs());
    let bound = weighted / sum
        + gamma(line.len())
        + log
        + storing(DType::F32, value)
        + 2.0 * U * maximum.abs();
    (value, bound)
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let logits = args.tensors[0].to_f32();
    let lse: Vec<f32> = logits
        .par_chunks(columns)
        .map(|line| {
            let maximum = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            maximum
                + line.iter().map(|logit| f64::from((logit - maximum).exp())).sum::<f64>().ln()
                    as f32
        })
        .collect();
    let targets = args.tensors[1].u32s().iter().enumerate();
    let picked: Vec<f32> =
        targets.map(|(row, target)| logits[row * columns + *target as usize]).collect();
    outputs.store(0, 0, &lse);
    outputs.store(1, 0, &picked);
}

fn case(rows: usize, columns: usize, scale: f32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},scale={scale}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(9);
        let mut logits = random.values(rows * columns, scale);
        match note {
            // The maximum stands last, so far above the first columns that a sum around another overflows.
            ",ramp" => logits.iter_mut().enumerate().for_each(|(i, v)| *v = (i % columns) as f32),
            // Each row far above the one before, all below zero.
            ",levels" => logits
                .iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v += 500.0 * (i / columns) as f32 - 2000.0),
            // One logit far above the others, in every place once.
            ",spikes" => (0..rows).for_each(|row| logits[row * columns + row] += 200.0),
            _ => {}
        }
        let targets: Vec<u32> = (0..rows).map(|_| random.below(columns as u32)).collect();
        let params = Params { rows: rows as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &logits),
            HostTensor::from_u32(&[rows], &targets),
            HostTensor::zeros(DType::F32, &[rows]),
            HostTensor::zeros(DType::F32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 40),
        sizes.between(1, 1, 1500),
        [1.0, 20.0, 300.0][sizes.between(2, 0, 2)],
        "",
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 101, 5.0, ""),
        case(2, 49_152, 20.0, ""),
        case(1, 1, 3.0, ""),
        case(4, 300, 1000.0, ""),
        case(2, 4096, 1.0, "").with(Poison::Zeros),
        case(3, 700, 1.0, ",ramp"),
        case(3, 128, 1.0, ",levels"),
        case(256, 256, 1.0, ",spikes"),
        case(2, 97, 1.0, "").with(Poison::NegativeInfinity),
        case(2, 97, 1.0, "").with(Poison::NaN),
        case(1051, 3, 2.0, ""),
        case(512, 49_152, 20.0, "").bench(),
    ]
}
