//! What the products must give, and the same in f32 for the CPU device.

use super::{
    EPILOGUE_ACTIVATION, EPILOGUE_ADD, EPILOGUE_APART, EPILOGUE_BIAS, EPILOGUE_GATE, FEW_TOKENS,
    Params, padded,
};
use crate::device::View;
use crate::kernels::activation::Activation;
use crate::kernels::prelude::*;
use crate::kernels::quantize::activations::Rounding;
use crate::kernels::weights;

/// The call's activations without their padding: (tokens, columns).
fn activations(args: &Args<'_>) -> Vec<f32> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let stride = padded(columns);
    let mut x = args.tensors[0].load(p.token_start as usize * stride, tokens * stride);
    if stride > columns {
        let mut place = 0;
        x.retain(|_| {
            place += 1;
            (place - 1) % stride < columns
        });
    }
    x
}

/// The integer that stands for a column of a token: `kernels/quantize/activations` tells the layout.
pub(super) fn integer(
    codes: &View<'_>,
    token: usize,
    column: usize,
    columns: usize,
    rounding: Rounding,
) -> i32 {
    let bytes: &[u8] = bytemuck::cast_slice(codes.words);
    let blocks = columns.div_ceil(rounding.columns());
    let (block, place) = (column / rounding.columns(), column % rounding.columns());
    let halves = 2 * rounding.span as usize;
    let byte = |plane: usize| {
        let piece = token * rounding.pieces() + halves * plane + place / 16;
        i32::from(bytes[16 * (piece * blocks + block) + place % 16] as i8)
    };
    let planes = 0..rounding.bytes as usize;
    planes.map(|plane| byte(plane) << (8 * plane)).sum()
}

/// The real values of integer activations, (tokens, columns).
pub(super) fn tokens_of(
    codes: &View<'_>,
    scales: &View<'_>,
    tokens: std::ops::Range<usize>,
    columns: usize,
    rounding: Rounding,
) -> Vec<f64> {
    let blocks = columns.div_ceil(rounding.columns());
    let value = |token: usize, column: usize| {
        let scale = scales.get(2 * (token * blocks + column / rounding.columns()));
        f64::from(integer(codes, token, column, columns, rounding)) * scale
    };
    tokens
        .flat_map(|token| (0..columns).map(move |column| (token, column)))
        .map(|(token, column)| value(token, column))
        .collect()
}

/// Tokens whose sums the reference keeps in registers at once. Each is still summed in plain order over the columns.
const LANES: usize = 8;

/// Sums and sums of magnitudes of one weight row with [`LANES`] tokens, whose values stand side by side.
fn dot_lanes(weight: &[f32], x: &[f64]) -> ([f64; LANES], [f64; LANES]) {
    let (mut sums, mut magnitudes) = ([0.0; LANES], [0.0; LANES]);
    for (weight, x) in weight.iter().zip(x.chunks_exact(LANES)) {
        for lane in 0..LANES {
            let product = f64::from(*weight) * x[lane];
            sums[lane] += product;
            magnitudes[lane] += product.abs();
        }
    }
    (sums, magnitudes)
}

/// What the epilogue makes of a sum, and the bound of that: `relative` and `lost` are the error of the sum alone.
pub(super) struct Finish {
    pub(super) epilogue: u32,
    pub(super) output: DType,
    pub(super) relative: f64,
    pub(super) lost: f64,
}

impl Finish {
    /// `before` is what stands in the result.
    pub(super) fn value(&self, sum: f64, magnitude: f64, bias: f64, before: f64) -> (f64, f64) {
        let added = if self.epilogue & EPILOGUE_ADD > 0 { before } else { 0.0 };
        let value = sum + bias + added;
        let bound = self.relative * (magnitude + bias.abs() + added.abs()) + self.lost;
        let (value, bound) = if self.epilogue & EPILOGUE_GATE > 0 {
            let gate = Activation::of(self.epilogue >> EPILOGUE_ACTIVATION);
            let (gate, loss) = gate.reference(before);
            (value * gate, bound * gate.abs() + loss * value.abs())
        } else {
            (value, bound)
        };
        (value, bound + storing(self.output, value))
    }
}

