//! `gate/glu_grad`: the gradients of [`gate/glu`](super::glu) at its two factors: grad * up * activation'(gate) and grad *
//! activation(gate).

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
    name: "gate/glu_grad",
    source: include_str!("../../../shaders/gate/glu_grad.wgsl"),
    bindings: &[
        binding("gate", Access::Read, Element::Activation),
        binding("up", Access::Read, Element::Activation),
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("gate_grad", Access::Write, Element::Output),
        binding("up_grad", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: elementwise::variants,
    cost: |args| elementwise::cost(args, 14.0, 0),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// The gradients of `gate` and `up`, in type `output` (theirs, or f16), from those of activation(gate) * up in f32;
/// all of one shape.
pub fn glu_grad(
    device: &Device,
    gate: &Tensor,
    up: &Tensor,
    grad: &Tensor,
    activation: Activation,
    output: DType,
) -> Result<(Tensor, Tensor)> {
    let new = || device.allocate(output, gate.shape(), "a gradient");
    let (gate_grad, up_grad) = (new()?, new()?);
    let params = Params { count: gate.len() as u32, activation: activation.code() };
    device.call(
        &KERNEL,
        Variant::typed(gate.dtype(), output),
        &params,
        &[gate, up, grad, &gate_grad, &up_grad],
    )?;
    Ok((gate_grad, up_grad))
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let (gate, up) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let grad = args.tensors[2].to_f64();
    let dtype = args.variant.output;
    let (mut of_gate, mut of_up) = (Expected::default(), Expected::default());
    for ((gate, up), grad) in gate.iter().zip(&up).zip(&grad) {
        let [(activated, bound), (slope, slope_bound)] = activation.slope_reference(*gate);
        let value = grad * up * slope;
        of_gate.push(value, (grad * up).abs() * slope_bound + storing(dtype, value));
        let value = grad * activated;
        of_up.push(value, grad.abs() * bound + storing(dtype, value));
    }
    vec![of_gate, of_up]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let (mut gate, mut up) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let grad = args.tensors[2].to_f32();
    gate.par_iter_mut().with_min_len(1 << 12).zip(&mut up).zip(&grad).for_each(
        |((gate, up), grad)| {
            let (activated, slope) = activation.value_and_slope(*gate);
            *gate = grad * *up * slope;
            *up = grad * activated;
        },
    );
    outputs.store(0, 0, &gate);
    outputs.store(1, 0, &up);
}

fn case(count: usize, scale: f32, activation: Activation) -> Case {
    let label = format!("count={count},scale={scale},{activation:?}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(33);
        let gate = random.values(count, scale);
        let grad = random.values(count, 1.0);
        let dtype = variant.activation;
        Params { count: count as u32, activation: activation.code() }.case(vec![
            HostTensor::from_f32(dtype, &[count], &gate),
            HostTensor::from_f32(dtype, &[count], &random.values(count, 2.0)),
            HostTensor::from_f32(DType::F32, &[count], &grad),
            HostTensor::zeros(variant.output, &[count]),
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
            case(3, 1.0, activation).poisoned(2, Poison::Infinity),
            case(3, 1.0, activation).with(Poison::NaN),
            case(2048 * 14_336, 2.0, activation).bench(),
        ]);
    }
    let f32_only = |variant: &Variant| variant.activation == DType::F32;
    cases.push(case(1_050_001, 2.0, Activation::Silu).only(f32_only));
    cases
}
