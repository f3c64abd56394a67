//! `select/top_tokens`: the k likeliest tokens of each row of logits, and their log-probabilities logit - log(sum exp(logits)):
//! what a parent's outputs are kept as for [`loss/distil_top`](crate::kernels::loss::distil_top). Which ones is exact, found as
//! in [`select/top_k`](super::top_k).

use crate::kernels::loss::logsumexp::row_reference;
use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// At most columns.
        keep: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "select/top_tokens",
    source: include_str!("../../../shaders/select/top_tokens.wgsl"),
    bindings: &[
        binding("scores", Access::Read, Element::Is(DType::F32)),
        binding("tokens", Access::Write, Element::Is(DType::U32)),
        binding("logs", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    // As many as the histogram has bins.
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(60.0 * values, 32.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For `logits`, f32 (rows, columns): the `keep` likeliest tokens of each row, u32 (rows, keep) in rising order, and their
/// log-probabilities, f32 of the same shape.
///
/// Of equal logits, as the two zeros are, the lower token goes first; NaN is below every other, and makes all
/// log-probabilities of its row NaN.
pub fn top_tokens(device: &Device, logits: &Tensor, keep: usize) -> Result<(Tensor, Tensor)> {
    let rows = logits.shape()[0];
    let columns = logits.len() / rows;
    assert!((1..=columns).contains(&keep), "{keep} of {columns} tokens");
    let tokens = device.allocate(DType::U32, &[rows, keep], "likeliest tokens")?;
    let logs = device.allocate(DType::F32, &[rows, keep], "log-probabilities")?;
    let params = Params { rows: rows as u32, columns: columns as u32, keep: keep as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[logits, &tokens, &logs])?;
    Ok((tokens, logs))
}

/// The columns of the largest, in rising order.
fn largest<T: PartialOrd + Copy>(line: &[T], keep: usize) -> Vec<usize> {
    let is_nan = |value: T| value.partial_cmp(&value).is_none();
    let mut order: Vec<usize> = (0..line.len()).collect();
    // The sort is stable: equals stay in the order of their places.
    order.sort_by(|&a, &b| {
        let numbers = line[b].partial_cmp(&line[a]);
        numbers.unwrap_or_else(|| is_nan(line[a]).cmp(&is_nan(line[b])))
    });
    order.truncate(keep);
    order.sort_unstable();
    order
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let logits = args.tensors[0].to_f64();
    let rows: Vec<_> = logits
        .par_chunks_exact(p.columns as usize)
        .map(|line| {
            let highest = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let (lse, bound) = row_reference(line);
            let number = |column: usize| {
                let value = line[column] - lse;
                let off = 2.0 * U * ((line[column] - highest).abs() + value.abs());
                (column as f64, value, bound + off + storing(DType::F32, value))
            };
            let kept = largest(line, p.keep as usize).into_iter();
            kept.map(number).collect::<Vec<_>>()
        })
        .collect();
    let (mut tokens, mut logs) = (Expected::default(), Expected::default());
    for (token, value, bound) in rows.into_iter().flatten() {
        tokens.push(token, 0.0);
        logs.push(value, bound);
    }
    vec![tokens, logs]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let logits = args.tensors[0].to_f32();
    let rows: Vec<(u32, f32)> = logits
        .par_chunks(p.columns as usize)
        .flat_map_iter(|line| {
            let highest = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let below = move |logit: f32| f64::from(logit) - f64::from(highest);
            let log = line.iter().map(|logit| below(*logit).exp()).sum::<f64>().ln();
            let kept = largest(line, p.keep as usize).into_iter();
            kept.map(move |column| (column as u32, (below(line[column]) - log) as f32))
        })
        .collect();
    let words = outputs.words(0).iter_mut().zip(&rows);
    words.for_each(|(word, (token, _))| *word = *token);
    let logs: Vec<f32> = rows.iter().map(|(_, log)| *log).collect();
    outputs.store(1, 0, &logs);
}

fn case((rows, columns): (usize, usize), keep: usize, scale: f32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},keep={keep},scale={scale}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(73);
        let mut logits = random.values(rows * columns, scale);
        match note {
            // Few values, so that many are equal.
            ",rounded" => logits.iter_mut().for_each(|logit| *logit = logit.round()),
            ",equal" => logits.fill(0.25),
            _ => {}
        }
        let params = Params { rows: rows as u32, columns: columns as u32, keep: keep as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &logits),
            HostTensor::zeros(DType::U32, &[rows, keep]),
            HostTensor::zeros(DType::F32, &[rows, keep]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let columns = sizes.between(1, 1, 1500);
    let scale = [1.0, 12.0, 200.0][sizes.between(2, 0, 2)];
    let note = ["", ",rounded"][sizes.between(3, 0, 1)];
    case((sizes.between(0, 1, 40), columns), sizes.between(4, 1, columns), scale, note)
}

fn cases() -> Vec<Case> {
    vec![
        case((3, 101), 8, 5.0, ""),
        case((1, 1), 1, 3.0, ""),
        case((2, 300), 300, 4.0, ""),
        case((2, 49_152), 64, 12.0, ""),
        case((3, 1000), 300, 4.0, ",rounded"),
        case((2, 777), 100, 1.0, ",equal"),
        case((2, 97), 96, 1.0, "").with(Poison::NegativeInfinity),
        case((2, 97), 97, 1.0, "").with(Poison::NaN),
        case((2, 97), 5, 1.0, "").with(Poison::NaN),
        // More rows than one dimension has workgroups.
        case((1051, 3), 2, 2.0, ""),
        case((512, 49_152), 64, 12.0, "").bench(),
    ]
}
