//! `copy/scale_rows`: each row times a factor of its own: tokens that count more or less in a sum over tokens.

use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        columns: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/scale_rows",
    source: include_str!("../../../shaders/copy/scale_rows.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("factors", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: || [DType::F32, DType::F16].map(|dtype| Variant::typed(dtype, dtype)).to_vec(),
    cost: |args| {
        let bytes = args.tensors.iter().map(|tensor| tensor.len() * tensor.dtype.size());
        Cost::new(args.tensors[0].len() as f64, bytes.sum::<usize>() as f64)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// A new tensor: each row of `x` (rows, columns) times its number of `factors`, f32 (rows).
pub fn scale_rows(device: &Device, x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let rows = factors.len();
    assert!(rows > 0 && x.len().is_multiple_of(rows), "a factor a row");
    let result = device.allocate(x.dtype(), x.shape(), "scaled rows")?;
    let params = Params { count: x.len() as u32, columns: (x.len() / rows) as u32 };
    let variant = Variant::typed(x.dtype(), x.dtype());
    device.call(&KERNEL, variant, &params, &[x, factors, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::default();
    for (index, value) in args.tensors[0].to_f64().into_iter().enumerate() {
        let value = value * args.tensors[1].get(index / p.columns as usize);
        expected.push(value, storing(args.variant.output, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (mut values, factors) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let rows = values.par_chunks_mut(p.columns as usize).zip(&factors);
    rows.for_each(|(row, factor)| row.iter_mut().for_each(|value| *value *= factor));
    outputs.store(0, 0, &values);
}

fn case(rows: usize, columns: usize) -> Case {
    Case::new(format!("rows={rows},columns={columns}"), move |variant: &Variant| {
        let mut random = Random::new(37);
        let count = rows * columns;
        let (x, factors) = (random.values(count, 2.0), random.values(rows, 1.5));
        let params = Params { count: count as u32, columns: columns as u32 };
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[rows, columns], &x),
            HostTensor::from_f32(DType::F32, &[rows], &factors),
            HostTensor::zeros(variant.output, &[rows, columns]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 70), sizes.between(1, 1, 70))
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1),
        case(7, 3),
        case(33, 64),
        case(129, 257),
        case(5, 5).with(Poison::NegativeInfinity),
        case(5, 5).with(Poison::NaN),
        case(2048, 4096).bench(),
    ]
}
