//! `mask/score_grad`: the gradient of a mask's scores from that of the masked weights, g = g w: the mask's step is taken for a slope
//! of 1 (the straight-through estimator, as Ramanujan et al. 2020, arXiv 1911.13299, equation 5, has it), so that scores of
//! weights that are out go on learning.

use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "mask/score_grad",
    source: include_str!("../../../shaders/mask/score_grad.wgsl"),
    bindings: &[
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    cost: |args| elementwise::cost(args, 1.0, 1),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// Multiplies `gradient`, f32, by `weight`, f32 of as many elements, in place.
pub fn score_grad(device: &Device, weight: &Tensor, gradient: &Tensor) -> Result<()> {
    assert_eq!(weight.len(), gradient.len(), "a gradient for each weight");
    let params = Params { count: weight.len() as u32 };
    device.call(&KERNEL, Variant::BASELINE, &params, &[weight, gradient])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let mut expected = Expected::default();
    for index in 0..args.tensors[0].len() {
        let value = args.tensors[0].get(index) * args.tensors[1].get(index);
        expected.push(value, storing(DType::F32, value));
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let weight = args.tensors[0].to_f32();
    let mut gradient = outputs.load(0, 0, weight.len());
    gradient.iter_mut().zip(&weight).for_each(|(gradient, weight)| *gradient *= weight);
    outputs.store(0, 0, &gradient);
}

fn case(count: usize) -> Case {
    Case::new(format!("count={count}"), move |_: &Variant| {
        let mut random = Random::new(82);
        let weight = random.values(count, 2.0);
        Params { count: count as u32 }.case(vec![
            HostTensor::from_f32(DType::F32, &[count], &weight),
            HostTensor::from_f32(DType::F32, &[count], &random.values(count, 3.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(elementwise::count(sizes))
}

fn cases() -> Vec<Case> {
    vec![
        case(1),
        case(1001),
        case(1002).with(Poison::Zeros),
        case(5).with(Poison::Infinity),
        case(5).with(Poison::NaN),
        case(2048 * 4096).bench(),
    ]
}
