//! `loss/hidden`: how far a child's hidden states are from its parent's, the squared error of each token over the parent's square
//! (Muralidharan et al. 2024, arXiv 2407.14679, section 3, states as they stand in the stream; relative, since states grow with
//! depth and a few tokens' are far larger than all others): loss[r] = sum(|child - parent|^2) / sum(|parent|^2), and the
//! gradient at the child's states, weight 2 (child - parent) / sum(|parent|^2).

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        weight: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "loss/hidden",
    source: include_str!("../../../shaders/loss/hidden.wgsl"),
    bindings: &[
        binding("parent", Access::Read, Element::Is(DType::F32)),
        binding("child", Access::Read, Element::Is(DType::F32)),
        binding("scored", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
        binding("loss", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || [false, true].map(|on| Variant::BASELINE.with_subgroups(on)).to_vec(),
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(8.0 * values, 20.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// From two models' hidden states of the same tokens, f32 (rows, columns) each: the gradient, at the child's, of `weight` times
/// the sum of the rows' relative squared errors, of their shape, and those errors, f32 (rows). Rows whose `scored`, u32 (rows),
/// is 0 or whose parent is all zeros count for nothing: both are 0 there.
pub fn hidden(
    device: &Device,
    parent: &Tensor,
    child: &Tensor,
    scored: &Tensor,
    weight: f32,
) -> Result<(Tensor, Tensor)> {
    assert_eq!(parent.shape(), child.shape(), "two models' states of the same tokens");
    let rows = scored.len();
    let result = device.allocate(DType::F32, child.shape(), "a gradient of hidden states")?;
    let loss = device.allocate(DType::F32, &[rows], "errors of hidden states")?;
    let params = Params { rows: rows as u32, columns: (child.len() / rows) as u32, weight };
    let variant = Variant::BASELINE.with_subgroups(device.capabilities().subgroups);
    device.call(&KERNEL, variant, &params, &[parent, child, scored, &result, &loss])?;
    Ok((result, loss))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let scored = args.tensors[2].u32s();
    let (parent, child) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let (mut result, mut loss) = (Expected::default(), Expected::default());
    let lost = columns as f64 * DType::F32.underflow();
    for (row, scored) in scored.iter().enumerate().take(p.rows as usize) {
        let line = row * columns..(row + 1) * columns;
        let (parent, child) = (&parent[line.clone()], &child[line]);
        let size: f64 = parent.iter().map(|value| value * value).sum();
        let away: Vec<f64> = child.iter().zip(parent).map(|(c, p)| c - p).collect();
        if *scored == 0 || size == 0.0 {
            away.iter().for_each(|_| result.push(0.0, 0.0));
            loss.push(0.0, 0.0);
            continue;
        }
        let far: f64 = away.iter().map(|away| away * away).sum();
        // Sums are of squares; each difference is rounded once before.
        let relative = 2.0 * gamma(columns + 4) + 8.0 * U;
        let value = far / size;
        loss.push(value, relative * value + lost + storing(DType::F32, value));
        for away in away {
            let value = 2.0 * f64::from(p.weight) * away / size;
            result.push(value, relative * value.abs() + lost + storing(DType::F32, value));
        }
    }
    vec![result, loss]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let scored = args.tensors[2].u32s();
    let (parent, mut child) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let rows = child.par_chunks_mut(columns).zip(parent.par_chunks(columns)).zip(scored);
    let loss: Vec<f32> = rows
        .map(|((child, parent), scored)| {
            let (mut far, mut size) = (0.0f64, 0.0f64);
            for (child, parent) in child.iter_mut().zip(parent) {
                *child -= parent;
                far += f64::from(*child).powi(2);
                size += f64::from(*parent).powi(2);
            }
            if *scored == 0 || size == 0.0 {
                child.fill(0.0);
                return 0.0;
            }
            let factor = (2.0 * f64::from(p.weight) / size) as f32;
            child.iter_mut().for_each(|child| *child *= factor);
            (far / size) as f32
        })
        .collect();
    outputs.store(0, 0, &child);
    outputs.store(1, 0, &loss);
}

fn case((rows, columns): (usize, usize), weight: f32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},weight={weight}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(87);
        let mut parent = random.values(rows * columns, 3.0);
        let mut child = random.values(rows * columns, 3.0);
        let mut scored: Vec<u32> = (0..rows).map(|_| random.below(4)).collect();
        scored[0] = 1;
        match note {
            ",zeros" => parent[..columns].fill(0.0),
            ",near" => {
                child.iter_mut().zip(&parent).for_each(|(c, p)| *c = p * (1.0 + *c * 1e-4));
            }
            ",same" => child.copy_from_slice(&parent),
            _ => {}
        }
        let params = Params { rows: rows as u32, columns: columns as u32, weight };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &parent),
            HostTensor::from_f32(DType::F32, &[rows, columns], &child),
            HostTensor::from_u32(&[rows], &scored),
            HostTensor::zeros(DType::F32, &[rows, columns]),
            HostTensor::zeros(DType::F32, &[rows]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let weight = [1.0, 1e-3, 64.0][sizes.between(2, 0, 2)];
    let note = ["", ",near", ",same"][sizes.between(3, 0, 2)];
    case((sizes.between(0, 1, 40), sizes.between(1, 1, 900)), weight, note)
}

fn cases() -> Vec<Case> {
    vec![
        case((3, 101), 1.0, ""),
        case((1, 1), 0.5, ""),
        case((5, 576), 0.01, ",near"),
        case((4, 300), 2.0, ",zeros"),
        case((2, 257), 1.0, ",same"),
        // More rows than one dimension has workgroups.
        case((1051, 2), 1.0, ""),
        case((4096, 2048), 1.0, "").bench(),
    ]
}
