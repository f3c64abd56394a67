//! `copy/pad`: rows with zeros behind them, to whole vectors of four, as the products load activations; and cut off again.

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        width: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "copy/pad",
    source: include_str!("../../../shaders/copy/pad.wgsl"),
    bindings: &[
        binding("source", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Activation),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let half = Variant::typed(DType::F16, DType::F32);
        vec![Variant::BASELINE, half]
    },
    groups: |args| fold(args.tensors[1].len().div_ceil(64)),
    cost: |args| Cost::new(0.0, (args.tensors[1].len() * 2 * args.tensors[1].dtype.size()) as f64),
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// `source`, rows of `columns`, with every row padded with zeros to a multiple of four columns.
pub fn pad(device: &Device, source: &Tensor, columns: usize) -> Result<Tensor> {
    let shape = [source.len() / columns, columns.next_multiple_of(4)];
    cut(device, source, columns, shape[1], &shape)
}

/// `source`, rows of `columns`, with every row cut off behind `width` columns, or filled up to them with zeros. The result
/// has this shape.
pub fn cut(
    device: &Device,
    source: &Tensor,
    columns: usize,
    width: usize,
    shape: &[usize],
) -> Result<Tensor> {
    let result = device.allocate(source.dtype(), shape, "padded or cut rows")?;
    let params = Params {
        rows: (source.len() / columns) as u32,
        columns: columns as u32,
        width: width as u32,
    };
    device.call(
        &KERNEL,
        Variant::typed(source.dtype(), DType::F32),
        &params,
        &[source, &result],
    )?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, width) = (p.columns as usize, p.width as usize);
    let source = args.tensors[0].to_f64();
    let mut values = vec![0.0; p.rows as usize * width];
    for (target, line) in values.chunks_mut(width).zip(source.chunks(columns)) {
        let kept = columns.min(width);
        target[..kept].copy_from_slice(&line[..kept]);
    }
    vec![Expected::exact(values)]
}

fn case(rows: usize, columns: usize, width: usize) -> Case {
    Case::new(format!("rows={rows},columns={columns},width={width}"), move |variant: &Variant| {
        let mut random = Random::new(9);
        let params = Params { rows: rows as u32, columns: columns as u32, width: width as u32 };
        let values = random.values(rows * columns, 1.0);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[rows, columns], &values),
            HostTensor::zeros(variant.activation, &[rows, width]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let width = |place| sizes.between(place, 1, 70);
    case(sizes.between(0, 1, 70), width(1), width(2))
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1, 4),
        case(7, 33, 36),
        case(3, 64, 64),
        case(5, 2, 4),
        case(9, 8, 5),
        case(3, 4, 1),
        case(512, 573, 576).bench(),
    ]
}
