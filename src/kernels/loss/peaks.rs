//! `loss/peaks`: what greedy decoding takes of each row of logits, part by part, so that a long row keeps a device busy: of each part
//! the largest logit, the first column that has it, and sum(exp(logit - largest)). [`kv/advance`](crate::kernels::kv::advance) puts
//! the parts together. NaN is never the largest, and the sum is NaN where a logit is. The rows of a call are as many as one binding
//! holds.

use crate::kernels::prelude::*;

/// Columns are compared as f32, which is exact up to here.
const MAX_COLUMNS: usize = 1 << 24;
/// A bound below every logit that counts.
pub(in crate::kernels) const LEAST: f32 = -3.4e38;
/// Columns of a part: eight for each lane of a workgroup.
const EACH: usize = 2048;
const CONSTANTS: &[(&str, u32)] = &[("EACH", EACH as u32)];

params! {
    struct Params {
        rows: u32,
        columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/peaks",
    source: include_str!("../../../shaders/loss/peaks.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
        binding("peaks", Access::Write, Element::Is(DType::F32)),
        binding("places", Access::Write, Element::Is(DType::U32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || [false, true].map(variant).to_vec(),
    groups: |args| fold(args.tensors[2].len()),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(6.0 * values, 4.0 * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

fn variant(subgroups: bool) -> Variant {
    Variant { constants: CONSTANTS, subgroups, ..Variant::BASELINE }
}

/// The peaks of parts of rows.
#[derive(Clone, Debug)]
pub struct Peaks {
    /// f32 (rows, parts, 2): the largest logit, and the sum of exp(logit - largest).
    pub peaks: Tensor,
    /// u32 (rows, parts): the first column that has the largest.
    pub places: Tensor,
}

/// Those of `logits`, f32 (rows, columns).
pub fn peaks(device: &Device, logits: &Tensor, rows: usize) -> Result<Peaks> {
    let columns = logits.len() / rows;
    assert!(columns <= MAX_COLUMNS, "columns are compared as f32");
    let parts = columns.div_ceil(EACH);
    let peaks = device.allocate(DType::F32, &[rows, parts, 2], "largest logits")?;
    let places = device.allocate(DType::U32, &[rows, parts], "places of the largest logits")?;
    let params = Params { rows: rows as u32, columns: columns as u32 };
    let variant = variant(device.capabilities().subgroups);
    device.call(&KERNEL, variant, &params, &[logits, &peaks, &places])?;
    Ok(Peaks { peaks, places })
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let logits = args.tensors[0].to_f64();
    let (mut peaks, mut places) = (Expected::default(), Vec::new());
    for row in logits.chunks_exact(p.columns as usize) {
        for (index, part) in row.chunks(EACH).enumerate() {
            let (mut place, mut largest) = (0, f64::from(LEAST));
            for (column, logit) in part.iter().enumerate() {
                if *logit > largest {
                    (place, largest) = (index * EACH + column, *logit);
                }
            }
            let (mut sum, mut bound) = (0.0, 0.0);
            for logit in part {
                let term = (logit - largest).exp();
                sum += term;
                // exp is off by (3 + 2 |x|) ulp, and its argument by half an ulp of the larger logit.
                bound += term * (8.0 + 6.0 * (largest - logit).min(100.0)) * U;
            }
            peaks.push(largest, 0.0);
            peaks.push(sum, bound + gamma(part.len()) * sum + storing(DType::F32, sum));
            places.push(place as f64);
        }
    }
    vec![peaks, Expected::exact(places)]
}

fn case(rows: usize, columns: usize, scale: f32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},scale={scale}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(39);
        let mut logits = random.values(rows * columns, scale);
        match note {
            // All below zero, so that a lane without a column must not win.
            ",below" => logits.iter_mut().for_each(|v| *v -= 1000.0),
            // The largest in every place once, and once more behind it.
            ",equals" => (0..rows).for_each(|row| {
                logits[row * columns + row] = 2.0 * scale;
                logits[row * columns + columns - 1] = 2.0 * scale;
            }),
            // No logit above the bound: the first column.
            ",nothing" => logits.fill(f32::NEG_INFINITY),
            // The largest stands last, so far above the first that a sum around another overflows.
            ",ramp" => logits.iter_mut().enumerate().for_each(|(i, v)| *v = (i % columns) as f32),
            _ => {}
        }
        let params = Params { rows: rows as u32, columns: columns as u32 };
        let parts = columns.div_ceil(EACH);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &logits),
            HostTensor::zeros(DType::F32, &[rows, parts, 2]),
            HostTensor::zeros(DType::U32, &[rows, parts]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let scale = [1.0, 20.0, 300.0][sizes.between(2, 0, 2)];
    case(sizes.between(0, 1, 9), 20 * sizes.between(1, 1, 256), scale, "")
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 101, 5.0, ""),
        case(2, 5000, 20.0, ""),
        // A part of one column.
        case(2, EACH + 1, 20.0, ""),
        case(1, 1, 3.0, ""),
        case(2, 4096, 1.0, "").with(Poison::Zeros),
        case(3, 130, 5.0, ",below"),
        case(300, 300, 20.0, ",equals"),
        case(2, 2500, 1.0, ",ramp"),
        case(1, 700, 1.0, ",nothing"),
        case(2, 97, 1.0, "").with(Poison::NegativeInfinity),
        case(2, 97, 1.0, "").with(Poison::NaN),
        // More rows than one dimension of a dispatch has workgroups.
        case(1051, 3, 2.0, "").only(|variant| !variant.subgroups),
        case(1, 128_256, 20.0, "").bench(),
        case(8, 128_256, 20.0, "").bench(),
    ]
}
