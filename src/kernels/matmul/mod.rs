//! Matrix products: result[t, r] = sum_c x[t, c] * weight[r, c] (+ bias[r]), accumulated in f32, and what becomes of them.
//!
//! One family of kernels; [`product`] chooses among them, and [`linear`] cuts long work along tokens and rows.

pub mod backward;
pub mod bits;
pub mod bitserial;
mod cases;
pub mod coop;
pub mod dot4;
pub mod gram;
mod input;
pub mod input_grad;
pub mod lut;
pub mod lut_i8;
pub mod lut_tables;
pub mod lut_tables_i8;
pub mod matvec;
pub mod merge;
pub mod part;
pub mod product;
mod reference;
pub mod ternary;
pub mod tiled;
pub mod tuned;
pub mod weight_grad;

use glam::UVec3;

use crate::kernels::activation::Activation;
use crate::kernels::matrix::{Layout, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::weights;
pub use input::{Input, Norm};
pub use product::Engine;
use product::{MatmulShape, ProductChoices, WeightForm};

params! {
    /// Parameters of every kernel of the family.
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
        /// Where the rows of the second and of the third of several layers begin ([`EPILOGUE_APART`]).
        second: u32,
        third: u32,
        layout: Layout,
    }
}

impl Params {
    /// Where the result of a token of the call and a row of the whole weight stands.
    fn place(&self, token: usize, row: usize) -> usize {
        if self.epilogue & EPILOGUE_APART == 0 {
            return (self.result_start as usize + token) * self.out_stride as usize + row;
        }
        let ends = [self.second, self.third, self.out_stride].map(|end| end as usize);
        let layer = ends.iter().take_while(|end| **end <= row).count();
        let start = if layer == 0 { 0 } else { ends[layer - 1] };
        self.tokens as usize * start + token * (ends[layer] - start) + row - start
    }
}

/// A bias is added.
const EPILOGUE_BIAS: u32 = 1;
/// The result's previous value is added.
const EPILOGUE_ADD: u32 = 2;
/// The result holds a gate, whose activation's number stands in the bits from [`EPILOGUE_ACTIVATION`] on.
const EPILOGUE_GATE: u32 = 4;
/// Rows are those of up to three layers with the same input: each layer's results, (tokens, its rows), stand behind those of the one
/// before. A call has all tokens then.
const EPILOGUE_APART: u32 = 8;
const EPILOGUE_ACTIVATION: u32 = 4;

const BINDINGS: &[Binding] = &[
    binding("x", Access::Read, Element::Activation),
    binding("codes", Access::Read, Element::Is(DType::U32)),
    binding("scales", Access::Read, Element::Is(DType::U32)),
    binding("bias", Access::Read, Element::Is(DType::F32)),
    binding("result", Access::ReadWrite, Element::Output),
];

