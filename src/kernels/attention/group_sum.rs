//! `attention/group_sum`: what the query heads of each group have of a key-value head's gradient, added up in their order:
//! result[t, h, c] = sum_g parts[t, h * group + g, c].

use crate::kernels::prelude::*;

params! {
    struct Params {
        /// Elements of the result.
        count: u32,
        /// Query heads of one key-value head.
        group: u32,
        head_dim: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/group_sum",
    source: include_str!("../../../shaders/attention/group_sum.wgsl"),
    bindings: &[
        binding("parts", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    groups: |args| fold(args.tensors[1].len().div_ceil(4 * 128)),
    cost: |args| {
        let [parts, result] = [0, 1].map(|binding| &args.tensors[binding]);
        let bytes = 4 * parts.len() + result.dtype.size() * result.len();
        Cost::new(parts.len() as f64, bytes as f64)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds up `parts`, f32 (rows, heads, head_dim), in `result`, f32 (rows, kv_heads, head_dim). A head is whole vectors of four,
/// except on the CPU.
pub fn group_sum(device: &Device, parts: &Tensor, head_dim: usize, result: &Tensor) -> Result<()> {
    let params = Params {
        count: result.len() as u32,
        group: (parts.len() / result.len()) as u32,
        head_dim: head_dim as u32,
    };
    device.call(&KERNEL, Variant::BASELINE, &params, &[parts, result])
}

/// Where the parts of an element of the result stand.
fn parts_of(p: &Params, index: usize) -> impl Iterator<Item = usize> {
    let (group, columns) = (p.group as usize, p.head_dim as usize);
    let first = index / columns * group * columns + index % columns;
    (0..group).map(move |head| first + head * columns)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let parts = args.tensors[0].to_f64();
    let mut expected = Expected::default();
    for index in 0..p.count as usize {
        let sum: f64 = parts_of(&p, index).map(|at| parts[at]).sum();
        let magnitude: f64 = parts_of(&p, index).map(|at| parts[at].abs()).sum();
        let bound = gamma(p.group as usize) * magnitude + storing(DType::F32, sum);
        expected.push(sum, bound);
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let parts = args.tensors[0].to_f32();
    let sum = |index: usize| parts_of(&p, index).map(|at| parts[at]).sum();
    let sums: Vec<f32> = (0..p.count as usize).into_par_iter().map(sum).collect();
    outputs.store(0, 0, &sums);
}

fn case(rows: usize, kv_heads: usize, group: usize, head_dim: usize) -> Case {
    let label = format!("rows={rows},heads={}/{kv_heads},head_dim={head_dim}", kv_heads * group);
    Case::new(label, move |_: &Variant| {
        let count = rows * kv_heads * head_dim;
        let parts = Random::new(12).values(count * group, 4.0);
        let params = Params { count: count as u32, group: group as u32, head_dim: head_dim as u32 };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, kv_heads * group, head_dim], &parts),
            HostTensor::zeros(DType::F32, &[rows, kv_heads, head_dim]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (rows, kv_heads) = (sizes.between(0, 1, 70), sizes.between(1, 1, 4));
    case(rows, kv_heads, sizes.between(2, 1, 9), 4 * sizes.between(3, 1, 64))
}

fn cases() -> Vec<Case> {
    vec![
        case(5, 2, 3, 24),
        case(1, 1, 1, 4),
        case(70, 3, 2, 256),
        case(9, 1, 8, 64).with(Poison::NaN),
        case(9, 2, 8, 64).with(Poison::Infinity),
        case(4096, 4, 8, 64).bench(),
    ]
}
