//! `score/maxima`: the largest magnitude of each channel of activations, result[c] = max_t |x[t, c]|: what SmoothQuant divides channels
//! by (Xiao et al. 2022, arXiv 2211.10438, equation 4). NaN where one is NaN. Nothing is rounded.

use super::columns::COLUMNS;
use super::element::{SUMMED_ROWS, collected};
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        columns: u32,
        /// The first of the tokens that this call looks at.
        token_start: u32,
        /// 1: what stands in the result counts too.
        accumulate: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "score/maxima",
    source: include_str!("../../../shaders/score/maxima.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    variants: || [DType::F32, DType::F16].map(|dtype| Variant::typed(dtype, DType::F32)).into(),
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

/// Writes the largest magnitude of each column of `x`, f32 or f16 (tokens, columns), to `result`, f32 (columns); with `accumulate`
/// of those and of what stands there.
pub fn maxima(device: &Device, x: &Tensor, result: &Tensor, accumulate: bool) -> Result<()> {
    let tokens = x.len() / result.len();
    for start in (0..tokens).step_by(SUMMED_ROWS) {
        let params = Params {
            tokens: SUMMED_ROWS.min(tokens - start) as u32,
            columns: result.len() as u32,
            token_start: start as u32,
            accumulate: u32::from(accumulate || start > 0),
        };
        device.call(&KERNEL, Variant::typed(x.dtype(), DType::F32), &params, &[x, result])?;
    }
    Ok(())
}

/// The larger of two magnitudes; NaN beside a NaN.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, start) = (p.columns as usize, p.token_start as usize);
    let column = |column: usize| {
        let mut largest = if p.accumulate == 1 { args.tensors[1].get(column).abs() } else { 0.0 };
        for token in start..start + p.tokens as usize {
            largest = larger(largest, args.tensors[0].get(token * columns + column).abs());
        }
        (largest, 0.0)
    };
    collected((0..columns).into_par_iter().map(column).collect())
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let x = args.tensors[0].load(p.token_start as usize * columns, tokens * columns);
    let mut largest =
        if p.accumulate == 1 { outputs.load(0, 0, columns) } else { vec![0.0; columns] };
    largest.iter_mut().for_each(|value| *value = value.abs());
    for line in x.chunks_exact(columns) {
        for (largest, value) in largest.iter_mut().zip(line) {
            *largest = larger(f64::from(*largest), f64::from(value.abs())) as f32;
        }
    }
    outputs.store(0, 0, &largest);
}

/// Of all tokens `count` from `start` on.
fn case(
    (tokens, columns): (usize, usize),
    (start, count): (usize, usize),
    note: &'static str,
) -> Case {
    let label = format!("tokens={tokens},columns={columns},start={start},count={count}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(54);
        let x = random.values(tokens * columns, 3.0);
        let params = Params {
            tokens: count as u32,
            columns: columns as u32,
            token_start: start as u32,
            accumulate: u32::from(note == ",accumulate"),
        };
        // Some are larger than all that comes, of either sign.
        let before = random.values(columns, 4.0);
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
        case((5, 40), (0, 5), "").with(Poison::Infinity),
        case((5, 40), (0, 5), "").with(Poison::NaN),
        case((4096, 8192), (0, 4096), "").bench(),
    ]
}
