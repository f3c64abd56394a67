//! `attention/bias_grad`: the gradient of a bias of scores by distance: result[b, h] += the sum of the gradients of all scores of
//! head h whose key's distance is in bucket b.

use super::stored::{LARGE, Params, Row, SHAPES, Shape, cost, random_shape};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/bias_grad",
    source: include_str!("../../../shaders/attention/bias_grad.wgsl"),
    bindings: &[
        binding("grad", Access::Read, Element::Is(DType::F32)),
        binding("ends", Access::Read, Element::Is(DType::U32)),
        binding("spans", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::ReadWrite, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || [false, true].map(|on| Variant::BASELINE.with_subgroups(on)).to_vec(),
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.buckets as usize * p.heads as usize)
    },
    cost: |args| cost(args, 1.0 / f64::from(args.parameters::<Params>().head_dim), 1.0),
    reference,
    cases,
    random: |sizes| {
        let shape = random_shape(sizes);
        case(if shape.buckets == 0 { shape.biased(6) } else { shape })
    },
    ..Kernel::BASE
};

/// Adds the gradients of some tokens' scores to the table's. `tensors`: the scores' gradients, ends, the distances of each bucket
/// and the result.
pub(super) fn bias_grad(device: &Device, params: Params, tensors: [&Tensor; 4]) -> Result<()> {
    let variant = Variant::BASELINE.with_subgroups(device.capabilities().subgroups);
    device.call(&KERNEL, variant, &params, &tensors)
}

fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (grad, ends, spans) =
        (args.tensors[0].to_f64(), args.tensors[1].u32s(), args.tensors[2].u32s());
    let before = args.tensors[3].to_f64();
    let heads = p.heads as usize;
    let mut sums = vec![(0.0f64, 0.0f64, 0usize); before.len()];
    for index in 0..p.tokens as usize * heads {
        let row = Row::new(&p, ends, index);
        for key in 0..row.keys {
            let step = row.step(&p, key) as u32;
            let in_bucket =
                |bucket: &usize| (spans[2 * bucket]..=spans[2 * bucket + 1]).contains(&step);
            let buckets = 0..p.buckets as usize;
            if let Some(bucket) = buckets.into_iter().find(in_bucket) {
                let (sum, magnitude, terms) = &mut sums[bucket * heads + row.head];
                *sum += grad[row.line + key];
                *magnitude += grad[row.line + key].abs();
                *terms += 1;
            }
        }
    }
    let mut expected = Expected::default();
    for (before, (sum, magnitude, terms)) in before.into_iter().zip(sums) {
        let value = before + sum;
        let bound = gamma(terms + 2) * (magnitude + before.abs());
        expected.push(value, bound + storing(DType::F32, value));
    }
    vec![expected]
}

fn case(shape: Shape) -> Case {
    Case::new(shape.label(""), move |_: &Variant| {
        let mut random = Random::new(75);
        let grad = shape.of_pairs(&mut random, false);
        let before = random.values(shape.buckets * shape.heads, 1.0);
        let before = HostTensor::from_f32(DType::F32, &[shape.buckets, shape.heads], &before);
        shape.params().case(vec![grad, shape.ends_tensor(), shape.spans(), before])
    })
}

fn cases() -> Vec<Case> {
    let biased = SHAPES.iter().filter(|shape| shape.buckets > 0);
    let mut cases: Vec<Case> = biased.map(|shape| case(*shape)).collect();
    cases.push(case(SHAPES[0]).with(Poison::Zeros));
    cases.push(case(SHAPES[0]).poisoned(3, Poison::Infinity));
    cases.extend(LARGE.iter().map(|shape| case(*shape).bench()));
    cases
}
