//! Matrix products: result[t, r] = sum_c x[t, c] * weight[r, c] (+ bias[r]), accumulated in f32.
//!
//! One family of kernels over the same bindings. [`linear`] chooses among them and cuts long work along tokens.

pub mod input_grad;
pub mod matvec;
pub mod tiled;
pub mod weight_grad;

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use crate::compare::Expected;
use crate::device::{
    Args, Binding, Call, Case, CaseData, Device, Element, HostTensor, Kernel, Layout, Matrix,
    Outputs, Random, Tensor, Variant, binding,
};
use crate::error::Result;
use crate::gpu::{Access, Capabilities, Cost};
use crate::kernels::bounds::{gamma, storing};
use crate::kernels::weights;
use crate::tensor::{DType, WHOLE_ROW, WeightType};

/// Parameters of every kernel of the family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Params {
    rows: u32,
    row_start: u32,
    columns: u32,
    tokens: u32,
    token_start: u32,
    result_start: u32,
    out_stride: u32,
    out_offset: u32,
    has_bias: u32,
    layout: Layout,
}

const BINDINGS: &[Binding] = &[
    binding("x", Access::Read, Element::Activation),
    binding("codes", Access::Read, Element::Is(DType::U32)),
    binding("scales", Access::Read, Element::Is(DType::U32)),
    binding("bias", Access::Read, Element::Is(DType::F32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// Up to this many tokens, reading the weight is what takes the time.
const FEW_TOKENS: usize = 8;

/// The product of `x`, (tokens, columns), with a weight of (rows, columns): (tokens, rows) in type `output`.
pub fn linear(
    device: &Device,
    x: &Tensor,
    weight: &Matrix,
    bias: Option<&Tensor>,
    output: DType,
) -> Result<Tensor> {
    let tokens = x.len() / weight.columns();
    linear_rows(device, x, 0..tokens, weight, bias, output)
}

/// The same for some of the tokens only: the result has as many rows as `range`.
pub fn linear_rows(
    device: &Device,
    x: &Tensor,
    range: std::ops::Range<usize>,
    weight: &Matrix,
    bias: Option<&Tensor>,
    output: DType,
) -> Result<Tensor> {
    let columns = weight.columns();
    let tokens = range.len();
    let result = device.allocate(output, &[tokens, weight.rows()], "a product")?;
    let unused;
    let bias_tensor = match bias {
        Some(bias) => bias,
        None => {
            unused = device.allocate(DType::F32, &[1], "an unused bias")?;
            &unused
        }
    };
    for chunk in weight.chunks() {
        let (token_step, row_step) = call_tile(device, tokens, chunk.rows, columns);
        for (start, row) in tiles(tokens, token_step, chunk.rows, row_step) {
            let count = token_step.min(tokens - start);
            let params = Params {
                rows: row_step.min(chunk.rows - row) as u32,
                row_start: row as u32,
                columns: columns as u32,
                tokens: count as u32,
                token_start: (range.start + start) as u32,
                result_start: start as u32,
                out_stride: weight.rows() as u32,
                out_offset: (chunk.start + row) as u32,
                has_bias: u32::from(bias.is_some()),
                layout: weight.layout(),
            };
            let (kernel, variant) = choose(
                device.capabilities(),
                (x.dtype(), output),
                weight.format().ty,
                count,
            );
            device.run(&Call {
                kernel,
                variant,
                parameters: bytemuck::bytes_of(&params),
                tensors: &[x, &chunk.codes, &chunk.scales, bias_tensor, &result],
            })?;
        }
    }
    Ok(result)
}

/// Tokens and rows of one call, so that it stays within the device's limit. Tokens are cut first, but not below a tile of
/// 64, which reuses what it reads of the weight; then rows.
fn call_tile(device: &Device, tokens: usize, rows: usize, columns: usize) -> (usize, usize) {
    const TILE: usize = 64;
    let products = (device.call_limit().operations / (2.0 * columns as f64)).max(1.0) as usize;
    let down = |count: usize| {
        if count > TILE {
            count / TILE * TILE
        } else {
            count.max(1)
        }
    };
    if tokens * rows <= products {
        return (tokens, rows);
    }
    let token_step = down(products / rows).max(TILE.min(tokens));
    (token_step, down(products / token_step).min(rows))
}

fn tiles(
    tokens: usize,
    token_step: usize,
    rows: usize,
    row_step: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let starts = (0..tokens).step_by(token_step.max(1));
    starts.flat_map(move |start| {
        (0..rows)
            .step_by(row_step.max(1))
            .map(move |row| (start, row))
    })
}

/// The kernel and variant for a product on a device with these capabilities. Every answer is a variant of its kernel's
/// table, so each has been checked (a test holds that).
pub fn choose(
    capabilities: Capabilities,
    (activation, output): (DType, DType),
    weight: &'static WeightType,
    tokens: usize,
) -> (&'static Kernel, Variant) {
    let variant = Variant {
        activation,
        output,
        weight: Some(weight),
        ..Variant::BASELINE
    };
    if tokens > FEW_TOKENS {
        return (&tiled::KERNEL, variant);
    }
    let constants = if tokens == 1 {
        matvec::ONE
    } else {
        matvec::FOUR
    };
    (
        &matvec::KERNEL,
        Variant {
            subgroups: capabilities.subgroups,
            constants,
            ..variant
        },
    )
}

/// Every weight type with every pair of activation and output that a model asks for.
fn typed_variants() -> Vec<Variant> {
    let pairs = [
        (DType::F32, DType::F32),
        (DType::F16, DType::F16),
        (DType::F16, DType::F32),
    ];
    let typed = |(activation, output)| {
        let typed = weights::one_per_type().into_iter();
        typed.map(move |variant| Variant {
            activation,
            output,
            ..variant
        })
    };
    pairs.into_iter().flat_map(typed).collect()
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (f64::from(p.rows), f64::from(p.columns), f64::from(p.tokens));
    let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
    let activations = args.tensors[0].dtype.size() as f64 * tokens * columns;
    let results = args.tensors[4].dtype.size() as f64 * tokens * rows;
    Cost {
        operations: 2.0 * rows * columns * tokens,
        bytes: weight + activations + results,
    }
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

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let row_start = p.row_start as usize;
    let weight = weights::packed(args, 1, 2, row_start + rows, columns, p.layout)
        .slice_rows(row_start, row_start + rows);
    let bias = args.tensors[3].to_f64();
    let relative = gamma(columns + 1);
    let dense = args.tensors[0].load(p.token_start as usize * columns, tokens * columns);
    let decoded = weight.to_f32();
    let mut expected = Expected::exact(args.tensors[4].to_f64());
    let stride = p.out_stride as usize;
    let region = p.result_start as usize * stride..(p.result_start as usize + tokens) * stride;
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
            for (row, weight) in decoded.chunks_exact(columns).enumerate() {
                let (sums, magnitudes) = dot_lanes(weight, &lanes);
                let place = p.out_offset as usize + row;
                let bias = if p.has_bias == 1 { bias[place] } else { 0.0 };
                for lane in 0..x.len() / columns {
                    let value = sums[lane] + bias;
                    values[lane * stride + place] = value;
                    bounds[lane * stride + place] = relative * (magnitudes[lane] + bias.abs())
                        + storing(args.variant.output, value);
                }
            }
        });
    vec![expected]
}

/// Rows that one task decodes and multiplies at a time: enough to reuse the activations, small enough for the cache.
const ROW_BLOCK: usize = 64;

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let x = args.tensors[0].load(p.token_start as usize * columns, tokens * columns);
    let blocks: Vec<Vec<f32>> = (0..rows.div_ceil(ROW_BLOCK))
        .into_par_iter()
        .map(|block| {
            let first = block * ROW_BLOCK;
            let count = ROW_BLOCK.min(rows - first);
            let mut weight = vec![0.0f32; count * columns];
            for (offset, line) in weight.chunks_exact_mut(columns).enumerate() {
                weights::decode_row(
                    args,
                    (1, 2),
                    p.row_start as usize + first + offset,
                    p.layout,
                    line,
                );
            }
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
            if p.has_bias == 1 {
                let first = p.out_offset as usize + block * ROW_BLOCK;
                values
                    .iter_mut()
                    .zip(&bias[first..])
                    .for_each(|(value, bias)| *value += bias);
            }
            outputs.store(0, line + block * ROW_BLOCK, &values);
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
    if tokens <= FEW_TOKENS {
        // Too few for blocks of both operands: each weight is read once and used at once.
        for (row, weight) in weight.chunks_exact(columns).enumerate() {
            for (token, x) in x.chunks_exact(columns).enumerate() {
                result[token * rows + row] = dot(x, weight);
            }
        }
        return result;
    }
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

/// A dot product in f32 with sixteen running sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..16 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

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
                HostTensor::from_f32(variant.activation, &[all, columns], &x),
                codes,
                scales,
                HostTensor::from_f32(DType::F32, &[bias.len()], &bias),
                HostTensor::from_f32(variant.output, &[all, stride], &old),
            ],
        }
    })
}

fn plain(rows: usize, columns: usize, tokens: usize, group: u32) -> Case {
    case(Shape {
        rows,
        columns,
        tokens,
        group,
        note: "",
    })
}

fn noted(note: &'static str, tokens: usize) -> Case {
    case(Shape {
        rows: 37,
        columns: 64,
        tokens,
        group: WHOLE_ROW,
        note,
    })
}
