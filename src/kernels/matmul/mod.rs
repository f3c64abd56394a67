//! Matrix products: result[t, r] = sum_c x[t, c] * weight[r, c] (+ bias[r]), accumulated in f32, and what becomes of them.
//!
//! One family of kernels; [`plan`] chooses among them, and [`linear`] cuts long work along tokens and rows.

pub mod backward;
pub mod bits;
pub mod bitserial;
mod cases;
pub mod coop;
pub mod dot4;
mod input;
pub mod input_grad;
pub mod lut;
pub mod lut8;
pub mod matvec;
pub mod merge;
pub mod plan;
mod reference;
pub mod tables;
pub mod tables8;
pub mod tiled;
pub mod trits;
pub mod weight_grad;

use bytemuck::{Pod, Zeroable};
use glam::UVec3;

use crate::device::{
    Args, Binding, Call, Chunk, Device, Element, Engine, Layout, Matrix, Tensor, Variant, binding,
    fold,
};
use crate::error::Result;
use crate::gpu::{Access, Cost};
use crate::kernels::activation::Activation;
use crate::kernels::copy::planes::{self, planes};
use crate::kernels::copy::trits as ternary;
use crate::kernels::weights;
use crate::tensor::DType;
pub use input::{Input, Norm};
use plan::{Choice, Product};

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
    epilogue: u32,
    splits: u32,
    layout: Layout,
}

/// A bias is added.
const EPILOGUE_BIAS: u32 = 1;
/// What stands in the result is added.
const EPILOGUE_ADD: u32 = 2;
/// The result holds a gate, whose activation's number stands in the bits from [`EPILOGUE_ACTIVATION`] on.
const EPILOGUE_GATE: u32 = 4;
const EPILOGUE_ACTIVATION: u32 = 3;

