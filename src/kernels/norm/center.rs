//! `norm/center`: each row less its mean, which is also the gradient of that at its input. A layer norm (Ba, Kiros and Hinton 2016,
//! arXiv 1607.06450) is this, [`norm/rms`](super::rms) and [`norm/shift`](super::shift).

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "norm/center",
    source: include_str!("../../../shaders/norm/center.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        [false, true].map(|subgroups| Variant::BASELINE.with_subgroups(subgroups)).to_vec()
    },
    groups: |args| fold(args.parameters::<Params>().rows as usize),
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        Cost::new(2.0 * values, 8.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// `x`, f32 of rows of so many columns, less the mean of each row.
pub fn center(device: &Device, x: &Tensor, columns: usize) -> Result<Tensor> {
    let result = device.allocate(DType::F32, x.shape(), "centred rows")?;
    let params = Params { rows: (x.len() / columns) as u32, columns: columns as u32 };
    let variant = Variant::BASELINE.with_subgroups(device.capabilities().subgroups);
    device.call(&KERNEL, variant, &params, &[x, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let mut expected = Expected::default();
    for line in args.tensors[0].to_f64().chunks_exact(columns) {
        let mean = line.iter().sum::<f64>() / columns as f64;
        let size = line.iter().map(|v| v.abs()).sum::<f64>() / columns as f64;
        for value in line {
            let result = value - mean;
            expected.push(result, gamma(columns + 4) * size + 2.0 * U * result.abs());
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let mut x = args.tensors[0].to_f32();
    x.par_chunks_mut(columns).for_each(|line| {
        let mean = line.iter().sum::<f32>() / columns as f32;
        line.iter_mut().for_each(|value| *value -= mean);
    });
    outputs.store(0, 0, &x);
}

fn case(rows: usize, columns: usize) -> Case {
    Case::new(format!("rows={rows},columns={columns}"), move |_: &Variant| {
        let mut random = Random::new(2);
        let x = random.values(rows * columns, 2.0);
        Params { rows: rows as u32, columns: columns as u32 }.case(vec![
            HostTensor::from_f32(DType::F32, &[rows, columns], &x),
            HostTensor::zeros(DType::F32, &[rows, columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 40), sizes.between(1, 1, 1200))
}

fn cases() -> Vec<Case> {
    vec![
        case(3, 97),
        case(1, 384),
        case(2, 4096),
        case(5, 1),
        case(2, 64).with(Poison::Zeros),
        case(2, 64).with(Poison::NaN),
        case(1051, 4),
        case(2048, 4096).bench(),
    ]
}
