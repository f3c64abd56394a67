//! `loss/divergence_grad`: the gradient, at a child's logits, of its rows' KL(parent || child) at a temperature T (Hinton,
//! Vinyals and Dean 2015, arXiv 1503.02531, section 2), times a weight:
//! result[r, c] = weight / T * (softmax(child[r] / T)[c] - softmax(parent[r] / T)[c]).

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// 1 / T.
        inverse: f32,
        /// weight / T.
        factor: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/divergence_grad",
    source: include_str!("../../../shaders/loss/divergence_grad.wgsl"),
    bindings: &[
        binding("parent", Access::Read, Element::Is(DType::F32)),
        binding("child", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || {
        let with = |output, subgroups| Variant::typed(DType::F32, output).with_subgroups(subgroups);
        let types = [DType::F32, DType::F16];
        types.map(|t| [with(t, false), with(t, true)]).concat()
    },
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(24.0 * values, (24.0 + args.variant.output.size() as f64) * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// From two models' logits of the same places, f32 (rows, columns) each: the gradient, at the child's, of `weight` times the
/// sum of the rows' KL(parent || child) in nats, of logits divided by `temperature`; (rows, columns) in type `output`.
///
/// A row in which either has a NaN gets NaN throughout.
pub fn divergence_grad(
    device: &Device,
    parent: &Tensor,
    child: &Tensor,
    temperature: f32,
    weight: f32,
    output: DType,
) -> Result<Tensor> {
    assert_eq!(parent.shape(), child.shape(), "two models' logits of the same places");
    let rows = child.shape()[0];
    let result = device.allocate(output, child.shape(), "a gradient of logits")?;
    let params = Params {
        rows: rows as u32,
        columns: (child.len() / rows) as u32,
        inverse: 1.0 / temperature,
        factor: weight / temperature,
    };
    device.call(
        &KERNEL,
        Variant::typed(DType::F32, output).with_subgroups(device.capabilities().subgroups),
        &params,
        &[parent, child, &result],
    )?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (parent, child) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let factor = f64::from(p.factor);
    let rows: Vec<Vec<(f64, f64)>> = parent
        .par_chunks_exact(columns)
        .zip(child.par_chunks_exact(columns))
        .map(|(parent, child)| {
            let (parent, child) = (shares(parent, p.inverse), shares(child, p.inverse));
            let pairs = parent.into_iter().zip(child);
            let element = |((p, p_off), (q, q_off)): ((f64, f64), (f64, f64))| {
                let value = (q - p) * factor;
                let bound = p_off + q_off + 2.0 * U * (q - p).abs();
                let storing = storing(args.variant.output, value) + DType::F32.underflow();
                (value, bound * factor.abs() + storing)
            };
            pairs.map(element).collect()
        })
        .collect();
    let mut expected = Expected::default();
    for (value, bound) in rows.into_iter().flatten() {
        expected.push(value, bound);
    }
    vec![expected]
}

/// softmax(line / T), each with the error of the shader's way to it.
///
/// Of exp: (3 + 2 |x|) ulp, and of x what its subtraction and its product round away. The sum is off by its terms' mean.
pub(super) fn shares(line: &[f64], inverse: f32) -> Vec<(f64, f64)> {
    let highest = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms: Vec<(f64, f64)> = line
        .iter()
        .map(|logit| {
            let below = (logit - highest) * f64::from(inverse);
            (below.exp(), (8.0 + 8.0 * below.abs().min(100.0)) * U * below.exp())
        })
        .collect();
    let (mut sum, mut off) = (0.0, 0.0);
    for (term, its) in &terms {
        sum += term;
        off += its;
    }
    let of_sum = off / sum + gamma(line.len()) + 4.0 * U;
    let share = |(term, off): (f64, f64)| {
        let bound = (off + term * of_sum) / sum + DType::F32.underflow();
        (term / sum, 1.01 * bound)
    };
    terms.into_iter().map(share).collect()
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (parent, mut child) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let softmax = |line: &[f32]| -> Vec<f32> {
        let highest = line.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let terms = line.iter().map(|v| ((v - highest) * p.inverse).exp());
        let terms: Vec<f32> = terms.collect();
        let sum: f64 = terms.iter().map(|term| f64::from(*term)).sum();
        terms.iter().map(|term| term / sum as f32).collect()
    };
    child.par_chunks_mut(columns).zip(parent.par_chunks(columns)).for_each(|(child, parent)| {
        let pairs = softmax(child).into_iter().zip(softmax(parent));
        for (value, (q, p_share)) in child.iter_mut().zip(pairs) {
            *value = (q - p_share) * p.factor;
        }
    });
    outputs.store(0, 0, &child);
}

/// Logits of a parent and, a little or entirely other, of its child, at a temperature.
fn case(
    rows: usize,
    columns: usize,
    (scale, apart): (f32, f32),
    temperature: f32,
    note: &'static str,
) -> Case {
    let label = format!(
        "rows={rows},columns={columns},scale={scale},apart={apart},temperature={temperature}{note}"
    );
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(35);
        let mut parent = random.values(rows * columns, scale);
        let shift = random.values(rows * columns, apart);
        let mut child: Vec<f32> = parent.iter().zip(shift).map(|(b, d)| b + d).collect();
        match note {
            // A constant between the two changes nothing.
            ",shifted" => child.iter_mut().for_each(|logit| *logit += 30.0),
            // Each row far above the one before.
            ",levels" => [&mut parent, &mut child].into_iter().for_each(|logits| {
                let rows = logits.chunks_exact_mut(columns).enumerate();
                rows.for_each(|(row, line)| line.iter_mut().for_each(|v| *v += 500.0 * row as f32));
            }),
            // The parent rules out the last column, the child the first.
            ",infinity" => {
                parent[columns - 1] = f32::NEG_INFINITY;
                child[0] = f32::NEG_INFINITY;
            }
            ",nan parent" => parent[columns - 1] = f32::NAN,
            ",nan child" => child[columns / 2] = f32::NAN,
            _ => {}
        }
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            inverse: 1.0 / temperature,
            factor: 0.37 / temperature,
        };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &parent),
            HostTensor::from_f32(DType::F32, &[rows, columns], &child),
            HostTensor::zeros(variant.output, &[rows, columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let scale = [1.0, 12.0, 200.0][sizes.between(2, 0, 2)];
    let apart = [0.0, 1e-3, 0.3, 5.0, 200.0][sizes.between(3, 0, 4)];
    let temperature = [0.5, 1.0, 2.0, 7.0][sizes.between(4, 0, 3)];
    let (rows, columns) = (sizes.between(0, 1, 40), sizes.between(1, 1, 1500));
    case(rows, columns, (scale, apart), temperature, "")
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 101, (5.0, 1.0), 1.0, ""),
        case(1, 49_152, (12.0, 0.2), 2.0, ""),
        case(3, 700, (8.0, 0.0), 2.0, ""),
        case(1, 1, (3.0, 1.0), 2.0, ""),
        case(5, 257, (8.0, 4.0), 0.7, ""),
        case(4, 300, (100.0, 100.0), 1.0, ""),
        case(3, 400, (6.0, 0.1), 4.0, ",shifted"),
        case(3, 300, (4.0, 0.5), 2.0, ",levels"),
        case(2, 97, (2.0, 0.5), 2.0, ",infinity"),
        case(2, 97, (1.0, 0.1), 2.0, ",nan parent"),
        case(2, 97, (1.0, 0.1), 2.0, ",nan child"),
        // More rows than one dimension has workgroups: for one variant, a software adapter takes its time.
        case(66_001, 3, (2.0, 0.5), 2.0, "")
            .only(|variant| !variant.subgroups && variant.output == DType::F32),
        case(512, 49_152, (12.0, 0.2), 2.0, "").bench(),
    ]
}
