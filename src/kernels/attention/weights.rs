//! `attention/weights`: softmax(q k^T * scale + bias) along the keys that a token sees, 0 for the others, with a bias of scores by
//! the bucket that the distance to the key falls into (Raffel et al. 2020, T5, arXiv 1910.10683, section 2.1).

use super::stored::{LARGE, Params, Row, SHAPES, Shape, cost, random_shape};
use crate::kernels::prelude::*;

/// The row of the kernel table.
pub static KERNEL: Kernel = Kernel {
    name: "attention/weights",
    source: include_str!("../../../shaders/attention/weights.wgsl"),
    bindings: &[
        binding("query", Access::Read, Element::Activation),
        binding("key", Access::Read, Element::Activation),
        binding("ends", Access::Read, Element::Is(DType::U32)),
        binding("table", Access::Read, Element::Is(DType::F32)),
        binding("bucket", Access::Read, Element::Is(DType::U32)),
        binding("result", Access::Write, Element::Is(DType::F32)),
    ],
    parameters: Params::LAYOUT,
    overrides: &[("WORKGROUP", 64.0)],
    variants: || {
        let types = [DType::F32, DType::F16];
        let with =
            |dtype| [false, true].map(|on| Variant::typed(dtype, DType::F32).with_subgroups(on));
        types.into_iter().flat_map(with).collect()
    },
    groups: |args| {
        let p: Params = args.parameters();
        fold(p.tokens as usize * p.heads as usize)
    },
    cost: |args| cost(args, 2.0, 4.0),
    reference,
    cpu: Some(cpu),
    cases,
    random: |sizes| case(random_shape(sizes), ""),
    ..Kernel::BASE
};

/// Writes the weights of some tokens. `tensors`: query, key, ends, the bias' table, the buckets of distances, and the result.
pub(super) fn weights(device: &Device, params: Params, tensors: [&Tensor; 6]) -> Result<()> {
    let subgroups = device.capabilities().subgroups;
    let variant = Variant::typed(tensors[0].dtype(), DType::F32).with_subgroups(subgroups);
    device.call(&KERNEL, variant, &params, &tensors)
}

/// An error d in a score changes its weight by a factor exp(d), and exp itself is off by (3 + 2 |x|) ulp; so is the total that
/// divides it.
fn reference(args: &Args<'_>) -> Vec<Expected> {
    let p: Params = args.parameters();
    let (query, key) = (args.tensors[0].to_f64(), args.tensors[1].to_f64());
    let (ends, table, bucket) =
        (args.tensors[2].u32s(), args.tensors[3].to_f64(), args.tensors[4].u32s());
    let (dim, scale) = (p.head_dim as usize, f64::from(p.scale));
    let line = |row: Row| {
        let own = &query[row.own..row.own + dim];
        let mut error = 0.0f64;
        let score = |index: usize| {
            let products = own.iter().zip(row.key(&key, index, dim)).map(|(q, k)| q * scale * k);
            let (mut score, mut magnitude) = (0.0, 0.0);
            for product in products {
                score += product;
                magnitude += product.abs();
            }
            if p.biased == 1 {
                let step = bucket[row.step(&p, index)] as usize;
                let bias = table[step * p.heads as usize + row.head];
                score += bias;
                magnitude += bias.abs();
            }
            error = error.max(gamma(dim + 3) * magnitude);
            score
        };
        let scores: Vec<f64> = (0..row.keys).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        let range = scores.iter().map(|score| most - score).fold(0.0, f64::max).min(100.0);
        let relative = 2.0 * (2.0 * error + (8.0 + 6.0 * range) * U) + gamma(row.keys + 8);
        let of = |weight: f64| {
            (weight / total, relative * weight / total + f64::from(f32::MIN_POSITIVE))
        };
        let hidden = p.columns as usize - row.keys;
        let unseen = std::iter::repeat_n((0.0, 0.0), hidden);
        weights.into_iter().map(of).chain(unseen).collect::<Vec<_>>()
    };
    let lines: Vec<Vec<(f64, f64)>> = Row::all(p, ends).map(line).collect();
    let mut expected = Expected::default();
    lines.into_iter().flatten().for_each(|(value, bound)| expected.push(value, bound));
    vec![expected]
}

fn cpu(args: &Args<'_>, outputs: &mut Outputs<'_>) {
    let p: Params = args.parameters();
    let (query, key, table) =
        (args.tensors[0].to_f32(), args.tensors[1].to_f32(), args.tensors[3].to_f32());
    let (ends, bucket) = (args.tensors[2].u32s(), args.tensors[4].u32s());
    let dim = p.head_dim as usize;
    let line = |row: Row| {
        let own = &query[row.own..row.own + dim];
        let mut line = vec![0.0; p.columns as usize];
        let mut most = f32::NEG_INFINITY;
        for (index, score) in line[..row.keys].iter_mut().enumerate() {
            *score = super::backward::dot(own, row.key(&key, index, dim)) * p.scale;
            if p.biased == 1 {
                *score += table[bucket[row.step(&p, index)] as usize * p.heads as usize + row.head];
            }
            most = most.max(*score);
        }
        let seen = &mut line[..row.keys];
        seen.iter_mut().for_each(|score| *score = (*score - most).exp());
        let total: f32 = seen.iter().sum();
        seen.iter_mut().for_each(|weight| *weight /= total);
        line
    };
    let lines: Vec<Vec<f32>> = Row::all(p, ends).map(line).collect();
    outputs.store(0, 0, &lines.concat());
}

fn case(shape: Shape, note: &'static str) -> Case {
    Case::new(shape.label(note), move |variant: &Variant| {
        let mut random = Random::new(71);
        let dtype = variant.activation;
        let scale = if note == ",large" { 90.0 } else { 3.0 };
        let query = shape.of_tokens(&mut random, dtype, scale);
        let key = shape.of_keys(&mut random, dtype);
        let table = random.values(shape.buckets.max(1) * shape.heads, 2.0);
        let bucket = shape.bucket();
        let pairs = [shape.tokens(), shape.heads, shape.columns()];
        shape.params().case(vec![
            query,
            key,
            shape.ends_tensor(),
            HostTensor::from_f32(DType::F32, &[shape.buckets.max(1), shape.heads], &table),
            HostTensor::from_u32(&[bucket.len()], &bucket),
            HostTensor::zeros(DType::F32, &pairs),
        ])
    })
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = SHAPES.iter().map(|shape| case(*shape, "")).collect();
    cases.push(case(SHAPES[0], ",large"));
    cases.push(case(SHAPES[0], "").with(Poison::Zeros));
    cases.push(case(SHAPES[0], "").with(Poison::NaN));
    cases.push(case(Shape::new(1, 3, 2, 8), "").with(Poison::NaN));
    cases.push(case(Shape::new(1051, 1, 1, 1), ",many"));
    cases.extend(LARGE.iter().map(|shape| case(*shape, "").bench()));
    cases
}
