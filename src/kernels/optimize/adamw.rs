//! `optimize/adamw`: one step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, as `torch.optim.AdamW`
//! computes it) on one weight, with moments in f32. With g = factor gradient, at step t from 1:
//!
//! first = beta1 first + (1 - beta1) g
//! second = beta2 second + (1 - beta2) g^2
//! weight = (1 - rate decay) weight - rate / (1 - beta1^t) first / (sqrt(second) / sqrt(1 - beta2^t) + epsilon)

use super::step::{self, AdamW, Step};
use crate::kernels::elementwise;
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        step: Step,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "optimize/adamw",
    source: include_str!("../../../shaders/optimize/adamw.wgsl"),
    bindings: &[
        binding("gradient", Access::Read, Element::Is(DType::F32)),
        binding("state", Access::Read, Element::Is(DType::F32)),
        binding("weight", Access::ReadWrite, Element::Is(DType::F32)),
        binding("first", Access::ReadWrite, Element::Is(DType::F32)),
        binding("second", Access::ReadWrite, Element::Is(DType::F32)),
        binding("copied", Access::ReadWrite, Element::Output),
    ],
    parameters: Params::LAYOUT,
    variants: step::variants,
    cost: |args| {
        let values = args.tensors[0].len() as f64;
        let copied = 2.0 * f64::from(args.variant.constant("COPY"));
        Cost::new(16.0 * values, (28.0 + copied) * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..elementwise::BASE
};

/// Takes step `step`, counted from 1, on a weight, in place: `gradient`, `weight` and `moments`, the means of the gradient and
/// of its squares, are f32 of one length; the moments are zeros before the first step. `copy`, f16 of that length, gets the
/// new weight rounded.
///
/// `state` is what [`clip`](super::clip) made of the whole model's gradient: the gradient is multiplied by its factor, and
/// nothing at all changes where it is not finite.
#[expect(clippy::too_many_arguments, reason = "what a step reads and what it changes")]
pub fn adamw(
    device: &Device,
    settings: &AdamW,
    step: u64,
    gradient: &Tensor,
    state: &Tensor,
    weight: &Tensor,
    moments: (&Tensor, &Tensor),
    copy: Option<&Tensor>,
) -> Result<()> {
    let count = gradient.len();
    let lengths = [Some(weight), Some(moments.0), Some(moments.1), copy].into_iter().flatten();
    lengths.for_each(|tensor| assert_eq!(tensor.len(), count, "a gradient for each weight"));
    let copied = step::copy_or_unused(device, copy)?;
    let params = Params { count: count as u32, step: Step::new(settings, step) };
    device.call(
        &KERNEL,
        step::variant(copy.is_some()),
        &params,
        &[gradient, state, weight, moments.0, moments.1, &copied],
    )
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let mut all: Vec<Expected> =
        args.tensors[2..].iter().map(|tensor| Expected::exact(tensor.to_f64())).collect();
    if args.tensors[1].get(2) == 0.0 {
        return all;
    }
    let factor = args.tensors[1].get(1);
    for index in 0..p.count as usize {
        let [gradient, weight, first, second] =
            [0, 2, 3, 4].map(|binding| args.tensors[binding].get(index));
        let numbers = p.step.reference(gradient * factor, weight, (first, second));
        for (expected, number) in all.iter_mut().zip(numbers) {
            expected.put(index, [number]);
        }
        if args.variant.constant("COPY") == 1 {
            let (value, bound) = numbers[0];
            all[3].put(index, [(value, 1.01 * bound + storing(DType::F16, value))]);
        }
    }
    all
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let state = args.tensors[1].to_f32();
    if state[2] == 0.0 {
        return;
    }
    let gradient = args.tensors[0].to_f32();
    let [mut weight, mut first, mut second] =
        [0, 1, 2].map(|output| outputs.load(output, 0, gradient.len()));
    let moments = first.par_iter_mut().zip(&mut second);
    let places = gradient.par_iter().zip(weight.par_iter_mut()).zip(moments);
    places.with_min_len(1 << 14).for_each(|((gradient, weight), moments)| {
        p.step.take(gradient * state[1], weight, moments);
    });
    for (output, values) in [&weight, &first, &second].into_iter().enumerate() {
        outputs.store(output, 0, values);
    }
    if args.variant.constant("COPY") == 1 {
        outputs.store(3, 0, &weight);
    }
}

fn case(count: usize, number: usize, factor: f32, note: &'static str) -> Case {
    let label = format!("count={count},settings={number},factor={factor}{note}");
    Case::new(label, move |variant: &Variant| {
        let mut random = Random::new(63);
        let mut gradient = random.values(count, 2.0);
        let weight = random.values(count, 1.0);
        let mut first = random.values(count, 0.5);
        let mut second = random.values(count, 0.5);
        second.iter_mut().for_each(|value| *value = value.abs());
        match note {
            ",fresh" => [&mut first, &mut second].into_iter().for_each(|moment| moment.fill(0.0)),
            // Squares below the normal numbers of f32, and some that are nothing.
            ",tiny" => {
                gradient.iter_mut().for_each(|value| *value *= 1e-20);
                gradient.iter_mut().step_by(3).for_each(|value| *value = 0.0);
                [&mut first, &mut second].into_iter().for_each(|moment| moment.fill(0.0));
            }
            _ => {}
        }
        let (settings, t) = step::settings(number);
        let params = Params { count: count as u32, step: Step::new(&settings, t) };
        let host = |values: &[f32]| HostTensor::from_f32(DType::F32, &[count], values);
        let copied = if variant.constant("COPY") == 1 { count } else { 4 };
        params.case(vec![
            host(&gradient),
            step::state(factor, note != ",not finite"),
            host(&weight),
            host(&first),
            host(&second),
            HostTensor::from_f32(variant.output, &[copied], &random.values(copied, 1.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let factor = [1.0, 0.125, 1e-3][sizes.between(3, 0, 2)];
    case(elementwise::count(sizes), sizes.between(2, 0, 3), factor, "")
}

fn cases() -> Vec<Case> {
    vec![
        case(1, 0, 1.0, ",fresh"),
        case(1001, 0, 0.125, ",fresh"),
        case(1002, 1, 1.0, ""),
        case(1003, 2, 0.5, ""),
        case(1004, 3, 1.0, ""),
        case(300, 0, 1.0, ",tiny"),
        case(300, 2, 1.0, "").with(Poison::Zeros),
        case(301, 0, 1.0, ",not finite"),
        case(301, 0, 1.0, ",not finite").with(Poison::NaN),
        case(4096 * 4096, 0, 1.0, "").bench(),
    ]
}
