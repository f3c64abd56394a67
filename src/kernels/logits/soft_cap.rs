//! `logits/soft_cap`: the soft cap of logits (Gemma 2, arXiv 2408.00118), in place: result = cap tanh(result / cap).

use crate::kernels::activation;
use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        cap: f32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "logits/soft_cap",
    source: include_str!("../../../shaders/logits/soft_cap.wgsl"),
    bindings: &[binding("result", Access::ReadWrite, Element::Is(DType::F32))],
    parameters: Params::LAYOUT,
    cost: |args| elementwise::cost(args, 16.0, 1),
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// Caps `logits`, f32 of any shape, in place. `cap` is above zero.
pub fn soft_cap(device: &Device, logits: &Tensor, cap: f32) -> Result<()> {
    let params = Params { count: logits.len() as u32, cap };
    device.call(&KERNEL, Variant::BASELINE, &params, &[logits])
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let element = |x: &f64| {
        let (value, bound) = activation::soft_cap_reference(*x, 0.0, f64::from(p.cap));
        (value, bound + storing(DType::F32, value))
    };
    let (values, bounds) = args.tensors[0].to_f64().par_iter().map(element).unzip();
    vec![Expected { values, bounds }]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let logits: &mut [f32] = bytemuck::cast_slice_mut(outputs.words(0));
    logits[..p.count as usize]
        .par_iter_mut()
        .with_min_len(1 << 12)
        .for_each(|x| *x = activation::soft_cap(*x, p.cap));
}

fn case(count: usize, scale: f32, cap: f32) -> Case {
    Case::new(format!("count={count},scale={scale},cap={cap}"), move |_: &Variant| {
        let logits = Random::new(37).values(count, scale);
        let count = count as u32;
        Params { count, cap }.case(vec![HostTensor::from_f32(DType::F32, &[logits.len()], &logits)])
    })
}

fn random(sizes: &Sizes) -> Case {
    case(
        elementwise::count(sizes),
        [0.1, 4.0, 1e3][sizes.between(2, 0, 2)],
        [1.0, 30.0, 50.0][sizes.between(3, 0, 2)],
    )
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 1.0, 30.0),
        case(1001, 40.0, 30.0),
        case(254, 1e-3, 50.0),
        case(255, 1e4, 50.0),
        case(64, 1.0, 30.0).with(Poison::Zeros),
        case(3, 1.0, 30.0).with(Poison::Infinity),
        case(7, 1.0, 30.0).with(Poison::NaN),
        case(1_050_001, 60.0, 30.0),
        case(128 * 262_144, 20.0, 30.0).bench(),
    ]
}
