//! `score/norms`: sums of squares of activations by channel, result[c] = sum_t x[t, c]²: before its root the norm by which
//! Wanda weighs a weight's columns (Sun et al. 2023, arXiv 2306.11695, section 3). Added in a fixed order.

use super::columns::COLUMNS;
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        columns: u32,
        /// The first of the tokens that this call sums.
        token_start: u32,
        /// 1: it is added to what stands in the result.
        accumulate: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "score/norms",
    source: include_str!("../../../shaders/score/norms.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || vec![Variant::BASELINE, Variant::typed(DType::F16, DType::F32)],
    groups: |args| fold((args.parameters::<Params>().columns as usize).div_ceil(COLUMNS)),
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.tokens) * f64::from(p.columns);
        Cost::new(2.0 * values, values * args.tensors[0].dtype.size() as f64)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds the sum of squares of each column of `x`, f32 or f16 (tokens, columns), to `result`, f32 (columns), or writes it
/// there.
pub fn norms(device: &Device, x: &Tensor, result: &Tensor, accumulate: bool) -> Result<()> {
    let columns = result.len();
    let tokens = x.len() / columns;
    let step = super::element::SUMMED_ROWS;
    for start in (0..tokens).step_by(step) {
        let params = Params {
            tokens: step.min(tokens - start) as u32,
            columns: columns as u32,
            token_start: start as u32,
            accumulate: u32::from(accumulate || start > 0),
        };
        device.call(&KERNEL, Variant::typed(x.dtype(), DType::F32), &params, &[x, result])?;
    }
    Ok(())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let start = p.token_start as usize;
    let column = |column: usize| {
        let before = if p.accumulate == 1 { args.tensors[1].get(column) } else { 0.0 };
        let square = |token: usize| args.tensors[0].get(token * columns + column).powi(2);
        let sum: f64 = (start..start + tokens).map(square).sum();
        let value = sum + before;
        let bound = gamma(tokens + 2) * (sum + before.abs())
            + tokens as f64 * DType::F32.underflow()
            + storing(DType::F32, value);
        (value, bound)
    };
    super::element::collected((0..columns).into_par_iter().map(column).collect())
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let x = args.tensors[0].load(p.token_start as usize * columns, tokens * columns);
    let mut sums = if p.accumulate == 1 { outputs.load(0, 0, columns) } else { vec![0.0; columns] };
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(index, sums)| {
        let mut totals = vec![0.0; sums.len()];
        for line in x.chunks_exact(columns) {
            for (total, value) in totals.iter_mut().zip(&line[index * COLUMNS..]) {
                *total += f64::from(value * value);
            }
        }
        for (sum, total) in sums.iter_mut().zip(totals) {
            *sum += total as f32;
        }
    });
    outputs.store(0, 0, &sums);
}

/// Sums `count` of all tokens from `start` on.
fn case(
    (tokens, columns): (usize, usize),
    (start, count): (usize, usize),
    note: &'static str,
) -> Case {
    let label = format!("tokens={tokens},columns={columns},start={start},count={count}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(53);
        let mut x = random.values(tokens * columns, 3.0);
        // Their squares are beyond f16.
        if note == ",large" {
            x.iter_mut().for_each(|value| *value *= 2e4);
        }
        let params = Params {
            tokens: count as u32,
            columns: columns as u32,
            token_start: start as u32,
            accumulate: u32::from(note == ",accumulate"),
        };
        let before = random.values(columns, 10.0);
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[tokens, columns], &x),
            HostTensor::from_f32(DType::F32, &[columns], &before),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (start, count) = (sizes.between(0, 0, 9), sizes.between(1, 1, 200));
    let tokens = start + count + sizes.between(2, 0, 5);
    let note = ["", ",accumulate"][sizes.between(3, 0, 1)];
    case((tokens, sizes.between(4, 1, 300)), (start, count), note)
}

fn cases() -> Vec<Case> {
    vec![
        case((13, 97), (0, 13), ""),
        case((1, 1), (0, 1), ""),
        case((7, 64), (0, 7), ",accumulate"),
        case((1021, 33), (0, 1021), ""),
        case((29, 41), (4, 18), ",accumulate"),
        case((5, 40), (0, 5), "").with(Poison::Zeros),
        case((5, 40), (0, 5), ",large"),
        case((5, 40), (0, 5), "").with(Poison::NegativeInfinity),
        case((5, 40), (0, 5), "").with(Poison::NaN),
        case((4096, 8192), (0, 4096), "").bench(),
    ]
}
