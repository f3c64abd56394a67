//! Inputs to try the products on.

use super::{Params, padded};
use crate::device::{Case, CaseData, HostTensor, Layout, Random, Variant};
use crate::kernels::weights;
use crate::tensor::{DType, WHOLE_ROW};

struct Shape {
    rows: usize,
    columns: usize,
    tokens: usize,
    group: u32,
    note: &'static str,
}

fn case(shape: Shape) -> Case {
    let Shape {
        rows,
        columns,
        tokens,
        group,
        note,
    } = shape;
    let label = format!("rows={rows},columns={columns},tokens={tokens},group={group}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(3);
        // A call covers a window of tokens, of weight rows and of result columns; what is outside must stay.
        let window = note == ",window";
        let (before, skipped, offset, stride) = if window {
            (2, 4, 3, rows + 5)
        } else {
            (0, 0, 0, rows)
        };
        let mut packed = weights::random(&mut random, variant, skipped + rows, columns, group);
        if note == ",row of NaN" {
            // Only that row's results may be NaN: whoever reads beyond the end of a row meets the next.
            let words = packed.codes.len() / (skipped + rows);
            packed.codes[3 * words..4 * words].fill(0x7fff_7fff);
        }
        let all = before + tokens + before;
        let mut x = random.values(all * columns, 1.0);
        match note {
            ",infinity" => x[columns / 2] = f32::INFINITY,
            ",nan" => x[columns - 1] = f32::NAN,
            ",zeros" => x.fill(0.0),
            _ => {}
        }
        let has_bias = u32::from(note == ",bias");
        let bias = random.values(if has_bias == 1 { stride } else { 1 }, 1.0);
        let params = Params {
            rows: rows as u32,
            row_start: skipped as u32,
            columns: columns as u32,
            tokens: tokens as u32,
            token_start: before as u32,
            result_start: (before / 2) as u32,
            out_stride: stride as u32,
            out_offset: offset as u32,
            has_bias,
            layout: Layout::new(packed.format, columns),
        };
        let old = random.values(all * stride, 1.0);
        let [codes, scales] = weights::host(&packed);
        CaseData {
            parameters: bytemuck::bytes_of(&params).to_vec(),
            tensors: vec![
                HostTensor::from_f32(
                    variant.activation,
                    &[all, padded(columns)],
                    &padded_rows(&x, columns),
                ),
                codes,
                scales,
                HostTensor::from_f32(DType::F32, &[bias.len()], &bias),
                HostTensor::from_f32(variant.output, &[all, stride], &old),
            ],
        }
    })
}

/// Rows of activations with zeros behind them.
fn padded_rows(x: &[f32], columns: usize) -> Vec<f32> {
    let mut rows = vec![0.0; x.len() / columns * padded(columns)];
    for (target, line) in rows.chunks_mut(padded(columns)).zip(x.chunks(columns)) {
        target[..columns].copy_from_slice(line);
    }
    rows
}

pub(super) fn plain(rows: usize, columns: usize, tokens: usize, group: u32) -> Case {
    case(Shape {
        rows,
        columns,
        tokens,
        group,
        note: "",
    })
}

pub(super) fn noted(note: &'static str, tokens: usize) -> Case {
    case(Shape {
        rows: 37,
        columns: 64,
        tokens,
        group: WHOLE_ROW,
        note,
    })
}
