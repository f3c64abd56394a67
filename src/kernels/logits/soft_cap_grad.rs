//! `logits/soft_cap_grad`: the gradient of [`logits/soft_cap`](super::soft_cap), in place: result = result (1 - (capped /
//! cap)^2).

use super::soft_cap::Params;
use crate::kernels::activation;
use crate::kernels::elementwise;
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/soft_cap_grad",
    source: include_str!("../../../shaders/logits/soft_cap_grad.wgsl"),
    bindings: &[
        binding("capped", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    cost: |args| elementwise::cost(args, 4.0, 1),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// Turns `grad`, the gradient at `capped` logits, into that at the logits before their soft cap, in place; both f32, of one
/// shape.
pub fn soft_cap_grad(device: &Device, capped: &Tensor, grad: &Tensor, cap: f32) -> Result<()> {
    let params = Params { count: capped.len() as u32, cap };
    device.call(&KERNEL, Variant::BASELINE, &params, &[capped, grad])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (capped, grad) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let element = |(y, grad): (&f64, &f64)| {
        let (slope, bound) = activation::soft_cap_slope_reference(*y, 0.0, f64::from(p.cap));
        let value = grad * slope;
        (value, grad.abs() * bound + storing(DType::F32, value))
    };
    let (values, bounds) = capped.par_iter().zip(&grad).map(element).unzip();
    vec![Expected { values, bounds }]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let grad: &mut [f32] = bytemuck::cast_slice_mut(outputs.words(0));
    grad.par_iter_mut()
        .with_min_len(1 << 12)
        .zip(&args.tensors[0].to_f32())
        .for_each(|(grad, y)| *grad *= 1.0 - (y / p.cap) * (y / p.cap));
}

fn case(count: usize, cap: f32, note: &'static str) -> Case {
    Case::new(format!("count={count},cap={cap}{note}"), move |_: &Variant| {
        let mut random = Random::new(38);
        let mut capped = random.values(count, cap);
        if note == ",saturated" {
            capped.fill(cap);
        }
        let params = Params { count: count as u32, cap };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[count], &capped),
            HostTensor::from_f32(DType::F32, &[count], &random.values(count, 1.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(elementwise::count(sizes), [1.0, 30.0, 50.0][sizes.between(3, 0, 2)], "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 30.0, ""),
        case(1001, 30.0, ""),
        case(64, 50.0, "").with(Poison::Zeros),
        case(66, 30.0, ",saturated"),
        case(7, 30.0, "").with(Poison::NaN),
        case(1_050_001, 30.0, ""),
        case(128 * 262_144, 30.0, "").bench(),
    ]
}
