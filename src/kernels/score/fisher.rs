//! `score/fisher`: the diagonal of the empirical Fisher matrix, result[i] = factor grad[i]². Added up over batches with
//! their weights it is what [`Form::Second`](super::Form::Second) reads (Ma et al. 2023, LLM-Pruner, arXiv 2305.11627,
//! section 3.2).

use crate::kernels::prelude::*;

params! {
    struct Params {
        /// The first of the elements of this call, and their number.
        first: u32,
        count: u32,
        factor: f32,
        /// 1: it is added to what stands in the result.
        accumulate: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "score/fisher",
    source: include_str!("../../../shaders/score/fisher.wgsl"),
    bindings: &[
        binding("gradient", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    groups: |args| fold((args.parameters::<Params>().count as usize).div_ceil(256)),
    cost: |args| {
        let count = f64::from(args.parameters::<Params>().count);
        Cost::new(3.0 * count, 12.0 * count)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// Adds `factor` times the square of each element of `gradient` to `result`, or writes it there; f32 of one length.
pub fn fisher(
    device: &Device,
    gradient: &Tensor,
    factor: f32,
    result: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let all = gradient.len();
    assert_eq!(all, result.len(), "each gradient has its place");
    let step = ((device.call_limit().bytes / 12.0) as usize).max(256);
    for first in (0..all).step_by(step) {
        let params = Params {
            first: first as u32,
            count: step.min(all - first) as u32,
            factor,
            accumulate: u32::from(accumulate),
        };
        device.call(&KERNEL, Variant::BASELINE, &params, &[gradient, result])?;
    }
    Ok(())
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (first, end) = (p.first as usize, (p.first + p.count) as usize);
    let mut expected = Expected::exact(args.tensors[1].to_f64());
    for at in first..end {
        let before = if p.accumulate == 1 { expected.values[at] } else { 0.0 };
        let square = f64::from(p.factor) * args.tensors[0].get(at).powi(2);
        let value = before + square;
        // A square below the normal range may be taken for zero before it is multiplied.
        expected.bounds[at] = gamma(2) * (before.abs() + square.abs())
            + (1.0 + f64::from(p.factor.abs())) * DType::F32.underflow()
            + storing(DType::F32, value);
        expected.values[at] = value;
    }
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (first, count) = (p.first as usize, p.count as usize);
    let gradient = &bytemuck::cast_slice::<u32, f32>(args.tensors[0].words)[first..first + count];
    let result = &mut bytemuck::cast_slice_mut::<u32, f32>(outputs.words(0))[first..first + count];
    result.par_iter_mut().with_min_len(1 << 14).zip(gradient).for_each(|(result, gradient)| {
        let before = if p.accumulate == 1 { *result } else { 0.0 };
        *result = before + p.factor * (gradient * gradient);
    });
}

/// Takes `count` of all elements from `first` on.
fn case(all: usize, (first, count): (usize, usize), factor: f32, note: &'static str) -> Case {
    let label = format!("all={all},first={first},count={count},factor={factor}{note}");
    Case::new(label, move |_: &Variant| {
        let mut random = Random::new(52);
        let mut gradient = random.values(all, 0.7);
        // Squares far below the normal range.
        if note == ",small" {
            gradient.iter_mut().for_each(|value| *value *= 1e-21);
        }
        let params = Params {
            first: first as u32,
            count: count as u32,
            factor,
            accumulate: u32::from(note == ",accumulate"),
        };
        params.case(vec![
            HostTensor::from_f32(DType::F32, &[all], &gradient),
            HostTensor::from_f32(DType::F32, &[all], &random.values(all, 1.0)),
        ])
    })
}

fn random(sizes: &Sizes) -> Case {
    let (first, count) =
        (sizes.between(0, 0, 40), sizes.between(1, 1, 70) * sizes.between(2, 1, 70));
    let all = first + count + sizes.between(3, 0, 20);
    let note = ["", ",accumulate"][sizes.between(4, 0, 1)];
    case(all, (first, count), 0.3, note)
}

fn cases() -> Vec<Case> {
    vec![
        case(1, (0, 1), 1.0, ""),
        case(1001, (0, 1001), 0.25, ",accumulate"),
        case(1001, (300, 257), 3.0, ""),
        case(97, (0, 97), 0.1, ",small"),
        case(5, (0, 5), 0.5, "").with(Poison::NegativeInfinity),
        case(5, (0, 5), 0.5, "").with(Poison::NaN),
        case(4096 * 8192, (0, 4096 * 8192), 0.25, ",accumulate").bench(),
    ]
}
