//! `gate/glu`: a gated linear unit (Shazeer 2020, arXiv 2002.05202): result = activation(gate) * up.

use half::f16;

use crate::kernels::activation::Activation;
use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        activation: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "gate/glu",
    source: include_str!("../../../shaders/gate/glu.wgsl"),
    bindings: &[
        binding("gate", Access::Read, Element::Activation),
        binding("up", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: elementwise::variants,
    cost: |args| elementwise::cost(args, 8.0, 0),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// activation(gate) * up, element by element, in type `output`: that of the two, or f16.
pub fn glu(
    device: &Device,
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    output: DType,
) -> Result<Tensor> {
    let result = device.allocate(output, gate.shape(), "gated activations")?;
    let params = Params { count: gate.len() as u32, activation: activation.code() };
    device.call(&KERNEL, Variant::typed(gate.dtype(), output), &params, &[gate, up, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let (gate, up) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let element = |(gate, up): (&f64, &f64)| {
        let (activated, bound) = activation.reference(*gate);
        let value = activated * up;
        (value, bound * up.abs() + storing(args.variant.output, value))
    };
    let (values, bounds) = gate.par_iter().zip(&up).map(element).unzip();
    vec![Expected { values, bounds }]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let (mut gate, up) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    gate.par_iter_mut()
        .with_min_len(1 << 12)
        .zip(&up)
        .for_each(|(gate, up)| *gate = activation.value(*gate) * up);
    outputs.store(0, 0, &gate);
}

fn case(count: usize, scale: f32, activation: Activation) -> Case {
    let label = format!("count={count},scale={scale},{activation:?}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(7);
        let gate = random.values(count, scale);
        let dtype = variant.activation;
        Params { count: count as u32, activation: activation.code() }.case(vec![
            HostTensor::from_f32(dtype, &[count], &gate),
            HostTensor::from_f32(dtype, &[count], &random.values(count, 2.0)),
            HostTensor::zeros(variant.output, &[count]),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        elementwise::count(sizes),
        [0.1, 4.0, 80.0][sizes.between(2, 0, 2)],
        Activation::ALL[sizes.between(3, 0, 2)],
    )
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for activation in Activation::ALL {
        cases.extend([
            case(1, 1.0, activation),
            case(1001, 4.0, activation),
            case(254, 80.0, activation),
            case(255, 80.0, activation),
            case(64, 1.0, activation).with(Poison::Zeros),
            case(3, 1.0, activation).with(Poison::Infinity),
            case(3, 1.0, activation).with(Poison::NaN),
            case(2048 * 14_336, 2.0, activation).bench(),
            every_half(activation),
        ]);
    }
    let f32_only = |variant: &Variant| variant.activation == DType::F32;
    cases.push(case(1_050_001, 2.0, Activation::Silu).only(f32_only));
    cases
}

/// Every f16 there is, NaN and infinities among them.
fn every_half(activation: Activation) -> Case {
    let count = 1 << 16;
    Case::new(format!("every f16,{activation:?}"), move |variant| {
        let halves = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
        let halves: Vec<f32> = halves.collect();
        let params = Params { count: count as u32, activation: activation.code() };
        params.case(vec![
            HostTensor::from_f32(variant.activation, &[count], &halves),
            HostTensor::from_f32(variant.activation, &[count], &vec![1.0; count]),
            HostTensor::zeros(variant.output, &[count]),
        ])
    })
}
