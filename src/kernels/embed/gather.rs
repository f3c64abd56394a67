//! `embed/gather`: rows of an embedding table. result[t, c] = weight[ids[t], c], exact.

use glam::UVec3;

use crate::kernels::matrix::{Layout, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::WHOLE_ROW;

params! {
    struct Params {
        tokens: u32,
        columns: u32,
        row_start: u32,
        rows: u32,
        layout: Layout,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "embed/gather",
    source: include_str!("../../../shaders/embed/gather.wgsl"),
    bindings: &[
        binding("ids", Access::Read, Element::Is(DType::U32)),
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: weights::one_per_type,
    groups,
    cost,
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// The embeddings of `ids`, f32 of shape (tokens, columns). Every id must be below the table's rows.
pub fn gather(device: &Device, table: &Matrix, ids: &Tensor) -> Result<Tensor> {
    let (tokens, columns) = (ids.len(), table.columns());
    let result = device.allocate(DType::F32, &[tokens, columns], "embeddings")?;
    for chunk in table.chunks() {
        let params = Params {
            tokens: tokens as u32,
            columns: columns as u32,
            row_start: chunk.start as u32,
            rows: chunk.rows as u32,
            layout: table.layout(),
        };
        device.call(
            &KERNEL,
            weights::variant(table.format().ty),
            &params,
            &[ids, &chunk.codes, &chunk.scales, &result],
        )?;
    }
    Ok(result)
}

fn groups(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    fold((p.tokens as usize * p.columns.div_ceil(4) as usize).div_ceil(64))
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let values = f64::from(p.tokens) * f64::from(p.columns);
    Cost::new(values, 8.0 * values)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let table = weights::packed(args, 1, 2, p.rows as usize, columns, p.layout);
    let mut values = args.tensors[3].to_f64();
    for (token, id) in args.tensors[0].u32s().iter().enumerate() {
        let row = id.wrapping_sub(p.row_start);
        if row < p.rows {
            for column in 0..columns {
                values[token * columns + column] = f64::from(table.value(row as usize, column));
            }
        }
    }
    vec![Expected::exact(values)]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let columns = p.columns as usize;
    let mut line = vec![0.0; columns];
    for (token, id) in args.tensors[0].u32s().iter().enumerate() {
        let row = id.wrapping_sub(p.row_start);
        if row < p.rows {
            weights::decode_row(args, (1, 2), row as usize, p.layout, &mut line);
            outputs.store(0, token * columns, &line);
        }
    }
}

fn case(rows: usize, columns: usize, tokens: usize, start: u32, group: u32) -> Case {
    let label =
        format!("rows={rows},columns={columns},tokens={tokens},start={start},group={group}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(1);
        let packed = weights::random(&mut random, variant, rows, columns, group);
        // Some ids stand before and behind this chunk of rows: their places must stay as they are.
        let ids: Vec<u32> = (0..tokens).map(|_| random.below(rows as u32 + 2 * start)).collect();
        let params = Params {
            tokens: tokens as u32,
            columns: columns as u32,
            row_start: start,
            rows: rows as u32,
            layout: Layout::new(packed.format, columns),
        };
        let before = random.values(tokens * columns, 1.0);
        let [codes, scales] = weights::host(&packed);
        params.case(vec![
            HostTensor::from_u32(&[tokens], &ids),
            codes,
            scales,
            HostTensor::from_f32(DType::F32, &[tokens, columns], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        sizes.between(0, 1, 60),
        sizes.between(1, 1, 300),
        sizes.between(2, 1, 20),
        sizes.between(3, 0, 9) as u32,
        sizes.group(4),
    )
}

fn cases() -> Vec<Case> {
    vec![case(5, 97, 3, 0, WHOLE_ROW), case(40, 64, 9, 7, 32), case(1, 1, 1, 0, 16)]
}
