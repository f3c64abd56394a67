//! `matmul/weight_grad`: the gradient of a product's weight, dW = dYᵗ * X. result[r, c] = sum_t grad[t, r] * x[t, c], in
//! f32; it may be added to a gradient that stands there, so that many batches make one.

use crate::kernels::prelude::*;

/// Rows and columns of one workgroup's tile, as in the shader.
const TILE: u32 = 64;

params! {
    struct Params {
        rows: u32,
        columns: u32,
        tokens: u32,
        token_start: u32,
        /// 1: the sums are added to what stands in the result.
        accumulate: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "matmul/weight_grad",
    source: include_str!("../../../shaders/matmul/weight_grad.wgsl"),
    bindings: &[
        binding("grad", Access::Read, Element::Activation),
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || {
        let half = Variant::typed(DType::F16, DType::F32);
        vec![Variant::BASELINE, half]
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.rows.div_ceil(TILE) as usize * p.columns.div_ceil(TILE) as usize)
    },
    cost: |args| {
        let p: Params = args.parameters();
        let (rows, columns) = (f64::from(p.rows), f64::from(p.columns));
        let tokens = f64::from(p.tokens);
        Cost::new(
            2.0 * rows * columns * tokens,
            args.tensors[0].dtype.size() as f64 * tokens * (rows + columns) + 4.0 * rows * columns,
        )
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Tokens that the shader adds at a time.
const STEP: usize = 16;

/// Adds the gradient of a product's weight to `result`, f32 of (rows, columns), or writes it there: from the gradient of
/// the product's result, (tokens, rows), and its input, (tokens, columns), both of one type.
pub fn weight_grad(
    device: &Device,
    grad: &Tensor,
    x: &Tensor,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let (rows, columns) = (result.shape()[0], result.shape()[1]);
    let tokens = grad.len() / rows;
    let products = (rows * columns) as f64;
    let step = (device.call_limit().operations / (2.0 * products)) as usize;
    // How much fits a submit depends on the device's speed; whole steps of the shader make one sum of any cut.
    let step = step.clamp(STEP, tokens.max(STEP)).next_multiple_of(STEP);
    for start in (0..tokens).step_by(step) {
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            tokens: step.min(tokens - start) as u32,
            token_start: start as u32,
            accumulate: u32::from(accumulate || start > 0),
        };
        device.call(
            &KERNEL,
            Variant::typed(grad.dtype(), DType::F32),
            &params,
            &[grad, x, result],
        )?;
    }
    Ok(())
}

/// Every product of a token's gradient and input, token by token, given to `add`.
fn sums<T: Copy + Default + Send + Sync>(
    args: &Args<'_>,
    add: impl Fn(&mut T, f32, f32) + Sync,
) -> Vec<T> {
    let p: Params = args.parameters();
    let (rows, columns, tokens) = (p.rows as usize, p.columns as usize, p.tokens as usize);
    let start = p.token_start as usize;
    let grad = args.tensors[0].load(start * rows, tokens * rows);
    let x = args.tensors[1].load(start * columns, tokens * columns);
    let mut sums = vec![T::default(); rows * columns];
    sums.par_chunks_exact_mut(columns).enumerate().for_each(|(row, sums)| {
        for (grad, x) in grad.chunks_exact(rows).zip(x.chunks_exact(columns)) {
            for (sum, x) in sums.iter_mut().zip(x) {
                add(sum, grad[row], *x);
            }
        }
    });
    sums
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let pairs = sums(args, |sum: &mut (f64, f64), grad, x| {
        let product = f64::from(grad) * f64::from(x);
        *sum = (sum.0 + product, sum.1 + product.abs());
    });
    let relative = gamma(p.tokens as usize + 1);
    let mut expected = Expected::default();
    for (place, (sum, magnitude)) in pairs.into_iter().enumerate() {
        let before = if p.accumulate == 1 { args.tensors[2].get(place) } else { 0.0 };
        let value = sum + before;
        let bound = relative * (magnitude + before.abs()) + storing(DType::F32, value);
        expected.push(value, bound);
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let mut sums = sums(args, |sum: &mut f32, grad, x| *sum += grad * x);
    if p.accumulate == 1 {
        let before = outputs.load(0, 0, sums.len());
        sums.iter_mut().zip(before).for_each(|(sum, before)| *sum += before);
    }
    outputs.store(0, 0, &sums);
}

fn case(rows: usize, columns: usize, tokens: usize, note: &'static str) -> Case {
    let label = format!("rows={rows},columns={columns},tokens={tokens}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(17);
        let before = if note == ",part" { 3 } else { 0 };
        let all = before + tokens + before;
        let grad = random.values(all * rows, 1.0);
        let params = Params {
            rows: rows as u32,
            columns: columns as u32,
            tokens: tokens as u32,
            token_start: before as u32,
            accumulate: u32::from(note == ",accumulate"),
        };
        let dtype = variant.activation;
        params.case(vec![
            HostTensor::from_f32(dtype, &[all, rows], &grad),
            HostTensor::from_f32(dtype, &[all, columns], &random.values(all * columns, 1.0)),
            HostTensor::from_f32(DType::F32, &[rows, columns], &random.values(rows * columns, 1.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let note = ["", ",part", ",accumulate"][sizes.between(3, 0, 2)];
    let shape = [0, 1, 2].map(|place| sizes.between(place, 1, 150));
    case(shape[0], shape[1], shape[2], note)
}

fn cases() -> Vec<Case> {
    vec![
        case(65, 97, 67, ""),
        case(64, 129, 64, ""),
        case(129, 64, 16, ""),
        case(1, 1, 1, ""),
        case(33, 40, 20, ",part"),
        case(17, 70, 9, ",accumulate"),
        case(37, 64, 20, "").with(Poison::Infinity),
        case(37, 64, 20, "").with(Poison::NaN),
        case(37, 64, 20, "").with(Poison::Zeros),
        case(4096, 4096, 512, "").bench(),
    ]
}