/// Bindings of kernels that take the activations in a form of two tensors, and the weight's codes in one.
const fn formed_bindings(
    (x, element): (&'static str, Element),
    beside: &'static str,
    codes: &'static str,
) -> [Binding; 6] {
    [
        binding(x, Access::Read, element),
        binding(beside, Access::Read, Element::Is(DType::F32)),
        binding(codes, Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("bias", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Output),
    ]
}

/// The cost of such a call: so many words of codes a row, and so many bytes of each token's column.
fn formed_cost(args: &Args<'_>, code_words: f64, column_bytes: f64) -> Cost {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (f64::from(p.rows), f64::from(p.columns), f64::from(p.tokens));
    let weight = 4.0 * rows * (code_words + f64::from(p.layout.scale_words));
    let results = args.tensors[5].dtype.size() as f64 * rows;
    Cost::new(2.0 * rows * columns * tokens, weight + tokens * (column_bytes * columns + results))
}

/// Up to this many tokens, reading the weight is what takes the time.
pub const FEW_TOKENS: usize = 8;

/// The epilogue of a product: what its sums become.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// A new tensor of this type.
    New(DType),
    /// It takes the place of what this tensor, (tokens, rows), held.
    Into(&'a Tensor),
    /// It is added to this tensor, (tokens, rows).
    Add(&'a Tensor),
    /// With g what stands in this tensor, (tokens, rows), the product times activation(g) takes its place: a gated linear
    /// unit (Shazeer 2020, arXiv 2002.05202). One of [`FUSED_GATES`].
    Gate(&'a Tensor, Activation),
    /// It takes the place of what this tensor, (tokens * rows), held: of several layers one behind the other. The first rows of the
    /// second and of the third.
    Apart(&'a Tensor, (usize, usize)),
}

impl Destination<'_> {
    /// The tensor, of that shape where it is new.
    fn tensor(self, device: &Device, shape: &[usize]) -> Result<Tensor> {
        let result = match self {
            Destination::New(dtype) => device.allocate(dtype, shape, "a product")?,
            Destination::Into(tensor)
            | Destination::Add(tensor)
            | Destination::Gate(tensor, _)
            | Destination::Apart(tensor, _) => tensor.clone(),
        };
        let len = shape.iter().product::<usize>();
        assert_eq!(result.len(), len, "a product fits its destination");
        Ok(result)
    }

    fn epilogue(self) -> u32 {
        match self {
            Destination::New(_) | Destination::Into(_) => 0,
            Destination::Add(_) => EPILOGUE_ADD,
            Destination::Gate(_, activation) => gate_epilogue(activation),
            Destination::Apart(..) => EPILOGUE_APART,
        }
    }

    /// The first rows of the second and of the third layer.
    fn starts(self) -> (usize, usize) {
        match self {
            Destination::Apart(_, starts) => starts,
            _ => (0, 0),
        }
    }
}

/// The activations whose gate a product fuses. The exact GELU is left to `gate/glu`: with erf in their epilogue the f32 tiles
/// were 9 % slower on an H100, for every product.
pub const FUSED_GATES: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

/// The epilogue of a gate.
fn gate_epilogue(activation: Activation) -> u32 {
    assert!(FUSED_GATES.contains(&activation), "products fuse no gate of {activation:?}");
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

/// The products of `x` with the weights of two or three layers, each (tokens, rows) of that type, by one call: fewer calls for few
/// tokens, and more tiles at once for many. `None` where that cannot be: the weights, or the biases that they all have or none has, do
/// not stand one behind the other in memory; a call's limit cuts the tokens; the quickest kernel takes codes in a form of its own, or
/// is one that many tokens do not gain by it with.
pub fn linear_beside(
    device: &Device,
    x: &Input,
    layers: &[(&Matrix, Option<&Tensor>)],
    output: DType,
) -> Result<Option<Vec<Tensor>>> {
    const LAYERS: std::ops::RangeInclusive<usize> = 2..=3;
    let tokens = x.tokens();
    if !LAYERS.contains(&layers.len()) {
        return Ok(None);
    }
    let matrices: Vec<&Matrix> = layers.iter().map(|(matrix, _)| *matrix).collect();
    let biases: Vec<&Tensor> = layers.iter().filter_map(|(_, bias)| *bias).collect();
    let bias = if biases.is_empty() { Some(None) } else { Tensor::joined(&biases).map(Some) };
    let all_or_none = biases.is_empty() || biases.len() == layers.len();
    let (Some(weight), Some(bias), true) = (Matrix::joined(&matrices), bias, all_or_none) else {
        return Ok(None);
    };
    let Some(choices) = device.runner().map(ProductChoices::of) else { return Ok(None) };
    let shape = MatmulShape::of(x, &weight, output, choices.engine());
    let choice = choices.choose(&shape, device.capabilities());
    let (at_once, _) = call_tile(device, tokens, weight.rows(), weight.columns());
    let gains = choice.product.many_beside;
    if choice.weight() != WeightForm::Codes || at_once < tokens || (tokens > FEW_TOKENS && !gains) {
        return Ok(None);
    }
    let shapes: Vec<Vec<usize>> = matrices.iter().map(|part| vec![tokens, part.rows()]).collect();
    let Some(results) = device.allocate_parts(output, &shapes, "products")? else {
        return Ok(None);
    };
    let parts: Vec<Tensor> = results.iter().map(|part| part.reshaped(&[part.len()])).collect();
    let result = Tensor::joined(&parts.iter().collect::<Vec<_>>());
    let result = result.expect("parts were made one behind the other");
    let second = matrices[0].rows();
    let starts = (second, matrices.get(2).map_or(weight.rows(), |_| second + matrices[1].rows()));
    let destination = Destination::Apart(&result, starts);
    linear_rows(device, x, 0..tokens, &weight, bias.as_ref(), destination)?;
    Ok(Some(results))
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
    let (tokens, columns) = (range.len(), weight.columns());
    let result = destination.tensor(device, &[tokens, weight.rows()])?;
    let choices = device.runner().map(ProductChoices::of);
    let unused = || device.allocate(DType::F32, &[1], "an unused bias");
    let bias_tensor = match (bias, &choices) {
        (Some(bias), _) => bias.clone(),
        (None, Some(choices)) => choices.unused_bias(unused)?,
        (None, None) => unused()?,
    };
    for chunk in weight.chunks() {
        let engine = match &choices {
            Some(choices) if WeightForm::fits(device, weight.format(), chunk.rows, columns) => {
                choices.engine()
            }
            _ => Engine::Mul,
        };
        let (mut token_step, row_step) = call_tile(device, tokens, chunk.rows, columns);
        if engine == Engine::Lut {
            // Tables are four entries an activation, in f32 at most.
            let fit = device.max_tensor_bytes() as usize / (4 * lut_tables::entries(columns));
            token_step = token_step.min(fit.max(1));
        }
        // One way for the whole product: pieces are as large as a submit has time for, which must not decide how they are summed.
        let of_all = MatmulShape::of(x, weight, result.dtype(), engine);
        let whole = MatmulShape { rows: chunk.rows, tokens, ..of_all };
        let capabilities = device.capabilities();
        let choice = match &choices {
            Some(choices) => choices.choose(&whole, capabilities),
            None => whole.choose(capabilities, None),
        };
        for (start, row) in tiles(tokens, token_step, chunk.rows, row_step) {
            let shape = MatmulShape {
                rows: row_step.min(chunk.rows - row),
                tokens: token_step.min(tokens - start),
                ..whole
            };
            let first = range.start + start;
            let (x, token_start) = x.form(device, choice.input(), first..first + shape.tokens)?;
            let codes = chunk.form(device, choice.weight(), weight.format(), columns)?;
            let params = Params {
                rows: shape.rows as u32,
                row_start: row as u32,
                columns: columns as u32,
                tokens: shape.tokens as u32,
                token_start: token_start as u32,
                result_start: start as u32,
                out_stride: weight.rows() as u32,
                out_offset: (chunk.start + row) as u32,
                epilogue: destination.epilogue() | (u32::from(bias.is_some()) * EPILOGUE_BIAS),
                splits: choice.splits,
                second: destination.starts().0 as u32,
                third: destination.starts().1 as u32,
                layout: weight.layout(),
            };
            let mut operands: Vec<&Tensor> = x.iter().collect();
            operands.extend([&codes, &chunk.scales, &bias_tensor]);
            choice.run(device, &params, &operands, &result)?;
        }
    }
    Ok(result)
}

/// Workgroups of a kernel whose variants say how many ROWS and TOKENS a workgroup has.
fn row_blocks(args: &Args<'_>) -> UVec3 {
    let p: Params = args.parameters();
    let (rows, tokens) = (args.variant.constant("ROWS"), args.variant.constant("TOKENS"));
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
        if count > TILE { count / TILE * TILE } else { count.max(1) }
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
    starts.flat_map(move |start| (0..rows).step_by(row_step.max(1)).map(move |row| (start, row)))
}

/// Every weight type with every pair of activation and output that a model asks for.
pub(super) fn typed_variants() -> Vec<Variant> {
    let pairs = [(DType::F32, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::F32)];
    let typed = |(activation, output)| {
        let typed = weights::one_per_type().into_iter();
        typed.map(move |variant| Variant { activation, output, ..variant })
    };
    pairs.into_iter().flat_map(typed).collect()
}

fn cost(args: &Args<'_>) -> Cost {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (f64::from(p.rows), f64::from(p.columns), f64::from(p.tokens));
    let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
    let activations = args.tensors[0].dtype.size() as f64 * tokens * columns;
    let results = args.tensors[4].dtype.size() as f64 * tokens * rows;
    Cost::new(2.0 * rows * columns * tokens, weight + activations + results)
}
