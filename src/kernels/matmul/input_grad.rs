//! `matmul/input_grad`: the gradient of a product's input, dX = dY * W. result[t, c] = sum_r grad[t, r] * weight[r, c], in
//! f32; of a weight in several chunks the sums are added up.

use super::{call_tile, tiles};
use crate::kernels::matrix::{Layout, Matrix};
use crate::kernels::prelude::*;
use crate::kernels::weights;
use crate::tensor::WHOLE_ROW;

/// Columns and tokens of one workgroup's tile, as in the shader.
const TILE: u32 = 64;

/// Rows that are added up in one sum where gradients are f32: the sum of a vocabulary's 4096 in a row is off by 3e-6, in
/// parts of 256 by 3e-7.
const EXACT_ROWS: usize = 256;

/// The same where they are f16. As many on every device: were it as many as a submit has time for, the sum would depend on how
/// quick the device was just now.
const HALF_ROWS: usize = 4096;

params! {
    struct Params {
        rows: u32,
        row_start: u32,
        columns: u32,
        tokens: u32,
        token_start: u32,
        grad_stride: u32,
        grad_offset: u32,
        /// 1: the sums are added to what stands in the result.
        accumulate: u32,
        layout: Layout,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/input_grad",
    source: include_str!("../../../shaders/matmul/input_grad.wgsl"),
    bindings: &[
        binding("grad", Access::Read, Element::Activation),
        binding("codes", Access::Read, Element::Is(DType::U32)),
        binding("scales", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let half = |variant: Variant| Variant { activation: DType::F16, ..variant };
        let typed = weights::one_per_type();
        typed.iter().cloned().chain(typed.iter().cloned().map(half)).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        let tiles = p.columns.div_ceil(TILE) as usize * p.tokens.div_ceil(TILE) as usize;
        fold(tiles)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let (rows, columns) = (f64::from(p.rows), f64::from(p.columns));
        let tokens = f64::from(p.tokens);
        let weight = 4.0 * rows * f64::from(p.layout.code_words + p.layout.scale_words);
        let grad = args.tensors[0].dtype.size() as f64 * tokens * rows;
        Cost::new(2.0 * rows * columns * tokens, weight + grad + 4.0 * tokens * columns)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// The gradient of the input of a product with a weight of (rows, columns), given that of its result, (tokens, rows):
/// (tokens, columns) in f32.
pub fn input_grad(device: &Device, grad: &Tensor, weight: &Matrix) -> Result<Tensor> {
    let (rows, columns) = (weight.rows(), weight.columns());
    let tokens = grad.len() / rows;
    let result = device.allocate(DType::F32, &[tokens, columns], "a gradient")?;
    for chunk in weight.chunks() {
        let row_step = match grad.dtype() {
            DType::F32 => EXACT_ROWS,
            _ => HALF_ROWS,
        };
        let (token_step, _) = call_tile(device, tokens, row_step.min(chunk.rows), columns);
        for (token, row) in tiles(tokens, token_step, chunk.rows, row_step) {
            let params = Params {
                rows: row_step.min(chunk.rows - row) as u32,
                row_start: row as u32,
                columns: columns as u32,
                tokens: token_step.min(tokens - token) as u32,
                token_start: token as u32,
                grad_stride: rows as u32,
                grad_offset: (chunk.start + row) as u32,
                accumulate: u32::from(chunk.start + row > 0),
                layout: weight.layout(),
            };
            device.call(
                &KERNEL,
                Variant { activation: grad.dtype(), ..weights::variant(weight.format().ty) },
                &params,
                &[grad, &chunk.codes, &chunk.scales, &result],
            )?;
        }
    }
    Ok(result)
}

/// Each row's weights, decoded one row at a time, times that row's gradient, added to every token's sums by `add`.
fn sums<T: Copy + Default + Send + Sync>(
    args: &Args<'_>,
    add: impl Fn(&mut T, f32, f32) + Sync,
) -> Vec<T> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let mut weight = vec![0.0f32; rows * columns];
    weight.par_chunks_exact_mut(columns).enumerate().for_each(|(row, line)| {
        weights::decode_row(args, (1, 2), p.row_start as usize + row, p.layout, line);
    });
    let mut sums = vec![T::default(); tokens * columns];
    sums.par_chunks_exact_mut(columns).enumerate().for_each(|(token, sums)| {
        let line =
            (p.token_start as usize + token) * p.grad_stride as usize + p.grad_offset as usize;
        let grad = args.tensors[0].load(line, rows);
        for (grad, weight) in grad.iter().zip(weight.chunks_exact(columns)) {
            for (sum, weight) in sums.iter_mut().zip(weight) {
                add(sum, *grad, *weight);
            }
        }
    });
    sums
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut expected = Expected::exact(args.tensors[3].to_f64());
    let pairs = sums(args, |sum: &mut (f64, f64), grad, weight| {
        let product = f64::from(grad) * f64::from(weight);
        *sum = (sum.0 + product, sum.1 + product.abs());
    });
    let first = p.token_start as usize * p.columns as usize;
    let relative = gamma(p.rows as usize + 1);
    for (place, (sum, magnitude)) in (first..).zip(pairs) {
        let before = if p.accumulate == 1 { expected.values[place] } else { 0.0 };
        let value = sum + before;
        expected.values[place] = value;
        expected.bounds[place] = relative * (magnitude + before.abs()) + storing(DType::F32, value);
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let mut sums = sums(args, |sum: &mut f32, grad, weight| *sum += grad * weight);
    let first = p.token_start as usize * p.columns as usize;
    if p.accumulate == 1 {
        let before = outputs.load(0, first, sums.len());
        sums.iter_mut().zip(before).for_each(|(sum, before)| *sum += before);
    }
    outputs.store(0, first, &sums);
}

fn case(rows: usize, columns: usize, tokens: usize, group: u32, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},tokens={tokens},group={group}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(16);
        // A window of tokens, of weight rows and of the gradient's columns; what is outside must stay, or not count.
        let (before, skipped, offset) = if note == ",part" { (2, 3, 5) } else { (0, 0, 0) };
        let packed = weights::random(&mut random, variant, skipped + rows, columns, group);
        let (all, stride) = (before + tokens + before, offset + rows + offset);
        let grad = random.values(all * stride, 1.0);
        let params = Params {
            rows: rows as u32,
            row_start: skipped as u32,
            columns: columns as u32,
            tokens: tokens as u32,
            token_start: before as u32,
            grad_stride: stride as u32,
            grad_offset: offset as u32,
            accumulate: u32::from(note == ",accumulate"),
            layout: Layout::new(packed.format, columns),
        };
        let old = random.values(all * columns, 1.0);
        let [codes, scales] = weights::host(&packed);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[all, stride], &grad),
            codes,
            scales,
            HostTensor::from_f32(DType::F32, &[all, columns], &old),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (rows, tokens) = (sizes.between(0, 1, 150), sizes.between(3, 1, 150));
    let columns = 4 * sizes.between(1, 1, 60) - sizes.between(2, 0, 3);
    let note = ["", ",part", ",accumulate"][sizes.between(5, 0, 2)];
    case(rows, columns, tokens, sizes.group(4), note)
}

fn cases() -> Vec<Case> {
    let float = |variant: &Variant| variant.weight.is_some_and(|weight| weight.bits == 32);
    vec![
        case(65, 97, 67, WHOLE_ROW, ""),
        case(64, 64, 129, 32, ""),
        case(20, 65, 130, 16, ""),
        case(1, 4, 1, 16, ""),
        case(33, 40, 20, WHOLE_ROW, ",part"),
        case(17, 70, 9, 16, ",accumulate"),
        case(37, 64, 20, WHOLE_ROW, "").with(Poison::Infinity).only(float),
        case(37, 64, 20, WHOLE_ROW, "").with(Poison::NaN).only(float),
        case(37, 64, 20, WHOLE_ROW, "").with(Poison::Zeros).only(float),
        case(14_336, 4096, 512, 32, "")
            .bench()
            .only(|variant| variant.weight.is_some_and(|weight| weight.name == "f16")),
    ]
}