/// What a call whose bias and result are its fifth and sixth tensors must give: of each row's and token's sum and the
/// magnitude of what it is made of, of which `relative` may be lost.
pub(super) fn finished(args: &Args<'_>, sums: &[Vec<(f64, f64)>], relative: f64) -> Vec<Expected> {
    let p: Params = args.parameters();
    let bias = args.tensors[4].to_f64();
    let mut expected = Expected::exact(args.tensors[5].to_f64());
    let finish = Finish { epilogue: p.epilogue, output: args.variant.output, relative, lost: 0.0 };
    for (row, sums) in sums.iter().enumerate() {
        let place = p.out_offset as usize + row;
        let bias = if p.epilogue & EPILOGUE_BIAS > 0 { bias[place] } else { 0.0 };
        for (token, (sum, magnitude)) in sums.iter().enumerate() {
            let at = p.place(token, place);
            (expected.values[at], expected.bounds[at]) =
                finish.value(*sum, *magnitude, bias, expected.values[at]);
        }
    }
    vec![expected]
}

/// Of results in rows, (tokens, out_stride), those that stand apart.
fn apart(p: &Params, rows: Expected) -> Expected {
    let mut apart = Expected::exact(rows.values.clone());
    for token in 0..p.tokens as usize {
        for row in 0..p.out_stride as usize {
            let (from, to) = (token * p.out_stride as usize + row, p.place(token, row));
            (apart.values[to], apart.bounds[to]) = (rows.values[from], rows.bounds[from]);
        }
    }
    apart
}

pub(super) fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let row_start = p.row_start as usize;
    let weight = weights::packed(args, 1, 2, row_start + rows, columns, p.layout)
        .slice_rows(row_start, row_start + rows);
    let bias = args.tensors[3].to_f64();
    // Matrix units may cut off instead of rounding, and take weights in f16.
    let coop = args.variant.coop > 0;
    let rounded = coop && args.variant.weight.is_some_and(|ty| ty.name != "f16");
    let relative = if coop { 2.0 } else { 1.0 } * gamma(columns + 1)
        + if rounded { f64::powi(2.0, -11) } else { 0.0 };
    let dense = activations(args);
    let decoded = weight.to_f32();
    // The error of rounding a weight below 2^-14 to f16.
    let largest = dense.iter().fold(0.0f64, |largest, x| largest.max(f64::from(x.abs())));
    let lost = if rounded { f64::powi(2.0, -25) * columns as f64 * largest } else { 0.0 };
    let mut expected = Expected::exact(args.tensors[4].to_f64());
    let finish = Finish { epilogue: p.epilogue, output: args.variant.output, relative, lost };
    let stride = p.out_stride as usize;
    // Parts of the columns have sums of their own, one part's tokens behind the other's.
    let (splits, step) = (p.splits as usize, args.variant.constant("STEP") as usize);
    let steps = columns.div_ceil(step);
    for part in 0..splits {
        let first = p.result_start as usize + part * tokens;
        let region = first * stride..(first + tokens) * stride;
        let place = |part: usize| (part * steps / splits * step).min(columns);
        let (start, end) = (place(part), place(part + 1));
        // Tasks of a few tokens each: a task writes its own rows of the result, and no sum is split.
        expected.values[region.clone()]
            .par_chunks_mut(LANES * stride)
            .zip(expected.bounds[region].par_chunks_mut(LANES * stride))
            .zip(dense.par_chunks(LANES * columns))
            .for_each(|((values, bounds), x)| {
                let mut lanes = vec![0.0f64; columns * LANES];
                for (lane, line) in x.chunks_exact(columns).enumerate() {
                    for (column, value) in line.iter().enumerate() {
                        lanes[column * LANES + lane] = f64::from(*value);
                    }
                }
                let lanes = &lanes[start * LANES..end * LANES];
                for (row, weight) in decoded.chunks_exact(columns).enumerate() {
                    let (sums, magnitudes) = dot_lanes(&weight[start..end], lanes);
                    let place = p.out_offset as usize + row;
                    let bias = if p.epilogue & EPILOGUE_BIAS > 0 { bias[place] } else { 0.0 };
                    for lane in 0..x.len() / columns {
                        let at = lane * stride + place;
                        (values[at], bounds[at]) =
                            finish.value(sums[lane], magnitudes[lane], bias, values[at]);
                    }
                }
            });
    }
    // Nothing reads what stood there: layers whose results stand apart have no other epilogue but a bias.
    vec![if p.epilogue & EPILOGUE_APART > 0 { apart(&p, expected) } else { expected }]
}

