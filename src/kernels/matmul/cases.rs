//! Inputs to try the products on.

use super::product::MatmulShape;
use super::{EPILOGUE_ADD, EPILOGUE_BIAS, Params, gate_epilogue, padded};
use crate::kernels::activation::Activation;
use crate::kernels::matrix::Layout;
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::WHOLE_ROW;

/// A product to try, and what is special about it.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) tokens: usize,
    pub(super) group: u32,
    pub(super) note: &'static str,
    /// Parts that the columns are split in.
    pub(super) splits: usize,
}

impl Shape {
    /// The case's text.
    pub(super) fn label(&self) -> String {
        let Shape {
            rows,
            columns,
            tokens,
            group,
            note,
            splits,
        } = self;
        let label = format!("rows={rows},columns={columns},tokens={tokens},group={group}{note}");
        if *splits > 1 {
            format!("{label},splits={splits}")
        } else {
            label
        }
    }

    /// The call's parameters, all activations (all tokens, columns), and the tensors behind them: codes, scales, bias, result.
    pub(super) fn data(&self, variant: &Variant) -> (Params, Vec<f32>, Vec<HostTensor>) {
        let Shape {
            rows,
            columns,
            tokens,
            group,
            note,
            splits,
        } = *self;
        let mut random = Random::new(3);
        // A call covers a window of tokens, of weight rows and of result columns; what is outside must stay.
        let (before, skipped, offset, stride) = if note == ",window" {
            (2, 4, 3, rows + 5)
        } else {
            (0, 0, 0, rows)
        };
        let mut packed = weights::random(&mut random, variant, skipped + rows, columns, group);
        let all = before + tokens + before;
        let mut x = random.values(all * columns, 1.0);
        match note {
            // Only that row's results may be NaN: whoever reads beyond the end of a row meets the next.
            ",row of NaN" => {
                let words = packed.codes.len() / (skipped + rows);
                packed.codes[3 * words..4 * words].fill(0x7fff_7fff);
            }
            // Every integer and every code the largest there is: sums of integers come near the end of an i32.
            ",largest" => {
                x.fill(127.0);
                packed.codes.fill(u32::MAX);
            }
            ",infinity" => x[columns / 2] = f32::INFINITY,
            ",nan" => x[columns - 1] = f32::NAN,
            ",zeros" => x.fill(0.0),
            _ => {}
        }
        let epilogue = epilogue(note);
        let biases = if epilogue == EPILOGUE_BIAS { stride } else { 1 };
        let bias = random.values(biases, 1.0);
        let params = Params {
            rows: rows as u32,
            row_start: skipped as u32,
            columns: columns as u32,
            tokens: tokens as u32,
            token_start: before as u32,
            result_start: (before / 2) as u32,
            out_stride: stride as u32,
            out_offset: offset as u32,
            epilogue,
            splits: splits as u32,
            layout: Layout::new(packed.format, columns),
        };
        let lines = all * splits;
        let old = random.values(
            lines * stride,
            if note.starts_with(",gate") { 6.0 } else { 1.0 },
        );
        let mut tensors = weights::host(&packed).to_vec();
        tensors.push(HostTensor::from_f32(DType::F32, &[bias.len()], &bias));
        tensors.push(HostTensor::from_f32(variant.output, &[lines, stride], &old));
        (params, x, tensors)
    }
}

/// The epilogue that a note names.
pub(super) fn epilogue(note: &str) -> u32 {
    match note {
        ",bias" => EPILOGUE_BIAS,
        ",add" => EPILOGUE_ADD,
        ",gate" => gate_epilogue(Activation::Silu),
        ",gate,gelu_tanh" => gate_epilogue(Activation::GeluTanh),
        ",gate,gelu" => gate_epilogue(Activation::Gelu),
        _ => 0,
    }
}

fn case(shape: Shape) -> Case {
    Case::new(shape.label(), move |variant: &Variant| {
        let (params, x, rest) = shape.data(variant);
        let (columns, stride) = (shape.columns, padded(shape.columns));
        let rows = padded_rows(&x, columns);
        let x = HostTensor::from_f32(variant.activation, &[x.len() / columns, stride], &rows);
        CaseData {
            parameters: bytemuck::bytes_of(&params).to_vec(),
            tensors: [vec![x], rest].concat(),
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

/// A case of a product's shape, its columns split in so many parts.
pub(super) fn case_of(shape: &MatmulShape, splits: u32) -> Case {
    let (rows, columns, tokens) = (shape.rows, shape.columns, shape.tokens);
    match splits {
        1 => plain(rows, columns, tokens, shape.weight.group_size),
        _ => split(rows, columns, tokens, splits as usize),
    }
}

pub(super) fn plain(rows: usize, columns: usize, tokens: usize, group: u32) -> Case {
    case(Shape {
        rows,
        columns,
        tokens,
        group,
        note: "",
        splits: 1,
    })
}

pub(super) fn noted(note: &'static str, tokens: usize) -> Case {
    case(Shape {
        rows: 37,
        columns: 64,
        tokens,
        group: WHOLE_ROW,
        note,
        splits: 1,
    })
}

/// A product whose columns are split in parts, each part's sums for themselves.
pub(super) fn split(rows: usize, columns: usize, tokens: usize, splits: usize) -> Case {
    case(Shape {
        rows,
        columns,
        tokens,
        group: 32,
        note: "",
        splits,
    })
}
