//! `gate/activate`: the activation of a feed-forward without a gate: result = activation(x).

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
    name: "gate/activate",
    source: include_str!("../../../shaders/gate/activate.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: elementwise::variants,
    cost: |args| elementwise::cost(args, 7.0, 0),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// activation(x), element by element, in type `output`: its own, or f16.
pub fn activate(
    device: &Device,
    x: &Tensor,
    activation: Activation,
    output: DType,
) -> Result<Tensor> {
    let result = device.allocate(output, x.shape(), "activations")?;
    let params = Params { count: x.len() as u32, activation: activation.code() };
    device.call(&KERNEL, Variant::typed(x.dtype(), output), &params, &[x, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let element = |x: &f64| {
        let (value, bound) = activation.reference(*x);
        (value, bound + storing(args.variant.output, value))
    };
    let (values, bounds) = args.tensors[0].to_f64().par_iter().map(element).unzip();
    vec![Expected { values, bounds }]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let mut x = args.tensors[0].to_f32();
    x.par_iter_mut().with_min_len(1 << 12).for_each(|x| *x = activation.value(*x));
    outputs.store(0, 0, &x);
}

fn case(count: usize, scale: f32, activation: Activation) -> Case {
    let label = format!("count={count},scale={scale},{activation:?}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(7);
        let x = random.values(count, scale);
        let dtype = variant.activation;
        Params { count: count as u32, activation: activation.code() }.case(vec![
            HostTensor::from_f32(dtype, &[count], &x),
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
            HostTensor::zeros(variant.output, &[count]),
        ])
    })
}