const BINDINGS: &[Binding] = &[
    binding("x", Access::Read, Element::Activation),
    binding("codes", Access::Read, Element::Is(DType::U32)),
    binding("scales", Access::Read, Element::Is(DType::U32)),
    binding("bias", Access::Read, Element::Is(DType::F32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// Up to this many tokens, reading the weight is what takes the time.
const FEW_TOKENS: usize = 8;

/// What becomes of a product.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// A new tensor of this type.
    New(DType),
    /// It takes the place of what this tensor, (tokens, rows), held.
    Into(&'a Tensor),
    /// It is added to this tensor, (tokens, rows).
    Add(&'a Tensor),
    /// With g what stands in this tensor, (tokens, rows), the product times activation(g) takes its place: a gated linear
    /// unit (Shazeer 2020, arXiv 2002.05202).
    Gate(&'a Tensor, Activation),
}

impl Destination<'_> {
    fn epilogue(self) -> u32 {
        match self {
            Destination::New(_) | Destination::Into(_) => 0,
            Destination::Add(_) => EPILOGUE_ADD,
            Destination::Gate(_, activation) => gate_epilogue(activation),
        }
    }
}

/// The epilogue of a gate.
fn gate_epilogue(activation: Activation) -> u32 {
    EPILOGUE_GATE | activation.code() << EPILOGUE_ACTIVATION
}

/// The product of all tokens of `x` with a weight of (rows, columns), in its destination.
pub fn linear(
    device: &Device,
    x: &Input,
    weight: &Matrix,
    bias: Option<&Tensor>,
    destination: Destination<'_>,
) -> Result<Tensor> {
    linear_rows(device, x, 0..x.tokens(), weight, bias, destination)
}

/// The same for some of the tokens only: the result has as many rows as `range`.
pub fn linear_rows(
    device: &Device,
    x: &Input,
    range: std::ops::Range<usize>,
    weight: &Matrix,
    bias: Option<&Tensor>,
    destination: Destination<'_>,
) -> Result<Tensor> {
    let columns = weight.columns();
    let tokens = range.len();
    let result = match destination {
        Destination::New(dtype) => device.allocate(dtype, &[tokens, weight.rows()], "a product")?,
        Destination::Into(tensor) | Destination::Add(tensor) | Destination::Gate(tensor, _) => {
            tensor.clone()
        }
    };
    assert_eq!(
        result.len(),
        tokens * weight.rows(),
        "a product fits its destination"
    );
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
        // Tables are four entries an activation, in f32 at most.
        let fit = device.max_tensor_bytes() as usize / (4 * tables::entries(columns));
        let engine = match device.runner() {
            // Planes are padded, and may not fit a binding where the codes do.
            Some(runner) if planes_fit(device, weight, chunk) => runner.engine(),
            _ => Engine::Mul,
        };
        let token_step = match engine {
            Engine::Lut => token_step.min(fit.max(1)),
            _ => token_step,
        };
        for (start, row) in tiles(tokens, token_step, chunk.rows, row_step) {
            let count = token_step.min(tokens - start);
            let product = Product {
                activation: x.dtype(),
                bytes: x.bytes(),
                output: result.dtype(),
                weight: weight.format(),
                engine,
                rows: row_step.min(chunk.rows - row),
                columns,
                tokens: count,
            };
            let runner = device.runner();
            let winner = runner.and_then(|runner| runner.winner(|| product.class()));
            let choice = product.choose(device.capabilities(), winner.as_deref());
            let first = range.start + start;
            let mut params = Params {
                rows: product.rows as u32,
                row_start: row as u32,
                columns: columns as u32,
                tokens: count as u32,
                token_start: first as u32,
                result_start: start as u32,
                out_stride: weight.rows() as u32,
                out_offset: (chunk.start + row) as u32,
                epilogue: destination.epilogue() | (u32::from(bias.is_some()) * EPILOGUE_BIAS),
                splits: choice.splits,
                layout: weight.layout(),
            };
            // Other layouts are made by the first product that asks for them, and stay.
            let codes = if let Some(trits) = choice.trits() {
                let shape = (chunk.rows, columns);
                let make = || ternary::trits(device, &chunk.codes, weight.format(), shape, trits);
                chunk.trits[trits - 2].get_or_make(make)?
            } else if choice.takes_planes() {
                let make = || planes(device, &chunk.codes, weight.format(), (chunk.rows, columns));
                chunk.planes.get_or_make(make)?
            } else {
                &chunk.codes
            };
            let weight = [codes, &chunk.scales, bias_tensor];
            let run = |choice: &Choice, params: &Params, x: &[&Tensor], result: &Tensor| {
                device.run(&Call {
                    kernel: choice.kernel,
                    variant: choice.variant.clone(),
                    parameters: bytemuck::bytes_of(params),
                    tensors: &[x, &weight, &[result]].concat(),
                })
            };
            if let Some(rounding) = choice.rounding() {
                let x = x.integers(device, first..first + count, rounding)?;
                params.token_start = 0;
                run(&choice, &params, &[&x.codes, &x.scales], &result)?;
            } else if choice.looks_up() {
                let x = x.tables(device, first..first + count, choice.variant.activation)?;
                params.token_start = 0;
                run(&choice, &params, &[&x.tables, &x.halves], &result)?;
            } else if choice.looks_up_bytes() {
                let x = x.byte_tables(device, first..first + count)?;
                params.token_start = 0;
                run(&choice, &params, &[&x.tables, &x.sums], &result)?;
            } else if choice.counts_bits() {
                let x = x.bits(device, first..first + count)?;
                params.token_start = 0;
                run(&choice, &params, &[&x.planes, &x.scales], &result)?;
            } else if choice.splits == 1 {
                run(&choice, &params, &[&x.plain(device)?], &result)?;
            } else {
                let parts = [choice.splits as usize, count, product.rows];
                let sums = device.allocate(DType::F32, &parts, "parts of a product")?;
                let part = Params {
                    result_start: 0,
                    out_stride: params.rows,
                    out_offset: 0,
                    epilogue: 0,
                    ..params
                };
                run(&choice, &part, &[&x.plain(device)?], &sums)?;
                device.run(&Call {
                    kernel: &merge::KERNEL,
                    variant: merge::variant(result.dtype()),
                    parameters: bytemuck::bytes_of(&params),
                    tensors: &[&sums, bias_tensor, &result],
                })?;
            }
        }
    }
    Ok(result)
}

fn planes_fit(device: &Device, weight: &Matrix, chunk: &Chunk) -> bool {
    let ty = weight.format().ty;
    let (rows, columns) = (chunk.rows, weight.columns());
    let words = match ty {
        _ if planes::takes(ty) => planes::words(rows, columns, ty.bits as usize),
        _ if ternary::takes(ty) => ternary::words(rows, columns, 2),
        _ => 0,
    };
    4 * words as u64 <= device.max_tensor_bytes()
}

/// Workgroups of a kernel whose variants say how many ROWS and TOKENS a workgroup has.
fn row_blocks(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    let (rows, tokens) = (
        args.variant.constant("ROWS"),
        args.variant.constant("TOKENS"),
    );
    fold(p.rows.div_ceil(rows) as usize * p.tokens.div_ceil(tokens) as usize)
}

/// Columns of a row of activations with its padding: shaders load four at a time.
fn padded(columns: usize) -> usize {
    columns.next_multiple_of(4)
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
