//! `quantize/shift`: weights moved by learned shares of their groups' steps, w + v s, before they are rounded: so that a weight
//! is rounded up or down as v learns (AutoRound, Cheng et al. 2023, arXiv 2309.05516, equation 3: round(w / s + v)).

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        groups: u32,
        group_columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/shift",
    source: include_str!("../../../shaders/quantize/shift.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("shares", Access::Read, Element::Is(DType::F32)),
        binding("scales", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold(args.tensors[0].len().div_ceil(256)),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(2.0 * values, 12.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// `weight` plus `shares` times the scale of each one's group, f32 (rows, columns); `scales`, f32 (rows, groups), of
/// `group_columns` columns each.
pub fn shift(
    device: &Device,
    weight: &Tensor,
    shares: &Tensor,
    scales: &Tensor,
    group_columns: usize,
) -> Result<Tensor> {
    assert_eq!(weight.shape(), shares.shape(), "a share for each weight");
    let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
    let result = device.allocate(DType::F32, &[rows, columns], "moved weights")?;
    let params = Params::new(rows, columns, group_columns);
    assert_eq!(scales.len(), rows * params.groups as usize, "a scale for each group");
    device.call(&KERNEL, Variant::BASELINE, &params, &[weight, shares, scales, &result])?;
    Ok(result)
}

impl Params {
    fn new(rows: usize, columns: usize, group_columns: usize) -> Self {
        let group_columns = group_columns.min(columns);
        Self {
            rows: rows as u32,
            columns: columns as u32,
            groups: columns.div_ceil(group_columns) as u32,
            group_columns: group_columns as u32,
        }
    }

    fn scale(&self, index: usize) -> usize {
        let (row, column) = (index / self.columns as usize, index % self.columns as usize);
        row * self.groups as usize + column / self.group_columns as usize
    }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::default();
    for (index, weight) in args.tensors[0].to_f64().into_iter().enumerate() {
        let step = args.tensors[1].get(index) * args.tensors[2].get(p.scale(index));
        let value = weight + step;
        let lost = DType::F32.underflow();
        expected.push(value, U * step.abs() + lost + storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let [mut weight, shares, scales] = [0, 1, 2].map(|binding| args.tensors[binding].to_f32());
    weight.par_iter_mut().zip(&shares).enumerate().with_min_len(1 << 14).for_each(
        |(index, (weight, share))| {
            *weight += share * scales[p.scale(index)];
        },
    );
    outputs.store(0, 0, &weight);
}

fn case(rows: usize, columns: usize, group: usize) -> Case {
    let label = format!("rows={rows},columns={columns},group={group}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(85);
        let params = Params::new(rows, columns, group);
        let (shape, groups) = ([rows, columns], params.groups as usize);
        let host =
            |shape: &[usize], values: Vec<f32>| HostTensor::from_f32(DType::F32, shape, &values);
        params.case(vec![
            host(&shape, random.values(rows * columns, 1.0)),
            host(&shape, random.values(rows * columns, 0.5)),
            host(&[rows, groups], random.values(rows * groups, 0.2)),
            HostTensor::zeros(DType::F32, &shape),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 40), sizes.between(1, 1, 300), 16 << sizes.between(2, 0, 5))
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 32),
        case(7, 100, 32),
        case(5, 97, 4096),
        case(9, 64, 16).poisoned(0, Poison::NaN),
        case(9, 64, 16).poisoned(1, Poison::Infinity),
        case(4096, 4096, 128).bench(),
    ]
}
