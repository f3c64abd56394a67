//! `embed/scatter`: the gradient of an embedding table. Row r is the sum of the gradients of the tokens that chose it, in
//! the tokens' order, so that it is the same every time; it may be added to a gradient that stands there.

use crate::kernels::prelude::*;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        /// 1: it is added to what stands in the result.
        accumulate: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "embed/scatter",
    source: include_str!("../../../shaders/embed/scatter.wgsl"),
    bindings: &[
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("starts", Access::Read, Element::Is(DType::U32)),
        binding("order", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    groups: |args| fold(args.tensors[3].len().div_ceil(64)),
    cost: |args| {
        let values = (args.tensors[0].len() + args.tensors[3].len()) as f64;
        Cost::new(values, 4.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds the gradient of an embedding table to `result`, f32 (rows, columns), or writes it there: from the gradient of its
/// output, f32 (tokens, columns), and the tokens' ids, each below the table's rows.
pub fn scatter(
    device: &Device,
    grad: &Tensor,
    ids: &[u32],
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let rows = result.shape()[0];
    let (starts, order) = lists(ids, rows);
    let list = |values: &[u32]| {
        let values = HostTensor::from_u32(&[values.len()], values);
        device.upload(&values, "tokens by their ids")
    };
    let params = Params {
        rows: rows as u32,
        columns: result.shape()[1] as u32,
        accumulate: u32::from(accumulate),
    };
    device.call(
        &KERNEL,
        Variant::BASELINE,
        &params,
        &[grad, &list(&starts)?, &list(&order)?, result],
    )
}

/// Tokens sorted by id, those of one id in their order, and where each id's begin: (rows + 1).
fn lists(ids: &[u32], rows: usize) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|token| ids[*token as usize]);
    let mut starts = vec![0; rows + 1];
    for id in ids {
        starts[*id as usize + 1] += 1;
    }
    for row in 0..rows {
        starts[row + 1] += starts[row];
    }
    (starts, order)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (starts, order) = (args.tensors[1].u32s(), args.tensors[2].u32s());
    let mut expected = Expected::default();
    for row in 0..p.rows as usize {
        let tokens = &order[starts[row] as usize..starts[row + 1] as usize];
        for column in 0..columns {
            let before =
                if p.accumulate == 1 { args.tensors[3].get(row * columns + column) } else { 0.0 };
            let (mut value, mut magnitude) = (before, before.abs());
            for token in tokens {
                let grad = args.tensors[0].get(*token as usize * columns + column);
                value += grad;
                magnitude += grad.abs();
            }
            // A sum of one is exact.
            let added = tokens.len() + p.accumulate as usize > 1;
            let bound = if added {
                gamma(tokens.len()) * magnitude + storing(DType::F32, value)
            } else {
                0.0
            };
            expected.push(value, bound);
        }
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let (starts, order) = (args.tensors[1].u32s(), args.tensors[2].u32s());
    let grad = args.tensors[0].to_f32();
    let result: &mut [f32] = bytemuck::cast_slice_mut(outputs.words(0));
    result.par_chunks_mut(columns).take(p.rows as usize).enumerate().for_each(|(row, line)| {
        let tokens = &order[starts[row] as usize..starts[row + 1] as usize];
        for (column, value) in line.iter_mut().enumerate() {
            let terms = tokens.iter().map(|t| grad[*t as usize * columns + column]);
            let sum: f32 = terms.sum();
            *value = if p.accumulate == 1 { *value + sum } else { sum };
        }
    });
}

fn case(rows: usize, columns: usize, tokens: usize, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},tokens={tokens}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(35);
        let limit = if note == ",one" { 1 } else { rows as u32 };
        let ids: Vec<u32> = (0..tokens).map(|_| random.below(limit)).collect();
        let (starts, order) = lists(&ids, rows);
        let grad = random.values(tokens * columns, 1.0);
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            accumulate: u32::from(note == ",accumulate"),
        };
        let before = random.values(rows * columns, 1.0);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[tokens, columns], &grad),
            HostTensor::from_u32(&[rows + 1], &starts),
            HostTensor::from_u32(&[tokens], &order),
            HostTensor::from_f32(DType::F32, &[rows, columns], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 60),
        sizes.between(1, 1, 300),
        sizes.between(2, 1, 200),
        ["", ",one", ",accumulate"][sizes.between(3, 0, 2)],
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(5, 97, 13, ""),
        case(40, 64, 9, ",accumulate"),
        case(3, 33, 1000, ",one"),
        case(1, 1, 1, ""),
        case(9, 40, 20, "").with(Poison::Infinity),
        case(9, 40, 20, "").with(Poison::NaN),
        case(1051, 65, 20, ""),
        case(49_152, 576, 2048, "").bench(),
    ]
}
