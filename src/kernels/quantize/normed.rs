//! `quantize/normed`: root-mean-square normalization and rounding to integers in one pass over the residual stream: what
//! [`norm/rms`](crate::kernels::norm::rms) and [`quantize/activations`](super::activations) give one after the other.

use super::activations::{Integers, ROUNDINGS, Rounding, words};
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        columns: u32,
        epsilon: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/normed",
    source: include_str!("../../../shaders/quantize/normed.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Is(DType::F32)),
        binding("gain", Access::Read, Element::Is(DType::F32)),
        binding("x_codes", Access::Write, Element::Is(DType::U32)),
        binding("x_scales", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 128.0)],
    variants: || {
        let with = |subgroups| {
            ROUNDINGS.map(|(_, constants)| Variant { constants, subgroups, ..Variant::BASELINE })
        };
        [with(false), with(true)].concat()
    },
    groups: |args| fold(args.parameters::<Params>().tokens as usize),
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.tokens) * f64::from(p.columns);
        Cost::new(12.0 * values, (4.0 + f64::from(args.variant.constant("PLANES"))) * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// Tokens of `x`, f32 (all tokens, columns), normalized and as integers. Columns are a multiple of four.
pub fn normed(
    device: &Device,
    x: &Tensor,
    gain: &Tensor,
    epsilon: f32,
    tokens: std::ops::Range<usize>,
    rounding: Rounding,
) -> Result<Integers> {
    let (count, columns) = (tokens.len(), gain.len());
    assert!(columns.is_multiple_of(4), "the shader loads four columns at a time");
    let made = Integers::new(device, count, columns, rounding)?;
    let params = Params {
        tokens: count as u32,
        token_start: tokens.start as u32,
        columns: columns as u32,
        epsilon,
    };
    device.call(
        &KERNEL,
        Variant {
            constants: rounding.constants(),
            subgroups: device.capabilities().subgroups,
            ..Variant::BASELINE
        },
        &params,
        &[x, gain, &made.codes, &made.scales],
    )?;
    Ok(made)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let x = args.tensors[0].load(p.token_start as usize * columns, tokens * columns);
    let gain = args.tensors[1].to_f32();
    let products: Vec<f32> = x
        .chunks_exact(columns)
        .flat_map(|line| line.iter().zip(&gain).map(|(x, gain)| x * gain))
        .collect();
    let (words, scales) = words(&products, columns, Rounding::of(args.variant));
    // As of norm/rms, and one product.
    let relative = gamma(columns + 2) / 2.0 + 12.0 * U;
    let mut expected = Expected::default();
    let of_token = 2 * columns.div_ceil(Rounding::of(args.variant).columns());
    for (line, scales) in x.chunks_exact(columns).zip(scales.chunks_exact(of_token)) {
        let squares = line.iter().map(|v| f64::from(*v) * f64::from(*v));
        let mean = squares.sum::<f64>() / columns as f64;
        let divided = 1.0 / (mean + f64::from(p.epsilon)).sqrt();
        for scale in scales {
            let value = f64::from(*scale) * divided;
            expected.push(value, relative * value.abs() + storing(DType::F32, value));
        }
    }
    let words = words.into_iter().map(f64::from).collect();
    vec![Expected::exact(words), expected]
}

fn case(tokens: usize, columns: usize, note: &'static str) -> Case {
    let label = format!("tokens={tokens},columns={columns}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(29);
        let before = usize::from(note == ",part");
        let mut x = Vec::new();
        for _ in 0..before + tokens {
            let size = f32::powi(2.0, random.below(12) as i32 - 6);
            x.extend(random.values(columns, size));
        }
        let params = Params {
            tokens: tokens as u32,
            token_start: before as u32,
            columns: columns as u32,
            // Large beside the squares of some tokens, so that leaving it out shows.
            epsilon: 1e-3,
        };
        let [codes, scales] = Integers::shapes(tokens, columns, Rounding::of(variant));
        let gain = random.values(columns, 1.5);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[before + tokens, columns], &x),
            HostTensor::from_f32(DType::F32, &[columns], &gain),
            HostTensor::zeros(DType::U32, &codes),
            HostTensor::zeros(DType::F32, &scales),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(sizes.between(0, 1, 20), 4 * sizes.between(1, 1, 90), "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 32, ""),
        case(3, 100, ""),
        case(2, 576, ""),
        // More blocks than invocations.
        case(1, 4 * 1057, ""),
        case(2, 64, ",part"),
        case(2, 40, "").with(Poison::Zeros),
        case(2, 36, "").with(Poison::NaN),
        case(1, 64, "").with(Poison::NegativeInfinity),
        case(1, 4096, "").bench(),
    ]
}
