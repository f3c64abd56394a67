//! `mask/keep_groups`: a weight where its score is among the N largest of its group of M consecutive ones, and 0 elsewhere: N:M
//! masks (Mishra et al. 2021, arXiv 2104.08378, section 3) that are learned by scores, as in [`keep_runs`](super::keep_runs).

use super::keep_runs::{NOTES, mask, masked, tensors};
use crate::kernels::prelude::*;

params! {
    struct Params {
        count: u32,
        /// Whole groups: count is a multiple of it.
        group: u32,
        keep: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "mask/keep_groups",
    source: include_str!("../../../shaders/mask/keep_groups.wgsl"),
    bindings: &[
        binding("scores", Access::Read, Element::Is(DType::F32)),
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant::typed(DType::F32, DType::F16)],
    groups: |args| fold(args.tensors[0].len().div_ceil(256)),
    cost: |args| {
        let p: Params = args.parameters();
        let values = f64::from(p.count);
        let result = args.tensors[2].dtype.size() as f64;
        Cost::new(6.0 * f64::from(p.group) * values, (8.0 + result) * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For `scores` and `weight`, f32 of one shape, whose elements are groups of M: `weight` at the N largest scores of each group
/// and 0 elsewhere, in type `output`, f32 or f16, and of `weight`'s shape. Of equal scores, as the two zeros are, the lower
/// index goes first; NaN is below every other.
pub fn keep_groups(
    device: &Device,
    (scores, weight): (&Tensor, &Tensor),
    (keep, group): (usize, usize),
    output: DType,
) -> Result<Tensor> {
    assert_eq!(scores.len(), weight.len(), "a score for each weight");
    assert!(group > 0 && weight.len().is_multiple_of(group), "whole groups of {group}");
    assert!((1..=group).contains(&keep), "{keep} of {group}");
    let result = device.allocate(output, weight.shape(), "a masked weight")?;
    let params = Params { count: weight.len() as u32, group: group as u32, keep: keep as u32 };
    let variant = Variant::typed(DType::F32, output);
    device.call(&KERNEL, variant, &params, &[scores, weight, &result])?;
    Ok(result)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    masked(args, p.group as usize, p.keep as usize)
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    mask(args, p.group as usize, p.keep as usize, outputs);
}

fn case(groups: usize, (keep, group): (usize, usize), note: &'static str) -> Case {
    let label = format!("groups={groups},keep={keep},of={group}{note}");
    Case::new(label, move |variant: &Variant| {
        let count = groups * group;
        let params = Params { count: count as u32, group: group as u32, keep: keep as u32 };
        params.case(tensors(count, note, variant.output))
    })
}

fn random(sizes: &Sizes) -> Case {
    let group = sizes.between(1, 1, 40);
    let groups = sizes.between(0, 1, 300);
    case(groups, (sizes.between(2, 1, group), group), NOTES[sizes.between(3, 0, 4)])
}

fn cases() -> Vec<Case> {
    vec![
        case(401, (2, 4), ""),
        case(1, (1, 1), ""),
        case(333, (1, 3), ""),
        case(64, (8, 16), ",rounded"),
        case(40, (4, 8), ",equal"),
        case(40, (5, 8), ",zeros"),
        case(40, (2, 4), ",nan"),
        case(33, (4, 4), ""),
        case(50, (2, 4), "").poisoned(1, Poison::Infinity),
        case(50, (2, 4), "").poisoned(1, Poison::NaN),
        case(1_050_001, (2, 4), "").only(|variant| variant.output == DType::F32),
        case(1024 * 4096, (2, 4), "").bench(),
    ]
}
