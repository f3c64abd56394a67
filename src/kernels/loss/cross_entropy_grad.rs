//! `loss/cross_entropy_grad`: the gradient of a weighted sum of cross-entropies at the logits,
//! result[r, c] = (exp(logits[r, c] - lse[r]) - [c is the target]) * weight, and 0 in rows without a target.

use crate::kernels::prelude::*;

/// The target of a row that is not scored.
pub const UNSCORED: u32 = u32::MAX;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        weight: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/cross_entropy_grad",
    source: include_str!("../../../shaders/loss/cross_entropy_grad.wgsl"),
    bindings: &[
        binding("logits", Access::Read, Element::Is(DType::F32)),
        binding("lse", Access::Read, Element::Is(DType::F32)),
        binding("targets", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let half = Variant::typed(DType::F32, DType::F16);
        vec![Variant::BASELINE, half]
    },
    groups: |args| fold(args.tensors[0].len().div_ceil(64)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(8.0 * values, 8.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// From `logits`, f32 (rows, columns), their log-sum-exp, f32 (rows), and a target column or [`UNSCORED`] for each row: the
/// gradient of `weight` times the sum of the rows' cross-entropies, (rows, columns) in type `output`.
pub fn cross_entropy_grad(
    device: &Device,
    logits: &Tensor,
    lse: &Tensor,
    targets: &Tensor,
    weight: f32,
    output: DType,
) -> Result<Tensor> {
    let rows = targets.len();
    let result = device.allocate(output, &[rows, logits.len() / rows], "a gradient of logits")?;
    let params = Params { rows: rows as u32, columns: (logits.len() / rows) as u32, weight };
    device.call(
        &KERNEL,
        Variant::typed(DType::F32, output),
        &params,
        &[logits, lse, targets, &result],
    )?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (logits, lse) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let weight = f64::from(p.weight);
    let mut expected = Expected::default();
    for (row, target) in args.tensors[2].u32s().iter().enumerate() {
        for column in 0..columns {
            if *target >= p.columns {
                expected.push(0.0, 0.0);
                continue;
            }
            let logit = logits[row * columns + column] - lse[row];
            let (exp, one) = (logit.exp(), f64::from(u8::from(column == *target as usize)));
            let value = (exp - one) * weight;
            // Of exp: (3 + 2 |x|) ulp, and half an ulp of its argument.
            let bound = exp * (8.0 + 6.0 * logit.abs().min(100.0)) * U
                + 4.0 * U * (exp - one).abs()
                + DType::F32.underflow();
            expected.push(value, bound * weight.abs() + storing(args.variant.output, value));
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (mut logits, lse) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let rows = lse.par_iter().zip(args.tensors[2].u32s());
    logits.par_chunks_mut(columns).zip(rows).for_each(|(line, (lse, target))| {
        if *target >= p.columns {
            return line.fill(0.0);
        }
        line.iter_mut().for_each(|v| *v = (*v - lse).exp());
        line[*target as usize] -= 1.0;
        line.iter_mut().for_each(|v| *v *= p.weight);
    });
    outputs.store(0, 0, &logits);
}

fn case(rows: usize, columns: usize, scale: f32) -> Case {
    let label = format!("rows={rows},columns={columns},scale={scale}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(34);
        let logits = random.values(rows * columns, scale);
        let lse = logits.chunks_exact(columns).map(|line| {
            let maximum = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            maximum + line.iter().map(|v| (v - maximum).exp()).sum::<f32>().ln()
        });
        let lse: Vec<f32> = lse.collect();
        // The first row is scored, of the others some are not.
        let target = |row: usize, column: u32| if row % 3 == 1 { UNSCORED } else { column };
        let targets: Vec<u32> =
            (0..rows).map(|row| target(row, random.below(columns as u32))).collect();
        let params = Params { rows: rows as u32, columns: columns as u32, weight: 0.37 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &logits),
            HostTensor::from_f32(DType::F32, &[rows], &lse),
            HostTensor::from_u32(&[rows], &targets),
            HostTensor::zeros(variant.output, &[rows, columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 40),
        sizes.between(1, 1, 1500),
        [1.0, 20.0, 300.0][sizes.between(2, 0, 2)],
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 101, 5.0),
        case(2, 49_152, 20.0),
        case(1, 1, 3.0),
        case(4, 300, 1000.0),
        case(2, 97, 1.0).with(Poison::Zeros),
        case(2, 97, 1.0).with(Poison::NegativeInfinity),
        case(2, 97, 1.0).with(Poison::NaN),
        case(350_001, 3, 2.0).only(|variant| variant.output == DType::F32),
        case(512, 49_152, 20.0).bench(),
    ]
}