/// Rows that one task decodes and multiplies at a time: enough to reuse the activations, small enough for the cache.
const ROW_BLOCK: usize = 64;

pub(super) fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let x = activations(args);
    let blocks: Vec<Vec<f32>> = (0..rows.div_ceil(ROW_BLOCK))
        .into_par_iter()
        .map(|block| {
            let first = block * ROW_BLOCK;
            let count = ROW_BLOCK.min(rows - first);
            let line = |offset: usize| {
                let row = p.row_start as usize + first + offset;
                weights::line(args, (1, 2), row, p.layout, columns)
            };
            if tokens <= FEW_TOKENS {
                // Too few for blocks of both operands: each row is used at once for all of them.
                let (mut result, mut scratch) = (vec![0.0; tokens * count], Vec::new());
                let mut of_row = [0.0; FEW_TOKENS];
                for offset in 0..count {
                    line(offset).products(&x, &mut scratch, &mut of_row[..tokens]);
                    for (token, product) in of_row[..tokens].iter().enumerate() {
                        result[token * count + offset] = *product;
                    }
                }
                return result;
            }
            let mut weight = vec![0.0f32; count * columns];
            let lines = weight.chunks_exact_mut(columns).enumerate();
            lines.for_each(|(offset, values)| line(offset).decode(values));
            multiply(&x, &weight, tokens, columns, count)
        })
        .collect();
    let bias = args.tensors[3].to_f32();
    for token in 0..tokens {
        let line =
            (p.result_start as usize + token) * p.out_stride as usize + p.out_offset as usize;
        for (block, values) in blocks.iter().enumerate() {
            let count = ROW_BLOCK.min(rows - block * ROW_BLOCK);
            let mut values = values[token * count..(token + 1) * count].to_vec();
            let first = line + block * ROW_BLOCK;
            if p.epilogue & EPILOGUE_BIAS > 0 {
                let bias = &bias[p.out_offset as usize + block * ROW_BLOCK..];
                let pairs = values.iter_mut().zip(bias);
                pairs.for_each(|(value, bias)| *value += bias);
            }
            if p.epilogue & (EPILOGUE_ADD | EPILOGUE_GATE) > 0 {
                let gate = p.epilogue & EPILOGUE_GATE > 0;
                let activation = Activation::of(p.epilogue >> EPILOGUE_ACTIVATION);
                for (value, before) in values.iter_mut().zip(outputs.load(0, first, count)) {
                    *value = if gate { *value * activation.value(before) } else { *value + before };
                }
            }
            if p.epilogue & EPILOGUE_APART > 0 {
                for (offset, value) in values.iter().enumerate() {
                    let row = p.out_offset as usize + block * ROW_BLOCK + offset;
                    outputs.store(0, p.place(token, row), &[*value]);
                }
                continue;
            }
            outputs.store(0, first, &values);
        }
    }
}

/// `x` (tokens, columns) times the transpose of `weight` (rows, columns), in f32: (tokens, rows).
fn multiply(x: &[f32], weight: &[f32], tokens: usize, columns: usize, rows: usize) -> Vec<f32> {
    assert!(
        x.len() == tokens * columns && weight.len() == rows * columns,
        "operands have the shapes they say"
    );
    let mut result = vec![0.0; tokens * rows];
    #[expect(unsafe_code, reason = "matrixmultiply takes raw pointers and strides")]
    // SAFETY: the strides describe row-major matrices of exactly the lengths asserted above.
    unsafe {
        matrixmultiply::sgemm(
            tokens,
            columns,
            rows,
            1.0,
            x.as_ptr(),
            columns as isize,
            1,
            weight.as_ptr(),
            1,
            columns as isize,
            0.0,
            result.as_mut_ptr(),
            rows as isize,
            1,
        );
    }
    result
}
