//! `quantize/gated`: a gated linear unit and rounding to integers in one pass: what [`gate/glu`](crate::kernels::gate::glu) and
//! [`quantize/activations`](super::activations) give one after the other, in f32 between them.

use super::activations::{Integers, ROUNDINGS, Rounding, aims, expected};
use crate::kernels::activation::Activation;
use crate::kernels::prelude::*;

params! {
    struct Params {
        tokens: u32,
        token_start: u32,
        columns: u32,
        activation: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "quantize/gated",
    source: include_str!("../../../shaders/quantize/gated.wgsl"),
    bindings: &[
        binding("gate", Access::Read, Element::Is(DType::F32)),
        binding("up", Access::Read, Element::Is(DType::F32)),
        binding("x_codes", Access::Write, Element::Is(DType::U32)),
        binding("x_scales", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let with = |constants| Variant { constants, ..Variant::BASELINE };
        ROUNDINGS.map(|(_, constants)| with(constants)).to_vec()
    },
    groups: |args| {
        let p: Params = args.parameters();
        let block = Rounding::of(args.variant).columns();
        let blocks = p.tokens as usize * (p.columns as usize).div_ceil(block);
        // Each of 64 lanes has four columns.
        fold(blocks.div_ceil(4 * 64 / block))
    },
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.tokens) * f64::from(p.columns);
        Cost::new(16.0 * values, (8.0 + f64::from(args.variant.constant("PLANES"))) * values)
    },
    reference,
    cases,
    random,
    ..Kernel::BASE
};

/// activation(gate) * up of some tokens as integers; both f32 (all tokens, columns), the columns a multiple of four.
pub fn gated(
    device: &Device,
    (gate, up): (&Tensor, &Tensor),
    activation: Activation,
    columns: usize,
    tokens: std::ops::Range<usize>,
    rounding: Rounding,
) -> Result<Integers> {
    assert!(columns.is_multiple_of(4), "the shader loads four columns at a time");
    let made = Integers::new(device, tokens.len(), columns, rounding)?;
    let params = Params {
        tokens: tokens.len() as u32,
        token_start: tokens.start as u32,
        columns: columns as u32,
        activation: activation.code(),
    };
    let variant = Variant { constants: rounding.constants(), ..Variant::BASELINE };
    device.call(&KERNEL, variant, &params, &[gate, up, &made.codes, &made.scales])?;
    Ok(made)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (columns, tokens) = (p.columns as usize, p.tokens as usize);
    let activation = Activation::of(p.activation);
    let part =
        |of: usize| args.tensors[of].load(p.token_start as usize * columns, tokens * columns);
    let element = |(gate, up): (f32, f32)| {
        let (activated, bound) = activation.reference(gate.into());
        let up = f64::from(up);
        let value = activated * up;
        (value, bound * up.abs() + storing(DType::F32, value))
    };
    let values: Vec<_> = part(0).into_iter().zip(part(1)).map(element).collect();
    expected(&values, columns, Rounding::of(args.variant))
}

fn case(tokens: usize, columns: usize, activation: Activation, note: &'static str) -> Case {
    let label = format!("tokens={tokens},columns={columns},{activation:?}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(37);
        let before = usize::from(note == ",part");
        let rounding = Rounding::of(variant);
        let (mut gates, mut ups) = (Vec::new(), Vec::new());
        for _ in 0..before + tokens {
            for first in (0..columns).step_by(rounding.columns()) {
                let count = rounding.columns().min(columns - first);
                for (index, aim) in aims(&mut random, count, rounding.bytes).iter().enumerate() {
                    // Below zero too, but not where next to nothing is left. The largest is passed on as it is.
                    let one = random.value();
                    let gate = if index == 0 { 120.0 } else { one.signum() * (0.5 + one.abs()) };
                    let (activated, _) = activation.reference(gate.into());
                    gates.push(gate);
                    ups.push((f64::from(*aim) / activated) as f32);
                }
            }
        }
        let params = Params {
            tokens: tokens as u32,
            token_start: before as u32,
            columns: columns as u32,
            activation: activation.code(),
        };
        let shape = [before + tokens, columns];
        let [codes, scales] = Integers::shapes(tokens, columns, rounding);
        params.case(vec![
            HostTensor::from_f32(DType::F32, &shape, &gates),
            HostTensor::from_f32(DType::F32, &shape, &ups),
            HostTensor::zeros(DType::U32, &codes),
            HostTensor::zeros(DType::F32, &scales),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let activation = Activation::ALL[sizes.between(3, 0, 2)];
    case(sizes.between(0, 1, 9), 4 * sizes.between(1, 1, 90), activation, "")
}

fn cases() -> Vec<Case> {
    let silu = Activation::Silu;
    let mut cases = vec![
        case(1, 32, silu, ""),
        case(3, 100, silu, ""),
        case(2, 64, silu, ",part"),
        case(2, 40, silu, "").with(Poison::Zeros),
        case(2, 36, silu, "").with(Poison::NaN),
        case(1, 64, silu, "").with(Poison::Infinity),
        case(1, 14_336, silu, "").bench(),
        case(8, 14_336, silu, "").bench(),
    ];
    cases.extend(Activation::ALL.map(|activation| case(2, 576, activation, "")));
    cases
}
