//! `mask/keep_runs`: a weight where its score is among the `keep` largest of its run, a row or a whole matrix, and 0 elsewhere:
//! what a model computes with whose mask is learned by scores (Ramanujan et al. 2020, arXiv 1911.13299, equation 4). The
//! largest are found as in [`select/top_k`](crate::kernels::select::top_k).

use crate::kernels::prelude::*;

params! {
    struct Params {
        runs: u32,
        length: u32,
        /// From 1 to length.
        keep: u32,
    }
}

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "mask/keep_runs",
    source: include_str!("../../../shaders/mask/keep_runs.wgsl"),
    bindings: &[
        binding("scores", Access::Read, Element::Is(DType::F32)),
        binding("weight", Access::Read, Element::Is(DType::F32)),
        binding("result", Access::Write, Element::Output),
    ],
    parameters: Params::LAYOUT,
    // As many as the histogram has bins.
    overrides: &[("WORKGROUP", 256.0)],
    variants: || vec![Variant::BASELINE, Variant::typed(DType::F32, DType::F16)],
    groups: |args| fold(args.parameters::<Params>().runs as usize),
    cost: |args| {
        let p: Params = args.parameters();
        let values = args.tensors[0].len() as f64;
        // A few workgroups keep the rest of a device waiting.
        let waits = (1000.0 / f64::from(p.runs.max(1))).max(1.0);
        Cost::new(60.0 * waits * values, 34.0 * values)
    },
    reference,
    cpu: Some(cpu),
    cases,
    random,
    ..Kernel::BASE
};

/// For `scores` and `weight`, f32 of one shape, whose elements are runs of `length`: `weight` at the `keep` largest scores of
/// each run and 0 elsewhere, in type `output`, f32 or f16, and of `weight`'s shape. Of equal scores, as the two zeros are,
/// the lower index goes first; NaN is below every other.
pub fn keep_runs(
    device: &Device,
    (scores, weight): (&Tensor, &Tensor),
    length: usize,
    keep: usize,
    output: DType,
) -> Result<Tensor> {
    assert_eq!(scores.len(), weight.len(), "a score for each weight");
    assert!(length > 0 && weight.len().is_multiple_of(length), "whole runs of {length}");
    assert!((1..=length).contains(&keep), "{keep} of {length}");
    let result = device.allocate(output, weight.shape(), "a masked weight")?;
    let runs = weight.len() / length;
    let params = Params { runs: runs as u32, length: length as u32, keep: keep as u32 };
    let variant = Variant::typed(DType::F32, output);
    device.call(&KERNEL, variant, &params, &[scores, weight, &result])?;
    Ok(result)
}

/// Whether each score is among the `keep` largest, of equals the first.
pub(super) fn largest<T: PartialOrd + Copy>(scores: &[T], keep: usize) -> Vec<bool> {
    let is_nan = |value: T| value.partial_cmp(&value).is_none();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // The sort is stable: equals stay in the order of their places.
    order.sort_by(|&a, &b| {
        let numbers = scores[b].partial_cmp(&scores[a]);
        numbers.unwrap_or_else(|| is_nan(scores[a]).cmp(&is_nan(scores[b])))
    });
    let mut kept = vec![false; scores.len()];
    order[..keep].iter().for_each(|place| kept[*place] = true);
    kept
}

/// What runs of scores leave of weights, with bounds.
pub(super) fn masked(args: &Args<'_>, length: usize, keep: usize) -> Vec<Expected> {
    let mut expected = Expected::default();
    let (scores, weight) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    for (scores, weight) in scores.chunks(length).zip(weight.chunks(length)) {
        for (kept, value) in largest(scores, keep).into_iter().zip(weight) {
            match (kept, args.variant.output) {
                (true, DType::F32) => expected.push(*value, 0.0),
                (true, output) => expected.push(*value, storing(output, *value)),
                (false, _) => expected.push(0.0, 0.0),
            }
        }
    }
    vec![expected]
}

/// The same in f32.
pub(super) fn mask(args: &Args<'_>, length: usize, keep: usize, outputs: &mut Outputs<'_>) {
    let (scores, mut weight) = (args.tensors[0].to_f32(), args.tensors[1].to_f32());
    let runs = scores.par_chunks(length).zip(weight.par_chunks_mut(length));
    runs.with_min_len(1 + (1 << 14) / length).for_each(|(scores, weight)| {
        for (kept, value) in largest(scores, keep).into_iter().zip(weight) {
            *value = if kept { *value } else { 0.0 };
        }
    });
    outputs.store(0, 0, &weight);
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    masked(args, p.length as usize, p.keep as usize)
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    mask(args, p.length as usize, p.keep as usize, outputs);
}

/// Scores and weights of a case, and a place for the result.
pub(super) fn tensors(count: usize, note: &str, output: DType) -> Vec<HostTensor> {
    let mut random = Random::new(81);
    let mut scores = random.values(count, 2.0);
    match note {
        // Few values, so that many are equal.
        ",rounded" => scores.iter_mut().for_each(|score| *score = score.round()),
        ",equal" => scores.fill(-0.5),
        ",zeros" => {
            let zeros = [0.0, -0.0];
            scores.iter_mut().for_each(|score| *score = zeros[usize::from(*score > 0.0)]);
        }
        ",nan" => scores.iter_mut().skip(1).step_by(3).for_each(|score| *score = f32::NAN),
        _ => {}
    }
    vec![
        HostTensor::from_f32(DType::F32, &[count], &scores),
        HostTensor::from_f32(DType::F32, &[count], &random.values(count, 1.0)),
        HostTensor::zeros(output, &[count]),
    ]
}

pub(super) const NOTES: [&str; 5] = ["", ",rounded", ",equal", ",zeros", ",nan"];

fn case((runs, length): (usize, usize), keep: usize, note: &'static str) -> Case {
    let label = format!("runs={runs},length={length},keep={keep}{note}");
    Case::new(label, move |variant: &Variant| {
        let params = Params { runs: runs as u32, length: length as u32, keep: keep as u32 };
        params.case(tensors(runs * length, note, variant.output))
    })
}

fn random(sizes: &Sizes) -> Case {
    let length = sizes.between(1, 1, 700);
    let keep = sizes.between(2, 1, length);
    case((sizes.between(0, 1, 40), length), keep, NOTES[sizes.between(3, 0, 4)])
}

fn cases() -> Vec<Case> {
    vec![
        case((3, 101), 50, ""),
        case((1, 1), 1, ""),
        case((4, 300), 300, ""),
        case((5, 257), 1, ""),
        case((3, 1000), 300, ",rounded"),
        case((2, 777), 100, ",equal"),
        case((3, 513), 200, ",zeros"),
        case((3, 99), 40, ",nan"),
        case((3, 99), 80, ",nan"),
        case((1, 70_001), 30_000, ""),
        case((2, 97), 48, "").poisoned(1, Poison::Infinity),
        case((2, 97), 48, "").poisoned(1, Poison::NaN),
        // More runs than one dimension has workgroups.
        case((1051, 3), 2, "").only(|variant| variant.output == DType::F32),
        case((4096, 4096), 2048, "").bench(),
    ]
}
