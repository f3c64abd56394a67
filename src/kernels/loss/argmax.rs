//! `loss/argmax`: for each row of logits the column of the largest, the first of equals: what greedy decoding takes. NaN is
//! never the largest; whoever wants to know of it reads the row's log-sum-exp. The rows of a call are as many as one
//! binding holds.

use crate::kernels::prelude::*;

/// Columns are compared as f32, which is exact up to here.
const MAX_COLUMNS: usize = 1 << 24;
/// A bound below every logit that counts.
const LEAST: f32 = -3.4e38;

params! {
    struct Params {
        rows: u32,
        columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/argmax",
    source: include_str!("../../../shaders/loss/argmax.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
        binding("best", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant { subgroups: true, ..Variant::BASELINE }],
    groups: |args| fold(args.tensors[1].len()),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(values, 4.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For `logits`, f32 of (rows, columns): the column of each row's largest, u32 of (rows).
pub fn argmax(device: &Device, logits: &Tensor, rows: usize) -> Result<Tensor> {
    let columns = logits.len() / rows;
    assert!(columns <= MAX_COLUMNS, "columns are compared as f32");
    let best = device.allocate(DType::U32, &[rows], "largest logits")?;
    let params = Params { rows: rows as u32, columns: columns as u32 };
    device.call(
        &KERNEL,
        Variant { subgroups: device.capabilities().subgroups, ..Variant::BASELINE },
        &params,
        &[logits, &best],
    )?;
    Ok(best)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let logits = args.tensors[0].to_f64();
    let values = logits.chunks_exact(columns).map(|line| {
        let (mut best, mut largest) = (0, f64::from(LEAST));
        for (column, logit) in line.iter().enumerate() {
            if *logit > largest {
                (best, largest) = (column, *logit);
            }
        }
        best as f64
    });
    vec![Expected::exact(values.collect())]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let logits = args.tensors[0].to_f32();
    let lines = logits.par_chunks(p.columns as usize);
    let best: Vec<u32> = lines
        .map(|line| {
            let mut best = (0, LEAST);
            for (column, logit) in line.iter().enumerate() {
                if *logit > best.1 {
                    best = (column as u32, *logit);
                }
            }
            best.0
        })
        .collect();
    outputs.words(0)[..best.len()].copy_from_slice(&best);
}

fn case(rows: usize, columns: usize, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(19);
        let mut logits = random.values(rows * columns, 20.0);
        match note {
            // All below zero, so that a lane without a column must not win.
            ",below" => logits.iter_mut().for_each(|v| *v -= 1000.0),
            // The largest in every place once, and once more behind it.
            ",equals" => (0..rows).for_each(|row| {
                logits[row * columns + row] = 50.0;
                logits[row * columns + columns - 1] = 50.0;
            }),
            ",infinity" => {
                logits[columns / 2] = f32::NEG_INFINITY;
                logits[2 * columns - 1] = f32::INFINITY;
            }
            _ => {}
        }
        let params = Params { rows: rows as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &logits),
            HostTensor::zeros(DType::U32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 40), sizes.between(1, 1, 1500), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 101, ""),
        case(2, 49_152, ""),
        case(1, 1, ""),
        case(2, 4096, "").with(Poison::Zeros),
        case(3, 130, ",below"),
        case(300, 300, ",equals"),
        case(2, 97, ",infinity"),
        // More rows than one dimension of a dispatch has workgroups.
        case(1051, 3, "").only(|variant| !variant.subgroups),
        case(512, 49_152, "").bench(),
    ]
}
