//! `gate/activate_grad`: the gradient of [`gate/activate`](super::activate): grad * activation'(x).

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
    name: "gate/activate_grad",
    source: include_str!("../../../shaders/gate/activate_grad.wgsl"),
    bindings: &[
        binding("x", Access::Read, Element::Activation),
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: elementwise::variants,
    cost: |args| elementwise::cost(args, 12.0, 0),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// The gradient of `x`, in type `output` (its own, or f16), from that of activation(x) in f32, of one shape.
pub fn activate_grad(
    device: &Device,
    x: &Tensor,
    grad: &Tensor,
    activation: Activation,
    output: DType,
) -> Result<Tensor> {
    let result = device.allocate(output, x.shape(), "a gradient")?;
    let params = Params { count: x.len() as u32, activation: activation.code() };
    device.call(&KERNEL, Variant::typed(x.dtype(), output), &params, &[x, grad, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let (x, grad) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let mut expected = Expected::default();
    for (x, grad) in x.iter().zip(&grad) {
        let [_, (slope, bound)] = activation.slope_reference(*x);
        let value = grad * slope;
        expected.push(value, grad.abs() * bound + storing(args.variant.output, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let activation = Activation::of(p.activation);
    let (mut x, grad) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    x.par_iter_mut()
        .with_min_len(1 << 12)
        .zip(&grad)
        .for_each(|(x, grad)| *x = grad * activation.value_and_slope(*x).1);
    outputs.store(0, 0, &x);
}

fn case(count: usize, scale: f32, activation: Activation) -> Case {
    let label = format!("count={count},scale={scale},{activation:?}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(33);
        let x = random.values(count, scale);
        let grad = random.values(count, 1.0);
        let dtype = variant.activation;
        Params { count: count as u32, activation: activation.code() }.case(vec![
            HostTensor::from_f32(dtype, &[count], &x),
            HostTensor::from_f32(DType::F32, &[count], &grad),
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
            case(3, 1.0, activation).poisoned(1, Poison::Infinity),
            case(3, 1.0, activation).with(Poison::NaN),
            case(2048 * 14_336, 2.0, activation).bench(),
        ]);
    }
    let f32_only = |variant: &Variant| variant.activation == DType::F32;
    cases.push(case(1_050_001, 2.0, Activation::Silu).only(f32_only));
    cases
}
